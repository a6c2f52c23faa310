//! Objects of data come back as they were, or not at all.

use std::fs;

use super::*;
use crate::backup::faults::{Fault, Faults};
use crate::backup::sample::{CLUSTER, Sample, position};
use crate::backup::segment::SegmentReader;
use crate::state::snapshot;

fn keys() -> [(Identities, Recipients); 2] {
    let (identity, public) = Identities::generate();
    [(Identities::default(), Recipients::default()), (identity, Recipients::parse(&[public]).unwrap())]
}

fn read_segment(path: &Path) -> Vec<LogEntry> {
    let mut reader = SegmentReader::new(BufReader::new(File::open(path).unwrap())).unwrap();
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        found.push(entry);
    }
    found
}

#[tokio::test]
async fn entries_and_a_snapshot_come_back_encrypted_or_not() {
    let sample = Sample::new(3, 80);
    let (path, meta) = sample.snapshot();
    let to = sample.folder.path().join("fetched");
    for (identities, recipients) in keys() {
        let (repository, _) = Faults::repository();
        let (previous, entries) = (Some(position(19)), sample.entries[20..].to_vec());
        let mark = Some(sample.marks[79]);
        let log = store_entries(&repository, CLUSTER, previous, entries.clone(), mark, &recipients).await.unwrap();
        assert_eq!((log.kind, log.previous, log.last), (Kind::Log, previous.map(Into::into), position(79).into()));
        assert_eq!(log.state.map(Into::into), mark);
        fetch(&repository, &log, &identities, &to, |_| {}).await.unwrap();
        assert_eq!(read_segment(&to), entries);

        let mut sent = 0;
        let full = store_snapshot(&repository, &path, &meta, &recipients, |bytes| {
            sent += bytes;
            std::future::ready(())
        })
        .await
        .unwrap();
        assert_eq!((full.bytes, full.plain_bytes), (sent as u64, fs::metadata(&path).unwrap().len()));
        let seen = std::sync::atomic::AtomicUsize::new(0);
        let count = |bytes| {
            seen.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        };
        fetch(&repository, &full, &identities, &to, count).await.unwrap();
        assert_eq!(seen.into_inner(), sent);
        assert_eq!(fs::read(&to).unwrap(), fs::read(&path).unwrap());
        assert_eq!(snapshot::verify(&to).unwrap().meta, meta);
    }
}

#[tokio::test]
async fn a_snapshot_of_many_parts_comes_back() {
    let sample = Sample::new(4, 10);
    let (path, meta) = sample.snapshot();
    let large = path.with_extension("large");
    // Transfer does not look into the file. Random bytes don't get smaller.
    let content: Vec<u8> = (0..PART_BYTES * 5 / 2).map(|_| rand::random()).collect();
    fs::write(&large, &content).unwrap();
    for (identities, recipients) in keys() {
        let (repository, faults) = Faults::repository();
        let mut parts = Vec::new();
        let store = store_snapshot(&repository, &large, &meta, &recipients, |bytes| {
            parts.push(bytes);
            std::future::ready(())
        });
        let object = store.await.unwrap();
        assert_eq!(parts.len(), 3);
        assert!(parts[..2].iter().all(|part| *part == PART_BYTES));
        let to = large.with_extension("fetched");
        fetch(&repository, &object, &identities, &to, |_| {}).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), content);

        faults.set(Fault::FailParts(2));
        assert!(store_snapshot(&repository, &large, &meta, &recipients, async |_| {}).await.is_err());
        faults.clear();
        assert_eq!(repository.list("0000000000000007/full", None).await.unwrap().len(), 1, "nothing appeared");
    }
}

#[tokio::test]
async fn what_is_damaged_cut_missing_or_of_another_length_never_gets_its_name() {
    let sample = Sample::new(5, 60);
    for (identities, recipients) in keys() {
        let (repository, faults) = Faults::repository();
        let entries = sample.entries[10..].to_vec();
        let stored = store_entries(&repository, CLUSTER, Some(position(9)), entries, None, &recipients).await.unwrap();
        let to = sample.folder.path().join("fetched");
        let fetch = async |object: &Object| {
            let error = fetch(&repository, object, &identities, &to, |_| {}).await.unwrap_err();
            assert!(!to.exists(), "{error}");
            error
        };
        faults.set(Fault::Flip(".zst"));
        if !recipients.is_empty() {
            faults.set(Fault::Flip(".age"));
        }
        assert!(matches!(fetch(&stored).await, FetchError::Damaged { .. }));
        for end in [".zst", ".age"].into_iter().filter(|end| stored.name.ends_with(end)) {
            faults.set(Fault::Cut(end));
            assert!(matches!(fetch(&stored).await, FetchError::Damaged { .. } | FetchError::Open { .. }));
            faults.set(Fault::Break(end));
            assert!(matches!(fetch(&stored).await, FetchError::Store(StoreError::Failed { .. })), "not damage");
            faults.set(Fault::Missing(end));
            assert!(matches!(fetch(&stored).await, FetchError::Store(StoreError::Missing { .. })));
        }
        faults.clear();
        let others = [
            Object { bytes: stored.bytes + 1, ..stored.clone() },
            Object { sha256: Sha([0; 32]), ..stored.clone() },
            Object { plain_bytes: stored.plain_bytes - 1, ..stored.clone() },
            Object { plain_bytes: stored.plain_bytes + 1, ..stored.clone() },
        ];
        for other in others {
            assert!(matches!(fetch(&other).await, FetchError::Damaged { .. }));
        }
        // The same object with something behind its end, which its formats might not look at.
        let longer = [repository.get(&stored.name, 1 << 20).await.unwrap().as_ref(), b"more"].concat();
        faults.put_raw(&stored.name, longer.clone().into()).await;
        assert!(matches!(fetch(&stored).await, FetchError::Damaged { .. }));
        let told = Object { bytes: stored.bytes + 4, ..stored.clone() };
        assert!(matches!(fetch(&told).await, FetchError::Damaged { .. }));
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_failure_and_a_storm_is_one() {
    let (sample, (repository, faults)) = (Sample::new(6, 20), Faults::repository());
    let entries = || sample.entries[10..].to_vec();
    let keys = Recipients::default();
    faults.set(Fault::LoseAnswers(1));
    let stored = store_entries(&repository, CLUSTER, Some(position(9)), entries(), None, &keys).await.unwrap();
    let to = sample.folder.path().join("fetched");
    fetch(&repository, &stored, &Identities::default(), &to, |_| {}).await.unwrap();
    faults.set(Fault::Unavailable);
    let error = store_entries(&repository, CLUSTER, Some(position(9)), entries(), None, &keys).await.unwrap_err();
    assert!(matches!(&error, StoreDataError::Store(error) if error.is_transient()), "{error}");
}

#[tokio::test]
async fn a_wrong_key_is_told_as_such() {
    let (sample, (repository, _)) = (Sample::new(6, 20), Faults::repository());
    let (_, recipients) = &keys()[1];
    let stored = store_entries(&repository, CLUSTER, None, sample.entries.clone(), None, recipients).await.unwrap();
    let to = sample.folder.path().join("fetched");
    for (keys, says) in [(Identities::generate().0, "other public keys"), (Identities::default(), "--identity")] {
        let error = fetch(&repository, &stored, &keys, &to, |_| {}).await.unwrap_err();
        assert!(matches!(&error, FetchError::Open { .. }) && error.to_string().contains(says), "{error}");
        assert!(!to.exists());
    }
}

/// What an object is encrypted to stands in it, too.
#[tokio::test]
async fn a_damaged_beginning_is_not_told_as_a_wrong_key() {
    let (sample, (repository, faults)) = (Sample::new(6, 20), Faults::repository());
    let (identities, recipients) = &keys()[1];
    let stored = store_entries(&repository, CLUSTER, None, sample.entries.clone(), None, recipients).await.unwrap();
    let to = sample.folder.path().join("fetched");
    let sound = repository.get(&stored.name, 1 << 20).await.unwrap();
    let mut as_wrong_key = 0;
    for at in 0..200 {
        let mut bad = sound.to_vec();
        bad[at] ^= 1;
        let opened = OpenReader::new(&bad[..], true, identities).map(drop);
        as_wrong_key += u32::from(matches!(opened, Err(OpenError::WrongIdentity)));
        faults.put_raw(&stored.name, bad.into()).await;
        let error = fetch(&repository, &stored, identities, &to, |_| {}).await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains("damaged") && !told.contains("other public keys"), "byte {at}: {told}");
    }
    assert!(as_wrong_key > 50, "age itself tells {as_wrong_key} of them as a wrong key");
}

#[tokio::test]
async fn a_disk_that_is_full_or_not_there_is_no_damage() {
    let (sample, (repository, _)) = (Sample::new(6, 20), Faults::repository());
    let stored =
        store_entries(&repository, CLUSTER, None, sample.entries.clone(), None, &Recipients::default()).await.unwrap();
    let nowhere = sample.folder.path().join("missing/fetched");
    let error = fetch(&repository, &stored, &Identities::default(), &nowhere, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::Local { .. }), "{error}");
}
