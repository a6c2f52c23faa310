//! What comes of a job that ends when things are not any more as they were when it began.

use super::super::jobs::{Done, Shipment, Stored};
use super::*;
use crate::backup::transfer::{store_entries, store_snapshot};

/// A worker behind an archive that ends with entry 9 of a node that has thirty.
async fn worker<'a>(node: &Arc<Node>, repository: &Repository, desk: &'a Desk) -> Worker<'a, Node> {
    node.write(10);
    let running = Running::start(node, repository, settings(), "n1");
    running.archived(9).await;
    drop(running);
    node.write(20);
    let chain = Catalogue::read(repository, CLUSTER).await.unwrap();
    let (repository, source) = (repository.clone(), Arc::clone(node));
    let bandwidth = Bandwidth::new(None);
    let work = Work { cluster: CLUSTER, author: "n2".into(), settings: settings(), repository, source, bandwidth };
    Worker::new(Arc::new(work), desk, chain, None)
}

fn position(node: &Node, index: usize) -> LogPosition {
    node.inner.lock().log[index].position
}

#[tokio::test]
async fn that_entries_are_gone_is_no_news_where_another_node_has_archived_them() {
    let (node, repository, desk) = (Node::new(), memory(), Desk::default());
    let mut worker = worker(&node, &repository, &desk).await;
    let purged = position(&node, 7);
    // Asked for entries behind 5, when the archive ended there.
    worker.urgent = false;
    worker.finish(Done::Gone { after: Some(position(&node, 5)), purged }).await.unwrap();
    assert_eq!(desk.status().borrow().gap, None);
    assert!(!worker.bridging && worker.urgent, "it looks again, from where the archive ends now");
    assert_eq!(worker.shipped, Some(position(&node, 9)));
    // And those that were wanted.
    let purged = position(&node, 15);
    worker.finish(Done::Gone { after: worker.shipped, purged }).await.unwrap();
    let gap = desk.status().borrow().gap.unwrap();
    assert_eq!((gap.after.get(), gap.until, worker.bridging), (9, None, true));
}

#[tokio::test]
async fn an_object_that_was_stored_long_ago_is_not_named_but_sent_again() {
    let (node, repository, desk) = (Node::new(), memory(), Desk::default());
    let mut worker = worker(&node, &repository, &desk).await;
    let (after, entries) = (worker.shipped, node.inner.lock().log[10..].to_vec());
    let keys = Recipients::default();
    let object = store_entries(&repository, CLUSTER, after, entries, None, &keys).await.unwrap();
    let shipment = Shipment { after, upto: node.reached().unwrap(), at: clock::now() };
    let ago = |seconds: u64| WallTime::new(clock::wall().get() - seconds * 1000);
    let stored = |seconds| Done::Shipped(shipment, Stored { object: object.clone(), at: ago(seconds) });
    let error = worker.finish(stored(3_601)).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Late { .. }), "{error}");
    assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap().end(), after, "it may be deleted by now");
    worker.finish(stored(3_000)).await.unwrap();
    assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap().end(), Some(position(&node, 29)));
}

#[tokio::test]
async fn a_whole_state_that_comes_behind_a_newer_one_begins_no_part_of_the_archive_that_nothing_follows() {
    let (node, repository, desk) = (Node::new(), memory(), Desk::default());
    node.write(10);
    let snapshot = node.snapshot().await.unwrap();
    // Meanwhile another node, which has applied more, has begun the archive.
    node.write(20);
    let running = Running::start(&node, &repository, settings(), "n1");
    running.archived(29).await;
    drop(running);
    let (nobody, pace) = (Recipients::default(), |_| std::future::ready(()));
    let stored = store_snapshot(&repository, &snapshot.path, &snapshot.meta, &nobody, pace);
    let stored = Stored { object: stored.await.unwrap(), at: clock::wall() };
    let source = Arc::clone(&node);
    let bandwidth = Bandwidth::new(None);
    let work = Work {
        cluster: CLUSTER,
        author: "n2".into(),
        settings: settings(),
        repository: repository.clone(),
        source,
        bandwidth,
    };
    let mut worker = Worker::new(Arc::new(work), &desk, Catalogue::empty(CLUSTER), None);
    worker.finish(Done::Full(stored)).await.unwrap();
    assert_eq!(worker.shipped, Some(position(&node, 29)));
    let chain = check(&repository, &node, &Identities::default()).await;
    assert_eq!(chain.fulls().len(), 1);
}
