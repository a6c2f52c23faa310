//! Up to where the log was known to be on the disk: a small file beside the chunks, without which nobody could tell a log that
//! has lost its end (a chunk cut at a record, or gone as a whole) from one that never had it.
//!
//! A node with such a log would vote and lead without what it has acknowledged; and a leader that had heard the acknowledgement
//! would never bring it up again. The mark is written over in place whenever a sync has ended, and is not synced itself: it only
//! ever tells of bytes that are on the disk already, so an older mark, or none, is true as well and merely tells less. So a mark
//! that can't be read or written is told and passed over: a node with a whole log must not fail for a hint.
//!
//! Guarantees: the mark never exceeds what was synced. Leaves out: what is lost together with the mark, and a whole directory
//! that was set back to an earlier copy.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::codec::framed::{self, FrameError};

/// Its name in the log's directory.
const NAME: &str = "end";

const MAGIC: [u8; 4] = *b"QEND";
const VERSION: u8 = 1;

/// Its length: a frame around a number.
const BYTES: u64 = 17;

/// The open file.
#[derive(Debug)]
pub(super) struct EndMark {
    file: File,
    end: AtomicU64,
}

impl EndMark {
    /// What the mark in a directory says, as an offset in the stream of all chunks; 0 where there is none that can be read.
    pub(super) fn read(dir: &Path) -> u64 {
        let path = dir.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return 0,
            Err(error) => {
                passed_over(&path, &error);
                return 0;
            }
        };
        // Just created when the machine stopped.
        if bytes.is_empty() {
            return 0;
        }
        match framed::open(MAGIC, VERSION, &bytes).and_then(|(_, body)| body.try_into().map_err(|_| FrameError::Body)) {
            Ok(end) => u64::from_le_bytes(end),
            Err(error) => {
                passed_over(&path, &error);
                0
            }
        }
    }

    /// Opens the mark of a log that was found to reach as far as it says; `None` if it can't be written.
    pub(super) fn open(dir: &Path) -> Option<Self> {
        let path = dir.join(NAME);
        let open = || -> io::Result<File> {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            // What is behind a mark makes it unreadable for ever: it is written over, not anew.
            if file.metadata()?.len() > BYTES {
                file.set_len(BYTES)?;
            }
            Ok(file)
        };
        match open() {
            Ok(file) => Some(Self { file, end: AtomicU64::new(0) }),
            Err(error) => {
                passed_over(&path, &error);
                None
            }
        }
    }

    /// Notes that the log is on the disk up to `end`.
    pub(super) fn advance(&self, end: u64) {
        if self.end.fetch_max(end, Ordering::Relaxed) >= end {
            return;
        }
        let written = self.file.write_all_at(&framed::seal(MAGIC, VERSION, &end.to_le_bytes()), 0);
        if let Err(error) = written {
            // Once: from here on nothing is beyond it.
            self.end.store(u64::MAX, Ordering::Relaxed);
            tracing::warn!(%error, "the mark at the end of the Raft log can't be written; the end is not watched any more");
        }
    }
}

fn passed_over(path: &Path, error: &dyn std::fmt::Display) {
    tracing::warn!(file = %path.display(), %error, "passing over the mark at the end of the Raft log");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_mark_stay_as_they_are_and_a_damaged_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(EndMark::read(dir.path()), 0);
        let mark = EndMark::open(dir.path()).unwrap();
        assert_eq!(EndMark::read(dir.path()), 0);
        mark.advance(0x0102_0304);
        mark.advance(7);
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[..13], *b"QEND\x01\x04\x03\x02\x01\0\0\0\0");
        assert_eq!((bytes.len() as u64, EndMark::read(dir.path())), (BYTES, 0x0102_0304));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            assert_eq!(EndMark::read(dir.path()), 0, "bit {bit}");
        }
    }

    #[test]
    fn a_mark_with_something_behind_it_heals_and_one_that_cant_be_used_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        EndMark::open(dir.path()).unwrap().advance(7);
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        assert_eq!(EndMark::read(dir.path()), 0);
        EndMark::open(dir.path()).unwrap().advance(9);
        assert_eq!(EndMark::read(dir.path()), 9);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(EndMark::read(dir.path()), 0);
        assert!(EndMark::open(dir.path()).is_none());
    }
}
