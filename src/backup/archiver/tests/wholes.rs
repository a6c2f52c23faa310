//! Whole states and merged objects beside the log: when they come, and what they bridge.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_bridged_by_a_whole_state_and_told() {
    let (node, repository) = (Node::new(), memory());
    node.write(30);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    running.active.send_replace(false);
    node.write(100);
    node.purge(80);
    running.active.send_replace(true);
    node.write(10);
    running.archived(node.last()).await;
    let gap = running.until("the gap is told", |status| status.gap.is_some_and(|gap| gap.until.is_some())).await;
    assert!(gap.gap.unwrap().after.get() >= 29 && gap.gap.unwrap().until.unwrap().get() >= 80);
    node.write(40);
    running.archived(node.last()).await;
    let chain = Catalogue::read(&repository, CLUSTER).await.unwrap();
    assert_eq!(chain.fulls().len(), 2, "one bridge is enough");
    assert_eq!(chain.end().unwrap().index.get(), node.last());
    let bridge = chain.fulls()[1].last;
    let behind = chain.follow(bridge.into()).1;
    assert_eq!(behind.first().unwrap().previous, Some(bridge), "the log goes on right behind it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_begins_within_the_archive_needs_no_bridge() {
    let (node, repository) = (Node::new(), memory());
    node.write(30);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    node.purge(29);
    node.write(30);
    let status = running.archived(59).await;
    assert_eq!((status.gap, status.sent_full.objects), (None, 1));
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_objects_become_one_and_the_archive_stays_the_same() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let merging = TargetSettings { merge_interval: Duration::from_millis(300), ..settings() };
    let running = Running::start(&node, &repository, merging, "n1");
    running.archived(9).await;
    let give_up = clock::now() + PATIENCE;
    // Until the last third of a second, which is not merged yet, is less than half of all.
    let merged = |status: &Status| status.sent_merged.objects >= 3 && status.objects < status.sent_log.objects / 2;
    while !merged(&running.desk.status().borrow()) {
        assert!(clock::now() < give_up, "objects are not merged: {:?}", *running.desk.status().borrow());
        node.write(3);
        running.archived(node.last()).await;
    }
    running.active.send_replace(false);
    let chain = check(&repository, &node, &Identities::default()).await;
    assert!(chain.segments().iter().any(|object| object.plain_bytes > 1_000), "{chain:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_states_come_when_asked_for_and_by_their_schedule_but_not_for_nothing() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    node.write(10);
    running.desk.want_full();
    let status = running.until("it is sent", |status| status.sent_full.objects == 2).await;
    assert_eq!(status.full.unwrap().position.index.get(), 19);
    drop(running);
    let chain = Catalogue::read(&repository, CLUSTER).await.unwrap();
    assert_eq!(chain.objects().filter(|object| object.kind == Kind::Full).count(), 2);
    let made_at = chain.fulls().last().unwrap().times.unwrap().0;
    let minutes = TargetSettings { full: "* * * * *".parse().unwrap(), ..settings() };
    assert!(minutes.full.next_after(WallTime::new(made_at)).unwrap().get() - made_at <= 60_000);
    let running = Running::start(&node, &repository, minutes, "n1");
    let status = running.until("it has looked", |status| status.covered_at.is_some()).await;
    assert_eq!((status.sent_full.objects, status.full_under_way), (0, false), "the state is the same");
    check(&repository, &node, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_log_only_whole_states_are_archived() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, TargetSettings { log: false, ..settings() }, "n1");
    running.archived(9).await;
    node.write(10);
    running.desk.want_full();
    let status = running.archived(19).await;
    assert_eq!((status.sent_log.objects, status.sent_full.objects), (0, 2));
    assert_eq!(status.archived.unwrap().revision, Revision::new(node.reached().unwrap().state.revision.get()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_state_that_overtakes_the_log_is_not_taken_for_its_end() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    node.inner.lock().stuck = true;
    node.write(20);
    running.desk.want_full();
    let status = running.archived(29).await;
    assert_eq!(status.shipped.unwrap().index.get(), 9, "what lies between is still wanted");
    drop(running);
    node.inner.lock().stuck = false;
    let running = Running::start(&node, &repository, settings(), "n1");
    let shipped = |status: &Status| status.shipped.is_some_and(|shipped| shipped.index.get() == 29);
    let status = running.until("the log is sent", shipped).await;
    assert_eq!((status.gap, status.sent_full.objects), (None, 0));
    check(&repository, &node, &Identities::default()).await;
}
