//! Snapshots: made by the size of the log, purged behind only when verified, and sent to members that are too far behind.

use super::*;
use crate::raft::messages::{Request, Response, SnapshotOffer};
use crate::raft::types::Vote;
use crate::state::snapshot;

/// Time in which the size of the log is surely looked at: that nothing is removed then gives no news.
const LOOKS_AT_THE_LOG: Duration = Duration::from_millis(1_500);

/// Writes about so many MiB through the leader, then makes a snapshot there and removes the log before it.
async fn fill_and_purge(cluster: &Cluster, mib: u64) -> SnapshotHandle {
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    for at in 0..mib {
        // Not compressible, so that the file is as large (splitmix64).
        let value: Vec<u8> = (0..1024 * 128_u64)
            .flat_map(|i| {
                let mixed = (i + (at << 20)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                (mixed ^ (mixed >> 31)).to_le_bytes()
            })
            .collect();
        node.propose(put(&format!("fill-{at}"), value), soon(20_000)).await.unwrap().unwrap();
    }
    let file = node.snapshot(soon(20_000)).await.unwrap();
    purge(&node, &file).await;
    file
}

async fn purge(node: &RaftNode, file: &SnapshotHandle) {
    let index = file.meta().position.unwrap().index.get();
    // The file is there a moment before Raft knows of it.
    until("raft knows the snapshot", || node.status().snapshot() >= file.meta().position).await;
    node.0.raft.trigger().purge_log(index).await.unwrap();
    until("the log is purged", || node.status().purged().is_some_and(|purged| purged.index.get() >= index)).await;
}

/// A cluster whose third member is down and too far behind for the log; returns it with the file it will need.
async fn one_behind(mib: u64) -> (Cluster, u64, SnapshotHandle) {
    one_behind_in(Cluster::start(3).await, mib).await
}

async fn one_behind_in(mut cluster: Cluster, mib: u64) -> (Cluster, u64, SnapshotHandle) {
    let behind = cluster.follower().await;
    cluster.stop(behind).await;
    let file = fill_and_purge(&cluster, mib).await;
    // The other one may come to lead.
    let other = *cluster.members.keys().find(|id| cluster.node(**id).leader() != Leader::Me).unwrap();
    cluster.barrier(other).await;
    let own = cluster.node(other).snapshot(soon(20_000)).await.unwrap();
    purge(&cluster.node(other), &own).await;
    (cluster, behind, file)
}

async fn caught_up(cluster: &Cluster, id: u64) {
    let leader = cluster.leader().await;
    cluster.write(leader, "after").await;
    cluster.barrier(id).await;
    let hash = |id: u64| cluster.node(id).reader().applied().hash;
    assert!(cluster.value(id, "after").is_some());
    assert_eq!(hash(id), hash(leader));
    assert_eq!(cluster.node(id).fatal().reason(), None);
}

fn incoming(cluster: &Cluster, id: u64) -> Vec<String> {
    let dir = cluster.config(id).data_dir.join("snapshots");
    let names = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".snapshot")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_is_brought_up_by_a_snapshot() {
    let (mut cluster, behind, file) = one_behind(5).await;
    cluster.open(behind).await;
    caught_up(&cluster, behind).await;
    let status = cluster.node(behind).status();
    assert!(status.snapshot() >= file.meta().position, "it keeps the file it was sent");
    assert!(status.purged() >= file.meta().position);
    assert_eq!(incoming(&cluster, behind), Vec::<String>::new());
    // And again after a restart, from what it has now.
    cluster.stop(behind).await;
    cluster.open(behind).await;
    caught_up(&cluster, behind).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_was_cut_goes_on_where_it_was() {
    let (mut cluster, behind, file) = one_behind(12).await;
    let leader = cluster.leader().await;
    cluster.network.delay(&address(leader), &address(behind), Duration::from_millis(20));
    cluster.open(behind).await;
    let parts = |cluster: &Cluster| cluster.gate(behind).calls(Channel::Snapshot);
    until("some parts have arrived", || parts(&cluster) >= 8).await;
    cluster.network.cut(&address(leader), &address(behind));
    let before = parts(&cluster);
    // The process is killed, too: what is there is found again.
    cluster.stop(behind).await;
    cluster.network.heal(&address(leader), &address(behind));
    cluster.open(behind).await;
    caught_up(&cluster, behind).await;
    let whole = file.file_bytes().div_ceil(1024 * 1024);
    let sent_again = parts(&cluster);
    assert!(sent_again < whole, "{whole} parts in all, {before} calls before the cut, {sent_again} after it");
    cluster.stop_all().await;
}

/// The position of the newest snapshot that a member has.
fn snapshot_at(cluster: &Cluster, id: u64) -> Option<LogPosition> {
    cluster.node(id).0.state.snapshots.newest().and_then(|file| file.meta().position)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_ends_with_the_file_it_began_with_though_there_are_newer_ones() {
    let (mut cluster, behind, file) = one_behind(4).await;
    let leader = cluster.leader().await;
    cluster.network.delay(&address(leader), &address(behind), Duration::from_millis(20));
    cluster.open(behind).await;
    until("parts have arrived", || cluster.gate(behind).calls(Channel::Snapshot) >= 3).await;
    cluster.network.cut(&address(leader), &address(behind));
    cluster.write(leader, "meanwhile").await;
    let newer = cluster.node(leader).snapshot(soon(20_000)).await.unwrap();
    assert!(newer.meta().position > file.meta().position);
    cluster.network.heal(&address(leader), &address(behind));
    caught_up(&cluster, behind).await;
    assert_eq!(cluster.node(leader).leader(), Leader::Me, "another leader has another file");
    assert_eq!(snapshot_at(&cluster, behind), file.meta().position);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_members_are_sent_one_file_at_once_within_one_limit() {
    const LIMIT: u64 = 8 * 1024 * 1024;
    let mut cluster = Cluster::start_limited(5, u64::MAX, LIMIT, steady()).await;
    let leader = cluster.leader().await;
    let behind: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).take(2).collect();
    for id in &behind {
        cluster.stop(*id).await;
    }
    let file = fill_and_purge(&cluster, 4).await;
    let started = clock::now();
    for id in &behind {
        cluster.open(*id).await;
    }
    for id in &behind {
        caught_up(&cluster, *id).await;
        assert_eq!(snapshot_at(&cluster, *id), file.meta().position);
    }
    let least = Duration::from_millis(2 * file.file_bytes() * 1_000 / LIMIT);
    let took = started.elapsed();
    assert!(took > least.mul_f64(0.9), "{took:?}, and at the limit it takes {least:?}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_behind_a_snapshot_that_is_being_sent_is_kept_until_it_is_installed() {
    let (mut cluster, behind, file) = one_behind_in(Cluster::start_with(3, 64 * 1024).await, 4).await;
    let leader = cluster.leader().await;
    let first = snapshot_at(&cluster, leader);
    // Out of reach until its gate is told to stop in the middle.
    cluster.network.cut(&address(leader), &address(behind));
    cluster.open(behind).await;
    cluster.gate(behind).hold_behind(Channel::Snapshot, 3);
    cluster.network.heal(&address(leader), &address(behind));
    until("parts have arrived", || cluster.gate(behind).calls(Channel::Snapshot) > 3).await;
    // More than twice what makes a snapshot due, so that it would be removed, but less than four times, so that it may be
    // kept. It compresses to nothing: snapshots, and what makes one due, stay as they are.
    let node = cluster.node(leader);
    for at in 0..13 {
        let value = vec![at; 1024 * 1024];
        node.propose(put(&format!("plain-{at}"), value), soon(20_000)).await.unwrap().unwrap();
    }
    until("there is a newer snapshot", || snapshot_at(&cluster, leader) > first).await;
    tokio::time::sleep(LOOKS_AT_THE_LOG).await;
    assert_eq!(node.status().purged(), first, "removed, although it is needed");
    cluster.gate(behind).release();
    caught_up(&cluster, behind).await;
    assert_eq!(cluster.node(leader).leader(), Leader::Me, "another leader has another log");
    // Its beginning, its parts and its end, and no other: the log was there behind it.
    let calls = cluster.gate(behind).calls(Channel::Snapshot);
    assert!(calls <= file.file_bytes().div_ceil(1024 * 1024) + 2, "{calls} calls");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_rots_at_the_leader_is_refused_and_replaced() {
    let (mut cluster, behind, file) = one_behind(3).await;
    // Its digest is known and kept from the writing; the damage comes later.
    let digest = file.sha256().unwrap();
    let mut bytes = std::fs::read(file.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file.path(), bytes).unwrap();
    cluster.open(behind).await;
    caught_up(&cluster, behind).await;
    let leader = cluster.leader().await;
    let fresh = cluster.node(leader).snapshot(soon(20_000)).await.unwrap();
    assert_ne!(fresh.sha256().unwrap(), digest);
    assert!(snapshot::verify(fresh.path()).is_ok());
    assert_eq!(cluster.node(leader).fatal().reason(), None, "the leader goes on");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_finishes_a_transfer() {
    let (mut cluster, behind, _file) = one_behind(8).await;
    let old = cluster.leader().await;
    let third = *cluster.members.keys().find(|id| **id != old).unwrap();
    cluster.network.delay(&address(old), &address(behind), Duration::from_millis(20));
    cluster.open(behind).await;
    until("a transfer is under way", || cluster.gate(behind).calls(Channel::Snapshot) >= 3).await;
    cluster.isolate(old);
    cluster.leader_among(&[third, behind]).await;
    cluster.network.heal_all();
    caught_up(&cluster, behind).await;
    assert_eq!(incoming(&cluster, behind), Vec::<String>::new());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_transfer_may_be_told_more_than_once() {
    let (mut cluster, behind, file) = one_behind(3).await;
    let leader = cluster.leader().await;
    cluster.open(behind).await;
    caught_up(&cluster, behind).await;
    let peers = cluster.peers(leader);
    let offer = SnapshotOffer {
        vote: Vote::new_committed(cluster.node(leader).status().term(), NodeId::new(leader)),
        meta: file.raft_meta().clone(),
        file_bytes: file.file_bytes(),
        sha256: file.sha256().unwrap(),
    };
    let (to, at) = (NodeId::new(behind), member(behind));
    let (begin, end) = (Request::SnapshotBegin(offer.clone()), Request::SnapshotEnd(offer));
    let answers = tokio::join!(
        peers.call(to, &at, Channel::Snapshot, &end, PATIENCE),
        peers.call(to, &at, Channel::Snapshot, &end, PATIENCE),
        peers.call(to, &at, Channel::Snapshot, &begin, PATIENCE),
    );
    assert!(matches!(answers.0, Ok(Response::SnapshotInstalled(_))), "{:?}", answers.0);
    assert!(matches!(answers.1, Ok(Response::SnapshotInstalled(_))), "{:?}", answers.1);
    assert!(
        matches!(answers.2, Ok(Response::SnapshotProgress { received }) if received == file.file_bytes()),
        "{:?}",
        answers.2
    );
    caught_up(&cluster, behind).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_follow_the_size_of_the_log_and_the_purge_follows_them() {
    let cluster = Cluster::start_with(3, 256 * 1024).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    for at in 0..40 {
        let value = vec![at; 64 * 1024];
        node.propose(put(&format!("k{at}"), value), soon(20_000)).await.unwrap().unwrap();
    }
    for id in cluster.members.keys() {
        let node = cluster.node(*id);
        until("a snapshot by size", || node.status().snapshot().is_some()).await;
        until("the log is purged by its size", || node.status().purged().is_some()).await;
        // Looked at in this order, because each goes on meanwhile on a member that is behind.
        let purged = node.status().purged();
        let newest = node.0.state.snapshots.newest().unwrap();
        let applied = node.applied().borrow().position;
        let status = node.status();
        assert!(snapshot::verify(newest.path()).is_ok());
        assert!(purged <= newest.meta().position, "nothing is purged that no verified snapshot holds");
        assert!(newest.meta().position <= applied && applied <= status.committed());
        assert!(status.committed().map(|position| position.index.get()) <= status.last_log_index());
    }
    cluster.stop_all().await;
}
