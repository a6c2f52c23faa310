//! A member that is too far behind for the log, while links break and processes are killed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::links::Links;
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, files, http, without_elections};

/// The limit makes a transfer last long enough to be cut several times.
const FLAGS: [&str; 4] = ["--snapshot-log-bytes", "64KiB", "--catchup-limit", "1MiB/s"];

/// A part at that limit, in bytes: the smallest there is.
const PART_BYTES: u64 = 64 * 1024;

/// Values that can't be compressed: what the snapshot will take.
const NOISE_VALUES: u64 = 8;
const NOISE_BYTES: usize = 512 * 1024;

/// Values that can: they take room in the log, and none in the snapshot.
const PLAIN_BYTES: usize = 1024 * 1024;

/// A log no larger than this is kept for who needs it: four times the snapshot, whose size makes one due here. Puts that
/// outrun the snapshots leave a larger one.
const LOG_BYTES_HELD: u64 = 4 * NOISE_VALUES * NOISE_BYTES as u64;

/// How much is sent between two cuts, in bytes: no multiple of a part.
const BETWEEN_CUTS: u64 = 700_001;

/// The same bytes each time, without a pattern (splitmix64).
fn noise(seed: u64) -> Vec<u8> {
    (0..(NOISE_BYTES / 8) as u64)
        .flat_map(|i| {
            let mixed = (i + (seed << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ (mixed >> 31)).to_le_bytes()
        })
        .collect()
}

pub(crate) async fn put(node: &Member, key: &str, value: Vec<u8>) {
    let request = http().put(node.url(&format!("/v1/kv/{key}"))).body(value).timeout(PATIENCE);
    let answer = request.header("quorate-timeout", "30s").send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// A counter of a node.
pub(crate) async fn counter(node: &Member, name: &str) -> u64 {
    let text = http().get(node.url("/metrics")).timeout(PATIENCE).send().await.unwrap().text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("quorate_{name}_total ")));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Waits until a counter of a node has reached a value, or the transfer has ended.
async fn reached(node: &Member, name: &str, least: u64) {
    let deadline = Instant::now() + PATIENCE;
    while counter(node, name).await < least && counter(node, "catchup_finished").await == 0 {
        assert!(Instant::now() < deadline, "{name} is {} of {least}", counter(node, name).await);
        sleep(POLL).await;
    }
}

/// Has a follower fall behind the log of the others; returns leader and follower, which does not run.
async fn one_behind(cluster: &mut Cluster) -> (usize, usize) {
    let leader = cluster.leader().await;
    let behind = (leader + 1) % cluster.nodes.len();
    let had = cluster.converged().await.applied_index;
    cluster.nodes[behind].kill();
    for number in 0..NOISE_VALUES {
        put(&cluster.nodes[leader], &format!("noise/{number}"), noise(number)).await;
    }
    let deadline = Instant::now() + PATIENCE;
    // Everywhere: whoever leads next has not got the log either.
    for at in (0..cluster.nodes.len()).filter(|at| *at != behind) {
        while cluster.nodes[at].status().await.is_none_or(|status| status.purged_index <= had) {
            assert!(Instant::now() < deadline, "the log is not purged: {:?}", cluster.nodes[at].status().await);
            put(&cluster.nodes[leader], "plain", vec![b'='; PLAIN_BYTES]).await;
        }
    }
    // What is removed still because of its size would be removed under the transfer.
    while cluster.nodes[leader].status().await.is_none_or(|status| status.sizes.log_bytes > LOG_BYTES_HELD) {
        assert!(Instant::now() < deadline, "the log stays large: {:?}", cluster.nodes[leader].status().await);
        sleep(POLL).await;
    }
    (leader, behind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_cut_at_any_byte_sends_less_than_one_part_again() {
    without_elections(None, a_transfer_is_cut).await;
}

async fn a_transfer_is_cut() -> Result<(), String> {
    let (mut cluster, links) = Links::start(&Settings::flags(&FLAGS)).await;
    let (leader, behind) = one_behind(&mut cluster).await;
    let term = cluster.nodes[leader].status().await.unwrap().term;
    cluster.nodes[behind].start();
    links.know(&cluster);
    let mut cuts = 0;
    for killed in [false, false, true, false] {
        reached(&cluster.nodes[leader], "catchup_sent_bytes", (cuts + 1) * BETWEEN_CUTS).await;
        // The wait for the limit takes most of the time; in the middle of it nothing is under way.
        sleep(Duration::from_millis(7 * cuts)).await;
        if killed {
            cluster.nodes[behind].kill();
            cluster.nodes[behind].start();
            links.know(&cluster);
        } else {
            links.sever(leader, behind);
        }
        cuts += 1;
    }
    cluster.nodes[behind].ready().await;
    let status = cluster.converged().await;
    if status.term != term {
        // Another leader has another file.
        return Err(format!("a transfer is no reason for an election: term {}, which was {term}", status.term));
    }

    let node = &cluster.nodes[leader];
    let (sent, again) = (counter(node, "catchup_sent_bytes").await, counter(node, "catchup_sent_again_bytes").await);
    let once = NOISE_VALUES * NOISE_BYTES as u64;
    println!("{sent} bytes sent, {again} of them again, over {cuts} cuts");
    assert!(again <= cuts * PART_BYTES, "{again} bytes were sent again over {cuts} cuts");
    assert!(sent - again >= once && sent - again < once * 2, "{sent} bytes were sent, {again} of them again");
    assert_eq!(counter(node, "catchup_begun").await, 1, "one transfer, however often it is cut");
    assert_eq!(counter(node, "catchup_finished").await, 1);
    Ok(())
}

/// Whoever leads next has files of its own. With the same leader and the same file the transfer goes on where it was;
/// otherwise what had come was in vain, and both sides can tell how much that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_in_the_middle_of_a_transfer_leaves_a_complete_member() {
    let mut cluster = Cluster::start(&Settings::flags(&FLAGS)).await;
    let (leader, behind) = one_behind(&mut cluster).await;
    cluster.nodes[behind].start();
    reached(&cluster.nodes[leader], "catchup_sent_bytes", 2 * BETWEEN_CUTS).await;
    cluster.nodes[leader].kill();
    let had = counter(&cluster.nodes[behind], "catchup_received_bytes").await;
    cluster.nodes[leader].start();
    cluster.nodes[behind].ready().await;
    cluster.converged().await;

    let mut ended = 0;
    let (mut sent, mut again) = (0, 0);
    for node in &cluster.nodes {
        ended += counter(node, "catchup_finished").await;
        sent += counter(node, "catchup_sent_bytes").await;
        again += counter(node, "catchup_sent_again_bytes").await;
    }
    let received = counter(&cluster.nodes[behind], "catchup_received_bytes").await;
    let once = NOISE_VALUES * NOISE_BYTES as u64;
    println!("{had} bytes had come before, {sent} were sent after it, {again} of them again");
    assert_eq!(ended, 1, "one transfer came to its end");
    assert!(had >= BETWEEN_CUTS && had < once, "it was killed in the middle, not behind {had} bytes");
    assert!(received >= once && received - had <= sent - again, "{received} bytes were kept of {had} and {sent}");
    assert!(again <= PART_BYTES, "{again} bytes were sent again in one life");
    let left: Vec<_> = files(&cluster.nodes[behind].dir.join("snapshots"));
    assert!(left.iter().all(|path| path.extension().is_some_and(|extension| extension == "snapshot")), "{left:?}");
}

/// A transfer that was given up, because the member has caught up by the log: nobody goes on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_transfer_goes_once_the_member_follows_the_log() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let (leader, behind) = (cluster.leader().await, cluster.follower().await);
    cluster.nodes[behind].terminate().await;
    let left = cluster.nodes[behind].dir.join("snapshots/incoming-0123456789abcdef.part");
    std::fs::write(&left, "the beginning of a snapshot").unwrap();
    put(&cluster.nodes[leader], "plain", vec![b'='; 100]).await;
    cluster.nodes[behind].start();
    cluster.nodes[behind].ready().await;
    let deadline = Instant::now() + PATIENCE;
    while left.exists() {
        assert!(Instant::now() < deadline, "it is still there: {}", cluster.nodes[behind].said());
        sleep(POLL).await;
    }
    cluster.converged().await;
}
