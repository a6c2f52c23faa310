//! Elections: who may not disturb a healthy group.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_cut_off_comes_back_without_an_election() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let term = cluster.node(leader).status().term();
    cluster.isolate(follower);
    let others: Vec<&RaftNode> =
        cluster.members.iter().filter(|(id, _)| **id != follower).map(|(_, member)| &member.node).collect();
    // Long enough for several campaigns.
    let asked = clock::now();
    let mut round = 0;
    while asked.elapsed() < cluster.timers.election_max * 4 {
        round += 1;
        others[0].propose(put(&format!("k{round}"), "v"), soon(20_000)).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.node(follower).status().term(), term, "it asks before it campaigns");
    cluster.network.heal_all();
    cluster.barrier(follower).await;
    assert!(cluster.value(follower, &format!("k{round}")).is_some());
    assert_eq!(cluster.leader().await, leader);
    for id in cluster.members.keys() {
        assert_eq!(cluster.node(*id).status().term(), term, "member {id}");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_without_a_leader_elects_one_through_pre_votes() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != old).collect();
    let control = |id: &u64| cluster.gate(*id).calls(Channel::Control);
    let before: u64 = others.iter().map(control).sum();
    cluster.isolate(old);
    cluster.leader_among(&others).await;
    let asked = others.iter().map(control).sum::<u64>() - before;
    assert!(asked >= 2, "a pre-vote and a vote were asked for, not {asked} calls");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_answers_are_lost_one_way_is_replaced() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != old).collect();
    // Its heartbeats arrive, the answers to them do not: it has no quorum, yet keeps the others quiet.
    for other in &others {
        cluster.network.cut(&address(*other), &address(old));
    }
    until("the others have a leader that can commit", || {
        others.iter().any(|id| cluster.node(*id).leader() == Leader::Me)
    })
    .await;
    let leader = cluster.leader_among(&others).await;
    cluster.write(leader, "after").await;
    cluster.network.heal_all();
    cluster.write(old, "healed").await;
    cluster.stop_all().await;
}
