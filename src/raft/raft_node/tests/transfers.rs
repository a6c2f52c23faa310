//! Moving the leadership on purpose: where it goes, what writers notice, and how failing is told.

use super::*;
use crate::raft::MoveError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_moves_to_each_member_and_no_write_fails() {
    let cluster = Cluster::start(3).await;
    let (stop, stopped) = watch::channel(false);
    let writers: Vec<_> = [1, 2, 3, 1, 2, 3]
        .into_iter()
        .enumerate()
        .map(|(writer, id)| {
            let (node, stopped) = (cluster.node(id), stopped.clone());
            tokio::spawn(async move {
                let mut written = Vec::new();
                while !*stopped.borrow() {
                    let key = format!("w{writer}-{}", written.len());
                    node.propose(put(&key, "value"), soon(20_000)).await.unwrap().unwrap();
                    written.push(key);
                }
                written
            })
        })
        .collect();
    for _ in 0..2 {
        for to in [1, 2, 3] {
            let leader = cluster.leader().await;
            if leader == to {
                continue;
            }
            let term = cluster.node(leader).term();
            let moved = cluster.node(leader).transfer_leadership(NodeId::new(to), soon(20_000)).await;
            assert_eq!(moved, Ok(NodeId::new(to)));
            assert!(cluster.node(leader).term() > term);
            assert_eq!(cluster.leader().await, to);
        }
    }
    stop.send_replace(true);
    let written: Vec<String> = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    for id in [1, 2, 3] {
        cluster.barrier(id).await;
        let lost = written.iter().find(|key| cluster.value(id, key).is_none());
        assert_eq!(lost, None, "of {} acknowledged writes on member {id}", written.len());
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_chosen_member_can_not_win_the_answer_tells_who_did() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.isolate(follower);
    let elected = cluster.node(leader).transfer_leadership(NodeId::new(follower), soon(20_000)).await.unwrap();
    assert_ne!(elected, NodeId::new(follower));
    cluster.write(elected.get(), "after").await;
    cluster.network.heal_all();
    cluster.barrier(follower).await;
    assert!(cluster.value(follower, "after").is_some());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_moves_the_leadership_and_one_transfer_at_a_time() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let third = *cluster.members.keys().find(|id| ![leader, follower].contains(id)).unwrap();
    let asked = cluster.node(follower).transfer_leadership(NodeId::new(third), soon(20_000)).await;
    assert_eq!(asked, Err(MoveError::NotLeader(Some(NodeId::new(leader)))));

    // Nobody hears of the first one, so that it lasts.
    cluster.gate(follower).hold(Channel::Control);
    cluster.gate(third).hold(Channel::Control);
    let asked = cluster.gate(follower).calls(Channel::Control);
    let node = cluster.node(leader);
    let first = tokio::spawn({
        let node = node.clone();
        async move { node.transfer_leadership(NodeId::new(follower), soon(20_000)).await }
    });
    until("it is on its way", || cluster.gate(follower).calls(Channel::Control) > asked).await;
    assert_eq!(node.transfer_leadership(NodeId::new(third), soon(20_000)).await, Err(MoveError::Busy));
    cluster.gate(follower).release();
    cluster.gate(third).release();
    // Whoever was elected: the next one may begin.
    first.await.unwrap().unwrap();
    let leader = cluster.leader().await;
    let to = NodeId::new(if leader == third { follower } else { third });
    assert_eq!(cluster.node(leader).transfer_leadership(to, soon(20_000)).await, Ok(to));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_brings_no_leader_in_time_is_of_unknown_outcome() {
    let cluster = Cluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.isolate(leader);
    let moved = cluster.node(leader).transfer_leadership(NodeId::new(follower), soon(300)).await;
    assert_eq!(moved, Err(MoveError::Unknown));
    cluster.network.heal_all();
    cluster.write(leader, "after").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_hand_over_failed_sends_entries_again_to_those_who_can_not_win_without_them() {
    let cluster = Cluster::start(2).await;
    let leader = cluster.leader().await;
    let follower = *cluster.members.keys().find(|id| **id != leader).unwrap();
    let node = cluster.node(leader);
    cluster.write(leader, "before").await;
    // Heartbeats go on until it is in the log: without them the leader would take it for no longer than a lease.
    cluster.gate(follower).lose(Channel::Append);
    let in_log = tokio::spawn({
        let node = node.clone();
        async move { node.propose(put("in-log", "v"), soon(60_000)).await }
    });
    until("only the leader has it", || {
        let status = node.status();
        status.last_log_index() > status.committed().map(|position| position.index.get())
    })
    .await;
    cluster.network.cut(&address(leader), &address(follower));
    let moved = node.transfer_leadership(NodeId::new(follower), soon(300)).await;
    assert_eq!(moved, Err(MoveError::Unknown));
    until("it has given its quorum up", || !node.leads()).await;
    cluster.network.heal_all();
    cluster.release_all();
    // It leads no more as openraft has it, and the other one is behind its log.
    cluster.write(follower, "after").await;
    cluster.write(leader, "and-here").await;
    // What became of it nobody could tell whoever asked; but it was not lost.
    drop(in_log.await.unwrap());
    assert!(cluster.value(follower, "in-log").is_some());
    cluster.stop_all().await;
}
