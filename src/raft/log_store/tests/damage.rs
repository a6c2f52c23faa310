//! Real chunk files, cut, zeroed and flipped: what a crash leaves is repaired, anything else is refused and not touched.

use std::collections::BTreeMap;

use super::*;
use crate::raft::log_store::codec::RECORD_OVERHEAD_BYTES;

/// Entries of a log in several chunks, closed cleanly.
async fn written(count: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.save_vote(&vote(2)).await.unwrap();
    for index in 0..count {
        append(&mut store, [entry(2, index)]).await.unwrap();
    }
    dir
}

fn newest(dir: &TempDir) -> PathBuf {
    chunk_files(dir.path()).pop().unwrap()
}

/// As if what is cut off afterwards had never been synced.
fn forget_mark(dir: &TempDir) {
    std::fs::remove_file(dir.path().join("end")).unwrap();
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn contents(dir: &TempDir) -> BTreeMap<PathBuf, Vec<u8>> {
    chunk_files(dir.path()).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Opening is refused and leaves every byte as it was.
fn refused(dir: &TempDir) -> LogError {
    let before = contents(dir);
    let error = LogStore::open(dir.path(), small()).unwrap_err();
    assert_eq!(contents(dir), before, "files were changed although the log was refused: {error}");
    error
}

fn assert_damaged(dir: &TempDir, at: impl Into<Option<u64>>, why: &str) {
    match refused(dir) {
        LogError::Damaged { offset, reason, .. } | LogError::LostEnd(LostEnd { offset, reason, .. }) => {
            assert!(reason.contains(why), "{reason}");
            assert!(at.into().is_none_or(|at| at == offset), "damage was found at {offset}");
        }
        other => panic!("{other}"),
    }
}

/// Where the record of an entry begins in a chunk.
fn record_of(bytes: &[u8], index: u64) -> usize {
    let id = [2_u64, leader(2).node_id.get(), index].map(u64::to_be_bytes).concat();
    bytes.windows(24).position(|window| window == id).unwrap() - 4
}

/// Bytes of one entry's record.
fn record_bytes(index: u64) -> usize {
    let Payload::Normal(batch) = entry(2, index).payload else { unreachable!("entries of this test are normal") };
    usize::try_from(RECORD_OVERHEAD_BYTES).unwrap() + batch.len()
}

#[tokio::test]
async fn an_end_cut_anywhere_in_the_last_record_is_repaired() {
    let whole = written(5).await;
    let bytes = std::fs::read(newest(&whole)).unwrap();
    let last = record_of(&bytes, 4);
    assert_eq!(bytes.len(), last + record_bytes(4));
    for cut in
        [last + 1, last + 3, last + 4, last + 28, last + 30, last + 38, last + 60, bytes.len() - 8, bytes.len() - 1]
    {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(newest(&whole).file_name().unwrap()), &bytes[..cut]).unwrap();
        let mut store = open(dir.path());
        assert_eq!(all(&mut store).await, (0..4).map(|index| entry(2, index)).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(store.read_vote().await.unwrap(), Some(vote(2)));
        append(&mut store, [entry(2, 4)]).await.unwrap();
    }
}

#[tokio::test]
async fn an_end_of_zeros_is_repaired() {
    let whole = written(5).await;
    let bytes = std::fs::read(newest(&whole)).unwrap();
    let last = record_of(&bytes, 4);
    // From the start of the record, inside its head, inside its body; as long as the record, and longer.
    for (from, to) in [(last, bytes.len()), (last + 30, bytes.len()), (last + 60, bytes.len()), (last + 60, 4_096)] {
        let dir = tempfile::tempdir().unwrap();
        let mut zeroed = bytes[..from].to_vec();
        zeroed.resize(to, 0);
        std::fs::write(dir.path().join(newest(&whole).file_name().unwrap()), &zeroed).unwrap();
        assert_eq!(open(dir.path()).last(), Some(position(2, 3)), "zeros from {from} to {to}");
    }
}

#[tokio::test]
async fn a_rotation_that_was_not_finished_is_repaired() {
    let dir = written(40).await;
    let path = newest(&dir);
    assert!(chunk_files(dir.path()).len() > 2);
    let before = open(dir.path()).last();
    let start: u64 = {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        raft_log::chunked_wal::Config::parse_chunk_file_name(&name).unwrap()
    };
    let next = start + std::fs::metadata(&path).unwrap().len();
    let name = raft_log::chunked_wal::Config::chunk_file_name(next.into());
    // The next file was made, and its first record half written; the end of the older one did not get to the disk.
    std::fs::write(dir.path().join(name), [0, 0, 0, 5, 1, 1]).unwrap();
    forget_mark(&dir);
    edit(&path, |bytes| bytes.truncate(bytes.len() - 5));
    let mut store = open(dir.path());
    assert_eq!(store.last().unwrap().index.next(), before.unwrap().index);
    append(&mut store, [entry(2, 39)]).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_with_records_behind_it_is_damage() {
    let whole = written(6).await;
    let bytes = std::fs::read(newest(&whole)).unwrap();
    let record = record_of(&bytes, 2);
    // Every byte of the record: type, log id, head, body, checksum. That includes lengths that point beyond the file.
    for at in record..record + record_bytes(2) {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = bytes.clone();
        bad[at] ^= 0x80;
        std::fs::write(dir.path().join(newest(&whole).file_name().unwrap()), &bad).unwrap();
        assert_damaged(&dir, record as u64, "valid records follow");
    }
}

#[tokio::test]
async fn a_complete_last_record_that_is_bad_is_damage() {
    let dir = written(5).await;
    edit(&newest(&dir), |bytes| {
        let at = record_of(bytes, 4) + 60;
        bytes[at] ^= 1;
    });
    assert_damaged(&dir, None, "complete but bad");
}

#[tokio::test]
async fn a_damaged_older_chunk_is_damage() {
    for change in [(|bytes: &mut Vec<u8>| bytes[700] ^= 4) as fn(&mut Vec<u8>), |bytes| bytes.truncate(900)] {
        let dir = written(60).await;
        edit(&chunk_files(dir.path())[1], change);
        assert_damaged(&dir, None, "");
    }
}

#[tokio::test]
async fn missing_chunks_are_damage() {
    let in_the_middle = written(60).await;
    std::fs::remove_file(&chunk_files(in_the_middle.path())[1]).unwrap();
    assert_damaged(&in_the_middle, 0, "missing or too short");

    let at_the_start = written(60).await;
    std::fs::remove_file(&chunk_files(at_the_start.path())[0]).unwrap();
    assert_damaged(&at_the_start, 0, "entry 0 is missing");

    let dir = written(60).await;
    let mut files = chunk_files(dir.path());
    let only = files.pop().unwrap();
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    edit(&only, Vec::clear);
    forget_mark(&dir);
    assert_damaged(&dir, 0, "lost its contents");
}

#[tokio::test]
async fn a_newer_format_is_named() {
    for tail in [true, false] {
        let dir = written(60).await;
        let files = chunk_files(dir.path());
        let file = if tail { files.last() } else { files.first() }.unwrap();
        edit(file, |bytes| {
            let sum = |at: usize| crc32c::crc32c(&bytes[at..at + 6]).to_be_bytes();
            let head = (0..bytes.len() - 10).rfind(|at| sum(*at) == bytes[at + 6..at + 10]).unwrap();
            bytes[head] = 9;
            let sum = crc32c::crc32c(&bytes[head..head + 6]).to_be_bytes();
            bytes[head + 6..head + 10].copy_from_slice(&sum);
        });
        let error = refused(&dir);
        assert!(matches!(error, LogError::Newer { found: 9, newest: 2, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_log_inside_a_value_is_not_taken_for_the_log() {
    let inner = written(3).await;
    let value = std::fs::read(newest(&inner)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig::default();
    {
        let mut store = LogStore::open(dir.path(), config.clone()).unwrap();
        let batch = Bytes::from(value);
        append(&mut store, [Entry { log_id: id(1, 0), payload: Payload::Normal(batch.into()) }]).await.unwrap();
    }
    edit(&newest(&dir), |bytes| bytes.truncate(bytes.len() - 2));
    forget_mark(&dir);
    assert_eq!(LogStore::open(dir.path(), config).unwrap().last(), None);
}

/// Takes away what begins at the last record.
type Cut = fn(&TempDir, usize);

/// Takes away all.
type Loss = fn(&TempDir);

/// What was synced is missing at the end: at the boundary of a record, inside of one, as zeros, or as whole chunks. The log
/// looks like a shorter one, which the mark alone can tell it from.
#[tokio::test]
async fn an_end_that_was_synced_and_is_gone_is_damage() {
    let last = |bytes: &[u8]| record_of(bytes, 59);
    let cuts: [(&str, Cut); 5] = [
        ("at a record", |dir, last| edit(&newest(dir), |bytes| bytes.truncate(last))),
        ("inside a record", |dir, last| edit(&newest(dir), |bytes| bytes.truncate(last + 30))),
        ("zeros", |dir, last| edit(&newest(dir), |bytes| bytes[last..].fill(0))),
        ("a chunk", |dir, _| std::fs::remove_file(newest(dir)).unwrap()),
        ("all chunks", |dir, _| chunk_files(dir.path()).iter().for_each(|file| std::fs::remove_file(file).unwrap())),
    ];
    for (what, cut) in cuts {
        let dir = written(60).await;
        assert_eq!(open(dir.path()).last(), Some(position(2, 59)), "a whole log is opened");
        cut(&dir, last(&std::fs::read(newest(&dir)).unwrap()));
        assert_damaged(&dir, None, "that were on the disk behind it are gone");
        forget_mark(&dir);
        assert!(open(dir.path()).last() < Some(position(2, 59)), "{what}: only the mark has told");
    }
}

/// Where a chunk file stands in the stream of all chunks.
fn start_of(path: &Path) -> u64 {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    raft_log::chunked_wal::Config::parse_chunk_file_name(&name).unwrap()
}

/// It is read for a recovery, any number of times, and told what is missing; but no node ever gets to vote with it.
#[tokio::test]
async fn the_rest_of_a_log_that_lost_its_end_can_be_read_and_stays_refused() {
    let cuts: [(&str, Cut); 5] = [
        ("at a record", |dir, last| edit(&newest(dir), |bytes| bytes.truncate(last))),
        ("inside a record", |dir, last| edit(&newest(dir), |bytes| bytes.truncate(last + 30))),
        ("zeros", |dir, last| edit(&newest(dir), |bytes| bytes[last..].fill(0))),
        ("complete but bad", |dir, last| edit(&newest(dir), |bytes| bytes[last + 60] ^= 1)),
        ("a chunk", |dir, _| std::fs::remove_file(newest(dir)).unwrap()),
    ];
    for (what, cut) in cuts {
        let dir = written(60).await;
        let (path, end) = (newest(&dir), EndMark::read(dir.path()));
        let bytes = std::fs::read(&path).unwrap();
        let last = record_of(&bytes, 59);
        assert_eq!(end, start_of(&path) + bytes.len() as u64);
        cut(&dir, last);
        let (left, before) = (newest(&dir), contents(&dir));
        for look in 1..=2 {
            let (mut rest, lost) = LogStore::open_rest(dir.path(), small()).unwrap();
            let lost = lost.unwrap();
            assert_eq!((&lost.file, start_of(&left) + lost.offset + lost.missing_bytes), (&left, end), "{what} {look}");
            assert!(left != path || lost.offset == last as u64, "{what} {look}: {lost:?}");
            let entries = all(&mut rest).await;
            assert!(entries.len() == 59 || left != path && entries.len() < 59, "{what} {look}: {}", entries.len());
            assert_eq!(entries, (0..entries.len() as u64).map(|index| entry(2, index)).collect::<Vec<_>>());
            drop(rest);
            assert!(matches!(refused(&dir), LogError::LostEnd(again) if again.missing_bytes == lost.missing_bytes));
        }
        // No byte is lost over it.
        let kept = std::fs::read(left.with_extension("lost-end")).unwrap_or_default();
        assert_eq!([std::fs::read(&left).unwrap(), kept].concat(), before[&left], "{what}");
    }
}

#[tokio::test]
async fn the_rest_of_a_log_with_other_damage_than_at_its_end_is_refused() {
    let losses: [(&str, Loss); 6] = [
        ("an older chunk", |dir| edit(&chunk_files(dir.path())[1], |bytes| bytes[700] ^= 4)),
        ("a hole", |dir| std::fs::remove_file(&chunk_files(dir.path())[1]).unwrap()),
        ("a hole before the newest", |dir| {
            let files = chunk_files(dir.path());
            std::fs::remove_file(&files[files.len() - 2]).unwrap();
        }),
        ("a file of something else", |dir| edit(&newest(dir), |bytes| bytes.fill(0xA5))),
        ("a chunk of another place", |dir| {
            std::fs::copy(&chunk_files(dir.path())[0], newest(dir)).unwrap();
        }),
        ("everything", |dir| chunk_files(dir.path()).iter().for_each(|file| std::fs::remove_file(file).unwrap())),
    ];
    let refuses = |dir: &TempDir, what: &str| {
        let before = contents(dir);
        let error = LogStore::open_rest(dir.path(), small()).unwrap_err();
        assert!(matches!(error, LogError::Damaged { .. }), "{what}: {error}");
        assert_eq!(contents(dir), before, "{what}: files were changed although the log was refused");
    };
    for (what, lose) in losses {
        let dir = written(60).await;
        edit(&newest(&dir), |bytes| bytes.truncate(record_of(bytes, 59) + 30));
        lose(&dir);
        refuses(&dir, what);
    }
    let dir = written(6).await;
    edit(&newest(&dir), |bytes| {
        bytes.truncate(record_of(bytes, 5));
        let middle = record_of(bytes, 2) + 60;
        bytes[middle] ^= 1;
    });
    refuses(&dir, "a record in the middle of the newest chunk");
    // Nothing would tell the next start that it was there.
    let dir = written(6).await;
    edit(&newest(&dir), |bytes| {
        let last = record_of(bytes, 5) + 60;
        bytes[last] ^= 1;
    });
    forget_mark(&dir);
    refuses(&dir, "a bad last record without a mark");
}

#[tokio::test]
async fn a_vote_that_was_synced_and_is_gone_is_damage() {
    let dir = written(5).await;
    let before = std::fs::read(newest(&dir)).unwrap();
    open(dir.path()).save_vote(&vote(3)).await.unwrap();
    std::fs::write(newest(&dir), before).unwrap();
    assert_damaged(&dir, None, "that were on the disk behind it are gone");
}

/// Refused once, a node may be started again by whoever watches over it: it must not find a log then that the first start made.
#[tokio::test]
async fn a_log_of_which_nothing_is_left_is_refused_again_and_again() {
    let losses: [(&str, Loss); 4] = [
        ("torn in its first record", |dir| edit(&newest(dir), |bytes| bytes.truncate(3))),
        ("empty", |dir| edit(&newest(dir), Vec::clear)),
        ("without chunks", |dir| std::fs::remove_file(newest(dir)).unwrap()),
        ("without a directory", |dir| std::fs::remove_dir_all(dir.path()).unwrap()),
    ];
    for (what, lose) in losses {
        for damaged_mark in [false, true] {
            let dir = written(1).await;
            assert_eq!(chunk_files(dir.path()).len(), 1);
            if damaged_mark {
                edit(&dir.path().join("end"), |bytes| bytes[6] ^= 1);
            } else {
                forget_mark(&dir);
            }
            lose(&dir);
            let before = dir.path().exists().then(|| contents(&dir));
            for start in 1..=2 {
                let error = LogStore::open_existing(dir.path(), small()).unwrap_err().to_string();
                assert!(error.contains("nothing is left of what it held"), "{what}, start {start}: {error}");
                assert_eq!(dir.path().exists().then(|| contents(&dir)), before, "{what}, start {start}");
            }
        }
    }
}

/// The mark of a log that was found whole is written at once, not with the next append.
#[tokio::test]
async fn a_log_without_a_mark_has_one_once_it_was_opened() {
    let dir = written(5).await;
    forget_mark(&dir);
    drop(open(dir.path()));
    edit(&newest(&dir), |bytes| bytes.truncate(record_of(bytes, 4)));
    assert_damaged(&dir, None, "that were on the disk behind it are gone");
}

/// The mark is a hint: a node whose log is whole starts without it.
#[tokio::test]
async fn a_mark_that_cant_be_read_or_written_keeps_no_whole_log_from_opening() {
    let dir = written(5).await;
    forget_mark(&dir);
    std::fs::create_dir(dir.path().join("end")).unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(2, 5)]).await.unwrap();
    assert_eq!(store.last(), Some(position(2, 5)));
}
