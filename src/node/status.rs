//! What a node tells of itself and of its group.
//!
//! Guarantees: reading a status never blocks on a disk or a network. Leaves out: the wire form (`api::model`).

use std::path::PathBuf;

use crate::types::{ClusterId, LogIndex, Member, NodeId, Revision, Term};

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
    /// Stopped, or not yet a member.
    Shutdown,
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

/// The group as this node sees it.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    /// Its id.
    pub cluster_id: ClusterId,
    /// The term.
    pub term: Term,
    /// The leader, where known.
    pub leader: Option<NodeId>,
    /// The members, by id.
    pub members: Vec<MemberStatus>,
}

/// One member as this node sees it.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name and addresses.
    pub member: Member,
    /// Whether it votes.
    pub voter: bool,
    /// Whether this node has heard from it lately; `None` if this node does not talk to it.
    pub reachable: Option<bool>,
    /// The last entry known to be in its log; known to the leader alone, and to each node of itself.
    pub matched_index: Option<LogIndex>,
    /// Entries it lacks; known where `matched_index` is.
    pub lag_entries: Option<u64>,
    /// Round-trip time of the last call to it, in milliseconds.
    pub rtt_ms: Option<f64>,
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
}
