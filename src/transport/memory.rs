//! A transport inside one process: a switchboard whose links can be cut, slowed and made to lose answers.
//!
//! Guarantees: the promises of [`super::Transport`] and the errors of [`super::tcp`]; a call whose caller gave up is still
//! handled to its end, as it is by a real member; nothing here draws a random number or reads a clock other than tokio's,
//! so on a single-threaded runtime with paused time a run repeats exactly. Leaves out: bytes on a wire (hello, frames,
//! connection limits), and duplicated requests: a stream never delivers twice.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{BoxFuture, CallError, Channel, FRAME_BYTES_MAX, PeerHandler, Transport};
use crate::clock::{self, Instant};

/// The switchboard. Clones are the same one.
#[derive(Clone, Default)]
pub struct Network {
    board: Arc<Mutex<Switchboard>>,
}

#[derive(Default)]
struct Switchboard {
    served: BTreeMap<String, Served>,
    /// By caller and called; a link that is not here is whole.
    links: BTreeMap<(String, String), Link>,
}

struct Served {
    handler: Arc<dyn PeerHandler>,
    /// Ends what the handler has under way.
    stopped: CancellationToken,
}

/// What is wrong with the way from one address to another.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    cut: bool,
    delay: Duration,
    answers_to_drop: u32,
}

impl Network {
    /// A switchboard without members; every link is whole and immediate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of the member at `address`: its calls go out from there.
    #[must_use]
    pub fn endpoint(&self, address: &str) -> MemoryTransport {
        MemoryTransport { network: self.clone(), address: address.to_owned() }
    }

    /// Has calls to `address` answered by `handler`, in the place of whoever answered them before.
    pub fn serve(&self, address: &str, handler: Arc<dyn PeerHandler>) {
        self.stop(address);
        let served = Served { handler, stopped: CancellationToken::new() };
        self.board.lock().served.insert(address.to_owned(), served);
    }

    /// The member at `address` is gone: what it was answering ends where it stands, and calls to it find nobody.
    pub fn stop(&self, address: &str) {
        if let Some(served) = self.board.lock().served.remove(address) {
            served.stopped.cancel();
        }
    }

    /// Cuts the way from `from` to `to`: requests that way find nobody, and answers that way are lost without a word, so
    /// that their calls end by the deadline.
    pub fn cut(&self, from: &str, to: &str) {
        self.link(from, to, |link| link.cut = true);
    }

    /// Mends the way from `from` to `to`.
    pub fn heal(&self, from: &str, to: &str) {
        self.link(from, to, |link| link.cut = false);
    }

    /// Cuts every way between two groups.
    pub fn partition(&self, left: &[&str], right: &[&str]) {
        for (one, other) in left.iter().flat_map(|one| right.iter().map(move |other| (one, other))) {
            self.cut(one, other);
            self.cut(other, one);
        }
    }

    /// Makes every link whole and immediate.
    pub fn heal_all(&self) {
        self.board.lock().links.clear();
    }

    /// Everything on the way from `from` to `to` takes so long from now on.
    pub fn delay(&self, from: &str, to: &str, delay: Duration) {
        self.link(from, to, |link| link.delay = delay);
    }

    /// The next `count` answers that `to` has for `from` are lost after the handler ran, as if the connection broke.
    pub fn drop_answers(&self, from: &str, to: &str, count: u32) {
        self.link(from, to, |link| link.answers_to_drop = count);
    }

    fn link(&self, from: &str, to: &str, change: impl FnOnce(&mut Link)) {
        change(self.board.lock().links.entry((from.to_owned(), to.to_owned())).or_default());
    }

    /// Spends the delay of a link, then says whether it is whole.
    async fn pass(&self, from: &str, to: &str) -> bool {
        let delay = self.look(from, to).delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        !self.look(from, to).cut
    }

    fn look(&self, from: &str, to: &str) -> Link {
        self.board.lock().links.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }

    /// Takes one off the answers to drop.
    fn drops_answer(&self, from: &str, to: &str) -> bool {
        let mut board = self.board.lock();
        match board.links.get_mut(&(from.to_owned(), to.to_owned())) {
            Some(link) if link.answers_to_drop > 0 => {
                link.answers_to_drop -= 1;
                true
            }
            _ => false,
        }
    }
}

/// One member's end of a [`Network`].
#[derive(Clone)]
pub struct MemoryTransport {
    network: Network,
    address: String,
}

impl MemoryTransport {
    /// The call without its deadline; `sent` tells whether the handler was reached.
    async fn exchange(
        &self,
        to: &str,
        channel: Channel,
        request: Bytes,
        sent: &mut bool,
    ) -> Result<Bytes, &'static str> {
        let (network, from) = (&self.network, self.address.as_str());
        if !network.pass(from, to).await {
            return Err("the link is cut");
        }
        let served = network.board.lock().served.get(to).map(|to| (Arc::clone(&to.handler), to.stopped.clone()));
        let (handler, stopped) = served.ok_or("nobody listens there")?;
        *sent = true;
        // A task of its own: a caller that gives up does not end the work of the called.
        #[expect(clippy::disallowed_methods, reason = "awaited right below; ends with the endpoint")]
        let work = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => None,
                answer = handler.handle(channel, request) => answer,
            }
        });
        let answer = work.await.ok().flatten().ok_or("it closed the connection without an answer")?;
        if answer.len() > FRAME_BYTES_MAX {
            return Err("the answer is over the frame limit");
        }
        if network.drops_answer(from, to) {
            return Err("the answer was dropped");
        }
        if !network.pass(to, from).await {
            return pending().await;
        }
        Ok(answer)
    }

    async fn bounded_call(
        &self,
        to: &str,
        channel: Channel,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if request.len() > FRAME_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: request.len(), limit: FRAME_BYTES_MAX });
        }
        let mut sent = false;
        let reason = if deadline <= clock::now() {
            "its deadline had passed before it was sent"
        } else {
            match timeout_at(deadline, self.exchange(to, channel, request, &mut sent)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(reason)) => reason,
                Err(_elapsed) => "the deadline passed",
            }
        };
        let (peer, reason) = (to.to_owned(), reason.to_owned());
        Err(if sent { CallError::NoAnswer { peer, reason } } else { CallError::Unreachable { peer, reason } })
    }
}

impl Transport for MemoryTransport {
    fn call<'a>(
        &'a self,
        peer: &'a str,
        channel: Channel,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(self.bounded_call(peer, channel, request, deadline))
    }
}
