//! What the archiver needs of the node that it runs on.
//!
//! Guarantees: none; this is what whoever implements it must keep. Leaves out: Raft, which stands behind it.

use std::any::Any;
use std::path::PathBuf;

use crate::backup::segment::StateMark;
use crate::state::LogEntry;
use crate::state::snapshot::SnapshotMeta;
use crate::types::{LogIndex, LogPosition};

/// How far the node has applied the log, and what its state amounts to there; all of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The last applied entry.
    pub position: LogPosition,
    /// The state behind it.
    pub state: StateMark,
}

/// A snapshot file, which stays as long as this is held.
pub struct SourceSnapshot {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is of.
    pub meta: SnapshotMeta,
    /// Keeps it.
    pub held: Box<dyn Any + Send + Sync>,
}

/// Why the node can't give what is asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// These entries are not in its log any more.
    #[error("the log of this node begins behind entry {purged}")]
    Gone {
        /// The last entry that is gone.
        purged: LogPosition,
    },
    /// Everything else.
    #[error("{0}")]
    Failed(String),
}

/// A node whose log is archived.
pub trait LogSource: Send + Sync + 'static {
    /// How far it has applied the log; `None` if nothing was applied yet. Cheap.
    fn reached(&self) -> Option<Reached>;

    /// The last entry that was removed from its log.
    fn log_begins_behind(&self) -> Option<LogPosition>;

    /// A number that grows with each byte written to the log. Cheap.
    fn written_bytes(&self) -> u64;

    /// The applied entries from the one behind `after` (the first of all without) up to `upto`, in order: about
    /// `bytes_max` bytes of them, but at least one.
    fn entries(
        &self,
        after: Option<LogPosition>,
        upto: LogIndex,
        bytes_max: u64,
    ) -> impl Future<Output = Result<Vec<LogEntry>, SourceError>> + Send;

    /// A snapshot that holds at least what is applied now.
    fn snapshot(&self) -> impl Future<Output = Result<SourceSnapshot, SourceError>> + Send;
}
