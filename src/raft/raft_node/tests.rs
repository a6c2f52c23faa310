//! Several consensus nodes in one process over a switchboard whose links the tests cut, slow and hold.
//!
//! Property: whatever happens to links and leaders, a command is answered truthfully within its deadline, a read sees what
//! was acknowledged before it, a follower that is too far behind is brought up by a snapshot, and nothing stays stuck.
//! Method: real time, real stores in temporary directories, memory transport with a gate before each member.

mod committed;
mod elections;
mod idle;
mod proposing;
mod quorum;
mod reading;
mod snapshots;
mod transfers;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::raft::config::Timers;
use crate::raft::log_store::LogConfig;
use crate::state::{Operation, Principal, Txn, TxnOp};
use crate::transport::memory::Network;
use crate::transport::{BoxFuture, Channel};
use crate::types::{Key, LeaseId, Revision, WallTime};

const CLUSTER: ClusterId = ClusterId::new(7);

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition that gives no news is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Longer than the product's, so that nobody is elected because the machine was busy with something else for a second.
fn steady() -> Timers {
    let (election_min, election_max) = (Duration::from_millis(1_500), Duration::from_secs(3));
    Timers { election_min, election_max, ..Timers::default() }
}

/// Stands before a member: counts the calls that arrive and their bytes, and holds or loses those of one channel for as long as it
/// is told to.
struct Gate {
    inner: Arc<dyn PeerHandler>,
    /// Calls of a channel behind the first so many.
    held: watch::Sender<Option<(Channel, u64)>>,
    lost: watch::Sender<Option<Channel>>,
    calls: [AtomicU64; Channel::ALL.len()],
    bytes: [AtomicU64; Channel::ALL.len()],
}

impl Gate {
    fn hold(&self, channel: Channel) {
        self.hold_behind(channel, 0);
    }

    /// Holds the calls of a channel behind the first so many, of all that ever came.
    fn hold_behind(&self, channel: Channel, calls: u64) {
        self.held.send_replace(Some((channel, calls)));
    }

    /// Has the calls of a channel come to nothing, as if the connection broke.
    fn lose(&self, channel: Channel) {
        self.lost.send_replace(Some(channel));
    }

    fn release(&self) {
        self.held.send_replace(None);
        self.lost.send_replace(None);
    }

    fn calls(&self, channel: Channel) -> u64 {
        self.calls[usize::from(channel.code()) - 1].load(Ordering::SeqCst)
    }

    fn bytes(&self, channel: Channel) -> u64 {
        self.bytes[usize::from(channel.code()) - 1].load(Ordering::SeqCst)
    }
}

impl PeerHandler for Gate {
    fn handle(&self, channel: Channel, request: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        let before = self.calls[usize::from(channel.code()) - 1].fetch_add(1, Ordering::SeqCst);
        self.bytes[usize::from(channel.code()) - 1].fetch_add(request.len() as u64, Ordering::SeqCst);
        Box::pin(async move {
            let is_held =
                |held: &Option<(Channel, u64)>| held.is_some_and(|(which, first)| which == channel && before >= first);
            self.held.subscribe().wait_for(|held| !is_held(held)).await.ok()?;
            if *self.lost.borrow() == Some(channel) {
                return None;
            }
            self.inner.handle(channel, request).await
        })
    }
}

struct Running {
    node: RaftNode,
    gate: Arc<Gate>,
}

/// Members 1, 2, 3, … at the addresses `n1`, `n2`, `n3`, ….
struct Cluster {
    network: Network,
    dir: TempDir,
    timers: Timers,
    snapshot_log_bytes: u64,
    catchup_bytes_per_second: u64,
    members: BTreeMap<u64, Running>,
}

fn address(id: u64) -> String {
    format!("n{id}")
}

/// Each stands in a zone of its own, so that what is large is packed on its way.
fn member(id: u64) -> Member {
    Member { name: address(id), peer_addr: address(id), zone: address(id), ..Member::default() }
}

fn soon(millis: u64) -> Instant {
    clock::now() + Duration::from_millis(millis)
}

fn put(key: &str, value: impl Into<Bytes>) -> Command {
    let op = TxnOp::Put { key: Key::new(key.to_owned()).unwrap(), value: value.into(), lease: LeaseId::ZERO };
    let operation = Operation::Txn(Txn { success: vec![op], ..Txn::default() });
    Command { proposed_at: WallTime::ZERO, principal: Principal::Anonymous, request: None, operation }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = clock::now() + PATIENCE;
    while !holds() {
        assert!(clock::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Begins all of these in one go, before any of them is worked on: the gate that they come to holds until then.
async fn at_once<T>(
    gates: &[&Gate],
    channel: Channel,
    futures: impl Iterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    gates.iter().for_each(|gate| gate.hold(channel));
    // Unconstrained, because Tokio would have a task that begins so much pause in between.
    let mut all = pin!(tokio::task::unconstrained(join_all(futures)));
    let begun = futures::poll!(&mut all);
    gates.iter().for_each(|gate| gate.release());
    match begun {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => all.await,
    }
}

/// Three nodes have some three hundred files open, and tests run side by side: more than the 1,024 that a process often begins with,
/// though it may have more.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    const ENOUGH: u64 = 16_384;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < ENOUGH) {
        limit.current = Some(limit.maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH)));
        setrlimit(Resource::Nofile, limit).expect("a process may have its hard limit");
    }
}

impl Cluster {
    async fn start(members: u64) -> Self {
        Self::start_with(members, u64::MAX).await
    }

    async fn start_with(count: u64, snapshot_log_bytes: u64) -> Self {
        Self::start_limited(count, snapshot_log_bytes, 50 * 1024 * 1024, steady()).await
    }

    /// With the product's own timers: for what waits for several elections, and minds none.
    async fn start_quick(count: u64) -> Self {
        Self::start_limited(count, u64::MAX, 50 * 1024 * 1024, Timers::default()).await
    }

    async fn start_limited(count: u64, snapshot_log_bytes: u64, catchup_bytes_per_second: u64, timers: Timers) -> Self {
        raise_file_limit();
        let (network, dir) = (Network::new(), tempfile::tempdir().unwrap());
        let members = BTreeMap::new();
        let mut cluster = Self { network, dir, timers, snapshot_log_bytes, catchup_bytes_per_second, members };
        for id in 1..=count {
            cluster.open(id).await;
        }
        let first = (1..=count).map(|id| (NodeId::new(id), member(id))).collect();
        cluster.node(1).initialize(first).await.unwrap();
        cluster.leader().await;
        cluster
    }

    fn config(&self, id: u64) -> RaftConfig {
        RaftConfig {
            timers: self.timers,
            // Removed in whole files: they must be smaller than what makes a snapshot due.
            log: LogConfig {
                chunk_bytes: (self.snapshot_log_bytes / 4).min(LogConfig::default().chunk_bytes),
                ..LogConfig::default()
            },
            snapshot_log_bytes: self.snapshot_log_bytes,
            catchup_bytes_per_second: self.catchup_bytes_per_second,
            ..RaftConfig::small(&self.dir.path().join(address(id)))
        }
    }

    /// Calls other members as this one does.
    fn peers(&self, me: u64) -> Peers {
        Peers {
            transport: Arc::new(self.network.endpoint(&address(me))),
            cluster: CLUSTER,
            me: NodeId::new(me),
            book: AddressBook::default(),
            zone: address(me).into(),
            packer: Packer::default(),
        }
    }

    async fn open(&mut self, id: u64) {
        let transport = Arc::new(self.network.endpoint(&address(id)));
        let identity = RaftIdentity { cluster: CLUSTER, me: NodeId::new(id), zone: address(id), transport };
        let config = self.config(id);
        drop(LogStore::open(&config.data_dir.join("log"), config.log.clone()).unwrap());
        let node = RaftNode::open(&config, identity, &Metrics::new(), Fatal::default()).await.unwrap();
        // Nothing is archived here.
        node.keep_log_behind(None);
        let gate = Gate {
            inner: node.handler(),
            held: watch::Sender::new(None),
            lost: watch::Sender::new(None),
            calls: Default::default(),
            bytes: Default::default(),
        };
        let gate = Arc::new(gate);
        self.network.serve(&address(id), gate.clone());
        self.members.insert(id, Running { node, gate });
    }

    async fn stop(&mut self, id: u64) {
        self.network.stop(&address(id));
        let member = self.members.remove(&id).unwrap();
        member.node.stop().await;
    }

    fn node(&self, id: u64) -> RaftNode {
        self.members[&id].node.clone()
    }

    fn gate(&self, id: u64) -> &Gate {
        &self.members[&id].gate
    }

    /// The only leader that a quorum has confirmed lately.
    async fn leader(&self) -> u64 {
        self.leader_among(&self.members.keys().copied().collect::<Vec<_>>()).await
    }

    async fn leader_among(&self, ids: &[u64]) -> u64 {
        let mut found = None;
        until("a leader that all of them know", || {
            // Without a confirmation Raft takes no entry from who is cut off next.
            let confirmed = |id: u64| {
                let metrics = self.node(id).status().metrics;
                self.members.len() == 1 || metrics.last_quorum_acked.is_some()
            };
            let leads = |id: &&u64| self.node(**id).leader() == Leader::Me && confirmed(**id);
            found = ids.iter().find(leads).copied();
            let known = found.map(NodeId::new);
            found.is_some() && ids.iter().all(|id| self.node(*id).status().leader() == known)
        })
        .await;
        found.unwrap()
    }

    /// A member that does not lead.
    async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.members.keys().find(|id| **id != leader).unwrap()
    }

    /// Lets through whatever gates hold.
    fn release_all(&self) {
        self.members.values().for_each(|running| running.gate.release());
    }

    /// Cuts a member off from all others, both ways.
    fn isolate(&self, id: u64) {
        let one = address(id);
        let others: Vec<String> = self.members.keys().filter(|other| **other != id).map(|id| address(*id)).collect();
        self.network.partition(&[&one], &others.iter().map(String::as_str).collect::<Vec<_>>());
    }

    fn value(&self, id: u64, key: &str) -> Option<Bytes> {
        let key = Key::new(key.to_owned()).unwrap();
        self.node(id).reader().view().get(&key).unwrap().map(|record| record.value)
    }

    /// Waits until a member knows of a leader, itself or another, that serves as far as it knows.
    async fn serves(&self, id: u64) {
        let silence = self.timers.leader_silence();
        until("it knows of a leader that serves", || self.node(id).leader_heard(silence) != Leader::None).await;
    }

    async fn write(&self, id: u64, key: &str) {
        let deadline = soon(20_000);
        loop {
            self.serves(id).await;
            match self.node(id).propose(put(key, "value"), deadline).await {
                // It has just found out that it leads no more, after it was healed: surely not applied, so asked again.
                Err(ProposeError::NoQuorum | ProposeError::NoLeader) if clock::now() < deadline => {}
                result => return drop(result.unwrap().unwrap()),
            }
        }
    }

    /// Waits for a read barrier of a member that may have been a leader without a quorum a moment ago.
    async fn barrier(&self, id: u64) {
        let deadline = soon(30_000);
        loop {
            self.serves(id).await;
            match self.node(id).read_barrier(deadline).await {
                // It turns readers away until it hears of the quorum, or of the next leader.
                Err(BarrierError::NoQuorum | BarrierError::NoLeader) if clock::now() < deadline => {}
                result => return result.unwrap(),
            }
        }
    }

    async fn stop_all(mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}
