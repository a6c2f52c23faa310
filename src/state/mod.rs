//! The replicated state machine: multi-version records of keys, changed by transactions, read at pinned revisions.
//!
//! Guarantees: synchronous and deterministic; the same log gives the same revisions, records and hash on every replica,
//! whatever was checkpointed or lost in between. What was applied is in memory first (the overlay) and goes to the engine
//! in checkpoints; readers see both as one. Leaves out: the log and its order, threads, clocks, clients.

mod cache;
mod chain;
mod checkpoint;
mod command;
mod history;
mod load;
mod log_entry;
mod machine;
mod overlay;
mod pinned;
mod reader;
mod record;
mod rows;
mod scan;
mod schema;
pub mod snapshot;
mod store;
mod targets;
#[cfg(test)]
mod tests;
mod txn;
mod view;

pub use checkpoint::{CheckpointReport, Checkpointer};
pub use command::{
    Batch, BatchError, Command, Compare, CompareOperator, CompareTarget, OpReply, Operation, Outcome, Principal,
    Record, RecordMeta, Rejection, Reply, RequestId, Txn, TxnOp, TxnReply,
};
pub use load::{LoadError, fill, load};
pub use log_entry::{LogContent, LogEntry};
pub use machine::{StateConfig, StateMachine};
pub use pinned::PinnedState;
pub use reader::StateReader;
pub use record::{Change, VersionedRecord};
pub use schema::Applied;
pub use targets::{TARGET_BYTES_MAX, TARGETS_MAX, TargetChange, Targets};
pub use txn::{REPLY_OVERHEAD_BYTES, TXN_REPLY_BYTES_MAX};
pub use view::{Page, RangeRead, StateView, ViewError};
