//! A log that can no longer be written ends the process: an acknowledgement it could not keep would be worse.

use std::collections::BTreeSet;

use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::disk::{Disk, Fault};
use crate::load::Load;
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};

/// The process must have ended for its disk's sake.
async fn ended_by_its_disk(node: &mut Member) {
    let status = node.ended().await;
    let said = node.said();
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(last.starts_with("quorate: ending after a local failure: "), "{last}");
    assert!(last.contains("log"), "{last}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_the_log_ends_the_process() {
    let mut cluster = Cluster::prepare(&Settings::default()).await;
    let disks = Disk::under(&mut cluster);
    cluster.start_all().await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(100).await;
    for at in [cluster.follower().await, cluster.leader().await] {
        disks[at].set(Fault::SyncFails);
        ended_by_its_disk(&mut cluster.nodes[at]).await;
        // The others go on.
        load.acknowledged(100).await;
        disks[at].clear(Fault::SyncFails);
        cluster.nodes[at].start();
        cluster.nodes[at].ready().await;
    }
    load.acknowledged(100).await;
    // All of them: what they acknowledged before is there afterwards, and nothing was acknowledged in between.
    disks.iter().for_each(|disk| disk.set(Fault::SyncFails));
    // The last one has no quorum, so nothing to write either; it would wait for ever.
    let deadline = Instant::now() + PATIENCE;
    while cluster.nodes.iter_mut().map(Member::is_running).filter(|running| *running).count() > 1 {
        assert!(Instant::now() < deadline, "two nodes of three go on without a disk");
        sleep(POLL).await;
    }
    for node in &mut cluster.nodes {
        if node.is_running() {
            node.kill();
        } else {
            ended_by_its_disk(node).await;
        }
    }
    let told = load.stop().await;
    disks.iter().for_each(|disk| disk.clear(Fault::SyncFails));
    cluster.start_all().await;
    cluster.converged().await;
    told.check(&cluster).await;
}

/// A disk without room, as far as a process without rights can have one: no file may grow beyond a megabyte or two.
const FULL_DISK: &str = "trap '' XFSZ; ulimit -f 2048";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_of_the_log_ends_the_process() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let at = cluster.follower().await;
    cluster.nodes[at].kill();
    cluster.nodes[at].settings.prelude = Some(FULL_DISK.into());
    cluster.nodes[at].start();
    cluster.ready().await;
    let value = vec![b'x'; 64 * 1024];
    let client = http();
    let mut acknowledged = Vec::new();
    for number in 0..200 {
        if !cluster.nodes[at].is_running() {
            break;
        }
        let key = format!("big/{number}");
        let url = cluster.nodes[at].url(&format!("/v1/kv/{key}"));
        let answer = client.put(url).body(value.clone()).timeout(PATIENCE).send().await;
        if answer.is_ok_and(|answer| answer.status() == 201) {
            acknowledged.push(key);
        }
    }
    ended_by_its_disk(&mut cluster.nodes[at]).await;
    assert!(!acknowledged.is_empty());
    cluster.nodes[at].settings.prelude = None;
    cluster.nodes[at].start();
    cluster.ready().await;
    cluster.converged().await;
    for key in acknowledged {
        for node in &cluster.nodes {
            let answer = client.get(node.url(&format!("/v1/kv/{key}?consistency=stale"))).send().await.unwrap();
            assert_eq!(answer.bytes().await.unwrap(), value, "{}: {key}", node.name);
        }
    }
}

/// Enough for the program to begin, too few for the hundred files of a state.
const FEW_FILES: &str = "ulimit -n 60";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_too_few_file_handles_is_refused_and_leaves_the_state_as_it_is() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    cluster.ready().await;
    let at = cluster.follower().await;
    let node = &mut cluster.nodes[at];
    node.terminate().await;
    node.settings.prelude = Some(FEW_FILES.into());
    let generations = |node: &Member| -> BTreeSet<_> {
        std::fs::read_dir(node.dir.join("state")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let before = generations(node);
    let (code, said) = node.refusal().await;
    assert!(code == Some(2) && said.contains("Too many open files"), "{code:?}: {said}");
    assert!(said.contains("nothing was changed"), "{said}");
    node.settings.prelude = None;
    assert_eq!(generations(node), before, "another state was begun");
    node.start();
    cluster.ready().await;
    cluster.converged().await;
}
