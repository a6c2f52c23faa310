//! A leader that can't reach a quorum, cut off both ways or one way: it steps down, and turns callers away.

use super::*;

/// How a leader is cut off.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Both,
    /// What it sends arrives, the answers do not.
    Answers,
    /// What it sends does not arrive.
    Calls,
}

impl Cluster {
    fn cut_off(&self, id: u64, cut: Cut) {
        for other in self.members.keys().filter(|other| **other != id) {
            match cut {
                Cut::Both => self.isolate(id),
                Cut::Answers => self.network.cut(&address(*other), &address(id)),
                Cut::Calls => self.network.cut(&address(id), &address(*other)),
            }
        }
    }
}

/// What callers would wait, had the leader not noticed.
const LONG_MS: u64 = 25_000;

/// Far less than that, and time enough for a lease and a busy machine.
const AT_ONCE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_loses_its_quorum_stops_serving_when_its_lease_ends() {
    for cut in [Cut::Both, Cut::Answers, Cut::Calls] {
        let cluster = Cluster::start_quick(3).await;
        let silence = cluster.timers.leader_silence();
        let old = cluster.leader().await;
        let node = cluster.node(old);
        cluster.write(old, "before").await;
        cluster.barrier(old).await;
        cluster.cut_off(old, cut);
        let since = clock::now();

        // One that is asked right away, while the lease still holds.
        let early = node.read_barrier(soon(LONG_MS)).await;
        assert!(
            matches!(early, Err(BarrierError::NoQuorum | BarrierError::NoLeader)) || early.is_ok(),
            "{cut:?} {early:?}"
        );
        until("it steps down", || !node.leads() && node.leader_heard(silence) != Leader::Me).await;
        let noticed = since.elapsed();
        assert!(noticed < AT_ONCE, "{cut:?}: it noticed after {noticed:?}");

        // Unless it hears of the next leader, it turns everybody away at once.
        if !matches!(cut, Cut::Calls) {
            let asked = clock::now();
            let write = node.propose(put("late", "v"), soon(LONG_MS)).await;
            assert!(matches!(write, Err(ProposeError::NoQuorum)), "{cut:?} {write:?}");
            assert_eq!(node.read_barrier(soon(LONG_MS)).await, Err(BarrierError::NoQuorum), "{cut:?}");
            assert!(asked.elapsed() < AT_ONCE, "{cut:?}: refused after {:?}", asked.elapsed());
            assert_eq!(node.leader_heard(silence), Leader::None, "{cut:?}");
        }

        let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != old).collect();
        let leader = cluster.leader_among(&others).await;
        cluster.write(leader, "after").await;
        cluster.network.heal_all();
        cluster.write(old, "healed").await;
        assert_eq!(cluster.value(leader, "late"), None, "{cut:?}: what was refused is not there");
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_entries_without_a_quorum_is_turned_away_too() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    // The leader's own first entry is committed then: what is behind the commit below is the write.
    cluster.write(leader, "before").await;
    // In the log before it knows: of unknown outcome, and so waited for until the deadline. Heartbeats go on until it is there.
    for other in cluster.members.keys().filter(|id| **id != leader) {
        cluster.gate(*other).lose(Channel::Append);
    }
    let in_log = tokio::spawn({
        let node = node.clone();
        async move { node.propose(put("in-log", "v"), soon(AT_ONCE.as_millis() as u64)).await }
    });
    until("it is in the log", || {
        let status = node.status();
        status.last_log_index() > status.committed().map(|position| position.index.get())
    })
    .await;
    cluster.isolate(leader);
    assert!(matches!(node.propose(put("behind", "v"), soon(LONG_MS)).await, Err(ProposeError::NoQuorum)));
    assert!(!in_log.is_finished(), "not only with what is in the log");
    assert!(matches!(in_log.await.unwrap(), Err(ProposeError::Unknown(_))));
    cluster.network.heal_all();
    cluster.release_all();
    cluster.write(leader, "after").await;
    assert_eq!(cluster.value(leader, "behind"), None);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_quorum_comes_back_serves_again() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    // Nobody can be elected meanwhile: the others don't reach each other either.
    for id in cluster.members.keys() {
        cluster.isolate(*id);
    }
    until("it steps down", || !node.leads()).await;
    cluster.network.heal_all();
    for id in others.iter().chain([&leader]) {
        cluster.write(*id, &format!("after-{id}")).await;
        cluster.barrier(*id).await;
    }
    until("somebody leads with a quorum", || cluster.members.values().any(|member| member.node.leads())).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_never_loses_its_quorum() {
    let cluster = Cluster::start_quick(1).await;
    let node = cluster.node(1);
    cluster.write(1, "before").await;
    // Idle for longer than a lease: nobody confirms anything, and nobody has to.
    tokio::time::sleep(cluster.timers.election_max * 2).await;
    assert!(node.leads());
    cluster.write(1, "after").await;
    cluster.stop_all().await;
}

/// The node would go on as a process that neither leads nor follows, until somebody noticed.
#[tokio::test]
async fn a_panic_of_consensus_ends_the_node() {
    let cluster = Cluster::start(1).await;
    let node = cluster.node(cluster.leader().await);
    node.0.raft.external_request(|_state| panic!("as a broken assertion would")).await.unwrap();
    let reason = tokio::time::timeout(PATIENCE, node.fatal().raised()).await.unwrap();
    assert_eq!(reason, "consensus stopped: it panicked");
}

fn files_of(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    };
    std::fs::read_dir(dir).unwrap().map(read).collect()
}

/// Its disk lied, and took the mark along that would tell. The leader goes on, and sends again what it had counted on there.
#[tokio::test]
async fn a_member_that_comes_back_with_less_than_it_acknowledged_is_brought_up_again() {
    let mut cluster = Cluster::start(3).await;
    let (leader, away) = (cluster.leader().await, cluster.follower().await);
    let log = cluster.config(away).data_dir.join("log");
    cluster.write(leader, "before").await;
    cluster.stop(away).await;
    let earlier = files_of(&log);
    cluster.open(away).await;
    for number in 0..10 {
        cluster.write(leader, &format!("acknowledged-{number}")).await;
    }
    let last = cluster.node(leader).status().last_log_index();
    until("it has all of it", || cluster.node(away).status().last_log_index() == last).await;
    cluster.write(leader, "heard").await;
    cluster.stop(away).await;
    earlier.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    cluster.open(away).await;
    cluster.write(leader, "after").await;
    cluster.barrier(away).await;
    assert!(cluster.value(away, "acknowledged-9").is_some() && cluster.value(away, "after").is_some());
    let hash = |id: u64| cluster.node(id).reader().applied().hash;
    until("it holds the same", || hash(away) == hash(leader)).await;
    assert_eq!(cluster.node(leader).fatal().reason(), None, "the leader goes on");
    let forgetful = cluster.node(leader).forgetful();
    let told: Vec<_> = forgetful.iter().map(|one| (one.id.get(), one.missing <= one.acknowledged)).collect();
    assert_eq!(told, [(away, true)], "{forgetful:?}");
    cluster.stop_all().await;
}
