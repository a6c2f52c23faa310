//! One entry of the log, as it is applied: what the archive keeps and what a restore replays.
//!
//! Guarantees: applying the same entries in order gives the same state on every machine, without a clock and without a
//! cluster. Leaves out: how entries get into an order (`raft`), and where they are kept (`raft`, `backup`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::Batch;
use crate::types::LogPosition;

/// One committed entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its place in the log, and the leadership that made it.
    pub position: LogPosition,
    /// What it does.
    pub content: LogContent,
}

/// What an entry does. The order of the variants stands in files: new ones come last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogContent {
    /// Nothing: a new leader begins its term with it.
    Blank,
    /// Sets the members, in the encoding of whoever replicates.
    Membership(Bytes),
    /// Commands of clients.
    Commands(Batch),
}
