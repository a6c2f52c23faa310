//! Reading: a view of the records pinned at one revision.
//!
//! Guarantees: what a view answers does not change while writes go on; a read holds no lock while it waits for the disk.
//! Leaves out: waiting for freshness (`node::read`).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::command::Record;
use super::scan::LiveScan;
use super::schema::stored_key;
use super::store::Store;
use crate::storage::{Error, Order};
use crate::types::{Key, KeyRange, Revision};

/// Why there is no view at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// History below `oldest` was given up.
    #[error("revision {requested} is compacted; the oldest that can be read is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest there is.
        oldest: Revision,
    },
    /// Not written yet.
    #[error("revision {requested} does not exist yet; the newest here is {newest}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest there is.
        newest: Revision,
    },
}

/// The records of the store as they were at one revision. Cheap to clone.
#[derive(Clone)]
pub struct StateView {
    store: Arc<Store>,
    revision: Revision,
}

impl fmt::Debug for StateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateView").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// Which records are wanted.
#[derive(Debug, Clone)]
pub struct RangeRead {
    /// Among which keys.
    pub range: KeyRange,
    /// Which end first.
    pub order: Order,
    /// The most records; a page may end earlier at the byte limit.
    pub limit: usize,
    /// A page ends behind the record that takes it over this many bytes of keys and values.
    pub bytes_max: usize,
    /// Leave the values out (they come back empty).
    pub keys_only: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The records, in the order asked for.
    pub records: Vec<Record>,
    /// Whether there are more behind the last of them.
    pub more: bool,
}

impl StateView {
    pub(super) fn new(store: Arc<Store>, revision: Revision) -> Self {
        Self { store, revision }
    }

    /// The revision it is pinned at.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// One record.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        let Some(live) = self.store.find(key.as_bytes(), self.revision)? else { return Ok(None) };
        let meta = live.meta;
        let value = self.store.value(key.as_bytes(), live)?;
        Ok(Some(Record { key: key.clone(), value, meta }))
    }

    /// One page of a range. Blocks on the disk: call it where that is allowed.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn range(&self, read: &RangeRead) -> Result<Page, Error> {
        let mut scan = LiveScan::new(&self.store, &read.range, self.revision, read.order, read.limit);
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some((key, live)) = scan.next()? {
            if records.len() >= read.limit || bytes > read.bytes_max {
                return Ok(Page { records, more: true });
            }
            let meta = live.meta;
            let value = if read.keys_only { Bytes::new() } else { self.store.value(&key, live)? };
            bytes += key.len() + value.len();
            records.push(Record { key: stored_key(key)?, value, meta });
        }
        Ok(Page { records, more: false })
    }

    /// How many keys a range holds. Blocks on the disk.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn count(&self, range: &KeyRange) -> Result<u64, Error> {
        let mut scan = LiveScan::new(&self.store, range, self.revision, Order::Ascending, usize::MAX);
        let mut count = 0;
        while scan.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}
