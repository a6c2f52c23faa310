//! The engines against the contract: the conformance suite on both, random histories against a model, and what belongs to
//! one engine only.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate::storage::conformance::{self, Medium};
use quorate::storage::{Engine, Error, FaultPoint, MemoryEngine, Order, Scan, SledConfig, SledEngine, Write};
use tempfile::TempDir;

/// A directory that goes away with the test, and how it is opened.
struct Directory(TempDir, SledConfig);

impl Directory {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"), SledConfig::default())
    }

    /// With so little memory that leaves are evicted all the time and every flush reopens the store.
    fn starved() -> Self {
        Self(Self::new().0, SledConfig { cache_bytes: 1, pinned_bytes: 0, ..SledConfig::default() })
    }
}

impl Medium for Directory {
    type Engine = SledEngine;

    fn open(&self) -> Result<SledEngine, Error> {
        SledEngine::open(&self.0.path().join("state"), &self.1)
    }
}

/// A disk in memory that outlives its engine handles.
struct Disk(MemoryEngine);

impl Medium for Disk {
    type Engine = MemoryEngine;

    fn open(&self) -> Result<MemoryEngine, Error> {
        Ok(self.0.clone())
    }
}

#[test]
fn sled_conforms() {
    conformance::check(Directory::new);
}

#[test]
fn sled_conforms_while_it_is_evicted_and_reopened() {
    conformance::check(Directory::starved);
}

#[test]
fn memory_conforms() {
    conformance::check(|| Disk(MemoryEngine::new()));
}

const ENDLESS: usize = usize::MAX;

fn put(name: &'static str) -> Write {
    Write::Put(Bytes::from_static(name.as_bytes()), Bytes::from_static(b"x"))
}

fn names(engine: &impl Engine) -> Vec<String> {
    let scan = Scan {
        start: Bound::Unbounded,
        end: Bound::Unbounded,
        order: Order::Ascending,
        limit: ENDLESS,
        bytes_max: ENDLESS,
    };
    let pairs = engine.scan(scan).expect("scan");
    pairs.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
}

#[test]
fn a_crash_keeps_what_was_flushed_and_a_prefix_of_the_rest() {
    for (keep, expected) in [(0, vec!["a"]), (1, vec!["a", "b"]), (2, vec!["a", "b", "c"]), (9, vec!["a", "b", "c"])] {
        let disk = MemoryEngine::new();
        disk.commit(vec![put("a")]).expect("commit");
        disk.flush().expect("flush");
        disk.commit(vec![put("b")]).expect("commit");
        disk.commit(vec![put("c")]).expect("commit");
        assert_eq!(disk.unflushed(), 2);
        assert_eq!(disk.crash(keep), keep.min(2));
        assert_eq!(names(&disk), expected, "kept {keep}");
        assert_eq!(disk.unflushed(), 0);
    }
}

#[test]
fn a_failed_commit_applies_nothing_and_stays_failed_until_the_crash() {
    let disk = MemoryEngine::new();
    disk.fail(FaultPoint::Commit, 2);
    disk.commit(vec![put("a")]).expect("the first call is before the fault");
    assert!(matches!(disk.commit(vec![put("b")]), Err(Error::Io { .. })));
    assert!(matches!(disk.commit(vec![put("c")]), Err(Error::Io { .. })));
    assert!(matches!(disk.flush(), Err(Error::Io { .. })));
    disk.crash(ENDLESS);
    assert_eq!(names(&disk), ["a"]);
}

#[test]
fn a_failed_flush_makes_nothing_durable_and_stays_failed_until_the_crash() {
    let disk = MemoryEngine::new();
    disk.commit(vec![put("a")]).expect("commit");
    disk.fail(FaultPoint::Flush, 1);
    assert!(matches!(disk.flush(), Err(Error::Io { .. })));
    assert!(matches!(disk.flush(), Err(Error::Io { .. })));
    assert!(matches!(disk.get(b"a"), Err(Error::Io { .. })), "memory may not be believed any more");
    assert_eq!(disk.crash(0), 0);
    assert_eq!(disk.get(b"a").expect("get"), None);
    disk.flush().expect("flush");
}

#[test]
fn a_failed_read_fails_once() {
    let disk = MemoryEngine::new();
    disk.fail(FaultPoint::Read, 2);
    disk.get(b"a").expect("the first call is before the fault");
    assert!(matches!(disk.get(b"a"), Err(Error::Io { .. })));
    disk.get(b"a").expect("the fault has struck");
}

#[test]
fn a_directory_held_by_another_engine_is_in_use() {
    let directory = Directory::new();
    let engine = directory.open().expect("open");
    let impatient = SledConfig { lock_timeout: Duration::from_millis(100), ..SledConfig::default() };
    let refused = SledEngine::open(&directory.0.path().join("state"), &impatient);
    assert!(matches!(refused, Err(Error::InUse(_))), "{refused:?}");
    drop(engine);
    directory.open().expect("the directory is free again");
}

#[test]
fn threads_that_come_and_go_share_one_engine() {
    let directory = Directory::new();
    let engine = directory.open().expect("open");
    for round in 0..8_u8 {
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let engine = &engine;
                scope.spawn(move || {
                    let key = Bytes::from(vec![round, thread]);
                    engine.commit(vec![Write::Put(key.clone(), key.clone())]).expect("commit");
                    assert_eq!(engine.get(&key).expect("get"), Some(key));
                });
            }
        });
    }
    assert_eq!(names(&engine).len(), 32);
}

/// The files of a store, smallest first, each with its path below the directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn modified(file: &Path) -> SystemTime {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).expect("a time")
}

/// Gives a file these bytes and this time.
fn replace(file: &Path, bytes: &[u8], modified: SystemTime) {
    std::fs::write(file, bytes).expect("write");
    File::options().write(true).open(file).and_then(|file| file.set_modified(modified)).expect("set the time");
}

/// Copies a store as a careful tool does: with the times of its files.
fn copy_store(from: &Path, to: &Path) {
    for source in files(from) {
        let path = to.join(source.strip_prefix(from).expect("below the root"));
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("create");
        replace(&path, &std::fs::read(&source).expect("read"), modified(&source));
    }
}

#[test]
fn a_damaged_store_is_refused_or_an_older_one_but_never_wrong() {
    let pristine = Directory::new();
    let engine = pristine.open().expect("open");
    for number in 0..1_000_u32 {
        let key = Bytes::from(format!("key-{number:05}"));
        engine.commit(vec![Write::Put(key.clone(), key)]).expect("commit");
    }
    drop(engine);
    let root = pristine.0.path().join("state");
    for file in files(&root) {
        let original = std::fs::read(&file).expect("read");
        if original.is_empty() {
            continue;
        }
        let mut flipped = original.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        for damaged in [original[..original.len() / 2].to_vec(), flipped] {
            let copy = Directory::new();
            let target = copy.0.path().join("state");
            copy_store(&root, &target);
            // Bytes that rot leave the time as it is.
            replace(&target.join(file.strip_prefix(&root).expect("below the root")), &damaged, modified(&file));
            let verify = SledConfig { verify: true, ..SledConfig::default() };
            let engine = match SledEngine::open(&target, &verify) {
                Ok(engine) => engine,
                Err(Error::Damaged(_)) => continue,
                Err(other) => panic!("{} is damaged: {other}", file.display()),
            };
            // What damage cuts off sled's own log opens as an older store; what is there must be right.
            for number in 0..1_000_u32 {
                let key = Bytes::from(format!("key-{number:05}"));
                let value = engine.get(&key).expect("a verified store can be read");
                assert!(value.is_none_or(|value| value == key), "wrong data from {}", file.display());
            }
        }
    }
}

/// The files of sled's metadata whose names begin with `prefix`.
fn metadata_files(directory: &Directory, prefix: &str) -> Vec<PathBuf> {
    let mut found = files(&directory.0.path().join("state/metadata"));
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found
}

#[test]
fn a_store_killed_before_it_made_its_next_log_keeps_everything() {
    let directory = Directory::new();
    for number in 0..5 {
        let engine = directory.open().expect("open");
        assert_eq!(names(&engine).len(), number * 200, "opening {number}");
        let batch = (0..200).map(|part| Write::Put(format!("{number}-{part:03}").into(), Bytes::from(vec![b'x'; 40])));
        engine.commit(batch.collect()).expect("commit");
        drop(engine);
        // The next opening moves the log into a snapshot and makes an empty log; then comes the kill.
        drop(directory.open().expect("open"));
        let logs = metadata_files(&directory, "log_");
        assert!(!logs.is_empty());
        for log in logs {
            assert_eq!(std::fs::metadata(&log).expect("a log").len(), 0);
            std::fs::remove_file(log).expect("remove");
        }
    }
}

#[test]
fn a_store_without_its_metadata_snapshot_is_damaged() {
    let directory = Directory::new();
    let engine = directory.open().expect("open");
    engine.commit(vec![put("a")]).expect("commit");
    drop(engine);
    for snapshot in metadata_files(&directory, "snapshot_") {
        std::fs::remove_file(snapshot).expect("remove");
    }
    let refused = directory.open();
    assert!(matches!(refused, Err(Error::Damaged(_))), "{refused:?}");
}

/// Overwrites rows of one size, so that their leaves take turns in the same slots, a flush every few.
fn overwrite(engine: &SledEngine, rounds: std::ops::Range<usize>) {
    for round in rounds {
        let row = |at: usize| {
            Write::Put(format!("row {:03}", (at * 7 + round * 31) % 400).into(), noise(at + round, 24).into())
        };
        engine.commit((0..40).map(row).collect()).expect("commit");
        engine.flush().expect("flush");
    }
}

/// A store of which a copy was made, and which was then written to and closed: the copy, and it.
fn earlier_and_now() -> (Directory, Directory) {
    let (earlier, now) = (Directory::new(), Directory::new());
    let engine = now.open().expect("open");
    overwrite(&engine, 0..20);
    // The metadata log goes on in the same file only while the store is open.
    copy_store(&now.0.path().join("state"), &earlier.0.path().join("state"));
    overwrite(&engine, 20..40);
    drop(engine);
    (earlier, now)
}

#[test]
fn an_earlier_copy_of_one_file_of_a_store_is_noticed_before_it_is_read() {
    let (earlier, now) = earlier_and_now();
    let (earlier, now) = (earlier.0.path().join("state"), now.0.path().join("state"));
    let mut kinds = BTreeMap::new();
    for file in files(&now) {
        let name = file.strip_prefix(&now).expect("below the root");
        let Ok(old) = std::fs::read(earlier.join(name)) else { continue };
        if old == std::fs::read(&file).expect("read") {
            continue;
        }
        *kinds.entry(name.parent().expect("a folder").to_owned()).or_insert(0) += 1;
        // Put back with the time that it had, or as a new file.
        for time in [modified(&earlier.join(name)), SystemTime::now()] {
            let damaged = Directory::new();
            let target = damaged.0.path().join("state");
            copy_store(&now, &target);
            replace(&target.join(name), &old, time);
            let refused = damaged.open();
            assert!(matches!(refused, Err(Error::Damaged(_))), "{}: {refused:?}", name.display());
        }
    }
    assert!(kinds[Path::new("slabs")] > 0 && kinds[Path::new("metadata")] > 0 && kinds[Path::new("")] > 0, "{kinds:?}");
}

#[test]
fn a_store_that_was_copied_with_its_times_or_has_no_stamps_yet_opens() {
    let (earlier, now) = earlier_and_now();
    // As a kill between two flushes leaves it; as it was closed; as an older program closed it.
    for (from, stamped) in [(&earlier, true), (&now, true), (&now, false)] {
        let copy = Directory::new();
        let (from, to) = (from.0.path().join("state"), copy.0.path().join("state"));
        copy_store(&from, &to);
        if !stamped {
            std::fs::remove_file(to.join("stamps")).expect("remove");
        }
        let engine = copy.open().expect("open");
        assert!(names(&engine).len() > 300);
        overwrite(&engine, 40..42);
        drop(engine);
        drop(copy.open().expect("open again"));
    }
}

/// Tells the test below that it is the process that is to hang.
const ENDLESS_VARIABLE: &str = "QUORATE_STORAGE_ENDLESS";

/// Puts all leaves of an earlier day back into a store that has no stamps, and reads it.
#[expect(clippy::exit, reason = "the thread that reads never ends")]
fn read_what_is_endless() {
    let (earlier, now) = earlier_and_now();
    let (earlier, now) = (earlier.0.path().join("state"), now.0.path().join("state"));
    for file in files(&earlier.join("slabs")) {
        let target = now.join(file.strip_prefix(&earlier).expect("below the root"));
        let (mut old, new) = (std::fs::read(&file).expect("read"), std::fs::read(&target).expect("read"));
        // A slot that is missing would be an error, and not what this is about.
        old.extend_from_slice(&new[old.len().min(new.len())..]);
        std::fs::write(&target, old).expect("write");
    }
    std::fs::remove_file(now.join("stamps")).expect("remove");
    let config = SledConfig {
        endless_after: Duration::from_millis(300),
        on_endless: |_, error| {
            println!("told: {error}");
            std::process::exit(i32::from(!matches!(error, Error::Damaged(_))));
        },
        ..SledConfig::default()
    };
    let mut engine = SledEngine::open(&now, &config).expect("nothing to notice yet");
    for row in 0..400 {
        if engine.get(format!("row {row:03}").as_bytes()).is_err() {
            drop(engine);
            engine = SledEngine::open(&now, &config).expect("nothing to notice yet");
        }
    }
    panic!("everything was read");
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_that_never_comes_back_is_told_as_damage() {
    if std::env::var_os(ENDLESS_VARIABLE).is_some() {
        read_what_is_endless();
    }
    let child = std::process::Command::new(std::env::current_exe().expect("the path of this test"))
        .args(["--exact", "a_read_that_never_comes_back_is_told_as_damage", "--nocapture"])
        .env(ENDLESS_VARIABLE, "1")
        .output()
        .expect("run the child");
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && told.contains("does not come back"), "{told} {child:?}");
}

/// A step of a random history. Keys are drawn from few, so that histories meet themselves.
#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u16, Option<u8>)>),
    Flush,
    Reopen,
    Scan { start: u16, end: u16, descending: bool, limit: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..600_u16, prop::option::weighted(0.6, any::<u8>()));
    prop_oneof![
        8 => vec(write, 0..200).prop_map(Step::Commit),
        3 => (0..600_u16, 0..600_u16, any::<bool>(), 0..50_usize)
            .prop_map(|(start, end, descending, limit)| Step::Scan { start, end, descending, limit }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// Runs a history on the engine and on a `BTreeMap`, comparing all along.
fn replay<M: Medium>(medium: &M, history: Vec<Step>) {
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut engine = Some(medium.open().expect("open"));
    let key_of = |number: u16| Bytes::from(format!("key-{number:04}"));
    for step in history {
        let open = engine.as_ref().expect("open between steps");
        match step {
            Step::Commit(writes) => {
                let mut batch = Vec::new();
                for (number, value) in writes {
                    let key = key_of(number);
                    match value {
                        Some(value) => {
                            // Lengths on both sides of sled's inline and small representations.
                            let value = Bytes::from(std::vec![value; usize::from(value) * 2]);
                            model.insert(key.clone(), value.clone());
                            batch.push(Write::Put(key, value));
                        }
                        None => {
                            model.remove(&key);
                            batch.push(Write::Delete(key));
                        }
                    }
                }
                open.commit(batch).expect("commit");
            }
            Step::Flush => open.flush().expect("flush"),
            Step::Reopen => {
                drop(engine.take());
                engine = Some(medium.open().expect("reopen"));
            }
            Step::Scan { start, end, descending, limit } => {
                let (start, end) = (key_of(start), key_of(end));
                let order = if descending { Order::Descending } else { Order::Ascending };
                let bounds = (Bound::Excluded(&start[..]), Bound::Included(&end[..]));
                let found =
                    open.scan(Scan { start: bounds.0, end: bounds.1, order, limit, bytes_max: ENDLESS }).expect("scan");
                let inside = model.iter().filter(|(key, _)| **key > start && **key <= end);
                let pairs = inside.map(|(key, value)| (key.clone(), value.clone()));
                let expected: Vec<_> =
                    if descending { pairs.rev().take(limit).collect() } else { pairs.take(limit).collect() };
                assert_eq!(found, expected);
            }
        }
    }
    let engine = engine.expect("open behind the last step");
    for number in 0..600 {
        assert_eq!(engine.get(&key_of(number)).expect("get"), model.get(&key_of(number)).cloned());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sled_behaves_like_a_sorted_map(history in vec(step(), 1..40)) {
        replay(&Directory::new(), history);
    }

    #[test]
    fn memory_behaves_like_a_sorted_map(history in vec(step(), 1..40)) {
        replay(&Disk(MemoryEngine::new()), history);
    }
}

/// Bytes that don't compress, the same in each run.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed as u64 + 1);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[test]
fn a_leaf_that_sled_cuts_is_noticed_by_the_flush_that_wrote_it() {
    let directory = Directory::new();
    let engine = directory.open().unwrap();
    let row = |at: usize, len: usize| Write::Put(format!("row {at}").into(), noise(at, len).into());
    // Few rows that don't compress: a byte more in one of them is a byte more of the leaf.
    engine.commit((0..4).map(|at| row(at, 15_000)).collect()).unwrap();
    let cut = (5_000..5_600).find_map(|len| {
        engine.commit(vec![row(4, len)]).unwrap();
        engine.flush().err()
    });
    let error = cut.expect("no length of the last row made a leaf that sled cuts");
    assert!(matches!(&error, Error::Damaged(text) if text.contains("has cut a leaf")), "{error}");
}
