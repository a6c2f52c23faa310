//! The replicated state machine.

mod command;
mod record;
pub mod snapshot;
mod view;

pub use command::{
    Batch, BatchError, Command, Compare, CompareOperator, CompareTarget, OpReply, Operation, Outcome, Principal,
    Record, RecordMeta, Rejection, Reply, RequestId, Txn, TxnOp, TxnReply,
};
pub use record::{Change, MalformedRecord, VersionedRecord};
pub use view::{Page, RangeRead, StateView, ViewError};
