//! What is restored from an archive, at any point, is what the cluster had; and what is wrong with an archive is told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::backup::catalogue::Catalogue;
use crate::backup::layout::Kind;
use crate::backup::plan::{self, PlanError};
use crate::backup::repository::Repository;
use crate::backup::seal::{Identities, Recipients};
use crate::backup::stage::{Progress, Stage, StageError, Staged};
use crate::backup::tests::history::{CLUSTER, Does, History, entries, put, repository};
use crate::state::Txn;
use crate::storage::{FaultPoint, MemoryEngine};
use crate::types::LogIndex;

/// Brings what a point needs into a folder.
async fn stage(
    repository: &Repository,
    catalogue: &Catalogue,
    target: Target,
    keys: &Identities,
) -> Result<(TempDir, Staged), StageError> {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan::plan(catalogue, target).unwrap();
    let staged = Stage::open(folder.path())?.fill(repository, &plan, keys, |_| ()).await?;
    Ok((folder, staged))
}

fn build(staged: &Staged, target: Target) -> Result<(StateMachine, Reached), RebuildError> {
    // So little memory that the engine is used, too.
    let config = StateConfig { overlay_bytes_soft: 2_000, overlay_bytes_hard: 8_000, cache_bytes: 0 };
    let (mut machine, _) = load(Arc::new(MemoryEngine::new()), config, staged.cluster, &staged.snapshot, None)?;
    let reached = replay(&mut machine, staged.steps(), target, |_| ())?;
    assert_eq!((machine.applied().revision, machine.applied().hash), (reached.revision, reached.hash));
    Ok((machine, reached))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Pieces of a log that ends at `last`: cut where `cuts` says so, some with the state behind them, some once more as part
/// of a larger one.
fn pieces(first: u64, last: u64, cuts: &[(bool, bool, bool)]) -> Vec<(u64, u64, bool)> {
    let (mut out, mut begin) = (Vec::new(), first);
    for index in first..=last {
        let (cut, marked, again) = cuts[usize::try_from(index).unwrap() % cuts.len()];
        if cut || index == last {
            out.push((begin, index, marked));
            if again && begin > first {
                out.push((begin - 1, index, !marked));
            }
            begin = index + 1;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_restored_at_any_point_is_what_the_cluster_had(
        entries in entries(40),
        cuts in prop::collection::vec(any::<(bool, bool, bool)>(), 1..12),
        fulls in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 6),
        encrypted in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let fulls: Vec<u64> = fulls.iter().map(|at| at.index(entries.len() + 1) as u64).collect();
        let history = History::new(folder.path(), &entries, &fulls);
        let begin = *fulls.iter().min().unwrap();
        let (keys, public) = Identities::generate();
        let recipients = Recipients::parse(if encrypted { std::slice::from_ref(&public) } else { &[] }).unwrap();
        runtime().block_on(async {
            let repository = repository();
            let catalogue = history.archive(&repository, &pieces(begin, history.last(), &cuts), &recipients).await;
            let pick = |at: usize, of: std::ops::RangeInclusive<u64>| {
                of.start() + picks[at].index(usize::try_from(of.end() - of.start() + 1).unwrap()) as u64
            };
            let least = history.mark(begin).revision.get();
            let times: Vec<u64> = history.commands.iter().map(|(at, _)| at.get()).collect();
            let mut targets = vec![
                Target::Latest,
                Target::Index(LogIndex::new(pick(0, begin..=history.last()))),
                Target::Index(LogIndex::new(begin)),
                Target::Revision(Revision::new(pick(1, least..=history.mark(history.last()).revision.get()))),
                Target::Revision(Revision::new(pick(2, least..=history.mark(history.last()).revision.get()))),
            ];
            if !times.is_empty() {
                targets.extend([3, 4, 5].map(|at| Target::Time(WallTime::new(times[picks[at].index(times.len())]))));
            }
            for target in targets {
                // A time before the first snapshot can't be restored, or one behind the last command, which a clock that
                // went back has set earlier than others; whether it is one, the plan tells.
                let planned = plan::plan(&catalogue, target);
                let is_outside = matches!(planned, Err(PlanError::Outside { .. } | PlanError::Beyond { .. }));
                if matches!(target, Target::Time(_)) && is_outside {
                    continue;
                }
                let (_folder, staged) = stage(&repository, &catalogue, target, &keys).await.unwrap();
                let (_, reached) = build(&staged, target).unwrap();
                let expected = history.state_at(target);
                // A snapshot may hold what a leader's clock, which went back, put behind the time.
                let snapshot = history.mark(planned.as_ref().unwrap().full.last.index);
                if matches!(target, Target::Time(_)) && expected.is_some_and(|(revision, _)| revision < snapshot.revision) {
                    continue;
                }
                assert_eq!(Some((reached.revision, reached.hash)), expected, "{target}");
                let planned = planned.unwrap();
                let is_time = matches!(target, Target::Time(_));
                assert!(reached.position.index.get() <= *planned.index.end(), "{target}: {planned:?} {reached:?}");
                if !is_time {
                    assert!(planned.index.contains(&reached.position.index.get()), "{target}: {planned:?} {reached:?}");
                    assert!(planned.revision_min <= reached.revision, "{target}: {planned:?} {reached:?}");
                }
                assert!(planned.revision_max.is_none_or(|most| reached.revision <= most), "{target}: {planned:?}");
                assert!(planned.revision_archived_max >= history.mark(history.last()).revision);
            }
        });
    }
}

/// Twenty entries of three puts each, with a leader's clock that goes on by 10 ms a put.
fn regular() -> Vec<Does> {
    let one = |name: u8, value: u8| (10, Txn { success: vec![put(name, value)], ..Txn::default() });
    (0..20).map(|entry| Does::Commands(vec![one(1, entry), one(2, entry), one(3, entry)])).collect()
}

/// An archive of them: a snapshot behind entry 2, pieces of five entries, the state at their ends.
async fn archived(folder: &std::path::Path, recipients: &Recipients) -> (Repository, History, Catalogue) {
    let history = History::new(folder, &regular(), &[2]);
    let repository = repository();
    let pieces = [(1, 5, true), (6, 10, true), (11, 15, true), (16, 20, true)];
    let catalogue = history.archive(&repository, &pieces, recipients).await;
    (repository, history, catalogue)
}

#[tokio::test]
async fn a_revision_in_the_middle_of_an_entry_takes_the_commands_up_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, history, catalogue) = archived(folder.path(), &Recipients::default()).await;
    // Entry 7 makes revisions 19 to 21.
    let target = Target::Revision(Revision::new(20));
    let (_folder, staged) = stage(&repository, &catalogue, target, &Identities::default()).await.unwrap();
    let (_, reached) = build(&staged, target).unwrap();
    assert_eq!((reached.position, reached.left_out), (history.position(7), 1));
    assert_eq!((reached.entries, reached.commands, reached.compared), (5, 14, 2));
    assert_eq!(Some((reached.revision, reached.hash)), history.state_at(target));
    assert_eq!(reached.last_command_at, Some(WallTime::new(1_000_200)));
    // And so does a time.
    let target = Target::Time(WallTime::new(1_000_205));
    let (_folder, staged) = stage(&repository, &catalogue, target, &Identities::default()).await.unwrap();
    assert_eq!(build(&staged, target).unwrap().1, reached);
}

#[tokio::test]
async fn a_restore_that_was_cut_short_fetches_only_what_is_not_there_or_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, history, catalogue) = archived(folder.path(), &Recipients::default()).await;
    let plan = plan::plan(&catalogue, Target::Latest).unwrap();
    let stage = Stage::open(&folder.path().join("stage")).unwrap();
    let fetched = async || {
        let kept = std::cell::Cell::new(0);
        let seen = |progress| kept.set(kept.get() + usize::from(matches!(progress, Progress::Kept(_))));
        let staged = stage.fill(&repository, &plan, &Identities::default(), seen).await.unwrap();
        (kept.get(), staged)
    };
    assert_eq!(fetched().await.0, 0);
    let names = || {
        let entries = std::fs::read_dir(folder.path().join("stage")).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let files = names();
    assert_eq!(files.len(), 5);
    for (at, file) in files.iter().enumerate().take(4) {
        let whole = std::fs::read(file).unwrap();
        match at {
            // Never came, only half of it came, and something else was there.
            0 => std::fs::remove_file(file).unwrap(),
            1 => std::fs::write(file, &whole[..whole.len() / 2]).unwrap(),
            2 => std::fs::rename(file, file.with_extension("log.part")).unwrap(),
            _ => {
                let mut bad = whole;
                let middle = bad.len() / 2;
                bad[middle] ^= 4;
                std::fs::write(file, bad).unwrap();
            }
        }
    }
    std::fs::write(folder.path().join("stage/of-another-plan.log"), "x").unwrap();
    let (kept, staged) = fetched().await;
    assert_eq!((kept, names()), (1, files));
    let (_, reached) = build(&staged, Target::Latest).unwrap();
    assert_eq!((reached.revision, reached.hash), history.state_at(Target::Latest).unwrap());
}

/// What a restore to the end fails with.
async fn failure(repository: &Repository, catalogue: &Catalogue, keys: &Identities) -> String {
    match stage(repository, catalogue, Target::Latest, keys).await {
        Ok((_folder, staged)) => build(&staged, Target::Latest).map(|(_, reached)| reached).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

/// What is done to the bytes of an object; one without any is removed.
type Damage = fn(&mut Vec<u8>);

#[tokio::test]
async fn what_is_wrong_with_an_archive_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (key, public) = Identities::generate();
    let recipients = Recipients::parse(&[public]).unwrap();
    for kind in [Kind::Full, Kind::Log] {
        let damages: [(&str, Damage); 3] = [
            ("damaged", |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }),
            ("bytes, not", |bytes| bytes.truncate(bytes.len() - 1)),
            ("is missing", Vec::clear),
        ];
        for (says, damage) in damages {
            let (repository, _, catalogue) = archived(folder.path(), &recipients).await;
            let name = catalogue.objects().filter(|object| object.kind == kind).last().unwrap().name.clone();
            let mut bytes = repository.get(&name, 1 << 20).await.unwrap().to_vec();
            damage(&mut bytes);
            repository.delete(&name).await.unwrap();
            if !bytes.is_empty() {
                repository.create(&name, Bytes::from(bytes)).await.unwrap();
            }
            let error = failure(&repository, &catalogue, &key).await;
            assert!(error.contains(&name) && error.contains(says), "{says}: {error}");
        }
    }
    let (repository, _, catalogue) = archived(folder.path(), &recipients).await;
    let none = failure(&repository, &catalogue, &Identities::default()).await;
    assert!(none.contains("--identity"), "{none}");
    let wrong = failure(&repository, &catalogue, &Identities::generate().0).await;
    assert!(wrong.contains("encrypted to other public keys"), "{wrong}");
}

#[tokio::test]
async fn an_archive_that_does_not_give_the_state_of_the_cluster_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::new(folder.path(), &regular(), &[2]);
    // As if the bytes had been changed by somebody who can make checksums: the same entries, but for one value.
    let mut other = regular();
    other[8] = Does::Commands(vec![(10, Txn { success: vec![put(1, 99)], ..Txn::default() })]);
    let forged = History { entries: History::new(folder.path(), &other, &[]).entries, ..history };
    let repository = repository();
    let catalogue = forged.archive(&repository, &[(3, 8, true), (9, 12, true)], &Recipients::default()).await;
    let error = failure(&repository, &catalogue, &Identities::default()).await;
    assert!(error.contains("behind entry") && error.contains("-12 the state hash is"), "{error}");
}

#[tokio::test]
async fn a_revision_that_only_reading_shows_to_be_missing_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::new(folder.path(), &regular(), &[2]);
    let repository = repository();
    let catalogue = history.archive(&repository, &[(3, 9, false)], &Recipients::default()).await;
    let target = Target::Revision(Revision::new(40));
    let (_folder, staged) = stage(&repository, &catalogue, target, &Identities::default()).await.unwrap();
    let error = build(&staged, target).map(|(_, reached)| reached).unwrap_err();
    assert!(matches!(error, RebuildError::Short { index: 9, .. }), "{error}");
    assert!(error.to_string().contains("ends at revision 27, index 9"), "{error}");
}

#[tokio::test]
async fn objects_of_another_cluster_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, _, catalogue) = archived(folder.path(), &Recipients::default()).await;
    let (_folder, staged) = stage(&repository, &catalogue, Target::Latest, &Identities::default()).await.unwrap();
    let other = Staged { cluster: ClusterId::new(CLUSTER.get() + 1), ..staged };
    let error = build(&other, Target::Latest).map(|(_, reached)| reached).unwrap_err();
    assert!(matches!(error, RebuildError::OtherCluster { .. }), "{error}");
    let error = other.steps().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("it is of cluster 171, not 172"), "{error}");
}

/// As a much newer program would write it: the frame that begins at a byte gets a version far ahead.
fn newer(file: &std::path::Path, at: usize, magic: [u8; 4]) {
    let mut bytes = std::fs::read(file).unwrap();
    let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let frame = bytes[at..at + length].to_vec();
    assert_eq!(frame[..4], magic);
    let frame = crate::codec::framed::seal(magic, 99, &frame[5..length - 4]);
    bytes.splice(at..at + length, frame);
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn objects_of_a_newer_program_are_told_as_such_and_not_as_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, _, catalogue) = archived(folder.path(), &Recipients::default()).await;
    for of_log in [true, false] {
        let (_folder, staged) = stage(&repository, &catalogue, Target::Latest, &Identities::default()).await.unwrap();
        if of_log {
            newer(&staged.segments[1].1, 12, *b"QLGH");
        } else {
            newer(&staged.snapshot, 16, *b"QSNH");
        }
        let error = build(&staged, Target::Latest).map(|(_, reached)| reached).unwrap_err();
        assert!(error.to_string().contains("newer") && !error.is_damage(), "{error}");
    }
    let commands = RebuildError::Commands { index: 1, source: BatchError::Newer(9) };
    assert!(!commands.is_damage());
}

#[test]
fn a_disk_that_can_not_be_read_is_no_damage() {
    let io = || std::io::Error::other("broken");
    let file = || PathBuf::from("x");
    let read = StageError::Io { action: "read", path: file(), source: io() };
    assert!(!RebuildError::Entries(Box::new(read)).is_damage());
    let damaged = StageError::Damaged { name: "x".into(), why: "it ends early".into() };
    assert!(RebuildError::Entries(Box::new(damaged)).is_damage());
    let source = Box::new(LoadError::Records(SnapshotError::Io { action: "read".into(), source: io() }));
    assert!(!RebuildError::Snapshot { path: file(), source }.is_damage());
}

#[tokio::test]
async fn numbers_that_no_disk_has_room_for_are_told_and_not_added_up() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, _, catalogue) = archived(folder.path(), &Recipients::default()).await;
    let mut plan = plan::plan(&catalogue, Target::Latest).unwrap();
    plan.full.plain_bytes = u64::MAX;
    let stage = Stage::open(&folder.path().join("stage")).unwrap();
    let error = stage.fill(&repository, &plan, &Identities::default(), |_| ()).await.map(drop).unwrap_err();
    assert!(matches!(error, StageError::NoRoom { needed: u64::MAX, plain: u64::MAX, .. }), "{error}");
}

#[tokio::test]
async fn what_was_loaded_is_on_disk_behind_a_replay_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, _, catalogue) = archived(folder.path(), &Recipients::default()).await;
    let (_folder, staged) = stage(&repository, &catalogue, Target::Latest, &Identities::default()).await.unwrap();
    let loaded = || {
        let engine = Arc::new(MemoryEngine::new());
        let (machine, _) =
            load(engine.clone(), StateConfig::default(), staged.cluster, &staged.snapshot, None).unwrap();
        (engine, machine)
    };
    let (engine, mut machine) = loaded();
    assert!(engine.unflushed() > 0);
    replay(&mut machine, std::iter::empty(), Target::Latest, |_| ()).unwrap();
    assert_eq!(engine.unflushed(), 0);
    let (engine, mut machine) = loaded();
    engine.fail(FaultPoint::Flush, 1);
    let refused = replay(&mut machine, std::iter::empty(), Target::Latest, |_| ()).unwrap_err();
    assert!(matches!(refused, RebuildError::Storage(_)), "{refused}");
}

/// Blanks, in steps as they are read.
fn blanks(from: u64, count: u64) -> impl Iterator<Item = Result<Step, StageError>> + Send {
    (from..from + count).map(|index| {
        let position = LogPosition { index: LogIndex::new(index), ..LogPosition::default() };
        Ok(Step::Entry(LogEntry { position, content: LogContent::Blank }))
    })
}

/// What ends by a panic ends: gives what it said.
fn panics(does: impl FnOnce() + Send + 'static) -> String {
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(does)).unwrap_err();
        ended.send((*panic.downcast_ref::<&str>().unwrap()).to_owned()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(30)).expect("it hangs")
}

#[test]
fn a_panic_while_entries_are_applied_ends_the_replay() {
    let said = panics(|| {
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        drop(replay(&mut machine, blanks(1, 1_000), Target::Latest, |_| panic!("on purpose")));
    });
    assert_eq!(said, "on purpose");
}

/// An engine with a bug.
struct Panics(MemoryEngine);

impl Engine for Panics {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, storage::Error> {
        self.0.get(key)
    }

    fn scan(&self, scan: storage::Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, storage::Error> {
        self.0.scan(scan)
    }

    fn commit(&self, _batch: storage::Batch) -> Result<(), storage::Error> {
        panic!("on purpose");
    }

    fn flush(&self) -> Result<(), storage::Error> {
        self.0.flush()
    }

    fn size_on_disk(&self) -> Result<u64, storage::Error> {
        self.0.size_on_disk()
    }
}

#[test]
fn a_panic_while_what_was_applied_is_moved_to_the_engine_ends_the_replay() {
    let said = panics(|| {
        let folder = tempfile::tempdir().unwrap();
        let one = |at: u8| (1, Txn { success: vec![put(at, 39)], ..Txn::default() });
        let entries: Vec<Does> = (0..200).map(|at| Does::Commands(vec![one(at)])).collect();
        let history = History::new(folder.path(), &entries, &[]);
        let config = StateConfig { overlay_bytes_soft: 500, overlay_bytes_hard: 1_000, cache_bytes: 0 };
        let mut machine = StateMachine::open(Arc::new(Panics(MemoryEngine::new())), config).unwrap();
        machine.apply_membership(history.position(0), Bytes::from_static(b"members"));
        let steps = history.entries[1..].iter().map(|entry| Ok(Step::Entry(entry.clone())));
        drop(replay(&mut machine, steps, Target::Latest, |_| ()));
    });
    assert_eq!(said, "on purpose");
}
