//! The [`Engine`] trait and the values that cross it.

use std::ops::Bound;

use bytes::Bytes;
use rustix::io::Errno;

/// The most writes in one batch: an engine may hold locks for the length of a batch, and readers wait behind them.
pub const BATCH_OPERATIONS_MAX: usize = 512;

/// A local disk or engine failure. Always fatal to the node that sees it: it is never part of a replicated result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, as a verb with its object.
        action: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// What was read back is not what was written.
    #[error("damaged data: {0}")]
    Damaged(String),
    /// The directory is held by another process.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// A batch above [`BATCH_OPERATIONS_MAX`]: a mistake of the caller; nothing was applied.
    #[error("a batch of {operations} operations, allowed are {BATCH_OPERATIONS_MAX}: split it")]
    BatchTooLarge {
        /// The writes in the refused batch.
        operations: usize,
    },
}

/// What a machine may be short of, or refuse, whatever is in the files.
const SHORTAGES: [Errno; 9] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::AGAIN,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::ROFS,
    Errno::ACCESS,
    Errno::PERM,
];

impl Error {
    /// Whether this machine lacks something: file handles, memory, room, rights. Then nothing is known of the data, and
    /// there is nothing to mend in it.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        source.raw_os_error().is_some_and(|code| SHORTAGES.iter().any(|errno| errno.raw_os_error() == code))
    }
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Set the value.
    Put(Bytes, Bytes),
    /// Remove the key.
    Delete(Bytes),
}

/// Writes that happen all or not at all; at most [`BATCH_OPERATIONS_MAX`], keys in rising order for speed.
pub type Batch = Vec<Write>;

/// Which end of the range a scan starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Ascending,
    /// Largest key first.
    Descending,
}

/// What a scan covers and how much of it is wanted at once.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// Lower bound.
    pub start: Bound<&'a [u8]>,
    /// Upper bound.
    pub end: Bound<&'a [u8]>,
    /// Which end first.
    pub order: Order,
    /// The most pairs returned. Fewer are returned only at the end of the range or once `bytes_max` is passed.
    pub limit: usize,
    /// The scan stops behind the pair that takes the sum of key and value bytes over this.
    pub bytes_max: usize,
}

/// An ordered key-value engine. Shared by many threads; every method may block on the disk.
pub trait Engine: Send + Sync + 'static {
    /// The value of one key, by an exact look-up.
    ///
    /// # Errors
    /// [`Error`], local and fatal.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// The pairs of a range in order. Not a snapshot: a concurrent batch may be seen in part, but every pair that exists
    /// all through the call and lies in the part that was covered is returned.
    ///
    /// # Errors
    /// [`Error`], local and fatal.
    fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, Error>;

    /// Applies a batch. It is visible on return, atomic across a crash, and durable after the next [`Engine::flush`];
    /// never durable before a batch that was committed earlier.
    ///
    /// # Errors
    /// [`Error`], local and fatal; [`Error::BatchTooLarge`] without any effect.
    fn commit(&self, batch: Batch) -> Result<(), Error>;

    /// Returns once every batch committed before the call is on stable storage.
    ///
    /// # Errors
    /// [`Error`], local and fatal: after a failed flush nothing in memory may be believed.
    fn flush(&self) -> Result<(), Error>;

    /// Bytes this engine takes on disk.
    ///
    /// # Errors
    /// [`Error`], local and fatal.
    fn size_on_disk(&self) -> Result<u64, Error>;
}

/// Refuses a batch that is over the limit; every engine calls it first.
pub(super) fn check_batch(batch: &Batch) -> Result<(), Error> {
    if batch.len() > BATCH_OPERATIONS_MAX {
        return Err(Error::BatchTooLarge { operations: batch.len() });
    }
    Ok(())
}

/// Whether no key can lie between the bounds, also when they are the wrong way round, on which `BTreeMap` panics.
pub(super) fn is_empty_range(start: Bound<&[u8]>, end: Bound<&[u8]>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
    }
}
