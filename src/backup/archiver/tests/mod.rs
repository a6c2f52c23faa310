//! Archivers over a store in memory or a folder, and a node that is only a log and a state.
//!
//! Property: whatever stops, overtakes or cuts off an archiver, the archive ends up with every entry from the first whole
//! state on, exactly as it was applied, with the state hashes that the node had. Method: the archive is read back with the
//! readers that a restore uses and compared with the log.

mod emptied;
mod outcomes;
mod stores;
mod wholes;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::backup::faults::{Fault, Faults};
use crate::backup::layout::Kind;
use crate::backup::manifest::Object;
use crate::backup::seal::{Identities, OpenReader, Recipients};
use crate::backup::segment::{SegmentReader, StateMark};
use crate::backup::target;
use crate::state::snapshot::{self, SnapshotMeta};
use crate::state::{
    Batch, Command, LogContent, LogEntry, Operation, PinnedState, Principal, StateConfig, StateMachine, Targets, Txn,
    TxnOp,
};
use crate::storage::MemoryEngine;
use crate::types::{Key, LeaseId, LogIndex, LogPosition, NodeId, Revision, Term, WallTime};

const CLUSTER: ClusterId = ClusterId::new(7);

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node: a log, the state it gives, and the state hashes on the way.
struct Node {
    dir: TempDir,
    inner: Mutex<Inner>,
    /// Whether snapshots come to an end.
    snapshots: watch::Sender<bool>,
}

struct Inner {
    machine: StateMachine,
    log: Vec<LogEntry>,
    purged: Option<LogPosition>,
    marks: BTreeMap<u64, StateMark>,
    bytes: u64,
    /// Whether it gives no entries for the time being.
    stuck: bool,
}

impl Node {
    fn new() -> Arc<Self> {
        let machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        let inner = Inner { machine, log: Vec::new(), purged: None, marks: BTreeMap::new(), bytes: 0, stuck: false };
        let (dir, inner, snapshots) = (tempfile::tempdir().unwrap(), Mutex::new(inner), watch::Sender::new(true));
        Arc::new(Self { dir, inner, snapshots })
    }

    /// Applies so many more entries, a blank and a membership among them now and then.
    fn write(&self, entries: u64) {
        let mut inner = self.inner.lock();
        for _ in 0..entries {
            let index = inner.log.len() as u64;
            let position =
                LogPosition { term: Term::new(1 + index / 50), leader: NodeId::new(1), index: LogIndex::new(index) };
            let content = match index % 10 {
                3 => LogContent::Blank,
                7 => LogContent::Membership(Bytes::from(format!("members of {index}"))),
                _ => LogContent::Commands(Batch::encode(&[put(index), put(index + 1)])),
            };
            match &content {
                LogContent::Blank => inner.machine.apply_blank(position),
                LogContent::Membership(members) => inner.machine.apply_membership(position, members.clone()),
                LogContent::Commands(batch) => {
                    inner.machine.apply(position, &batch.decode().unwrap()).unwrap();
                }
            }
            let applied = inner.machine.publish();
            inner.marks.insert(index, StateMark { revision: applied.revision, hash: applied.hash });
            inner.log.push(LogEntry { position, content });
            inner.bytes += 100;
        }
    }

    fn purge(&self, index: u64) {
        let mut inner = self.inner.lock();
        inner.purged = Some(inner.log[usize::try_from(index).unwrap()].position);
    }

    fn last(&self) -> u64 {
        self.inner.lock().log.len() as u64 - 1
    }
}

fn put(number: u64) -> Command {
    let key = Key::new(format!("key-{}", number % 40)).unwrap();
    let value = Bytes::from(format!("value {number}"));
    let success = vec![TxnOp::Put { key, value, lease: LeaseId::ZERO }];
    let operation = Operation::Txn(Txn { success, ..Txn::default() });
    Command { proposed_at: clock::wall(), principal: Principal::Anonymous, request: None, operation }
}

fn write_snapshot(pinned: &PinnedState, dir: &std::path::Path) -> (std::path::PathBuf, SnapshotMeta) {
    let applied = pinned.applied().clone();
    let meta = SnapshotMeta {
        cluster_id: CLUSTER,
        position: applied.position,
        membership: applied.membership,
        revision: applied.revision,
        compacted: applied.compacted,
        hash: applied.hash,
        created_at: clock::wall(),
        targets: Targets::default(),
    };
    let path = dir.join(format!("{}.snapshot", rand::random::<u64>()));
    snapshot::write(&path, &meta, pinned.keys().unwrap(), pinned.records()).unwrap();
    (path, meta)
}

impl LogSource for Node {
    fn reached(&self) -> Option<Reached> {
        let inner = self.inner.lock();
        let last = inner.log.last()?;
        Some(Reached { position: last.position, state: inner.marks[&last.position.index.get()] })
    }

    fn log_begins_behind(&self) -> Option<LogPosition> {
        self.inner.lock().purged
    }

    fn written_bytes(&self) -> u64 {
        self.inner.lock().bytes
    }

    async fn entries(
        &self,
        after: Option<LogPosition>,
        upto: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, SourceError> {
        tokio::task::yield_now().await;
        let stuck = self.inner.lock().stuck;
        if stuck {
            std::future::pending::<()>().await;
        }
        let inner = self.inner.lock();
        let first = after.map_or(0, |after| after.index.get() + 1);
        if let Some(purged) = inner.purged.filter(|purged| purged.index.get() >= first) {
            return Err(SourceError::Gone { purged });
        }
        let behind = inner.log.iter().filter(|entry| (first..=upto.get()).contains(&entry.position.index.get()));
        Ok(behind.take(usize::try_from(bytes_max / 100).unwrap().max(1)).cloned().collect())
    }

    async fn snapshot(&self) -> Result<SourceSnapshot, SourceError> {
        tokio::task::yield_now().await;
        self.snapshots.subscribe().wait_for(|done| *done).await.unwrap();
        let pinned = self.inner.lock().machine.pin();
        let (path, meta) = write_snapshot(&pinned, self.dir.path());
        Ok(SourceSnapshot { path, meta, held: Box::new(()) })
    }
}

fn memory() -> Repository {
    Repository::new(Arc::new(InMemory::new()), Path::from("prefix"), "memory:")
}

fn settings() -> TargetSettings {
    TargetSettings { flush_interval: Duration::from_millis(5), ..TargetSettings::sample() }
}

/// An archiver at work; ends with this.
struct Running {
    desk: Arc<Desk>,
    active: watch::Sender<bool>,
    _task: tokio::task::JoinSet<()>,
}

impl Running {
    fn start(node: &Arc<Node>, repository: &Repository, settings: TargetSettings, name: &str) -> Self {
        let (desk, active) = (Arc::new(Desk::default()), watch::Sender::new(true));
        let archiver =
            Archiver::new(CLUSTER, name.into(), settings, repository.clone(), Arc::clone(node), Arc::clone(&desk));
        let mut task = tokio::task::JoinSet::new();
        task.spawn(archiver.run(active.subscribe()));
        Self { desk, active, _task: task }
    }

    /// Waits until what it tells is so.
    async fn until(&self, what: &str, holds: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.desk.status();
        let told = tokio::time::timeout(PATIENCE, status.wait_for(holds)).await;
        match told {
            Ok(told) => told.unwrap().clone(),
            Err(_) => panic!("not within {PATIENCE:?}: {what}: {:?}", *self.desk.status().borrow()),
        }
    }

    async fn archived(&self, index: u64) -> Status {
        let reaches = |status: &Status| status.archived.is_some_and(|archived| archived.position.index.get() >= index);
        self.until(&format!("entry {index} is archived"), reaches).await
    }
}

async fn unpacked(repository: &Repository, object: &Object, keys: &Identities) -> Vec<u8> {
    let sealed = repository.get(&object.name, usize::MAX).await.unwrap();
    assert_eq!(sealed.len() as u64, object.bytes);
    let mut plain = Vec::new();
    let encrypted = crate::backup::layout::is_encrypted(&object.name);
    OpenReader::new(&sealed[..], encrypted, keys).unwrap().read_to_end(&mut plain).unwrap();
    plain
}

/// Reads the archive back: every entry behind the oldest whole state is there, and the states are those of the node.
async fn check(repository: &Repository, node: &Node, keys: &Identities) -> Catalogue {
    let chain = Catalogue::read(repository, CLUSTER).await.unwrap();
    let begin = LogPosition::from(chain.fulls().first().expect("a whole state").last);
    let (end, path) = chain.follow(begin);
    assert_eq!(end.index.get(), node.last(), "the archive ends early");
    assert_eq!(chain.end(), Some(end));
    let (log, marks) = {
        let inner = node.inner.lock();
        (inner.log.clone(), inner.marks.clone())
    };
    let mut next = begin.index.get() + 1;
    for object in path {
        let plain = unpacked(repository, object, keys).await;
        let mut reader = SegmentReader::new(&plain[..]).unwrap();
        while let Some(entry) = reader.next_entry().unwrap() {
            let index = entry.position.index.get();
            assert_eq!(entry, log[usize::try_from(index).unwrap()]);
            next = next.max(index + 1);
        }
    }
    assert_eq!(next, node.last() + 1);
    for object in chain.objects() {
        if let Some(state) = object.state {
            assert_eq!(StateMark::from(state), marks[&object.last.index], "{}", object.name);
        }
    }
    chain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_state_comes_first_and_then_every_entry_without_a_gap() {
    let (node, repository) = (Node::new(), memory());
    let (private, public) = Identities::generate();
    node.write(25);
    let settings = TargetSettings { recipients: Recipients::parse(&[public]).unwrap(), ..settings() };
    let running = Running::start(&node, &repository, settings, "n1");
    running.archived(24).await;
    for _ in 0..10 {
        node.write(7);
        running.archived(node.last()).await;
    }
    // More than one object holds.
    node.write(500);
    let status = running.archived(node.last()).await;
    assert_eq!(status.archived.unwrap().revision, node.reached().unwrap().state.revision);
    assert_eq!((status.sent_full.objects, status.errors, status.failing), (1, 0, None));
    let chain = check(&repository, &node, &private).await;
    assert_eq!(chain.fulls()[0].last.index, 24);
    assert!(chain.segments().len() >= 500 / 20 + 10);
    // The last object of each flush knows the state behind it.
    assert_eq!(chain.segments().last().unwrap().state.unwrap().revision, status.archived.unwrap().revision.get());
    assert!(chain.objects().all(|object| object.name.ends_with(".age")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_anywhere_it_leaves_an_archive_that_the_next_one_continues() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    for polls in 1..60_usize {
        node.write(30);
        let (desk, active) = (Arc::new(Desk::default()), watch::Sender::new(true));
        if polls % 7 == 0 {
            desk.want_full();
        }
        let merging = TargetSettings { merge_interval: Duration::from_millis(20), ..settings() };
        let archiver =
            Archiver::new(CLUSTER, format!("n{polls}"), merging, repository.clone(), Arc::clone(&node), desk);
        let mut run = pin!(archiver.run(active.subscribe()));
        let mut left = polls * 2;
        std::future::poll_fn(|context| {
            left -= 1;
            if left == 0 || run.as_mut().poll(context).is_ready() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    node.write(1);
    let running = Running::start(&node, &repository, settings(), "last");
    running.archived(node.last()).await;
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_archive_at_the_same_time_leave_neither_gap_nor_harm() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let one = Running::start(&node, &repository, settings(), "n1");
    let two = Running::start(&node, &repository, settings(), "n2");
    let mut overtaken = 0;
    for _ in 0..40 {
        node.write(50);
        one.archived(node.last()).await;
        let (of_one, of_two) = (one.desk.status().borrow().overtaken, two.desk.status().borrow().overtaken);
        overtaken = of_one + of_two;
    }
    let status = two.archived(node.last()).await;
    assert_eq!(status.errors, 0);
    assert!(overtaken > 0, "they never met");
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_goes_on_where_the_one_before_it_stopped() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let one = Running::start(&node, &repository, settings(), "n1");
    let two = Running::start(&node, &repository, settings(), "n2");
    two.active.send_replace(false);
    for turn in 0..10 {
        let (from, to) = if turn % 2 == 0 { (&one, &two) } else { (&two, &one) };
        node.write(20);
        from.archived(node.last()).await;
        from.active.send_replace(false);
        node.write(20);
        to.active.send_replace(true);
        to.archived(node.last()).await;
    }
    let chain = check(&repository, &node, &Identities::default()).await;
    assert_eq!(chain.fulls().len(), 1);
}
