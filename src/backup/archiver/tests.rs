//! Archivers over a store in memory or a folder, and a node that is only a log and a state.
//!
//! Property: whatever stops, overtakes or cuts off an archiver, the archive ends up with every entry from the first whole
//! state on, exactly as it was applied, with the state hashes that the node had. Method: the archive is read back with the
//! readers that a restore uses and compared with the log.

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
use crate::backup::care::Care;
use crate::backup::faults::{Fault, Faults};
use crate::backup::layout::Kind;
use crate::backup::manifest::Object;
use crate::backup::seal::{Identities, OpenReader, Recipients};
use crate::backup::segment::{SegmentReader, StateMark};
use crate::backup::target;
use crate::backup::verify::Level;
use crate::state::snapshot::{self, SnapshotMeta};
use crate::state::{
    Batch, Command, LogContent, LogEntry, Operation, PinnedState, Principal, StateConfig, StateMachine, Txn, TxnOp,
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
        Arc::new(Self { dir: tempfile::tempdir().unwrap(), inner: Mutex::new(inner) })
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
        let pinned = self.inner.lock().machine.pin();
        let (path, meta) = write_snapshot(&pinned, self.dir.path());
        Ok(SourceSnapshot { path, meta, held: Box::new(()) })
    }
}

fn memory() -> Repository {
    Repository::new(Arc::new(InMemory::new()), Path::from("prefix"), "memory:")
}

fn settings() -> TargetSettings {
    TargetSettings {
        name: "main".into(),
        url: "memory:".into(),
        options: BTreeMap::new(),
        recipients: Recipients::default(),
        log: true,
        full: "0 3 * * *".parse().unwrap(),
        flush_interval: Duration::from_millis(5),
        flush_bytes: 2_000,
        merge_interval: Duration::ZERO,
        bandwidth: None,
        durable: true,
        care: Care {
            verify: "0 5 * * *".parse().unwrap(),
            level: Level::Chain,
            identity_file: None,
            keep: None,
            prune: "0 4 * * *".parse().unwrap(),
        },
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_away_is_told_and_all_is_caught_up_when_it_is_back() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let (folder, aside) = (dir.path().join("backup"), dir.path().join("aside"));
    let repository = target::open(&format!("file://{}", folder.display()), &BTreeMap::new()).unwrap();
    node.write(30);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    node.write(100);
    let status = running.until("it fails", |status| status.failing.is_some()).await;
    assert!(!status.healthy && status.errors > 0);
    assert!(status.archived.unwrap().position.index.get() < 130, "what is not archived is not told as such");
    node.write(100);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    running.archived(node.last()).await;
    let status = running.until("it is well", |status| status.failing.is_none()).await;
    assert!(status.healthy);
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_bridged_by_a_whole_state_and_told() {
    let (node, repository) = (Node::new(), memory());
    node.write(30);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    running.active.send_replace(false);
    node.write(100);
    node.purge(80);
    running.active.send_replace(true);
    node.write(10);
    running.archived(node.last()).await;
    let gap = running.until("the gap is told", |status| status.gap.is_some_and(|gap| gap.until.is_some())).await;
    assert!(gap.gap.unwrap().after.get() >= 29 && gap.gap.unwrap().until.unwrap().get() >= 80);
    node.write(40);
    running.archived(node.last()).await;
    let chain = Catalogue::read(&repository, CLUSTER).await.unwrap();
    assert_eq!(chain.fulls().len(), 2, "one bridge is enough");
    assert_eq!(chain.end().unwrap().index.get(), node.last());
    let bridge = chain.fulls()[1].last;
    let behind = chain.follow(bridge.into()).1;
    assert_eq!(behind.first().unwrap().previous, Some(bridge), "the log goes on right behind it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_begins_within_the_archive_needs_no_bridge() {
    let (node, repository) = (Node::new(), memory());
    node.write(30);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    node.purge(29);
    node.write(30);
    let status = running.archived(59).await;
    assert_eq!((status.gap, status.sent_full.objects), (None, 1));
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_objects_become_one_and_the_archive_stays_the_same() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let merging = TargetSettings { merge_interval: Duration::from_millis(300), ..settings() };
    let running = Running::start(&node, &repository, merging, "n1");
    running.archived(9).await;
    let begun = clock::now();
    while begun.elapsed() < Duration::from_millis(1_500) {
        node.write(3);
        running.archived(node.last()).await;
    }
    let merged = |status: &Status| status.sent_merged.objects >= 3;
    let status = running.until("objects are merged", merged).await;
    assert!(status.objects < status.sent_log.objects / 2, "{status:?}");
    running.active.send_replace(false);
    let chain = check(&repository, &node, &Identities::default()).await;
    assert!(chain.segments().iter().any(|object| object.plain_bytes > 1_000), "{chain:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_states_come_when_asked_for_and_by_their_schedule_but_not_for_nothing() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    node.write(10);
    running.desk.want_full();
    let status = running.until("it is sent", |status| status.sent_full.objects == 2).await;
    assert_eq!(status.full.unwrap().position.index.get(), 19);
    drop(running);
    let chain = Catalogue::read(&repository, CLUSTER).await.unwrap();
    assert_eq!(chain.objects().filter(|object| object.kind == Kind::Full).count(), 2);
    let made_at = chain.fulls().last().unwrap().times.unwrap().0;
    let minutes = TargetSettings { full: "* * * * *".parse().unwrap(), ..settings() };
    assert!(minutes.full.next_after(WallTime::new(made_at)).unwrap().get() - made_at <= 60_000);
    let running = Running::start(&node, &repository, minutes, "n1");
    let status = running.until("it has looked", |status| status.covered_at.is_some()).await;
    assert_eq!((status.sent_full.objects, status.full_under_way), (0, false), "the state is the same");
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_log_only_whole_states_are_archived() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, TargetSettings { log: false, ..settings() }, "n1");
    running.archived(9).await;
    node.write(10);
    running.desk.want_full();
    let status = running.archived(19).await;
    assert_eq!((status.sent_log.objects, status.sent_full.objects), (0, 2));
    assert_eq!(status.archived.unwrap().revision, Revision::new(node.reached().unwrap().state.revision.get()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_somebody_removed_is_noticed_and_begun_anew() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    drop(running);
    for folder in ["chain", "log", "full"] {
        let folder = format!("{}/{folder}", crate::backup::layout::cluster_name(CLUSTER));
        for object in repository.list(&folder, None).await.unwrap() {
            repository.delete(&object.name).await.unwrap();
        }
    }
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(19).await;
    check(&repository, &node, &Identities::default()).await;
}

/// Removes the archive, but not the marker of the repository.
async fn empty(repository: &Repository) {
    let folder = crate::backup::layout::cluster_name(CLUSTER);
    for object in repository.list(&folder, None).await.unwrap() {
        repository.delete(&object.name).await.unwrap();
    }
}

#[tokio::test]
async fn an_archive_that_is_emptied_while_it_grows_is_told_and_counted_on_no_more() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    empty(&repository).await;
    // It has no cause to look at what it wrote before.
    for _ in 0..3 {
        node.write(10);
        running.archived(node.last()).await;
    }
    tokio::time::pause();
    tokio::time::advance(super::worker::CHECK_INTERVAL).await;
    tokio::time::resume();
    let status = running.until("it is told", |status| status.failing.is_some()).await;
    let error = status.failing.unwrap().error;
    assert!(error.contains("emptied or replaced"), "{error}");
    assert!(!status.healthy && status.archived.is_none() && status.shipped.is_none());
}

#[tokio::test]
async fn who_waits_for_its_turn_counts_no_more_on_an_archive_that_was_emptied() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    running.active.send_replace(false);
    empty(&repository).await;
    tokio::time::pause();
    tokio::time::advance(RECHECK_INTERVAL * 2).await;
    tokio::time::resume();
    let status = running.until("it is told", |status| status.archived.is_none()).await;
    assert!(status.errors > 0);
    // What comes then is a new archive.
    running.active.send_replace(true);
    running.archived(9).await;
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_state_that_overtakes_the_log_is_not_taken_for_its_end() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    node.inner.lock().stuck = true;
    node.write(20);
    running.desk.want_full();
    let status = running.archived(29).await;
    assert_eq!(status.shipped.unwrap().index.get(), 9, "what lies between is still wanted");
    drop(running);
    node.inner.lock().stuck = false;
    let running = Running::start(&node, &repository, settings(), "n1");
    let shipped = |status: &Status| status.shipped.is_some_and(|shipped| shipped.index.get() == 29);
    let status = running.until("the log is sent", shipped).await;
    assert_eq!((status.gap, status.sent_full.objects), (None, 0));
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_create_only_is_not_used_and_that_is_told() {
    let (node, (repository, faults)) = (Node::new(), Faults::repository());
    node.write(10);
    faults.set(Fault::IgnoreCreate);
    let running = Running::start(&node, &repository, settings(), "n1");
    let status = running.until("it is refused", |status| status.failing.is_some()).await;
    assert!(status.failing.unwrap().error.contains("replaces an object"));
    assert!(!status.healthy && status.archived.is_none());
    assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), Catalogue::empty(CLUSTER));
    faults.clear();
    running.archived(9).await;
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_missing_rights_and_lost_answers_cost_time_and_nothing_else() {
    let (node, (repository, faults)) = (Node::new(), Faults::repository());
    node.write(10);
    let merging = TargetSettings { merge_interval: Duration::from_millis(200), ..settings() };
    let running = Running::start(&node, &repository, merging, "n1");
    running.archived(9).await;
    let storms = [
        Fault::Unavailable,
        Fault::LoseAnswers(3),
        Fault::Forbid("put"),
        Fault::LoseAnswers(1),
        Fault::FailParts(0),
        Fault::Forbid("get"),
        Fault::Unavailable,
    ];
    for storm in storms {
        let errors = running.desk.status().borrow().errors;
        faults.set(storm.clone());
        for _ in 0..5 {
            node.write(10);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if storm == Fault::Unavailable {
            running.until("it fails", |status| status.errors > errors).await;
        }
        faults.clear();
        running.archived(node.last()).await;
    }
    running.until("it is well", |status| status.failing.is_none()).await;
    check(&repository, &node, &Identities::default()).await;
}
