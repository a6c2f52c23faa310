//! An archive that somebody empties, replaces or breaks: nobody counts on it, and it is told.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_somebody_removed_is_noticed_and_begun_anew() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    drop(running);
    for folder in ["chain", "log", "full"] {
        let folder = format!("{}/{folder}", crate::backup::layout::cluster_name(CLUSTER));
        for object in repository.list(&folder, None).await.unwrap() {
            repository.delete(&object.name).await.unwrap();
        }
    }
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(19).await;
    check(&repository, &node, &Identities::default()).await;
}

/// Removes the archive, but not the marker of the repository.
async fn empty(repository: &Repository) {
    let folder = crate::backup::layout::cluster_name(CLUSTER);
    for object in repository.list(&folder, None).await.unwrap() {
        repository.delete(&object.name).await.unwrap();
    }
}

#[tokio::test]
async fn what_comes_behind_an_archive_that_was_emptied_is_not_told_as_archived_and_the_loss_stays_told() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    empty(&repository).await;
    node.write(10);
    let mut told = None;
    let lost = running.until("it is told", |status| {
        told = told.max(status.archived.map(|archived| archived.position.index.get()));
        status.lost.is_some()
    });
    let lost = lost.await.lost.unwrap();
    assert_eq!((told, lost.upto), (Some(9), Some(LogIndex::new(9))), "nobody was told that more was archived");
    assert!(lost.what.contains("emptied or replaced"), "{}", lost.what);
    // A new archive is begun, with a whole state, and what happened is not forgotten.
    let status = running.archived(19).await;
    assert_eq!((status.lost, status.failing), (Some(lost), None));
    let chain = check(&repository, &node, &Identities::default()).await;
    assert_eq!(chain.fulls()[0].last.index, 19);
}

#[tokio::test]
async fn an_archive_that_is_emptied_while_nothing_is_written_is_told() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    empty(&repository).await;
    tokio::time::pause();
    tokio::time::advance(super::super::worker::CHECK_INTERVAL).await;
    tokio::time::resume();
    let lost = running.until("it is told", |status| status.lost.is_some()).await.lost.unwrap();
    assert!(lost.what.contains("emptied or replaced"), "{}", lost.what);
    assert_eq!(running.archived(9).await.lost, Some(lost));
}

#[tokio::test]
async fn a_whole_state_that_is_gone_is_noticed_before_more_is_told_as_archived_behind_it() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    let full = Catalogue::read(&repository, CLUSTER).await.unwrap().fulls()[0].name.clone();
    repository.delete(&full).await.unwrap();
    node.write(10);
    let status = running.until("it is told", |status| status.lost.is_some()).await;
    assert!(status.lost.unwrap().what.contains(&full));
    assert!(status.archived.is_none_or(|archived| archived.position.index.get() == 9));
}

#[tokio::test]
async fn who_waits_for_its_turn_counts_no_more_on_an_archive_that_was_emptied() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    running.active.send_replace(false);
    empty(&repository).await;
    tokio::time::pause();
    tokio::time::advance(RECHECK_INTERVAL * 2).await;
    tokio::time::resume();
    let status = running.until("it is told", |status| status.archived.is_none()).await;
    assert!(status.errors > 0);
    // What comes then is a new archive.
    running.active.send_replace(true);
    running.archived(9).await;
    check(&repository, &node, &Identities::default()).await;
}

/// Removes the newest whole state; gives its name.
async fn remove_full(repository: &Repository) -> String {
    let full = Catalogue::read(repository, CLUSTER).await.unwrap().newest_full().unwrap().name.clone();
    repository.delete(&full).await.unwrap();
    full
}

#[tokio::test(start_paused = true)]
async fn where_the_newest_whole_state_is_gone_nothing_is_sent_or_told_before_another_one_is_there() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    // The next one takes long.
    node.snapshots.send_replace(false);
    let full = remove_full(&repository).await;
    node.write(10);
    let begun = |status: &Status| status.lost.is_some() && status.full_under_way;
    let lost = running.until("another one is begun", begun).await;
    let told = lost.lost.clone().unwrap();
    assert!(told.what.contains(&full) && told.upto == Some(LogIndex::new(9)), "{told:?}");
    node.write(10);
    running.desk.want(node.reached().unwrap().state.revision);
    running.desk.want_full();
    tokio::time::sleep(3 * super::super::worker::CHECK_INTERVAL).await;
    let status = running.desk.status().borrow().clone();
    assert_eq!((status.archived, status.full, status.errors), (None, None, 1), "somebody would count on it");
    assert!(status.full_under_way, "what was begun is not given up");
    assert_eq!(status.sent_log.objects, lost.sent_log.objects);
    node.snapshots.send_replace(true);
    let status = running.archived(29).await;
    assert_eq!((status.errors, status.lost), (1, Some(told)));
    node.write(10);
    running.archived(39).await;
    let chain = check(&repository, &node, &Identities::default()).await;
    let newest = chain.newest_full().unwrap();
    assert_eq!((chain.fulls().len(), newest.last.index), (2, 29));
    assert_eq!(chain.fulls()[0].name, full, "should somebody put it back, it is of use");
    repository.head(&newest.name).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_whole_state_that_is_gone_while_nothing_is_written_or_no_node_runs_is_replaced_by_one_of_the_same_state() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    let gone = remove_full(&repository).await;
    tokio::time::sleep(super::super::worker::CHECK_INTERVAL).await;
    running.until("it is told", |status| status.lost.is_some()).await;
    running.archived(9).await;
    let chain = check(&repository, &node, &Identities::default()).await;
    assert!(chain.fulls().len() == 1 && chain.fulls()[0].name != gone, "that is the newest, whatever its name");
    drop(running);
    remove_full(&repository).await;
    let running = Running::start(&node, &repository, settings(), "n2");
    let status = running.archived(9).await;
    assert!(status.lost.is_some() && status.errors == 0, "{status:?}");
    let chain = check(&repository, &node, &Identities::default()).await;
    repository.head(&chain.fulls()[0].name).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_lags_puts_no_older_state_in_the_place_of_one_that_is_gone() {
    let (node, lagging, repository) = (Node::new(), Node::new(), memory());
    node.write(20);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(19).await;
    drop(running);
    remove_full(&repository).await;
    lagging.write(10);
    let running = Running::start(&lagging, &repository, settings(), "n2");
    running.until("it is told", |status| status.lost.is_some()).await;
    tokio::time::sleep(super::super::worker::CHECK_INTERVAL).await;
    let status = running.desk.status().borrow().clone();
    assert_eq!((status.archived, status.full_under_way, status.sent_full.objects), (None, false, 0));
    lagging.write(15);
    running.archived(24).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_its_turn_counts_no_more_on_an_archive_without_its_newest_whole_state() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(9).await;
    running.active.send_replace(false);
    tokio::task::yield_now().await;
    remove_full(&repository).await;
    tokio::time::sleep(RECHECK_INTERVAL).await;
    let status = running.until("it is told", |status| status.archived.is_none()).await;
    assert!(status.lost.is_some(), "{status:?}");
    running.active.send_replace(true);
    running.archived(9).await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_is_broken_is_told_and_not_added_to_and_goes_on_once_it_is_mended() {
    let (node, repository) = (Node::new(), memory());
    node.write(10);
    let running = Running::start(&node, &repository, settings(), "n1");
    for last in [9, 19, 29] {
        running.archived(last).await;
        node.write(10);
    }
    running.archived(39).await;
    drop(running);
    let layout = crate::backup::layout::Layout::new(CLUSTER);
    let sound = repository.get(&layout.manifest(2), 1 << 20).await.unwrap();
    let before = Catalogue::read(&repository, CLUSTER).await.unwrap();
    for damage in ["gone", "{", "another"] {
        repository.delete(&layout.manifest(2)).await.unwrap();
        let other = String::from_utf8(sound.to_vec()).unwrap().replace("n1", "n9");
        match damage {
            "gone" => {}
            "{" => repository.create(&layout.manifest(2), "{".into()).await.unwrap(),
            _ => repository.create(&layout.manifest(2), other.into()).await.unwrap(),
        }
        let running = Running::start(&node, &repository, settings(), "n2");
        let status = running.until("it is told", |status| status.broken.is_some() && status.errors > 3).await;
        let broken = status.broken.clone().unwrap();
        assert!(broken.error.contains("manifest 2") || broken.error.contains("manifest 3"), "{}", broken.error);
        assert_eq!((status.archived, status.sent_full.objects), (None, 0), "nothing is begun beside it");
        if damage != "gone" {
            repository.delete(&layout.manifest(2)).await.unwrap();
        }
        repository.create(&layout.manifest(2), sound.clone()).await.unwrap();
        let status = running.archived(39).await;
        assert_eq!((status.broken, status.sent_full.objects), (None, 0), "it goes on where it was");
    }
    assert_eq!(check(&repository, &node, &Identities::default()).await, before);
}
