//! An archive is looked after by one node, at its times or late, as far as that node may.

use std::collections::BTreeSet;

use super::*;
use crate::backup::catalogue::{BASE_EVERY, Catalogue};
use crate::backup::faults::{Fault, Faults};
use crate::backup::layout::Layout;
use crate::backup::sample::{Archive, CLUSTER};
use crate::backup::seal::Recipients;

const MINUTE: u64 = 60_000;

async fn archive() -> Archive {
    Archive::filled(Faults::repository().0, Recipients::default()).await.0
}

fn caretaker(repository: &Repository, keep: Option<Keep>) -> (Caretaker, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let always: Schedule = "* * * * *".parse().unwrap();
    let level = Level::Replay;
    let care = Care { verify: always.clone(), level, identity_file: None, keep, prune: always };
    let (author, repository, scratch) = ("n1".to_owned(), repository.clone(), dir.path().join("scratch"));
    (Caretaker { cluster: CLUSTER, author, care, repository, scratch, health: watch::Sender::new(None) }, dir)
}

fn names(archive: &Archive) -> BTreeSet<String> {
    archive.catalogue.objects().map(|object| object.name.clone()).collect()
}

/// What the archive holds by now.
async fn reread(archive: &mut Archive) -> BTreeSet<String> {
    archive.catalogue.refresh(&archive.repository).await.unwrap();
    names(archive)
}

/// So many minutes from now: what is prepared in a test is younger.
fn in_minutes(minutes: u64) -> WallTime {
    WallTime::new(clock::wall().get() + minutes * MINUTE)
}

/// Of a node that has archived for long.
fn known() -> Known {
    Known { active_since: Some(WallTime::ZERO), ..Known::default() }
}

/// Appends until there are so many manifests.
async fn lengthen(archive: &mut Archive, manifests: u64) {
    while archive.catalogue.head().unwrap().seq < manifests {
        archive.catalogue.append(&archive.repository, "n1", vec![], vec![]).await.unwrap();
    }
}

async fn manifests(repository: &Repository) -> usize {
    repository.list(&Layout::new(CLUSTER).chain(), None).await.unwrap().len()
}

#[tokio::test]
async fn a_file_of_private_keys_that_never_ends_does_not_hold_up_the_place() {
    let archive = archive().await;
    let (mut caretaker, dir) = caretaker(&archive.repository, None);
    let pipe = dir.path().join("key.txt");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    caretaker.care.identity_file = Some(pipe);
    let error = caretaker.verify(Level::Content).await.unwrap_err();
    assert!(error.to_string().contains("key.txt is no regular file"), "{error}");
}

#[test]
fn a_schedule_is_due_once_it_has_come_since_the_last_time() {
    let schedule: Schedule = "*/10 * * * *".parse().unwrap();
    let at = |minutes: u64| WallTime::new(minutes * MINUTE);
    let is_due = |last, now| is_due(&schedule, at(last), WallTime::ZERO, at(now));
    assert!(!is_due(1, 9) && is_due(1, 10) && is_due(1, 99));
    assert!(!is_due(10, 19));
}

#[test]
fn what_was_missed_while_no_node_ran_is_done_once_one_has_run_for_a_while() {
    let schedule: Schedule = "0 5 * * *".parse().unwrap();
    let at = |hours: u64, minutes: u64| WallTime::new((hours * 60 + minutes) * MINUTE);
    // Last done on the first day; up again at nine on the third.
    let (last, began) = (at(5, 7), at(57, 0));
    assert!(!is_due(&schedule, last, began, at(57, 4)), "it may end again at once");
    assert!(is_due(&schedule, last, began, at(57, 5)));
    assert!(!is_due(&schedule, at(57, 6), began, at(57, 30)), "once");
    assert!(is_due(&schedule, at(57, 6), at(76, 59), at(77, 0)), "what comes now is not late");
}

#[tokio::test]
async fn the_node_that_archives_verifies_and_the_others_hear_of_it() {
    let mut archive = archive().await;
    let (caretaker, _dir) = caretaker(&archive.repository, None);
    let (active, mut known) = (watch::Sender::new(false), known());
    let before = names(&archive);
    caretaker.look(&active.subscribe(), &mut known, in_minutes(2)).await.unwrap();
    assert_eq!(caretaker.health.borrow().as_ref().unwrap().verified, None, "another node archives");
    active.send_replace(true);
    caretaker.look(&active.subscribe(), &mut known, in_minutes(2)).await.unwrap();
    assert_eq!(caretaker.health.borrow().as_ref().unwrap().verified, None, "it may be gone again at once");
    caretaker.look(&active.subscribe(), &mut known, in_minutes(8)).await.unwrap();
    let health = caretaker.health.borrow().clone().unwrap();
    assert!(health.verified.is_some() && health.read.is_some(), "{health:?}");
    assert!(health.failed.is_none() && health.drilled.is_none(), "{health:?}");
    let proof = proof::newest(&archive.repository, CLUSTER, ProofKind::Verify, true).await.unwrap().unwrap();
    assert_eq!((proof.level, proof.by.as_str()), (Some(4), "n1"));
    assert!(!caretaker.scratch.exists());
    assert_eq!(reread(&mut archive).await, before, "nothing is removed unasked");
}

#[tokio::test]
async fn what_is_not_to_be_kept_is_removed_by_the_node_that_archives_alone() {
    let mut archive = archive().await;
    let none = Keep { window: Duration::ZERO, hourly: 0, daily: 0, weekly: 0, monthly: 0, object_lock: Duration::ZERO };
    let (caretaker, _dir) = caretaker(&archive.repository, Some(none));
    let active = watch::Sender::new(false);
    let before = names(&archive);
    caretaker.look(&active.subscribe(), &mut known(), in_minutes(2)).await.unwrap();
    assert_eq!(reread(&mut archive).await, before);
    active.send_replace(true);
    caretaker.look(&active.subscribe(), &mut known(), in_minutes(2)).await.unwrap();
    let after = reread(&mut archive).await;
    assert!(after.len() < before.len() && archive.catalogue.fulls().len() == 1, "{after:?}");
    // Each run is kept, also where there is nothing to take out, so that the next node does not do it again.
    caretaker.look(&active.subscribe(), &mut known(), in_minutes(4)).await.unwrap();
    let told = proof::list(&archive.repository, CLUSTER).await.unwrap();
    assert_eq!(told.iter().filter(|told| told.kind == ProofKind::Prune).count(), 3);
}

#[tokio::test]
async fn damage_is_told_until_a_verification_passes() {
    let archive = archive().await;
    let victim = names(&archive).into_iter().next().unwrap();
    let kept = archive.repository.get(&victim, 1 << 24).await.unwrap();
    archive.repository.delete(&victim).await.unwrap();
    let (caretaker, _dir) = caretaker(&archive.repository, None);
    let active = watch::Sender::new(true);
    caretaker.look(&active.subscribe(), &mut known(), in_minutes(2)).await.unwrap();
    let failed = caretaker.health.borrow().clone().unwrap().failed.unwrap().1;
    assert!(failed.starts_with("verify: ") && failed.contains(&victim), "{failed}");
    archive.repository.create(&victim, kept).await.unwrap();
    let mut known = known();
    caretaker.verify(Level::Chain).await.unwrap();
    caretaker.read(&mut known).await.unwrap();
    assert!(caretaker.health.borrow().clone().unwrap().failed.is_some(), "a shallower look settles nothing");
    caretaker.verify(Level::Replay).await.unwrap();
    caretaker.read(&mut known).await.unwrap();
    let health = caretaker.health.borrow().clone().unwrap();
    assert!(health.failed.is_none() && health.read == health.verified, "{health:?}");
}

#[tokio::test]
async fn superseded_manifests_go_without_a_retention_and_each_hour_alone() {
    let (repository, faults) = Faults::repository();
    let (mut archive, _sample) = Archive::filled(repository, Recipients::default()).await;
    lengthen(&mut archive, BASE_EVERY + 5).await;
    let (caretaker, _dir) = caretaker(&archive.repository, None);
    let (active, mut known) = (watch::Sender::new(false), known());
    let before = names(&archive);
    caretaker.look(&active.subscribe(), &mut known, in_minutes(61)).await.unwrap();
    assert_eq!(manifests(&archive.repository).await as u64, BASE_EVERY + 5, "another node archives");
    active.send_replace(true);
    caretaker.look(&active.subscribe(), &mut known, in_minutes(2)).await.unwrap();
    assert_eq!(manifests(&archive.repository).await as u64, BASE_EVERY + 5, "whoever reads the chain is not done yet");
    caretaker.look(&active.subscribe(), &mut known, in_minutes(62)).await.unwrap();
    assert_eq!(manifests(&archive.repository).await as u64, BASE_EVERY + 5, "the clock of this node alone is ahead");
    faults.set_ahead(Duration::from_secs(61 * 60));
    lengthen(&mut archive, BASE_EVERY + 6).await;
    caretaker.look(&active.subscribe(), &mut known, in_minutes(121)).await.unwrap();
    assert_eq!(manifests(&archive.repository).await as u64, BASE_EVERY + 6, "it was looked less than an hour ago");
    caretaker.look(&active.subscribe(), &mut known, in_minutes(122)).await.unwrap();
    assert_eq!(manifests(&archive.repository).await, 7);
    assert_eq!(reread(&mut archive).await, before);
}

#[tokio::test]
async fn who_may_not_remove_is_told_so_once_it_matters_and_tries_no_more_for_a_day() {
    let (repository, faults) = Faults::repository();
    let (mut archive, _sample) = Archive::filled(repository, Recipients::default()).await;
    lengthen(&mut archive, BASE_EVERY + 1).await;
    faults.set_ahead(Duration::from_secs(61 * 60));
    lengthen(&mut archive, BASE_EVERY + 2).await;
    let (caretaker, _dir) = caretaker(&archive.repository, None);
    let (active, mut known) = (watch::Sender::new(true), known());
    faults.set(Fault::Forbid("delete"));
    caretaker.look(&active.subscribe(), &mut known, in_minutes(62)).await.unwrap();
    let unpruned = |caretaker: &Caretaker| caretaker.health.borrow().clone().unwrap().unpruned;
    let (since, why) = unpruned(&caretaker).expect("there are many, for a test");
    assert!(why.contains("258 manifests") && why.contains("AccessDenied"), "{why}");
    faults.clear();
    caretaker.look(&active.subscribe(), &mut known, in_minutes(200)).await.unwrap();
    assert_eq!(unpruned(&caretaker).map(|(told, _)| told), Some(since), "since then, and not tried again");
    caretaker.look(&active.subscribe(), &mut known, in_minutes(62 + 24 * 60 + 1)).await.unwrap();
    assert_eq!((manifests(&archive.repository).await, unpruned(&caretaker)), (3, None));
}

#[tokio::test]
async fn of_a_chain_that_is_not_whole_nothing_is_removed_and_that_is_kept_as_proof() {
    let (repository, faults) = Faults::repository();
    let (mut archive, _sample) = Archive::filled(repository, Recipients::default()).await;
    lengthen(&mut archive, BASE_EVERY + 1).await;
    faults.set_ahead(Duration::from_secs(61 * 60));
    lengthen(&mut archive, BASE_EVERY + 2).await;
    let name = Layout::new(CLUSTER).manifest(99);
    let sound = archive.repository.get(&name, 1 << 20).await.unwrap();
    faults.put_raw(&name, String::from_utf8(sound.to_vec()).unwrap().replace("n1", "n9").into()).await;
    let (caretaker, _dir) = caretaker(&archive.repository, None);
    let care = Care { verify: "0 0 1 1 *".parse().unwrap(), level: Level::Exist, ..caretaker.care.clone() };
    let caretaker = Caretaker { care, ..caretaker };
    let (active, mut known) = (watch::Sender::new(true), known());
    for hours in 1..4 {
        caretaker.look(&active.subscribe(), &mut known, in_minutes(hours * 61)).await.unwrap_err();
        let health = caretaker.health.borrow().clone().unwrap();
        assert!(health.failed.unwrap().1.contains("manifest 100 does not continue"));
        assert!(health.unpruned.unwrap().1.contains("manifests stay"));
    }
    assert_eq!(manifests(&archive.repository).await as u64, BASE_EVERY + 2);
    let told = proof::list(&archive.repository, CLUSTER).await.unwrap();
    assert_eq!(told.len(), 1, "once: {told:?}");
    assert_eq!(Catalogue::read(&archive.repository, CLUSTER).await.unwrap(), archive.catalogue);
}

#[tokio::test]
async fn what_a_deep_check_found_is_told_however_often_a_shallow_one_has_passed_since() {
    let archive = archive().await;
    let (caretaker, _dir) = caretaker(&archive.repository, None);
    let mut at = 1_000;
    let mut verified = async |level: u8, passed: bool, times: usize| {
        for _ in 0..times {
            at += 1_000;
            let time = WallTime::new(at);
            let proof = proof::Proof::new(ProofKind::Verify, "n1", passed, time, time);
            let findings = if passed { vec![] } else { vec!["x is damaged".to_owned()] };
            let proof = proof::Proof { level: Some(level), findings, ..proof };
            proof::write(&archive.repository, CLUSTER, &proof).await.unwrap();
        }
    };
    let failed = async |caretaker: &Caretaker| {
        caretaker.read(&mut known()).await.unwrap();
        caretaker.health.borrow().clone().unwrap().failed.is_some()
    };
    verified(4, false, 1).await;
    verified(2, true, PROOFS_MIN + 10).await;
    verified(2, false, 1).await;
    verified(2, true, 120).await;
    assert!(failed(&caretaker).await);
    // Nor does pruning make it forgotten.
    let ever = Keep { window: Duration::from_secs(u64::from(u32::MAX)), ..Keep::default() };
    let how = How { keep: &ever, grace: prune::GRACE, by: "test", lost: false, dry_run: false };
    let pruned = prune::run(&archive.repository, CLUSTER, how, clock::wall()).await.unwrap();
    assert!(pruned.proofs > 90 && failed(&caretaker).await, "{}", pruned.proofs);
    verified(4, true, 1).await;
    verified(2, true, PROOFS_MIN + 1).await;
    assert!(!failed(&caretaker).await);
}
