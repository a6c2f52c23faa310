//! Stores that go away, hang, refuse, lie, or lose answers.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_away_is_told_and_all_is_caught_up_when_it_is_back() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let (folder, aside) = (dir.path().join("backup"), dir.path().join("aside"));
    let repository = target::open(&format!("file://{}", folder.display()), &BTreeMap::new()).unwrap();
    node.write(30);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    node.write(100);
    let status = running.until("it fails", |status| status.failing.is_some()).await;
    assert!(!status.healthy && status.errors > 0);
    assert!(status.archived.unwrap().position.index.get() < 130, "what is not archived is not told as such");
    node.write(100);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    running.archived(node.last()).await;
    let status = running.until("it is well", |status| status.failing.is_none()).await;
    assert!(status.healthy);
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_create_only_is_not_used_and_that_is_told() {
    let (node, (repository, faults)) = (Node::new(), Faults::repository());
    node.write(10);
    faults.set(Fault::IgnoreCreate);
    let running = Running::start(&node, &repository, settings(), "n1");
    let status = running.until("it is refused", |status| status.failing.is_some()).await;
    assert!(status.failing.unwrap().error.contains("replaces an object"));
    assert!(!status.healthy && status.archived.is_none());
    assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), Catalogue::empty(CLUSTER));
    faults.clear();
    running.archived(9).await;
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_missing_rights_and_lost_answers_cost_time_and_nothing_else() {
    let (node, (repository, faults)) = (Node::new(), Faults::repository());
    node.write(10);
    let merging = TargetSettings { merge_interval: Duration::from_millis(200), ..settings() };
    let running = Running::start(&node, &repository, merging, "n1");
    running.archived(9).await;
    let storms = [
        Fault::Unavailable,
        Fault::LoseAnswers(3),
        Fault::Forbid("put"),
        Fault::LoseAnswers(1),
        Fault::FailParts(0),
        Fault::Forbid("get"),
        Fault::Unavailable,
    ];
    for storm in storms {
        let errors = running.desk.status().borrow().errors;
        faults.set(storm.clone());
        for _ in 0..5 {
            node.write(10);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if storm == Fault::Unavailable {
            running.until("it fails", |status| status.errors > errors).await;
        }
        faults.clear();
        running.archived(node.last()).await;
    }
    running.until("it is well", |status| status.failing.is_none()).await;
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_in_the_middle_of_a_request_is_told_and_another_node_goes_on() {
    for hangs in ["put", "get"] {
        let (node, (repository, faults)) = (Node::new(), Faults::repository());
        node.write(10);
        let one = Running::start(&node, &repository, settings(), "n1");
        one.archived(9).await;
        let two = Running::start(&node, &faults.sound(), settings(), "n2");
        two.active.send_replace(false);
        faults.set(Fault::Hang(hangs));
        node.write(10);
        let begun = clock::now();
        let status = one.until("it is told", |status| status.failing.is_some()).await;
        assert!(status.failing.unwrap().error.contains("not answered") && !status.healthy);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(status.lost, None, "nothing is known to be lost");
        // What the node decides then.
        one.active.send_replace(false);
        two.active.send_replace(true);
        two.archived(19).await;
        // The store answers again, and this one sees what the other has done.
        faults.clear();
        one.until("it could", |status| status.healthy).await;
        two.active.send_replace(false);
        node.write(10);
        one.active.send_replace(true);
        one.archived(29).await;
        check(&repository, &node, &Identities::default()).await;
    }
}
