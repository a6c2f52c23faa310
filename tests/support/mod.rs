//! Running members for tests: in this process, on free loopback ports and in directories of their own.
//!
//! Guarantees: a member that is returned serves; dropping one stops it. Leaves out: processes (`cluster_process`).

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use quorate::api::ApiConfig;
use quorate::config::DECLARE;
use quorate::node::{ArchiveConfig, MemberPolicy, Node, NodeConfig, Origin, Role};
use quorate::raft::{Engines, LogConfig, RaftConfig, Timers};
use quorate::server::{Server, ServerConfig};
use quorate::state::StateConfig;
use quorate::types::Member;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long anything here may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running member.
pub(crate) struct TestNode {
    pub(crate) url: String,
    pub(crate) node: Node,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    _dir: Option<TempDir>,
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Several of them.
pub(crate) struct TestCluster {
    pub(crate) nodes: Vec<TestNode>,
    _dir: TempDir,
}

impl TestCluster {
    /// The index of the leader, once there is one.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = quorate::clock::now() + PATIENCE;
        loop {
            if let Some(at) = self.nodes.iter().position(|node| node.node.status().role == Role::Leader) {
                return at;
            }
            assert!(quorate::clock::now() < deadline, "no leader within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops one member; it keeps its place in the list.
    pub(crate) async fn stop(&mut self, at: usize) {
        self.nodes[at].stop.cancel();
        if let Some(thread) = self.nodes[at].thread.take() {
            tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
        }
    }
}

pub(crate) async fn single_node() -> TestNode {
    single_node_with(|_| {}).await
}

pub(crate) async fn single_node_with(change: impl FnOnce(&mut ApiConfig)) -> TestNode {
    let dir = tempfile::tempdir().unwrap();
    let mut api = ApiConfig::default();
    change(&mut api);
    let peers = bind();
    let first = BTreeMap::from([("n1".to_owned(), peers.local_addr().unwrap().to_string())]);
    let mut node = run("n1", dir.path(), &first, Timers::default(), api, bind(), peers);
    ready(&mut node).await;
    node._dir = Some(dir);
    node
}

pub(crate) async fn cluster(nodes: usize) -> TestCluster {
    cluster_with(nodes, Timers::default()).await
}

pub(crate) async fn cluster_with(nodes: usize, timers: Timers) -> TestCluster {
    raise_file_limit();
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (1..=nodes).map(|node| format!("n{node}")).collect();
    let sockets: Vec<_> = names.iter().map(|_| (bind(), bind())).collect();
    let address = |listener: &std::net::TcpListener| listener.local_addr().unwrap().to_string();
    let first = names.iter().cloned().zip(sockets.iter().map(|(_, peers)| address(peers))).collect();
    let mut nodes: Vec<TestNode> = names
        .iter()
        .zip(sockets)
        .map(|(name, (clients, peers))| {
            run(name, &dir.path().join(name), &first, timers, ApiConfig::default(), clients, peers)
        })
        .collect();
    for node in &mut nodes {
        ready(node).await;
    }
    TestCluster { nodes, _dir: dir }
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

fn bind() -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

async fn ready(node: &mut TestNode) {
    let deadline = quorate::clock::now() + PATIENCE;
    while let Err(reason) = node.node.ready(quorate::clock::now() + Duration::from_secs(1)).await {
        assert!(quorate::clock::now() < deadline, "not ready within {PATIENCE:?}: {reason}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a member on a thread and a runtime of its own, as a process would.
fn run(
    name: &str,
    dir: &Path,
    first: &BTreeMap<String, String>,
    timers: Timers,
    api: ApiConfig,
    clients: std::net::TcpListener,
    peers: std::net::TcpListener,
) -> TestNode {
    let url = format!("http://{}", clients.local_addr().unwrap());
    let raft = RaftConfig {
        data_dir: dir.to_owned(),
        timers,
        log: LogConfig::default(),
        state: StateConfig::default(),
        engine_cache_bytes: 16 * 1024 * 1024,
        snapshot_log_bytes: 64 * 1024 * 1024,
        catchup_bytes_per_second: 50 * 1024 * 1024,
        engines: Engines::default(),
    };
    let (peer_addr, client_url) = (first[name].clone(), url.clone());
    let member = Member { name: name.into(), peer_addr, client_url, ..Member::default() };
    let origin = Origin::FirstMembers(first.clone());
    let node = NodeConfig {
        data_dir: dir.to_owned(),
        member,
        origin,
        policy: MemberPolicy::default(),
        raft,
        archive: ArchiveConfig { declare: DECLARE, ..ArchiveConfig::default() },
    };
    let config = ServerConfig { node, client_addr: String::new(), peer_addr: String::new(), api };
    let stop = CancellationToken::new();
    let (opened, opening) = mpsc::channel();
    let thread = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (clients, peers) = (TcpListener::from_std(clients).unwrap(), TcpListener::from_std(peers).unwrap());
                let server = Server::open_on(config, clients, peers).unwrap();
                opened.send(server.node().clone()).unwrap();
                tokio::select! {
                    started = server.start() => started.unwrap(),
                    () = stop.cancelled() => {}
                }
                stop.cancelled().await;
                server.stop().await;
            });
        }
    });
    let node = opening.recv().unwrap();
    TestNode { url, node, stop, thread: Some(thread), _dir: None }
}
