//! Filling an empty engine from a copy of a state.
//!
//! Guarantees: the engine gets its marker only if all records came, in order, and amount to the hash they should; without
//! a marker an engine is empty to [`StateMachine::open`](super::StateMachine::open); memory is bounded, however large the
//! state is. Leaves out: where the records come from (`snapshot`, `backup/`).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use bytes::Bytes;

use super::chain::Chain;
use super::checkpoint::{BatchWriter, LayerError, write_pointers, write_records};
use super::history;
use super::overlay::Layer;
use super::record::VersionedRecord;
use super::rows::Pointer;
use super::schema::Applied;
use crate::storage::{Batch, Engine, Error, Order, Scan};
use crate::types::Revision;

/// So much of what came is sorted and written at a time, in bytes of memory by estimate.
const CHUNK_BYTES: usize = if cfg!(test) { 2_000 } else { 32 * 1024 * 1024 };

/// Chunks that are read and wait to be made into rows, beside the one that is read and the one that is worked on.
const CHUNKS_WAITING: usize = 1;

/// Batches of rows that wait to be written: a few megabytes.
const BATCHES_WAITING: usize = 4;

/// Pointers are held back until they take so much memory, in bytes by estimate, and then written in the order of their keys.
/// Records come in an order in which pages are written once; the pages of pointers would be written again with each chunk.
const POINTERS_BYTES: usize = if cfg!(test) { 2_000 } else { 64 * 1024 * 1024 };

/// What a pointer that is held back takes beside its bytes.
const POINTER_EXTRA_BYTES: usize = 112;

/// The engine keeps what was not flushed in memory, so it is flushed behind so many chunks, the fewest and the most: often while
/// there is little, so that the other threads need not wait for long; and less often the more there is, since each flush looks
/// at all of it.
const CHUNKS_PER_FLUSH: (usize, usize) = (2, 16);

/// Such a part of the chunks so far is flushed at a time, within these bounds.
const FLUSHED_PART: usize = 8;

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
    /// Records are not in order.
    #[error("the records are out of order: {0}")]
    OutOfOrder(String),
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

impl<E> From<LayerError> for LoadError<E> {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Engine(error) => Self::Engine(error),
            LayerError::NotNewer { .. } => Self::OutOfOrder(error.to_string()),
        }
    }
}

/// As [`fill`], and makes it durable.
///
/// # Errors
/// [`LoadError`]; the engine is of no use then.
pub fn load<E>(
    engine: &dyn Engine,
    applied: &Applied,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<(), LoadError<E>> {
    fill(engine, applied, records)?;
    Ok(engine.flush()?)
}

/// Fills an empty engine with the records of a state, which it has then, but may not have on disk: a checkpoint with nothing new
/// in it does not flush them, [`Checkpointer::flush`](super::Checkpointer::flush) does. Of each key an older version
/// must come before a newer one, as in the orders of [`PinnedState::records`](super::PinnedState::records) and of older
/// snapshots. Blocks, on three threads: this one reads, one makes rows of the records, one writes them.
///
/// # Errors
/// [`LoadError`]; the engine is of no use then.
pub fn fill<E>(
    engine: &dyn Engine,
    applied: &Applied,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<(), LoadError<E>> {
    let all = Scan { start: Bound::Unbounded, end: Bound::Unbounded, order: Order::Ascending, limit: 1, bytes_max: 1 };
    if !engine.scan(all)?.is_empty() {
        return Err(LoadError::NotEmpty);
    }
    thread::scope(|scope| {
        let (ready, waiting) = mpsc::sync_channel(CHUNKS_WAITING);
        let (full, rows) = mpsc::sync_channel(BATCHES_WAITING);
        let writing = scope.spawn(move || write(engine, &rows));
        let making = scope.spawn(move || make_rows(engine, &waiting, &full));
        let read = read(applied, records, &ready);
        drop(ready);
        // Each explains why those before it ended early.
        writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        read
    })?;
    BatchWriter::new(|batch| engine.commit(batch)).put_marker(applied)?;
    Ok(())
}

/// Sorts what comes into chunks and hands them on, until all came or nobody takes them any more.
fn read<E>(
    applied: &Applied,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
    ready: &SyncSender<Layer>,
) -> Result<(), LoadError<E>> {
    let (mut layer, mut hash, mut newest) = (Layer::default(), 0_u128, Revision::ZERO);
    for record in records {
        let record = record.map_err(LoadError::Records)?;
        hash = hash.wrapping_add(record.hash());
        newest = newest.max(record.revision);
        layer.insert(record);
        if layer.bytes() >= CHUNK_BYTES && ready.send(std::mem::take(&mut layer)).is_err() {
            // Why, the writing thread tells.
            return Ok(());
        }
    }
    let _ = ready.send(layer);
    // Compaction may have removed the newest change, if that was a delete; nothing else explains its absence.
    let complete = newest == applied.revision || (newest < applied.revision && applied.compacted >= applied.revision);
    if hash != applied.hash || !complete {
        return Err(LoadError::Mismatch {
            found: hash,
            found_revision: newest,
            expected: applied.hash,
            expected_revision: applied.revision,
        });
    }
    Ok(())
}

/// What is to be written.
enum Rows {
    Batch(Batch),
    /// All records of a chunk have come.
    Chunk,
    /// Somebody waits until all that came is written.
    Tell(SyncSender<()>),
}

/// Makes rows of chunks as they come, and hands them on in batches, until nobody takes them any more.
fn make_rows(engine: &dyn Engine, chunks: &Receiver<Layer>, full: &SyncSender<Rows>) -> Result<(), LayerError> {
    // Why it has stopped, the writing thread tells.
    let stopped = || Error::Damaged("the rows are not written any more".into());
    let hand_on = |rows| full.send(rows).map_err(|_| stopped());
    let mut writer = BatchWriter::new(|batch| hand_on(Rows::Batch(batch)));
    let mut pointers = Pointers::default();
    for chunk in chunks {
        for (key, row) in write_records(&mut writer, &chunk, |key| pointers.chain(key))? {
            pointers.hold(key, row);
        }
        hand_on(Rows::Chunk)?;
        if pointers.bytes >= POINTERS_BYTES {
            write_pointers(&mut writer, pointers.take())?;
            let (tell, told) = mpsc::sync_channel(1);
            hand_on(Rows::Tell(tell))?;
            told.recv().map_err(|_| stopped())?;
            pointers.others = Some(engine);
        }
    }
    Ok(write_pointers(&mut writer, pointers.take())?)
}

/// The pointers that are not written yet.
#[derive(Default)]
struct Pointers<'a> {
    /// Has those of other keys, if there are any; whatever is in there came from these records.
    others: Option<&'a dyn Engine>,
    /// Copies: a key of a record keeps all in memory that it was read with.
    held: BTreeMap<Box<[u8]>, Vec<u8>>,
    bytes: usize,
}

impl Pointers<'_> {
    /// How the versions of a key hang together so far.
    fn chain(&self, key: &Bytes) -> Result<Chain, Error> {
        match (self.held.get(&key[..]), self.others) {
            (Some(row), _) => Ok(Pointer::decode(row)?.chain),
            (None, Some(engine)) => history::chain_at(engine, key, Revision::new(u64::MAX)),
            (None, None) => Ok(Chain::default()),
        }
    }

    fn hold(&mut self, key: &Bytes, row: Vec<u8>) {
        self.bytes += row.len();
        match self.held.insert(key[..].into(), row) {
            Some(before) => self.bytes -= before.len(),
            None => self.bytes += key.len() + POINTER_EXTRA_BYTES,
        }
    }

    fn take(&mut self) -> impl Iterator<Item = (Box<[u8]>, Vec<u8>)> + use<> {
        self.bytes = 0;
        std::mem::take(&mut self.held).into_iter()
    }
}

/// Writes rows as they come.
fn write(engine: &dyn Engine, rows: &Receiver<Rows>) -> Result<(), Error> {
    let (mut chunks, mut unflushed) = (0, 0);
    for rows in rows {
        match rows {
            Rows::Batch(batch) => engine.commit(batch)?,
            Rows::Chunk => {
                chunks += 1;
                unflushed += 1;
                if unflushed >= (chunks / FLUSHED_PART).clamp(CHUNKS_PER_FLUSH.0, CHUNKS_PER_FLUSH.1) {
                    engine.flush()?;
                    unflushed = 0;
                }
            }
            // Whoever waited may have ended.
            Rows::Tell(tell) => tell.send(()).unwrap_or(()),
        }
    }
    Ok(())
}
