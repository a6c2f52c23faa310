//! Filling an empty engine from a copy of a state.
//!
//! Guarantees: the engine gets its marker only if all records came, in order, and amount to the hash they should; without
//! a marker an engine is empty to [`StateMachine::open`](super::StateMachine::open); memory is bounded, however large the
//! state is. Leaves out: where the records come from (`snapshot`, `backup/`).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use bytes::Bytes;

use super::chain::Chain;
use super::checkpoint::{BatchWriter, Chains, LayerError, write_layer};
use super::history;
use super::overlay::Layer;
use super::record::VersionedRecord;
use super::schema::Applied;
use crate::storage::{Batch, Engine, Error, Order, Scan};
use crate::types::Revision;

/// So much of what came is sorted and written at a time, in bytes of memory by estimate.
const CHUNK_BYTES: usize = if cfg!(test) { 2_000 } else { 32 * 1024 * 1024 };

/// Chunks that are read and wait to be made into rows, beside the one that is read and the one that is worked on.
const CHUNKS_WAITING: usize = 1;

/// Batches of rows that wait to be written: a few megabytes.
const BATCHES_WAITING: usize = 4;

/// The engine is flushed behind so many chunks: it keeps what was not flushed in memory.
const CHUNKS_PER_FLUSH: usize = 16;

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

/// Fills an empty engine with the records of a state and makes it durable. Of each key an older version must come before
/// a newer one, as in the orders of [`PinnedState::records`](super::PinnedState::records) and of older snapshots. Blocks, on
/// three threads: this one reads, one makes rows of the records, one writes them.
///
/// # Errors
/// [`LoadError`]; the engine is of no use then.
pub fn load<E>(
    engine: &dyn Engine,
    applied: &Applied,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<(), LoadError<E>> {
    let all = Scan { start: Bound::Unbounded, end: Bound::Unbounded, order: Order::Ascending, limit: 1, bytes_max: 1 };
    if !engine.scan(all)?.is_empty() {
        return Err(LoadError::NotEmpty);
    }
    let written = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let (ready, waiting) = mpsc::sync_channel(CHUNKS_WAITING);
        let (full, rows) = mpsc::sync_channel(BATCHES_WAITING);
        let writing = scope.spawn(move || write(engine, &rows, written));
        let making = scope.spawn(move || make_rows(engine, &waiting, &full, written));
        let read = read(applied, records, &ready);
        drop(ready);
        // Each explains why those before it ended early.
        writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        read
    })?;
    BatchWriter::new(|batch| engine.commit(batch)).put_marker(applied)?;
    engine.flush()?;
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
    /// All of a chunk has come.
    Chunk,
}

/// Makes rows of chunks as they come, and hands them on in batches, until nobody takes them any more.
fn make_rows(
    engine: &dyn Engine,
    chunks: &Receiver<Layer>,
    full: &SyncSender<Rows>,
    written: &AtomicUsize,
) -> Result<(), LayerError> {
    // Why it has stopped, the writing thread tells.
    let hand_on = |rows| full.send(rows).map_err(|_| Error::Damaged("the rows are not written any more".into()));
    let mut writer = BatchWriter::new(|batch| hand_on(Rows::Batch(batch)));
    let mut chains = RecentChains { engine, recent: VecDeque::new() };
    for (count, chunk) in (1..).zip(chunks) {
        chains.begin(count, written.load(Ordering::Acquire));
        write_layer(&mut writer, &chunk, &mut chains)?;
        hand_on(Rows::Chunk)?;
    }
    Ok(())
}

/// How versions hang together: of keys in the last chunks, which may not be written yet, from memory; of others, the engine
/// knows. Whatever is in there came from these records.
struct RecentChains<'a> {
    engine: &'a dyn Engine,
    /// The chains of the keys in a chunk, by its number; the newest chunk first.
    recent: VecDeque<(usize, BTreeMap<Bytes, Chain>)>,
}

impl RecentChains<'_> {
    /// The chunk of this number comes next; so many are written.
    fn begin(&mut self, count: usize, written: usize) {
        while self.recent.back().is_some_and(|(chunk, _)| *chunk <= written) {
            self.recent.pop_back();
        }
        self.recent.push_front((count, BTreeMap::new()));
    }
}

impl Chains for RecentChains<'_> {
    fn of(&mut self, key: &Bytes) -> Result<Chain, Error> {
        match self.recent.iter().find_map(|(_, chains)| chains.get(key)) {
            Some(chain) => Ok(chain.clone()),
            None => history::chain_at(self.engine, key, Revision::new(u64::MAX)),
        }
    }

    fn grown(&mut self, key: &Bytes, chain: &Chain) {
        if let Some((_, chains)) = self.recent.front_mut() {
            chains.insert(key.clone(), chain.clone());
        }
    }
}

/// Writes rows as they come, and tells how many chunks were.
fn write(engine: &dyn Engine, rows: &Receiver<Rows>, written: &AtomicUsize) -> Result<(), Error> {
    for rows in rows {
        match rows {
            Rows::Batch(batch) => engine.commit(batch)?,
            Rows::Chunk => {
                let count = written.fetch_add(1, Ordering::Release) + 1;
                if count.is_multiple_of(CHUNKS_PER_FLUSH) {
                    engine.flush()?;
                }
            }
        }
    }
    Ok(())
}
