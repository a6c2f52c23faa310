//! What is kept stays restorable, what is dropped stays for its grace, and nothing else is touched.

use std::sync::Arc;

use super::*;
use crate::backup::catalogue::BASE_EVERY;
use crate::backup::faults::{Fault, Faults};
use crate::backup::layout::{Kind, REPOSITORY};
use crate::backup::sample::{Archive, BEGAN, CLUSTER, Sample};
use crate::backup::seal::{Identities, Recipients};
use crate::backup::transfer::{self, store_entries};
use crate::backup::verify::{Level, Scope};

const ONLY_NEWEST: Keep =
    Keep { window: Duration::ZERO, hourly: 0, daily: 0, weekly: 0, monthly: 0, object_lock: Duration::ZERO };

/// The sample is some years old.
const ALL: Keep = Keep { window: Duration::from_secs(100 * 365 * 24 * 60 * 60), ..ONLY_NEWEST };

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn how(keep: &Keep) -> How<'_> {
    How { keep, grace: GRACE, by: "test", lost: false, dry_run: false }
}

async fn archive() -> (Archive, Sample, Arc<Faults>) {
    let (repository, faults) = Faults::repository();
    let (archive, sample) = Archive::filled(repository, Recipients::default()).await;
    (archive, sample, faults)
}

fn in_days(days: u64) -> WallTime {
    WallTime::new(clock::wall().get() + days * DAY_MS)
}

async fn names(repository: &Repository) -> Vec<String> {
    let listed = verify::listed(repository, CLUSTER).await.unwrap();
    listed.into_keys().collect()
}

#[tokio::test]
async fn what_is_dropped_is_deleted_a_grace_later() {
    let (mut archive, _, _) = archive().await;
    let repository = archive.repository.clone();
    let (newest, all) = (archive.catalogue.fulls()[1].name.clone(), names(&repository).await);

    let first = run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(2)).await.unwrap();
    assert_eq!((first.plan.drops.len(), first.deleted.len(), first.waiting.len()), (5, 0, 5));
    assert_eq!(names(&repository).await, all, "nothing is deleted yet");
    assert_eq!(archive.catalogue.refresh(&repository).await.unwrap(), 1);
    assert_eq!(archive.catalogue.objects().map(|object| &object.name).collect::<Vec<_>>(), [&newest]);

    // The proof of the run was kept at the time of the real clock.
    let again = run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(0)).await.unwrap();
    assert_eq!((again.plan.drops.len(), again.deleted.len(), again.waiting.len()), (0, 0, 5));
    let later = run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(2)).await.unwrap();
    assert_eq!((later.deleted.len(), later.waiting.len()), (5, 0));
    assert_eq!(names(&repository).await, [newest]);
    assert!(repository.get(REPOSITORY, 1 << 20).await.is_ok());
}

#[tokio::test]
async fn a_dry_run_tells_the_same_and_does_nothing() {
    let (mut archive, _, _) = archive().await;
    let (repository, all) = (archive.repository.clone(), names(&archive.repository).await);
    let dry = How { dry_run: true, ..how(&ONLY_NEWEST) };
    let told = run(&repository, CLUSTER, dry, in_days(2)).await.unwrap();
    assert_eq!(names(&repository).await, all);
    assert_eq!(archive.catalogue.refresh(&repository).await.unwrap(), 0);
    assert_eq!(proof::list(&repository, CLUSTER).await.unwrap(), []);
    assert_eq!(run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(2)).await.unwrap(), told);
}

#[tokio::test]
async fn orphans_go_after_a_grace_and_strangers_never() {
    let (archive, _, _) = archive().await;
    let repository = &archive.repository;
    let orphan = Layout::new(CLUSTER).full(99, 1, true);
    let strangers = ["0000000000000007/full/notes.txt", "0000000000000007/other/x.snapshot.zst", "holiday.jpg"];
    for name in strangers.into_iter().chain([orphan.as_str()]) {
        repository.create(name, "x".into()).await.unwrap();
    }
    let young = run(repository, CLUSTER, how(&ALL), in_days(0)).await.unwrap();
    assert_eq!((young.waiting.len(), young.deleted.len()), (1, 0));
    let old = run(repository, CLUSTER, how(&ALL), in_days(2)).await.unwrap();
    assert_eq!(old.deleted.iter().map(|object| &object.name).collect::<Vec<_>>(), [&orphan]);
    for name in strangers {
        repository.head(name).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_left_of_an_archive_whose_manifests_are_gone_stays_until_it_is_asked_for() {
    let (mut archive, mut sample, _) = archive().await;
    let repository = archive.repository.clone();
    let old = names(&repository).await;
    for object in repository.list(&Layout::new(CLUSTER).chain(), None).await.unwrap() {
        repository.delete(&object.name).await.unwrap();
    }
    // Before anybody has begun a new one, and once it is there, and once its first manifests and its first whole state are gone.
    let pruned = run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(2)).await.unwrap();
    assert_eq!((pruned.lost.len(), pruned.deleted.len()), (old.len(), 0));
    tokio::time::sleep(Duration::from_millis(20)).await;
    archive.catalogue = Catalogue::empty(CLUSTER);
    let first = sample.archive_full(&mut archive).await;
    let orphan = Layout::new(CLUSTER).full(99, 1, true);
    repository.create(&orphan, "x".into()).await.unwrap();
    let pruned = run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(2)).await.unwrap();
    assert_eq!(pruned.deleted.iter().map(|object| &object.name).collect::<Vec<_>>(), [&orphan]);
    while archive.catalogue.head().unwrap().seq < BASE_EVERY {
        archive.catalogue.append(&repository, "n1", vec![], vec![]).await.unwrap();
    }
    sample.grow(10);
    let newest = sample.archive_full(&mut archive).await;
    for days in [2, 4] {
        let pruned = run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(days)).await.unwrap();
        assert_eq!(pruned.lost.len(), old.len());
    }
    assert!(repository.head(&Layout::new(CLUSTER).manifest(1)).await.is_err());
    let left = names(&repository).await;
    assert!(old.iter().all(|name| left.contains(name)), "with its manifests put back it can be restored");
    assert!(left.len() == old.len() + 1 && left.contains(&newest) && !left.contains(&first), "{left:?}");
    let asked = How { lost: true, ..how(&ONLY_NEWEST) };
    assert_eq!(run(&repository, CLUSTER, asked, in_days(0)).await.unwrap().deleted, [], "not within the grace");
    assert_eq!(run(&repository, CLUSTER, asked, in_days(2)).await.unwrap().deleted.len(), old.len());
    assert_eq!(names(&repository).await, [newest]);
}

#[tokio::test]
async fn what_was_stored_before_the_archive_began_and_belonged_to_it_is_no_lost_archive() {
    let (repository, _) = Faults::repository();
    let (mut archive, mut sample) = (Archive::new(repository.clone(), Recipients::default()).await, Sample::new(1, 30));
    // Two nodes send a first whole state at the same time, and the later one is named first.
    let (path, meta) = sample.snapshot();
    let other = transfer::store_snapshot(&repository, &path, &meta, &archive.recipients, async |_| {}).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    sample.archive_full(&mut archive).await;
    archive.catalogue.append(&repository, "n2", vec![other], vec![]).await.unwrap();
    sample.grow(10);
    let newest = sample.archive_full(&mut archive).await;
    for days in [2, 4] {
        assert_eq!(run(&repository, CLUSTER, how(&ONLY_NEWEST), in_days(days)).await.unwrap().lost, []);
    }
    assert_eq!(names(&repository).await, [newest]);
}

#[tokio::test]
async fn nothing_is_dropped_while_something_that_stays_is_missing() {
    let (archive, _, _) = archive().await;
    let repository = &archive.repository;
    let newest = archive.catalogue.fulls()[1].name.clone();
    repository.delete(&newest).await.unwrap();
    let error = run(repository, CLUSTER, how(&ONLY_NEWEST), in_days(2)).await.unwrap_err();
    assert!(matches!(&error, PruneError::Incomplete { name, .. } if *name == newest), "{error}");
    assert_eq!(Catalogue::read(repository, CLUSTER).await.unwrap(), archive.catalogue);
}

#[tokio::test]
async fn what_is_under_an_object_lock_is_neither_dropped_nor_deleted() {
    let (archive, sample, _) = archive().await;
    let repository = &archive.repository;
    let now = WallTime::new(BEGAN + sample.last() * 1000 + 10 * DAY_MS);
    let keep = Keep { object_lock: Duration::from_secs(11 * 24 * 3600), ..ONLY_NEWEST };
    assert_eq!(run(repository, CLUSTER, how(&keep), now).await.unwrap().plan.drops, []);
    let orphan = Layout::new(CLUSTER).full(99, 1, true);
    repository.create(&orphan, "x".into()).await.unwrap();
    let locked = run(repository, CLUSTER, how(&keep), in_days(5)).await.unwrap();
    assert!(locked.deleted.is_empty() && locked.waiting.iter().any(|object| object.name == orphan));
    let free = run(repository, CLUSTER, how(&keep), in_days(12)).await.unwrap();
    assert!(free.deleted.iter().any(|object| object.name == orphan));
}

#[tokio::test]
async fn old_manifests_go_once_one_lists_all_and_readers_go_on() {
    let (mut archive, mut sample, _) = archive().await;
    let mut behind = archive.catalogue.clone();
    while archive.catalogue.head().unwrap().seq < BASE_EVERY + 3 {
        let first = sample.last() + 1;
        sample.grow(1);
        sample.archive_log(&mut archive, first..=first).await;
    }
    let repository = &archive.repository;
    let young = run(repository, CLUSTER, how(&ALL), in_days(0)).await.unwrap();
    assert_eq!(young.manifests, 0);
    let old = run(repository, CLUSTER, how(&ALL), in_days(1)).await.unwrap();
    assert_eq!(old.manifests as u64, BASE_EVERY - 1);
    assert_eq!(Catalogue::read(repository, CLUSTER).await.unwrap(), archive.catalogue);
    assert_eq!(Catalogue::walk(repository, CLUSTER, |_, _| {}).await.unwrap(), archive.catalogue);
    // A node that was away for long finds its place again.
    behind.refresh(repository).await.unwrap();
    assert_eq!(behind, archive.catalogue);
}

#[tokio::test]
async fn a_deletion_that_fails_is_told_and_the_next_run_goes_on() {
    let (archive, _, faults) = archive().await;
    let repository = &archive.repository;
    run(repository, CLUSTER, how(&ONLY_NEWEST), in_days(0)).await.unwrap();
    faults.set(Fault::Forbid("delete"));
    let error = run(repository, CLUSTER, how(&ONLY_NEWEST), in_days(3)).await.unwrap_err();
    assert!(matches!(&error, PruneError::Store(StoreError::Forbidden { .. })), "{error}");
    faults.clear();
    let done = run(repository, CLUSTER, how(&ONLY_NEWEST), in_days(3)).await.unwrap();
    assert_eq!(done.deleted.len(), 5);
    assert_eq!(done.plan.kept.len(), 1);
    assert!(archive.catalogue.fulls().iter().all(|full| full.kind == Kind::Full));
}

#[tokio::test]
async fn many_old_proofs_become_a_hundred_and_the_newest_good_one() {
    let (archive, _, _) = archive().await;
    let repository = &archive.repository;
    let proof = |passed, at| Proof::new(ProofKind::Drill, "n1", passed, WallTime::new(at), WallTime::new(at));
    for at in 1..=150 {
        proof::write(repository, CLUSTER, &proof(at == 5, at)).await.unwrap();
    }
    assert_eq!(run(repository, CLUSTER, how(&ALL), in_days(0)).await.unwrap().proofs, 49);
    let newest = proof::newest(repository, CLUSTER, ProofKind::Drill, true).await.unwrap().unwrap();
    assert_eq!((newest.at, proof::list(repository, CLUSTER).await.unwrap().len()), (5, 101));
}

#[tokio::test]
async fn a_grace_in_which_objects_may_still_be_named_is_refused() {
    let (archive, _, _) = archive().await;
    let short = How { grace: NAME_WITHIN - Duration::from_secs(1), ..how(&ALL) };
    let error = run(&archive.repository, CLUSTER, short, in_days(1)).await.unwrap_err();
    assert!(matches!(error, PruneError::Grace(_)) && error.to_string().contains("1h"), "{error}");
    run(&archive.repository, CLUSTER, How { grace: NAME_WITHIN, ..short }, in_days(1)).await.unwrap();
}

#[tokio::test]
async fn pieces_of_the_log_that_were_replaced_lately_stay_however_old_they_are() {
    let (mut archive, sample, _) = archive().await;
    let repository = archive.repository.clone();
    let pieces: Vec<String> = archive.catalogue.segments().iter().map(|piece| piece.name.clone()).collect();
    // The clock of the store is the real one: what was stored before looks two days older than what is stored now.
    let before_merging = clock::wall();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (previous, entries) = (Some(sample.entries[29].position), sample.entries[30..].to_vec());
    let merged = store_entries(&repository, CLUSTER, previous, entries, Some(sample.marks[69]), &archive.recipients);
    archive.catalogue.append(&repository, "n1", vec![merged.await.unwrap()], pieces.clone()).await.unwrap();
    let a_grace_behind_them = WallTime::new(before_merging.get() + u64::try_from(GRACE.as_millis()).unwrap());
    let lately = run(&repository, CLUSTER, how(&ALL), a_grace_behind_them).await.unwrap();
    assert_eq!((lately.deleted.len(), lately.waiting.len()), (0, pieces.len()), "a restore may be reading them");
    let later = run(&repository, CLUSTER, how(&ALL), in_days(1)).await.unwrap();
    assert_eq!((later.deleted.len(), later.waiting.len()), (pieces.len(), 0));
}

/// Whatever is there restores to the newest state.
async fn check(repository: &Repository, sample: &Sample) {
    let identities = Identities::default();
    let scope = Scope { level: Level::Replay, identities: &identities, scratch: sample.folder.path() };
    let report = verify::verify(repository, CLUSTER, scope, &|_| {}).await.unwrap();
    assert!(report.passed(), "{:?}", report.findings);
    assert_eq!(report.reached.unwrap().0, sample.entries[69].position);
}

#[tokio::test]
async fn killed_at_any_point_it_leaves_an_archive_that_restores_and_the_next_run_ends_the_work() {
    let (mut killed_after, mut done) = (0, false);
    while !done {
        let (archive, sample, faults) = archive().await;
        let repository = &archive.repository;
        for orphan in 1..4 {
            repository.create(&Layout::new(CLUSTER).full(99, orphan, true), "x".into()).await.unwrap();
        }
        // The first run takes out, the second deletes.
        faults.set(Fault::KilledAfter(killed_after));
        let mut ran = Ok(Pruned::default());
        for days in [0, 3] {
            if ran.is_ok() {
                ran = run(repository, CLUSTER, how(&ONLY_NEWEST), in_days(days)).await;
            }
        }
        done = ran.is_ok();
        faults.clear();
        check(repository, &sample).await;
        for days in [0, 3] {
            run(repository, CLUSTER, how(&ONLY_NEWEST), in_days(days)).await.unwrap();
        }
        check(repository, &sample).await;
        assert_eq!(names(repository).await.len(), 1, "killed after {killed_after}");
        killed_after += 1;
    }
    assert!(killed_after > 8, "a note, a manifest and deletions: {killed_after}");
}
