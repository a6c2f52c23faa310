//! Read barriers: what they prove, how few rounds they take, and what they say when they can't.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_share_few_rounds() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.network.delay(&address(follower), &address(leader), Duration::from_millis(20));
    let node = cluster.node(follower);
    let before = cluster.gate(leader).calls(Channel::Heartbeat);
    // No round ends before all of them wait, however long this machine takes to ask so often.
    let readers = (0..1_000).map(|_| node.read_barrier(soon(20_000)));
    for result in at_once(&[cluster.gate(leader)], Channel::Heartbeat, readers).await {
        result.unwrap();
    }
    let rounds = cluster.gate(leader).calls(Channel::Heartbeat) - before;
    assert!(rounds <= 6, "1000 readers took {rounds} rounds");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_began_before_the_read_does_not_serve_it() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    // Answers and entries to the follower take a while; a quorum is had without it.
    cluster.network.delay(&address(leader), &address(follower), Duration::from_millis(200));
    for round in 0..5 {
        let asked = cluster.gate(leader).calls(Channel::Heartbeat);
        let early = tokio::spawn({
            let node = cluster.node(follower);
            async move { node.read_barrier(soon(20_000)).await }
        });
        until("the early reader's round is on its way", || cluster.gate(leader).calls(Channel::Heartbeat) > asked)
            .await;
        let name = format!("k{round}");
        cluster.write(leader, &name).await;
        cluster.barrier(follower).await;
        assert!(cluster.value(follower, &name).is_some(), "acknowledged before the read began");
        early.await.unwrap().unwrap();
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_reads_under_the_next_leader() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    cluster.write(old, "before").await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != old).collect();
    cluster.isolate(old);
    for id in &others {
        cluster.barrier(*id).await;
        assert!(cluster.value(*id, "before").is_some());
    }
    let leader = cluster.leader_among(&others).await;
    cluster.write(leader, "after").await;
    let cut_off = cluster.node(old).read_barrier(soon(1_500)).await;
    assert!(matches!(cut_off, Err(BarrierError::NoQuorum | BarrierError::NoLeader)), "{cut_off:?}");
    cluster.network.heal_all();
    cluster.barrier(old).await;
    assert!(cluster.value(old, "after").is_some());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_says_why_it_can_not_be_had() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);

    cluster.gate(follower).hold(Channel::Append);
    cluster.write(leader, "not-there-yet").await;
    let lagging = cluster.node(follower).read_barrier(soon(2_000)).await;
    assert_eq!(lagging, Err(BarrierError::Lagging));
    cluster.gate(follower).release();
    cluster.barrier(follower).await;

    cluster.isolate(leader);
    let started = clock::now();
    let no_quorum = cluster.node(leader).read_barrier(soon(500)).await;
    assert_eq!(no_quorum, Err(BarrierError::NoQuorum));
    assert!(started.elapsed() < cluster.timers.election_max, "within its deadline, not that of the lease");
    cluster.network.heal_all();
    cluster.leader().await;

    let follower = cluster.follower().await;
    cluster.isolate(follower);
    let no_leader = cluster.node(follower).read_barrier(soon(2_000)).await;
    assert_eq!(no_leader, Err(BarrierError::NoLeader));
    cluster.network.heal_all();
    cluster.barrier(follower).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freshness_is_proven_from_when_the_question_was_sent() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let node = cluster.node(follower);
    let asked = clock::now();
    node.read_barrier(soon(20_000)).await.unwrap();
    assert!(node.staleness().unwrap() <= asked.elapsed(), "older than the question");
    // The way there is quick, the way back slow: from the answer alone the data would seem fresh.
    let back = Duration::from_millis(300);
    cluster.network.delay(&address(leader), &address(follower), back);
    until("the last proof from before is old", || node.staleness().unwrap() > Duration::from_millis(150)).await;
    for _ in 0..5 {
        node.read_barrier(soon(20_000)).await.unwrap();
        let staleness = node.staleness().unwrap();
        assert!(staleness >= back, "proven to be {staleness:?} old, but the question was sent {back:?} before");
    }
    cluster.isolate(follower);
    let last = node.staleness().unwrap();
    until("nothing new is proven", || node.staleness().unwrap() > last + Duration::from_millis(700)).await;
    cluster.stop_all().await;
}
