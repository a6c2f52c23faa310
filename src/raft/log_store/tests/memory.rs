//! The log in memory keeps openraft's contract as the files do, and loses in a crash what they may lose.

use super::*;

fn memory() -> LogConfig {
    with(&MemoryLog::new())
}

fn with(log: &MemoryLog) -> LogConfig {
    LogConfig { medium: LogMedium::Memory(log.clone()), ..small() }
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for InMemory {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(dir.path(), memory()).unwrap();
        Ok((dir, store, Machine::default()))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test]
async fn a_power_cut_leaves_what_was_synced_and_as_much_more_as_it_likes() {
    for keep in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let log = MemoryLog::held();
        let mut store = LogStore::open(dir.path(), with(&log)).unwrap();
        assert!(store.created());
        let (tx, rx) = TypeConfig::oneshot();
        store.append((0..5).map(|index| entry(1, index)), IOFlushed::signal(tx)).await.unwrap();
        log.complete();
        rx.await.unwrap().unwrap();
        let (tx, rx) = TypeConfig::oneshot();
        store.append((5..8).map(|index| entry(1, index)), IOFlushed::signal(tx)).await.unwrap();
        assert_eq!((log.unsynced(), all(&mut store).await.len()), (3, 8));
        drop(store);
        log.crash(keep);
        assert!(rx.await.unwrap().is_err(), "nobody was told that these are on disk");
        let mut store = LogStore::open(dir.path(), with(&log)).unwrap();
        assert!(!store.created());
        assert_eq!(all(&mut store).await, (0..5 + keep as u64).map(|index| entry(1, index)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_failed_sync_is_told_and_nothing_is_taken_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = MemoryLog::held();
    let mut store = LogStore::open(dir.path(), with(&log)).unwrap();
    let (tx, rx) = TypeConfig::oneshot();
    store.append([entry(1, 0)], IOFlushed::signal(tx)).await.unwrap();
    log.fail("on purpose");
    assert!(rx.await.unwrap().is_err());
    assert!(store.fatal().borrow().as_ref().is_some_and(|fatal| fatal.contains("on purpose")));
    assert!(store.save_vote(&vote(1)).await.is_err());
}

#[tokio::test]
async fn what_the_files_refuse_is_refused_in_memory() {
    for config in [small(), memory()] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = LogStore::open(dir.path(), config).unwrap();
        append(&mut store, (0..3).map(|index| entry(2, index))).await.unwrap();
        assert!(append(&mut store, [entry(2, 4)]).await.is_err(), "a gap");
        assert!(append(&mut store, [entry(1, 3)]).await.is_err(), "an older term behind a newer one");
        assert_eq!(all(&mut store).await.len(), 3);
        store.save_vote(&vote(2)).await.unwrap();
        assert!(store.save_vote(&vote(1)).await.is_err(), "a vote goes back");
    }
}
