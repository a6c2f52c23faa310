//! What a snapshot file promises: it comes back, and whatever is wrong with one is found and named.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::format::{
    BLOCK_HEAD_BYTES, BlockHead, FLAG_SKIPPABLE, FLAG_ZSTD, FOOTER_BYTES, HEADER_MAGIC, PREAMBLE_BYTES,
    SECTION_RECORDS, encode_preamble, put_record,
};
use super::tally::{RecordOrder, Tally};
use super::writer::{Encoder, encode, encode_header};
use super::*;
use crate::codec::{framed, golden};
use crate::state::{Change, TARGET_BYTES_MAX, TARGETS_MAX, TargetChange, Targets, VersionedRecord};
use crate::types::limits::VALUE_BYTES_MAX;
use crate::types::{Key, LeaseId, LogIndex, NodeId, Term};

mod drafts;

const FIXTURE: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/snapshot-v2.snapshot"));

/// The same records in the order of the first version.
const FIXTURE_V1: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/snapshot-v1.snapshot"));

/// A section that no program knows.
const SECTION_UNKNOWN: u16 = 77;

fn put(key: &str, revision: u64, value: impl Into<Bytes>) -> VersionedRecord {
    VersionedRecord {
        key: Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap(),
        revision: Revision::new(revision),
        sub: 1,
        change: Change::Put {
            create_revision: Revision::new(revision / 2),
            version: 300,
            lease: LeaseId::new(u64::MAX),
            value: value.into(),
        },
    }
}

fn delete(key: &str, revision: u64) -> VersionedRecord {
    VersionedRecord { change: Change::Delete, sub: u32::MAX, ..put(key, revision, "") }
}

/// Three live keys, one deleted, one with history.
fn some_records() -> Vec<VersionedRecord> {
    vec![
        put("a", 1, "first"),
        put("b", 2, "to be deleted"),
        put("c", 3, "last"),
        put("b\0", 4, vec![b'x'; 300]),
        put("a", 5, ""),
        delete("b", 6),
    ]
}

/// How many keys have a value in the end.
fn live_keys(records: &[VersionedRecord]) -> u64 {
    let live: BTreeMap<_, _> = records.iter().map(|record| (&record.key, record.meta().is_some())).collect();
    live.values().filter(|is_live| **is_live).count() as u64
}

fn meta_of(records: &[VersionedRecord]) -> SnapshotMeta {
    SnapshotMeta {
        cluster_id: ClusterId::new(0xC0FFEE),
        position: Some(LogPosition { term: Term::new(3), leader: NodeId::new(2), index: LogIndex::new(99) }),
        membership: Bytes::from_static(b"members"),
        revision: records.iter().map(|record| record.revision).max().unwrap_or_default(),
        compacted: Revision::ZERO,
        hash: records.iter().fold(0, |hash, record| hash.wrapping_add(record.hash())),
        created_at: WallTime::new(1_700_000_000_000),
        targets: Targets::default(),
    }
}

fn sound(records: &[VersionedRecord]) -> impl Iterator<Item = Result<VersionedRecord, Infallible>> {
    records.iter().cloned().map(Ok)
}

fn encoded(records: &[VersionedRecord]) -> Vec<u8> {
    encode(Vec::new(), &meta_of(records), live_keys(records), sound(records)).unwrap().1
}

fn read_all(bytes: &[u8]) -> Result<Vec<VersionedRecord>, SnapshotError> {
    SnapshotReader::from_stream(bytes)?.collect()
}

/// A file put together by hand; the tally is of `records`, whatever the blocks hold.
fn assembled(records: &[VersionedRecord], blocks: impl FnOnce(&mut Encoder<Vec<u8>>)) -> Vec<u8> {
    let meta = meta_of(records);
    let mut encoder = Encoder::new(Vec::new()).unwrap();
    encoder.header(&encode_header::<Infallible>(&meta).unwrap()).unwrap();
    blocks(&mut encoder);
    let mut tally = Tally::new(RecordOrder::Revision);
    for record in records {
        tally.add(record).unwrap();
    }
    encoder.finish(&meta, &tally, live_keys(records)).unwrap().1
}

fn body(records: &[VersionedRecord]) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        put_record(&mut out, record);
    }
    out
}

/// What the bytes of the fixture were made of: a compressed block, a section to pass over, a block stored as it is.
fn fixture() -> (Vec<VersionedRecord>, Vec<u8>) {
    let records = some_records();
    let bytes = assembled(&records, |encoder| {
        encoder.block(SECTION_RECORDS, 0, 5, &body(&records[..5])).unwrap();
        encoder.block(SECTION_UNKNOWN, FLAG_SKIPPABLE, 1, b"something of later days").unwrap();
        encoder.block(SECTION_RECORDS, 0, 1, &body(&records[5..])).unwrap();
    });
    (records, bytes)
}

fn damage(result: Result<SnapshotSummary, SnapshotError>) -> (u64, String) {
    match result {
        Err(SnapshotError::Damaged { at_byte, what }) => (at_byte, what),
        other => panic!("expected damage, got {other:?}"),
    }
}

fn folder_and_path() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("3-99.snapshot");
    (folder, path)
}

fn temporary(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.tmp", path.display()))
}

#[test]
fn a_snapshot_comes_back_as_it_was_written() {
    let (_folder, path) = folder_and_path();
    let records = some_records();
    let meta = meta_of(&records);
    let written = write(&path, &meta, live_keys(&records), sound(&records)).unwrap();
    assert_eq!((written.records, written.keys, &written.meta), (6, 3, &meta));
    assert_eq!(written.file_bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(written.sha256[..], <sha2::Sha256 as sha2::Digest>::digest(fs::read(&path).unwrap())[..]);
    assert_eq!(inspect(&path).unwrap(), meta);
    assert_eq!(verify(&path).unwrap(), written);
    let mut reader = SnapshotReader::open(&path).unwrap();
    assert_eq!(reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), records);
    assert_eq!(reader.summary(), Some(&written));
    assert_eq!(reader.bytes_read(), written.file_bytes);
    assert!(!temporary(&path).exists());
}

#[test]
fn an_empty_store_has_a_snapshot_too() {
    let bytes = encoded(&[]);
    assert_eq!(read_all(&bytes).unwrap(), []);
    let summary = verify_stream(&bytes[..]).unwrap();
    assert_eq!((summary.records, summary.keys, summary.meta.revision), (0, 0, Revision::ZERO));
}

#[test]
fn large_records_and_many_blocks_come_back() {
    let value = |fill: u8| Bytes::from(vec![fill; VALUE_BYTES_MAX]);
    let mut records: Vec<_> = (0..3).map(|n| put(&format!("big-{n}"), 10 + n, value(n as u8))).collect();
    records.extend((0..20_000).map(|n| put(&format!("key-{n:05}"), 100 + n, format!("value of {n}"))));
    let bytes = encoded(&records);
    assert_eq!(read_all(&bytes).unwrap(), records);
    assert!(bytes.len() < 400_000, "blocks are compressed: {}", bytes.len());
}

#[test]
fn a_file_that_stood_under_the_name_and_a_left_over_temporary_are_replaced() {
    let (_folder, path) = folder_and_path();
    fs::write(&path, "older").unwrap();
    fs::write(temporary(&path), vec![7; 100_000]).unwrap();
    let written = write(&path, &meta_of(&some_records()), 3, sound(&some_records())).unwrap();
    assert_eq!(verify(&path).unwrap(), written);
    assert!(!temporary(&path).exists());
}

#[test]
fn a_refused_snapshot_leaves_the_older_one_and_no_temporary() {
    let (_folder, path) = folder_and_path();
    let before = write(&path, &meta_of(&some_records()), 3, sound(&some_records())).unwrap();
    let broken = some_records().into_iter().map(Ok).chain([Err("the disk is gone")]);
    let error = write(&path, &meta_of(&some_records()), 3, broken).unwrap_err();
    assert_eq!(error.to_string(), "the records of the snapshot can't be read: the disk is gone");
    assert_eq!(verify(&path).unwrap(), before);
    assert!(!temporary(&path).exists());
}

#[test]
fn records_out_of_order_or_twice_are_refused_when_written_and_when_read() {
    for records in [[put("a", 1, ""), put("b", 1, "")], [put("a", 2, ""), put("b", 1, "")]] {
        let error = encode(Vec::new(), &meta_of(&records), 0, sound(&records)).unwrap_err();
        assert!(matches!(error, WriteError::Unsorted { .. }), "{error}");
        let bytes = assembled(&[], |encoder| encoder.block(SECTION_RECORDS, 0, 2, &body(&records)).unwrap());
        assert!(verify_stream(&bytes[..]).is_err());
    }
}

#[test]
fn records_that_are_not_those_of_the_header_are_refused() {
    let records = some_records();
    let meta = meta_of(&records);
    let metas = [
        SnapshotMeta { hash: meta.hash ^ 1, ..meta.clone() },
        SnapshotMeta { revision: Revision::new(7), ..meta.clone() },
        SnapshotMeta { revision: Revision::new(5), ..meta.clone() },
        SnapshotMeta { compacted: Revision::new(7), ..meta.clone() },
    ];
    for wrong in metas {
        let error = encode(Vec::new(), &wrong, 0, sound(&records)).unwrap_err();
        assert!(matches!(error, WriteError::Mismatch(_)), "{error}");
        // The same, had another program written it.
        let mut bytes = encoded(&records);
        let header = header_bytes(&wrong);
        bytes.splice(..header_bytes(&meta).len(), header);
        assert!(verify_stream(&bytes[..]).is_err());
    }
}

#[test]
fn a_revision_whose_record_was_compacted_away_is_fine() {
    let records = [put("a", 1, "v")];
    let meta = SnapshotMeta { revision: Revision::new(9), compacted: Revision::new(9), ..meta_of(&records) };
    let bytes = encode(Vec::new(), &meta, 0, sound(&records)).unwrap().1;
    assert_eq!(verify_stream(&bytes[..]).unwrap().meta, meta);
}

#[test]
fn a_record_or_header_over_the_bounds_is_refused() {
    let records = [put("a", 1, vec![0; BLOCK_BYTES_MAX])];
    let error = encode(Vec::new(), &meta_of(&records), 0, sound(&records)).unwrap_err();
    assert!(matches!(error, WriteError::RecordTooLarge { .. }), "{error}");
    let meta = SnapshotMeta { membership: vec![0; HEADER_BYTES_MAX].into(), ..meta_of(&[]) };
    let error = encode(Vec::new(), &meta, 0, sound(&[])).unwrap_err();
    assert!(matches!(error, WriteError::HeaderTooLarge(_)), "{error}");
}

#[test]
fn the_bytes_of_version_two_stay_readable() {
    let (records, bytes) = fixture();
    assert_eq!(read_all(FIXTURE).unwrap(), records);
    // What is written today reads the same, though another compressor may write other bytes.
    assert_eq!(read_all(&bytes).unwrap(), records);
    let summary = verify_stream(FIXTURE).unwrap();
    assert_eq!(summary.meta, meta_of(&records));
    assert_eq!((summary.records, summary.keys, summary.file_bytes), (6, 3, FIXTURE.len() as u64));
}

#[test]
fn a_snapshot_of_version_one_by_keys_stays_readable() {
    let (mut records, _) = fixture();
    records.sort_by(|a, b| (&a.key, a.revision).cmp(&(&b.key, b.revision)));
    assert_eq!(read_all(FIXTURE_V1).unwrap(), records);
    let summary = verify_stream(FIXTURE_V1).unwrap();
    assert_eq!(summary.meta, meta_of(&records));
    assert_eq!((summary.records, summary.keys, summary.file_bytes), (6, 3, FIXTURE_V1.len() as u64));
}

#[test]
fn every_flipped_bit_is_noticed() {
    for bytes in [FIXTURE.to_vec(), FIXTURE_V1.to_vec(), encoded(&some_records()[..2]), encoded(&[])] {
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match verify_stream(&bad[..]) {
                Err(SnapshotError::NotASnapshot { .. }) => assert!(bit < 64, "bit {bit}"),
                Err(SnapshotError::Damaged { at_byte, .. }) => assert!(at_byte <= bit as u64 / 8, "bit {bit}"),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
    }
}

#[test]
fn every_cut_is_told_apart_from_damage() {
    for len in 0..FIXTURE.len() {
        match verify_stream(&FIXTURE[..len]) {
            Err(SnapshotError::Cut { at_byte }) => assert_eq!(at_byte, len as u64),
            other => panic!("cut to {len}: {other:?}"),
        }
    }
}

#[test]
fn the_last_record_is_withheld_until_the_footer_is_verified() {
    let records = some_records();
    let bytes = encoded(&records);
    let mut reader = SnapshotReader::from_stream(&bytes[..bytes.len() - 1]).unwrap();
    let read: Vec<_> = reader.by_ref().collect();
    assert_eq!(read.iter().filter(|item| item.is_ok()).count(), records.len() - 1);
    assert!(matches!(read.last(), Some(Err(SnapshotError::Cut { .. }))));
    assert!(reader.next().is_none());
    assert_eq!(reader.summary(), None);
    assert!(reader.finish().is_err());
}

#[test]
fn bytes_behind_the_end_are_damage() {
    let mut bytes = encoded(&some_records());
    let len = bytes.len() as u64;
    bytes.push(0);
    assert_eq!(damage(verify_stream(&bytes[..])), (len, "there are bytes behind the end of the snapshot".into()));
    assert!(verify_stream((&bytes[..]).take(len)).is_ok());
}

#[test]
fn parts_of_two_sound_files_never_make_a_third() {
    let records = some_records();
    let (one, other) = (encoded(&records), encoded(&records[..5]));
    let header = header_bytes(&meta_of(&records)).len();
    let mut spliced = one.clone();
    spliced.splice(header.., other[header_bytes(&meta_of(&records[..5])).len()..].iter().copied());
    assert!(verify_stream(&spliced[..]).is_err());
    // The same data under another time and position: only the chain of checksums tells.
    let meta = SnapshotMeta { position: None, ..meta_of(&records) };
    let mut spliced = one;
    spliced.splice(..header, header_bytes(&meta));
    let (_, what) = damage(verify_stream(&spliced[..]));
    assert!(what.contains("footer does not fit"), "{what}");
}

#[test]
fn a_foreign_file_is_no_snapshot() {
    let error = verify_stream(&b"SQLite format 3\0"[..]).unwrap_err();
    assert_eq!(error.to_string(), "not a snapshot: it begins with \"SQLite f\"; check the path");
    let error = inspect(Path::new("/nowhere/at/all.snapshot")).unwrap_err();
    assert!(error.to_string().starts_with("open the snapshot /nowhere/at/all.snapshot: "), "{error}");
}

#[test]
fn a_newer_version_is_refused_with_both_versions_named() {
    let frame = framed::seal(HEADER_MAGIC, FORMAT_VERSION + 1, b"whatever it may hold");
    let bytes = [&encode_preamble(frame.len() as u32)[..], &frame].concat();
    let error = verify_stream(&bytes[..]).unwrap_err();
    assert!(matches!(error, SnapshotError::Newer { found: 4, newest: 3 }), "{error}");
    let message = "the snapshot has format version 4, the newest this program reads is 3; it needs a newer program";
    assert_eq!(error.to_string(), message);
}

#[test]
fn declared_places_for_backups_stand_in_the_header_of_a_version_of_its_own() {
    let (_folder, path) = folder_and_path();
    let records = some_records();
    let plain = meta_of(&records);
    let mut meta = plain.clone();
    let declaration = Bytes::from_static(b"declaration");
    meta.targets.apply(&TargetChange::Add { name: "off-site".into(), declaration }).unwrap();
    let written = write(&path, &meta, live_keys(&records), sound(&records)).unwrap();
    assert_eq!((&written.meta, verify(&path).unwrap()), (&meta, written.clone()));
    assert_eq!(inspect(&path).unwrap().applied().targets, meta.targets);
    let header = encode_header::<Infallible>(&meta).unwrap();
    let stored = golden::check("snapshot-header-v3", [("header", header)]);
    assert_eq!((stored["header"][4], encode_header::<Infallible>(&plain).unwrap()[4]), (3, 2));
    // A file of version 3 without them is none that this program has written.
    let body = postcard::to_stdvec(&plain).unwrap();
    let frame = framed::seal(HEADER_MAGIC, 3, &body);
    let bytes = [&encode_preamble(frame.len() as u32)[..], &frame].concat();
    assert!(damage(verify_stream(&bytes[..])).1.contains("header can't be decoded"));
}

#[test]
fn an_unknown_section_is_passed_over_only_if_it_says_so() {
    for (section, flags) in [(SECTION_UNKNOWN, 0), (SECTION_RECORDS, 0x80), (SECTION_RECORDS, FLAG_SKIPPABLE)] {
        let bytes = assembled(&[], |encoder| encoder.block(section, flags, 1, b"leases").unwrap());
        let error = verify_stream(&bytes[..]).unwrap_err();
        assert!(matches!(error, SnapshotError::NewerSection { .. }), "{error}");
        assert!(error.to_string().ends_with("it needs a newer program"), "{error}");
    }
    let bytes = assembled(&[], |encoder| encoder.block(SECTION_UNKNOWN, FLAG_SKIPPABLE | 0x80, 1, b"hints").unwrap());
    assert!(verify_stream(&bytes[..]).is_ok());
}

/// Fails the test when it is read.
struct Forbidden;

impl Read for Forbidden {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        panic!("{} bytes were asked for by a length that was not checked", out.len());
    }
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_anything_is_read_by_it() {
    let over = BLOCK_BYTES_MAX as u32 + 1;
    for (stored_len, plain_len) in [(over, 10), (10, over), (u32::MAX, u32::MAX)] {
        for (section, flags) in [(SECTION_RECORDS, FLAG_ZSTD), (SECTION_UNKNOWN, FLAG_SKIPPABLE), (u16::MAX, 0)] {
            let head = BlockHead { section, flags, stored_len, plain_len, items: 1, body_crc: 0 };
            let bytes = [&header_bytes(&meta_of(&[]))[..], &head.encode()].concat();
            let (_, what) = damage(verify_stream(bytes.chain(Forbidden)));
            assert!(what.contains("at most 16777216 are allowed"), "{what}");
        }
    }
    let preamble = encode_preamble(HEADER_BYTES_MAX as u32 + 1);
    let (at_byte, what) = damage(verify_stream(preamble.chain(Forbidden)));
    assert_eq!((at_byte, what.contains("at most 1048576")), (PREAMBLE_BYTES as u64, true), "{what}");
}

#[test]
fn a_block_that_decompresses_to_another_length_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 4 * BLOCK_BYTES_MAX], 1).unwrap();
    for plain_len in [10, 1024 * 1024, BLOCK_BYTES_MAX] {
        let bytes =
            assembled(&[], |encoder| encoder.block_stored(SECTION_RECORDS, FLAG_ZSTD, 1, plain_len, &bomb).unwrap());
        let (_, what) = damage(verify_stream(&bytes[..]));
        assert!(what.contains(&format!("does not decompress to {plain_len} bytes")), "{what}");
    }
    let small = zstd::bulk::compress(&[0; 50], 1).unwrap();
    let bytes = assembled(&[], |encoder| encoder.block_stored(SECTION_RECORDS, FLAG_ZSTD, 1, 51, &small).unwrap());
    assert_eq!(damage(verify_stream(&bytes[..])).1, "the block decompresses to 50 bytes instead of 51");
}

#[test]
fn a_count_that_a_block_cannot_hold_is_refused() {
    let records = some_records();
    for (items, plain) in [(0, body(&records)), (5, body(&records)), (7, body(&records)), (u32::MAX, body(&records))] {
        let bytes = assembled(&records, |encoder| encoder.block(SECTION_RECORDS, 0, items, &plain).unwrap());
        let (at_byte, _) = damage(verify_stream(&bytes[..]));
        assert_eq!(at_byte, header_bytes(&meta_of(&records)).len() as u64, "{items} records");
    }
}

#[test]
fn a_reader_can_go_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<SnapshotReader>();
}

#[test]
fn the_pieces_have_the_sizes_of_the_documentation() {
    assert_eq!((PREAMBLE_BYTES, BLOCK_HEAD_BYTES, FOOTER_BYTES), (16, 24, 60));
    let bytes = encoded(&[]);
    assert_eq!(bytes.len(), header_bytes(&meta_of(&[])).len() + 24 + 60);
    assert_eq!((&bytes[..8], &bytes[bytes.len() - 8..]), (&b"\x89QSN\r\n\x1a\n"[..], &b"QSNAPEND"[..]));
}

fn header_bytes(meta: &SnapshotMeta) -> Vec<u8> {
    let frame = encode_header::<Infallible>(meta).unwrap();
    [&encode_preamble(frame.len() as u32)[..], &frame].concat()
}

fn any_change() -> impl Strategy<Value = Change> {
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (any::<u8>(), 0..9_000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop_oneof![
        1 => Just(Change::Delete),
        3 => (any::<u64>(), any::<u64>(), any::<u64>(), value).prop_map(|(create_revision, version, lease, value)| {
            Change::Put {
                create_revision: Revision::new(create_revision),
                version,
                lease: LeaseId::new(lease),
                value: value.into(),
            }
        }),
    ]
}

fn any_records() -> impl Strategy<Value = Vec<VersionedRecord>> {
    // Few keys, so that they have histories, and some of any length.
    let key = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..3),
        prop::collection::vec(any::<u8>(), 1..40),
        (any::<u8>()).prop_map(|byte| vec![byte; crate::types::limits::KEY_BYTES_MAX]),
    ];
    let revision = prop_oneof![1..20_u64, any::<u64>()];
    prop::collection::btree_map((revision, any::<u32>()), (key, any_change()), 0..120).prop_map(|map| {
        map.into_iter()
            .map(|((revision, sub), (key, change))| VersionedRecord {
                key: Key::new(key).unwrap(),
                revision: Revision::new(revision),
                sub,
                change,
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_records_come_back(records in any_records()) {
        let (_folder, path) = folder_and_path();
        let written = write(&path, &meta_of(&records), live_keys(&records), sound(&records)).unwrap();
        let read: Vec<_> = SnapshotReader::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(written.keys, live_keys(&read));
        prop_assert_eq!(&read, &records);
    }

    #[test]
    fn a_changed_byte_and_a_cut_of_any_file_are_noticed(
        records in any_records(), place in any::<prop::sample::Index>(), change in 1..=255_u8,
    ) {
        let mut bytes = encoded(&records);
        let at = place.index(bytes.len());
        let is_cut = matches!(verify_stream(&bytes[..at]), Err(SnapshotError::Cut { .. }));
        prop_assert!(is_cut);
        bytes[at] ^= change;
        prop_assert!(verify_stream(&bytes[..]).is_err());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), has_header in any::<bool>()) {
        let header = if has_header { header_bytes(&meta_of(&[])) } else { Vec::new() };
        prop_assert!(verify_stream(&[header, bytes].concat()[..]).is_err());
    }

    #[test]
    fn arbitrary_bodies_under_right_checksums_never_panic(
        body in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..200),
        items in 0..50_u32,
        zstd in any::<bool>(),
    ) {
        let records = [put("a", 1, "v")];
        let flags = if zstd { FLAG_ZSTD } else { 0 };
        let bytes = assembled(&records, |encoder| {
            encoder.block_stored(SECTION_RECORDS, flags, items, body.len(), &body).unwrap();
        });
        prop_assert!(verify_stream(&bytes[..]).is_err());
    }
}
