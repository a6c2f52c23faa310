//! All disks are gone, and there is an archive and a key: what was archived becomes a cluster again, to any of its points.
//!
//! The archive is made here, by the functions that the nodes use: a snapshot of the live cluster, and entries behind it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use quorate::api::model::NodeRole;
use quorate::backup::catalogue::Catalogue;
use quorate::backup::layout::Layout;
use quorate::backup::seal::{Identities, Recipients};
use quorate::backup::segment::StateMark;
use quorate::backup::transfer::{store_entries, store_snapshot};
use quorate::backup::{marker, target};
use quorate::clock;
use quorate::state::snapshot::{SnapshotMeta, SnapshotReader, inspect};
use quorate::state::{
    Batch, Command, LogContent, LogEntry, Operation, Principal, StateConfig, StateMachine, Txn, TxnOp, load,
};
use quorate::storage::MemoryEngine;
use quorate::types::{ClusterId, Key, LeaseId, LogIndex, LogPosition, WallTime};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::load::{Load, Told};
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};

/// Entries behind the snapshot, of two writes each, and how many lie in one piece.
pub(crate) const ENTRIES: u64 = 30;
const PIECE: usize = 10;

/// What is left of a cluster: its archive, and the key.
pub(crate) struct Left {
    pub(crate) cluster: Cluster,
    /// What the snapshot has.
    pub(crate) kept: Told,
    meta: SnapshotMeta,
    pub(crate) url: String,
    pub(crate) key: PathBuf,
    /// When each entry behind the snapshot was proposed.
    times: BTreeMap<u64, WallTime>,
}

/// Three nodes write and are archived; then all their disks are gone.
pub(crate) async fn lost() -> Left {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(300).await;
    let kept = load.stop().await;
    cluster.converged().await;
    let saved = http().get(cluster.nodes[0].url("/v1/snapshot")).timeout(PATIENCE).send().await.unwrap();
    let file = cluster.dir.path().join("full.snapshot");
    fs::write(&file, saved.bytes().await.unwrap()).unwrap();

    let (key, repository) = (cluster.dir.path().join("key.txt"), cluster.dir.path().join("repository"));
    let recipients = Recipients::parse(&[Identities::generate_into(&key).unwrap()]).unwrap();
    let url = format!("file://{}", repository.display());
    let (meta, times) = archive(&url, &file, &recipients).await;
    for node in &mut cluster.nodes {
        node.kill();
        fs::remove_dir_all(&node.dir).unwrap();
    }
    Left { cluster, kept, meta, url, key, times }
}

/// Archives a snapshot file and entries behind it, as a node would.
async fn archive(url: &str, file: &Path, recipients: &Recipients) -> (SnapshotMeta, BTreeMap<u64, WallTime>) {
    let repository = target::open(url, &BTreeMap::new()).unwrap();
    assert!(marker::ensure(&repository).await.unwrap());
    let meta = inspect(file).unwrap();
    let mut machine = loaded(file, &meta);
    let mut catalogue = Catalogue::empty(meta.cluster_id);
    let full = store_snapshot(&repository, file, &meta, recipients, async |_| ()).await.unwrap();
    catalogue.append(&repository, "n2", vec![full], vec![]).await.unwrap();
    let (mut previous, mut times) = (meta.position.unwrap(), BTreeMap::new());
    let mut now = clock::wall().get();
    let mut entries = Vec::new();
    for entry in 1..=ENTRIES {
        now += 1_000;
        let position = LogPosition { index: previous.index.next(), ..previous };
        let commands = ["first", "second"].map(|which| put(&format!("archived/{entry}/{which}"), WallTime::new(now)));
        machine.apply(position, &commands).unwrap();
        times.insert(position.index.get(), WallTime::new(now));
        entries.push(LogEntry { position, content: LogContent::Commands(Batch::encode(&commands)) });
        if entries.len() == PIECE {
            let begin = LogPosition { index: entries[0].position.index, ..previous };
            let before = LogPosition { index: LogIndex::new(begin.index.get() - 1), ..begin };
            let state = StateMark { revision: machine.applied().revision, hash: machine.applied().hash };
            let entries = std::mem::take(&mut entries);
            let stored =
                store_entries(&repository, meta.cluster_id, Some(before), entries, Some(state), recipients).await;
            catalogue.append(&repository, "n2", vec![stored.unwrap()], vec![]).await.unwrap();
        }
        previous = position;
    }
    (meta, times)
}

fn loaded(file: &Path, meta: &SnapshotMeta) -> StateMachine {
    let engine = std::sync::Arc::new(MemoryEngine::new());
    load(&*engine, &meta.applied(), SnapshotReader::open(file).unwrap()).unwrap();
    StateMachine::open(engine, StateConfig::default()).unwrap()
}

fn put(key: &str, proposed_at: WallTime) -> Command {
    let key = Key::new(key.to_owned()).unwrap();
    let put = TxnOp::Put { value: key.as_bytes().clone(), key, lease: LeaseId::ZERO };
    let operation = Operation::Txn(Txn { success: vec![put], ..Txn::default() });
    Command { proposed_at, principal: Principal::Anonymous, request: None, operation }
}

impl Left {
    /// A node that is restored in the place of the first one: same addresses, nothing else.
    pub(crate) fn first(&self, dir: &str) -> Member {
        let mut first = self.cluster.nodes[0].beside(dir);
        first.initial_cluster = None;
        first
    }

    pub(crate) fn command(&self, node: &Member, flags: &[&str]) -> Process {
        let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["restore", "--output", "json", "--from", &self.url, "--identity"]).arg(&self.key);
        command.args(["--yes", "--name", "n1", "--peer-addr", &node.peer_addr, "--data-dir"]).arg(&node.dir);
        command.args(flags).stdin(Stdio::null());
        command
    }

    /// Runs `quorate restore`; what it said on standard output, or its exit code with standard error if it refused.
    pub(crate) fn restore(&self, node: &Member, flags: &[&str]) -> Result<Value, (Option<i32>, String)> {
        let output = self.command(node, flags).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        if output.status.code() != Some(0) {
            return Err((output.status.code(), errors));
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }
}

impl Left {
    /// Runs `quorate backup`; what it said on standard output, or its exit code with standard error if it failed.
    fn backup(&self, arguments: &[&str]) -> Result<Value, (Option<i32>, String)> {
        let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
        let output =
            command.arg("backup").args(arguments).args(["--output", "json"]).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        if output.status.code() != Some(0) {
            return Err((output.status.code(), errors));
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// The value of a key that was archived behind the snapshot, on a node.
pub(crate) async fn value(node: &Member, entry: u64, which: &str) -> Option<String> {
    let answer =
        http().get(node.url(&format!("/v1/kv/archived/{entry}/{which}"))).timeout(PATIENCE).send().await.unwrap();
    if answer.status() == 404 { None } else { Some(answer.text().await.unwrap()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_disks_are_gone_and_the_archive_and_its_key_bring_the_cluster_back() {
    let mut left = lost().await;
    let mut first = left.first("restored");
    let told = left.restore(&first, &[]).unwrap();
    assert_eq!(told["cluster_id"], left.meta.cluster_id.get());
    assert_eq!(told["revision_before"].as_u64(), Some(left.meta.revision.get() + 2 * ENTRIES));
    assert_eq!((&told["log_entries"], &told["states_compared"]), (&ENTRIES.into(), &4.into()), "{told}");
    first.start();
    first.ready().await;
    left.kept.check_on(&first).await;
    for entry in 1..=ENTRIES {
        assert_eq!(value(&first, entry, "second").await, Some(format!("archived/{entry}/second")));
    }
    let status = first.status().await.unwrap();
    assert_eq!(status.role, NodeRole::Leader);
    assert_ne!(status.cluster_id, left.meta.cluster_id.get());
    // No revision is given that a client of the old cluster may have seen.
    assert!(status.revision >= told["revision_before"].as_u64().unwrap() + 1_000_000, "{status:?}");

    // The others join with empty directories, and then all agree.
    left.cluster.nodes[0] = first;
    for at in [1, 2] {
        let node = &mut left.cluster.nodes[at];
        node.initial_cluster = None;
        let join = left.cluster.nodes[0].peer_addr.clone();
        left.cluster.nodes[at].settings.flags.extend(["--join".to_owned(), join]);
        left.cluster.nodes[at].start();
    }
    left.cluster.ready().await;
    let mut load = Load::start(&left.cluster.endpoints(), WRITERS);
    load.acknowledged(100).await;
    let more = load.stop().await;
    left.cluster.converged().await;
    more.check(&left.cluster).await;
    left.kept.check(&left.cluster).await;
    assert_eq!(value(&left.cluster.nodes[2], ENTRIES, "first").await, Some(format!("archived/{ENTRIES}/first")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_point_can_be_restored_and_what_lies_behind_it_is_not_there() {
    let left = lost().await;
    let begin = left.meta.position.unwrap().index.get();
    let at = |entry: u64| begin + entry;
    let revision = (left.meta.revision.get() + 2 * 17 - 1).to_string();
    let index = at(17).to_string();
    let time = humantime(left.times[&at(17)]);
    for (name, flags, second) in [
        ("to-index", ["--to-index", &index], true),
        ("to-time", ["--to-time", &time], true),
        // In the middle of the entry.
        ("to-revision", ["--to-revision", &revision], false),
    ] {
        let mut node = left.first(name);
        let told = left.restore(&node, &flags).unwrap();
        assert_eq!(told["index"], at(17), "{told}");
        node.start();
        node.ready().await;
        left.kept.check_on(&node).await;
        assert!(value(&node, 17, "first").await.is_some());
        assert_eq!(value(&node, 17, "second").await.is_some(), second, "{name}");
        assert_eq!(value(&node, 18, "first").await, None, "{name}");
        node.kill();
    }
    // What can't be restored is told with what can, and no directory is made.
    let node = left.first("never");
    for flags in [["--to-index", "0"], ["--to-time", "2020-01-01T00:00:00Z"], ["--to-revision", "99999999"]] {
        let (code, refused) = left.restore(&node, &flags).unwrap_err();
        assert!(code == Some(2) && refused.contains("is outside of what can be restored: 20"), "{refused}");
        assert!(!node.dir.exists());
    }
}

/// RFC 3339, in UTC.
fn humantime(time: WallTime) -> String {
    quorate::backup::plan::rfc3339(time)
}

/// Whatever the moment: the command goes on where it was, and until then no node starts there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_again_and_again_ends_in_one_cluster() {
    let left = lost().await;
    let mut node = left.first("restored");
    // With these flags an empty directory would form a cluster.
    let form = Some(format!("n1={}", node.peer_addr));
    for _ in 0..12 {
        let mut child = left.command(&node, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Not a wait for something: the moment of the kill itself is what is drawn.
        sleep(Duration::from_millis(rand::random_range(5..250))).await;
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        let names: Vec<_> = fs::read_dir(&node.dir).map_or_else(
            |_| Vec::new(),
            |found| found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        );
        if names.iter().any(|name| name == "restore-stage") {
            node.initial_cluster.clone_from(&form);
            let (code, refused) = node.refusal().await;
            assert!(code == Some(2) && refused.contains("was not finished"), "{refused}");
            node.initial_cluster = None;
        }
    }
    match left.restore(&node, &[]) {
        Ok(told) => assert!(told["new_cluster_id"].is_u64(), "{told}"),
        // One of the others had come to its end.
        Err((code, refused)) => assert!(code == Some(2) && refused.contains("is not empty"), "{refused}"),
    }
    node.start();
    node.ready().await;
    left.kept.check_on(&node).await;
    assert!(value(&node, ENTRIES, "second").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_snapshot_file_is_restored_by_the_same_command() {
    let left = lost().await;
    let mut node = left.first("restored");
    let file = left.cluster.dir.path().join("full.snapshot");
    let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["restore", "--output", "json", "--yes", "--from"]).arg(file).arg("--data-dir").arg(&node.dir);
    let output = command.args(["--name", "n1", "--peer-addr", &node.peer_addr]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    node.start();
    node.ready().await;
    left.kept.check_on(&node).await;
    assert_eq!(value(&node, 1, "first").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subtree_comes_into_a_running_cluster_as_one_transaction() {
    let left = lost().await;
    let running = Cluster::start(&Settings::default()).await;
    let into = running.nodes[1].url("");
    let restore = |flags: &[&str]| {
        let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["restore", "--output", "json", "--yes", "--from", &left.url, "--identity"]).arg(&left.key);
        command.args(["--prefix", "archived/", "--into", &into]).args(flags).stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = restore(&[]);
    assert_eq!(code, Some(0), "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["keys"], &told["replaced"], &told["revision"]), (&(2 * ENTRIES).into(), &0.into(), &1.into()));
    let deadline = Instant::now() + PATIENCE;
    while value(&running.nodes[0], ENTRIES, "second").await.is_none() {
        assert!(Instant::now() < deadline);
        sleep(POLL).await;
    }
    // What is there is not written over unless that is wanted; then it is replaced, not added to.
    let (code, refused) = restore(&[]);
    assert!(code == Some(1) && refused.contains("give --replace"), "{refused}");
    let index = (left.meta.position.unwrap().index.get() + 3).to_string();
    let (code, told) = restore(&["--replace", "--to-index", &index]);
    assert_eq!(code, Some(0), "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["keys"], &told["replaced"], &told["revision"]), (&6.into(), &(2 * ENTRIES).into(), &2.into()));
    assert_eq!(value(&running.nodes[0], 4, "first").await, None);
    // An archive that has nothing there, a mistyped point for instance, takes nothing away.
    let begin = left.meta.position.unwrap().index.get().to_string();
    let (code, refused) = restore(&["--replace", "--to-index", &begin]);
    assert!(code == Some(1) && refused.contains("had no key with this prefix"), "{refused}");
    assert!(value(&running.nodes[1], 3, "second").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_restores_starts_and_reads_and_leaves_nothing_behind() {
    let left = lost().await;
    let scratch = left.cluster.dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["backup", "drill", &left.url, "--output", "json", "--identity"]).arg(&left.key);
    let output = command.arg("--scratch").arg(&scratch).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let begin = left.meta.position.unwrap().index.get();
    assert!((begin..=begin + ENTRIES).contains(&told["index"].as_u64().unwrap()), "{told}");
    assert!(told["keys_read"].as_u64() >= Some(300), "{told}");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    // What came of it is kept beside the archive, and told.
    let shown = left.backup(&["show", &left.url]).unwrap();
    let proof = &shown["proofs"][0];
    assert_eq!((&proof["kind"], &proof["passed"]), (&"drill".into(), &true.into()), "{shown}");
    assert_eq!((&proof["reached"]["index"], &proof["figures"]["keys"]), (&told["index"], &told["keys"]), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_looked_at_checked_and_copied_without_a_cluster() {
    let left = lost().await;
    let key = left.key.to_str().unwrap();
    let listed = left.backup(&["list", &left.url]).unwrap();
    let cluster = &listed["clusters"][0];
    assert_eq!(cluster["cluster_id"], left.meta.cluster_id.get());
    assert_eq!(
        (&cluster["fulls"], &cluster["log_objects"], &cluster["unencrypted"]),
        (&1.into(), &3.into(), &0.into())
    );

    // As deep as can be without a key, and as deep as can be.
    let checked = left.backup(&["verify", &left.url]).unwrap();
    assert_eq!((&checked["level"], &checked["passed"]), (&2.into(), &true.into()), "{checked}");
    let checked = left.backup(&["verify", &left.url, "--identity", key]).unwrap();
    assert_eq!((&checked["level"], &checked["entries"]), (&4.into(), &ENTRIES.into()), "{checked}");
    assert_eq!(checked["revision"].as_u64(), Some(left.meta.revision.get() + 2 * ENTRIES));
    let keys = left.backup(&["keys", "check", &left.url, "--identity", key]).unwrap();
    assert_eq!((&keys["shut"], keys["objects"].as_array().unwrap().len()), (&0.into(), 3));

    // Nothing is old enough to go.
    let pruned = left.backup(&["prune", &left.url, "--dry-run"]).unwrap();
    assert_eq!((pruned["kept"].as_object().unwrap().len(), &pruned["deleted"]), (4, &Value::Array(vec![])), "{pruned}");

    // A copy for other keys is opened by these alone.
    let other = left.cluster.dir.path().join("other.txt");
    let public = left.backup(&["keys", "generate", other.to_str().unwrap()]).unwrap();
    let copy = format!("file://{}", left.cluster.dir.path().join("copy").display());
    let recipient = public["public_key"].as_str().unwrap();
    let copied = left.backup(&["copy", &left.url, &copy, "--identity", key, "--recipient", recipient]).unwrap();
    assert_eq!(copied["objects"], 4);
    let (code, refused) = left.backup(&["keys", "check", &copy, "--identity", key]).unwrap_err();
    assert!(code == Some(1) && refused.contains("3 of 3 objects are not opened"), "{refused}");
    let checked = left.backup(&["verify", &copy, "--identity", other.to_str().unwrap()]).unwrap();
    assert_eq!((&checked["level"], &checked["passed"]), (&4.into(), &true.into()), "{checked}");

    // A wrong key is no damage.
    let (code, refused) = left.backup(&["verify", &copy, "--identity", key]).unwrap_err();
    assert!(code == Some(2) && refused.contains("none of the given private keys opens"), "{refused}");

    // Damage is found, named, and exit code 4.
    let folder = left.cluster.dir.path().join("repository").join(cluster["cluster"].as_str().unwrap()).join("log");
    let object = fs::read_dir(folder).unwrap().next().unwrap().unwrap();
    let mut bytes = fs::read(object.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(object.path(), bytes).unwrap();
    let (code, refused) = left.backup(&["verify", &left.url, "--identity", key]).unwrap_err();
    assert!(code == Some(4) && refused.contains("does not hold what it promises"), "{refused}");
    let node = left.first("damaged");
    let (code, refused) = left.restore(&node, &[]).unwrap_err();
    let name = object.file_name().into_string().unwrap();
    assert!(code == Some(4) && refused.contains(&name) && refused.contains("damaged"), "{refused}");
    // The copy still has it; what was fetched stays, and what was not is fetched from there.
    let copy = Left { url: copy, key: other, ..left };
    assert!(copy.restore(&node, &[]).is_ok());
}

#[tokio::test]
async fn an_archive_that_is_damaged_does_not_hide_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let repository = target::open(&url, &BTreeMap::new()).unwrap();
    marker::ensure(&repository).await.unwrap();
    let (sound, damaged) = (ClusterId::new(7), ClusterId::new(8));
    Catalogue::empty(sound).append(&repository, "n1", vec![], vec![]).await.unwrap();
    repository.create(&Layout::new(damaged).manifest(1), "{".into()).await.unwrap();
    let backup = |arguments: &[&str]| {
        let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg("backup").args(arguments).args(["--output", "json"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), told, String::from_utf8(output.stderr).unwrap())
    };
    let (code, listed, errors) = backup(&["list", &url]);
    assert_eq!((code, listed["clusters"].as_array().unwrap().len()), (Some(0), 2), "{errors}");
    assert!(listed["clusters"][0]["error"].as_str().unwrap().contains("manifest 1"), "{listed}");
    assert_eq!((&listed["clusters"][1]["cluster_id"], &listed["clusters"][1]["manifest"]), (&7.into(), &1.into()));
    let (code, _, refused) = backup(&["show", &url]);
    assert!(code == Some(2) && refused.contains("0000000000000008 (can't be read)"), "{refused}");
    assert_eq!(backup(&["show", &url, "--cluster", "7"]).0, Some(0));
    // Damage leaves a failed proof, whoever finds it.
    for kind in ["drill", "verify"] {
        let (code, _, refused) = backup(&[kind, &url, "--cluster", "8"]);
        assert_eq!(code, Some(4), "{refused}");
        let proofs = repository.list(&Layout::new(damaged).proofs(), None).await.unwrap();
        assert!(proofs.iter().any(|proof| proof.name.contains(kind)), "{proofs:?}");
    }
}

#[tokio::test]
async fn an_archive_of_a_newer_program_is_told_as_such_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let repository = target::open(&url, &BTreeMap::new()).unwrap();
    marker::ensure(&repository).await.unwrap();
    let cluster = ClusterId::new(7);
    Catalogue::empty(cluster).append(&repository, "n1", vec![], vec![]).await.unwrap();
    let data = folder.path().join("data");
    let newer = |file: &Path, field: &str| {
        let mut content: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        content[field] = 9.into();
        fs::write(file, serde_json::to_vec(&content).unwrap()).unwrap();
        let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["restore", "--yes", "--from", &url, "--name", "n1", "--peer-addr", "127.0.0.1:1", "--data-dir"]);
        let output = command.arg(&data).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && errors.contains("newer program"), "{field}: {errors}");
        assert!(!data.exists());
    };
    newer(&folder.path().join(Layout::new(cluster).manifest(1)), "format");
    newer(&folder.path().join("quorate-repository.json"), "min_reader");
}
