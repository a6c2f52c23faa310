//! Histories: what clients did and were told, in memory and in files, and whether one copy of the store explains it all.
//!
//! Guarantees: those of [`file`](read), [`Operation`] and [`judge()`]. Leaves out: recording (`workload::recording`).

mod action;
mod answer;
mod file;
mod judge;
mod operation;

pub use action::{
    Action, Compare, Comparison, Consistency, Delete, Freshness, Get, List, Operand, Put, Target, Txn, TxnOp,
};
pub use answer::{
    Answer, DeleteAnswer, FailedAnswer, GetAnswer, ListAnswer, Listed, PutAnswer, Record, TxnAnswer, TxnResponse,
};
pub use file::{FORMAT, FileError, Head, History, LINE_BYTES_MAX, OPERATIONS_MAX, VERSION, Writer, read};
pub use judge::{Judgement, Summary, VIOLATIONS_MAX, Verdict, Violation, ViolationKind, judge};
pub use operation::{Cause, MALFORMED_ANSWER, Nanos, Operation, Outcome};
