//! A copy is worth what the original is, whoever can open it, and however often it was interrupted.

use std::cell::Cell;

use super::*;
use crate::backup::faults::{Fault, Faults};
use crate::backup::sample::{Archive, CLUSTER, Sample};
use crate::backup::transfer::store_entries;
use crate::backup::verify::{self, Level, Report, Scope, VerifyError};

async fn check(repository: &Repository, identities: &Identities, sample: &Sample) -> Report {
    let scope = Scope { level: Level::Replay, identities, scratch: sample.folder.path() };
    let report = verify::verify(repository, CLUSTER, scope, &|_| {}).await.unwrap();
    assert!(report.passed(), "{:?}", report.findings);
    report
}

fn keys() -> (Identities, Recipients) {
    let (identities, public) = Identities::generate();
    (identities, Recipients::parse(&[public]).unwrap())
}

#[tokio::test]
async fn a_copy_restores_to_what_the_original_does() {
    let ((identities, recipients), (to, _)) = (keys(), Faults::repository());
    let (archive, sample) = Archive::filled(Faults::repository().0, recipients).await;
    let told = Cell::new(0);
    let done = copy(&archive.repository, &to, CLUSTER, None, "test", |_, total| told.set(total)).await.unwrap();
    assert_eq!((done.objects, done.bytes, done.present), (6, told.get(), 0));
    let original = check(&archive.repository, &identities, &sample).await;
    let copied = check(&to, &identities, &sample).await;
    assert_eq!((copied.reached, copied.runs), (original.reached, original.runs), "names and all");
    let again = copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.unwrap();
    assert_eq!((again.objects, again.present), (0, 6));
}

#[tokio::test]
async fn a_copy_to_other_keys_opens_with_them_alone() {
    let ((old, old_recipients), (new, recipients)) = (keys(), keys());
    let (archive, mut sample) = Archive::filled(Faults::repository().0, old_recipients).await;
    let mut archive = archive;
    let (to, _) = Faults::repository();
    let reseal = Some(Reseal { identities: &old, recipients: &recipients, scratch: sample.folder.path() });
    assert_eq!(copy(&archive.repository, &to, CLUSTER, reseal, "test", |_, _| {}).await.unwrap().objects, 6);
    let original = check(&archive.repository, &old, &sample).await;
    assert_eq!(check(&to, &new, &sample).await.reached, original.reached);
    let scope = Scope { level: Level::Content, identities: &old, scratch: sample.folder.path() };
    let shut = verify::verify(&to, CLUSTER, scope, &|_| {}).await;
    assert!(matches!(shut, Err(VerifyError::WrongIdentity)), "{shut:?}");
    // Done again it copies what is new, though the same objects have other names there.
    sample.grow(5);
    sample.archive_log(&mut archive, 70..=74).await;
    let reseal = Some(Reseal { identities: &old, recipients: &recipients, scratch: sample.folder.path() });
    assert_eq!(copy(&archive.repository, &to, CLUSTER, reseal, "test", |_, _| {}).await.unwrap().objects, 1);
    assert_eq!(check(&to, &new, &sample).await.reached.unwrap().0.index.get(), 74);
}

#[tokio::test]
async fn an_interrupted_copy_goes_on_with_what_is_missing() {
    let (archive, mut sample) = Archive::filled(Faults::repository().0, Recipients::default()).await;
    let mut archive = archive;
    for _ in 0..20 {
        let first = sample.last() + 1;
        sample.grow(2);
        sample.archive_log(&mut archive, first..=first + 1).await;
    }
    let (to, faults) = Faults::repository();
    let interrupt = |done: Copied, _| {
        if done.objects == 20 {
            faults.set(Fault::Unavailable);
        }
    };
    let error = copy(&archive.repository, &to, CLUSTER, None, "test", interrupt).await.unwrap_err();
    assert!(matches!(error, CopyError::TargetCatalogue(_) | CopyError::TargetStore(_)), "{error}");
    faults.clear();
    let partial = check(&to, &Identities::default(), &sample).await;
    assert!(partial.reached.is_some(), "what is there can be restored");
    let done = copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.unwrap();
    assert_eq!((done.objects, done.present), (10, 16));
    assert_eq!(check(&to, &Identities::default(), &sample).await.reached.unwrap().0, sample.entries[109].position);
}

#[tokio::test]
async fn merged_pieces_replace_those_they_hold_and_what_only_the_copy_has_stays() {
    let (archive, sample) = Archive::filled(Faults::repository().0, Recipients::default()).await;
    let mut archive = archive;
    let (to, _) = Faults::repository();
    copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.unwrap();
    let oldest = archive.catalogue.fulls()[0].name.clone();
    let (previous, entries) = (Some(sample.entries[29].position), sample.entries[30..].to_vec());
    let merged =
        store_entries(&archive.repository, CLUSTER, previous, entries, Some(sample.marks[69]), &archive.recipients);
    let merged = merged.await.unwrap();
    let mut drops: Vec<String> = archive.catalogue.segments().iter().map(|piece| piece.name.clone()).collect();
    drops.push(oldest.clone());
    archive.catalogue.append(&archive.repository, "n1", vec![merged.clone()], drops).await.unwrap();
    assert_eq!(copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.unwrap().objects, 1);
    let target = Catalogue::read(&to, CLUSTER).await.unwrap();
    assert_eq!(target.segments().iter().map(|piece| &piece.name).collect::<Vec<_>>(), [&merged.name]);
    assert!(target.object(&oldest).is_some());
}

#[tokio::test]
async fn damage_is_not_copied() {
    let ((repository, faults), (to, _)) = (Faults::repository(), Faults::repository());
    let (archive, _sample) = Archive::filled(repository, Recipients::default()).await;
    faults.set(Fault::Flip(".log.zst"));
    let error = copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.unwrap_err();
    assert!(matches!(error, CopyError::Fetch(FetchError::Damaged { .. })), "{error}");
    assert_eq!(Catalogue::read(&to, CLUSTER).await.unwrap().segments(), Vec::<&Object>::new());
}

#[tokio::test]
async fn a_large_object_is_copied_in_parts_and_not_twice() {
    let (archive, sample) = Archive::filled(Faults::repository().0, Recipients::default()).await;
    let mut archive = archive;
    // Copying byte for byte does not look into objects.
    let content: Vec<u8> = (0..PART_BYTES * 2 + 5).map(|_| rand::random()).collect();
    let name = layout::Layout::new(CLUSTER).full(200, 1, false);
    archive.repository.create(&name, content.clone().into()).await.unwrap();
    let large = Object {
        name,
        bytes: content.len() as u64,
        sha256: Sha::of(&content),
        last: super::super::manifest::Place { index: 200, ..archive.catalogue.fulls()[1].last },
        ..archive.catalogue.fulls()[1].clone()
    };
    archive.catalogue.append(&archive.repository, "n1", vec![large.clone()], vec![]).await.unwrap();
    let (to, faults) = Faults::repository();
    faults.set(Fault::FailParts(2));
    assert!(copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.is_err());
    faults.clear();
    assert!(matches!(to.head(&large.name).await, Err(StoreError::Missing { .. })));
    copy(&archive.repository, &to, CLUSTER, None, "test", |_, _| {}).await.unwrap();
    assert_eq!(to.get(&large.name, content.len()).await.unwrap(), content);
    // As if the manifest had not been written: the object is found to be the same.
    let now = clock::wall();
    assert_eq!(as_it_is(&archive.repository, &to, CLUSTER, &large, now, false).await.unwrap().0, large);
    let other = Object { sha256: Sha([0; 32]), ..large.clone() };
    assert!(matches!(
        as_it_is(&archive.repository, &to, CLUSTER, &other, now, false).await,
        Err(CopyError::TargetStore(StoreError::Exists { .. }))
    ));
    // So long ago that it may be about to be deleted, as left over.
    let later = WallTime::new(now.get() + 3_600_000);
    let (anew, _) = as_it_is(&archive.repository, &to, CLUSTER, &large, later, false).await.unwrap();
    assert!(anew.name != large.name && anew.sha256 == large.sha256);
    assert_eq!(to.get(&anew.name, content.len()).await.unwrap(), content);
    drop(sample);
}

#[tokio::test]
async fn what_was_stored_long_ago_is_not_named_but_stored_once_more() {
    let (archive, sample) = Archive::filled(Faults::repository().0, Recipients::default()).await;
    let (to, _) = Faults::repository();
    probe::probe(&to).await.unwrap();
    let copier = Copier { from: &archive.repository, to: &to, cluster: CLUSTER, reseal: None, by: "test" };
    let mut target = Catalogue::read(&to, CLUSTER).await.unwrap();
    let mut batch = Vec::new();
    for object in archive.catalogue.objects() {
        batch.push(copier.store(object, false).await.unwrap());
    }
    // While the last one was sent, a prune of the copy has deleted the first, and may delete another.
    let long_ago = WallTime::new(clock::wall().get() - millis(NAME_WITHIN));
    (batch[0].at, batch[1].at) = (long_ago, long_ago);
    let (gone, doubtful) = (batch[0].object.name.clone(), batch[1].object.name.clone());
    to.delete(&gone).await.unwrap();
    copier.name(&mut target, &archive.catalogue, batch).await.unwrap();
    to.delete(&doubtful).await.unwrap();
    let named = Catalogue::read(&to, CLUSTER).await.unwrap();
    assert_eq!((named.objects().count(), named.object(&gone), named.object(&doubtful)), (6, None, None));
    check(&to, &Identities::default(), &sample).await;
}

#[tokio::test]
async fn killed_at_any_point_a_copy_restores_what_it_names_and_is_gone_on_with() {
    let keys = keys();
    let (archive, sample) = Archive::filled(Faults::repository().0, Recipients::default()).await;
    for encrypted_anew in [false, true] {
        let recipients = if encrypted_anew { keys.1.clone() } else { Recipients::default() };
        let (none, scratch) = (Identities::default(), sample.folder.path());
        let reseal = Reseal { identities: &none, recipients: &recipients, scratch };
        let reseal = Some(reseal).filter(|_| encrypted_anew);
        let (mut killed_after, mut done) = (0, false);
        while !done {
            let (to, faults) = Faults::repository();
            faults.set(Fault::KilledAfter(killed_after));
            done = copy(&archive.repository, &to, CLUSTER, reseal, "test", |_, _| {}).await.is_ok();
            faults.clear();
            let named = Catalogue::read(&to, CLUSTER).await.unwrap();
            if named.head().is_some() {
                check(&to, &keys.0, &sample).await;
            }
            copy(&archive.repository, &to, CLUSTER, reseal, "test", |_, _| {}).await.unwrap();
            assert_eq!(check(&to, &keys.0, &sample).await.reached.unwrap().0, sample.entries[69].position);
            killed_after += 1;
        }
        assert!(killed_after > 7, "a marker, six objects and a manifest: {killed_after}");
    }
}
