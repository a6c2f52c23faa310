//! How a cluster comes to be: once, in any order, and never beside another.

use std::fs;
use std::time::Duration;

use quorate::api::model::NodeRole;
use tokio::time::{Instant, sleep};

use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, address, http};

/// Waits until a process answers at all.
async fn alive(node: &mut Member) {
    let deadline = Instant::now() + PATIENCE;
    while http().get(node.url("/healthz")).send().await.is_err() {
        assert!(node.is_running(), "{}", node.said());
        assert!(Instant::now() < deadline, "{}", node.said());
        sleep(POLL).await;
    }
}

async fn readiness(node: &Member) -> u16 {
    http().get(node.url("/readyz")).send().await.unwrap().status().as_u16()
}

async fn cluster_ids(cluster: &Cluster) -> Vec<u64> {
    let all = futures::future::join_all(cluster.nodes.iter().map(Member::status)).await;
    all.into_iter().map(|status| status.unwrap().cluster_id).collect()
}

/// The process must refuse to run, in one line.
async fn refused(node: &mut Member, expected: &str) {
    let (code, said) = node.refusal().await;
    assert_eq!((code, said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.starts_with("quorate: ") && said.contains(expected), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_in_any_order_and_only_once() {
    let mut cluster = Cluster::prepare(&Settings::default()).await;
    for at in [2, 0, 1] {
        cluster.nodes[at].start();
        alive(&mut cluster.nodes[at]).await;
        if at != 1 {
            assert_eq!(readiness(&cluster.nodes[at]).await, 503, "a part of the first members formed a cluster");
        }
    }
    cluster.ready().await;
    let ids = cluster_ids(&cluster).await;
    assert!(ids[0] != 0 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");

    // Again with the list, then without.
    for _ in 0..2 {
        for node in &mut cluster.nodes {
            assert_eq!(node.terminate().await.code(), Some(0), "{}", node.said());
        }
        cluster.start_all().await;
        assert_eq!(cluster_ids(&cluster).await, ids);
        cluster.nodes.iter_mut().for_each(|node| node.initial_cluster = None);
    }
    cluster.converged().await;
}

/// A crash at any point of the forming is continued at the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forming_that_is_killed_again_and_again_ends_in_one_cluster() {
    for _ in 0..3 {
        let mut cluster = Cluster::prepare(&Settings::default()).await;
        for _ in 0..6 {
            cluster.nodes.iter_mut().for_each(Member::start);
            // Not a wait for something: the moment of the kill itself is what is drawn.
            sleep(Duration::from_millis(rand::random_range(20..400))).await;
            cluster.nodes.iter_mut().for_each(Member::kill);
        }
        cluster.start_all().await;
        let ids = cluster_ids(&cluster).await;
        assert!(ids[0] != 0 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        cluster.converged().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_list_is_refused() {
    let mut cluster = Cluster::prepare(&Settings::default()).await;
    let right = cluster.nodes[2].initial_cluster.clone().unwrap();
    let wrong = format!("{right},n4={}", address());
    cluster.nodes[2].initial_cluster = Some(wrong);
    cluster.nodes[0].start();
    alive(&mut cluster.nodes[0]).await;
    refused(&mut cluster.nodes[2], "another --initial-cluster").await;

    // Mended, it forms. Who had seen the other list has ended as well: nobody can tell which of the two is right.
    cluster.nodes[2].initial_cluster = Some(right);
    if cluster.nodes[0].is_running() {
        cluster.nodes[0].kill();
    } else {
        assert_eq!(cluster.nodes[0].ended().await.code(), Some(2));
    }
    cluster.start_all().await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_directory_was_emptied_neither_joins_nor_votes() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let ids = cluster_ids(&cluster).await;
    // The first of the list hands out identities, the others take them.
    for emptied in [1, 0] {
        let (alone, down) = ((emptied + 1) % 3, (emptied + 2) % 3);
        let kept = cluster.nodes[emptied].dir.with_file_name("kept");
        cluster.nodes[emptied].kill();
        fs::rename(&cluster.nodes[emptied].dir, &kept).unwrap();
        refused(&mut cluster.nodes[emptied], "its directory is empty").await;

        // Where its vote would make a quorum, there is none.
        for at in [alone, down] {
            cluster.nodes[at].kill();
        }
        cluster.nodes[alone].start();
        alive(&mut cluster.nodes[alone]).await;
        refused(&mut cluster.nodes[emptied], "its directory is empty").await;
        assert_eq!(readiness(&cluster.nodes[alone]).await, 503, "one node of three serves");
        let status = cluster.nodes[alone].status().await.unwrap();
        // Whom it takes for the leader may be a memory of the last one it voted for.
        assert_ne!(status.role, NodeRole::Leader, "one node of three leads");

        fs::remove_dir_all(&cluster.nodes[emptied].dir).unwrap();
        fs::rename(&kept, &cluster.nodes[emptied].dir).unwrap();
        cluster.nodes[emptied].start();
        cluster.nodes[down].start();
        cluster.ready().await;
        assert_eq!(cluster_ids(&cluster).await, ids);
        cluster.converged().await;
    }
}

/// The same list, empty directories, other ports to listen on, while the cluster of that list runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_cluster_is_never_formed_beside_the_first() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let ids = cluster_ids(&cluster).await;
    let mut second: Vec<_> = cluster.nodes.iter().map(|node| node.beside(&format!("second-{}", node.name))).collect();
    for node in &mut second {
        (node.client_addr, node.peer_addr) = (address(), address());
        node.start();
    }
    for node in &mut second {
        let status = node.ended().await;
        assert_eq!(status.code(), Some(2), "{}", node.said());
        assert!(node.said().contains("its directory is empty"), "{}", node.said());
    }
    cluster.ready().await;
    assert_eq!(cluster_ids(&cluster).await, ids);
    cluster.converged().await;
}
