//! What `GET /v1/status` and `GET /v1/cluster` answer, and what `POST /v1/cluster/leader` takes and answers.
//!
//! Guarantees: what is not known is `null`, never a made-up zero. Leaves out: how it is found out (`node::status`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backups::AlarmInfo;
use crate::node;
use crate::types::{Member, NodeId, Wish};

/// The part a node plays at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Orders the writes.
    Leader,
    /// Follows a leader and votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Not yet a member, or its log is being replayed.
    Starting,
    /// Stopped.
    Shutdown,
    /// Taken out of the group.
    Removed,
}

impl NodeRole {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Starting => "starting",
            Self::Shutdown => "shutdown",
            Self::Removed => "removed",
        }
    }
}

/// Whether a member votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Counts for the quorum.
    Voter,
    /// Has all data, but no vote.
    Learner,
}

/// A node by id, name and address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderInfo {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The URL of its client listener; empty while it is not known.
    pub client_url: String,
}

impl From<(NodeId, Member)> for LeaderInfo {
    fn from((id, member): (NodeId, Member)) -> Self {
        Self { id: id.get(), name: member.name, client_url: member.client_url }
    }
}

/// What a node takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SizesInfo {
    /// The Raft log on disk.
    pub log_bytes: u64,
    /// The store on disk.
    pub state_bytes: u64,
    /// Applied records that wait in memory to be moved to the store.
    pub overlay_bytes: u64,
    /// The snapshot files.
    pub snapshot_bytes: u64,
}

/// The Raft timers in force, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timers {
    /// Between two heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// The least silence after which a follower asks for votes.
    pub election_min_ms: u64,
    /// The greatest.
    pub election_max_ms: u64,
    /// The round-trip time that they were made for.
    #[serde(default)]
    pub rtt_ms: Option<u64>,
}

/// Another member, as far away as the node that answers has measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerInfo {
    /// Its id.
    pub id: u64,
    /// Round-trip time to it, in milliseconds, smoothed; `null` if it has not answered for a while.
    pub rtt_ms: Option<f64>,
}

/// One node's view of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusReply {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// The version of the program.
    pub version: String,
    /// Its part.
    pub role: NodeRole,
    /// The leader it knows.
    pub leader: Option<LeaderInfo>,
    /// Its term.
    pub term: u64,
    /// Last entry in its log.
    pub last_log_index: Option<u64>,
    /// Last entry it knows to be committed.
    pub commit_index: Option<u64>,
    /// Last entry it has applied.
    pub applied_index: Option<u64>,
    /// Last entry that its newest snapshot covers.
    pub snapshot_index: Option<u64>,
    /// Last entry that was removed from its log.
    pub purged_index: Option<u64>,
    /// The revision of its store.
    pub revision: u64,
    /// History below this revision is gone.
    pub compacted_revision: u64,
    /// The hash of its store at `applied_index`: equal on every node that has applied as much.
    pub state_hash: String,
    /// What it takes.
    pub sizes: SizesInfo,
    /// Whether it can serve linearizable reads.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready_reason: Option<String>,
    /// How the other members reach it.
    pub peer_addr: String,
    /// How clients reach it.
    pub client_url: String,
    /// The data centre it stands in; empty if none was named.
    pub zone: String,
    /// Its timers.
    pub timers: Timers,
    /// The other members, by id.
    #[serde(default)]
    pub peers: Vec<PeerInfo>,
    /// How long it takes to bring one batch of the log to disk, in milliseconds, of late; `null` before the first.
    #[serde(default)]
    pub fsync_ms: Option<f64>,
    /// Its wall clock, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub time_unix_ms: Option<u64>,
    /// What an operator should look at on this node; `GET /v1/alarms` tells those of all members.
    #[serde(default)]
    pub alarms: Vec<AlarmInfo>,
}

/// One member of the group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemberInfo {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whether it votes.
    pub role: MemberRole,
    /// The data centre it stands in; empty if none was named.
    pub zone: String,
    /// `host:port` of its peer listener.
    pub peer_addr: String,
    /// The URL of its client listener.
    pub client_url: String,
    /// Whether it was heard from lately: by the leader, or with `view` `local` by the node that answers.
    pub reachable: bool,
    /// The last entry known to be in its log; `null` where nobody could tell.
    pub matched_index: Option<u64>,
    /// Entries it lacks of the longest log that was seen.
    pub lag_entries: Option<u64>,
    /// Round-trip time to it, in milliseconds; `null` for the node that measures and for one that can't be reached.
    pub rtt_ms: Option<f64>,
    /// How much it is preferred as the leader, from 0 to 255.
    #[serde(default)]
    pub priority: u8,
    /// What the leader does with it once it can.
    #[serde(default)]
    pub pending: Option<PendingChange>,
    /// The version of its program; `null` where it did not answer.
    #[serde(default)]
    pub version: Option<String>,
}

/// What is to become of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PendingChange {
    /// A learner that votes once it has caught up.
    Promotion,
    /// It is taken out once it has heard so.
    Removal,
}

/// How the group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuorumInfo {
    /// How many members vote.
    pub voters: u64,
    /// How many of them must agree.
    pub needed: u64,
    /// How many of them are reachable.
    pub reachable: u64,
    /// How many more voters may fail before writes stop.
    pub spare: u64,
}

/// Whose view of the group is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ViewSource {
    /// The leader's, whichever node was asked.
    Leader,
    /// That of the node that answers: no leader answered it.
    Local,
}

/// The group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterReply {
    /// Its id.
    pub cluster_id: u64,
    /// The term.
    pub term: u64,
    /// The id of the leader; `null` if none answers.
    pub leader: Option<u64>,
    /// Whose view this is.
    pub view: ViewSource,
    /// The members by id.
    pub members: Vec<MemberInfo>,
    /// How the group stands.
    pub quorum: QuorumInfo,
}

/// Who shall lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaderRequest {
    /// The id of a voter.
    #[serde(deserialize_with = "super::bytestring::number")]
    pub to: u64,
}

/// Who leads now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderReply {
    /// The leader.
    pub leader: LeaderInfo,
    /// Its term.
    pub term: u64,
    /// Whether the leadership was moved; `false` where that member led already.
    pub moved: bool,
}

impl From<node::Role> for NodeRole {
    fn from(role: node::Role) -> Self {
        match role {
            node::Role::Leader => Self::Leader,
            node::Role::Follower => Self::Follower,
            node::Role::Candidate => Self::Candidate,
            node::Role::Learner => Self::Learner,
            node::Role::Starting => Self::Starting,
            node::Role::Shutdown => Self::Shutdown,
            node::Role::Removed => Self::Removed,
        }
    }
}

impl From<node::NodeStatus> for StatusReply {
    fn from(status: node::NodeStatus) -> Self {
        let (heartbeat_ms, election_min_ms, election_max_ms) = status.timers_ms;
        let alarm = |alarm: &node::Alarm| AlarmInfo::of(status.id, &status.member.name, alarm);
        let alarms = status.alarms.iter().map(alarm).collect();
        Self {
            name: status.member.name,
            id: status.id.get(),
            cluster_id: status.cluster_id.get(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: status.role.into(),
            leader: status.leader.map(Into::into),
            term: status.term.get(),
            last_log_index: status.last_log_index.map(|index| index.get()),
            commit_index: status.committed_index.map(|index| index.get()),
            applied_index: status.applied_index.map(|index| index.get()),
            snapshot_index: status.snapshot_index.map(|index| index.get()),
            purged_index: status.purged_index.map(|index| index.get()),
            revision: status.revision.get(),
            compacted_revision: status.compacted_revision.get(),
            state_hash: status.state_hash,
            sizes: SizesInfo {
                log_bytes: status.sizes.log_bytes,
                state_bytes: status.sizes.state_bytes,
                overlay_bytes: status.sizes.overlay_bytes,
                snapshot_bytes: status.sizes.snapshot_bytes,
            },
            ready: status.readiness.is_ok(),
            not_ready_reason: status.readiness.err(),
            peer_addr: status.member.peer_addr,
            client_url: status.member.client_url,
            zone: status.member.zone,
            timers: Timers { heartbeat_ms, election_min_ms, election_max_ms, rtt_ms: Some(status.timers_rtt_ms) },
            peers: status.neighbours.iter().map(PeerInfo::from).collect(),
            fsync_ms: status.sync_time.map(ms),
            time_unix_ms: Some(status.wall.get()),
            alarms,
        }
    }
}

/// Milliseconds with their fraction, to the microsecond.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

impl From<&node::Neighbour> for PeerInfo {
    fn from(neighbour: &node::Neighbour) -> Self {
        Self { id: neighbour.id.get(), rtt_ms: neighbour.rtt.map(ms) }
    }
}

impl From<node::MemberStatus> for MemberInfo {
    fn from(member: node::MemberStatus) -> Self {
        Self {
            id: member.id.get(),
            name: member.member.name,
            role: if member.voter { MemberRole::Voter } else { MemberRole::Learner },
            zone: member.member.zone,
            peer_addr: member.member.peer_addr,
            client_url: member.member.client_url,
            reachable: member.reachable,
            matched_index: member.matched_index.map(|index| index.get()),
            lag_entries: member.lag_entries,
            rtt_ms: member.rtt_ms,
            priority: member.member.priority,
            pending: match member.member.wish {
                Wish::Stay => None,
                Wish::Vote { .. } => Some(PendingChange::Promotion),
                Wish::Leave => Some(PendingChange::Removal),
            },
            version: member.version,
        }
    }
}

impl From<node::ClusterStatus> for ClusterReply {
    fn from(status: node::ClusterStatus) -> Self {
        let members: Vec<MemberInfo> = status.members.into_iter().map(Into::into).collect();
        Self {
            cluster_id: status.cluster_id.get(),
            term: status.term.get(),
            leader: status.leader.map(|id| id.get()),
            view: match status.source {
                node::Source::Leader => ViewSource::Leader,
                node::Source::Local => ViewSource::Local,
            },
            quorum: QuorumInfo::of(&members),
            members,
        }
    }
}

impl QuorumInfo {
    /// Counts the voters among the members.
    #[must_use]
    pub fn of(members: &[MemberInfo]) -> Self {
        let voters = || members.iter().filter(|member| member.role == MemberRole::Voter);
        let count = |matching: &dyn Fn(&MemberInfo) -> bool| voters().filter(|voter| matching(voter)).count() as u64;
        let all = count(&|_| true);
        let needed = all / 2 + 1;
        let reachable = count(&|voter| voter.reachable);
        Self { voters: all, needed, reachable, spare: reachable.saturating_sub(needed) }
    }
}
