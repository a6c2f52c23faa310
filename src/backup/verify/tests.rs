//! Whatever is wrong with an archive is found at the level that promises it, and named; a sound one passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::*;
use crate::backup::faults::{Fault, Faults};
use crate::backup::manifest::{Manifest, Sha, State};
use crate::backup::sample::{Archive, CLUSTER, Sample};
use crate::backup::seal::Recipients;
use crate::backup::transfer::store_entries;
use crate::codec::framed;

const LEVELS: [Level; 4] = [Level::Exist, Level::Chain, Level::Content, Level::Replay];

struct Setup {
    archive: Archive,
    sample: Sample,
    faults: Arc<Faults>,
    identities: Identities,
}

async fn setup(encrypted: bool) -> Setup {
    let (repository, faults) = Faults::repository();
    let (identities, public) = Identities::generate();
    let recipients = if encrypted { Recipients::parse(&[public]).unwrap() } else { Recipients::default() };
    let (archive, sample) = Archive::filled(repository, recipients).await;
    Setup { archive, sample, faults, identities }
}

impl Setup {
    async fn check(&self, level: Level) -> Result<Report, VerifyError> {
        let scratch = self.sample.folder.path().join("scratch");
        let scope = Scope { level, identities: &self.identities, scratch: &scratch };
        let report = verify(&self.archive.repository, CLUSTER, scope, &|_| {}).await;
        if let Ok(left) = std::fs::read_dir(&scratch) {
            assert_eq!(left.count(), 0, "something was left in the scratch folder");
        }
        report
    }

    /// From `level` on a check finds damage that says this, before it none.
    async fn found_from(&self, level: Level, says: &str) {
        for at in LEVELS {
            let report = self.check(at).await.unwrap();
            assert_eq!(report.passed(), at < level, "level {at:?}: {:?}", report.findings);
            let text = report.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert_eq!(text.contains(says), at >= level, "level {at:?}: {text}");
        }
    }

    fn object(&self, kind: Kind, nth: usize) -> Object {
        let objects = match kind {
            Kind::Full => self.archive.catalogue.fulls(),
            Kind::Log => self.archive.catalogue.segments(),
        };
        objects[nth].clone()
    }

    /// Has the archive say something else of an object.
    async fn say(&mut self, object: Object) {
        let drops = vec![object.name.clone()];
        self.archive.catalogue.append(&self.archive.repository, "n2", vec![], drops).await.unwrap();
        self.archive.catalogue.append(&self.archive.repository, "n2", vec![object], vec![]).await.unwrap();
    }
}

#[tokio::test]
async fn a_sound_archive_passes_at_every_level() {
    for encrypted in [false, true] {
        let setup = setup(encrypted).await;
        for level in LEVELS {
            let report = setup.check(level).await.unwrap();
            assert_eq!(report.findings, [], "level {level:?}");
            assert_eq!((report.objects, report.runs.len()), (6, 1));
            assert_eq!(report.runs[0].end, setup.sample.entries[69].position);
            let (entries, compared) =
                (if level >= Level::Content { 40 } else { 0 }, if level >= Level::Replay { 5 } else { 0 });
            assert_eq!((report.entries, report.compared), (entries, compared), "level {level:?}");
            let reached = (level >= Level::Replay).then(|| (setup.sample.entries[69].position, setup.sample.marks[69]));
            assert_eq!(report.reached, reached);
            let proof = report.proof("n1", WallTime::new(1), WallTime::new(5));
            assert!(proof.passed && proof.level == Some(level.number()) && proof.took_ms == 4);
        }
    }
}

#[tokio::test]
async fn a_missing_or_cut_object_is_found_by_the_listing_alone() {
    let setup = setup(true).await;
    let object = setup.object(Kind::Log, 1);
    let kept = setup.archive.repository.get(&object.name, 1 << 20).await.unwrap();
    setup.archive.repository.delete(&object.name).await.unwrap();
    setup.found_from(Level::Exist, "it is missing").await;
    setup.faults.put_raw(&object.name, kept.slice(..kept.len() - 1)).await;
    setup.found_from(Level::Exist, "and should have").await;
    setup.faults.put_raw(&object.name, kept).await;
    assert!(setup.check(Level::Replay).await.unwrap().passed());
}

#[tokio::test]
async fn a_flipped_byte_is_found_where_the_content_is_read() {
    for encrypted in [false, true] {
        let setup = setup(encrypted).await;
        for (kind, end) in [(Kind::Log, ".log.zst"), (Kind::Full, ".snapshot.zst")] {
            let name = setup.object(kind, 0).name;
            let sound = setup.archive.repository.get(&name, 1 << 20).await.unwrap();
            assert!(name.contains(end));
            let mut flipped = sound.to_vec();
            flipped[sound.len() / 2] ^= 1;
            setup.faults.put_raw(&name, flipped.into()).await;
            setup.found_from(Level::Content, &name).await;
            setup.faults.put_raw(&name, sound).await;
        }
    }
}

#[tokio::test]
async fn a_chain_that_was_changed_is_found_though_its_end_can_be_read() {
    let setup = setup(false).await;
    let name = Layout::new(CLUSTER).manifest(3);
    let sound = setup.archive.repository.get(&name, 1 << 20).await.unwrap();
    let changed = String::from_utf8(sound.to_vec()).unwrap().replace("n1", "n9");
    setup.faults.put_raw(&name, changed.into()).await;
    setup.found_from(Level::Exist, "does not continue the one before").await;
    setup.faults.put_raw(&name, bytes::Bytes::from_static(b"{")).await;
    setup.found_from(Level::Exist, "manifest 3: damaged").await;
    setup.archive.repository.delete(&name).await.unwrap();
    setup.found_from(Level::Exist, "manifest 3 is missing").await;
    setup.faults.put_raw(&name, sound).await;
    assert!(setup.check(Level::Chain).await.unwrap().passed());
}

#[tokio::test]
async fn a_manifest_that_is_missing_in_front_of_a_list_of_all_is_found_at_level_2() {
    let mut setup = setup(false).await;
    for _ in 0..crate::backup::catalogue::BASE_EVERY {
        setup.archive.catalogue.append(&setup.archive.repository, "n1", vec![], vec![]).await.unwrap();
    }
    let name = Layout::new(CLUSTER).manifest(100);
    setup.archive.repository.delete(&name).await.unwrap();
    setup.found_from(Level::Chain, "manifest 100 is missing").await;
}

#[tokio::test]
async fn what_is_left_of_an_archive_whose_manifests_are_gone_is_told_as_that() {
    let mut setup = setup(false).await;
    let repository = setup.archive.repository.clone();
    for object in repository.list(&Layout::new(CLUSTER).chain(), None).await.unwrap() {
        repository.delete(&object.name).await.unwrap();
    }
    let report = setup.check(Level::Exist).await.unwrap();
    assert_eq!((report.lost.len(), report.orphans.len()), (6, 0), "without any manifest all is");
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    setup.archive.catalogue = Catalogue::empty(CLUSTER);
    setup.sample.archive_full(&mut setup.archive).await;
    repository.create(&Layout::new(CLUSTER).full(99, 1, false), "x".into()).await.unwrap();
    let report = setup.check(Level::Chain).await.unwrap();
    assert_eq!((report.lost.len(), report.orphans.len()), (6, 1));
    let text: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.passed() && text[1].contains("6 objects") && text[1].contains("--lost"), "{text:?}");
}

#[tokio::test]
async fn a_list_of_all_that_differs_from_what_was_added_is_found_at_level_2() {
    let mut setup = setup(false).await;
    let catalogue = &mut setup.archive.catalogue;
    let head = catalogue.head().unwrap();
    // As from a program that lost an object when it wrote the list.
    let base: Vec<Object> = catalogue.objects().skip(1).cloned().collect();
    let manifest = Manifest {
        format: 1,
        cluster: layout::cluster_name(CLUSTER),
        seq: head.seq + 1,
        previous: Some(head.sha256),
        written_at: crate::clock::wall().get(),
        written_by: "n1".into(),
        began: None,
        adds: vec![],
        drops: vec![],
        base: Some(base),
    };
    let name = Layout::new(CLUSTER).manifest(head.seq + 1);
    setup.archive.repository.create(&name, manifest.encode().into()).await.unwrap();
    let level_1 = setup.check(Level::Exist).await.unwrap();
    assert!(level_1.passed(), "{:?}", level_1.findings);
    let report = setup.check(Level::Chain).await.unwrap();
    assert!(!report.passed() && report.findings[0].what.contains("does not list"), "{:?}", report.findings);
    assert_eq!(report.objects, 5, "the rest is checked all the same");
}

#[tokio::test]
async fn two_histories_under_one_id_are_found_at_level_2() {
    let mut setup = setup(false).await;
    let object = setup.object(Kind::Log, 2);
    let mark = object.state.unwrap();
    let other = Object {
        name: Layout::new(CLUSTER).log(40, object.last.index, 9, false),
        state: Some(State { hash: [9; 16], ..mark }),
        ..object.clone()
    };
    let bytes = setup.archive.repository.get(&object.name, 1 << 20).await.unwrap();
    setup.archive.repository.create(&other.name, bytes).await.unwrap();
    setup.archive.catalogue.append(&setup.archive.repository, "n2", vec![other], vec![]).await.unwrap();
    setup.found_from(Level::Chain, "another history").await;
}

#[tokio::test]
async fn an_object_that_is_sound_but_another_is_found_at_level_3() {
    let mut setup = setup(false).await;
    let (log, other) = (setup.object(Kind::Log, 0), setup.object(Kind::Log, 1));
    // The right hash, length and keys, of other entries.
    let swapped = Object { bytes: other.bytes, sha256: other.sha256, plain_bytes: other.plain_bytes, ..log.clone() };
    let bytes = setup.archive.repository.get(&other.name, 1 << 20).await.unwrap();
    setup.faults.put_raw(&log.name, bytes).await;
    setup.say(swapped).await;
    setup.found_from(Level::Content, "elsewhere than the manifest says").await;
}

#[tokio::test]
async fn a_state_that_replay_does_not_lead_to_is_found_at_level_4() {
    // A member whose state machine went wrong noted this hash.
    let (repository, faults) = Faults::repository();
    let (mut archive, mut sample) = (Archive::new(repository, Recipients::default()).await, Sample::new(2, 30));
    sample.archive_full(&mut archive).await;
    sample.grow(20);
    let mark = StateMark { hash: 99, ..sample.marks[49] };
    let (previous, entries) = (Some(sample.entries[29].position), sample.entries[30..].to_vec());
    let wrong = store_entries(&archive.repository, CLUSTER, previous, entries, Some(mark), &archive.recipients);
    let wrong = wrong.await.unwrap();
    archive.catalogue.append(&archive.repository, "n1", vec![wrong], vec![]).await.unwrap();
    let setup = Setup { archive, sample, faults, identities: Identities::default() };
    setup.found_from(Level::Replay, "but was 00000000000000000000000000000063 at").await;
    let reached = setup.check(Level::Replay).await.unwrap().reached.unwrap();
    assert_eq!(reached.0.index.get(), 29, "the last state that was right");
}

#[tokio::test]
async fn gaps_split_what_can_be_restored_and_each_part_is_replayed() {
    let (repository, faults) = Faults::repository();
    let (mut archive, mut sample) = (Archive::new(repository, Recipients::default()).await, Sample::new(3, 30));
    sample.archive_full(&mut archive).await;
    sample.grow(20);
    sample.archive_log(&mut archive, 30..=39).await;
    // 40 to 49 were purged before they were archived: a snapshot bridges them.
    sample.archive_full(&mut archive).await;
    sample.grow(10);
    sample.archive_log(&mut archive, 48..=59).await;
    let setup = Setup { archive, sample, faults, identities: Identities::default() };
    let report = setup.check(Level::Replay).await.unwrap();
    assert_eq!(report.findings, []);
    let runs: Vec<(u64, u64)> = report.runs.iter().map(|run| (run.full.last.index, run.end.index.get())).collect();
    assert_eq!(runs, [(29, 39), (49, 59)]);
    assert_eq!((report.entries, report.compared), (22, 4));
    assert_eq!(report.reached.unwrap().0.index.get(), 59);
}

#[tokio::test]
async fn what_could_not_be_checked_is_an_error_and_not_damage() {
    let mut setup = setup(true).await;
    setup.faults.set(Fault::Break(".age"));
    assert!(matches!(setup.check(Level::Content).await, Err(VerifyError::Store(error)) if error.is_transient()));
    setup.faults.set(Fault::Unavailable);
    assert!(matches!(setup.check(Level::Exist).await, Err(VerifyError::Marker(MarkerError::Store(_)))));
    setup.faults.clear();
    let keys = std::mem::take(&mut setup.identities);
    assert!(setup.check(Level::Chain).await.unwrap().passed(), "no key is needed");
    assert!(matches!(setup.check(Level::Content).await, Err(VerifyError::NoIdentity)));
    setup.identities = Identities::generate().0;
    for level in [Level::Content, Level::Replay] {
        assert!(matches!(setup.check(level).await, Err(VerifyError::WrongIdentity)), "level {level:?}");
    }
    setup.identities = keys;
    let scope = Scope { level: Level::Exist, identities: &setup.identities, scratch: setup.sample.folder.path() };
    let error = verify(&setup.archive.repository, ClusterId::new(8), scope, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("it holds 0000000000000007"), "{error}");
}

#[tokio::test]
async fn what_a_newer_program_wrote_is_an_error_and_not_damage() {
    for (kind, magic) in [(Kind::Log, *b"QLGH"), (Kind::Full, *b"QSNH")] {
        let mut setup = setup(false).await;
        let object = setup.object(kind, 0);
        let sealed = setup.archive.repository.get(&object.name, 1 << 20).await.unwrap();
        let mut plain = zstd::decode_all(&sealed[..]).unwrap();
        let at = plain.windows(4).position(|bytes| bytes == magic).unwrap();
        // The frame ends where its checksum is that of all before it.
        let end = (at + 5..plain.len() - 4)
            .find(|end| crc32c::crc32c(&plain[at..*end]).to_le_bytes() == plain[*end..*end + 4])
            .unwrap();
        let newer = framed::seal(magic, 99, &plain[at + 5..end]);
        plain[at..end + 4].copy_from_slice(&newer);
        let sealed = zstd::encode_all(&plain[..], 1).unwrap();
        let sha256 = Sha(Sha256::digest(&sealed).into());
        setup.faults.put_raw(&object.name, sealed.clone().into()).await;
        setup.say(Object { bytes: sealed.len() as u64, sha256, ..object.clone() }).await;
        assert!(setup.check(Level::Chain).await.unwrap().passed());
        for level in [Level::Content, Level::Replay] {
            let error = setup.check(level).await.unwrap_err();
            assert!(matches!(&error, VerifyError::Newer { name, .. } if *name == object.name), "{error}");
            assert!(error.to_string().contains("version 99"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_a_key_does_not_open_is_found_where_it_opens_the_rest() {
    let mut setup = setup(true).await;
    setup.sample.grow(10);
    setup.archive.recipients = Recipients::parse(&[Identities::generate().1]).unwrap();
    let name = setup.sample.archive_log(&mut setup.archive, 70..=79).await;
    for level in [Level::Content, Level::Replay] {
        let report = setup.check(level).await.unwrap();
        let shut: Vec<_> = report.findings.iter().map(|finding| (finding.object.as_deref(), finding.advice)).collect();
        assert!(!report.passed(), "level {level:?}");
        assert!(
            matches!(&shut[..], [(Some(object), advice)] if *object == name && advice.contains("--identity")),
            "{shut:?}"
        );
    }
}

#[tokio::test]
async fn orphans_and_a_clock_that_differs_are_told_but_no_damage() {
    let setup = setup(false).await;
    let orphan = Layout::new(CLUSTER).full(99, 1, false);
    setup.archive.repository.create(&orphan, "x".into()).await.unwrap();
    let head = setup.archive.catalogue.head().unwrap();
    let manifest = Manifest {
        format: 1,
        cluster: layout::cluster_name(CLUSTER),
        seq: head.seq + 1,
        previous: Some(head.sha256),
        written_at: head.written_at - 10 * SKEW,
        written_by: "n3".into(),
        began: None,
        adds: vec![],
        drops: vec![],
        base: None,
    };
    let name = Layout::new(CLUSTER).manifest(head.seq + 1);
    setup.archive.repository.create(&name, manifest.encode().into()).await.unwrap();
    let report = setup.check(Level::Chain).await.unwrap();
    assert!(report.passed() && report.orphans.len() == 1);
    let text: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(text.len() == 2 && text[0].contains("do not belong") && text[1].contains("differ by"), "{text:?}");
}

const SKEW: u64 = crate::backup::probe::SKEW_MILLIS_MAX;

#[tokio::test]
async fn an_archive_without_a_snapshot_does_not_pass() {
    let (repository, faults) = Faults::repository();
    let (mut archive, sample) = (Archive::new(repository, Recipients::default()).await, Sample::new(4, 20));
    sample.archive_log(&mut archive, 0..=19).await;
    let setup = Setup { archive, sample, faults, identities: Identities::default() };
    setup.found_from(Level::Exist, "nothing can be restored").await;
    assert_eq!(setup.check(Level::Replay).await.unwrap().entries, 20);
}

#[tokio::test]
async fn progress_ends_with_every_byte() {
    let setup = setup(true).await;
    let (seen, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let scope = Scope { level: Level::Replay, identities: &setup.identities, scratch: setup.sample.folder.path() };
    let progress = |progress: Progress| {
        seen.fetch_max(progress.bytes, Ordering::Relaxed);
        total.store(progress.bytes_total, Ordering::Relaxed);
    };
    let report = verify(&setup.archive.repository, CLUSTER, scope, &progress).await.unwrap();
    assert_eq!((seen.into_inner(), total.into_inner()), (report.bytes, report.bytes));
    assert_ne!(report.bytes, 0);
    let _: Sha = setup.object(Kind::Log, 0).sha256;
}
