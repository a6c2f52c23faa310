//! Consensus: openraft and its adapters to our log, state, snapshots and peers. The only room that names openraft.
//!
//! The door is [`RaftNode`]: propose a command, pass a read barrier, read the local state, take a snapshot, see the status.
//! Guarantees: nothing is acknowledged before a quorum has it on disk; purged ≤ verified snapshot ≤ applied ≤ committed ≤
//! last log; an outcome nobody knows is never called a failure. Leaves out: clients and their deadlines (`node`, `api`).

mod address_book;
mod background;
mod checkpoint;
mod config;
mod engine_home;
mod fatal;
mod forgetting;
mod leader_transfer;
mod leadership;
mod log_store;
mod maintenance;
mod membership;
mod membership_change;
mod messages;
mod metrics;
mod network;
mod packing;
mod payload;
mod pipeline;
mod proposer;
mod raft_node;
mod read_barrier;
mod recovery;
mod refounding;
mod refusals;
mod retention;
mod runtime;
mod server;
mod snapshot_store;
mod snapshot_transfer;
mod standing;
mod state_store;
pub mod types;

pub use background::stand_back;
pub use config::{RTT_MAX, RaftConfig, Timers};
pub use engine_home::Engines;
pub use fatal::Fatal;
pub use forgetting::Forgetful;
pub use leader_transfer::MoveError;
pub use leadership::{Leader, LeadershipChanges};
pub use log_store::{LOG_CHUNK_EXTENSION, LogConfig, LogError, LogMedium, LogRecord, LogStore, LostEnd, MemoryLog};
pub use membership::MembershipError;
pub use membership_change::{ChangeError, Roster};
pub use messages::vote_given;
pub use proposer::ProposeError;
pub use raft_node::{CommittedError, OpenError, RaftIdentity, RaftNode, RaftRole, RaftStatus};
pub use read_barrier::BarrierError;
pub use recovery::RecoveryError;
#[cfg(test)]
pub(crate) use refounding::tests::fixture;
pub use refounding::{
    Counted, DataSource, Founder, Raise, RefoundError, Refounded, Survey, SurveyedSnapshot, begin_snapshot,
    first_engine, found, refound, survey,
};
pub use snapshot_store::{SnapshotHandle, SnapshotStore, SnapshotStoreError};
pub use state_store::AppliedTo;
