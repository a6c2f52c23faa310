//! Reading: a view of the records pinned at one revision.
//!
//! Guarantees: what a view answers does not change while writes go on; a read holds no lock while it waits for the disk.
//! Leaves out: waiting for freshness (`node::read`).

use bytes::Bytes;

use super::command::Record;
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
#[derive(Debug, Clone)]
pub struct StateView {}

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
    /// The revision it is pinned at.
    #[must_use]
    pub fn revision(&self) -> Revision {
        todo!()
    }

    /// One record.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn get(&self, _key: &Key) -> Result<Option<Record>, Error> {
        todo!()
    }

    /// One page of a range. Blocks on the disk: call it where that is allowed.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn range(&self, _read: &RangeRead) -> Result<Page, Error> {
        let _: Option<Bytes> = None;
        todo!()
    }

    /// How many keys a range holds. Blocks on the disk.
    ///
    /// # Errors
    /// The local disk failed.
    pub fn count(&self, _range: &KeyRange) -> Result<u64, Error> {
        todo!()
    }
}
