//! What a node tells of itself and of its group.
//!
//! Guarantees: reading a status never blocks on a disk or a network. Leaves out: the wire form (`api::model`).

use std::path::PathBuf;
use std::time::Duration;

use super::Node;
use super::archiving::Alarm;
use super::neighbours::Neighbour;
use crate::clock;
use crate::raft::SnapshotHandle;
use crate::raft::{RaftRole, RaftStatus};
use crate::types::{ClusterId, LogIndex, LogPosition, Member, NodeId, Revision, Term, WallTime};

/// The part a member plays at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Orders the writes.
    Leader,
    /// Follows a leader and votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// It is starting: the cluster is not formed yet, or the log is being replayed.
    Starting,
    /// Stopped.
    Shutdown,
    /// Taken out of the group.
    Removed,
}

/// One node's view of itself.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Its name and addresses.
    pub member: Member,
    /// Its part.
    pub role: Role,
    /// The leader it knows.
    pub leader: Option<(NodeId, Member)>,
    /// Its term.
    pub term: Term,
    /// Last entry in its log.
    pub last_log_index: Option<LogIndex>,
    /// Last entry it knows to be committed.
    pub committed_index: Option<LogIndex>,
    /// Last entry it has applied.
    pub applied_index: Option<LogIndex>,
    /// Last entry covered by its newest snapshot.
    pub snapshot_index: Option<LogIndex>,
    /// Last entry removed from its log.
    pub purged_index: Option<LogIndex>,
    /// Revision of its store.
    pub revision: Revision,
    /// History below this revision is gone.
    pub compacted_revision: Revision,
    /// The hash of its state at `applied_index`, 32 hexadecimal digits.
    pub state_hash: String,
    /// What it takes.
    pub sizes: Sizes,
    /// Whether it serves linearizable reads, and if not, why.
    pub readiness: Result<(), String>,
    /// The timers in force, in milliseconds: heartbeat, least and greatest election timeout.
    pub timers_ms: (u64, u64, u64),
    /// The round-trip time that they were made for, in milliseconds.
    pub timers_rtt_ms: u64,
    /// The other members, and how far away they are.
    pub neighbours: Vec<Neighbour>,
    /// How long one sync of the log takes, of late.
    pub sync_time: Option<Duration>,
    /// The wall clock here.
    pub wall: WallTime,
    /// What an operator should look at here.
    pub alarms: Vec<Alarm>,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    /// The Raft log on disk.
    pub log_bytes: u64,
    /// The state engine on disk.
    pub state_bytes: u64,
    /// Applied records not yet moved to the engine, in memory.
    pub overlay_bytes: u64,
    /// The snapshot files.
    pub snapshot_bytes: u64,
}

/// Whose view of the group is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The leader's: the logs are compared with its own.
    Leader,
    /// That of the node that was asked: no leader answered it.
    Local,
}

/// The group.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    /// Its id.
    pub cluster_id: ClusterId,
    /// The term.
    pub term: Term,
    /// The leader, where known.
    pub leader: Option<NodeId>,
    /// Whose view this is.
    pub source: Source,
    /// The members, by id.
    pub members: Vec<MemberStatus>,
}

/// One member of the group.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name and addresses.
    pub member: Member,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it was heard from lately: by the leader, or by the node that was asked.
    pub reachable: bool,
    /// The last entry known to be in its log.
    pub matched_index: Option<LogIndex>,
    /// Entries it lacks of the longest log that was seen; known where `matched_index` is.
    pub lag_entries: Option<u64>,
    /// Round-trip time of calls to it, in milliseconds; `None` where there are none.
    pub rtt_ms: Option<f64>,
    /// The version of its program; `None` where it did not answer.
    pub version: Option<String>,
}

/// A snapshot of this moment.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    /// Where it lies; stays readable while this value is held.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The revision it holds.
    pub revision: Revision,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// Keeps the file from being removed.
    pub(super) _held: SnapshotHandle,
}

impl Node {
    /// This node.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let timers = self.0.timers;
        let identity = self.0.desk.identity();
        let mut status = NodeStatus {
            id: identity.as_ref().map_or(NodeId::ZERO, |identity| identity.id),
            cluster_id: identity.as_ref().map_or(ClusterId::ZERO, |identity| identity.cluster),
            member: self.0.member.clone(),
            role: Role::Starting,
            leader: None,
            term: Term::ZERO,
            last_log_index: None,
            committed_index: None,
            applied_index: None,
            snapshot_index: None,
            purged_index: None,
            revision: Revision::ZERO,
            compacted_revision: Revision::ZERO,
            state_hash: String::new(),
            sizes: Sizes::default(),
            readiness: Ok(()),
            timers_ms: (ms(timers.heartbeat), ms(timers.election_min), ms(timers.election_max)),
            timers_rtt_ms: ms(timers.rtt),
            neighbours: self.neighbours(),
            sync_time: self.sync_time(),
            wall: clock::wall(),
            alarms: self.own_alarms(),
        };
        let raft = match (self.0.raft.get(), self.raft()) {
            // One that was taken out still has what it had.
            (Some(raft), _) | (None, Ok(raft)) => raft,
            (None, Err(reason)) => return NodeStatus { readiness: Err(reason), ..status },
        };
        let of_raft = raft.status();
        // As the group has it; what this process was started with may be older.
        if let Some(member) = raft.roster().members.remove(&status.id) {
            status.member = member;
        }
        let index = |position: Option<LogPosition>| position.map(|position| position.index);
        let reader = raft.reader();
        let applied = reader.applied();
        status.role = match role(&of_raft) {
            // Without a quorum it leads nobody, whatever Raft calls it until it hears of the next leader.
            Role::Leader if !raft.leads() => Role::Follower,
            _ if self.0.removal.get().is_some() => Role::Removed,
            role => role,
        };
        status.leader = self.leader();
        status.term = of_raft.term();
        status.last_log_index = of_raft.last_log_index().map(LogIndex::new);
        // What is applied is committed, also where Raft has not told so yet: its figures are of a moment before.
        status.committed_index = index(of_raft.committed().max(applied.position));
        status.applied_index = index(applied.position);
        status.snapshot_index = index(of_raft.snapshot());
        status.purged_index = index(of_raft.purged());
        status.revision = applied.revision;
        status.compacted_revision = applied.compacted;
        status.state_hash = format!("{:032x}", applied.hash);
        status.sizes = Sizes {
            log_bytes: raft.log_bytes(),
            state_bytes: reader.engine_bytes().unwrap_or(0),
            overlay_bytes: reader.overlay_bytes() as u64,
            snapshot_bytes: raft.snapshot_bytes(),
        };
        status.readiness = self.believed_ready(&status, &of_raft);
        status
    }

    /// Readiness as far as it can be told without asking others; `/readyz` proves it.
    fn believed_ready(&self, status: &NodeStatus, raft: &RaftStatus) -> Result<(), String> {
        if let Some(reason) = self.0.fatal.reason() {
            return Err(reason);
        }
        if let Some(reason) = self.0.removal.get() {
            return Err(reason.clone());
        }
        if status.leader.is_none() && raft.role() == RaftRole::Leader {
            return Err("it can't reach a quorum, and leads no more".into());
        }
        if status.leader.is_none() {
            return Err(self.with_refusal("there is no leader at present".into()));
        }
        Ok(())
    }

    /// A reason not to be ready, with what a member that refuses this node says: it may explain the reason.
    pub(super) fn with_refusal(&self, reason: String) -> String {
        match self.0.raft.get().and_then(crate::raft::RaftNode::refusal) {
            Some(refusal) => format!("{reason}; {refusal}"),
            None => reason,
        }
    }
}

fn role(raft: &RaftStatus) -> Role {
    match raft.role() {
        RaftRole::Leader => Role::Leader,
        RaftRole::Follower => Role::Follower,
        RaftRole::Candidate => Role::Candidate,
        RaftRole::Learner => Role::Learner,
        RaftRole::Shutdown => Role::Shutdown,
    }
}
