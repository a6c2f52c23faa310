//! Reading back what was committed, and keeping the log for the archive.

use super::*;
use crate::raft::raft_node::CommittedError;
use crate::state::{LogContent, LogEntry};
use crate::types::LogIndex;

/// Everything that is applied, in pieces of at most `bytes_max`.
async fn all(node: &RaftNode, mut after: Option<LogPosition>, bytes_max: u64) -> Vec<LogEntry> {
    let applied = node.applied().borrow().position.unwrap();
    let mut entries: Vec<LogEntry> = Vec::new();
    while after < Some(applied) {
        let piece = node.committed_entries(after, applied.index, bytes_max).await.unwrap();
        after = piece.last().map(|entry| entry.position);
        entries.extend(piece);
    }
    entries
}

#[tokio::test]
async fn committed_entries_are_the_same_on_every_node_in_pieces_of_any_size() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for number in 0..20 {
        cluster.write(leader, &format!("key-{number}")).await;
    }
    let of_leader = all(&cluster.node(leader), None, u64::MAX).await;
    let indexes: Vec<u64> = of_leader.iter().map(|entry| entry.position.index.get()).collect();
    assert_eq!(indexes, (0..indexes.len() as u64).collect::<Vec<_>>());
    assert!(of_leader.iter().any(|entry| matches!(entry.content, LogContent::Blank)));
    assert!(of_leader.iter().any(|entry| matches!(entry.content, LogContent::Membership(_))));
    for id in cluster.members.keys() {
        let node = cluster.node(*id);
        node.read_barrier(soon(20_000)).await.unwrap();
        let own = all(&node, None, 1).await;
        assert_eq!(&own[..of_leader.len()], &of_leader[..], "node {id}");
        let applied = *node.applied().borrow();
        assert_eq!((applied.revision, applied.hash), (node.reader().applied().revision, node.reader().applied().hash));
        // Nothing behind what is applied, and nothing behind what was asked for.
        assert!(node.committed_entries(applied.position, LogIndex::new(u64::MAX - 1), 1).await.unwrap().is_empty());
        let two = node.committed_entries(None, LogIndex::new(1), u64::MAX).await.unwrap();
        assert_eq!(two, of_leader[..2]);
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_is_gone_and_what_is_of_another_history_are_told_apart() {
    let cluster = Cluster::start(1).await;
    let node = cluster.node(1);
    for number in 0..20 {
        cluster.write(1, &format!("key-{number}")).await;
    }
    let before = all(&node, None, u64::MAX).await;
    let file = node.snapshot(soon(20_000)).await.unwrap();
    until("raft knows the snapshot", || node.status().snapshot() >= file.meta().position).await;
    let at = before[10].position;
    node.0.raft.trigger().purge_log(at.index.get()).await.unwrap();
    until("the log is purged", || node.log_begins_behind().is_some_and(|purged| purged >= at)).await;

    let end = LogIndex::new(u64::MAX - 1);
    for after in [None, Some(before[9].position)] {
        let gone = node.committed_entries(after, end, 1).await.unwrap_err();
        assert!(matches!(gone, CommittedError::Gone { purged } if purged == at), "{gone}");
    }
    assert_eq!(all(&node, Some(at), u64::MAX).await, before[11..]);
    for known in [at, before[15].position] {
        let other = LogPosition { term: known.term.next(), ..known };
        let diverged = node.committed_entries(Some(other), end, 1).await.unwrap_err();
        assert!(matches!(diverged, CommittedError::Diverged { found, .. } if found == known), "{diverged}");
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn the_log_is_kept_until_it_is_archived() {
    let cluster = Cluster::start_with(1, 64 * 1024).await;
    let node = cluster.node(1);
    node.keep_log_behind(Some(LogIndex::new(2)));
    let due = 64 * 1024;
    // More than is kept without need, less than is held for those who need it.
    while node.log_bytes() < 3 * due {
        node.propose(put("key", vec![1; 4_096]), soon(20_000)).await.unwrap().unwrap();
    }
    until("a snapshot is there", || node.status().snapshot().is_some()).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(node.log_begins_behind().is_none_or(|purged| purged.index.get() <= 2));
    node.keep_log_behind(node.applied().borrow().position.map(|position| position.index));
    until("the log is removed", || node.log_begins_behind().is_some_and(|purged| purged.index.get() > 2)).await;
    cluster.stop_all().await;
}
