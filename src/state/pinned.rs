//! The whole state at one entry of the log, for as long as somebody copies it.
//!
//! Guarantees: exact while writes and checkpoints go on, since records never change; reading takes a bounded chunk of
//! memory. Leaves out: the file format (`snapshot`).

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::record::VersionedRecord;
use super::scan::ChangeScan;
use super::schema::Applied;
use super::store::Store;
use super::view::StateView;
use crate::storage::Error;
use crate::types::{KeyRange, Revision};

/// The state behind one entry.
pub struct PinnedState {
    store: Arc<Store>,
    applied: Applied,
    keys: OnceLock<u64>,
}

impl fmt::Debug for PinnedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedState").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl PinnedState {
    pub(super) fn new(store: Arc<Store>, applied: Applied) -> Self {
        Self { store, applied, keys: OnceLock::new() }
    }

    /// Which state it is. The hash is that of [`Self::records`].
    #[must_use]
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// How many keys have a value. Reads every pointer, the first time: blocks on the disk for about a second a million keys.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn keys(&self) -> Result<u64, Error> {
        if let Some(keys) = self.keys.get() {
            return Ok(*keys);
        }
        let keys = StateView::new(Arc::clone(&self.store), self.applied.revision).count(&KeyRange::all())?;
        Ok(*self.keys.get_or_init(|| keys))
    }

    /// Every retained version up to the pinned revision, in the order of `(revision, sub)`. Ends behind an error. Blocks
    /// on the disk.
    pub fn records(&self) -> impl Iterator<Item = Result<VersionedRecord, Error>> + Send {
        self.records_from(Revision::ZERO)
    }

    /// As [`Self::records`], but only those of a revision and behind it.
    pub fn records_from(&self, revision: Revision) -> impl Iterator<Item = Result<VersionedRecord, Error>> + Send {
        ChangeScan::new(&self.store, revision, self.applied.revision)
    }
}
