//! Every acknowledged write is on the disks of a quorum before its client hears of it, by what the nodes did to their files.
//!
//! Each write carries a mark that is found again in what the logs wrote. It is proven on a node if a sync of that file
//! began after the mark was written and ended before the answer arrived, and if the names of the file and its folders were
//! synced too. Leaves out: disks that lie themselves, and snapshots (`snapshot_order`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::disk::{Disk, Fault, now};
use crate::process::{Cluster, PATIENCE, POLL, Settings, client_builder};
use crate::trace::Trace;

/// The most entries that a leader has in flight, as `OWN_ROUNDS_MAX` in `src/raft/proposer/` says.
const ENTRIES_IN_FLIGHT: usize = 2;

/// Nodes of a cluster, and how many of them are a quorum of it.
const NODES: usize = 3;
const QUORUM: usize = 2;

/// Writes that are made one after the other.
const SEQUENTIAL: u64 = 100;

/// Clients at a time, and for how long they write.
const CLIENTS: usize = 32;
const LOAD: Duration = Duration::from_secs(2);

/// How much longer a slow disk takes, in milliseconds.
const DELAY_MS: u64 = 300;

/// For how long nobody may be elected whose vote is not on a disk: several times the time in which somebody would be.
const WITHOUT_VOTES: Duration = Duration::from_secs(3);

/// Each write has a mark of its own.
static MARKS: AtomicU64 = AtomicU64::new(1);

/// A write that was acknowledged, and when, in nanoseconds of `disk::now`.
struct Acknowledged {
    mark: u64,
    sent: u64,
    answered: u64,
}

/// Writes a value with a mark; `None` if it was not acknowledged within the deadline.
async fn put(client: &reqwest::Client, endpoint: &str, deadline: Duration) -> Option<Acknowledged> {
    let mark = MARKS.fetch_add(1, Ordering::Relaxed);
    let request = client.put(format!("{endpoint}/v1/kv/durable/{mark}"));
    let request = request.header("quorate-timeout", format!("{}ms", deadline.as_millis()));
    // At the end of the value, so that most of the entry is written where it is found.
    let request = request.body(format!("{:.<200}~mark:{mark}~", "")).timeout(deadline + PATIENCE);
    let sent = now();
    let answer = request.send().await.unwrap();
    let answered = now();
    assert!([201, 503, 504].contains(&answer.status().as_u16()), "{}", answer.text().await.unwrap());
    (answer.status() == 201).then_some(Acknowledged { mark, sent, answered })
}

async fn acknowledged(client: &reqwest::Client, endpoint: &str) -> Acknowledged {
    put(client, endpoint, PATIENCE).await.expect("an acknowledgement in time")
}

fn client() -> reqwest::Client {
    client_builder().build().unwrap()
}

async fn start() -> (Cluster, Vec<Disk>) {
    start_with(&[]).await
}

async fn start_with(flags: &[&str]) -> (Cluster, Vec<Disk>) {
    let mut cluster = Cluster::prepare(&Settings::flags(flags)).await;
    let disks = Disk::under(&mut cluster);
    cluster.start_all().await;
    (cluster, disks)
}

/// How many of these writes survive on fewer nodes than a quorum, with what one of them lacks. Everything about them was
/// noted before they were answered.
fn unproven(disks: &[Disk], writes: &[Acknowledged]) -> (usize, String) {
    let traces: Vec<Trace> = disks.iter().map(Disk::trace).collect();
    let (mut count, mut example) = (0, String::new());
    for Acknowledged { mark, sent, answered } in writes {
        let found: Vec<_> = traces.iter().map(|trace| trace.survives(*mark, *sent, *answered)).collect();
        if found.iter().filter(|found| found.is_ok()).count() < QUORUM {
            count += 1;
            example = format!("{mark}: {found:?}");
        }
    }
    (count, example)
}

fn assert_proven(disks: &[Disk], writes: &[Acknowledged]) {
    let (count, example) = unproven(disks, writes);
    assert_eq!(count, 0, "of {} acknowledged writes, these were not on two disks; the last is {example}", writes.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_acknowledged_write_was_synced_by_a_quorum_between_request_and_answer() {
    let (cluster, disks) = start().await;
    let (client, endpoints) = (client(), cluster.endpoints());
    let from = now();
    let mut writes = Vec::new();
    for at in 0..SEQUENTIAL {
        // Also through those that pass it on.
        writes.push(acknowledged(&client, &endpoints[at as usize % NODES]).await);
    }
    let until = now();
    assert_proven(&disks, &writes);
    let syncs: Vec<usize> = disks.iter().map(|disk| disk.trace().log_syncs(from, until)).collect();
    println!("{SEQUENTIAL} writes one after the other: {syncs:?} syncs of the log");
    // Each write has a quorum of its own, and any two nodes have one of them among theirs.
    assert!(syncs.iter().sum::<usize>() >= QUORUM * SEQUENTIAL as usize, "{syncs:?}");
    for without in 0..NODES {
        let of_pair = syncs.iter().sum::<usize>() - syncs[without];
        assert!(of_pair >= SEQUENTIAL as usize, "{syncs:?}");
    }
}

/// Has clients write until a moment.
async fn load(endpoints: &[String], until: Instant) -> Vec<Acknowledged> {
    let (mut clients, shared) = (JoinSet::new(), Arc::new(client()));
    for number in 0..CLIENTS {
        let (client, endpoint) = (shared.clone(), endpoints[number % endpoints.len()].clone());
        clients.spawn(async move {
            let mut writes = Vec::new();
            while Instant::now() < until {
                writes.push(acknowledged(&client, &endpoint).await);
            }
            writes
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_round_is_acknowledged_without_syncs_of_its_own() {
    // A log of many small files, whose names must survive, too.
    let (cluster, disks) = start_with(&["--snapshot-log-bytes", "512KiB"]).await;
    // From every node: what each of them answered was on two disks.
    let writes = load(&cluster.endpoints(), Instant::now() + LOAD / 2).await;
    assert_proven(&disks, &writes);

    // From the leader alone, which has so many entries in flight: one sync of a node can take no more of them along.
    cluster.converged().await;
    let leader = cluster.leader().await;
    let last = async || cluster.nodes[leader].status().await.unwrap().last_log_index.unwrap();
    let (from, first) = (now(), last().await);
    let writes = load(&cluster.endpoints()[leader..=leader], Instant::now() + LOAD).await;
    let (until, rounds) = (now(), usize::try_from(last().await - first).unwrap());
    assert_proven(&disks, &writes);
    let syncs: Vec<usize> = disks.iter().map(|disk| disk.trace().log_syncs(from, until)).collect();
    println!("{} writes in {rounds} rounds: {syncs:?} syncs of the log", writes.len());
    assert!(
        rounds > 0 && ENTRIES_IN_FLIGHT * syncs.iter().sum::<usize>() >= QUORUM * rounds,
        "{rounds} rounds, but {syncs:?} syncs"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_waits_for_the_disks_of_a_quorum_and_for_no_more() {
    let (cluster, disks) = start().await;
    let (client, leader) = (client(), cluster.leader().await);
    let endpoint = cluster.nodes[leader].url("");
    let (one, other) = ((leader + 1) % NODES, (leader + 2) % NODES);
    // Two slow disks: every answer takes as long.
    for slow in [[one, other], [leader, one]] {
        slow.iter().for_each(|at| disks[*at].set(Fault::SyncDelay(DELAY_MS)));
        for _ in 0..4 {
            let Acknowledged { sent, answered, .. } = acknowledged(&client, &endpoint).await;
            let took = Duration::from_nanos(answered - sent);
            assert!(took >= Duration::from_millis(DELAY_MS), "answered after {took:?}, before two disks were done");
        }
        slow.iter().for_each(|at| disks[*at].clear(Fault::SyncDelay(DELAY_MS)));
    }
    // One that never ends: nobody waits for it.
    disks[one].set(Fault::SyncHolds);
    let mut writes = Vec::new();
    for _ in 0..20 {
        writes.push(acknowledged(&client, &endpoint).await);
    }
    assert_proven(&disks, &writes);
    // Two of them: no answer.
    disks[other].set(Fault::SyncHolds);
    let answer = put(&client, &endpoint, Duration::from_secs(1)).await;
    assert!(answer.is_none(), "a write was acknowledged that was on one disk");
    for at in [one, other] {
        disks[at].clear(Fault::SyncHolds);
    }
    // A leader that heard nobody for so long refuses at once until it hears them again.
    let serves_again = async {
        loop {
            if let Some(write) = put(&client, &endpoint, PATIENCE).await {
                return write;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let writes = [tokio::time::timeout(PATIENCE, serves_again).await.expect("it serves again in time")];
    assert_proven(&disks, &writes);
    cluster.converged().await;
}

/// What shows that the proof can fail: disks that say they have synced and have not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syncs_that_are_only_said_to_be_done_are_noticed() {
    let (cluster, disks) = start().await;
    let (client, leader) = (client(), cluster.leader().await);
    let endpoint = cluster.nodes[leader].url("");
    let (one, other) = ((leader + 1) % NODES, (leader + 2) % NODES);
    let write = async || {
        let mut writes = Vec::new();
        for _ in 0..20 {
            writes.push(acknowledged(&client, &endpoint).await);
        }
        writes
    };
    assert_proven(&disks, &write().await);
    for fakes in [[one, other], [leader, one]] {
        fakes.iter().for_each(|at| disks[*at].set(Fault::SyncFakes));
        let writes = write().await;
        assert_eq!(unproven(&disks, &writes).0, writes.len(), "{fakes:?} did not sync");
        fakes.iter().for_each(|at| disks[*at].clear(Fault::SyncFakes));
    }
    assert_proven(&disks, &write().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_counts_for_nobody_before_it_is_on_the_disk() {
    let (mut cluster, disks) = start().await;
    let old = cluster.leader().await;
    let (one, other) = ((old + 1) % NODES, (old + 2) % NODES);
    let term = cluster.nodes[old].status().await.unwrap().term;
    disks[one].set(Fault::SyncHolds);
    cluster.nodes[old].kill();
    // The two that are left need each other's vote, whichever of them asks for it.
    let until = Instant::now() + WITHOUT_VOTES;
    let elected = async |cluster: &Cluster| {
        let asked = [one, other].map(|at| cluster.nodes[at].status());
        let mut known = futures::future::join_all(asked).await.into_iter().flatten();
        known.rfind(|status| status.term > term && status.leader.is_some())
    };
    while Instant::now() < until {
        let elected = elected(&cluster).await;
        assert!(elected.is_none(), "elected by a vote that is not on the disk: {elected:?}");
        sleep(POLL).await;
    }
    disks[one].clear(Fault::SyncHolds);
    cluster.nodes[old].start();
    cluster.ready().await;
    let writes = [acknowledged(&client(), &cluster.nodes[other].url("")).await];
    assert_proven(&disks, &writes);
}
