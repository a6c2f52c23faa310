//! This node as what the archiver reads: its log and its snapshots.
//!
//! Guarantees: those of `backup::archiver::LogSource`. Leaves out: archiving.

use std::time::Duration;

use crate::backup::archiver::{LogSource, Reached, SourceError, SourceSnapshot};
use crate::backup::segment::StateMark;
use crate::clock;
use crate::raft::{CommittedError, RaftNode};
use crate::state::LogEntry;
use crate::types::{LogIndex, LogPosition};

/// How long a snapshot may take to be made.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// This node.
pub(super) struct RaftSource(pub(super) RaftNode);

impl LogSource for RaftSource {
    fn reached(&self) -> Option<Reached> {
        let applied = *self.0.applied().borrow();
        let position = applied.position?;
        Some(Reached { position, state: StateMark { revision: applied.revision, hash: applied.hash } })
    }

    fn log_begins_behind(&self) -> Option<LogPosition> {
        self.0.log_begins_behind()
    }

    fn written_bytes(&self) -> u64 {
        self.0.log_written_bytes()
    }

    async fn entries(
        &self,
        after: Option<LogPosition>,
        upto: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, SourceError> {
        self.0.committed_entries(after, upto, bytes_max).await.map_err(|error| match error {
            CommittedError::Gone { purged } => SourceError::Gone { purged },
            other => SourceError::Failed(other.to_string()),
        })
    }

    async fn snapshot(&self) -> Result<SourceSnapshot, SourceError> {
        let made = self.0.snapshot(clock::now() + SNAPSHOT_TIMEOUT).await;
        let held = made.map_err(|error| SourceError::Failed(format!("no snapshot could be made: {error}")))?;
        Ok(SourceSnapshot { path: held.path().to_owned(), meta: held.meta().clone(), held: Box::new(held) })
    }
}
