//! From waiting commands to log entries: merges whatever waits into one entry, with few entries in flight.
//!
//! A commit round costs much the same however many commands it carries, so while rounds are on their way the next one
//! fills (group commit). On the leader a round is a Raft entry; on a follower it is one forwarded call.
//!
//! A round ends when its outcome is known or its last caller has stopped waiting. When the leadership moves, a round that
//! is still on its way to the old leader is left to itself (its outcome may yet come), so that it holds up nobody who could
//! be served by the new one.
//!
//! Guarantees: a command is answered "not proposed" only if it was not and never will be; forwarded commands take one hop;
//! a command that waits is dropped when its caller stops waiting; what waits is bounded in number and in bytes. Leaves out:
//! deadlines longer than the caller's, and repeating anything whose outcome is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

#[cfg(test)]
pub(super) use self::rounds::{OWN_FURTHER_MIN, OWN_ROUNDS_MAX};
use self::rounds::{ProposerLoop, Queue};
use self::sender::RoundSender;
use super::config::Timers;
use super::leadership::{Leader, Leadership};
use super::log_store::FlushTime;
use super::metrics::ProposerMetrics;
use super::network::Peers;
use super::payload::{payload_bytes, reply_weight};
use super::state_store::StateStore;
use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::state::{Command, Outcome};
use crate::types::NodeId;

mod rounds;
mod sender;

/// The most groups of commands that wait; one more is refused at once.
const WAITING_MAX: usize = 16_384;

/// The most bytes that wait; beyond it a group is refused at once. A single group may be larger if nothing else waits.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: no leader was known in time.
    #[error("there is no leader at present")]
    NoLeader,
    /// Not proposed: this node leads, but has lost its quorum.
    #[error("the leader can't reach a quorum")]
    NoQuorum,
    /// Not proposed: too much is waiting already.
    #[error("too many commands are waiting")]
    Overloaded,
    /// Not proposed: forwarded to this node, which does not lead; perhaps this one does.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// Not proposed: the node stops.
    #[error("the node is stopping")]
    Stopping,
    /// Proposed; whether it is or will be applied is not known.
    #[error("{0}")]
    Unknown(String),
}

/// Where a group of commands stands. Moves from queued to proposed by the proposer, or from queued to abandoned by the
/// waiting caller; whichever comes first decides what the caller may be told.
#[derive(Debug, Default)]
struct Stage(AtomicU8);

const QUEUED: u8 = 0;
const PROPOSED: u8 = 1;
const ABANDONED: u8 = 2;

impl Stage {
    fn propose(&self) -> bool {
        self.0.compare_exchange(QUEUED, PROPOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn abandon(&self) -> bool {
        self.0.compare_exchange(QUEUED, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == ABANDONED
    }

    /// What was proposed surely never took effect, so it may be proposed again.
    fn requeue(&self) {
        self.0.store(QUEUED, Ordering::Release);
    }
}

/// Commands that are answered together: one of a client here, or many that a follower has merged.
struct Group {
    commands: Vec<Command>,
    size: WaitingBytes,
    /// What the answers are expected to take, in bytes.
    reply_bytes: usize,
    /// False for what was forwarded to this node already.
    may_forward: bool,
    deadline: Instant,
    stage: Arc<Stage>,
    reply: oneshot::Sender<Result<Vec<Outcome>, ProposeError>>,
}

/// A share of the bytes that may wait; given back when dropped.
struct WaitingBytes {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl WaitingBytes {
    fn take(bytes: usize, all: &Arc<AtomicUsize>) -> Option<Self> {
        let share = Self { bytes, all: Arc::clone(all) };
        let others = all.fetch_add(bytes, Ordering::AcqRel);
        (others == 0 || others + bytes <= WAITING_BYTES_MAX).then_some(share)
    }
}

impl Drop for WaitingBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Proposer {
    queue: mpsc::Sender<Group>,
    /// How many commands are in the queue.
    queued: Arc<AtomicUsize>,
    waiting_bytes: Arc<AtomicUsize>,
    leadership: Leadership,
}

impl Proposer {
    /// A proposer and the loop that drives it, at a pace that follows from the timers and the disk.
    pub(super) fn new(
        raft: openraft::Raft<TypeConfig, StateStore>,
        peers: Peers,
        leadership: Leadership,
        pace: (Timers, FlushTime),
        metrics: ProposerMetrics,
        shutdown: CancellationToken,
    ) -> (Self, ProposerLoop) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let queued = Arc::new(AtomicUsize::new(0));
        let sender = RoundSender { raft, peers, metrics };
        let queue_end = Queue::new(waiting, queued.clone());
        let driver = ProposerLoop::new(sender, leadership.clone(), pace, queue_end, shutdown);
        (Self { queue, queued, waiting_bytes: Arc::default(), leadership }, driver)
    }

    /// Proposes commands and waits for their outcomes, one each, no longer than to `deadline`.
    pub(super) async fn submit(
        &self,
        commands: Vec<Command>,
        may_forward: bool,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, ProposeError> {
        if !may_forward {
            // At once, not when the queue gets to it: the sender may know a better address by then.
            match self.leadership.leader() {
                Leader::Me => {}
                leader => return Err(ProposeError::NotLeader(leader.id())),
            }
        }
        let (reply, answer) = oneshot::channel();
        let stage = Arc::new(Stage::default());
        let bytes = commands.iter().map(payload_bytes).sum();
        let size = WaitingBytes::take(bytes, &self.waiting_bytes).ok_or(ProposeError::Overloaded)?;
        let reply_bytes = commands.iter().map(reply_weight).sum();
        let group = Group { commands, size, reply_bytes, may_forward, deadline, stage: stage.clone(), reply };
        // Counted before it can be taken out.
        let count = group.commands.len();
        self.queued.fetch_add(count, Ordering::Relaxed);
        self.queue.try_send(group).map_err(|error| {
            self.queued.fetch_sub(count, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => ProposeError::Stopping,
            }
        })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // Dropped unproposed: because its time was over, if it is.
            Ok(Err(_)) if stage.abandon() && clock::now() >= deadline => Err(self.not_proposed()),
            Ok(Err(_)) if stage.is_abandoned() => Err(ProposeError::Stopping),
            Ok(Err(_)) => Err(ProposeError::Unknown("the node stopped while the write was on its way".into())),
            Err(_) if stage.abandon() => Err(self.not_proposed()),
            Err(_) => Err(ProposeError::Unknown("no quorum confirmed the write within the deadline".into())),
        }
    }

    /// Why something was not proposed in time.
    fn not_proposed(&self) -> ProposeError {
        match self.leadership.leader() {
            Leader::Me => ProposeError::NoQuorum,
            Leader::Other(..) | Leader::None => ProposeError::NoLeader,
        }
    }
}

impl Group {
    /// Whether somebody still waits for it.
    fn is_wanted(&self, now: Instant) -> bool {
        !self.reply.is_closed() && self.deadline > now
    }
}
