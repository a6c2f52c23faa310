//! What every transport must do, run on each of them; what only one has stands in its own file.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture as OwnedFuture, join_all, pending};
use tokio::sync::Notify;

use super::*;
use crate::clock;

mod memory;
mod tcp;

/// Long enough that only a fault reaches it.
const AMPLE: Duration = Duration::from_secs(20);

/// Short enough to wait for it, and longer than a busy machine keeps a thread from running.
const BRIEF: Duration = Duration::from_millis(250);

/// Answers as the request says; anything unknown comes back as it is.
#[derive(Default)]
struct Scripted {
    /// Requests that were begun.
    begun: AtomicUsize,
    /// Requests that were answered.
    ended: AtomicUsize,
    /// A "wait" was begun.
    waiting: Notify,
    /// Lets one "wait" end.
    release: Notify,
    /// A "wait" has ended.
    released: Notify,
}

impl Scripted {
    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

impl PeerHandler for Scripted {
    fn handle(&self, channel: Channel, request: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let answer = match request.as_ref() {
                b"channel" => Some(Bytes::from_static(channel.name().as_bytes())),
                b"hang" => {
                    self.waiting.notify_one();
                    pending().await
                }
                b"wait" => {
                    self.waiting.notify_one();
                    self.release.notified().await;
                    self.released.notify_one();
                    Some(Bytes::from_static(b"waited"))
                }
                b"refuse" => None,
                b"overflow" => Some(Bytes::from(vec![0; FRAME_BYTES_MAX + 1])),
                b"panic" => panic!("asked to"),
                _ => Some(request),
            };
            self.ended.fetch_add(1, Ordering::SeqCst);
            answer
        })
    }
}

/// One transport under test with a member that it can reach.
trait Rig: Send {
    fn transport(&self) -> Arc<dyn Transport>;
    fn address(&self) -> String;
    /// An address where nobody listens.
    fn nobody(&self) -> OwnedFuture<'_, String>;
    fn handler(&self) -> Arc<Scripted>;
    /// Stops the member and starts it at the same address.
    fn restart(&mut self) -> OwnedFuture<'_, ()>;
}

/// A call with ample time.
async fn ask(rig: &dyn Rig, channel: Channel, request: &'static [u8]) -> Result<Bytes, CallError> {
    ask_within(rig, channel, request, AMPLE).await
}

async fn ask_within(
    rig: &dyn Rig,
    channel: Channel,
    request: &'static [u8],
    limit: Duration,
) -> Result<Bytes, CallError> {
    let deadline = clock::now() + limit;
    rig.transport().call(&rig.address(), channel, Bytes::from_static(request), deadline).await
}

/// The member is well: it answers with the call's own answer.
async fn assert_answers(rig: &dyn Rig) {
    assert_eq!(ask(rig, Channel::Append, b"well?").await.unwrap(), "well?");
}

async fn calls_on_all_channels_at_once_get_their_own_answers(rig: &mut dyn Rig) {
    let (transport, address) = (rig.transport(), rig.address());
    let calls = (0..300).map(|call| {
        let (transport, address) = (Arc::clone(&transport), address.clone());
        tokio::spawn(async move {
            let request = Bytes::from(format!("call {call}"));
            let channel = Channel::ALL[call % Channel::ALL.len()];
            let answer = transport.call(&address, channel, request.clone(), clock::now() + AMPLE).await;
            assert_eq!(answer.unwrap(), request);
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    for channel in Channel::ALL {
        assert_eq!(ask(rig, channel, b"channel").await.unwrap(), channel.name());
    }
}

async fn messages_of_any_size_up_to_the_limit_pass(rig: &mut dyn Rig) {
    for bytes in [0, 1, 3, 1_020, 8_188, 8_192, 100_000, FRAME_BYTES_MAX] {
        let request: Bytes = (0..bytes).map(|i| (i % 251) as u8).collect();
        let deadline = clock::now() + AMPLE;
        let answer = rig.transport().call(&rig.address(), Channel::Snapshot, request.clone(), deadline).await.unwrap();
        assert!(answer == request, "{bytes} bytes came back as {}", answer.len());
    }
}

async fn a_message_over_the_limit_is_not_sent(rig: &mut dyn Rig) {
    let request = Bytes::from(vec![0; FRAME_BYTES_MAX + 1]);
    let answer = rig.transport().call(&rig.address(), Channel::Append, request, clock::now() + AMPLE).await;
    assert!(
        matches!(answer, Err(CallError::TooLarge { bytes, limit }) if bytes == limit + 1 && limit == FRAME_BYTES_MAX)
    );
    assert_eq!(rig.handler().begun(), 0);
    assert_answers(rig).await;
}

async fn a_call_ends_by_its_deadline_with_no_answer(rig: &mut dyn Rig) {
    let started = clock::now();
    let answer = ask_within(rig, Channel::Append, b"hang", BRIEF).await;
    assert!(matches!(answer, Err(CallError::NoAnswer { .. })), "{answer:?}");
    assert!(started.elapsed() >= BRIEF && started.elapsed() < AMPLE / 2);
    assert_answers(rig).await;
}

async fn a_call_after_its_deadline_is_not_sent(rig: &mut dyn Rig) {
    let answer = ask_within(rig, Channel::Append, b"late", Duration::ZERO).await;
    assert!(matches!(answer, Err(CallError::Unreachable { .. })), "{answer:?}");
    assert_eq!(rig.handler().begun(), 0);
}

async fn a_call_after_a_cancelled_one_gets_its_own_answer(rig: &mut dyn Rig) {
    let handler = rig.handler();
    for _ in 0..5 {
        tokio::select! {
            biased;
            answer = ask(rig, Channel::Append, b"wait") => panic!("answered: {answer:?}"),
            () = handler.waiting.notified() => {}
        }
        handler.release.notify_one();
        assert_answers(rig).await;
    }
}

async fn a_call_that_was_given_up_is_handled_to_its_end(rig: &mut dyn Rig) {
    let handler = rig.handler();
    tokio::select! {
        biased;
        answer = ask(rig, Channel::Forward, b"wait") => panic!("answered: {answer:?}"),
        () = handler.waiting.notified() => {}
    }
    handler.release.notify_one();
    handler.released.notified().await;
}

async fn a_restarted_member_is_reached_at_the_next_call(rig: &mut dyn Rig) {
    for _ in 0..3 {
        for channel in Channel::ALL {
            assert_eq!(ask(rig, channel, b"hello").await.unwrap(), "hello");
        }
        rig.restart().await;
    }
}

async fn where_nobody_listens_is_unreachable(rig: &mut dyn Rig) {
    let nobody = rig.nobody().await;
    let answer = rig.transport().call(&nobody, Channel::Control, Bytes::new(), clock::now() + AMPLE).await;
    assert!(matches!(&answer, Err(CallError::Unreachable { peer, .. }) if *peer == nobody), "{answer:?}");
}

async fn a_request_that_is_not_understood_brings_no_answer(rig: &mut dyn Rig) {
    for request in [&b"refuse"[..], b"overflow", b"panic"] {
        let answer = ask(rig, Channel::Append, request).await;
        assert!(matches!(answer, Err(CallError::NoAnswer { .. })), "{answer:?}");
        assert_answers(rig).await;
    }
}

async fn stuck_snapshot_calls_do_not_delay_a_heartbeat(rig: &mut dyn Rig) {
    let stuck =
        join_all((0..2 * super::tcp::CONNECTIONS_PER_CHANNEL_MAX).map(|_| ask(rig, Channel::Snapshot, b"hang")));
    tokio::select! {
        biased;
        _ = stuck => panic!("the stuck calls ended"),
        () = async {
            rig.handler().waiting.notified().await;
            for _ in 0..20 {
                assert_eq!(ask(rig, Channel::Heartbeat, b"beat").await.unwrap(), "beat");
            }
        } => {}
    }
}

/// The suite on one kind of rig, a test for each behaviour.
macro_rules! conformance {
    ($rig:expr; $($behaviour:ident),+ $(,)?) => {
        mod conformance {
            $(
                #[tokio::test]
                async fn $behaviour() {
                    super::super::$behaviour(&mut $rig.await).await;
                }
            )+
        }
    };
    ($rig:expr) => {
        conformance! {
            $rig;
            calls_on_all_channels_at_once_get_their_own_answers,
            messages_of_any_size_up_to_the_limit_pass,
            a_message_over_the_limit_is_not_sent,
            a_call_ends_by_its_deadline_with_no_answer,
            a_call_after_its_deadline_is_not_sent,
            a_call_after_a_cancelled_one_gets_its_own_answer,
            a_call_that_was_given_up_is_handled_to_its_end,
            a_restarted_member_is_reached_at_the_next_call,
            where_nobody_listens_is_unreachable,
            a_request_that_is_not_understood_brings_no_answer,
            stuck_snapshot_calls_do_not_delay_a_heartbeat,
        }
    };
}
use conformance;
