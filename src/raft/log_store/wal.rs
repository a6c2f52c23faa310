//! The log behind its lock: what is done at once, what goes to a thread that may block, and the committed mark that
//! follows when nothing else does.
//!
//! raft-log's calls are synchronous but rarely touch the disk: a write fills a buffer that its own thread brings to disk,
//! a read is served from memory. Two of them do touch it: the write that fills a chunk creates the next file and syncs the
//! directory, and a read of old entries. These two go to Tokio's blocking pool, and so does whatever meets them at the
//! lock, so that the thread that runs the node (D18) never waits for a disk. The exception is a full queue to the writer
//! ([`super::QUEUE_BYTES_MAX`]): then there is nothing better to do than to wait.
//!
//! Guarantees: writes reach the disk in the order of the calls. Leaves out: openraft's traits (`storage`).

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use super::codec::RECORD_OVERHEAD_BYTES;
use super::flush::{FlushContext, Flushed, Waiter};
use super::journal::Journal;
use super::{COMMITTED_QUIET, COMMITTED_TICK, LogError};
use crate::host;
use crate::raft::types::Entry;
use crate::types::LogPosition;

/// Upper bounds for the records that carry no entry, in bytes.
pub(super) const PURGE_BYTES: u64 = RECORD_OVERHEAD_BYTES;

/// A chunk begins with a checkpoint of at most this many bytes.
const CHECKPOINT_BYTES: u64 = 256;

/// What all handles share.
pub(super) struct Inner {
    pub(super) dir: PathBuf,
    pub(super) created: bool,
    /// Up to where it was on the disk when it was opened, in the stream of all chunks; 0 in memory.
    pub(super) found_end: u64,
    pub(super) chunk_bytes: u64,
    pub(super) wal: RwLock<Wal>,
    pub(super) context: Arc<FlushContext>,
    /// What is behind this index is kept for the archive; `None` if nothing is.
    pub(super) archived: Mutex<Option<u64>>,
}

/// raft-log, and what is known about it from outside.
pub(super) struct Wal {
    pub(super) log: Journal,
    /// An upper bound for the size of the open chunk, in bytes.
    open_bytes: u64,
    /// Where the open chunk begins.
    open_start: u64,
    /// The end of the last entry or vote, in the stream of all chunks.
    end: u64,
    /// The first indexes of the last two chunks: entries from there on are in memory, or were written so lately that the
    /// page cache has them.
    recent_from: [u64; 2],
    marks: Marks,
}

/// How far records have come that nobody waits for.
#[derive(Debug, Default)]
struct Marks {
    /// Counts them.
    made: u64,
    /// The last that was handed to the writer.
    written: u64,
    /// The last that was handed to the writer with the order to sync.
    synced: u64,
    /// Whether the task that follows them up is running.
    followed: bool,
}

impl Wal {
    pub(super) fn new(log: Journal) -> Self {
        // The cache holds the newest entries without a gap.
        let recent = next_index(log.marks().last.as_ref()).saturating_sub(log.figures().cached_entries);
        let open = log.open_chunk();
        Self {
            log,
            open_bytes: open.bytes,
            open_start: open.start,
            end: open.start + open.bytes,
            recent_from: [recent; 2],
            marks: Marks::default(),
        }
    }

    /// Checks that the entries between the purge mark and the last one are there; raft-log only knows that those it has
    /// follow on each other.
    pub(super) fn check_complete(&self, dir: &Path) -> Result<(), LogError> {
        let marks = self.log.marks();
        let Some(last) = marks.last.filter(|last| Some(*last) > marks.purged) else { return Ok(()) };
        let first = next_index(marks.purged.as_ref());
        for index in [first, last.index.get()] {
            let mut found = None;
            let read = self.log.read(index, index.saturating_add(1), |position, _payload| {
                found = Some(position);
                Ok(false)
            });
            read.map_err(|error| match error.kind() {
                // The chunk that should hold the entry does not: it has the contents of another one.
                io::ErrorKind::NotFound => {
                    LogError::Damaged { file: dir.to_owned(), offset: 0, reason: error.to_string() }
                }
                _ => LogError::io("read the log in", dir)(error),
            })?;
            match found {
                Some(found) if index == first || found == last => {}
                _ => {
                    let reason = format!("entry {index} is missing from the log, which should hold {first} to {last}");
                    return Err(LogError::Damaged { file: dir.to_owned(), offset: 0, reason });
                }
            }
        }
        Ok(())
    }

    /// Hands everything that is not yet handed over to the writer.
    pub(super) fn flush(&mut self, sync: bool, mut told: Option<Flushed>) -> io::Result<()> {
        self.marks.written = self.marks.made;
        if sync {
            self.marks.synced = self.marks.made;
            told = told.map(|told| told.synced_up_to(self.end));
        }
        self.log.flush(sync, told)
    }

    /// Notes where an entry or a vote ends.
    pub(super) fn ends_at(&mut self, end: u64) {
        self.end = end;
    }

    /// Learns from raft-log what a write may have changed that could fill the chunk.
    fn settle(&mut self) {
        let open = self.log.open_chunk();
        self.open_bytes = open.bytes;
        if open.start != self.open_start {
            self.open_start = open.start;
            self.recent_from = [self.recent_from[1], next_index(self.log.marks().last.as_ref())];
        }
    }

    fn read(&self, range: Range<u64>, bytes_max: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        // raft-log wants start <= end.
        self.log.read(range.start, range.end.max(range.start), |position, payload| {
            bytes += payload.len() as u64 + RECORD_OVERHEAD_BYTES;
            if bytes > bytes_max && !entries.is_empty() {
                return Ok(false);
            }
            entries.push(payload.decode_entry(position)?);
            Ok(true)
        })?;
        Ok(entries)
    }
}

impl Inner {
    /// Writes: `job` makes records of at most `bytes` bytes together.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: u64,
        job: impl FnOnce(&mut Wal) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if let Some(mut wal) = self.wal.try_write()
            && wal.open_bytes + bytes + CHECKPOINT_BYTES < self.chunk_bytes
        {
            wal.open_bytes += bytes;
            return self.noting_failure(job(&mut wal));
        }
        let inner = Arc::clone(self);
        blocking(move || {
            let mut wal = inner.wal.write();
            let result = job(&mut wal);
            wal.settle();
            inner.noting_failure(result)
        })
        .await
    }

    /// Reads entries: all of the range, or about `bytes_max` bytes of it and at least one.
    pub(super) async fn read(self: &Arc<Self>, range: Range<u64>, bytes_max: u64) -> io::Result<Vec<Entry>> {
        if let Some(wal) = self.wal.try_read()
            && range.start >= wal.recent_from[0]
        {
            return wal.read(range, bytes_max);
        }
        self.context.metrics.cold_reads.inc();
        let inner = Arc::clone(self);
        blocking(move || inner.wal.read().read(range, bytes_max)).await
    }

    /// Waits until everything written so far is on disk.
    pub(super) async fn sync(self: &Arc<Self>) -> io::Result<()> {
        self.write_synced(0, |_wal| Ok(())).await
    }

    /// Writes, and waits until it is on disk.
    pub(super) async fn write_synced(
        self: &Arc<Self>,
        bytes: u64,
        job: impl FnOnce(&mut Wal) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        let told = self.told(Waiter::Task(tx));
        self.write(bytes, move |wal| {
            job(wal)?;
            wal.flush(true, Some(told))
        })
        .await?;
        rx.await.map_err(|_gone| io::Error::other("the writer of the log has stopped"))?
    }

    /// Writes a record that nobody waits for: it goes along with the next append, or follows by itself shortly after.
    pub(super) async fn write_mark(
        self: &Arc<Self>,
        bytes: u64,
        job: impl FnOnce(&mut Wal) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let follow = self
            .write(bytes, move |wal| {
                job(wal)?;
                wal.marks.made += 1;
                Ok(!std::mem::replace(&mut wal.marks.followed, true))
            })
            .await?;
        if follow {
            #[expect(clippy::disallowed_methods, reason = "holds the log weakly and ends with it")]
            tokio::spawn(follow_up(Arc::downgrade(self)));
        }
        Ok(())
    }

    pub(super) fn told(&self, waiter: Waiter) -> Flushed {
        Flushed::new(waiter, Arc::clone(&self.context))
    }

    /// A write that is refused for what it says is openraft's to hear of; one that can't be handed to the writer means
    /// that the writer is gone.
    fn noting_failure<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::InvalidInput
        {
            self.context.fail(error);
        }
        result
    }

    /// One look at the marks: the index of the last mark, or `None` if there is nothing left to follow.
    fn follow_marks(&self, seen: u64, quiet_ticks: u32) -> io::Result<Option<u64>> {
        let Some(mut wal) = self.wal.try_write() else { return Ok(Some(seen)) };
        let marks = &wal.marks;
        if marks.synced == marks.made {
            wal.marks.followed = false;
            return Ok(None);
        }
        let (made, waiting) = (marks.made, marks.written < marks.made);
        let quiet = COMMITTED_TICK.saturating_mul(quiet_ticks) >= COMMITTED_QUIET;
        if made == seen && (waiting || quiet) {
            let told = self.told(Waiter::Nobody);
            wal.flush(quiet, Some(told))?;
        }
        Ok(Some(made))
    }
}

/// Brings marks to disk that no append takes along. Under load it finds each mark taken along at its next look and only
/// costs a timer; it ends when all are synced, or with the store.
async fn follow_up(store: Weak<Inner>) {
    let (mut seen, mut quiet_ticks) = (0, 0);
    loop {
        tokio::time::sleep(COMMITTED_TICK).await;
        let Some(inner) = store.upgrade() else { return };
        match inner.follow_marks(seen, quiet_ticks) {
            Ok(Some(made)) => {
                quiet_ticks = if made == seen { quiet_ticks.saturating_add(1) } else { 0 };
                seen = made;
            }
            Ok(None) => return,
            Err(error) => return inner.context.fail(&error),
        }
    }
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    host::spawn_blocking(job).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The index behind a position.
pub(super) fn next_index(position: Option<&LogPosition>) -> u64 {
    position.map_or(0, |position| position.index.get() + 1)
}
