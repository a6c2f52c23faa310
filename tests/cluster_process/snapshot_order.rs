//! What a snapshot replaces goes only once the snapshot stays: its file is synced before it gets its name, and its name
//! before a piece of the log is removed. And a disk without room for one costs a snapshot, not the node.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::disk::{Disk, Fault};
use crate::load::Load;
use crate::process::{Cluster, PATIENCE, POLL, Settings, http};
use crate::trace::{Done, Event, Trace};

/// Snapshots as often as can be, and small pieces of log.
const SNAPSHOTS: [&str; 2] = ["--snapshot-log-bytes", "64KiB"];

/// Bytes of the values that fill the log.
const VALUE_BYTES: usize = 16 * 1024;

fn is_snapshot(event: &&Event) -> bool {
    event.done == Done::Rename && event.to.extension().is_some_and(|extension| extension == "snapshot")
}

/// Removals of log files; one that is renamed is gone as well.
fn removals(trace: &Trace) -> impl Iterator<Item = &Event> {
    let gone = |event: &&Event| matches!(event.done, Done::Unlink | Done::Rename) && trace.in_log(&event.path);
    trace.events.iter().filter(gone)
}

/// Holds the order of one node's calls against what must survive a power cut at any moment. Returns how many pieces of the
/// log were removed, and how many snapshots got their names.
fn check(name: &str, trace: &Trace) -> (usize, usize) {
    let snapshots: Vec<&Event> = trace.events.iter().filter(is_snapshot).collect();
    for snapshot in &snapshots {
        let wrote =
            |event: &&Event| event.done == Done::Write && event.path == snapshot.path && event.end < snapshot.start;
        let written = trace.events.iter().rfind(wrote).expect("a snapshot was written before it was named");
        let synced = trace.sync_after(written.inode, written.end).is_some_and(|sync| sync.end <= snapshot.start);
        assert!(synced, "{name}: {} got its name before it was synced", snapshot.to.display());
    }
    for removed in removals(trace) {
        let before: Vec<_> = snapshots.iter().filter(|snapshot| snapshot.end < removed.start).collect();
        let stay: Vec<_> = before.iter().map(|new| trace.name_survives(&new.to, new.end, removed.start)).collect();
        let lost = removed.path.display();
        assert!(stay.iter().any(Result::is_ok), "{name}: {lost} was removed before a snapshot stayed: {stay:?}");
    }
    (removals(trace).count(), snapshots.len())
}

/// Writes through a node until a condition holds.
async fn fill(cluster: &Cluster, at: usize, enough: impl Fn() -> bool) {
    let (client, deadline) = (http(), Instant::now() + PATIENCE);
    let url = cluster.nodes[at].url("/v1/kv/large");
    for number in 0_u64.. {
        if number % 8 == 0 && enough() {
            return;
        }
        assert!(Instant::now() < deadline, "{number} writes were not enough");
        // Takes little room in a snapshot, so that the next one is due as soon.
        let value = vec![b'='; VALUE_BYTES];
        let answer = client.put(&url).body(value).timeout(PATIENCE).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_removed_only_behind_a_snapshot_that_stays() {
    let mut cluster = Cluster::prepare(&Settings::flags(&SNAPSHOTS)).await;
    let disks = Disk::under(&mut cluster);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    // One that falls behind so far that it is sent a snapshot, and then makes some of its own.
    cluster.nodes[away].kill();
    fill(&cluster, leader, || removals(&disks[leader].trace()).count() >= 2).await;
    cluster.nodes[away].start();
    cluster.ready().await;
    fill(&cluster, leader, || disks.iter().all(|disk| removals(&disk.trace()).count() >= 2)).await;
    cluster.converged().await;
    for (disk, node) in disks.iter().zip(&cluster.nodes) {
        let (removed, named) = check(&node.name, &disk.trace());
        println!("{}: {named} snapshots, {removed} pieces of log removed", node.name);
        assert!(removed > 0 && named > 0, "{}: {}", node.name, node.said());
    }
    let received = |event: &Event| event.path.to_string_lossy().contains("incoming-");
    let trace = disks[away].trace();
    assert!(trace.events.iter().filter(is_snapshot).any(received), "{}", cluster.nodes[away].said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_room_for_a_snapshot_ends_no_node() {
    let mut cluster = Cluster::prepare(&Settings::flags(&SNAPSHOTS)).await;
    let disks = Disk::under(&mut cluster);
    cluster.start_all().await;
    disks.iter().for_each(|disk| disk.set(Fault::SnapshotsFull));
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    let deadline = Instant::now() + PATIENCE;
    while !cluster.nodes.iter().all(|node| node.said().contains("no room for a snapshot")) {
        assert!(Instant::now() < deadline, "no node noticed: {}", cluster.nodes[0].said());
        for node in &mut cluster.nodes {
            assert!(node.is_running(), "{} has ended:\n{}", node.name, node.said());
        }
        sleep(POLL).await;
    }
    // They go on, for longer than it would take to end.
    for _ in 0..4 {
        load.acknowledged(100).await;
        sleep(Duration::from_millis(100)).await;
    }
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "{} has ended:\n{}", node.name, node.said());
    }
    disks.iter().for_each(|disk| disk.clear(Fault::SnapshotsFull));
    let told = load.stop().await;
    cluster.converged().await;
    told.check(&cluster).await;
}
