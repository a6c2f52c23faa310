//! From waiting commands to log entries: merges whatever waits into one entry, one entry in flight.
//!
//! A commit round costs much the same however many commands it carries, so while one round is on its way the next one
//! fills (group commit). On the leader a round is a Raft entry; on a follower it is one forwarded call.
//!
//! A round ends when its outcome is known or its last caller has stopped waiting. When the leadership moves, a round that
//! is still on its way to the old leader is left to itself (its outcome may yet come), so that it holds up nobody who could
//! be served by the new one.
//!
//! Guarantees: a command is answered "not proposed" only if it was not and never will be; forwarded commands take one hop;
//! a command that waits is dropped when its caller stops waiting; what waits is bounded in number and in bytes. Leaves out:
//! deadlines longer than the caller's, and repeating anything whose outcome is unknown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::leadership::{Leader, Leadership};
use super::messages::{ForwardRefusal, Request, Response};
use super::metrics::ProposerMetrics;
use super::network::{Peers, unexpected};
use super::payload::{payload_bytes, reply_weight};
use super::state_store::StateStore;
use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::state::{Batch, Command, Outcome};
use crate::transport::{BoxFuture, Channel, FRAME_BYTES_MAX};
use crate::types::NodeId;

/// The most groups of commands that wait; one more is refused at once.
const WAITING_MAX: usize = 16_384;

/// The most bytes that wait; beyond it a group is refused at once. A single group may be larger if nothing else waits.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most rounds that are left to themselves because the leadership moved away from where they went. One more is waited
/// for.
const LEFT_ROUNDS_MAX: usize = 4;

/// What a forwarding node keeps of its callers' time for the way back, as a part of what is left ...
const RETURN_PART: u32 = 8;

/// ... and at most. Without it the leader's "not proposed" would come too late to be told.
const RETURN_TIME_MAX: Duration = Duration::from_secs(1);

/// The most commands in one entry.
const ENTRY_COMMANDS_MAX: usize = 1_024;

/// An entry is not filled beyond this many bytes; a single larger command still gets its own.
const ENTRY_BYTES_TARGET: usize = 1024 * 1024;

/// An entry is not filled beyond commands that may be answered with this many bytes, by [`reply_weight`]: half of what one
/// message of the leader to a follower carries back.
const ENTRY_REPLY_BYTES_TARGET: usize = FRAME_BYTES_MAX / 2;

/// How long to wait before trying again where a leader was expected but refused.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

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

/// A round on its way; ends with the groups that surely were not proposed.
type Round = BoxFuture<'static, Vec<Group>>;

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Proposer {
    queue: mpsc::Sender<Group>,
    waiting_bytes: Arc<AtomicUsize>,
    leadership: Leadership,
}

impl Proposer {
    /// A proposer and the loop that drives it.
    pub(super) fn new(
        raft: openraft::Raft<TypeConfig, StateStore>,
        peers: Peers,
        leadership: Leadership,
        metrics: ProposerMetrics,
        shutdown: CancellationToken,
    ) -> (Self, ProposerLoop) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let sender = RoundSender { raft, peers, metrics };
        let ready = VecDeque::new();
        let driver = ProposerLoop { sender, leadership: leadership.clone(), shutdown, waiting, ready };
        (Self { queue, waiting_bytes: Arc::default(), leadership }, driver)
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
        self.queue.try_send(group).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopping,
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

/// The single task that makes entries.
pub(super) struct ProposerLoop {
    sender: RoundSender,
    leadership: Leadership,
    shutdown: CancellationToken,
    waiting: mpsc::Receiver<Group>,
    /// What goes before the queue: groups that are tried again, and at most one that did not fit into the last round.
    ready: VecDeque<Group>,
}

impl ProposerLoop {
    pub(super) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = self.drive() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn drive(&mut self) {
        let mut left = FuturesUnordered::new();
        while let Some(groups) = self.next_round(&mut left).await {
            let mut changes = self.leadership.subscribe();
            let leader = self.leadership.leader();
            let (to, sender) = (destination(&leader), self.sender.clone());
            let mut round: Round = match leader {
                Leader::Me => Box::pin(sender.propose(groups)),
                Leader::Other(id, member) => {
                    let groups = refuse_forwarded(groups, Some(id));
                    Box::pin(sender.forward(id, member.peer_addr, groups))
                }
                Leader::None => Box::pin(std::future::ready(refuse_forwarded(groups, None))),
            };
            let again = loop {
                tokio::select! {
                    again = &mut round => break again,
                    () = changes.changed() => {
                        let now = destination(&self.leadership.leader());
                        if now.is_some() && now != to && left.len() < LEFT_ROUNDS_MAX {
                            left.push(round);
                            break Vec::new();
                        }
                    }
                    Some(returned) = left.next(), if !left.is_empty() => self.ready.extend(returned),
                }
            };
            if again.is_empty() {
                continue;
            }
            self.ready.extend(again);
            let pause = tokio::time::sleep(RETRY_PAUSE);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = changes.changed() => break,
                    () = &mut pause => break,
                    Some(returned) = left.next(), if !left.is_empty() => self.ready.extend(returned),
                }
            }
        }
    }

    /// Everything that waits, up to the size of an entry. Waits for the first.
    async fn next_round(&mut self, left: &mut FuturesUnordered<Round>) -> Option<Vec<Group>> {
        loop {
            let now = clock::now();
            self.ready.retain(|group| group.is_wanted(now));
            let (mut commands, mut bytes, mut reply_bytes) = (0, 0, 0);
            let mut groups: Vec<Group> = Vec::new();
            while let Some(group) = self.ready.pop_front().or_else(|| self.waiting.try_recv().ok()) {
                if !group.is_wanted(now) {
                    continue;
                }
                commands += group.commands.len();
                bytes += group.size.bytes;
                reply_bytes += group.reply_bytes;
                let full = commands > ENTRY_COMMANDS_MAX
                    || bytes > ENTRY_BYTES_TARGET
                    || reply_bytes > ENTRY_REPLY_BYTES_TARGET;
                if !groups.is_empty() && full {
                    self.ready.push_front(group);
                    break;
                }
                groups.push(group);
            }
            if !groups.is_empty() {
                return Some(groups);
            }
            tokio::select! {
                group = self.waiting.recv() => self.ready.push_back(group?),
                Some(again) = left.next(), if !left.is_empty() => self.ready.extend(again),
            }
        }
    }
}

/// Where a round goes: `None` if nowhere, `Some(None)` into this node's own log, else to that node.
fn destination(leader: &Leader) -> Option<Option<NodeId>> {
    match leader {
        Leader::Me => Some(None),
        Leader::Other(id, _) => Some(Some(*id)),
        Leader::None => None,
    }
}

impl Group {
    /// Whether somebody still waits for it.
    fn is_wanted(&self, now: Instant) -> bool {
        !self.reply.is_closed() && self.deadline > now
    }
}

/// Sends one round.
#[derive(Clone)]
struct RoundSender {
    raft: openraft::Raft<TypeConfig, StateStore>,
    peers: Peers,
    metrics: ProposerMetrics,
}

impl RoundSender {
    /// Writes one entry; returns the groups that surely were not proposed.
    async fn propose(self, groups: Vec<Group>) -> Vec<Group> {
        let mut groups: Vec<Group> = groups.into_iter().filter(|group| group.stage.propose()).collect();
        let stamp = clock::wall();
        let mut commands = Vec::with_capacity(groups.len());
        for group in &mut groups {
            for command in &mut group.commands {
                command.proposed_at = stamp;
            }
            commands.extend_from_slice(&group.commands);
        }
        let Some(deadline) = groups.iter().map(|group| group.deadline).max() else { return Vec::new() };
        let started = clock::now();
        self.metrics.commands_per_round.observe(commands.len() as f64);
        // Without a quorum the answer may never come; from the last deadline on nobody waits for it.
        let write = self.raft.client_write(Batch::encode(&commands));
        let Ok(result) = tokio::time::timeout_at(deadline, write).await else { return Vec::new() };
        self.metrics.round_seconds.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(response) => {
                answer(groups, response.data.0.into_iter().map(Some));
                Vec::new()
            }
            // Not appended: this node no longer leads, or has lost its quorum.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => requeue(groups),
            Err(error) => {
                refuse(groups, |_| true, &ProposeError::Unknown(error.to_string()));
                Vec::new()
            }
        }
    }

    /// Sends the groups to the leader; returns those that surely were not proposed there.
    async fn forward(self, leader: NodeId, address: String, groups: Vec<Group>) -> Vec<Group> {
        let groups: Vec<Group> = groups.into_iter().filter(|group| group.stage.propose()).collect();
        let Some(deadline) = groups.iter().map(|group| group.deadline).max() else { return Vec::new() };
        let commands: Vec<Command> = groups.iter().flat_map(|group| group.commands.iter().cloned()).collect();
        let timeout = deadline.saturating_duration_since(clock::now());
        let leaders_time = timeout - (timeout / RETURN_PART).min(RETURN_TIME_MAX);
        let request = Request::Forward {
            commands: Batch::encode(&commands).as_bytes().clone(),
            timeout_ms: u64::try_from(leaders_time.as_millis()).unwrap_or(u64::MAX),
        };
        let started = clock::now();
        self.metrics.commands_per_round.observe(commands.len() as f64);
        let result = self.peers.call(leader, &address, Channel::Forward, &request, timeout).await;
        self.metrics.round_seconds.observe(started.elapsed().as_secs_f64());
        let unknown = match result {
            Ok(Response::Forward(Ok(outcomes))) if outcomes.len() == commands.len() => {
                answer(groups, outcomes);
                return Vec::new();
            }
            Ok(Response::Forward(Err(ForwardRefusal::NotLeader(_) | ForwardRefusal::NotProposed(_)))) => {
                return requeue(groups);
            }
            Ok(Response::Forward(Err(ForwardRefusal::Unknown(reason)))) => reason,
            Ok(other) => unexpected(&other).to_string(),
            Err(error) if error.may_have_arrived() => error.to_string(),
            Err(_) => return requeue(groups),
        };
        refuse(groups, |_| true, &ProposeError::Unknown(unknown));
        Vec::new()
    }
}

/// Has the groups tried again: they surely were not proposed.
fn requeue(groups: Vec<Group>) -> Vec<Group> {
    groups.iter().for_each(|group| group.stage.requeue());
    groups
}

/// Refuses what was forwarded to this node already, which does not lead.
fn refuse_forwarded(groups: Vec<Group>, leader: Option<NodeId>) -> Vec<Group> {
    refuse(groups, |group| !group.may_forward, &ProposeError::NotLeader(leader))
}

/// Gives each group its share of the outcomes. A group that one is missing for is told so; the others get theirs.
fn answer(groups: Vec<Group>, outcomes: impl IntoIterator<Item = Option<Outcome>>) {
    let mut outcomes = outcomes.into_iter();
    for group in groups {
        let share: Vec<Outcome> = outcomes.by_ref().take(group.commands.len()).flatten().collect();
        let whole = share.len() == group.commands.len();
        let missing = || ProposeError::Unknown("it was applied, but its answer had no room on the way back".into());
        let result = if whole { Ok(share) } else { Err(missing()) };
        // A caller that has stopped waiting has been told "unknown".
        let _ = group.reply.send(result);
    }
}

/// Answers the groups that match with an error; returns the others.
fn refuse(groups: Vec<Group>, matches: impl Fn(&Group) -> bool, error: &ProposeError) -> Vec<Group> {
    let (refused, kept): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(matches);
    for group in refused {
        let _ = group.reply.send(Err(error.clone()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Operation, Principal, Rejection, Txn};
    use crate::types::WallTime;

    fn command(txn: Txn) -> Command {
        let (principal, request) = (Principal::User("u".repeat(100)), None);
        Command { proposed_at: WallTime::ZERO, principal, request, operation: Operation::Txn(txn) }
    }

    #[test]
    fn a_group_without_all_its_outcomes_leaves_the_others_theirs() {
        let all = Arc::default();
        let (groups, mut answers): (Vec<Group>, Vec<_>) = (0..3)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                let group = Group {
                    commands: vec![command(Txn::default()); 2],
                    size: WaitingBytes::take(1, &all).unwrap(),
                    reply_bytes: 0,
                    may_forward: true,
                    deadline: clock::now(),
                    stage: Arc::default(),
                    reply,
                };
                (group, answer)
            })
            .unzip();
        let outcome = |limit| Err(Rejection::TooManyKeys { limit });
        let outcomes = [Some(1), Some(2), None, Some(4), Some(5), Some(6)].map(|limit| limit.map(outcome));
        answer(groups, outcomes);
        let mut next = || answers.remove(0).try_recv().unwrap();
        assert_eq!(next(), Ok(vec![outcome(1), outcome(2)]));
        assert!(matches!(next(), Err(ProposeError::Unknown(_))));
        assert_eq!(next(), Ok(vec![outcome(5), outcome(6)]));
    }
}
