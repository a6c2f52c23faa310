//! The readers' door: views and the change index of what was published.
//!
//! Guarantees: never shows a part of what the writer publishes at once. Leaves out: waiting for news (`raft/`, `node/`).

use std::fmt;
use std::sync::Arc;

use super::record::VersionedRecord;
use super::scan::ChangeScan;
use super::schema::Applied;
use super::store::Store;
use super::view::{StateView, ViewError};
use crate::storage::Error;
use crate::types::Revision;

/// Reads the state while it is written. Cheap to clone.
#[derive(Clone)]
pub struct StateReader {
    store: Arc<Store>,
}

impl fmt::Debug for StateReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateReader").field("applied", &self.applied()).finish_non_exhaustive()
    }
}

impl StateReader {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// A view of the newest published revision.
    #[must_use]
    pub fn view(&self) -> StateView {
        StateView::new(Arc::clone(&self.store), self.store.published.load().revision)
    }

    /// A view of a revision that was published and not compacted.
    ///
    /// # Errors
    /// [`ViewError`] names the bound.
    pub fn view_at(&self, revision: Revision) -> Result<StateView, ViewError> {
        let published = self.store.published.load();
        if revision > published.revision {
            return Err(ViewError::Future { requested: revision, newest: published.revision });
        }
        if revision < published.compacted {
            return Err(ViewError::Compacted { requested: revision, oldest: published.compacted });
        }
        Ok(StateView::new(Arc::clone(&self.store), revision))
    }

    /// How far readers can see.
    #[must_use]
    pub fn applied(&self) -> Arc<Applied> {
        self.store.published.load_full()
    }

    /// Memory that the overlay takes, in bytes, by estimate.
    #[must_use]
    pub fn overlay_bytes(&self) -> usize {
        self.store.overlay_bytes()
    }

    /// How full the overlay is, in percent of where applying begins to wait for a checkpoint; that may be passed by what
    /// is applied together.
    #[must_use]
    pub fn overlay_percent(&self) -> usize {
        self.store.overlay_bytes().saturating_mul(100) / self.store.config.overlay_bytes_hard.max(1)
    }

    /// Bytes that the engine takes on disk.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn engine_bytes(&self) -> Result<u64, Error> {
        self.store.engine.size_on_disk()
    }

    /// The changes of the revisions `from` to `to`, both included and as far as published, in order of
    /// `(revision, sub)`. Ends early, between two revisions, once `limit` records are there; so it may return more than
    /// `limit` where one revision has many, and the next call starts behind the last revision returned. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn changes(&self, from: Revision, to: Revision, limit: usize) -> Result<Vec<VersionedRecord>, Error> {
        let published = self.store.published.load().revision;
        let mut records: Vec<VersionedRecord> = Vec::new();
        for record in ChangeScan::new(&self.store, from, to.min(published)) {
            let record = record?;
            if records.len() >= limit && records.last().is_none_or(|last| last.revision < record.revision) {
                break;
            }
            records.push(record);
        }
        Ok(records)
    }
}
