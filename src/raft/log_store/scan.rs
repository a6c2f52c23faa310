//! What is checked, and repaired, in the chunk files before raft-log opens them.
//!
//! A crash may leave the end of the newest chunk unfinished: a record cut short, or zeros where a length had reached the
//! disk before its data. Such a tail was never acknowledged, since acknowledging waits for fdatasync, and is cut off.
//! Anything else is damage to what may have been acknowledged and is left alone for a person to look at: a bad record with
//! valid ones behind it, a bad record that is complete and does not end in zeros, a bad record in an older chunk, a hole
//! between chunks. A node that dropped it would vote, and lead, with a log it has promised not to lose (DESIGN
//! invariant 11; Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST '18). In doubt it is
//! damage: the price is one node to be replaced.
//!
//! raft-log alone would also refuse most of this, but it takes any early end of file for a torn tail, refuses a tail that
//! is half zeros, and removes the newest chunk if its first record is incomplete, even if it is the only one.
//!
//! The newest chunk is also fsynced and read from the disk, past the page cache: what a killed process had written but not
//! synced would otherwise be counted as durable from here on, and after a failed fsync the cache may hold what the disk
//! does not (Rebello et al., "Can Applications Recover from fsync Failures?", ATC '20).
//!
//! No log can see by itself that its end is missing at the boundary of a record, or that its last chunks are gone: that is
//! noticed by a mark that says how far it once was on the disk (`end_mark`). A tail that looks torn but lies before the mark is
//! damage as well.
//!
//! Who founds a cluster anew may have nothing better than such a log ([`Expected::Rest`]): what is left of it is sound, record by
//! record. It is opened for reading then. A record that is bad counts as part of the lost end if no valid one follows and the
//! mark lies behind it: the mark goes on refusing the log to whoever would vote with it once the record is out of the way.
//!
//! Guarantees: no valid record and nothing in front of one is ever changed; what is cut off of a log whose end is lost is kept in
//! a file beside it. Leaves out: an end that is missing together with its mark.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use raft_log::codeq::Decode;
use raft_log::{RaftLogRecord, chunked_wal};

use super::LogError;
use super::codec::{self, CodecError, WalTypes};

/// Every record ends in a checksum of this many bytes, four of which are a CRC: this many zeros at the end of a file were
/// never a whole record, but for one in four billion.
const ZERO_TAIL_BYTES: usize = 8;

/// Record types of raft-log are below this (a checkpoint is 5).
const RECORD_TYPES: u8 = 6;

/// What the file is called, instead of `.wal`, that keeps what stood behind the last valid record of a log whose end is lost.
const KEPT_EXTENSION: &str = "lost-end";

/// One chunk file.
struct Chunk {
    /// Its place in the stream of all chunks, from its name.
    start: u64,
    path: PathBuf,
}

/// What a chunk holds.
struct Scan {
    /// Bytes of valid records at its start.
    valid_bytes: u64,
    /// What is wrong behind them.
    fault: Option<Fault>,
}

/// Why a chunk does not end behind its valid records.
enum Fault {
    /// Unfinished when the process or the machine stopped.
    Torn,
    /// The last record, and no valid one behind it.
    BadEnd(String),
    Damaged(String),
    Newer(u8),
}

/// Whether there has to be a log already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// One that was made before: it holds votes, so a new one must not take its place.
    Log,
    /// What is left of one that was made before. Its end may be lost, since nobody will vote with it or write to it.
    Rest,
    /// None, or one that was being made.
    Any,
}

/// What was once on the disk behind the last valid record, and is not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostEnd {
    /// The chunk file that ends too early.
    pub file: PathBuf,
    /// Up to where it is whole, in bytes from its start.
    pub offset: u64,
    /// How many bytes are missing, in this chunk and those behind it; there may have been more.
    pub missing_bytes: u64,
    /// What was found.
    pub reason: String,
}

/// What the chunks hold.
pub(super) struct Found {
    /// Up to where the log is on the disk now; `None` if there is none: the leavings of one that was never finished are none.
    pub(super) end: Option<u64>,
    /// What is missing behind it; only if just the rest was expected.
    pub(super) lost: Option<LostEnd>,
}

/// What a crash left unfinished at the end of a chunk.
struct Unfinished {
    file: File,
    path: PathBuf,
    kept_bytes: u64,
    dropped: Vec<u8>,
}

impl Unfinished {
    /// Saves what will be cut off: it may be a piece of what was acknowledged.
    fn keep(&self) -> Result<(), LogError> {
        let path = self.path.with_extension(KEPT_EXTENSION);
        let kept =
            File::create(&path).and_then(|mut file| file.write_all(&self.dropped).and_then(|()| file.sync_all()));
        kept.map_err(LogError::io("write", &path))
    }

    fn cut_off(&self) -> Result<(), LogError> {
        tracing::warn!(
            file = %self.path.display(),
            kept_bytes = self.kept_bytes,
            dropped_bytes = self.dropped.len(),
            "cut off the end of the Raft log, behind its last valid record"
        );
        self.file.set_len(self.kept_bytes).map_err(LogError::io("truncate", &self.path))?;
        self.file.sync_all().map_err(LogError::io("sync", &self.path))
    }
}

/// Checks the end of the log and cuts off what a crash left unfinished, once it is sure that the log is not refused. The caller
/// holds the lock of the directory. `synced` is up to where the log was once known to be on the disk.
pub(super) fn repair_tail(dir: &Path, synced: u64, expected: Expected) -> Result<Found, LogError> {
    let mut chunks = list(dir)?;
    if chunks.is_empty() && synced > 0 {
        return Err(Fault::Damaged(gone(synced)).at(dir, 0));
    }
    let (mut end, mut lost, mut unfinished) = (None, None, Vec::new());
    let oldest = chunks.first().map(|chunk| chunk.start);
    // Usually one round. A chunk without its first record is what an interrupted rotation leaves; only then can the one
    // before it also be unfinished (raft-log writes the first record when the older chunk is synced).
    while let Some(Chunk { start, path }) = chunks.pop() {
        let file = sync_and_forget(&path)?;
        let mut bytes = fs::read(&path).map_err(LogError::io("read", &path))?;
        let Scan { valid_bytes, fault } = scan(&bytes);
        let reaches = start + valid_bytes;
        if let Some(missing) = lost_end(&path, valid_bytes, synced.saturating_sub(reaches), fault)? {
            if expected != Expected::Rest {
                return Err(LogError::LostEnd(missing));
            }
            lost = Some(missing);
        }
        if valid_bytes == 0 && Some(start) == oldest && start > 0 {
            // The chunks before it were removed when this one was on the disk.
            return Err(Fault::Damaged("the only chunk has lost its contents".into()).at(&path, 0));
        }
        if lost.is_some() && valid_bytes > 0 && end_of(&chunks)?.is_some_and(|end| end != start) {
            // Told before anything is cut: this is not a log that was whole up to here.
            return Err(gap(&path));
        }
        let dropped = bytes.split_off(usize::try_from(valid_bytes).unwrap_or(usize::MAX).min(bytes.len()));
        if !dropped.is_empty() {
            unfinished.push(Unfinished { file, path, kept_bytes: valid_bytes, dropped });
        }
        if valid_bytes > 0 {
            end = Some(reaches);
            break;
        }
        // raft-log removes the empty file.
    }
    if end.is_none() && expected != Expected::Any {
        // Before anything is made or cut: otherwise the next start would find a log, and vote with it.
        return Err(LogError::nothing_left(dir));
    }
    let sync_dir = || File::open(dir).and_then(|dir| dir.sync_all()).map_err(LogError::io("sync", dir));
    if lost.is_some() {
        unfinished.iter().try_for_each(Unfinished::keep)?;
        sync_dir()?;
    }
    unfinished.iter().try_for_each(Unfinished::cut_off)?;
    sync_dir()?;
    Ok(Found { end, lost })
}

/// What is gone of the end of a chunk, if anything, of which `missing` bytes more were once on the disk. An error if its fault is
/// another one.
fn lost_end(path: &Path, offset: u64, missing: u64, fault: Option<Fault>) -> Result<Option<LostEnd>, LogError> {
    let reason = match fault {
        None | Some(Fault::Torn) if missing == 0 => return Ok(None),
        None | Some(Fault::Torn) => gone(missing),
        // Without a valid record it may be a file of something else.
        Some(Fault::BadEnd(reason)) if missing > 0 && offset > 0 => {
            format!("{reason}, and with it {missing} bytes that were on the disk from there on can't be used")
        }
        Some(fault) => return Err(fault.at(path, offset)),
    };
    Ok(Some(LostEnd { file: path.to_owned(), offset, missing_bytes: missing, reason }))
}

fn gone(missing: u64) -> String {
    format!("it ends there, and {missing} bytes that were on the disk behind it are gone")
}

/// Brings a log that was just made to the disk, so that what is written elsewhere may rely on its being there. Returns up to
/// where it is there.
pub(super) fn sync_all(dir: &Path) -> Result<u64, LogError> {
    let mut end = 0;
    for Chunk { start, path } in list(dir)? {
        let file = File::open(&path).map_err(LogError::io("open", &path))?;
        let bytes = file.metadata().map_err(LogError::io("read", &path))?.len();
        file.sync_all().map_err(LogError::io("sync", &path))?;
        end = start + bytes;
    }
    Ok(end)
}

/// Looks for what kept raft-log from opening the chunks, in more detail than its own `error`.
pub(super) fn diagnose(dir: &Path, error: io::Error) -> LogError {
    match (list(dir).and_then(|chunks| end_of(&chunks)), error.kind()) {
        (Err(found), _) => found,
        // Each record is sound, but one does not follow from those before it.
        (Ok(_), io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
            LogError::Damaged { file: dir.to_owned(), offset: 0, reason: error.to_string() }
        }
        (Ok(_), _) => LogError::io("open the log in", dir)(error),
    }
}

/// Where chunks end that have to be whole and to follow each other; `None` if there are none.
fn end_of(chunks: &[Chunk]) -> Result<Option<u64>, LogError> {
    let mut end = None;
    for chunk in chunks {
        if end.is_some_and(|end| end != chunk.start) {
            return Err(gap(&chunk.path));
        }
        let bytes = fs::read(&chunk.path).map_err(LogError::io("read", &chunk.path))?;
        let scan = scan(&bytes);
        match scan.fault {
            None => {}
            Some(Fault::Torn) => {
                let reason = "a chunk that is not the newest ends in the middle of a record";
                return Err(Fault::Damaged(reason.into()).at(&chunk.path, scan.valid_bytes));
            }
            Some(fault) => return Err(fault.at(&chunk.path, scan.valid_bytes)),
        }
        end = Some(chunk.start + scan.valid_bytes);
    }
    Ok(end)
}

fn gap(path: &Path) -> LogError {
    Fault::Damaged("the chunk before it is missing or too short".into()).at(path, 0)
}

impl Fault {
    fn at(self, path: &Path, offset: u64) -> LogError {
        let file = path.to_owned();
        match self {
            Self::Torn => LogError::Damaged { file, offset, reason: "cut off".into() },
            Self::BadEnd(reason) | Self::Damaged(reason) => LogError::Damaged { file, offset, reason },
            Self::Newer(found) => LogError::Newer { file, found, newest: codec::FORMAT },
        }
    }
}

/// Brings a file to the disk and drops what the page cache holds of it.
fn sync_and_forget(path: &Path) -> Result<File, LogError> {
    let file = File::options().read(true).append(true).open(path).map_err(LogError::io("open", path))?;
    file.sync_all().map_err(LogError::io("sync", path))?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|errno| LogError::io("advise on", path)(errno.into()))?;
    Ok(file)
}

/// The chunk files, oldest first.
fn list(dir: &Path) -> Result<Vec<Chunk>, LogError> {
    let mut chunks = Vec::new();
    for entry in fs::read_dir(dir).map_err(LogError::io("list", dir))? {
        let path = entry.map_err(LogError::io("list", dir))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Ok(start) = chunked_wal::Config::parse_chunk_file_name(&name) {
            chunks.push(Chunk { start, path });
        }
    }
    chunks.sort_by_key(|chunk| chunk.start);
    Ok(chunks)
}

fn scan(bytes: &[u8]) -> Scan {
    let mut valid = 0;
    while valid < bytes.len() {
        match decode(&bytes[valid..]) {
            Ok(len) => valid += len,
            Err(error) => return Scan { valid_bytes: valid as u64, fault: Some(judge(&bytes[valid..], &error)) },
        }
    }
    Scan { valid_bytes: valid as u64, fault: None }
}

/// Decides what a bad record at the start of `rest`, which goes on to the end of the file, means.
fn judge(rest: &[u8], error: &io::Error) -> Fault {
    if let Some(CodecError::Newer(format)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return Fault::Newer(*format);
    }
    // Where the next record begins is known if the head of this one is sound; then what looks like a record inside its
    // body is a client's value. Otherwise it may begin anywhere.
    let declared = codec::append_record_bytes(rest);
    let after = declared.map_or(1, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if let Some(at) = (after..rest.len()).find(|at| decode(&rest[*at..]).is_ok()) {
        return Fault::Damaged(format!("valid records follow {at} bytes behind the bad one ({error})"));
    }
    let zeros = rest.iter().rev().take_while(|byte| **byte == 0).count();
    if error.kind() == io::ErrorKind::UnexpectedEof || zeros >= ZERO_TAIL_BYTES {
        return Fault::Torn;
    }
    Fault::BadEnd(format!("the last record is complete but bad ({error})"))
}

/// Decodes the record at the start of `bytes` and returns its length.
fn decode(bytes: &[u8]) -> io::Result<usize> {
    // Quick, since the search above asks at every byte.
    if let [a, b, c, kind, ..] = bytes
        && ([*a, *b, *c] != [0; 3] || *kind >= RECORD_TYPES)
    {
        return Err(CodecError::Malformed("record type").into());
    }
    let mut rest = bytes;
    RaftLogRecord::<WalTypes>::decode(&mut rest)?;
    Ok(bytes.len() - rest.len())
}
