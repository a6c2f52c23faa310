//! State store and log store as the pair that openraft sees: its own suite, and every way in which the two, and the
//! snapshots, may disagree when a node starts.
//!
//! Method: a directory is filled through the stores as openraft would, parts of it are set back to an earlier copy or
//! damaged (what crashes, power cuts and disks do), and then it is opened, once by recovery and once by a whole node.

use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::RaftSnapshotBuilder as _;
use openraft::storage::{IOFlushed, RaftStateMachine as _};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt as _;
use tempfile::TempDir;

use super::*;
use crate::codec::framed;
use crate::raft::log_store::LogConfig;
use crate::raft::metrics::StateMetrics;
use crate::raft::state_store::{StateAccess, StateStore};
use crate::raft::types::{Entry, LeaderId, Payload, TypeConfig};
use crate::raft::{Fatal, RaftConfig, RaftIdentity, RaftNode};
use crate::state::{Batch, Command, Operation, Principal, Txn, TxnOp};
use crate::storage::{Engine as _, Order, Scan, Write};
use crate::telemetry::Metrics;
use crate::transport::memory::Network;
use crate::types::{ClusterId, Key, LeaseId, NodeId, Revision, Term, WallTime};

const CLUSTER: ClusterId = ClusterId::new(7);

/// An open pair.
struct Pair {
    log: LogStore,
    state: StateStore,
    access: StateAccess,
    generation: u64,
}

impl Pair {
    async fn open(dir: &Path) -> Result<Self, RecoveryError> {
        let config = RaftConfig::small(dir);
        let mut log = LogStore::open(&dir.join("log"), config.log).unwrap();
        let snapshots = Arc::new(SnapshotStore::open(&dir.join("snapshots"), CLUSTER).unwrap());
        let home = EngineHome::new(&dir.join("state"), config.engine_cache_bytes);
        let recovered = recover(home.clone(), &snapshots, &mut log, config.state.clone()).await?;
        let generation = recovered.generation.number();
        let metrics = Metrics::new().register(StateMetrics::register);
        let (state, access) =
            StateStore::new(recovered, home, config.state, snapshots, metrics, Fatal::default()).unwrap();
        Ok(Self { log, state, access, generation })
    }

    /// Appends entries and, up to `applied`, applies them.
    async fn write(&mut self, entries: impl IntoIterator<Item = Entry>, applied: u64) {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (flushed, done) = TypeConfig::oneshot();
        self.log.append(entries.clone(), IOFlushed::signal(flushed)).await.unwrap();
        done.await.unwrap().unwrap();
        self.apply(entries.into_iter().filter(|entry| entry.log_id.index <= applied)).await;
    }

    async fn apply(&mut self, entries: impl Iterator<Item = Entry>) {
        let entries: Vec<_> = entries.map(|entry| Ok((entry, None))).collect();
        self.state.apply(futures::stream::iter(entries)).await.unwrap();
    }

    async fn snapshot(&mut self) -> PathBuf {
        let mut builder = self.state.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap().snapshot.path().to_owned()
    }

    fn applied(&self) -> Option<u64> {
        self.access.applied().borrow().position.map(|position| position.index.get())
    }

    fn revision(&self) -> Revision {
        self.access.reader().applied().revision
    }

    async fn close(self) {
        let Self { log, state, access, .. } = self;
        state.close().await;
        log.sync().await.unwrap();
        drop((log, access));
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: Term::new(term), node_id: NodeId::new(1) }, index }
}

/// Puts a key of its own; the entry at index `i` makes revision `i + 1`.
fn entry(term: u64, index: u64) -> Entry {
    entry_to(term, index, &format!("key-{index}"))
}

fn entry_to(term: u64, index: u64, key: &str) -> Entry {
    let key = Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap();
    let value = Bytes::from(format!("value {index} of term {term}"));
    let txn = Txn { success: vec![TxnOp::Put { key, value, lease: LeaseId::ZERO }], ..Txn::default() };
    let command = Command {
        proposed_at: WallTime::ZERO,
        principal: Principal::Anonymous,
        request: None,
        operation: Operation::Txn(txn),
    };
    Entry { log_id: id(term, index), payload: Payload::Normal(Batch::encode(&[command])) }
}

fn entries(term: u64, range: std::ops::Range<u64>) -> impl Iterator<Item = Entry> {
    range.map(move |index| entry(term, index))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &to.join(file.file_name()));
        } else {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

/// Keeps a copy of one of the directories, to put it back later.
fn keep(dir: &Path, part: &str) -> TempDir {
    let kept = tempfile::tempdir().unwrap();
    copy(&dir.join(part), kept.path());
    kept
}

fn put_back(dir: &Path, part: &str, kept: &TempDir) {
    fs::remove_dir_all(dir.join(part)).unwrap();
    copy(kept.path(), &dir.join(part));
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 0x40;
    fs::write(file, bytes).unwrap();
}

/// Opens a whole node on the directory and returns how far it has applied, its revision and where its log ends.
async fn open_node(dir: &Path) -> (Option<u64>, Revision, Option<u64>) {
    let transport = Arc::new(Network::new().endpoint("n1"));
    let identity = RaftIdentity { cluster: CLUSTER, me: NodeId::new(1), zone: String::new(), transport };
    let node = RaftNode::open(&RaftConfig::small(dir), identity, &Metrics::new(), Fatal::default()).await.unwrap();
    let applied = *node.applied().borrow();
    let last = node.log().last().map(|position| position.index.get());
    node.stop().await;
    (applied.position.map(|position| position.index.get()), applied.revision, last)
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateStore), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let Pair { log, state, .. } = Pair::open(dir.path()).await.unwrap();
        Ok((dir, log, state))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_over_the_real_pair() {
    Suite::test_all(Builder).await.unwrap();
}

/// The first try finds `/dev/full` where its temporary file would be.
#[tokio::test]
async fn a_snapshot_that_found_no_room_is_tried_again_until_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 19).await;
    let temporary = dir.path().join("snapshots/1-19.snapshot.tmp");
    std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
    let written = pair.snapshot().await;
    assert!(written.ends_with("1-19.snapshot"), "{}", written.display());
    assert!(!temporary.exists(), "the first try was elsewhere");
    pair.close().await;
}

#[tokio::test]
async fn a_state_that_the_log_agrees_with_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 9).await;
    pair.state.checkpoint_now().await;
    let generation = pair.generation;
    pair.close().await;

    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision(), pair.generation), (Some(9), Revision::new(10), generation));
    pair.close().await;
}

#[tokio::test]
async fn what_was_applied_but_not_checkpointed_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 9).await;
    pair.state.checkpoint_now().await;
    pair.apply(entries(1, 10..15)).await;
    pair.log.save_committed(Some(id(1, 14))).await.unwrap();
    pair.close().await;
    assert_eq!(open_node(dir.path()).await, (Some(14), Revision::new(15), Some(19)));
}

#[tokio::test]
async fn a_state_from_before_the_purge_is_rebuilt_from_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..10), 9).await;
    pair.state.checkpoint_now().await;
    pair.close().await;
    let old_state = keep(dir.path(), "state");

    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 10..30), 24).await;
    pair.snapshot().await;
    pair.log.purge(id(1, 20)).await.unwrap();
    pair.log.save_committed(Some(id(1, 27))).await.unwrap();
    pair.close().await;
    put_back(dir.path(), "state", &old_state);

    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision()), (Some(24), Revision::new(25)));
    pair.close().await;
    assert_eq!(open_node(dir.path()).await, (Some(27), Revision::new(28), Some(29)));
}

#[tokio::test]
async fn a_state_ahead_of_the_log_is_rebuilt_from_what_is_vouched_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..100), 50).await;
    pair.snapshot().await;
    pair.log.purge(id(1, 50)).await.unwrap();
    pair.log.save_committed(Some(id(1, 80))).await.unwrap();
    pair.close().await;
    let cut_log = keep(dir.path(), "log");

    // A follower applies what is committed before it has flushed it itself; then the power goes.
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.apply(entries(1, 51..100)).await;
    pair.write(entries(1, 100..106), 105).await;
    pair.state.checkpoint_now().await;
    pair.close().await;
    put_back(dir.path(), "log", &cut_log);

    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision()), (Some(50), Revision::new(51)));
    pair.close().await;
    assert_eq!(open_node(dir.path()).await, (Some(80), Revision::new(81), Some(99)));
}

#[tokio::test]
async fn a_state_at_another_entry_than_the_logs_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 9).await;
    pair.state.checkpoint_now().await;
    pair.close().await;
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    {
        let mut log = LogStore::open(&dir.path().join("log"), LogConfig::default()).unwrap();
        let (flushed, done) = TypeConfig::oneshot();
        log.append(entries(2, 0..20), IOFlushed::signal(flushed)).await.unwrap();
        done.await.unwrap().unwrap();
        log.save_committed(Some(id(2, 4))).await.unwrap();
        log.sync().await.unwrap();
    }
    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision()), (None, Revision::ZERO));
    pair.close().await;
    assert_eq!(open_node(dir.path()).await, (Some(4), Revision::new(5), Some(19)));
}

#[tokio::test]
async fn a_snapshot_ahead_of_the_log_is_what_the_log_begins_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..100), 99).await;
    pair.log.save_committed(Some(id(1, 98))).await.unwrap();
    pair.close().await;
    let cut_log = keep(dir.path(), "log");
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.apply(entries(1, 0..100)).await;
    pair.write(entries(1, 100..106), 105).await;
    pair.snapshot().await;
    pair.close().await;
    put_back(dir.path(), "log", &cut_log);
    assert_eq!(open_node(dir.path()).await, (Some(105), Revision::new(106), Some(105)));
    assert_eq!(open_node(dir.path()).await, (Some(105), Revision::new(106), Some(105)), "and again");
}

/// The tail of an old leader was overwritten by a new one's entries, which were committed, applied and put into a
/// snapshot; the power cut took the removal and the new entries, but not the snapshot. The same is left by a crash between
/// the installation of a leader's snapshot and the cleaning of the log.
#[tokio::test]
async fn a_log_with_an_old_leaders_tail_gives_way_to_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..104), 99).await;
    pair.log.save_committed(Some(id(1, 99))).await.unwrap();
    pair.close().await;
    let old_tail = keep(dir.path(), "log");
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.apply(entries(1, 0..100)).await;
    pair.log.truncate_after(Some(id(1, 99))).await.unwrap();
    pair.write(entries(2, 100..103), 102).await;
    pair.snapshot().await;
    pair.state.checkpoint_now().await;
    pair.close().await;
    put_back(dir.path(), "log", &old_tail);
    assert_eq!(open_node(dir.path()).await, (Some(102), Revision::new(103), Some(102)));

    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(2, 103..110), 109).await;
    assert_eq!(pair.revision(), Revision::new(110), "the log goes on behind the snapshot");
    pair.close().await;
}

#[tokio::test]
async fn an_engine_that_does_not_open_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 19).await;
    pair.snapshot().await;
    pair.state.checkpoint_now().await;
    let generation = pair.generation;
    pair.close().await;
    let engine = dir.path().join("state").join(generation.to_string());
    fs::remove_dir_all(&engine).unwrap();
    fs::write(&engine, "no engine").unwrap();
    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision()), (Some(19), Revision::new(20)));
    assert!(pair.generation > generation);
    pair.close().await;
}

#[tokio::test]
async fn a_state_in_the_format_of_an_older_program_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 19).await;
    pair.snapshot().await;
    pair.state.checkpoint_now().await;
    let generation = pair.generation;
    pair.close().await;
    {
        let engine = EngineHome::new(&dir.path().join("state"), 1024 * 1024).open_newest().unwrap();
        let key = Bytes::from_static(b"\0applied");
        let marker = engine.get(&key).unwrap().unwrap();
        let (version, body) = framed::open(*b"QAPL", u8::MAX, &marker).unwrap();
        let older = framed::seal(*b"QAPL", version - 1, body);
        engine.commit(vec![Write::Put(key, older.into())]).unwrap();
        engine.flush().unwrap();
    }
    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision()), (Some(19), Revision::new(20)));
    assert!(pair.generation > generation);
    pair.close().await;
}

#[tokio::test]
async fn a_state_without_a_marker_is_rebuilt_if_there_is_anything_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 19).await;
    pair.snapshot().await;
    pair.state.checkpoint_now().await;
    let generation = pair.generation;
    pair.close().await;
    {
        let home = EngineHome::new(&dir.path().join("state"), 1024 * 1024);
        let engine = home.open_newest().unwrap();
        engine.commit(vec![Write::Delete(Bytes::from_static(b"\0applied"))]).unwrap();
        engine.flush().unwrap();
        assert!(!engine.is_empty().unwrap());
    }
    let pair = Pair::open(dir.path()).await.unwrap();
    assert_eq!((pair.applied(), pair.revision()), (Some(19), Revision::new(20)));
    assert!(pair.generation > generation);
    pair.close().await;
}

#[tokio::test]
async fn damage_that_is_met_while_the_state_is_used_has_it_rebuilt_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..20), 19).await;
    pair.snapshot().await;
    pair.state.checkpoint_now().await;
    pair.close().await;
    {
        let engine = EngineHome::new(&dir.path().join("state"), 1024 * 1024).open_newest().unwrap();
        let range = (Bound::Included(&[1_u8][..]), Bound::Excluded(&[2_u8][..]));
        let scan = Scan { start: range.0, end: range.1, order: Order::Ascending, limit: 100, bytes_max: usize::MAX };
        let pointers = engine.scan(scan).unwrap();
        assert!(!pointers.is_empty());
        engine.commit(pointers.into_iter().map(|(key, _)| Write::Put(key, Bytes::from("rot"))).collect()).unwrap();
        engine.flush().unwrap();
    }
    let mut pair = Pair::open(dir.path()).await.unwrap();
    let generation = pair.generation;
    let again = entry_to(1, 20, "key-3");
    pair.write([again.clone()], 19).await;
    let applied = pair.state.apply(futures::stream::iter([Ok((again, None))])).await;
    assert!(applied.unwrap_err().to_string().contains("pointer can't be decoded"));
    pair.close().await;
    let pair = Pair::open(dir.path()).await.unwrap();
    assert!(pair.generation > generation);
    assert_eq!((pair.applied(), pair.revision()), (Some(19), Revision::new(20)));
    pair.close().await;
}

#[tokio::test]
async fn an_older_snapshot_serves_where_the_newest_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..50), 9).await;
    pair.snapshot().await;
    pair.apply(entries(1, 10..30)).await;
    let newest = pair.snapshot().await;
    pair.log.purge(id(1, 9)).await.unwrap();
    pair.log.save_committed(Some(id(1, 39))).await.unwrap();
    pair.close().await;
    damage(&newest);
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    assert_eq!(open_node(dir.path()).await, (Some(39), Revision::new(40), Some(49)));
}

#[tokio::test]
async fn a_damaged_snapshot_ahead_of_a_sound_state_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..50), 19).await;
    pair.state.checkpoint_now().await;
    pair.close().await;
    let sound = keep(dir.path(), "state");
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.apply(entries(1, 20..30)).await;
    let newest = pair.snapshot().await;
    pair.log.save_committed(Some(id(1, 39))).await.unwrap();
    pair.close().await;
    put_back(dir.path(), "state", &sound);
    damage(&newest);
    assert_eq!(open_node(dir.path()).await, (Some(39), Revision::new(40), Some(49)));
}

#[tokio::test]
async fn a_purged_log_without_a_whole_snapshot_is_told_as_beyond_repair() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..50), 29).await;
    let only = pair.snapshot().await;
    pair.log.purge(id(1, 29)).await.unwrap();
    pair.close().await;
    damage(&only);
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    let error = Pair::open(dir.path()).await.map(drop).unwrap_err();
    assert!(matches!(error, RecoveryError::Unrecoverable { purged: 29 }));
    assert_eq!(
        error.to_string(),
        "the state can't be rebuilt: the log begins behind entry 29, and no whole snapshot reaches that far; \
         remove this member and add it again with an empty directory"
    );
}

#[tokio::test]
async fn a_sound_state_gets_a_new_snapshot_where_the_only_one_is_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::open(dir.path()).await.unwrap();
    pair.write(entries(1, 0..50), 29).await;
    let only = pair.snapshot().await;
    pair.state.checkpoint_now().await;
    pair.log.purge(id(1, 29)).await.unwrap();
    pair.close().await;
    fs::write(&only, "no snapshot").unwrap();
    assert_eq!(open_node(dir.path()).await, (Some(29), Revision::new(30), Some(49)));
    assert!(crate::state::snapshot::verify(&only).is_ok(), "written anew at the start");
}

#[tokio::test]
async fn a_damaged_newest_snapshot_is_not_left_for_openraft_to_install() {
    for engine_is_lost in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut pair = Pair::open(dir.path()).await.unwrap();
        pair.write(entries(1, 0..3), 2).await;
        pair.snapshot().await;
        pair.write(entries(1, 3..5), 4).await;
        let newest = pair.snapshot().await;
        pair.close().await;
        damage(&newest);
        fs::remove_dir_all(dir.path().join("state")).unwrap();
        if engine_is_lost {
            fs::create_dir_all(dir.path().join("state")).unwrap();
            fs::write(dir.path().join("state/1"), "not a directory").unwrap();
        }
        let aside = newest.with_extension("snapshot.damaged");
        for _ in 0..2 {
            let pair = Pair::open(dir.path()).await.unwrap();
            assert_eq!(pair.applied(), Some(2), "from the older one");
            pair.close().await;
            assert!(!newest.exists() && aside.exists(), "kept to be looked at");
        }
    }
}
