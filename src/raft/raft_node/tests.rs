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

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
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

/// Stands before a member: counts the calls that arrive and their bytes, and holds those of one channel for as long as it is told to.
struct Gate {
    inner: Arc<dyn PeerHandler>,
    held: watch::Sender<Option<Channel>>,
    calls: [AtomicU64; Channel::ALL.len()],
    bytes: [AtomicU64; Channel::ALL.len()],
}

impl Gate {
    fn hold(&self, channel: Channel) {
        self.held.send_replace(Some(channel));
    }

    fn release(&self) {
        self.held.send_replace(None);
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
        self.calls[usize::from(channel.code()) - 1].fetch_add(1, Ordering::SeqCst);
        self.bytes[usize::from(channel.code()) - 1].fetch_add(request.len() as u64, Ordering::SeqCst);
        Box::pin(async move {
            self.held.subscribe().wait_for(|held| *held != Some(channel)).await.ok()?;
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

impl Cluster {
    async fn start(members: u64) -> Self {
        Self::start_with(members, u64::MAX).await
    }

    async fn start_with(count: u64, snapshot_log_bytes: u64) -> Self {
        Self::start_limited(count, snapshot_log_bytes, 50 * 1024 * 1024).await
    }

    async fn start_limited(count: u64, snapshot_log_bytes: u64, catchup_bytes_per_second: u64) -> Self {
        let (network, dir) = (Network::new(), tempfile::tempdir().unwrap());
        let mut cluster = Self { network, dir, snapshot_log_bytes, catchup_bytes_per_second, members: BTreeMap::new() };
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
        let silence = super::super::config::Timers::default().leader_silence();
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

    async fn stop_all(mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}
