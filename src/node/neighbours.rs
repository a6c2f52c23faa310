//! How far away the other members are and how quick the disk here is, measured all the time, so that a status can tell.
//!
//! Only a leader calls all others by itself. So every node asks each other member now and then for nothing but its own bytes
//! back, on the connections for heartbeats, and the transport keeps how long that took. Timers that are too short for what
//! is found are told in the log.
//!
//! ```text
//! 0xF8 | version (1) | whatever comes back
//! ```
//!
//! Guarantees: one small message to each member every [`INTERVAL`]. Leaves out: changing the timers; openraft takes them at
//! the start, and all nodes need the same.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;

use super::Node;
use crate::clock;
use crate::raft::{RTT_MAX, RaftNode, Timers};
use crate::transport::{Channel, Transport};
use crate::types::NodeId;

/// The first byte of these messages. (The ones below it are free for questions that mean something.)
pub(super) const ECHO: u8 = 0xF8;

/// The newest format.
const VERSION: u8 = 1;

/// The most bytes that are sent back.
const ECHO_BYTES_MAX: usize = 64;

/// How often every member is asked. It also keeps the connections for heartbeats open that a read at a follower needs.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// The weight of the newest time of a sync in the smoothed one, as a divisor. A look every two seconds that finds syncs
/// forgets a slow start within half a minute.
const SYNC_SMOOTHING: u32 = 4;

/// A `--rtt` that is advised is a multiple of this.
const ADVISED_STEP_MS: u64 = 10;

/// Another member, as far away as this node has measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its id.
    pub id: NodeId,
    /// The smoothed round-trip time to it; `None` if it has not answered for a while.
    pub rtt: Option<Duration>,
}

/// How long the log's syncs take, of late.
#[derive(Debug, Default)]
pub(super) struct Syncs(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    count: u64,
    total: Duration,
    smoothed: Option<Duration>,
}

impl Syncs {
    /// Takes note of all syncs so far, their number and the time they took.
    fn note(&self, (count, total): (u64, Duration)) {
        let mut seen = self.0.lock();
        let (more, took) = (count.saturating_sub(seen.count), total.saturating_sub(seen.total));
        (seen.count, seen.total) = (count, total);
        if more > 0 {
            let mean = took / u32::try_from(more).unwrap_or(u32::MAX);
            seen.smoothed = Some(match seen.smoothed {
                None => mean,
                Some(old) => old - old / SYNC_SMOOTHING + mean / SYNC_SMOOTHING,
            });
        }
    }

    pub(super) fn mean(&self) -> Option<Duration> {
        self.0.lock().smoothed
    }
}

/// The answer to an echo; `None` for what is none.
pub(super) fn echo(message: &Bytes) -> Option<Bytes> {
    (message.len() <= ECHO_BYTES_MAX && message.starts_with(&[ECHO, VERSION])).then(|| message.clone())
}

impl Node {
    /// The other members and how far away they are.
    #[must_use]
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let Some(raft) = self.0.raft.get() else { return Vec::new() };
        let (transport, silence) = (&self.0.transport, silence(self.0.timers));
        let others = raft.status().members().into_iter().filter(|(id, ..)| *id != raft.id());
        let heard = |peer: &str| transport.last_ok(peer).is_some_and(|at| at.elapsed() < silence);
        let rtt = |peer: &str| transport.rtt(peer).filter(|_| heard(peer));
        others.map(|(id, member, _)| Neighbour { id, rtt: rtt(&member.peer_addr) }).collect()
    }

    /// How long one sync of the log takes on this node, of late; `None` before the first.
    #[must_use]
    pub fn sync_time(&self) -> Option<Duration> {
        self.0.syncs.mean()
    }

    /// Asks all others again and again, until the node stops.
    pub(super) fn watch_neighbours(&self, raft: &RaftNode) {
        let (node, raft, stopping) = (self.clone(), raft.clone(), self.0.stopping.clone());
        self.0.background.spawn(async move {
            stopping.run_until_cancelled(node.ask_again_and_again(&raft)).await;
        });
    }

    async fn ask_again_and_again(&self, raft: &RaftNode) {
        let mut warned = false;
        loop {
            self.0.syncs.note(raft.syncs());
            ask_all(raft, &self.0.transport, self.0.timers).await;
            warned = self.warn(warned);
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Says once that the timers are too short, or that they are not any more; returns whether they are.
    fn warn(&self, warned: bool) -> bool {
        let farthest = self.neighbours().into_iter().filter_map(|other| Some((other.rtt?, other.id))).max();
        let allowed = self.0.timers.rtt_max();
        let Some((rtt, id)) = farthest else { return warned };
        // Once warned, only what is clearly below ends it: a time about the limit must not fill the log.
        let too_far = rtt > if warned { allowed / 2 } else { allowed };
        if too_far && !warned {
            let (to, advised) = (self.member(id).name, humantime::format_duration(advised_rtt(rtt)));
            tracing::warn!(
                to,
                ?rtt,
                ?allowed,
                "a member is farther away than the timers allow, so leaders may be deposed for nothing; start all nodes with --rtt {advised}"
            );
        }
        too_far
    }
}

/// Who was silent for so long is not as far away as it last was; nobody knows how far.
fn silence(timers: Timers) -> Duration {
    INTERVAL * 2 + timers.leader_silence()
}

/// What `--rtt` should be for members that are so far from each other.
#[must_use]
pub fn advised_rtt(rtt: Duration) -> Duration {
    let ms = u64::try_from(rtt.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
    Duration::from_millis(ms.div_ceil(ADVISED_STEP_MS).max(1).saturating_mul(ADVISED_STEP_MS)).min(RTT_MAX)
}

async fn ask_all(raft: &RaftNode, transport: &Arc<dyn Transport>, timers: Timers) {
    let message = Bytes::from_static(&[ECHO, VERSION]);
    let asked = raft.status().members().into_iter().filter(|(id, ..)| *id != raft.id());
    let asked = asked.map(|(_, member, _)| {
        let message = message.clone();
        async move {
            let deadline = clock::now() + timers.election_min;
            // Whether it answers shows in what the transport keeps.
            let _ = transport.call(&member.peer_addr, Channel::Heartbeat, message, deadline).await;
        }
    });
    join_all(asked).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_syncs_is_that_of_late() {
        let syncs = Syncs::default();
        syncs.note((0, Duration::ZERO));
        assert_eq!(syncs.mean(), None);
        syncs.note((2, Duration::from_millis(8)));
        assert_eq!(syncs.mean(), Some(Duration::from_millis(4)));
        // Nothing new, then ten quick ones.
        syncs.note((2, Duration::from_millis(8)));
        syncs.note((12, Duration::from_millis(8)));
        assert_eq!(syncs.mean(), Some(Duration::from_millis(3)));
    }

    #[test]
    fn an_echo_comes_back_and_nothing_else() {
        let back = |bytes: &'static [u8]| echo(&Bytes::from_static(bytes));
        assert_eq!(back(b"\xF8\x01").as_deref(), Some(&b"\xF8\x01"[..]));
        assert_eq!(back(b"\xF8\x01more").as_deref(), Some(&b"\xF8\x01more"[..]));
        for foreign in [&b""[..], b"\xF8", b"\xF8\x02", b"\xF1\x01", &[ECHO; 65]] {
            assert_eq!(back(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn the_advised_round_trip_time_is_a_round_one_that_suffices() {
        for (measured_us, advised_ms) in
            [(0, 10), (9_900, 10), (10_001, 20), (80_000, 80), (81_500, 90), (9_000_000, 2_000)]
        {
            assert_eq!(advised_rtt(Duration::from_micros(measured_us)), Duration::from_millis(advised_ms));
        }
    }
}
