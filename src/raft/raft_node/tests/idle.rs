//! Who waits for news of openraft makes none by waiting: openraft tells its figures anew after whatever it is asked.

use openraft::async_runtime::watch::WatchReceiver as _;

use super::*;

/// How long the news are counted.
const COUNTED: Duration = Duration::from_millis(300);

/// More than a node that nothing is asked of has to tell in that time (heartbeats, ticks), and far less than a loop makes.
const NEWS_MAX: u32 = 60;

/// How often openraft tells its figures within [`COUNTED`].
async fn news(node: &RaftNode) -> u32 {
    let (mut metrics, until) = (node.0.raft.metrics(), clock::now() + COUNTED);
    let mut news = 0;
    while tokio::time::timeout_at(until, metrics.changed()).await.is_ok_and(|changed| changed.is_ok()) {
        news += 1;
    }
    news
}

#[tokio::test]
async fn a_node_that_waits_to_be_taken_in_does_nothing_meanwhile() {
    let mut cluster = Cluster::start(1).await;
    cluster.open(2).await;
    let node = cluster.node(2);
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.wait_initialized().await }
    });
    let news = news(&node).await;
    assert!(!waiting.is_finished() && news <= NEWS_MAX, "{news} news in {COUNTED:?}");
    cluster.stop(2).await;
    waiting.await.expect("stopping ends it");
    cluster.stop_all().await;
}

#[tokio::test]
async fn who_waits_for_a_snapshot_does_not_ask_all_the_time() {
    let cluster = Cluster::start(1).await;
    let node = cluster.node(1);
    cluster.write(1, "k").await;
    // Never there: it waits for as long as this test likes.
    let wanted = LogPosition { term: Term::new(u64::MAX), ..LogPosition::default() };
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.snapshot_of(Some(wanted), soon(20_000)).await.map(drop) }
    });
    let news = news(&node).await;
    assert!(!waiting.is_finished() && news <= NEWS_MAX, "{news} news in {COUNTED:?}");
    waiting.abort();
    cluster.stop_all().await;
}
