//! The log store against openraft's suite, across reopening, and under load; damage, kills and old bytes have files of
//! their own.

mod crash;
mod damage;
mod fixture;
mod machine;
mod memory;

use std::path::Path;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt as _;
use tempfile::TempDir;

use self::machine::Machine;
use super::*;
use crate::clock;
use crate::raft::types::{Entry, LeaderId, LogId, Payload, TypeConfig, Vote};
use crate::types::{NodeId, Term};

/// Small chunks, so that a few entries fill several.
fn small() -> LogConfig {
    LogConfig { chunk_bytes: 2_000, cache_bytes: 1_000, cache_entries: 4, ..LogConfig::default() }
}

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, small()).unwrap()
}

fn leader(term: u64) -> LeaderId {
    LeaderId { term: Term::new(term), node_id: NodeId::new(term % 3 + 1) }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: leader(term), index }
}

fn position(term: u64, index: u64) -> LogPosition {
    id(term, index).into()
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: leader(term), committed: term.is_multiple_of(2) }
}

/// About a hundred bytes that say where they belong.
fn entry(term: u64, index: u64) -> Entry {
    let body = Bytes::from(format!("entry {index} of term {term} {}", "x".repeat(80)));
    Entry { log_id: id(term, index), payload: Payload::Normal(body.into()) }
}

/// Appends and waits until the entries are on disk.
async fn append(store: &mut LogStore, entries: impl IntoIterator<Item = Entry> + Send) -> io::Result<()> {
    let (tx, rx) = TypeConfig::oneshot();
    let entries: Vec<_> = entries.into_iter().collect();
    store.append(entries, IOFlushed::signal(tx)).await?;
    rx.await.unwrap()
}

async fn all(store: &mut LogStore) -> Vec<Entry> {
    store.try_get_log_entries(..).await.unwrap()
}

fn chunk_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    files.sort();
    files
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        Ok((dir, store, Machine::default()))
    }
}

#[tokio::test]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn what_was_flushed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut store = open(dir.path());
        assert!(store.created());
        store.save_vote(&vote(3)).await.unwrap();
        append(&mut store, (0..100).map(|index| entry(1, index))).await.unwrap();
        store.truncate_after(Some(id(1, 89))).await.unwrap();
        append(&mut store, (90..120).map(|index| entry(3, index))).await.unwrap();
        store.save_committed(Some(id(3, 100))).await.unwrap();
        store.purge(id(1, 40)).await.unwrap();
        store.sync().await.unwrap();
    }
    let mut store = open(dir.path());
    assert!(!store.created());
    assert_eq!(store.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(store.read_committed().await.unwrap(), Some(id(3, 100)));
    assert_eq!((store.purged(), store.last()), (Some(position(1, 40)), Some(position(3, 119))));
    let expected: Vec<_> =
        (41..90).map(|index| entry(1, index)).chain((90..120).map(|index| entry(3, index))).collect();
    assert_eq!(all(&mut store).await, expected);
    append(&mut store, [entry(3, 120)]).await.unwrap();
}

#[tokio::test]
async fn purged_chunks_leave_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..200).map(|index| entry(1, index))).await.unwrap();
    let (files, bytes) = (chunk_files(dir.path()).len(), store.size_on_disk());
    store.purge(id(1, 150)).await.unwrap();
    // Removal follows the flush of the purge in the writer's queue; a second one proves that both are done.
    store.sync().await.unwrap();
    store.sync().await.unwrap();
    assert!(files > 10 && chunk_files(dir.path()).len() < files / 2);
    assert!(store.size_on_disk() < bytes / 2);
}

#[tokio::test]
async fn a_read_is_cut_at_its_bytes_but_holds_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), LogConfig::default()).unwrap();
    let large =
        |index| Entry { log_id: id(1, index), payload: Payload::Normal(Bytes::from(vec![7; 900 * 1024]).into()) };
    append(&mut store, (0..5).map(large)).await.unwrap();
    assert_eq!(store.limited_get_log_entries(1, 5).await.unwrap().len(), 2);
    let read = async |from, to, bytes| store.read(LogIndex::new(from), LogIndex::new(to), bytes).await.unwrap().len();
    assert_eq!(read(0, 5, 1).await, 1);
    assert_eq!(read(0, 5, u64::MAX).await, 5);
    assert_eq!(read(3, 99, u64::MAX).await, 2);
    assert_eq!(read(4, 3, u64::MAX).await, 0);
}

#[tokio::test]
async fn old_entries_are_streamed_from_disk_in_order() {
    use futures::TryStreamExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for from in (0..300).step_by(10) {
        append(&mut store, (from..from + 10).map(|index| entry(1, index))).await.unwrap();
    }
    let streamed: Vec<_> = store.entries_stream(5..290).await.try_collect().await.unwrap();
    assert_eq!(streamed, (5..290).map(|index| entry(1, index)).collect::<Vec<_>>());
    assert!(store.metrics().cold_reads.get() > 0);
}

#[tokio::test]
async fn a_committed_mark_reaches_the_disk_without_an_append() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..3).map(|index| entry(1, index))).await.unwrap();
    let flushes = |store: &LogStore| {
        let metrics = store.inner.wal.read().log.figures();
        (metrics.writes, metrics.syncs)
    };
    let (writes, fsyncs) = flushes(&store);
    store.save_committed(Some(id(1, 2))).await.unwrap();
    // It is written without a sync first.
    while flushes(&store) == (writes, fsyncs) {
        tokio::time::sleep(COMMITTED_TICK).await;
    }
    assert_eq!(flushes(&store), (writes + 1, fsyncs));
    // What another process would find now.
    let copy = tempfile::tempdir().unwrap();
    for file in chunk_files(dir.path()) {
        std::fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    assert_eq!(open(copy.path()).committed(), Some(position(1, 2)));
    // Then synced, once.
    while flushes(&store).1 == fsyncs {
        tokio::time::sleep(COMMITTED_TICK).await;
    }
    tokio::time::sleep(COMMITTED_TICK * 4).await;
    assert_eq!(flushes(&store), (writes + 2, fsyncs + 1));
}

#[tokio::test]
async fn a_committed_mark_costs_no_fsync_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), LogConfig::default()).unwrap();
    let mut pauses = 0;
    for index in 0..50 {
        let marked = clock::now();
        append(&mut store, [entry(1, index)]).await.unwrap();
        // A machine that did not get to the append for so long was not under load.
        pauses += u64::from(marked.elapsed() >= super::COMMITTED_QUIET);
        store.save_committed(Some(id(1, index))).await.unwrap();
    }
    let fsyncs = store.inner.wal.read().log.figures().syncs;
    assert!(fsyncs <= 50 + pauses, "{fsyncs} fsyncs, {pauses} pauses");
}

#[tokio::test]
async fn a_committed_mark_neither_goes_back_nor_beyond_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..3).map(|index| entry(1, index))).await.unwrap();
    for mark in [Some(id(1, 1)), Some(id(1, 0)), None, Some(id(1, 9))] {
        store.save_committed(mark).await.unwrap();
        assert_eq!(store.committed(), Some(position(1, 1)));
    }
}

#[tokio::test]
async fn a_reset_log_continues_behind_the_position() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..3).map(|index| entry(1, index))).await.unwrap();
    let refused = store.reset_to(position(1, 1)).await.unwrap_err();
    assert!(matches!(refused, LogError::NotBehind { .. }), "{refused}");
    store.reset_to(position(4, 1_000)).await.unwrap();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!((store.purged(), store.last()), (Some(position(4, 1_000)), Some(position(4, 1_000))));
    append(&mut store, [entry(4, 1_001)]).await.unwrap();
    assert_eq!(all(&mut store).await, [entry(4, 1_001)]);
}

#[tokio::test]
async fn until_it_is_told_what_is_archived_all_is_kept_and_after_each_start_again() {
    let dir = TempDir::new().unwrap();
    for _ in 0..2 {
        let store = open(dir.path());
        assert_eq!(store.kept_behind(), Some(0));
        store.keep_behind(Some(7));
        assert_eq!(store.kept_behind(), Some(7));
        store.keep_behind(None);
        assert_eq!(store.kept_behind(), None);
    }
}

#[tokio::test]
async fn a_log_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let refused = LogStore::open(dir.path(), small()).unwrap_err();
    assert!(matches!(refused, LogError::InUse { .. }), "{refused}");
}

#[tokio::test]
async fn a_refused_append_is_told_to_all_and_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0)]).await.unwrap();
    let (tx, rx) = TypeConfig::oneshot();
    store.append([entry(1, 5)], IOFlushed::signal(tx)).await.unwrap_err();
    rx.await.unwrap().unwrap_err();
    let cause = store.fatal().borrow().clone().unwrap();
    assert!(cause.contains("not consecutive"), "{cause}");
}

#[tokio::test]
async fn figures_are_registered() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut registry = Registry::default();
    store.register_metrics(&mut registry);
    append(&mut store, (0..3).map(|index| entry(1, index))).await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["raft_log_appended_entries_total 3", "raft_log_fsyncs_total 1", "raft_log_flush_seconds_count 1"] {
        assert!(text.contains(line), "{line} is missing from\n{text}");
    }
}
