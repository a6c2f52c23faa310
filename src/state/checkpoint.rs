//! The checkpointer: moves the overlay to the engine, off the path of writes.
//!
//! A checkpoint freezes the active layer, writes its records and its pointers in sorted batches, then alone in a last
//! batch the marker, and flushes. Guarantees: the engine's marker never runs ahead of its records; a crash
//! in between leaves records above the marker, which reading passes over and replay writes again, with links that may
//! differ but lead to the same versions (etcd 3.5.0 lost consistency where data and applied index parted ways). Leaves out: the thread (`raft/`).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::chain::{Chain, Links, Place};
use super::history;
use super::overlay::{Layer, Version};
use super::rows::{encode_pointer, encode_record, parts};
use super::schema::{Applied, StorageKey};
use super::store::Store;
use crate::storage::{BATCH_OPERATIONS_MAX, Batch, Error, Write};
use crate::types::Revision;

/// The most writes in a batch. Tests write tiny ones, so as to be interrupted between any two of many.
const BATCH_WRITES_MAX: usize = if cfg!(test) { 3 } else { BATCH_OPERATIONS_MAX };

/// A batch is committed once it holds this many bytes, in bytes of keys and values, though it could take more writes: an
/// engine may hold locks for as long as a batch takes.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Runs checkpoints. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Checkpointer {
    store: Arc<Store>,
}

impl fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpointer").finish_non_exhaustive()
    }
}

/// What a checkpoint did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Records moved.
    pub records: usize,
    /// Bytes of keys and values given to the engine.
    pub bytes: usize,
    /// The marker, durable now.
    pub applied: Arc<Applied>,
}

impl Checkpointer {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Blocks until a checkpoint is wanted, because the overlay has passed its soft limit or one was requested; `false`
    /// once closed.
    #[must_use]
    pub fn wait(&self) -> bool {
        let mut signal = self.store.signal.lock();
        loop {
            if signal.closed {
                return false;
            }
            if signal.requested || self.store.active_bytes() >= self.store.config.overlay_bytes_soft {
                return true;
            }
            self.store.signalled.wait(&mut signal);
        }
    }

    /// Whether a checkpoint is wanted now, as for [`Self::wait`], which this does not; `None` once closed.
    #[must_use]
    pub fn wanted(&self) -> Option<bool> {
        let signal = self.store.signal.lock();
        let full = self.store.active_bytes() >= self.store.config.overlay_bytes_soft;
        (!signal.closed).then_some(signal.requested || full)
    }

    /// Asks for a checkpoint of what is applied by now. From any thread.
    pub fn request(&self) {
        self.store.signal.lock().requested = true;
        self.store.signalled.notify_all();
    }

    /// Ends every [`Self::wait`], now and later. From any thread.
    pub fn close(&self) {
        self.store.signal.lock().closed = true;
        self.store.signalled.notify_all();
    }

    /// Brings to disk what the engine has, without moving anything to it.
    ///
    /// # Errors
    /// The local disk failed, and can't be believed any more.
    pub fn flush(&self) -> Result<(), Error> {
        let _durable = self.store.durable.lock();
        self.store.engine.flush()
    }

    /// Runs one checkpoint; on return the engine durably holds every entry that was applied before the call. A
    /// second caller waits for the first. If nothing was applied since the last one, nothing is written.
    ///
    /// # Errors
    /// The local disk failed. Nothing is lost from memory, but after a failed flush the disk can't be believed.
    pub fn run(&self) -> Result<CheckpointReport, Error> {
        let mut durable = self.store.durable.lock();
        // Before freezing: a request that comes later may be for something that is applied later.
        self.store.signal.lock().requested = false;
        let frozen = self.store.freeze();
        let (records, mut bytes) = (frozen.layer.len(), 0);
        if *frozen.applied != **durable {
            let engine = &*self.store.engine;
            let mut writer = BatchWriter::new(|batch| engine.commit(batch));
            // What it has from above its marker was left behind by an interrupted checkpoint.
            let chain = |key: &Bytes| history::chain_at(engine, key, durable.revision);
            let pointers = write_records(&mut writer, &frozen.layer, chain)?;
            write_pointers(&mut writer, pointers)?;
            bytes = writer.put_marker(&frozen.applied)?;
            self.store.engine.flush()?;
            *durable = Arc::clone(&frozen.applied);
        }
        self.store.release(&frozen);
        drop(durable);
        // Room was made. Empty lock: see `StateMachine::apply`.
        drop(self.store.signal.lock());
        self.store.signalled.notify_all();
        Ok(CheckpointReport { records, bytes, applied: Arc::clone(&frozen.applied) })
    }
}

/// Why a layer was not written whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    /// The disk failed, or holds what it should not.
    #[error(transparent)]
    Engine(#[from] Error),
    /// A record has the place of another, or comes behind a later one of its key.
    #[error("revision {revision} of {} is not newer than what came before", key.escape_ascii())]
    NotNewer { key: Bytes, revision: Revision },
}

impl From<LayerError> for Error {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Engine(error) => error,
            LayerError::NotNewer { .. } => Error::Damaged(error.to_string()),
        }
    }
}

/// Writes the records of a layer behind the parts of their values. `chain` tells how the versions of a key hang together that
/// stand before them. Gives the pointers that lead to them, by key, to be written behind them: who sees a pointer sees what it
/// leads to.
pub(super) fn write_records<'a>(
    writer: &mut BatchWriter<impl FnMut(Batch) -> Result<(), Error>>,
    layer: &'a Layer,
    mut chain: impl FnMut(&Bytes) -> Result<Chain, Error>,
) -> Result<Vec<(&'a Bytes, Vec<u8>)>, LayerError> {
    let mut rows: Vec<(Place, &Bytes, &Version, Links)> = Vec::with_capacity(layer.len());
    let mut pointers = Vec::new();
    for (key, versions) in layer.iter() {
        let mut chain = chain(key)?;
        for version in versions.as_slice() {
            let place = version.place();
            if chain.newest().is_some_and(|newest| newest.revision >= place.revision) {
                return Err(LayerError::NotNewer { key: key.clone(), revision: place.revision });
            }
            rows.push((place, key, version, chain.append(place)));
        }
        pointers.push((key, encode_pointer(&versions.newest().change, chain)));
    }
    rows.sort_unstable_by_key(|row| row.0);
    if let Some(twice) = rows.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (place, key, ..) = twice[1];
        return Err(LayerError::NotNewer { key: key.clone(), revision: place.revision });
    }
    for (place, key, version, _) in &rows {
        for (part, bytes) in (0..).zip(parts(key, &version.change)) {
            writer.put(StorageKey::Part { place: *place, part }, bytes)?;
        }
    }
    for (place, key, version, links) in rows {
        writer.put(StorageKey::Record(place), Bytes::from(encode_record(key, &version.change, links)))?;
    }
    writer.commit()?;
    Ok(pointers)
}

/// Writes pointers, in batches of their own. They must come in the order of their keys.
pub(super) fn write_pointers(
    writer: &mut BatchWriter<impl FnMut(Batch) -> Result<(), Error>>,
    pointers: impl IntoIterator<Item = (impl AsRef<[u8]>, Vec<u8>)>,
) -> Result<(), Error> {
    for (key, pointer) in pointers {
        writer.put(StorageKey::Latest { key: key.as_ref() }, Bytes::from(pointer))?;
    }
    writer.commit()
}

/// Collects writes into batches.
pub(super) struct BatchWriter<C> {
    commit: C,
    batch: Batch,
    batch_bytes: usize,
    bytes: usize,
}

impl<C: FnMut(Batch) -> Result<(), Error>> BatchWriter<C> {
    /// Gives full batches to `commit`, in their order.
    pub(super) fn new(commit: C) -> Self {
        Self { commit, batch: Batch::new(), batch_bytes: 0, bytes: 0 }
    }

    /// Adds a write; commits what is full.
    pub(super) fn put(&mut self, key: StorageKey<'_>, value: Bytes) -> Result<(), Error> {
        let key = Bytes::from(key.encode());
        self.batch_bytes += key.len() + value.len();
        self.batch.push(Write::Put(key, value));
        if self.batch.len() >= BATCH_WRITES_MAX || self.batch_bytes >= BATCH_BYTES_MAX { self.commit() } else { Ok(()) }
    }

    /// Commits what is left.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        self.bytes += std::mem::take(&mut self.batch_bytes);
        let room = self.batch.len();
        match std::mem::replace(&mut self.batch, Batch::with_capacity(room)) {
            batch if batch.is_empty() => Ok(()),
            batch => (self.commit)(batch),
        }
    }

    /// Commits what is left, and then the marker in a batch of its own; returns the bytes of all.
    pub(super) fn put_marker(mut self, applied: &Applied) -> Result<usize, Error> {
        self.commit()?;
        self.put(StorageKey::Applied, Bytes::from(applied.encode()))?;
        self.commit()?;
        Ok(self.bytes)
    }
}
