//! Whole nodes in one process, over real sockets and directories, without HTTP.
//!
//! Guarantees that the rooms below the API hold together: forming, writing through any node, reading on any node, and what
//! a node says when it can't. Leaves out: processes and kill -9 (`cluster_process`), and the HTTP contract.

mod membership;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::node::{
    ArchiveConfig, Consistency, MemberPolicy, Node, NodeConfig, Origin, ReadOptions, Role, StartError, WriteError,
};
use quorate::raft::{Engines, LogConfig, RaftConfig, Timers};
use quorate::state::{OpReply, Principal, StateConfig, Txn, TxnOp};
use quorate::telemetry::Metrics;
use quorate::transport::listener::{self, ListenerLimits};
use quorate::transport::metrics::TransportMetrics;
use quorate::transport::tcp::TcpTransport;
use quorate::types::{Key, LeaseId, Member, Revision};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(30);

struct TestNode {
    node: Node,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl TestNode {
    async fn stop(self) {
        self.node.stop().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn config(dir: &Path, name: &str, first: &BTreeMap<String, String>) -> NodeConfig {
    NodeConfig {
        data_dir: dir.join(name),
        member: Member {
            name: name.into(),
            peer_addr: first[name].clone(),
            client_url: format!("http://{name}"),
            ..Member::default()
        },
        origin: Origin::FirstMembers(first.clone()),
        policy: MemberPolicy::default(),
        raft: RaftConfig {
            data_dir: dir.join(name),
            timers: Timers::default(),
            log: LogConfig::default(),
            state: StateConfig::default(),
            engine_cache_bytes: 16 * 1024 * 1024,
            snapshot_log_bytes: 64 * 1024 * 1024,
            catchup_bytes_per_second: 50 * 1024 * 1024,
            engines: Engines::default(),
        },
        archive: ArchiveConfig::default(),
    }
}

/// Listeners on free ports, and the list of first members that goes with them.
async fn listeners(names: &[&str]) -> (Vec<TcpListener>, BTreeMap<String, String>) {
    let mut first = BTreeMap::new();
    let mut listeners = Vec::new();
    for name in names {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        first.insert((*name).to_owned(), listener.local_addr().unwrap().to_string());
        listeners.push(listener);
    }
    (listeners, first)
}

async fn start(config: NodeConfig, listener: TcpListener) -> Result<TestNode, StartError> {
    let figures = Metrics::new();
    let metrics = figures.register(TransportMetrics::register);
    let node = Node::open(&config, Arc::new(TcpTransport::new(metrics.clone())))?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    listener::serve(listener, node.peer_handler(), ListenerLimits::default(), metrics, stop.clone(), &tasks);
    let started = node.start(&config, &figures).await;
    let node = TestNode { node, stop, tasks };
    match started {
        Ok(()) => Ok(node),
        Err(error) => {
            node.stop().await;
            Err(error)
        }
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

async fn start_all(configs: Vec<NodeConfig>, listeners: Vec<TcpListener>) -> Vec<TestNode> {
    raise_file_limit();
    let starting = configs.into_iter().zip(listeners).map(|(config, listener)| start(config, listener));
    futures::future::join_all(starting)
        .await
        .into_iter()
        .map(|node| node.map_err(|error| error.to_string()).unwrap())
        .collect()
}

async fn rebind(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let deadline = Node::deadline_in(PATIENCE);
    loop {
        // Somebody's outgoing connection may have got the port meanwhile.
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && quorate::clock::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            bound => return bound.unwrap(),
        }
    }
}

fn key(key: &str) -> Key {
    Key::new(key.to_owned()).unwrap()
}

async fn put(node: &Node, name: &str, value: &str) -> Result<Revision, WriteError> {
    let op = TxnOp::Put { key: key(name), value: Bytes::from(value.to_owned()), lease: LeaseId::ZERO };
    let txn = Txn { success: vec![op], ..Txn::default() };
    let reply = node.write(txn, Principal::Anonymous, None, Node::deadline_in(PATIENCE)).await?;
    assert!(matches!(reply.responses[..], [OpReply::Put { .. }]));
    Ok(reply.revision)
}

async fn get(node: &Node, name: &str, consistency: Consistency) -> Option<String> {
    let options = ReadOptions {
        consistency,
        min_revision: None,
        at_revision: None,
        local_only: false,
        deadline: Node::deadline_in(PATIENCE),
    };
    let view = node.read(options).await.unwrap().view;
    view.get(&key(name)).unwrap().map(|record| String::from_utf8(record.value.to_vec()).unwrap())
}

fn logs() {
    let _ = quorate::telemetry::init(quorate::telemetry::LogFormat::Text, "info");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_once_and_serve_through_any_of_them() {
    logs();
    let dir = tempfile::tempdir().unwrap();
    let (sockets, first) = listeners(&["n1", "n2", "n3"]).await;
    let configs: Vec<_> = ["n1", "n2", "n3"].iter().map(|name| config(dir.path(), name, &first)).collect();
    let nodes = start_all(configs.clone(), sockets).await;

    for (at, node) in nodes.iter().enumerate() {
        let revision = put(&node.node, &format!("k{at}"), &format!("v{at}")).await.unwrap();
        assert_eq!(revision, Revision::new(at as u64 + 1));
        for other in &nodes {
            let seen = get(&other.node, &format!("k{at}"), Consistency::Linearizable).await;
            assert_eq!(seen, Some(format!("v{at}")), "a linearizable read on any node sees the write");
        }
    }
    let leaders = nodes.iter().filter(|node| node.node.status().role == Role::Leader).count();
    assert_eq!(leaders, 1);
    let mut clusters = Vec::new();
    for node in &nodes {
        clusters.push(node.node.cluster().await.unwrap());
    }
    assert!(clusters.iter().all(|cluster| cluster.cluster_id == clusters[0].cluster_id && cluster.members.len() == 3));
    let hashes: Vec<_> = nodes.iter().map(|node| node.node.status().state_hash).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");

    for node in nodes {
        node.stop().await;
    }
    // All of them restarted: the same cluster, the same data.
    let mut sockets = Vec::new();
    for config in &configs {
        sockets.push(rebind(&config.member.peer_addr).await);
    }
    let nodes = start_all(configs, sockets).await;
    assert_eq!(get(&nodes[1].node, "k2", Consistency::Linearizable).await.as_deref(), Some("v2"));
    assert_eq!(nodes[0].node.cluster().await.unwrap().cluster_id, clusters[0].cluster_id);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_lost_its_contents_does_not_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (sockets, first) = listeners(&["n1"]).await;
    let configs = || vec![config(dir.path(), "n1", &first)];
    let mut nodes = start_all(configs(), sockets).await;
    put(&nodes[0].node, "k", "v").await.unwrap();
    nodes.pop().unwrap().stop().await;
    for entry in std::fs::read_dir(dir.path().join("n1/log")).unwrap() {
        let path = entry.unwrap().path();
        let len = path.metadata().unwrap().len();
        std::fs::write(&path, vec![0; usize::try_from(len).unwrap()]).unwrap();
    }
    // Whoever watches over it starts it again.
    for _ in 0..2 {
        let socket = rebind(&configs()[0].member.peer_addr).await;
        let error = start(configs().remove(0), socket).await.err().expect("its votes are lost");
        assert!(error.to_string().contains("nothing is left"), "{error}");
    }
}
