//! From waiting commands to log entries: merges whatever waits into one entry, one entry in flight.
//!
//! A commit round costs much the same however many commands it carries, so while one round is on its way the next one
//! fills (group commit). On the leader a round is a Raft entry; on a follower it is one forwarded call. Guarantees: a
//! command is answered "not proposed" only if it was not and never will be; forwarded commands take one hop; a command that
//! waits is dropped when its caller stops waiting. Leaves out: deadlines longer than the caller's, and repeating anything
//! whose outcome is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::leadership::{Leader, Leadership};
use super::messages::{ForwardRefusal, Request, Response};
use super::metrics::ProposerMetrics;
use super::network::{Peers, unexpected};
use super::state_store::StateStore;
use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::state::{Batch, Command, Operation, Outcome, TxnOp};
use crate::transport::Channel;
use crate::types::NodeId;

/// The most groups of commands that wait; one more is refused at once.
const WAITING_MAX: usize = 16_384;

/// The most commands in one entry.
const ENTRY_COMMANDS_MAX: usize = 1_024;

/// An entry is not filled beyond this many bytes; a single larger command still gets its own.
const ENTRY_BYTES_TARGET: usize = 1024 * 1024;

/// How long to wait before trying again where a leader was expected but refused.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What an answer that is on its way gets to arrive after another leader was elected.
const ANSWER_GRACE: Duration = Duration::from_millis(250);

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

    /// What was proposed surely never took effect, so it may be proposed again.
    fn requeue(&self) {
        self.0.store(QUEUED, Ordering::Release);
    }
}

/// Commands that are answered together: one of a client here, or many that a follower has merged.
struct Group {
    commands: Vec<Command>,
    bytes: usize,
    /// False for what was forwarded to this node already.
    may_forward: bool,
    deadline: Instant,
    stage: Arc<Stage>,
    reply: oneshot::Sender<Result<Vec<Outcome>, ProposeError>>,
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Proposer {
    queue: mpsc::Sender<Group>,
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
        let driver =
            ProposerLoop { raft, peers, leadership: leadership.clone(), metrics, shutdown, waiting, carry: None };
        (Self { queue, leadership }, driver)
    }

    /// Proposes commands and waits for their outcomes, one each, no longer than to `deadline`.
    pub(super) async fn submit(
        &self,
        commands: Vec<Command>,
        may_forward: bool,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, ProposeError> {
        let (reply, answer) = oneshot::channel();
        let stage = Arc::new(Stage::default());
        let bytes = commands.iter().map(payload_bytes).sum();
        let group = Group { commands, bytes, may_forward, deadline, stage: stage.clone(), reply };
        self.queue.try_send(group).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopping,
        })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if stage.abandon() => Err(ProposeError::Stopping),
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
    raft: openraft::Raft<TypeConfig, StateStore>,
    peers: Peers,
    leadership: Leadership,
    metrics: ProposerMetrics,
    shutdown: CancellationToken,
    waiting: mpsc::Receiver<Group>,
    /// A group that did not fit into the last entry.
    carry: Option<Group>,
}

impl ProposerLoop {
    pub(super) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let work = async {
            while let Some(groups) = self.next_round().await {
                self.carry_out(groups).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Everything that waits, up to the size of an entry. Waits for the first.
    async fn next_round(&mut self) -> Option<Vec<Group>> {
        let first = match self.carry.take() {
            Some(group) => group,
            None => self.waiting.recv().await?,
        };
        let (mut commands, mut bytes) = (first.commands.len(), first.bytes);
        let mut groups = vec![first];
        while commands < ENTRY_COMMANDS_MAX && bytes < ENTRY_BYTES_TARGET {
            let Ok(group) = self.waiting.try_recv() else { break };
            if bytes + group.bytes > ENTRY_BYTES_TARGET || commands + group.commands.len() > ENTRY_COMMANDS_MAX {
                self.carry = Some(group);
                break;
            }
            commands += group.commands.len();
            bytes += group.bytes;
            groups.push(group);
        }
        Some(groups)
    }

    /// Tries until every group is answered: proposed here, forwarded, refused, or given up by its caller.
    async fn carry_out(&mut self, mut groups: Vec<Group>) {
        loop {
            let now = clock::now();
            groups.retain(|group| !group.reply.is_closed() && group.deadline > now);
            if groups.is_empty() {
                return;
            }
            let mut changes = self.leadership.subscribe();
            let leader = self.leadership.leader();
            if !matches!(leader, Leader::Me) {
                let hint = leader.id();
                groups = refuse(groups, |group| !group.may_forward, &ProposeError::NotLeader(hint));
            }
            let again = match leader {
                Leader::Me => self.propose(groups).await,
                Leader::Other(id, member) => self.forward(id, &member.peer_addr, groups).await,
                Leader::None => groups,
            };
            if again.is_empty() {
                return;
            }
            groups = again;
            let soonest = groups.iter().map(|group| group.deadline).min().unwrap_or(now);
            tokio::select! {
                () = changes.changed() => {}
                () = tokio::time::sleep_until((clock::now() + RETRY_PAUSE).min(soonest)) => {}
            }
        }
    }

    /// Writes one entry; returns the groups that surely were not proposed.
    async fn propose(&self, groups: Vec<Group>) -> Vec<Group> {
        let mut groups: Vec<Group> = groups.into_iter().filter(|group| group.stage.propose()).collect();
        let stamp = clock::wall();
        let mut commands = Vec::with_capacity(groups.len());
        for group in &mut groups {
            for command in &mut group.commands {
                command.proposed_at = stamp;
            }
            commands.extend_from_slice(&group.commands);
        }
        if commands.is_empty() {
            return Vec::new();
        }
        let started = clock::now();
        self.metrics.commands_per_round.observe(commands.len() as f64);
        let result = self.raft.client_write(Batch::encode(&commands)).await;
        self.metrics.round_seconds.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(response) => {
                answer(groups, response.data.0);
                Vec::new()
            }
            // Not appended: this node no longer leads, or has lost its quorum.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                groups.iter().for_each(|group| group.stage.requeue());
                groups
            }
            Err(error) => {
                refuse(groups, |_| true, &ProposeError::Unknown(error.to_string()));
                Vec::new()
            }
        }
    }

    /// Waits until another node is known to lead than this one, and [`ANSWER_GRACE`] on top.
    async fn succeeded(&self, leader: NodeId) {
        let mut changes = self.leadership.subscribe();
        while matches!(self.leadership.leader(), Leader::None) || self.leadership.leader().id() == Some(leader) {
            changes.changed().await;
        }
        tokio::time::sleep(ANSWER_GRACE).await;
    }

    /// Sends the groups to the leader; returns those that surely were not proposed there.
    async fn forward(&self, leader: NodeId, address: &str, groups: Vec<Group>) -> Vec<Group> {
        let groups: Vec<Group> = groups.into_iter().filter(|group| group.stage.propose()).collect();
        let Some(deadline) = groups.iter().map(|group| group.deadline).max() else { return Vec::new() };
        let commands: Vec<Command> = groups.iter().flat_map(|group| group.commands.iter().cloned()).collect();
        let timeout = deadline.saturating_duration_since(clock::now());
        let request = Request::Forward {
            commands: Batch::encode(&commands).as_bytes().clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let started = clock::now();
        self.metrics.commands_per_round.observe(commands.len() as f64);
        let call = self.peers.call(leader, address, Channel::Forward, &request, timeout);
        let result = tokio::select! {
            result = call => Some(result),
            // A leader that was cut off would hold up everything that waits here for as long as its last caller waits.
            () = self.succeeded(leader) => None,
        };
        self.metrics.round_seconds.observe(started.elapsed().as_secs_f64());
        let Some(result) = result else {
            let reason = "another leader was elected before the one it was sent to had answered";
            refuse(groups, |_| true, &ProposeError::Unknown(reason.into()));
            return Vec::new();
        };
        match result {
            Ok(Response::Forward(Ok(outcomes))) if outcomes.len() == commands.len() => {
                answer(groups, outcomes);
                Vec::new()
            }
            Ok(Response::Forward(Err(ForwardRefusal::NotLeader(_) | ForwardRefusal::NotProposed(_)))) => {
                groups.iter().for_each(|group| group.stage.requeue());
                groups
            }
            Ok(Response::Forward(Err(ForwardRefusal::Unknown(reason)))) => {
                refuse(groups, |_| true, &ProposeError::Unknown(reason));
                Vec::new()
            }
            Ok(other) => {
                refuse(groups, |_| true, &ProposeError::Unknown(unexpected(&other).to_string()));
                Vec::new()
            }
            Err(error) if error.may_have_arrived() => {
                refuse(groups, |_| true, &ProposeError::Unknown(error.to_string()));
                Vec::new()
            }
            Err(_) => {
                groups.iter().for_each(|group| group.stage.requeue());
                groups
            }
        }
    }
}

/// Gives each group its share of the outcomes.
fn answer(groups: Vec<Group>, outcomes: Vec<Outcome>) {
    let mut outcomes = outcomes.into_iter();
    for group in groups {
        let share: Vec<Outcome> = outcomes.by_ref().take(group.commands.len()).collect();
        let whole = share.len() == group.commands.len();
        let result = if whole { Ok(share) } else { Err(ProposeError::Unknown("an outcome is missing".into())) };
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

/// Bytes of keys and values in a command.
fn payload_bytes(command: &Command) -> usize {
    let Operation::Txn(txn) = &command.operation;
    let ops = txn.success.iter().chain(&txn.failure);
    let op_bytes = |op: &TxnOp| match op {
        TxnOp::Put { key, value, .. } => key.as_bytes().len() + value.len(),
        TxnOp::Get { .. } | TxnOp::Delete { .. } => 64,
    };
    ops.map(op_bytes).sum::<usize>() + 64 * txn.compares.len()
}
