//! What sled's files looked like when they were flushed last, so that an earlier copy of one is not taken for it.
//!
//! sled knows by a sum that a leaf is whole, but nothing ties a leaf to the metadata that leads to it. In a file of leaves
//! from an earlier day every leaf is whole and some are out of date: sled serves their old values, or looks for a leaf
//! without end (docs/upstream/sled-stale-slab.md). The same goes for an earlier or shorter log of its metadata. So a
//! file of ours, `stamps`, has the size and the modification time of each, as they were behind the last flush.
//!
//! ```text
//! frame "QSTP", version 1: at rest (bool) | slabs: name -> stamp | newest log of metadata: number, stamp | zeros
//! stamp: bytes | seconds | nanoseconds                             (postcard; a block of 4,096 bytes as a rule)
//! ```
//!
//! Before sled's files change, `stamps` says so, and once they are durable it says what they are; it is synced both times.
//! A store at rest must be exactly as stamped. One that died within a flush may have files that are newer, by as long as a
//! flush may take, but none that is gone or older. sled's files change in no other way, but for the metadata log, which an opening folds into a snapshot
//! of the same number.
//!
//! Guarantees: an earlier copy of a slab or of the newest metadata log is found before sled opens the store, unless the
//! store died within a flush *and* the copy was put back, as a new file, within the same minute; a file that was cut, is gone, or was swapped for another is
//! found, too. A directory that was copied without its modification times counts as damaged, and is rebuilt. Leaves out:
//! bytes that rot in place (sled's own sums), disks that lose writes and keep the times, earlier copies of everything (the
//! marker in the store is compared with the log), and stores from before there were stamps: those are taken as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::codec::framed;

/// The name of the file, in the directory of the store.
const NAME: &str = "stamps";
const MAGIC: [u8; 4] = *b"QSTP";
const VERSION: u8 = 1;

/// The file is written over in place, in whole blocks: it does not need room on a disk that is full.
const BLOCK_BYTES: usize = 4_096;

/// A file that is newer than the beginning of a flush by more was not written by it. Where a disk is so slow, and dies
/// just then, the state is rebuilt.
const FLUSH_SECONDS_MAX: i64 = 60;

/// What a file is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() }
    }

    const NOTHING: Self = Self { bytes: 0, seconds: i64::MIN, nanoseconds: 0 };

    /// Whether a file that looked like this may look like `now` behind the writes of a flush that began at `began`, also
    /// within one tick of the clock.
    fn may_become(self, now: Self, began: i64) -> bool {
        (now.seconds, now.nanoseconds) >= (self.seconds, self.nanoseconds)
            && (now == self || now.seconds <= began.saturating_add(FLUSH_SECONDS_MAX))
    }
}

/// The files that have anything in them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Files {
    slabs: BTreeMap<String, Stamp>,
    /// The newest log of metadata, by its number.
    log: Option<(u64, Stamp)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stamps {
    at_rest: bool,
    files: Files,
    /// When they were written, in seconds; known from the file itself.
    #[serde(skip)]
    written: i64,
}

impl Stamps {
    fn of(at_rest: bool, files: Files) -> Self {
        Self { at_rest, files, written: 0 }
    }
}

/// Whether the store is as it was left.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if not, with the file that differs; what the system says.
pub(super) fn check(store: &Path) -> io::Result<()> {
    let Some(stamps) = read(store)? else { return Ok(()) };
    let found = files(store)?;
    let folded = numbers(store, "snapshot_")?.last().copied();
    let different = different_slab(&stamps, &found).map(|name| format!("slabs/{name}"));
    let different = different.or_else(|| different_log(&stamps, found.log, folded).map(log_name));
    match different {
        None => Ok(()),
        Some(name) => Err(invalid(format!("{name} is not the file that was flushed last: an earlier copy, or cut"))),
    }
}

/// Notes that the files are about to change; also where they have no stamps yet.
pub(super) fn begin(store: &Path) -> io::Result<()> {
    write(store, &Stamps::of(false, files(store)?))
}

/// Notes what the files are behind a flush.
pub(super) fn rest(store: &Path) -> io::Result<()> {
    write(store, &Stamps::of(true, files(store)?))
}

/// As [`rest`], where files may have been cut behind their last sync: sled does that when it has nothing at their ends.
pub(super) fn rest_synced(store: &Path) -> io::Result<()> {
    let files = files(store)?;
    for name in files.slabs.keys() {
        File::open(store.join("slabs").join(name))?.sync_all()?;
    }
    write(store, &Stamps::of(true, files))
}

/// Whether there are stamps.
pub(super) fn exist(store: &Path) -> bool {
    store.join(NAME).exists()
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn different_slab<'a>(stamps: &'a Stamps, found: &'a Files) -> Option<&'a str> {
    let (stamped, found) = (&stamps.files.slabs, &found.slabs);
    let mut names = stamped.keys().chain(found.keys());
    let different = names.find(|name| match (stamped.get(*name), found.get(*name)) {
        (Some(stamp), Some(found)) if stamps.at_rest => stamp != found,
        (Some(stamp), Some(found)) => !stamp.may_become(*found, stamps.written),
        (Some(_), None) => true,
        (None, Some(found)) => stamps.at_rest || !Stamp::NOTHING.may_become(*found, stamps.written),
        (None, None) => false,
    });
    different.map(String::as_str)
}

/// `folded`: up to which log the metadata is in a snapshot.
fn different_log(stamps: &Stamps, found: Option<(u64, Stamp)>, folded: Option<u64>) -> Option<u64> {
    let (number, stamp) = stamps.files.log.filter(|(number, _)| Some(*number) > folded)?;
    let same = match found {
        Some((found, is)) if found == number && stamps.at_rest => is == stamp,
        Some((found, is)) if found == number => stamp.may_become(is, stamps.written) && is.bytes >= stamp.bytes,
        // Full, and followed by the next one.
        Some((found, _)) => !stamps.at_rest && found > number,
        None => false,
    };
    (!same).then_some(number)
}

fn files(store: &Path) -> io::Result<Files> {
    let mut slabs = BTreeMap::new();
    for entry in entries(&store.join("slabs"))? {
        let metadata = entry.metadata()?;
        if let Ok(name) = entry.file_name().into_string()
            && metadata.len() > 0
        {
            slabs.insert(name, Stamp::of(&metadata));
        }
    }
    for number in numbers(store, "log_")?.into_iter().rev() {
        match std::fs::metadata(store.join(log_name(number))) {
            Ok(metadata) if metadata.len() > 0 => {
                return Ok(Files { slabs, log: Some((number, Stamp::of(&metadata))) });
            }
            Ok(_) => {}
            // sled folds older ones into a snapshot whenever it likes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Files { slabs, log: None })
}

fn log_name(number: u64) -> String {
    format!("metadata/log_{number:016x}")
}

/// The numbers of the files of sled's metadata whose names begin with `prefix`.
pub(super) fn numbers(store: &Path, prefix: &str) -> io::Result<BTreeSet<u64>> {
    let names = entries(&store.join("metadata"))?.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok()).collect())
}

/// Those of a directory that may not be there yet.
fn entries(directory: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

fn read(store: &Path) -> io::Result<Option<Stamps>> {
    let path = store.join(NAME);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let written = std::fs::metadata(path)?.mtime();
    let (_, body) = framed::open(MAGIC, VERSION, &bytes).map_err(|error| invalid(format!("{NAME}: {error}")))?;
    let (stamps, _) = postcard::take_from_bytes::<Stamps>(body).map_err(|error| invalid(format!("{NAME}: {error}")))?;
    Ok(Some(Stamps { written, ..stamps }))
}

fn write(store: &Path, stamps: &Stamps) -> io::Result<()> {
    let mut body = postcard::to_stdvec(stamps).map_err(io::Error::other)?;
    let framed_bytes = (body.len() + framed::OVERHEAD_BYTES).next_multiple_of(BLOCK_BYTES);
    body.resize(framed_bytes - framed::OVERHEAD_BYTES, 0);
    let frame = framed::seal(MAGIC, VERSION, &body);
    let file = File::options().write(true).create(true).truncate(false).open(store.join(NAME))?;
    file.write_all_at(&frame, 0)?;
    file.set_len(frame.len() as u64)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, UNIX_EPOCH};

    use tempfile::TempDir;

    use super::*;

    const NOON: Duration = Duration::from_secs(1_000_000);

    fn write_at(path: &Path, bytes: usize, time: Duration) {
        std::fs::write(path, vec![1; bytes]).unwrap();
        set(path, time);
    }

    fn set(path: &Path, time: Duration) {
        File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH + time).unwrap();
    }

    /// A store with files of noon, stamped there in one way or the other.
    fn stamped(how: fn(&Path) -> io::Result<()>) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().to_owned();
        for folder in ["slabs", "metadata"] {
            std::fs::create_dir(store.join(folder)).unwrap();
        }
        for (name, bytes) in [
            ("slabs/64", 128),
            ("slabs/80", 160),
            ("slabs/96", 0),
            (log_name(7).as_str(), 50),
            (log_name(8).as_str(), 0),
        ] {
            write_at(&store.join(name), bytes, NOON);
        }
        how(&store).unwrap();
        set(&store.join(NAME), NOON);
        check(&store).unwrap();
        (dir, store)
    }

    #[test]
    fn at_rest_every_file_is_as_it_was_to_the_nanosecond() {
        let later = NOON + Duration::from_nanos(1);
        for (name, bytes, time) in [
            ("slabs/64", 128, later),
            ("slabs/64", 192, NOON),
            ("slabs/64", 0, NOON),
            ("slabs/96", 96, NOON),
            ("metadata/log_0000000000000007", 50, later),
            ("metadata/log_0000000000000007", 40, NOON),
            ("metadata/log_0000000000000007", 0, NOON),
            ("metadata/log_0000000000000008", 40, NOON),
        ] {
            let (_dir, store) = stamped(rest_synced);
            write_at(&store.join(name), bytes, time);
            let refused = check(&store).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{name} {bytes} {time:?}: {refused}");
        }
    }

    #[test]
    fn within_a_flush_files_grow_newer_and_none_is_older_or_from_another_day() {
        let (soon, long_after, before) = (Duration::from_secs(5), Duration::from_secs(100), Duration::from_secs(1));
        for (name, bytes, time, fine) in [
            ("slabs/64", 64, NOON + soon, true),
            ("slabs/64", 192, NOON, true),
            ("slabs/64", 128, NOON + long_after, false),
            ("slabs/64", 128, NOON - before, false),
            ("slabs/64", 0, NOON, false),
            ("slabs/96", 96, NOON + soon, true),
            ("slabs/96", 96, NOON + long_after, false),
            ("metadata/log_0000000000000007", 60, NOON + soon, true),
            ("metadata/log_0000000000000007", 40, NOON + soon, false),
            ("metadata/log_0000000000000007", 0, NOON + soon, false),
            ("metadata/log_0000000000000008", 40, NOON + soon, true),
        ] {
            let (_dir, store) = stamped(begin);
            write_at(&store.join(name), bytes, time);
            assert_eq!(check(&store).is_ok(), fine, "{name} {bytes} {time:?}");
        }
    }

    #[test]
    fn a_log_that_was_folded_into_a_snapshot_is_not_missed() {
        let (_dir, store) = stamped(rest);
        std::fs::remove_file(store.join(log_name(7))).unwrap();
        check(&store).unwrap_err();
        write_at(&store.join("metadata/snapshot_0000000000000006"), 10, NOON);
        check(&store).unwrap_err();
        write_at(&store.join("metadata/snapshot_0000000000000007"), 10, NOON);
        check(&store).unwrap();
    }

    #[test]
    fn every_flipped_bit_of_the_stamps_is_noticed_and_without_them_a_store_is_taken_as_it_is() {
        let (_dir, store) = stamped(rest);
        let path = store.join(NAME);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), BLOCK_BYTES);
        for bit in (0..bytes.len() * 8).step_by(97) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bad).unwrap();
            assert_eq!(check(&store).unwrap_err().kind(), io::ErrorKind::InvalidData, "bit {bit}");
        }
        std::fs::remove_file(path).unwrap();
        check(&store).unwrap();
    }
}
