//! An archive in stores as they are in use: S3, Azure, Google, and a folder of the local disk.
//!
//! Method: each store goes through the same course: probe, writers that compete for the chain, snapshots of several parts,
//! listings of several pages, verification with a replay, a restore by the command, copies, pruning, and what is said of a bucket that does not exist.
//! scripts/backup-stores starts the servers and sets the variables below; a store whose variable is not set is passed over,
//! and that is printed. Guarantees: what was not tried is never told as passed. Leaves out: faults (`src/backup/`).
//!
//! | variable | means |
//! |---|---|
//! | `QUORATE_TEST_S3_URL`, `…_AZ_URL`, `…_GS_URL` | an empty place of that store; options as in the environment of each cloud |
//! | `QUORATE_TEST_LYING_GS_URL` | with `…_LYING_GS_BASE`: one that replaces objects although it should create them only |
//! | `QUORATE_TEST_AGE` | the programs `age` and `zstd` are there, and can be tried |

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::backup::catalogue::{Catalogue, CatalogueError};
use quorate::backup::manifest::Object;
use quorate::backup::probe::{ProbeError, probe};
use quorate::backup::prune::{self, How};
use quorate::backup::repository::{Repository, StoreError};
use quorate::backup::retention::Keep;
use quorate::backup::seal::{Identities, Recipients};
use quorate::backup::segment::{SegmentHeader, SegmentWriter, StateMark};
use quorate::backup::target::{self, Options};
use quorate::backup::transfer::{store_entries, store_snapshot};
use quorate::backup::verify::{Level, Report, Scope, verify};
use quorate::backup::{copy, marker};
use quorate::clock;
use quorate::state::snapshot::{self, SnapshotMeta};
use quorate::state::{
    Batch, Command, LogContent, LogEntry, Operation, Principal, StateConfig, StateMachine, Targets, Txn, TxnOp,
};
use quorate::storage::MemoryEngine;
use quorate::types::{ClusterId, Key, LeaseId, LogIndex, LogPosition, NodeId, Term, WallTime};

const CLUSTER: ClusterId = ClusterId::new(0xC1);

/// Writers that append to one chain at the same time, and how often each.
const WRITERS: usize = 4;
const APPENDS: usize = 8;

/// More than stores list at once.
const MANIFESTS: u64 = 1_050;

fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        println!("{name} is not set (scripts/backup-stores sets it): this store was NOT tried");
    }
    value
}

/// A place of its own below an URL.
fn below(url: &str, name: &str) -> Repository {
    let url = format!("{}/{name}-{:08x}", url.trim_end_matches('/'), std::process::id());
    target::open(&url, &Options::new()).unwrap()
}

struct History {
    machine: StateMachine,
    entries: Vec<LogEntry>,
    folder: tempfile::TempDir,
}

impl History {
    fn new() -> Self {
        let machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        Self { machine, entries: Vec::new(), folder: tempfile::tempdir().unwrap() }
    }

    /// Writes values that don't get smaller by compression; gives the entries.
    fn write(&mut self, entries: usize, value_bytes: usize) -> Vec<LogEntry> {
        let begin = self.entries.len();
        for index in begin..begin + entries {
            let index = index as u64;
            let value: Vec<u8> = (0..value_bytes).map(|_| rand::random()).collect();
            let key = Key::new(Bytes::from(format!("key-{index}"))).unwrap();
            let put = TxnOp::Put { key, value: value.into(), lease: LeaseId::new(0) };
            let command = Command {
                proposed_at: clock::wall(),
                principal: Principal::Anonymous,
                request: None,
                operation: Operation::Txn(Txn { compares: vec![], success: vec![put], failure: vec![] }),
            };
            let position = LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index) };
            self.machine.apply(position, std::slice::from_ref(&command)).unwrap();
            self.entries.push(LogEntry { position, content: LogContent::Commands(Batch::encode(&[command])) });
        }
        self.entries[begin..].to_vec()
    }

    fn mark(&self) -> StateMark {
        let applied = self.machine.applied();
        StateMark { revision: applied.revision, hash: applied.hash }
    }

    fn snapshot(&self) -> (PathBuf, SnapshotMeta) {
        let pinned = self.machine.pin();
        let applied = pinned.applied();
        let meta = SnapshotMeta {
            cluster_id: CLUSTER,
            position: applied.position,
            membership: Bytes::new(),
            revision: applied.revision,
            compacted: applied.compacted,
            hash: applied.hash,
            created_at: clock::wall(),
            targets: Targets::default(),
        };
        let path = self.folder.path().join(format!("{}.snapshot", self.entries.len()));
        snapshot::write(&path, &meta, pinned.keys().unwrap(), pinned.records()).unwrap();
        (path, meta)
    }
}

/// Appends as an archiver does, until nobody else was first.
async fn append(repository: &Repository, catalogue: &mut Catalogue, adds: Vec<Object>) {
    loop {
        match catalogue.append(repository, "test", adds.clone(), vec![]).await {
            Ok(()) => return,
            Err(CatalogueError::Overtaken) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn check(repository: &Repository, identities: &Identities, scratch: &Path) -> Report {
    let scope = Scope { level: Level::Replay, identities, scratch };
    let report = verify(repository, CLUSTER, scope, &|_| {}).await.unwrap();
    assert!(report.passed(), "{:?}", report.findings);
    report
}

/// What every store must do.
async fn course(url: &str) {
    let repository = below(url, "course");
    let first = probe(&repository).await.unwrap();
    assert!(
        first.made && first.can_delete == Some(true) && first.skew_millis.is_some_and(|skew| skew.abs() < 60_000),
        "{first:?}"
    );
    assert!(!probe(&repository).await.unwrap().made);
    writers_that_compete(url).await;

    let (mut history, mut catalogue) = (History::new(), Catalogue::empty(CLUSTER));
    let key = history.folder.path().join("key.txt");
    let recipients = Recipients::parse(&[Identities::generate_into(&key).unwrap()]).unwrap();
    let identities = Identities::from_file(&key).unwrap();
    // Several parts, also once it is packed.
    history.write(20, 1_000_000);
    let (path, meta) = history.snapshot();
    let full = store_snapshot(&repository, &path, &meta, &recipients, async |_| {}).await.unwrap();
    assert!(full.bytes > 2 * 8 * 1024 * 1024);
    append(&repository, &mut catalogue, vec![full]).await;
    for size in [100, 1_000_000] {
        let previous = history.entries.last().map(|entry| entry.position);
        let entries = history.write(10, size);
        let stored = store_entries(&repository, CLUSTER, previous, entries, Some(history.mark()), &recipients);
        append(&repository, &mut catalogue, vec![stored.await.unwrap()]).await;
    }
    let report = check(&repository, &identities, history.folder.path()).await;
    assert_eq!((report.objects, report.compared, report.runs.len()), (3, 3, 1));
    assert_eq!(report.reached.unwrap().1, history.mark());

    restored(&repository, &key, &history);
    there_and_back(url, &repository, &identities, &history).await;
    many_manifests(&repository, &mut catalogue).await;
    let keep = Keep { window: Duration::ZERO, hourly: 0, daily: 0, weekly: 0, monthly: 0, object_lock: Duration::ZERO };
    let (path, meta) = history.snapshot();
    let full = store_snapshot(&repository, &path, &meta, &recipients, async |_| {}).await.unwrap();
    append(&repository, &mut catalogue, vec![full]).await;
    let how = How { keep: &keep, grace: prune::NAME_WITHIN, by: "test", lost: false, dry_run: false };
    let later = WallTime::new(clock::wall().get() + 2 * 60 * 60 * 1000);
    assert_eq!(prune::run(&repository, CLUSTER, how, later).await.unwrap().plan.drops.len(), 3);
    let last = WallTime::new(later.get() + 2 * 60 * 60 * 1000);
    let pruned = prune::run(&repository, CLUSTER, how, last).await.unwrap();
    assert_eq!(pruned.deleted.len(), 3);
    let report = check(&repository, &identities, history.folder.path()).await;
    assert_eq!((report.objects, report.reached.unwrap().1), (1, history.mark()));
    assert!(report.manifests < 256 + 40, "old manifests are gone: {}", report.manifests);
}

async fn writers_that_compete(url: &str) {
    let repository = below(url, "writers");
    probe(&repository).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let repository = repository.clone();
        writers.spawn(async move {
            let mut catalogue = Catalogue::empty(CLUSTER);
            for number in 0..APPENDS {
                let position = LogPosition {
                    term: Term::new(1),
                    leader: NodeId::new(writer as u64),
                    index: LogIndex::new((number * WRITERS + writer) as u64),
                };
                let entry = LogEntry { position, content: LogContent::Blank };
                let keys = Recipients::default();
                let previous = position.index.get().checked_sub(1);
                let previous = previous.map(|index| LogPosition { index: LogIndex::new(index), ..position });
                let object = store_entries(&repository, CLUSTER, previous, vec![entry], None, &keys).await.unwrap();
                append(&repository, &mut catalogue, vec![object]).await;
            }
        });
    }
    writers.join_all().await;
    let all = Catalogue::walk(&repository, CLUSTER, |_, _| {}).await.unwrap();
    assert_eq!(all.objects().count(), WRITERS * APPENDS, "what one wrote was lost");
    assert_eq!(all.head().unwrap().seq, (WRITERS * APPENDS) as u64);
}

/// The command makes a member of it, at the end and before it.
fn restored(repository: &Repository, key: &Path, history: &History) {
    let last = history.entries.len() as u64 - 1;
    for index in [last, last - 3] {
        let data_dir = history.folder.path().join(format!("restored-{index}"));
        let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["restore", "--output", "json", "--yes", "--from", repository.url(), "--identity"]).arg(key);
        command.args(["--name", "n1", "--peer-addr", "127.0.0.1:1", "--data-dir"]).arg(&data_dir);
        if index < last {
            command.args(["--to-index", &index.to_string()]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((told["index"].as_u64(), told["keys"].as_u64()), (Some(index), Some(index + 1)), "{told}");
        if index == last {
            assert_eq!(told["state_hash"], format!("{:032x}", history.mark().hash), "{told}");
        }
        assert!(data_dir.join("identity").exists());
    }
}

/// To a folder, and from there to another place of the store, opened and packed anew.
async fn there_and_back(url: &str, repository: &Repository, identities: &Identities, history: &History) {
    let folder = format!("file://{}", history.folder.path().join("copy").display());
    let local = target::open(&folder, &Options::new()).unwrap();
    let copied = copy::copy(repository, &local, CLUSTER, None, "test", |_, _| {}).await.unwrap();
    assert_eq!(copied.objects, 3);
    let back = below(url, "back");
    let (new, public) = Identities::generate();
    let recipients = Recipients::parse(&[public]).unwrap();
    let reseal = copy::Reseal { identities, recipients: &recipients, scratch: history.folder.path() };
    copy::copy(&local, &back, CLUSTER, Some(reseal), "test", |_, _| {}).await.unwrap();
    let report = check(&back, &new, history.folder.path()).await;
    assert_eq!(report.reached.unwrap().1, history.mark());
}

/// More manifests than a store lists at once.
async fn many_manifests(repository: &Repository, catalogue: &mut Catalogue) {
    let mut early = catalogue.clone();
    while catalogue.head().unwrap().seq < MANIFESTS {
        append(repository, catalogue, vec![]).await;
    }
    early.refresh(repository).await.unwrap();
    assert_eq!(early, *catalogue);
    assert_eq!(Catalogue::read(repository, CLUSTER).await.unwrap(), *catalogue);
}

/// What is said of a bucket that does not exist, by each who asks.
async fn missing_bucket(url: &str) {
    let missing = target::open(url, &Options::new()).unwrap();
    let error = probe(&missing).await.unwrap_err();
    assert!(matches!(&error, ProbeError::Store { source: StoreError::NoBucket { .. }, .. }), "{error}");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_holds_an_archive() {
    let Some(url) = variable("QUORATE_TEST_S3_URL") else { return };
    course(&url).await;
    missing_bucket("s3://quorate-no-such-bucket/x").await;
    let refused = Options::from([("endpoint".to_owned(), "http://127.0.0.1:9".to_owned())]);
    let error = probe(&target::open(&url, &refused).unwrap()).await.unwrap_err();
    assert!(matches!(&error, ProbeError::Store { source, .. } if source.is_transient()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_azure_server_holds_an_archive() {
    let Some(url) = variable("QUORATE_TEST_AZ_URL") else { return };
    course(&url).await;
    missing_bucket("az://quorate-no-such-container/x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_google_server_holds_an_archive() {
    let Some(url) = variable("QUORATE_TEST_GS_URL") else { return };
    course(&url).await;
    missing_bucket("gs://quorate-no-such-bucket/x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_replaces_what_it_should_create_is_refused() {
    let Some(url) = variable("QUORATE_TEST_LYING_GS_URL") else { return };
    let base = std::env::var("QUORATE_TEST_LYING_GS_BASE").unwrap();
    let options = Options::from([("google_base_url".to_owned(), base)]);
    let error = probe(&target::open(&url, &options).unwrap()).await.unwrap_err();
    assert!(matches!(error, ProbeError::Replaces { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_holds_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    course(&format!("file://{}", folder.path().display())).await;
    marker::check(&below(&format!("file://{}", folder.path().display()), "writers")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_programs_open_what_is_archived() {
    if variable("QUORATE_TEST_AGE").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.txt");
    let made = Process::new("age-keygen").arg("-o").arg(&key).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let identities = Identities::from_file(&key).unwrap();
    let url = format!("file://{}", folder.path().join("archive").display());
    let repository = target::open(&url, &Options::new()).unwrap();
    probe(&repository).await.unwrap();
    let mut history = History::new();
    let entries = history.write(30, 10_000);
    let mut plain = SegmentWriter::new(Vec::new(), &SegmentHeader { cluster: CLUSTER, previous: None }).unwrap();
    entries.iter().for_each(|entry| plain.push(entry).unwrap());
    let plain = plain.finish(Some(history.mark())).unwrap().1;
    let (path, meta) = history.snapshot();
    for recipients in [Recipients::parse(&identities.public()).unwrap(), Recipients::default()] {
        let mark = Some(history.mark());
        let log = store_entries(&repository, CLUSTER, None, entries.clone(), mark, &recipients).await.unwrap();
        let full = store_snapshot(&repository, &path, &meta, &recipients, async |_| {}).await.unwrap();
        for (object, expected) in [(log, plain.clone()), (full, std::fs::read(&path).unwrap())] {
            let file = folder.path().join("archive").join(&object.name);
            let mut zstd = Process::new("zstd");
            zstd.args(["-d", "-q", "-c"]).stdin(std::fs::File::open(&file).unwrap());
            if !recipients.is_empty() {
                let age = Process::new("age").arg("-d").arg("-i").arg(&key).arg(&file).stdout(Stdio::piped()).spawn();
                zstd.stdin(age.unwrap().stdout.unwrap());
            }
            let opened = zstd.output().unwrap();
            assert!(opened.status.success() && opened.stdout == expected, "{}", object.name);
        }
    }
}
