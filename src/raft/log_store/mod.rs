//! The Raft log on disk: entries, vote, committed mark and purge mark, in the chunk files of raft-log.
//!
//! ## What is durable when
//!
//! * **Entries**: openraft is told that they are flushed (`IOFlushed`) when fdatasync has returned, and not before; an
//!   entry counts for a quorum only then. One thread writes, and one fdatasync serves all that has queued up meanwhile.
//! * **Vote**: on disk before `save_vote` returns.
//! * **Truncation and purge**: records in the same stream, so they are never out of order with what surrounds them. A
//!   purged chunk is unlinked when the record that purged it is on disk.
//! * **Committed mark**: nothing waits for it. Its record rides on the next append, in the same write and the same
//!   fdatasync; where none follows, it is written within two [`COMMITTED_TICK`]s and synced after [`COMMITTED_QUIET`]. So
//!   it survives a killed process but for the last few milliseconds, and a power cut but for the last 200 ms.
//!
//! ## Why the mark may lag, and what keeps reads from going backwards
//!
//! The mark only says up to where a restarted node may apply *by itself*; no acknowledgement hangs on it, because an
//! acknowledged entry is on the disks of a quorum whether marked or not. After a restart:
//!
//! * **Linearizable reads** go through ReadIndex: the leader answers only from its own term's blank entry on, which is
//!   committed after every entry that any earlier leader had committed; and the reading node waits until it has applied
//!   the index it was given. A late mark makes it wait longer, never read less. (This needs `enable_leader_restore` off:
//!   a restarted leader must win an election again.)
//! * **Bounded reads** prove their age with a read index this process has fetched and applied; a fresh process has none.
//! * **Stale reads** promise no order, not even on one node across its restarts: they are for what serves without a
//!   quorum, and a restarted node without one can't know what it had applied. The mark could not promise it either,
//!   durable or not: openraft applies a committed entry on a follower before that follower has flushed it, so a power cut
//!   can take the entry itself. Who must not go backwards names a least revision.
//!
//! A mark that waited for its own fdatasync would double the disk's share in each write and change none of the three.
//!
//! ## When the disk fails
//!
//! The writer stops at the first failed write or fdatasync; all that waits is told so, openraft stops, and
//! [`LogStore::fatal`] carries the cause to whoever ends the process (DESIGN D16). What may be repaired when the log is
//! opened, and what must not be, stands in `scan`.
//!
//! Leaves out: snapshots, and telling a wiped directory from a new one ([`LogStore::created`] says that there was no log;
//! the identity file knows whether there should be).

mod codec;
mod end_mark;
mod flush;
mod journal;
mod memory;
mod metrics;
mod scan;
mod storage;
#[cfg(test)]
mod tests;
mod wal;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::{BlockingRetryable as _, ConstantBuilder};
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use raft_log::RaftLog;

pub use memory::{LogRecord, MemoryLog};
pub use scan::LostEnd;

pub(super) use flush::Fatal;
pub(super) use metrics::{FlushTime, LogMetrics};

use crate::raft::types::Entry;
use crate::types::{LogIndex, LogPosition, Term};
use crate::watch;
use end_mark::EndMark;
use flush::FlushContext;
use journal::Journal;
use scan::Expected;
use wal::{Inner, Wal};

/// Entries are read in pieces of about this many bytes: what one replication request carries, and what waits in memory
/// to be applied. A single longer entry is read whole.
pub(super) const READ_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// How often it is looked whether a committed mark still waits to be written.
pub(super) const COMMITTED_TICK: Duration = Duration::from_millis(5);

/// After this time without an append, a committed mark that was written is synced.
pub(super) const COMMITTED_QUIET: Duration = Duration::from_millis(200);

/// The smallest chunk, in bytes; a smaller setting means this.
pub(super) const CHUNK_BYTES_MIN: u64 = 1_024;

/// Between two tries for a lock that somebody holds, and how many tries there are behind the first: a second in all.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const LOCK_TRIES: usize = 50;

/// What the names of the chunk files end with.
pub const LOG_CHUNK_EXTENSION: &str = "wal";

/// Bytes that may queue for the writer before an append blocks.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes read at once when a chunk is replayed.
const REPLAY_BUFFER_BYTES: usize = 1024 * 1024;

/// Settings of the log store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A chunk file is closed when it has reached this many bytes. The entries of the open chunk stay in memory.
    pub chunk_bytes: u64,
    /// Bytes of entries kept in memory, beside those of the open chunk.
    pub cache_bytes: u64,
    /// Entries kept in memory, beside those of the open chunk.
    pub cache_entries: usize,
    /// How long the writer waits for company before an fdatasync. It takes along what has queued up already only if this
    /// is not zero; each write then waits this long and the kernel's timer slack, 50 µs by default.
    pub flush_wait: Duration,
    /// What it is kept in.
    pub medium: LogMedium,
}

/// What the log is kept in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogMedium {
    /// Files in its directory.
    #[default]
    Disk,
    /// Memory, in a simulation; its directory holds nothing but a sign of this.
    Memory(MemoryLog),
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            chunk_bytes: 64 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            cache_entries: 65_536,
            flush_wait: Duration::from_micros(20),
            medium: LogMedium::Disk,
        }
    }
}

/// Why the log can't be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has it open.
    #[error("the log in {} is in use by another process; stop that one first", .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Something is wrong with what may have been acknowledged. Nothing was changed.
    #[error(
        "the log is damaged at byte {offset} of {}: {reason}; this node must not vote with it: keep the directory aside, \
         remove the member and let the node join again empty, under a new id",
        .file.display()
    )]
    Damaged {
        /// The chunk file, or the directory if entries are missing.
        file: PathBuf,
        /// Where the damage begins, in bytes from the start of the file.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// It was once longer. Nothing was changed.
    #[error(
        "the log is damaged at byte {} of {}: {}; this node must not vote with it: keep the directory aside, remove the \
         member and let the node join again empty, under a new id; only where the quorum is lost for good, as the last \
         resort, 'quorate recover' tells how far it is whole",
        .0.offset, .0.file.display(), .0.reason
    )]
    LostEnd(LostEnd),
    /// Written by a newer program. Nothing was changed.
    #[error(
        "{} has record format {found}, newer than the newest this program reads ({newest}); use a newer program",
        .file.display()
    )]
    Newer {
        /// The chunk file.
        file: PathBuf,
        /// The format that was found.
        found: u8,
        /// The newest that can be read.
        newest: u8,
    },
    /// The log already reaches beyond the position it was to be reset to.
    #[error("the log ends at {last} and can't be reset to {position}, which is before that")]
    NotBehind {
        /// The end of the log.
        last: LogPosition,
        /// Where it was to be reset to.
        position: LogPosition,
    },
    /// The disk or the file system failed.
    #[error("can't {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl LogError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether what may have been acknowledged is damaged, rather than the machine or the request being at fault.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::LostEnd(_))
    }

    /// There has to be a log, and there is none.
    fn nothing_left(dir: &Path) -> Self {
        Self::Damaged { file: dir.to_owned(), offset: 0, reason: "nothing is left of what it held".into() }
    }
}

/// A handle to the log; clones share it. The directory stays locked until the last one is gone, openraft's included;
/// dropping that one waits for the writer, so [`LogStore::sync`] before.
///
/// Must be used inside a Tokio runtime, except for opening.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl LogStore {
    /// Opens the log in a directory, which is created if it does not exist. Reads the whole log once: call it where
    /// blocking for a while does no harm.
    ///
    /// # Errors
    /// [`LogError`], never [`LogError::NotBehind`].
    pub fn open(dir: &Path, config: LogConfig) -> Result<Self, LogError> {
        let (log, _) = Self::open_expecting(dir, config, Expected::Any)?;
        log.mark_end();
        Ok(log)
    }

    /// The same, but refuses a directory that holds no log, or nothing of one: what it held are votes that are lost. Nothing
    /// is made or changed then, so that it is refused again the next time.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_existing(dir: &Path, config: LogConfig) -> Result<Self, LogError> {
        Ok(Self::open_expecting(dir, config, Expected::Log)?.0)
    }

    /// The same, but also opens a log that has lost its end, and says what is missing. It must not be written to, and no node
    /// may vote with it; it stays refused to the other two.
    ///
    /// # Errors
    /// As [`Self::open`]. Other damage than at the end is refused.
    pub(super) fn open_rest(dir: &Path, config: LogConfig) -> Result<(Self, Option<LostEnd>), LogError> {
        Self::open_expecting(dir, config, Expected::Rest)
    }

    /// Notes that what was found when it was opened is on the disk, for whoever writes to it: others will count on that. Who
    /// only looks leaves the files as they are.
    pub(super) fn mark_end(&self) {
        if let Some(mark) = &self.inner.context.mark {
            mark.advance(self.inner.found_end);
        }
    }

    fn open_expecting(
        dir: &Path,
        mut config: LogConfig,
        expected: Expected,
    ) -> Result<(Self, Option<LostEnd>), LogError> {
        config.chunk_bytes = config.chunk_bytes.max(CHUNK_BYTES_MIN);
        match expected {
            Expected::Any => std::fs::create_dir_all(dir).map_err(LogError::io("create", dir))?,
            Expected::Log | Expected::Rest if !dir.exists() => return Err(LogError::nothing_left(dir)),
            Expected::Log | Expected::Rest => {}
        }
        let (journal, exists, found_end, lost) = match &config.medium {
            LogMedium::Disk => {
                // A process that was just forked to run another program holds the lock until that begins.
                let patience = ConstantBuilder::new().with_delay(LOCK_PAUSE).with_max_times(LOCK_TRIES);
                let held = |error: &LogError| matches!(error, LogError::InUse { .. });
                let open = || open_on_disk(dir, &config, expected);
                open.retry(patience).sleep(std::thread::sleep).when(held).call()?
            }
            LogMedium::Memory(log) => (Journal::Memory(log.clone()), open_in_memory(dir, log, expected)?, 0, None),
        };
        let wal = Wal::new(journal);
        wal.check_complete(dir)?;
        let mark = match &config.medium {
            LogMedium::Disk => EndMark::open(dir),
            LogMedium::Memory(_) => None,
        };
        let context = FlushContext { metrics: LogMetrics::default(), fatal: watch::Sender::new(None), mark };
        let inner = Inner {
            dir: dir.to_owned(),
            created: !exists,
            found_end,
            chunk_bytes: config.chunk_bytes,
            wal: RwLock::new(wal),
            context: Arc::new(context),
            archived: Mutex::new(Some(0)),
        };
        Ok((Self { inner: Arc::new(inner) }, lost))
    }

    /// Whether there was no log in the directory. A node with an identity that knows better must not start.
    #[must_use]
    pub fn created(&self) -> bool {
        self.inner.created
    }

    /// Tells when the log can no longer be written, and why. The process must then end.
    #[must_use]
    pub fn fatal(&self) -> Fatal {
        self.inner.context.fatal.subscribe()
    }

    /// The figures.
    #[must_use]
    pub fn metrics(&self) -> &LogMetrics {
        &self.inner.context.metrics
    }

    /// Makes the figures known to a registry, and those of raft-log itself, as `raft_log_*`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics().register(registry);
        registry.register_collector(Box::new(metrics::WalCollector(Arc::downgrade(&self.inner))));
    }

    /// How many times it was brought to disk since it was opened, and how long that took together.
    #[must_use]
    pub fn syncs(&self) -> (u64, Duration) {
        let flush = self.inner.wal.read().log.figures();
        (flush.syncs, Duration::from_micros(flush.sync_us))
    }

    /// Bytes of all chunks, those included that are about to be removed.
    #[must_use]
    pub fn size_on_disk(&self) -> u64 {
        self.inner.wal.read().log.size_on_disk()
    }

    /// The last entry, or the purge mark if there is none behind it.
    #[must_use]
    pub fn last(&self) -> Option<LogPosition> {
        self.inner.wal.read().log.marks().last
    }

    /// The last entry that was purged.
    #[must_use]
    pub fn purged(&self) -> Option<LogPosition> {
        self.inner.wal.read().log.marks().purged
    }

    /// Has the entries behind index `archived` kept for the archive, as long as there is room (`raft::retention`); `None` if
    /// nothing waits to be archived. Until this is told for the first time all are kept: nobody knows better yet.
    pub fn keep_behind(&self, archived: Option<u64>) {
        *self.inner.archived.lock() = archived;
    }

    /// Up to which index the archive does not need the log any more; `None` if it needs nothing.
    pub(super) fn kept_behind(&self) -> Option<u64> {
        *self.inner.archived.lock()
    }

    /// The committed mark; may lag behind what openraft knows.
    #[must_use]
    pub fn committed(&self) -> Option<LogPosition> {
        self.inner.wal.read().log.marks().committed
    }

    /// The last term that this node has voted in; `None` if it never has.
    pub(super) fn voted_in(&self) -> Option<Term> {
        self.inner.wal.read().log.marks().vote.map(|vote| vote.leader_id.term)
    }

    /// Entries from `from` on and before `to`, in order, as far as the log holds them; about `bytes_max` bytes of them, but
    /// at least one. Entries may not be committed: cut the range where only such are wanted.
    ///
    /// # Errors
    /// [`LogError::Io`] if an entry can't be read.
    pub async fn read(&self, from: LogIndex, to: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let entries = self.inner.read(from.get()..to.get(), bytes_max).await;
        entries.map_err(LogError::io("read the log in", &self.inner.dir))
    }

    /// Makes an empty or shorter log end at `position`, as if everything up to it had been there and was purged: what
    /// comes next is the entry behind it. For a node whose state comes from a copy. On disk when it returns.
    ///
    /// # Errors
    /// [`LogError::NotBehind`] if the log reaches beyond; [`LogError::Io`] if the disk fails.
    pub async fn reset_to(&self, position: LogPosition) -> Result<(), LogError> {
        if let Some(last) = self.last()
            && (last.index > position.index || last > position)
        {
            return Err(LogError::NotBehind { last, position });
        }
        let reset = self.inner.write(wal::PURGE_BYTES, move |wal| wal.log.purge(position)).await;
        reset.map_err(LogError::io("reset the log in", &self.inner.dir))?;
        self.sync().await
    }

    /// Waits until everything written so far is on disk; the committed mark included. For a clean stop.
    ///
    /// # Errors
    /// [`LogError::Io`] if the disk fails.
    pub async fn sync(&self) -> Result<(), LogError> {
        self.inner.sync().await.map_err(LogError::io("sync the log in", &self.inner.dir))
    }
}

/// raft-log's files in a directory, whether they were there, up to where they are on the disk, and what is missing behind.
fn open_on_disk(
    dir: &Path,
    config: &LogConfig,
    expected: Expected,
) -> Result<(Journal, bool, u64, Option<LostEnd>), LogError> {
    let raft_config = Arc::new(raft_config(dir, config)?);
    let found = {
        // raft-log takes the lock again below; the lock of the whole node's directory covers the moment between.
        let _lock = lock(dir, &raft_config)?;
        scan::repair_tail(dir, EndMark::read(dir), expected)?
    };
    let log = match RaftLog::open(raft_config) {
        Ok(log) => Journal::Disk(Box::new(log)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(LogError::InUse { dir: dir.to_owned() }),
        Err(error) => return Err(scan::diagnose(dir, error)),
    };
    let end = match found.end {
        Some(end) => end,
        None => scan::sync_all(dir)?,
    };
    Ok((log, found.end.is_some(), end, found.lost))
}

/// Opens a log in memory; whether it was there.
fn open_in_memory(dir: &Path, log: &MemoryLog, expected: Expected) -> Result<bool, LogError> {
    if expected != Expected::Any && !log.exists() {
        return Err(LogError::nothing_left(dir));
    }
    // A node takes a directory without chunks for a log that was lost.
    let sign = dir.join(format!("in-memory.{LOG_CHUNK_EXTENSION}"));
    std::fs::write(&sign, "a simulation keeps this log in memory").map_err(LogError::io("write", &sign))?;
    Ok(log.open())
}

fn raft_config(dir: &Path, config: &LogConfig) -> Result<raft_log::Config, LogError> {
    let not_utf8 = || LogError::io("use", dir)(io::Error::new(io::ErrorKind::InvalidInput, "its name must be UTF-8"));
    let wal = raft_log::chunked_wal::Config {
        dir: dir.to_str().ok_or_else(not_utf8)?.to_owned(),
        read_buffer_size: Some(REPLAY_BUFFER_BYTES),
        // Size alone decides when a chunk is full.
        chunk_max_records: Some(usize::MAX),
        chunk_max_size: Some(usize::try_from(config.chunk_bytes).unwrap_or(usize::MAX)),
        // `scan` has cut off what may be; anything else is damage.
        truncate_incomplete_record: Some(false),
        flush_batch_wait: Some(config.flush_wait),
        flush_batch_max_items: None,
        flush_queue_max_bytes: Some(QUEUE_BYTES_MAX),
    };
    Ok(raft_log::Config {
        wal,
        log_cache_max_items: Some(config.cache_entries),
        log_cache_capacity: Some(usize::try_from(config.cache_bytes).unwrap_or(usize::MAX)),
    })
}

fn lock(dir: &Path, config: &raft_log::Config) -> Result<raft_log::chunked_wal::WalLock, LogError> {
    type ChunkedWal = raft_log::chunked_wal::ChunkedWal<raft_log::RaftWalTypes<codec::WalTypes>>;
    ChunkedWal::acquire_lock(&config.wal).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LogError::InUse { dir: dir.to_owned() },
        _ => LogError::io("lock", dir)(error),
    })
}
