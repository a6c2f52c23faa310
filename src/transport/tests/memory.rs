//! The switchboard: the common suite, and what its links can suffer.

use super::*;
use crate::transport::memory::{MemoryTransport, Network};

const CALLER: &str = "caller:1";
const CALLED: &str = "called:1";

struct Board {
    network: Network,
    transport: MemoryTransport,
    handler: Arc<Scripted>,
}

impl Board {
    fn new() -> Self {
        let (network, handler) = (Network::new(), Arc::new(Scripted::default()));
        network.serve(CALLED, Arc::clone(&handler) as Arc<dyn PeerHandler>);
        Self { transport: network.endpoint(CALLER), network, handler }
    }

    async fn call(&self, request: &'static [u8], limit: Duration) -> Result<Bytes, CallError> {
        self.transport.call(CALLED, Channel::Append, Bytes::from_static(request), clock::now() + limit).await
    }
}

impl Rig for Board {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.transport.clone())
    }

    fn address(&self) -> String {
        CALLED.to_owned()
    }

    fn nobody(&self) -> OwnedFuture<'_, String> {
        Box::pin(async { "nobody:1".to_owned() })
    }

    fn handler(&self) -> Arc<Scripted> {
        Arc::clone(&self.handler)
    }

    fn restart(&mut self) -> OwnedFuture<'_, ()> {
        Box::pin(async {
            self.network.stop(CALLED);
            self.network.serve(CALLED, Arc::clone(&self.handler) as Arc<dyn PeerHandler>);
        })
    }
}

conformance!(async { super::Board::new() });

#[tokio::test]
async fn a_cut_link_is_unreachable_until_it_is_healed() {
    let board = Board::new();
    board.network.cut(CALLER, CALLED);
    assert!(matches!(board.call(b"x", AMPLE).await, Err(CallError::Unreachable { .. })));
    assert_eq!(board.handler.begun(), 0);
    board.network.heal(CALLER, CALLED);
    assert_eq!(board.call(b"x", AMPLE).await.unwrap(), "x");
}

#[tokio::test]
async fn a_cut_way_back_loses_the_answer_of_a_call_that_was_handled() {
    let board = Board::new();
    board.network.cut(CALLED, CALLER);
    assert!(matches!(board.call(b"x", BRIEF).await, Err(CallError::NoAnswer { .. })));
    assert_eq!(board.handler.begun(), 1);
}

#[tokio::test]
async fn dropped_answers_are_counted_off() {
    let board = Board::new();
    board.network.drop_answers(CALLER, CALLED, 2);
    for _ in 0..2 {
        assert!(matches!(board.call(b"x", AMPLE).await, Err(CallError::NoAnswer { .. })));
    }
    assert_eq!(board.call(b"x", AMPLE).await.unwrap(), "x");
    assert_eq!(board.handler.begun(), 3);
}

#[tokio::test]
async fn a_delay_counts_against_the_deadline_each_way() {
    let board = Board::new();
    for (there, back) in [(BRIEF, Duration::ZERO), (Duration::ZERO, BRIEF)] {
        board.network.delay(CALLER, CALLED, there);
        board.network.delay(CALLED, CALLER, back);
        let started = clock::now();
        assert_eq!(board.call(b"x", AMPLE).await.unwrap(), "x");
        assert!(started.elapsed() >= BRIEF);
    }
    board.network.delay(CALLED, CALLER, AMPLE);
    assert!(matches!(board.call(b"x", BRIEF).await, Err(CallError::NoAnswer { .. })));
    assert_eq!(board.handler.begun(), 3, "the request had arrived");
    board.network.delay(CALLER, CALLED, AMPLE);
    assert!(matches!(board.call(b"x", BRIEF).await, Err(CallError::Unreachable { .. })));
    assert_eq!(board.handler.begun(), 3, "the request was still under way");
}

#[tokio::test]
async fn a_partition_cuts_both_ways_between_groups_only() {
    let network = Network::new();
    let reaches = |from: &str, to: &str| {
        let (transport, to) = (network.endpoint(from), to.to_owned());
        async move { transport.call(&to, Channel::Control, Bytes::new(), clock::now() + AMPLE).await.is_ok() }
    };
    for member in ["a", "b", "c"] {
        network.serve(member, Arc::new(Scripted::default()));
    }
    network.partition(&["a"], &["b", "c"]);
    for (from, to, expected) in
        [("a", "b", false), ("b", "a", false), ("c", "a", false), ("b", "c", true), ("c", "b", true)]
    {
        assert_eq!(reaches(from, to).await, expected, "{from} to {to}");
    }
    network.heal_all();
    assert!(reaches("a", "c").await && reaches("c", "a").await);
}

#[tokio::test]
async fn a_stopped_member_ends_what_it_was_answering() {
    let board = Board::new();
    let (answer, ()) = tokio::join!(board.call(b"wait", AMPLE), async {
        board.handler.waiting.notified().await;
        board.network.stop(CALLED);
    });
    assert!(matches!(answer, Err(CallError::NoAnswer { .. })));
    assert_eq!(board.handler.ended.load(Ordering::SeqCst), 0);
    assert!(matches!(board.call(b"x", AMPLE).await, Err(CallError::Unreachable { .. })));
}
