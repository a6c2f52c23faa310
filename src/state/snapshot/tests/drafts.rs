//! Drafts: a new snapshot file that takes over an old one and goes on; one that is not finished leaves nothing.

use super::*;

/// A file of all records: the first ones are taken over from a file of theirs, the others are added.
fn drafted(folder: &Path, old: &[u8], newer: &[VersionedRecord], meta: &SnapshotMeta) -> (PathBuf, SnapshotSummary) {
    let (source, path) = (folder.join("old"), folder.join("new"));
    fs::write(&source, old).unwrap();
    let mut reader = SnapshotReader::open(&source).unwrap();
    reader.copy_to(Draft::create(&temporary(&path)).unwrap());
    for record in reader.by_ref() {
        record.unwrap();
    }
    let mut draft = reader.into_draft().unwrap();
    let begin = draft.next_revision();
    for record in newer.iter().filter(|record| record.revision >= begin) {
        draft.push::<Infallible>(record).unwrap();
    }
    let summary = draft.finish::<Infallible>(&path, meta, 3).unwrap();
    assert!(!temporary(&path).exists());
    (path, summary)
}

#[test]
fn a_draft_takes_a_snapshot_over_and_goes_on() {
    let (old, all) = (some_records(), [&some_records()[..], &[put("d", 7, "new"), delete("a", 9)]].concat());
    // What is passed over in the old file is not in the new one, and the older order of records is put right.
    let sources = [encoded(&old), fixture().1, FIXTURE_V1.to_vec(), encoded(&[]), encoded(&all)];
    for (at, source) in sources.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let meta =
            SnapshotMeta { cluster_id: ClusterId::new(5), membership: Bytes::from_static(b"n1"), ..meta_of(&all) };
        let (path, summary) = drafted(folder.path(), source, &all, &meta);
        assert_eq!(verify(&path).unwrap(), summary, "source {at}");
        assert_eq!((&summary.meta, summary.records, summary.keys), (&meta, 8, 3), "source {at}");
        let read: Vec<_> = SnapshotReader::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(read, all, "source {at}");
        // And it can be taken over like any other.
        let again = drafted(folder.path(), &fs::read(&path).unwrap(), &[], &meta).1;
        assert_eq!((again.records, again.meta), (8, meta), "source {at}");
    }
}

#[test]
fn a_draft_has_room_for_all_that_can_be_declared() {
    let mut targets = Targets::default();
    for number in 0..TARGETS_MAX {
        let (name, declaration) = (format!("{number:0>256}"), Bytes::from(vec![b'x'; TARGET_BYTES_MAX]));
        targets.apply(&TargetChange::Add { name, declaration }).unwrap();
    }
    let records = some_records();
    let meta = SnapshotMeta { membership: Bytes::from(vec![7; 60_000]), targets, ..meta_of(&records) };
    let folder = tempfile::tempdir().unwrap();
    let (path, summary) = drafted(folder.path(), &encoded(&records), &[], &meta);
    assert_eq!((verify(&path).unwrap(), &summary.meta), (summary.clone(), &meta));
}

#[test]
fn a_draft_that_is_not_finished_leaves_no_file() {
    let (_folder, path) = folder_and_path();
    let names = || fs::read_dir(path.parent().unwrap()).unwrap().count();
    let draft = || {
        let mut draft = Draft::create(&temporary(&path)).unwrap();
        for record in some_records() {
            draft.push::<Infallible>(&record).unwrap();
        }
        draft
    };
    drop(draft());
    assert_eq!(names(), 0);
    // Of a file that was not read to its end nothing is taken over.
    let source = encoded(&some_records());
    let mut reader = SnapshotReader::from_stream(&source[..source.len() - 1]).unwrap();
    reader.copy_to(Draft::create(&temporary(&path)).unwrap());
    assert!(reader.by_ref().any(|record| record.is_err()));
    assert!(reader.into_draft().is_none());
    assert_eq!(names(), 0);
    // Records that are not those of the header.
    let other = SnapshotMeta { hash: 1, ..meta_of(&some_records()) };
    let refused = draft().finish::<Infallible>(&path, &other, 3).unwrap_err();
    assert!(matches!(refused, WriteError::Mismatch(_)), "{refused}");
    let large = SnapshotMeta { membership: Bytes::from(vec![0; 1 << 19]), ..meta_of(&some_records()) };
    let refused = draft().finish::<Infallible>(&path, &large, 3).unwrap_err();
    assert!(matches!(refused, WriteError::HeaderTooLarge(_)), "{refused}");
    assert_eq!(names(), 0);
    // Records out of order.
    let refused = draft().push::<Infallible>(&put("z", 6, "")).unwrap_err();
    assert!(matches!(refused, WriteError::Unsorted { .. }), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_draft_has_any_records_behind_any_of_them(records in any_records(), at in any::<prop::sample::Index>()) {
        let cut = if records.is_empty() { 0 } else { at.index(records.len()) };
        // A revision is taken over whole or not at all.
        let cut = records.partition_point(|record| records.get(cut).is_some_and(|at| record.revision < at.revision));
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = drafted(folder.path(), &encoded(&records[..cut]), &records, &meta_of(&records));
        let read: Vec<_> = SnapshotReader::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read, records);
    }
}
