//! Reading back what was committed, for the archive, and keeping the log until it is archived.
//!
//! Guarantees: entries come in order, without a gap, and only those that are applied here, so that none of them is ever
//! taken back; a log that does not continue what the caller has is an error, never passed over. Leaves out: where they go
//! (`backup`), and for how long the log is worth keeping (`retention`).

use openraft::EntryPayload;

use super::RaftNode;
use crate::raft::log_store::{LogError, LogStore};
use crate::raft::membership::encode_membership;
use crate::raft::types::{Entry, StoredMembership};
use crate::state::{LogContent, LogEntry};
use crate::types::{LogIndex, LogPosition};

/// Why committed entries can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CommittedError {
    /// They were removed from the log of this node.
    #[error("the log of this node begins behind entry {purged}; what was before is removed")]
    Gone {
        /// The last entry that was removed.
        purged: LogPosition,
    },
    /// What the caller has is not what this node has.
    #[error("entry {found} stands in the log where {expected} was expected: this is the log of another history")]
    Diverged {
        /// The caller's last entry.
        expected: LogPosition,
        /// What stands in its place.
        found: LogPosition,
    },
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An entry is not where it must be.
    #[error("entry {0} is missing from the log")]
    Missing(u64),
}

impl RaftNode {
    /// Entries that are applied here, from the one behind `after` (the first of all without) to that at `upto`: about
    /// `bytes_max` bytes of them, but at least one, if there is one.
    ///
    /// # Errors
    /// [`CommittedError`].
    pub async fn committed_entries(
        &self,
        after: Option<LogPosition>,
        upto: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, CommittedError> {
        let Some(applied) = self.0.state.applied().borrow().position else { return Ok(Vec::new()) };
        let from = after.map_or(LogIndex::ZERO, |after| after.index.next());
        let end = applied.index.min(upto).next();
        if from >= end {
            return Ok(Vec::new());
        }
        if let Some(after) = after {
            check_follows(&self.0.log, after).await?;
        }
        let entries = self.0.log.read(from, end, bytes_max).await;
        // Meanwhile the log may have been removed.
        if let Some(purged) = self.0.log.purged().filter(|purged| purged.index >= from) {
            return Err(CommittedError::Gone { purged });
        }
        let entries = entries?;
        for (entry, index) in entries.iter().zip(from.get()..) {
            if entry.log_id.index != index {
                return Err(CommittedError::Missing(index));
            }
        }
        if entries.is_empty() {
            Err(CommittedError::Missing(from.get()))
        } else {
            Ok(entries.into_iter().map(of_raft).collect())
        }
    }

    /// The last entry that was removed from the log.
    #[must_use]
    pub fn log_begins_behind(&self) -> Option<LogPosition> {
        self.0.log.purged()
    }

    /// Bytes of entries that were written to the log in this life.
    #[must_use]
    pub fn log_written_bytes(&self) -> u64 {
        self.0.log.metrics().appended_bytes.get()
    }

    /// Has the log behind this index kept for the archive, up to a bound; `None` if nothing is to be archived. A node that
    /// was not told yet keeps all, up to that bound.
    pub fn keep_log_behind(&self, archived: Option<LogIndex>) {
        self.0.log.keep_behind(archived.map(LogIndex::get));
    }
}

/// Whether the log has this entry, or begins right behind it.
async fn check_follows(log: &LogStore, after: LogPosition) -> Result<(), CommittedError> {
    let diverged = |found| Err(CommittedError::Diverged { expected: after, found });
    let by_mark = |purged: LogPosition| match purged.index.cmp(&after.index) {
        std::cmp::Ordering::Greater => Some(Err(CommittedError::Gone { purged })),
        std::cmp::Ordering::Equal if purged == after => Some(Ok(())),
        std::cmp::Ordering::Equal => Some(diverged(purged)),
        std::cmp::Ordering::Less => None,
    };
    if let Some(found) = log.purged().and_then(by_mark) {
        return found;
    }
    let found = log.read(after.index, after.index.next(), 1).await;
    if let Some(found) = log.purged().and_then(by_mark) {
        return found;
    }
    match found?.first().map(|entry| LogPosition::from(entry.log_id)) {
        Some(found) if found == after => Ok(()),
        Some(found) => diverged(found),
        None => Err(CommittedError::Missing(after.index.get())),
    }
}

fn of_raft(entry: Entry) -> LogEntry {
    let content = match entry.payload {
        EntryPayload::Blank => LogContent::Blank,
        EntryPayload::Normal(batch) => LogContent::Commands(batch),
        EntryPayload::Membership(membership) => {
            LogContent::Membership(encode_membership(&StoredMembership::new(Some(entry.log_id), membership)))
        }
    };
    LogEntry { position: entry.log_id.into(), content }
}
