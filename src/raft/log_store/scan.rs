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
//! Guarantees: no valid record and nothing in front of one is ever changed. Leaves out: a tail that is missing at the
//! boundary of a record, and chunks that are missing as a whole at the end: no log can see that by itself.

use std::fs::{self, File};
use std::io;
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
    Damaged(String),
    Newer(u8),
}

/// Checks the end of the log and cuts off what a crash left unfinished. The caller holds the lock of the directory.
/// Returns whether there is a log at all; the leavings of one that was never finished are none.
pub(super) fn repair_tail(dir: &Path) -> Result<bool, LogError> {
    let mut chunks = list(dir)?;
    let mut exists = false;
    let oldest = chunks.first().map(|chunk| chunk.start);
    // Usually one round. A chunk without its first record is what an interrupted rotation leaves; only then can the one
    // before it also be unfinished (raft-log writes the first record when the older chunk is synced).
    while let Some(chunk) = chunks.pop() {
        let file = sync_and_forget(&chunk.path)?;
        let bytes = fs::read(&chunk.path).map_err(LogError::io("read", &chunk.path))?;
        let scan = scan(&bytes);
        match scan.fault {
            None if scan.valid_bytes > 0 => {
                exists = true;
                break;
            }
            None | Some(Fault::Torn) => {}
            Some(fault) => return Err(fault.at(&chunk.path, scan.valid_bytes)),
        }
        if scan.valid_bytes == 0 && Some(chunk.start) == oldest && chunk.start > 0 {
            // The chunks before it were removed when this one was on the disk.
            return Err(Fault::Damaged("the only chunk has lost its contents".into()).at(&chunk.path, 0));
        }
        if scan.valid_bytes < bytes.len() as u64 {
            tracing::warn!(
                file = %chunk.path.display(),
                kept_bytes = scan.valid_bytes,
                dropped_bytes = bytes.len() as u64 - scan.valid_bytes,
                "cut off the end of the Raft log, which a crash had left unfinished and nobody was told of"
            );
            file.set_len(scan.valid_bytes).map_err(LogError::io("truncate", &chunk.path))?;
            file.sync_all().map_err(LogError::io("sync", &chunk.path))?;
        }
        if scan.valid_bytes > 0 {
            exists = true;
            break;
        }
        // raft-log removes the empty file.
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(LogError::io("sync", dir))?;
    Ok(exists)
}

/// Brings a log that was just made to the disk, so that what is written elsewhere may rely on its being there.
pub(super) fn sync_all(dir: &Path) -> Result<(), LogError> {
    for chunk in list(dir)? {
        File::open(&chunk.path).and_then(|file| file.sync_all()).map_err(LogError::io("sync", &chunk.path))?;
    }
    Ok(())
}

/// Looks for what kept raft-log from opening the chunks, in more detail than its own `error`.
pub(super) fn diagnose(dir: &Path, error: io::Error) -> Result<LogError, LogError> {
    let mut end = None;
    for chunk in list(dir)? {
        if end.is_some_and(|end| end != chunk.start) {
            let reason = "the chunk before it is missing or too short";
            return Ok(Fault::Damaged(reason.into()).at(&chunk.path, 0));
        }
        let bytes = fs::read(&chunk.path).map_err(LogError::io("read", &chunk.path))?;
        let scan = scan(&bytes);
        match scan.fault {
            None => {}
            Some(Fault::Torn) => {
                let reason = "a chunk that is not the newest ends in the middle of a record";
                return Ok(Fault::Damaged(reason.into()).at(&chunk.path, scan.valid_bytes));
            }
            Some(fault) => return Ok(fault.at(&chunk.path, scan.valid_bytes)),
        }
        end = Some(chunk.start + scan.valid_bytes);
    }
    Ok(match error.kind() {
        // Each record is sound, but one does not follow from those before it.
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            LogError::Damaged { file: dir.to_owned(), offset: 0, reason: error.to_string() }
        }
        _ => LogError::io("open the log in", dir)(error),
    })
}

impl Fault {
    fn at(self, path: &Path, offset: u64) -> LogError {
        let file = path.to_owned();
        match self {
            Self::Torn => LogError::Damaged { file, offset, reason: "cut off".into() },
            Self::Damaged(reason) => LogError::Damaged { file, offset, reason },
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
    Fault::Damaged(format!("the last record is complete but bad ({error})"))
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
