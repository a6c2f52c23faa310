//! When rounds begin: everything that waits goes into the next one, and few are in flight at once.
//!
//! One round at a time leaves disk and network idle in turn; many small ones cost a commit round of CPU each, which reads
//! then lack. So a further round begins beside those in flight only once it would be as full as the last, and if that is
//! not few commands. Measured with 64 clients on two cores: puts +25 % over one round at a time; 9 reads for each put −20 %
//! without the least size. With it those were not slower than before, though in another build: `docs/performance.md`.
//!
//! Far from each other it is the way that takes the time, and the end of a round is a round trip away. There a further round
//! also begins once the last began a part of a round trip ago, however few commands it has ([`Pace`]).
//!
//! Guarantees: a group whose caller has stopped waiting is not proposed any more. Leaves out: how a round is sent
//! (`sender`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::sender::{RoundSender, refuse, refuse_forwarded};
use super::{Group, ProposeError};
use crate::clock::{self, Instant};
use crate::raft::config::Timers;
use crate::raft::leadership::{Leader, Leadership};
use crate::raft::log_store::FlushTime;
use crate::transport::tcp::CONNECTIONS_PER_CHANNEL_MAX;
use crate::transport::{BoxFuture, FRAME_BYTES_MAX};
use crate::types::NodeId;

/// The most rounds in flight into this node's own log. Measured with 64 and 256 clients: two gave up to 15 % more than one,
/// three no more than two.
pub(in crate::raft) const OWN_ROUNDS_MAX: usize = 2;

/// The least commands in a further round into this node's own log.
pub(in crate::raft) const OWN_FURTHER_MIN: usize = 16;

/// The most rounds in flight to a leader. A forwarded round waits for a round of the leader to end before its own begins, so
/// with one in flight a command waits for up to four: two or three gave 15 to 25 % more than one.
const FORWARDED_ROUNDS_MAX: usize = 3;

/// The least commands in a further round to a leader, which merges it with others.
const FORWARDED_FURTHER_MIN: usize = 4;

/// Rounds that begin within a round trip where members are far from each other: a command waits for a 32nd part of it on
/// average, and at 80 ms a leader has at most 200 rounds a second to work on.
const FAR_ROUNDS: u32 = 16;

/// The most rounds in flight into this node's own log then. A member that takes long for each works on them one after the
/// other: with more, full ones would be quicker.
const FAR_ROUNDS_MAX: usize = 24;

/// A further round that is not full waits for so many times what this node's own disk takes for one, so that members whose
/// disks are as quick are not kept busy with small rounds.
const FAR_FLUSHES: u32 = 2;

/// The same to a leader, within the two round trips that such a round takes: as many as there are connections for it.
const FAR_FORWARDED_ROUNDS: u32 = CONNECTIONS_PER_CHANNEL_MAX as u32;

/// The most rounds that are left to themselves because the leadership moved away from where they went. One more is waited
/// for. On a local network; far away more are in flight, and more can be left.
const LEFT_ROUNDS_MAX: usize = 4;

/// The most commands in one entry.
const ENTRY_COMMANDS_MAX: usize = 1_024;

/// An entry is not filled beyond this many bytes; a single larger command still gets its own.
const ENTRY_BYTES_TARGET: usize = 1024 * 1024;

/// An entry is not filled beyond commands that may be answered with this many bytes, by `payload::reply_weight`: half of
/// what one message of the leader to a follower carries back.
const ENTRY_REPLY_BYTES_TARGET: usize = FRAME_BYTES_MAX / 2;

/// How long to wait before trying again where a leader was expected but refused.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Where a round goes: into this node's own log, or to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Own,
    Other(NodeId),
}

/// How many rounds may be in flight, and after which pause a further one needs not be full.
#[derive(Debug, Clone, Copy)]
struct Pace {
    rounds_max: usize,
    pause: Option<Duration>,
}

/// What holds for rounds into this node's own log, and for those to a leader.
#[derive(Debug, Clone, Copy)]
struct Paces {
    own: Pace,
    forwarded: Pace,
    /// The most rounds that are left to themselves.
    left_max: usize,
}

impl Paces {
    /// For members that are as far from each other as these timers are made for.
    fn of(timers: Timers) -> Self {
        if !timers.far() {
            let near = |rounds_max| Pace { rounds_max, pause: None };
            let (own, forwarded) = (near(OWN_ROUNDS_MAX), near(FORWARDED_ROUNDS_MAX));
            return Self { own, forwarded, left_max: LEFT_ROUNDS_MAX };
        }
        let own = Pace { rounds_max: FAR_ROUNDS_MAX, pause: Some(timers.rtt / FAR_ROUNDS) };
        let pause = Some(timers.rtt * 2 / FAR_FORWARDED_ROUNDS);
        let forwarded = Pace { rounds_max: FAR_FORWARDED_ROUNDS as usize, pause };
        // All of two reigns: what is bounded here is memory, which the bytes that wait are bounded in, too.
        Self { own, forwarded, left_max: 2 * own.rounds_max }
    }
}

/// A round on its way; ends with the reign in which it began and the groups that surely were not proposed.
type Round = BoxFuture<'static, (u64, Vec<Group>)>;

/// Rounds on their way.
struct InFlight {
    paces: Paces,
    flush: FlushTime,
    rounds: FuturesUnordered<Round>,
    /// Where rounds go now.
    to: Option<Destination>,
    /// Counts how often that has changed.
    reign: u64,
    /// How many rounds of this reign are on their way; those of former ones were left to themselves.
    current: usize,
    /// How many commands went into the last round.
    last: usize,
    /// When it began.
    last_began: Instant,
}

impl InFlight {
    fn new(timers: Timers, flush: FlushTime) -> Self {
        let (rounds, last_began) = (FuturesUnordered::new(), clock::now());
        Self { paces: Paces::of(timers), flush, rounds, to: None, reign: 0, current: 0, last: 0, last_began }
    }

    /// Rounds go there from now on.
    fn turn_to(&mut self, to: Destination) {
        if self.to != Some(to) {
            (self.to, self.current) = (Some(to), 0);
            self.reign += 1;
        }
    }

    /// How rounds follow each other, and the least commands in a further one.
    fn pace(&self) -> (Pace, usize) {
        match self.to {
            Some(Destination::Own) => {
                let pause = self.paces.own.pause.map(|pause| pause.max(self.flush.get() * FAR_FLUSHES));
                (Pace { pause, ..self.paces.own }, OWN_FURTHER_MIN)
            }
            Some(Destination::Other(_)) => (self.paces.forwarded, FORWARDED_FURTHER_MIN),
            None => (Pace { rounds_max: 1, pause: None }, 1),
        }
    }

    /// Whether another round may begin, if so many commands wait for it.
    fn has_room(&self, waiting: usize) -> bool {
        let (pace, least) = self.pace();
        let left = self.rounds.len() - self.current;
        let full = self.current == 0 || waiting >= self.last.max(least);
        let rested = || pace.pause.is_some_and(|pause| clock::now() >= self.last_began + pause);
        self.current < pace.rounds_max && left <= self.paces.left_max && (full || rested())
    }

    /// When another round may begin although it is not full; `None` if not before one ends.
    fn rests_until(&self) -> Option<Instant> {
        let pause = self.pace().0.pause.filter(|_| self.awaits_more())?;
        Some(self.last_began + pause)
    }

    /// Whether there would be room if more waited.
    fn awaits_more(&self) -> bool {
        self.has_room(usize::MAX)
    }

    /// Begins a round of so many commands.
    fn begin(&mut self, size: usize, round: impl Future<Output = Vec<Group>> + Send + 'static) {
        let reign = self.reign;
        (self.last, self.last_began) = (size, clock::now());
        self.current += 1;
        self.rounds.push(Box::pin(async move { (reign, round.await) }));
    }

    /// The groups of the next round that ends which surely were not proposed; for ever if none is on its way.
    async fn end(&mut self) -> Vec<Group> {
        let Some((reign, again)) = self.rounds.next().await else { return std::future::pending().await };
        self.current -= usize::from(reign == self.reign);
        again
    }
}

/// What was submitted, and what is tried again.
pub(super) struct Queue {
    submitted: mpsc::Receiver<Group>,
    /// How many commands were submitted and not taken yet.
    count: Arc<AtomicUsize>,
    /// What goes before: groups that are tried again, and at most one that did not fit into the last round.
    first: VecDeque<Group>,
}

impl Queue {
    pub(super) fn new(submitted: mpsc::Receiver<Group>, count: Arc<AtomicUsize>) -> Self {
        Self { submitted, count, first: VecDeque::new() }
    }

    /// How many commands wait.
    fn commands(&self) -> usize {
        let first: usize = self.first.iter().map(|group| group.commands.len()).sum();
        first + self.count.load(Ordering::Relaxed)
    }

    /// Waits for another group, and keeps it; `false` if there will be none.
    async fn more(&mut self) -> bool {
        let Some(group) = self.submitted.recv().await else { return false };
        self.count.fetch_sub(group.commands.len(), Ordering::Relaxed);
        self.first.push_back(group);
        true
    }

    fn pop(&mut self) -> Option<Group> {
        self.first.pop_front().or_else(|| {
            let group = self.submitted.try_recv().ok()?;
            self.count.fetch_sub(group.commands.len(), Ordering::Relaxed);
            Some(group)
        })
    }

    /// Everything that waits and is still wanted, up to the size of an entry.
    fn take(&mut self) -> Vec<Group> {
        let now = clock::now();
        self.first.retain(|group| group.is_wanted(now));
        let (mut commands, mut bytes, mut reply_bytes) = (0, 0, 0);
        let mut groups: Vec<Group> = Vec::new();
        while let Some(group) = self.pop() {
            if !group.is_wanted(now) {
                continue;
            }
            commands += group.commands.len();
            bytes += group.size.bytes;
            reply_bytes += group.reply_bytes;
            let full =
                commands > ENTRY_COMMANDS_MAX || bytes > ENTRY_BYTES_TARGET || reply_bytes > ENTRY_REPLY_BYTES_TARGET;
            if !groups.is_empty() && full {
                self.first.push_front(group);
                break;
            }
            groups.push(group);
        }
        groups
    }
}

/// The single task that makes rounds.
pub(in crate::raft) struct ProposerLoop {
    sender: RoundSender,
    leadership: Leadership,
    queue: Queue,
    in_flight: InFlight,
    /// Until when nothing is tried again, unless the leadership changes before.
    pause: Option<Instant>,
    shutdown: CancellationToken,
}

impl ProposerLoop {
    pub(super) fn new(
        sender: RoundSender,
        leadership: Leadership,
        in_flight: (Timers, FlushTime),
        queue: Queue,
        shutdown: CancellationToken,
    ) -> Self {
        let in_flight = InFlight::new(in_flight.0, in_flight.1);
        Self { sender, leadership, queue, in_flight, pause: None, shutdown }
    }

    pub(in crate::raft) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = self.drive() => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Returns when nobody can submit any more.
    async fn drive(&mut self) {
        let mut changes = self.leadership.subscribe();
        let mut lost = self.leadership.lost_quorum();
        loop {
            let lost_quorum = *lost.borrow_and_update();
            if lost_quorum {
                self.turn_away();
            }
            let leader = self.leadership.leader();
            match &leader {
                Leader::Me => self.in_flight.turn_to(Destination::Own),
                Leader::Other(id, _) => self.in_flight.turn_to(Destination::Other(*id)),
                Leader::None => {}
            }
            if self.pause.is_none() && self.in_flight.has_room(self.queue.commands()) {
                let groups = self.queue.take();
                if !groups.is_empty() {
                    self.begin(leader, groups);
                    continue;
                }
            }
            let paused = self.pause.is_some();
            let rest = self.in_flight.rests_until().filter(|_| !paused && self.queue.commands() > 0);
            tokio::select! {
                biased;
                again = self.in_flight.end() => self.try_again(again),
                () = changes.changed() => self.pause = None,
                () = pause_end(self.pause), if paused => self.pause = None,
                () = pause_end(rest), if rest.is_some() => {}
                Ok(()) = lost.changed() => {}
                more = self.queue.more(), if lost_quorum || (!paused && self.in_flight.awaits_more()) => if !more {
                    return;
                },
            }
        }
    }

    /// Begins a round with these groups.
    fn begin(&mut self, leader: Leader, groups: Vec<Group>) {
        let sender = self.sender.clone();
        let size = groups.iter().map(|group| group.commands.len()).sum();
        match leader {
            Leader::Me => self.in_flight.begin(size, sender.propose(groups)),
            Leader::Other(id, member) => {
                let groups = refuse_forwarded(groups, Some(id));
                self.in_flight.begin(size, sender.forward(id, member, groups));
            }
            Leader::None => self.try_again(refuse_forwarded(groups, None)),
        }
    }

    /// Refuses all that waits: this node leads, but without a quorum nothing would come of it.
    fn turn_away(&mut self) {
        while let Some(group) = self.queue.pop() {
            refuse(vec![group], |_| true, &ProposeError::NoQuorum);
        }
    }

    /// Keeps what surely was not proposed for after a pause.
    fn try_again(&mut self, groups: Vec<Group>) {
        if !groups.is_empty() {
            self.queue.first.extend(groups);
            self.pause = Some(clock::now() + RETRY_PAUSE);
        }
    }
}

/// Waits for the end of a pause; for ever without one.
async fn pause_end(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: Destination = Destination::Other(NodeId::new(7));

    fn near() -> InFlight {
        InFlight::new(Timers::default(), FlushTime::default())
    }

    fn begin(rounds: &mut InFlight, groups: usize) {
        assert!(rounds.has_room(groups));
        rounds.begin(groups, std::future::pending());
    }

    #[test]
    fn a_further_round_waits_until_it_is_as_full_as_the_last() {
        let mut rounds = near();
        rounds.turn_to(Destination::Own);
        begin(&mut rounds, 20);
        assert!(!rounds.has_room(19) && rounds.awaits_more());
        begin(&mut rounds, 20);
        assert!(!rounds.has_room(1_000) && !rounds.awaits_more());
    }

    #[test]
    fn few_commands_wait_for_the_end_of_the_round_before() {
        let mut rounds = near();
        rounds.turn_to(Destination::Own);
        begin(&mut rounds, 1);
        assert!(!rounds.has_room(OWN_FURTHER_MIN - 1) && rounds.has_room(OWN_FURTHER_MIN));
        rounds.turn_to(LEADER);
        begin(&mut rounds, 1);
        assert!(!rounds.has_room(FORWARDED_FURTHER_MIN - 1) && rounds.has_room(FORWARDED_FURTHER_MIN));
    }

    #[test]
    fn far_away_a_further_round_waits_for_a_part_of_a_round_trip_only() {
        let flush = FlushTime::default();
        let mut rounds = InFlight::new(Timers::for_rtt(Duration::from_millis(80)), flush.clone());
        for (to, pause, limit) in [(Destination::Own, 5_000, 24), (LEADER, 20_000, 8)] {
            let pause = Duration::from_micros(pause);
            rounds.turn_to(to);
            for count in 0..limit {
                if count > 0 {
                    rounds.last_began = clock::now() + pause;
                    assert!(!rounds.has_room(1), "{count} rounds to {to:?}");
                    assert_eq!(rounds.rests_until(), Some(rounds.last_began + pause));
                }
                // As if the last had begun earlier.
                rounds.last_began = clock::now() - pause;
                begin(&mut rounds, 1);
            }
            rounds.last_began = clock::now() - pause;
            assert!(!rounds.has_room(1_000) && rounds.rests_until().is_none(), "{to:?}");
        }
        // A slow disk is given the time for each.
        flush.note(Duration::from_millis(30));
        rounds.turn_to(Destination::Own);
        begin(&mut rounds, 1);
        assert_eq!(rounds.rests_until(), Some(rounds.last_began + Duration::from_millis(60)));
    }

    #[tokio::test]
    async fn the_first_round_after_a_pause_waits_for_nobody() {
        let mut rounds = near();
        rounds.turn_to(LEADER);
        rounds.begin(500, std::future::ready(Vec::new()));
        assert!(rounds.end().await.is_empty());
        assert!(rounds.has_room(1));
    }

    #[tokio::test]
    async fn rounds_to_a_former_leader_hold_up_nobody_until_there_are_many() {
        let mut rounds = near();
        let ends: Vec<_> = (0..=LEFT_ROUNDS_MAX as u64)
            .map(|leader| {
                rounds.turn_to(Destination::Other(NodeId::new(leader)));
                assert!(rounds.has_room(1));
                let (end, ended) = tokio::sync::oneshot::channel::<()>();
                rounds.begin(1, async move {
                    let _ = ended.await;
                    Vec::new()
                });
                end
            })
            .collect();
        rounds.turn_to(Destination::Own);
        assert!(!rounds.has_room(1) && !rounds.awaits_more());
        // The end of one that was left is not counted as the end of one that goes there now.
        drop(ends);
        rounds.end().await;
        assert!(rounds.has_room(1));
        assert_eq!((rounds.current, rounds.rounds.len()), (0, LEFT_ROUNDS_MAX));
    }
}
