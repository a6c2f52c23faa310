//! Filling an empty engine from a copy of a state.
//!
//! Guarantees: the engine gets its marker only if all records came, in order, and amount to the hash they should; without
//! a marker an engine is empty to [`StateMachine::open`](super::StateMachine::open). Leaves out: where the records come
//! from (`snapshot`, `backup/`).

use std::ops::Bound;

use bytes::Bytes;

use super::checkpoint::BatchWriter;
use super::record::VersionedRecord;
use super::schema::{Applied, Pointer, StorageKey};
use crate::storage::{Engine, Error, Order, Scan};
use crate::types::{Key, Revision};

/// Rows of the change index come in the order of keys, but are written in the order of revisions: so many bytes of them
/// are sorted at a time.
const CHANGES_CHUNK_BYTES: usize = 64 * 1024 * 1024;

/// What a row waiting to be sorted takes beside its key, in bytes.
const CHANGE_ROW_BYTES: usize = std::mem::size_of::<(Revision, u32, Bytes)>();

/// Why an engine was not filled. It has no marker then: throw it away.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<E> {
    /// The records can't be read.
    #[error("the records can't be read: {0}")]
    Records(E),
    /// The disk failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// There is something in the engine.
    #[error("the engine is not empty; load into a new one")]
    NotEmpty,
    /// The records are not in the order of key and revision.
    #[error("revision {revision} of {key} is out of order; records must be sorted by key and revision")]
    OutOfOrder {
        /// The first that is not behind the one before it.
        key: Key,
        /// Its revision.
        revision: Revision,
    },
    /// The records are not those of the state they should be.
    #[error(
        "the records do not make up the state: hash {found:032x} at revision {found_revision}, \
         but {expected:032x} at revision {expected_revision} is wanted"
    )]
    Mismatch {
        /// The hash of what came.
        found: u128,
        /// The newest revision that came.
        found_revision: Revision,
        /// The hash that was announced.
        expected: u128,
        /// The revision that was announced.
        expected_revision: Revision,
    },
}

/// Fills an empty engine with the records of a state, sorted by key and revision as
/// [`PinnedState::records`](super::PinnedState::records) gives them, and makes it durable.
///
/// # Errors
/// [`LoadError`]; the engine is of no use then.
pub fn load<E>(
    engine: &dyn Engine,
    applied: &Applied,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<(), LoadError<E>> {
    let all = Scan {
        start: Bound::Unbounded,
        end: Bound::Unbounded,
        order: Order::Ascending,
        limit: 1,
        bytes_max: CHANGES_CHUNK_BYTES,
    };
    if !engine.scan(all)?.is_empty() {
        return Err(LoadError::NotEmpty);
    }
    let mut loader = Loader::new(engine);
    for record in records {
        loader.take(record.map_err(LoadError::Records)?)?;
    }
    loader.finish(applied)
}

/// Three streams of batches, each sorted by itself.
struct Loader<'a> {
    history: BatchWriter<'a>,
    pointers: BatchWriter<'a>,
    index: BatchWriter<'a>,
    /// Rows of the change index that were not written yet.
    changes: Vec<(Revision, u32, Bytes)>,
    changes_bytes: usize,
    /// The last key, and the pointer to the last version of it.
    last: Option<(Key, Pointer)>,
    hash: u128,
    newest: Revision,
}

impl<'a> Loader<'a> {
    fn new(engine: &'a dyn Engine) -> Self {
        Self {
            history: BatchWriter::new(engine),
            pointers: BatchWriter::new(engine),
            index: BatchWriter::new(engine),
            changes: Vec::new(),
            changes_bytes: 0,
            last: None,
            hash: 0,
            newest: Revision::ZERO,
        }
    }

    fn take<E>(&mut self, record: VersionedRecord) -> Result<(), LoadError<E>> {
        let VersionedRecord { key, revision, sub, change } = &record;
        if let Some((last, pointer)) = &self.last {
            if (key, *revision) <= (last, pointer.meta.mod_revision) {
                return Err(LoadError::OutOfOrder { key: key.clone(), revision: *revision });
            }
            if key != last {
                self.put_pointer()?;
            }
        }
        self.history.put_history(&record)?;
        self.hash = self.hash.wrapping_add(record.hash());
        self.newest = self.newest.max(*revision);
        self.last = Some((key.clone(), Pointer::to(*revision, change)));
        self.changes_bytes += key.as_bytes().len() + CHANGE_ROW_BYTES;
        self.changes.push((*revision, *sub, key.as_bytes().clone()));
        if self.changes_bytes >= CHANGES_CHUNK_BYTES {
            self.put_changes()?;
        }
        Ok(())
    }

    fn put_pointer(&mut self) -> Result<(), Error> {
        match self.last.take() {
            Some((key, pointer)) => {
                let value = Bytes::from(pointer.encode());
                self.pointers.put(StorageKey::Latest { key: key.as_bytes() }, value)
            }
            None => Ok(()),
        }
    }

    fn put_changes(&mut self) -> Result<(), Error> {
        self.changes.sort_unstable();
        self.changes_bytes = 0;
        for (revision, sub, key) in self.changes.drain(..) {
            self.index.put(StorageKey::Change { revision, sub }, key)?;
        }
        self.index.commit()
    }

    fn finish<E>(mut self, applied: &Applied) -> Result<(), LoadError<E>> {
        // Compaction may have removed the newest change, if that was a delete; nothing else explains its absence.
        let complete = self.newest == applied.revision
            || (self.newest < applied.revision && applied.compacted >= applied.revision);
        if self.hash != applied.hash || !complete {
            return Err(LoadError::Mismatch {
                found: self.hash,
                found_revision: self.newest,
                expected: applied.hash,
                expected_revision: applied.revision,
            });
        }
        self.put_pointer()?;
        self.put_changes()?;
        self.history.commit()?;
        let engine = self.history.engine();
        self.pointers.put_marker(applied)?;
        engine.flush()?;
        Ok(())
    }
}
