//! [`SledEngine`]: the engine on one tree of sled 1.0.0-alpha.124.
//!
//! Guarantees what [`Engine`] asks for, and that nothing sled does wrong goes unnoticed where it can be noticed: a panic or
//! an error inside any call breaks the engine for good, and every later call is refused. Opening happens on a thread of its
//! own with a time limit, because sled panics or spins on some damaged files instead of reporting them. The store is a
//! rebuildable checkpoint: whoever gets [`Error::Damaged`] moves the directory aside and rebuilds.
//!
//! What the source of this version makes necessary, and what we do about it:
//!
//! - With `flush_every_ms(None)`, dropping *any* handle flushes, and each iterator owns one: every scan would be an fsync.
//!   So the timed flush is set to an interval that never comes, and we flush ourselves before closing.
//! - A flush that fails never marks its epoch as complete: the next flush, also the one inside `drop`, waits for ever, or
//!   the flusher thread aborts the process. So a broken engine is leaked, never dropped; its lock goes with the process.
//! - A write batch holds its leaf locks left to right, a merge of an emptied leaf right to left; a writer's epoch guard is
//!   not pinned against reclamation by a flush. So one lock of ours serializes commits and flushes. Readers do not take it.
//! - `apply_batch` never merges emptied leaves: they would stay for ever, in memory and on disk. `remove` does. So deletes
//!   go through `remove` behind the puts. A crash sees all or nothing even so: sled makes everything between two flushes
//!   durable as one unit, and no flush can come between.
//! - A leaf that was written is never evicted again, whatever the cache capacity (`max_unflushed_epoch` is never reset):
//!   with a cache of 16 MiB, 247 MB of sequential writes with flushes held 385 MB, reading the same store back 51 MB. So
//!   the engine estimates what is pinned, and a flush that passes `pinned_bytes` closes and opens the store; reads wait.
//! - A bounded forward iterator walks to the end of the tree once its range is used up. So forward scans are left open at
//!   the end, and we stop at the bound.
//! - Opening a directory whose metadata has a snapshot but no later log, which a kill inside the opening before leaves
//!   behind, deletes that snapshot: sled writes the new one under the same number and then removes "the old one". The store
//!   then lacks most of its leaves, and reads of them spin for ever. So an empty log is put there first; and a log without
//!   a snapshot, the mark of a store that went through this, is damage.
//! - A leaf that compresses to exactly 65,529 bytes is cut: room is made for a length of two bytes, but slots of 65,536 have
//!   one of four, which takes the place of the last byte of the leaf; it can't be read again. So a flush looks whether one
//!   was written, and users keep leaves below that size.
//! - Nothing tells an earlier copy of one of sled's files from the file itself: old values are served, or a leaf is looked
//!   for without end, in a call that no error leaves. So `stamps` beside the files tells what they were, and `endless`
//!   notices such a call, whatever leads to it.
//! - sled syncs the files it writes and the two directories below its own, but not its settings file, its own directory
//!   after creating `metadata`, or the parent. So we sync those after opening.
//!
//! Measured on the reference machine while it was busy (±15 %): 245,760 versioned records of 100 to 256 half-random bytes
//! over 20,000 keys, in sorted batches of 512 with a flush every 16 batches, so that each flush rewrites nearly every leaf.
//! CPU is per record and includes the flushes; `next` is the first pair of a range, as a point read by range would be.
//!
//! | fan-out, zstd | CPU µs | disk MB | get µs | `next` µs | scan warm / cold ns a record |
//! |---|---|---|---|---|---|
//! | 32, -3 | 17.0 | 80 | 0.9 | 3.7 | 125 / 770 |
//! | **64, -3** | 16.6 | 89 | 0.9 | 4.3 | 115 / 630 |
//! | 128, -3 | 17.5 | 100 | 0.9 | 5.8 | 80 / 400 |
//! | 64, -5 | 15.8 | 90 | 0.9 | 4.3 | 115 / 780 |
//! | 64, 1 | 21.0 | 58 | 0.9 | 4.3 | 115 / 650 |
//! | 64, 3 | 23.4 | 58 | 0.9 | 4.3 | 92 / 730 |
//! | 256, 1 | 21.5 | 63 | 0.8 | 15.9 | 91 / 1870 |
//! | 1024, 1 | 15.2 | 69 | 0.9 | 39 | 76 / 625 |
//!
//! The fan-out hardly moves the cost of writing here; a small one keeps leaves with large values and short range reads
//! cheap. The fast zstd level takes a fifth off the CPU for half as much disk again, and the disk is the cheaper one.
//!
//! Leaves out: transactions and snapshot scans, which sled does not have.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thread_local::ThreadLocal;

use super::endless::Calls;
use super::engine::{self, Batch, Engine, Error, Order, Scan, Write};
use super::stamps;

/// Records in a leaf at most. Part of the stored format: sled refuses a directory made with another one.
const LEAF_FANOUT: usize = 64;

/// The zstd level of leaves on disk; negative ones trade size for speed.
const ZSTD_LEVEL: i32 = -3;

/// Memory that a leaf takes besides its keys and values: its fixed array of pairs and the index around it, in bytes.
const LEAF_FIXED_BYTES: u64 = 16 * LEAF_FANOUT as u64 + 512;

/// How many bytes of keys and values in memory stand behind one compressed byte on disk, as an estimate.
const EXPANSION: u64 = 3;

/// The timed flush in milliseconds: so long that it never comes (see above). About 292 million years.
const FLUSH_EVERY_MS_NEVER: usize = i64::MAX as usize;

/// The pause between two tries for a directory that a dying process still holds.
const LOCK_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The size of the slots in which sled may cut a leaf (see above), the length at which it does, and where a slot has it.
const CUT_SLOT_BYTES: u64 = 65_536;
const CUT_LENGTH: u32 = 65_529;
const CUT_LENGTH_AT: u64 = CUT_SLOT_BYTES - 8;

/// The unit of `st_blocks`, whatever the block size of the file system.
const BLOCK_BYTES: u64 = 512;

type Db = ::sled::Db<LEAF_FANOUT>;

/// How a sled directory is opened.
#[derive(Debug, Clone)]
pub struct SledConfig {
    /// Memory for leaves that were only read, in bytes.
    pub cache_bytes: usize,
    /// Memory for leaves that were written since the store was opened, in bytes, by estimate. sled never lets go of them,
    /// so a flush that finds more closes the store and opens it again.
    pub pinned_bytes: u64,
    /// Whether opening reads every record once (about 0.6 µs each), within `open_timeout`. sled reads leaves as they are
    /// needed, and on some damage it then spins for ever, where no time limit helps: worth it after an unclean stop.
    pub verify: bool,
    /// How long opening may take before the directory counts as damaged. What is stuck then goes on on its thread until
    /// the process ends.
    pub open_timeout: Duration,
    /// How long to wait for a directory that another process holds: the system releases the lock of a killed process
    /// late.
    pub lock_timeout: Duration,
    /// A read or a commit that has taken so much processor time never ends: the engine is broken then, and `on_endless` is told.
    pub endless_after: Duration,
    /// Hears of a call that never ends, with the directory and the damage, on a thread of its own. Whoever waits for that
    /// call, or for a lock that it holds, waits for ever: a process that serves has to end here.
    pub on_endless: fn(&Path, &Error),
}

impl Default for SledConfig {
    /// 128 MiB of cache, 512 MiB of pinned leaves, unverified, a minute to open, five seconds for the lock; an
    /// endless call is known after ten seconds of processor time, and told to nobody but the next ones.
    fn default() -> Self {
        Self {
            cache_bytes: 128 * 1024 * 1024,
            pinned_bytes: 512 * 1024 * 1024,
            verify: false,
            open_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(5),
            endless_after: Duration::from_secs(10),
            on_endless: |_, _| (),
        }
    }
}

/// sled's handle is `Send` but not `Sync`: one clone for each thread that has ever called, reused after it ended.
struct Handles {
    local: ThreadLocal<Db>,
    prototype: Mutex<Db>,
}

impl Handles {
    fn new(db: Db) -> Self {
        Self { local: ThreadLocal::new(), prototype: Mutex::new(db) }
    }

    fn db(&self) -> &Db {
        self.local.get_or(|| self.prototype.lock().clone())
    }
}

/// What was flushed since the store was opened.
#[derive(Debug, Default)]
struct Flushed {
    leaves: u64,
    compressed_bytes: u64,
}

impl Flushed {
    fn add(&mut self, stats: &::sled::FlushStats) {
        self.leaves += stats.objects_flushed;
        self.compressed_bytes += stats.write_batch.heap_bytes_written;
    }

    /// Memory of so many compressed bytes, as an estimate with the mean leaf of the flushes.
    fn memory_bytes(&self, compressed_bytes: u64) -> u64 {
        let mean = (self.compressed_bytes / self.leaves.max(1)).max(1);
        compressed_bytes / mean * LEAF_FIXED_BYTES + compressed_bytes * EXPANSION
    }
}

/// The first failure of an engine. A full disk stays a full disk when it is told again: only damage is to be rebuilt.
#[derive(Debug)]
struct Failure {
    /// The system's kind of error; `None` for damage.
    kind: Option<io::ErrorKind>,
    text: String,
}

impl Failure {
    fn of(error: &Error) -> Self {
        let kind = match error {
            Error::Io { source, .. } => Some(source.kind()),
            Error::InUse(_) => Some(io::ErrorKind::WouldBlock),
            Error::Damaged(_) | Error::BatchTooLarge { .. } => None,
        };
        Self { kind, text: error.to_string() }
    }

    /// The error of every call behind the failure.
    fn again(&self) -> Error {
        let action = format!("use the store after a failure ({})", self.text);
        match self.kind {
            Some(kind) => Error::Io { action, source: kind.into() },
            None => Error::Damaged(format!("cannot {action}")),
        }
    }

    fn closed() -> Error {
        Error::Damaged("the store is closed".to_owned())
    }
}

/// An [`Engine`] on a directory of sled.
pub struct SledEngine {
    /// Absent only while the store is reopened, and behind a failure to do so. Calls hold it shared, reopening alone.
    handles: RwLock<Option<Handles>>,
    /// Held over a whole commit and a whole flush; the order of commits is the order of this lock.
    writer: Mutex<Flushed>,
    /// Why the engine may not be used any more.
    broken: Arc<OnceLock<Failure>>,
    /// The reads and commits that are under way.
    calls: Calls,
    path: PathBuf,
    config: SledConfig,
}

impl std::fmt::Debug for SledEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let broken = self.broken.get();
        formatter.debug_struct("SledEngine").field("path", &self.path).field("broken", &broken).finish_non_exhaustive()
    }
}

impl SledEngine {
    /// Opens the directory, creating it if it is missing. Blocks for up to `lock_timeout` and `open_timeout` together.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process holds the directory for longer than `lock_timeout`; [`Error::Damaged`] if sled
    /// finds damage, panics or does not come back within `open_timeout`; [`Error::Io`] for what the system refuses.
    /// Damage that cuts off sled's own log can also open as an *older* store: compare the applied marker with the log.
    pub fn open(path: &Path, config: &SledConfig) -> Result<Self, Error> {
        let db = open_patiently(path, config)?;
        let broken = Arc::new(OnceLock::new());
        let engine = Self {
            handles: RwLock::new(Some(Handles::new(db))),
            writer: Mutex::new(Flushed::default()),
            calls: watch(path, config, &broken)?,
            broken,
            path: path.to_owned(),
            config: config.clone(),
        };
        engine.sync_creation()?;
        Ok(engine)
    }

    /// Makes the directory entries and the settings file durable that sled itself does not sync.
    fn sync_creation(&self) -> Result<(), Error> {
        if !stamps::exist(&self.path) {
            self.stamp(stamps::begin)?;
        }
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        for entry in [self.path.join("durability_cookie"), self.path.join("metadata"), self.path.clone(), parent] {
            File::open(&entry)
                .and_then(|file| file.sync_all())
                .map_err(|source| Error::Io { action: format!("sync {}", entry.display()), source })?;
        }
        Ok(())
    }

    /// Runs one call into sled. A panic or an error breaks the engine: sled's state behind either is unknown.
    fn call<T>(&self, action: &str, work: impl FnOnce(&Db) -> io::Result<T>) -> Result<T, Error> {
        let handles = self.handles.read();
        let handles = match (self.broken.get(), handles.as_ref()) {
            (None, Some(handles)) => handles,
            (failure, _) => return Err(failure.map_or_else(Failure::closed, Failure::again)),
        };
        match catch_unwind(AssertUnwindSafe(|| work(handles.db()))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(self.broken_by(classify(&self.path, action, source))),
            Err(panic) => Err(self.broken_by(panicked(&self.path, action, &panic_text(&*panic)))),
        }
    }

    /// As [`Self::call`], for what should not take long.
    fn short_call<T>(&self, action: &str, work: impl FnOnce(&Db) -> io::Result<T>) -> Result<T, Error> {
        let _call = self.calls.begin();
        self.call(action, work)
    }

    /// Notes in one way or another what the files are, unless they can't be believed any more.
    fn stamp(&self, how: fn(&Path) -> io::Result<()>) -> Result<(), Error> {
        if let Some(failure) = self.broken.get() {
            return Err(failure.again());
        }
        how(&self.path).map_err(|source| self.broken_by(classify(&self.path, "note the files of", source)))
    }

    /// Remembers why the engine may not be used any more. The first failure is the one worth telling later.
    fn broken_by(&self, error: Error) -> Error {
        let _ = self.broken.set(Failure::of(&error));
        error
    }

    /// Closes the flushed store and opens it again, so that sled lets go of its memory. Calls wait meanwhile.
    fn reopen(&self) -> Result<(), Error> {
        let mut handles = self.handles.write();
        let old = handles.take();
        // A panic here leaves the lock with what was not dropped, which the opening reports.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(old)));
        self.stamp(stamps::rest_synced)?;
        let trusting = SledConfig { verify: false, ..self.config.clone() };
        let db = open_patiently(&self.path, &trusting).map_err(|error| self.broken_by(error))?;
        *handles = Some(Handles::new(db));
        Ok(())
    }
}

impl Drop for SledEngine {
    /// Flushes and closes. What cannot be flushed is left to the next start, which has the log.
    fn drop(&mut self) {
        let flushed = self.stamp(stamps::begin).and_then(|()| self.call("flush", flush));
        let handles = self.handles.get_mut().take();
        if flushed.is_err() {
            // Dropping sled behind a failure waits for ever or aborts the process.
            #[expect(clippy::mem_forget, reason = "see above")]
            std::mem::forget(handles);
            tracing::warn!(path = %self.path.display(), "the store was left without closing it");
        } else if catch_unwind(AssertUnwindSafe(|| drop(handles))).is_err() {
            tracing::warn!(path = %self.path.display(), "the store was not closed cleanly");
        } else if let Err(error) = self.stamp(stamps::rest_synced) {
            tracing::warn!(path = %self.path.display(), %error, "the store was closed, but its files can't be noted");
        }
    }
}

/// Puts the metadata of a store into a state that sled can open without losing it (see the top of the file).
fn mend_metadata(path: &Path) -> io::Result<()> {
    let directory = path.join("metadata");
    let newest = |prefix| Ok::<_, io::Error>(stamps::numbers(path, prefix)?.last().copied());
    match (newest("snapshot_")?, newest("log_")?) {
        (None, Some(_)) => Err(io::Error::new(io::ErrorKind::InvalidData, "a metadata log without its snapshot")),
        (Some(snapshot), log) if log.is_none_or(|log| log <= snapshot) => {
            File::create(directory.join(format!("log_{:016x}", snapshot + 1)))?.sync_all()?;
            File::open(&directory)?.sync_all()
        }
        _ => Ok(()),
    }
}

/// Looks whether the files are those that were left, and mends the metadata, under the lock of the store, unless another
/// process holds it.
fn prepare(path: &Path) -> Result<(), Error> {
    let directory = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        directory => directory.map_err(|source| classify(path, "open", source))?,
    };
    match directory.try_lock() {
        Ok(()) => {
            stamps::check(path).and_then(|()| mend_metadata(path)).map_err(|source| classify(path, "prepare", source))
        }
        Err(TryLockError::WouldBlock) => Err(Error::InUse(path.display().to_string())),
        Err(TryLockError::Error(source)) => Err(classify(path, "lock", source)),
    }
}

/// Notices calls that never come back: the engine is broken then.
fn watch(path: &Path, config: &SledConfig, broken: &Arc<OnceLock<Failure>>) -> Result<Calls, Error> {
    let (path, limit, tell, broken) = (path.to_owned(), config.endless_after, config.on_endless, Arc::clone(broken));
    let found = move || {
        let text =
            format!("sled does not come back from a call to {}, after {limit:?} of processor time", path.display());
        let error = Error::Damaged(text);
        let _ = broken.set(Failure::of(&error));
        tell(&path, &error);
    };
    Calls::watch(limit, found)
        .map_err(|source| Error::Io { action: "start the thread that watches the store".to_owned(), source })
}

/// Opens, waiting for a lock that another process may be about to release.
fn open_patiently(path: &Path, config: &SledConfig) -> Result<Db, Error> {
    let mut waited = Duration::ZERO;
    loop {
        match prepare(path).and_then(|()| open_once(path, config)) {
            Err(Error::InUse(_)) if waited < config.lock_timeout => {
                std::thread::sleep(LOCK_RETRY_PAUSE);
                waited += LOCK_RETRY_PAUSE;
            }
            other => return other,
        }
    }
}

/// One try at opening, on its own thread: sled may panic, or spin on damage.
fn open_once(path: &Path, config: &SledConfig) -> Result<Db, Error> {
    let (result_in, result_out) = mpsc::sync_channel(1);
    let settings = ::sled::Config::new()
        .path(path)
        .cache_capacity_bytes(config.cache_bytes)
        .zstd_compression_level(ZSTD_LEVEL)
        .flush_every_ms(Some(FLUSH_EVERY_MS_NEVER));
    let verify = config.verify;
    std::thread::Builder::new()
        .name("sled-open".to_owned())
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                let db = settings.open::<LEAF_FANOUT>()?;
                if verify {
                    db.iter().try_for_each(|pair| pair.map(drop))?;
                }
                Ok::<Db, io::Error>(db)
            }));
            // Nobody waits any more after a timeout; the handle, if there is one, is closed here.
            let _ = result_in.send(result.map_err(|panic| panic_text(&*panic)));
        })
        .map_err(|source| Error::Io { action: "start the thread that opens the store".to_owned(), source })?;
    match result_out.recv_timeout(config.open_timeout) {
        Ok(Ok(Ok(db))) => Ok(db),
        Ok(Ok(Err(source))) if source.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::InUse(path.display().to_string()))
        }
        Ok(Ok(Err(source))) => Err(classify(path, "open", source)),
        Ok(Err(panic)) => Err(panicked(path, "open", &panic)),
        Err(_) => Err(Error::Damaged(format!("sled did not open {} within {:?}", path.display(), config.open_timeout))),
    }
}

/// What sled says is wrong with the bytes is damage; the rest is the system's.
fn classify(path: &Path, action: &str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Unsupported => {
            Error::Damaged(format!("{action} {}: {source}", path.display()))
        }
        _ => {
            // sled says where it met an error of the system, and keeps only its kind.
            let told = source.raw_os_error().is_none().then(|| error_told(&source.to_string())).flatten();
            Error::Io { action: format!("{action} {}", path.display()), source: told.unwrap_or(source) }
        }
    }
}

/// Behind a panic the bytes are under suspicion, unless sled gave up because the machine lacks something.
fn panicked(path: &Path, action: &str, text: &str) -> Error {
    let told = error_told(text).map(|source| Error::Io { action: format!("{action} {}", path.display()), source });
    let damage = || Error::Damaged(format!("sled panicked: {action} {}: {text}", path.display()));
    told.filter(Error::is_shortage).unwrap_or_else(damage)
}

/// The error of the system that a text tells, in either of the forms in which the standard library shows one.
fn error_told(text: &str) -> Option<io::Error> {
    ["(os error ", "Os { code: "].iter().find_map(|before| {
        let rest = &text[text.find(before)? + before.len()..];
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        Some(io::Error::from_raw_os_error(rest[..digits].parse().ok()?))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Copies out of sled: a reference would keep memory of an evicted leaf, and most values are small.
fn copied(array: &::sled::InlineArray) -> Bytes {
    Bytes::copy_from_slice(array)
}

fn is_beyond(key: &[u8], end: Bound<&[u8]>) -> bool {
    match end {
        Bound::Unbounded => false,
        Bound::Included(end) => key > end,
        Bound::Excluded(end) => key >= end,
    }
}

/// Takes what a scan wants from pairs that are in its order and not before its start.
fn page(pairs: impl Iterator<Item = io::Result<SledPair>>, scan: &Scan<'_>) -> io::Result<Vec<(Bytes, Bytes)>> {
    let mut page = Vec::new();
    let mut bytes = 0_usize;
    if scan.limit == 0 {
        return Ok(page);
    }
    for pair in pairs {
        let (key, value) = pair?;
        if is_beyond(&key, scan.end) {
            break;
        }
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
        page.push((copied(&key), copied(&value)));
        if page.len() == scan.limit || bytes > scan.bytes_max {
            break;
        }
    }
    Ok(page)
}

type SledPair = (::sled::InlineArray, ::sled::InlineArray);

/// Puts in one sled batch, deletes one by one behind it, so that emptied leaves are merged (see the top of the file).
fn apply(db: &Db, batch: &Batch) -> io::Result<()> {
    if let Some(puts) = rising_puts(batch) {
        db.check_error()?;
        return db.apply_batch(puts);
    }
    // The last write of a key wins, and puts and deletes part ways below: so each key may be left only once.
    let last: BTreeMap<&[u8], Option<&[u8]>> = batch
        .iter()
        .map(|write| match write {
            Write::Put(key, value) => (&key[..], Some(&value[..])),
            Write::Delete(key) => (&key[..], None),
        })
        .collect();
    let mut puts = ::sled::Batch::default();
    for (key, value) in &last {
        if let Some(value) = value {
            puts.insert(*key, *value);
        }
    }
    // A batch of sled does not look at the error its background thread may have left, the other calls do.
    db.check_error()?;
    db.apply_batch(puts)?;
    for (key, value) in &last {
        if value.is_none() {
            db.remove(key)?;
        }
    }
    Ok(())
}

/// The batch, if it is what checkpoints write nearly always: puts alone, each of another key, in order.
fn rising_puts(batch: &Batch) -> Option<::sled::Batch> {
    let (mut puts, mut last) = (::sled::Batch::default(), None);
    for write in batch {
        let Write::Put(key, value) = write else { return None };
        if last.replace(key).is_some_and(|last| last >= key) {
            return None;
        }
        puts.insert(&key[..], &value[..]);
    }
    Some(puts)
}

fn flush(db: &Db) -> io::Result<::sled::FlushStats> {
    let stats = db.flush()?;
    // An error in sled's background thread does not come out of the flush itself.
    db.check_error()?;
    Ok(stats)
}

/// Whether sled has cut a leaf in a store (see the top of the file). Reads four bytes for each slot of one size.
fn has_cut_leaf(path: &Path) -> io::Result<bool> {
    let slots = match File::open(path.join("slabs").join(CUT_SLOT_BYTES.to_string())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        slots => slots?,
    };
    let mut length = [0; 4];
    for slot in 0..slots.metadata()?.len() / CUT_SLOT_BYTES {
        slots.read_exact_at(&mut length, slot * CUT_SLOT_BYTES + CUT_LENGTH_AT)?;
        if u32::from_le_bytes(length) == CUT_LENGTH {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The bytes of the files below a directory as allocated by the file system. Files may come and go meanwhile.
fn allocated_bytes(directory: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        total += if metadata.is_dir() { allocated_bytes(&entry.path())? } else { metadata.blocks() * BLOCK_BYTES };
    }
    Ok(total)
}

impl Engine for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.short_call("read a key of", |db| Ok(db.get(key)?.as_ref().map(copied)))
    }

    fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, Error> {
        if engine::is_empty_range(scan.start, scan.end) {
            return Ok(Vec::new());
        }
        self.short_call("scan", |db| match scan.order {
            Order::Ascending => page(db.range::<&[u8], _>((scan.start, Bound::Unbounded)), &scan),
            Order::Descending => page(db.range::<&[u8], _>((scan.start, scan.end)).rev(), &scan),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), Error> {
        engine::check_batch(&batch)?;
        let _writer = self.writer.lock();
        self.short_call("commit a batch to", |db| apply(db, &batch))
    }

    fn flush(&self) -> Result<(), Error> {
        let mut flushed = self.writer.lock();
        self.stamp(stamps::begin)?;
        let stats = self.call("flush", flush)?;
        flushed.add(&stats);
        let cut = has_cut_leaf(&self.path).map_err(|source| classify(&self.path, "check the leaves of", source))?;
        if cut {
            return Err(self.broken_by(Error::Damaged(format!("sled has cut a leaf in {}", self.path.display()))));
        }
        // A leaf that was flushed often is counted often: so the estimate is held against the size of the store as well.
        let limit = self.config.pinned_bytes;
        if flushed.memory_bytes(flushed.compressed_bytes) > limit && flushed.memory_bytes(self.size_on_disk()?) > limit
        {
            self.reopen()?;
            *flushed = Flushed::default();
            return Ok(());
        }
        self.stamp(if stats.write_batch.truncated_files > 0 { stamps::rest_synced } else { stamps::rest })
    }

    /// Bytes that the file system has allocated; about a hundred `stat` calls.
    fn size_on_disk(&self) -> Result<u64, Error> {
        allocated_bytes(&self.path)
            .map_err(|source| Error::Io { action: format!("measure {}", self.path.display()), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_no_damage_however_sled_tells_it() {
        let path = Path::new("state/1");
        let told = io::Error::other("sled:heap.rs:792 -> Too many open files (os error 24)");
        assert!(classify(path, "open", told).is_shortage());
        let unwrapped =
            "called `Result::unwrap()` on an `Err` value: Os { code: 28, kind: StorageFull, message: \"No space\" }";
        assert!(panicked(path, "open", unwrapped).is_shortage());
        // A disk that can't be read is rebuilt from.
        for text in ["Input/output error (os error 5)", "Os { code: 5, kind: x }", "assertion failed", "(os error )"] {
            assert!(matches!(panicked(path, "open", text), Error::Damaged(_)), "{text}");
            assert!(!classify(path, "open", io::Error::other(text)).is_shortage(), "{text}");
        }
        assert!(matches!(classify(path, "open", io::ErrorKind::InvalidData.into()), Error::Damaged(_)));
    }
}
