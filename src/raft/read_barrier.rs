//! Read barriers: up to which entry a linearizable read must be applied, proven by a quorum after the read began.
//!
//! The ReadIndex protocol (Ongaro's thesis §6.4): the leader notes its commit index, confirms with a quorum that it still
//! leads, and the reader waits until it has applied that far. Barriers coalesce: while one round is on its way, everybody
//! who arrives waits for the next one, which starts after all of them did. Where members are far from each other, the next one
//! starts a part of a round trip later, before the last has ended. A follower asks the leader and reads locally; the
//! confirmation it gathers itself, so that both take one round trip (`standing`), or leaves to the leader.
//!
//! Staleness is proven without comparing clocks: data applied up to a read index is at least as new as the moment the
//! request for it was *sent*, on this node's own monotonic clock. Guarantees: a barrier was sent after it was asked for.
//! Leaves out: leases; reads never rely on clocks agreeing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::LinearizerOption;
use openraft::error::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::config::Timers;
use super::leadership::{Leader, Leadership};
use super::messages::{ReadIndexRefusal, Request, Response};
use super::network::Peers;
use super::state_store::{AppliedTo, StateStore};
use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::transport::Channel;
use crate::types::LogIndex;
use crate::watch;

/// The most reads that wait for the next round; one more is refused at once.
const WAITING_MAX: usize = 65_536;

/// Pause before another round where the last one failed.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Rounds that begin within a round trip, and the most on their way, where members are far from each other: a read waits for
/// a 12th part of a round trip on average, and two connections to a member stay for what else goes there.
const FAR_ROUNDS: u32 = 6;

/// Why no barrier could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// No leader was known in time.
    #[error("there is no leader at present")]
    NoLeader,
    /// The leader could not confirm its leadership in time.
    #[error("the leader can't reach a quorum")]
    NoQuorum,
    /// This node did not apply the log that far in time.
    #[error("this node lags behind the leader")]
    Lagging,
    /// Too many reads wait.
    #[error("too many reads are waiting")]
    Overloaded,
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

/// Proof that the log up to `index` contains every write acknowledged before `sent_at`.
#[derive(Debug, Clone, Copy)]
struct Barrier {
    index: LogIndex,
    sent_at: Instant,
}

type Round = Result<Barrier, BarrierError>;

/// How fresh the local data is, as proven by the last barrier that was applied.
#[derive(Debug, Clone)]
pub(super) struct Freshness {
    origin: Instant,
    /// Microseconds from `origin` to the latest proven moment, plus one; zero while nothing is proven.
    proven: Arc<AtomicU64>,
}

impl Freshness {
    fn new() -> Self {
        Self { origin: clock::now(), proven: Arc::default() }
    }

    fn prove(&self, sent_at: Instant) {
        let micros = sent_at.saturating_duration_since(self.origin).as_micros();
        self.proven.fetch_max(u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1, Ordering::AcqRel);
    }

    /// The local data is no older than this; `None` if nothing was ever proven.
    pub(super) fn staleness(&self) -> Option<Duration> {
        let micros = self.proven.load(Ordering::Acquire).checked_sub(1)?;
        Some(clock::now().saturating_duration_since(self.origin + Duration::from_micros(micros)))
    }
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(super) struct ReadBarrier {
    queue: mpsc::Sender<oneshot::Sender<Round>>,
    applied: watch::Receiver<AppliedTo>,
    leadership: Leadership,
    freshness: Freshness,
}

impl ReadBarrier {
    /// A barrier and the loop that drives it. `round_timeout` bounds one round.
    pub(super) fn new(
        source: ReadIndexSource,
        applied: watch::Receiver<AppliedTo>,
        shutdown: CancellationToken,
    ) -> (Self, BarrierLoop) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let leadership = source.leadership.clone();
        let driver = BarrierLoop { source, waiting, shutdown };
        (Self { queue, applied, leadership, freshness: Freshness::new() }, driver)
    }

    pub(super) fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Returns once everything acknowledged before the call is applied here. Tries until `deadline`, or until this node
    /// is a leader that has lost its quorum.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<(), BarrierError> {
        let mut lost = self.leadership.lost_quorum();
        tokio::select! {
            biased;
            result = self.attempts(deadline) => result,
            Ok(_) = lost.wait_for(|lost| *lost) => Err(BarrierError::NoQuorum),
        }
    }

    async fn attempts(&self, deadline: Instant) -> Result<(), BarrierError> {
        let mut last = None;
        loop {
            let mut changes = self.leadership.subscribe();
            let error = match tokio::time::timeout_at(deadline, self.round()).await {
                Ok(Ok(barrier)) => return self.wait_applied(barrier, deadline).await,
                Ok(Err(error @ (BarrierError::Stopping | BarrierError::Overloaded))) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => return Err(last.unwrap_or_else(|| self.no_answer())),
            };
            if clock::now() + RETRY_PAUSE >= deadline {
                return Err(error);
            }
            last = Some(error);
            tokio::select! {
                biased;
                () = changes.changed() => {}
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
    }

    fn no_answer(&self) -> BarrierError {
        match self.leadership.leader() {
            Leader::None => BarrierError::NoLeader,
            Leader::Me | Leader::Other(..) => BarrierError::NoQuorum,
        }
    }

    async fn round(&self) -> Round {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(reply).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BarrierError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => BarrierError::Stopping,
        })?;
        answer.await.unwrap_or(Err(BarrierError::Stopping))
    }

    async fn wait_applied(&self, barrier: Barrier, deadline: Instant) -> Result<(), BarrierError> {
        let reached = |applied: &AppliedTo| applied.position.is_some_and(|position| position.index >= barrier.index);
        if !reached(&self.applied.borrow()) {
            let mut applied = self.applied.clone();
            match tokio::time::timeout_at(deadline, applied.wait_for(reached)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(BarrierError::Stopping),
                Err(_) => return Err(BarrierError::Lagging),
            }
        }
        self.freshness.prove(barrier.sent_at);
        Ok(())
    }
}

/// Where a read index comes from: this node if it leads, else the leader.
#[derive(Clone)]
pub(super) struct ReadIndexSource {
    pub(super) raft: openraft::Raft<TypeConfig, StateStore>,
    pub(super) peers: Peers,
    pub(super) leadership: Leadership,
    /// They tell how long one round may take, and how many go at once.
    pub(super) timers: Timers,
}

impl ReadIndexSource {
    /// How long one round may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timers.election_max
    }

    /// A read index confirmed by a quorum after this call began.
    async fn obtain(&self) -> Result<LogIndex, BarrierError> {
        let timeout = self.timeout();
        match self.leadership.leader() {
            Leader::Me => {
                // openraft's own way has one question to a member under way at a time, heartbeats included.
                if self.timers.far()
                    && let Some(index) = self.witnessed(self.peers.me, None).await?
                {
                    return Ok(index);
                }
                self.as_leader(timeout).await.map_err(|refusal| match refusal {
                    ReadIndexRefusal::NotLeader(_) => BarrierError::NoLeader,
                    ReadIndexRefusal::NoQuorum => BarrierError::NoQuorum,
                })
            }
            Leader::Other(id, member) => {
                if let Some(index) = self.witnessed(id, Some(&member)).await? {
                    return Ok(index);
                }
                let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                let request = Request::ReadIndex { timeout_ms };
                let answer = self.peers.call(id, &member, Channel::Heartbeat, &request, timeout).await;
                match answer {
                    Ok(Response::ReadIndex(Ok(index))) => Ok(index),
                    Ok(Response::ReadIndex(Err(ReadIndexRefusal::NoQuorum))) => Err(BarrierError::NoQuorum),
                    // Not the leader any more, or not to be reached: there is none that this node knows of.
                    Ok(_) | Err(_) => Err(BarrierError::NoLeader),
                }
            }
            Leader::None => Err(BarrierError::NoLeader),
        }
    }

    /// The read index of this node, if it leads.
    pub(super) async fn as_leader(&self, timeout: Duration) -> Result<LogIndex, ReadIndexRefusal> {
        // A zero age asks for a confirmation that was sent after this call: ReadIndex, not a lease.
        let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(timeout);
        match self.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Ok(LogIndex::new(linearizer.read_log_id().index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadIndexRefusal::NotLeader(forward.leader_id))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadIndexRefusal::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadIndexRefusal::NotLeader(None)),
        }
    }
}

/// The single task that asks for read indexes.
pub(super) struct BarrierLoop {
    source: ReadIndexSource,
    waiting: mpsc::Receiver<oneshot::Sender<Round>>,
    shutdown: CancellationToken,
}

impl BarrierLoop {
    pub(super) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let work = async {
            let far = self.source.timers.far();
            let (rounds_max, pause) =
                if far { (FAR_ROUNDS as usize, self.source.timers.rtt / FAR_ROUNDS) } else { (1, Duration::ZERO) };
            let mut rounds = FuturesUnordered::new();
            let mut next_at = clock::now();
            loop {
                let rests = !rounds.is_empty() && clock::now() < next_at;
                tokio::select! {
                    biased;
                    Some(()) = rounds.next() => {}
                    () = tokio::time::sleep_until(next_at), if rests => {}
                    first = self.waiting.recv(), if !rests && rounds.len() < rounds_max => {
                        let Some(first) = first else { return };
                        let mut readers = vec![first];
                        while let Ok(reader) = self.waiting.try_recv() {
                            readers.push(reader);
                        }
                        next_at = clock::now() + pause;
                        rounds.push(round(&self.source, readers));
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// One round, for those that waited when it began.
async fn round(source: &ReadIndexSource, readers: Vec<oneshot::Sender<Round>>) {
    let sent_at = clock::now();
    // The source has its own, shorter limit; this one holds even where it does not come to look at it.
    let obtained = tokio::time::timeout(source.timeout() * 2, source.obtain()).await;
    let round = obtained.unwrap_or(Err(BarrierError::NoQuorum)).map(|index| Barrier { index, sent_at });
    for reader in readers {
        // A reader that has stopped waiting needs no answer.
        let _ = reader.send(round.clone());
    }
}
