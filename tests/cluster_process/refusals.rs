//! Starts that must fail: one clear line, the right exit code, no panic, nothing changed.

use std::fs;
use std::net::TcpListener;

use quorate::codec::framed;

use crate::process::{Cluster, Member, Settings, address, files, http};

/// The process must not come up: the exit code and the only line it says.
async fn refused(node: &mut Member, code: i32, expected: &str) {
    let (ended, said) = node.refusal().await;
    assert_eq!(ended, Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "more than one line: {said}");
    assert!(said.starts_with("quorate: ") && said.contains(expected), "expected \"{expected}\": {said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_can_not_be_is_one_clear_line() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    // While it runs.
    let mut twin = cluster.nodes[0].beside("n1");
    twin.log = twin.log.with_file_name("twin.log");
    (twin.client_addr, twin.peer_addr) = (address(), address());
    refused(&mut twin, 2, "in use by another process").await;
    (twin.client_addr, twin.peer_addr) = (cluster.nodes[0].client_addr.clone(), address());
    refused(&mut twin, 2, "for clients: Address already in use").await;
    let occupied = cluster.nodes[0].client_addr.clone();
    cluster.nodes[0].kill();
    let holder = TcpListener::bind(&occupied).unwrap();
    refused(&mut cluster.nodes[0], 2, "give another with --client-addr").await;
    drop(holder);
    let holder = TcpListener::bind(&cluster.nodes[0].peer_addr).unwrap();
    refused(&mut cluster.nodes[0], 2, "give another with --peer-addr").await;
    drop(holder);

    let node = &mut cluster.nodes[0];
    node.name = "n2".into();
    let (listed, list) = (node.advertised.clone(), node.initial_cluster.take());
    refused(node, 2, "belongs to node n1, not n2").await;
    (node.name, node.initial_cluster, node.advertised) = ("n1".into(), list, listed);

    let before: Vec<_> = files(&node.dir).iter().map(|file| fs::read(file).unwrap()).collect();
    let identity = node.dir.join("identity");
    let whole = fs::read(&identity).unwrap();
    fs::write(&identity, framed::seal(*b"QIDN", 2, b"of a later time")).unwrap();
    refused(node, 2, "newer").await;
    fs::write(&identity, &whole[..whole.len() - 1]).unwrap();
    refused(node, 4, "identity: ").await;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&identity, &flipped).unwrap();
    refused(node, 4, "identity: ").await;
    fs::remove_file(&identity).unwrap();
    refused(node, 4, "holds data but no identity file").await;
    fs::write(&identity, &whole).unwrap();

    let log = node.dir.join("log");
    fs::rename(&log, node.dir.with_file_name("log-kept")).unwrap();
    refused(node, 4, "has lost its log").await;
    fs::rename(node.dir.with_file_name("log-kept"), &log).unwrap();
    let after: Vec<_> = files(&node.dir).iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(before == after, "a start that was refused has changed something");

    // Nothing of it did harm.
    node.start();
    cluster.ready().await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_directory_needs_a_list() {
    let mut cluster = Cluster::prepare(&Settings::default()).await;
    let node = &mut cluster.nodes[0];
    node.initial_cluster = None;
    refused(node, 2, "--initial-cluster").await;
    // A directory that can't be one.
    node.dir = node.dir.with_file_name("file");
    fs::write(&node.dir, "").unwrap();
    refused(node, 2, "can't create").await;
    node.dir = node.dir.join("below");
    refused(node, 2, "can't create").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_cluster_is_refused() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut other = cluster.nodes[0].beside("other");
    (other.client_addr, other.peer_addr) = (address(), address());
    other.advertised = other.peer_addr.clone();
    other.initial_cluster = Some(format!("n1={}", other.peer_addr));
    other.start();
    other.ready().await;
    let answer = http().get(other.url("/v1/snapshot")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let file = answer.bytes().await.unwrap();
    let node = &mut cluster.nodes[0];
    node.kill();
    let path = node.dir.join("snapshots/1-1.snapshot");
    fs::write(&path, file).unwrap();
    refused(node, 2, "the snapshot is of cluster").await;
    fs::remove_file(&path).unwrap();
    node.start();
    cluster.ready().await;
    cluster.converged().await;
}
