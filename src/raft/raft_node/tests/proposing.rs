//! The proposer: merging, limits, deadlines, forwarding, lost quorums and moved leaderships.

use super::*;
use crate::raft::messages::{ForwardRefusal, Request, Response};
use crate::raft::proposer::{OWN_FURTHER_MIN, OWN_ROUNDS_MAX};
use crate::state::Batch;
use crate::types::LogIndex;

fn is_unknown(result: &Result<Outcome, ProposeError>) -> bool {
    matches!(result, Err(ProposeError::Unknown(_)))
}

/// Entries with commands in the log of a member, whether they are committed or not.
async fn proposed_entries(node: &RaftNode) -> usize {
    let entries = node.0.log.read(LogIndex::ZERO, LogIndex::new(u64::MAX), u64::MAX).await.unwrap();
    entries.iter().filter(|entry| matches!(entry.payload, openraft::EntryPayload::Normal(_))).count()
}

/// Has the leader put as many entries into its log as may be in flight; nobody else takes them until their gates are released.
/// Heartbeats go on: without them the leader would take an entry for no longer than a lease, however slow the machine is.
async fn fill_rounds(
    cluster: &Cluster,
    leader: u64,
    deadline: crate::clock::Instant,
) -> Vec<tokio::task::JoinHandle<Result<Outcome, ProposeError>>> {
    for other in cluster.members.keys().filter(|id| **id != leader) {
        cluster.gate(*other).hold(Channel::Append);
    }
    let node = cluster.node(leader);
    let before = proposed_entries(&node).await;
    let give_up = clock::now() + PATIENCE;
    let mut proposed = Vec::new();
    for round in 1..=OWN_ROUNDS_MAX {
        // The first waits for nobody, a further one until it is worth while.
        for at in 0..if round == 1 { 1 } else { OWN_FURTHER_MIN } {
            let (node, name) = (node.clone(), format!("in-log-{round}-{at}"));
            proposed.push(tokio::spawn(async move { node.propose(put(&name, "v"), deadline).await }));
        }
        while proposed_entries(&node).await < before + round {
            assert!(clock::now() < give_up, "round {round} is not in the log");
            tokio::time::sleep(LOOK).await;
        }
    }
    proposed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_wait_share_an_entry() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    for other in &others {
        cluster.network.delay(&address(leader), &address(*other), Duration::from_millis(10));
    }
    let others: Vec<&Gate> = others.iter().map(|id| cluster.gate(*id)).collect();
    for from in [leader, cluster.follower().await] {
        let before = cluster.node(leader).status().last_log_index().unwrap();
        let node = cluster.node(from);
        let names: Vec<String> = (0..500).map(|at| format!("{from}-{at}")).collect();
        let proposals = names.iter().map(|name| node.propose(put(name, "v"), soon(20_000)));
        // Rounds end only once all of them wait, however long this machine takes to ask so often.
        let outcomes = if from == leader {
            at_once(&others, Channel::Append, proposals).await
        } else {
            at_once(&[cluster.gate(leader)], Channel::Forward, proposals).await
        };
        let mut revisions: Vec<Revision> = Vec::new();
        for outcome in outcomes {
            let crate::state::Reply::Txn(reply) = outcome.unwrap().unwrap() else { panic!("no transaction") };
            revisions.push(reply.revision);
        }
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(revisions.len(), 500, "each command has a revision of its own");
        let entries = cluster.node(leader).status().last_log_index().unwrap() - before;
        assert!(entries <= 20, "500 commands took {entries} entries");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_not_filled_beyond_their_limits_but_a_large_command_gets_its_own() {
    let cluster = Cluster::start(1).await;
    let node = cluster.node(1);
    let sizes = std::iter::repeat_n(300 * 1024, 20).chain([3 * 1024 * 1024]);
    let commands = sizes.enumerate().map(|(at, size)| put(&format!("k{at}"), vec![7; size]));
    let many = (0..3_000).map(|at| put(&format!("small{at}"), "v"));
    for outcome in join_all(commands.chain(many).map(|command| node.propose(command, soon(20_000)))).await {
        outcome.unwrap().unwrap();
    }
    let last = node.status().last_log_index().unwrap();
    let entries = node.0.log.read(LogIndex::ZERO, LogIndex::new(last + 1), u64::MAX).await.unwrap();
    let (mut largest, mut most) = (0, 0);
    for entry in entries {
        let openraft::EntryPayload::Normal(batch) = entry.payload else { continue };
        let commands = batch.decode().unwrap().len();
        most = most.max(commands);
        if commands > 1 {
            largest = largest.max(batch.len());
        }
    }
    assert!(most > 1 && most <= 1_024, "{most} commands in an entry");
    assert!(largest <= 1024 * 1024 + 64 * 1024, "{largest} bytes in an entry of several commands");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_for_want_of_a_quorum_is_never_applied() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    // Two are in the log before the leader knows; those behind them wait, and are given up in time.
    let in_log = fill_rounds(&cluster, leader, soon(10_000)).await;
    cluster.isolate(leader);
    let waiting: Vec<_> = (0..20).map(|at| format!("waiting-{at}")).collect();
    let refused = join_all(waiting.iter().map(|name| node.propose(put(name, "v"), soon(700)))).await;
    assert!(in_log.iter().all(|proposal| !proposal.is_finished()), "not only with what is in the log");
    for result in refused {
        assert!(matches!(result, Err(ProposeError::NoQuorum | ProposeError::NoLeader)), "{result:?}");
    }
    // Rounds whose callers have all gone hold up nobody either: the next is refused by Raft, and retried till then.
    for result in join_all(in_log).await {
        assert!(is_unknown(&result.unwrap()));
    }
    let late = node.propose(put("late", "v"), soon(500)).await;
    assert!(matches!(late, Err(ProposeError::NoQuorum | ProposeError::NoLeader)), "{late:?}");

    cluster.network.heal_all();
    cluster.release_all();
    let leader = cluster.leader().await;
    for id in [1, 2, 3] {
        cluster.write(id, &format!("after-{id}")).await;
    }
    for name in waiting.iter().map(String::as_str).chain(["late"]) {
        assert_eq!(cluster.value(leader, name), None, "{name} was refused");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_tells_what_its_leader_knows() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    // Replication to both is stuck, so that the leader has no quorum, but the follower reaches it.
    let in_log = fill_rounds(&cluster, leader, soon(12_000)).await;
    // The leader has seven eighths of this time, and its answer the rest.
    let forwarded = cluster.node(follower).propose(put("forwarded", "v"), soon(5_000)).await;
    assert!(matches!(forwarded, Err(ProposeError::NoLeader | ProposeError::NoQuorum)), "{forwarded:?}");
    for result in join_all(in_log).await {
        assert!(is_unknown(&result.unwrap()));
    }
    cluster.release_all();
    cluster.write(follower, "after").await;
    assert_eq!(cluster.value(cluster.leader().await, "forwarded"), None);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_small_between_zones_and_arrives_whole() {
    const BYTES: usize = 1024 * 1024;
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let value = vec![b'='; BYTES];
    cluster.node(follower).propose(put("large", value.clone()), soon(20_000)).await.unwrap().unwrap();
    for id in cluster.members.keys() {
        cluster.barrier(*id).await;
        assert_eq!(cluster.value(*id, "large").as_deref(), Some(value.as_slice()));
        for channel in [Channel::Forward, Channel::Append] {
            let bytes = cluster.gate(*id).bytes(channel);
            assert!(bytes < BYTES as u64 / 10, "{bytes} bytes of {} came to {id}", channel.name());
        }
    }
    assert!(cluster.gate(leader).calls(Channel::Forward) > 0);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_command_is_not_forwarded_again() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let ids: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    let peers = cluster.peers(ids[0]);
    let before = cluster.gate(leader).calls(Channel::Forward);
    let request =
        Request::Forward { commands: Batch::encode(&[put("looped", "v")]).as_bytes().clone(), timeout_ms: 10_000 };
    let to = NodeId::new(ids[1]);
    let answer = peers.call(to, &member(ids[1]), Channel::Forward, &request, PATIENCE).await.unwrap();
    assert!(
        matches!(&answer, Response::Forward(Err(ForwardRefusal::NotLeader(Some(hint)))) if *hint == NodeId::new(leader)),
        "{answer:?}"
    );
    assert_eq!(cluster.gate(leader).calls(Channel::Forward), before);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_stuck_at_an_old_leader_holds_up_nobody() {
    let cluster = Cluster::start(3).await;
    let (old, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.gate(old).hold(Channel::Forward);
    let stuck = tokio::spawn({
        let node = cluster.node(follower);
        async move { node.propose(put("stuck", "v"), soon(40_000)).await }
    });
    until("the round has arrived", || cluster.gate(old).calls(Channel::Forward) > 0).await;
    let behind = tokio::spawn({
        let node = cluster.node(follower);
        async move { node.propose(put("behind", "v"), soon(25_000)).await }
    });
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != old).collect();
    cluster.isolate(old);
    cluster.leader_among(&others).await;
    behind.await.unwrap().unwrap().unwrap();

    // The old leader comes back to life, does not lead, and says so: the stuck one is proposed anew.
    cluster.network.heal_all();
    cluster.leader().await;
    cluster.gate(old).release();
    let stuck = stuck.await.unwrap();
    assert!(is_unknown(&stuck) || stuck.is_ok(), "{stuck:?}");
    cluster.write(follower, "after").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_wait_for_the_next_leader() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != old).collect();
    cluster.isolate(old);
    let writes = others.iter().map(|id| {
        let node = cluster.node(*id);
        async move { node.propose(put(&format!("from-{id}"), "v"), soon(20_000)).await }
    });
    for result in join_all(writes).await {
        result.unwrap().unwrap();
    }
    cluster.network.heal_all();
    cluster.write(old, "after").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_bounded_in_bytes() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    // Nobody takes entries; the leader keeps its quorum, so that it turns nobody away.
    for other in cluster.members.keys().filter(|id| **id != leader) {
        cluster.gate(*other).hold(Channel::Append);
    }
    let value = Bytes::from(vec![7; 4 * 1024 * 1024]);
    let results = join_all((0..40).map(|at| node.propose(put(&format!("k{at}"), value.clone()), soon(1_500)))).await;
    let overloaded = results.iter().filter(|result| matches!(result, Err(ProposeError::Overloaded))).count();
    assert!((20..=30).contains(&overloaded), "{overloaded} of 40 were refused at once");
    cluster.release_all();
    // What was given up gives its room back, once the proposer has come past it.
    cluster.write(leader, "past-it").await;
    let small = Bytes::from(vec![7; 1024 * 1024]);
    for result in join_all((0..40).map(|at| node.propose(put(&format!("s{at}"), small.clone()), soon(60_000)))).await {
        // Forty megabytes on their way may cost a starved leader its quorum for a moment, but there is room for them.
        assert!(matches!(result, Ok(Ok(_)) | Err(ProposeError::NoQuorum | ProposeError::NoLeader)), "{result:?}");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_go_away_leave_the_proposer_whole() {
    let cluster = Cluster::start(3).await;
    for id in [1, 2, 3] {
        let node = cluster.node(id);
        for round in 0..50 {
            let tasks: Vec<_> = (0..10)
                .map(|at| {
                    let (node, name) = (node.clone(), format!("{id}-{round}-{at}"));
                    tokio::spawn(async move { node.propose(put(&name, "v"), soon(20_000)).await })
                })
                .collect();
            tokio::task::yield_now().await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
        }
        cluster.write(id, "after").await;
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_on_its_way_is_an_outcome_unknown() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.gate(leader).hold(Channel::Forward);
    let lost = tokio::spawn({
        let node = cluster.node(follower);
        async move { node.propose(put("lost", "v"), soon(20_000)).await }
    });
    until("the command has arrived", || cluster.gate(leader).calls(Channel::Forward) > 0).await;
    cluster.network.drop_answers(&address(follower), &address(leader), 8);
    cluster.gate(leader).release();
    assert!(is_unknown(&lost.await.unwrap()));
    cluster.network.heal_all();
    cluster.write(follower, "after").await;
    assert_eq!(cluster.value(leader, "lost").as_deref(), Some(&b"v"[..]), "it was done all the same");
    cluster.stop_all().await;
}
