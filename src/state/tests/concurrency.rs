//! Threads. Property: while one thread applies and another one checkpoints, every view and every pinned state stays
//! exact. Method: the value that each key has at each revision is known from the revision alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use bytes::Bytes;

use super::super::*;
use super::harness::{command, hash_of, key, position, put_op};
use crate::storage::{Engine, Error, MemoryEngine, Order, Scan, SledConfig, SledEngine};
use crate::types::{KeyRange, Revision, Selector};

/// Keys of the test; more than fit in the cache, fewer than rounds.
const KEYS: u64 = 40;

fn name(of: u64) -> String {
    format!("key{of:02}")
}

/// Revision `r` writes keys `r` and `2r`, modulo their number.
fn written_by(revision: u64) -> [u64; 2] {
    [revision % KEYS, (2 * revision) % KEYS]
}

/// When a key was last written.
fn last_write(of: u64, at: u64) -> Option<u64> {
    (1..=at).rev().take(KEYS as usize).find(|revision| written_by(*revision).contains(&of))
}

fn check_view(view: &StateView) {
    let at = view.revision().get();
    let expected: Vec<(String, u64)> =
        (0..KEYS).filter_map(|of| last_write(of, at).map(|revision| (name(of), revision))).collect();
    for of in 0..KEYS {
        let found = view.get(&key(name(of))).unwrap();
        assert_eq!(found.as_ref().map(|record| record.meta.mod_revision.get()), last_write(of, at), "key {of} at {at}");
        assert_eq!(found.map(|record| record.value), last_write(of, at).map(|revision| revision.to_string().into()));
    }
    for order in [Order::Ascending, Order::Descending] {
        let read = RangeRead { range: KeyRange::all(), order, limit: 30, bytes_max: usize::MAX, keys_only: false };
        let page = view.range(&read).unwrap();
        let mut expected = expected.clone();
        if order == Order::Descending {
            expected.reverse();
        }
        assert_eq!(page.more, expected.len() > 30);
        expected.truncate(30);
        let found: Vec<_> =
            page.records.iter().map(|record| (record.key.to_string(), record.meta.mod_revision.get())).collect();
        assert_eq!(found, expected, "{order:?} at {at}");
        assert!(page.records.iter().all(|record| record.value == record.meta.mod_revision.to_string()));
    }
    assert_eq!(view.count(&KeyRange::all()).unwrap(), expected.len() as u64);
}

fn check_changes(reader: &StateReader, from: u64, to: u64) {
    let changes = reader.changes(Revision::new(from), Revision::new(to), usize::MAX).unwrap();
    let found: Vec<_> = changes.iter().map(|record| (record.revision.get(), record.key.to_string())).collect();
    let mut expected = Vec::new();
    for revision in from..=to {
        let mut names = written_by(revision).map(name).to_vec();
        names.sort();
        names.dedup();
        expected.extend(names.into_iter().map(|name| (revision, name)));
    }
    assert_eq!(found, expected);
}

fn readers_stay_exact(engine: Arc<dyn Engine>, revisions: u64) {
    let config = StateConfig { overlay_bytes_soft: 8_000, overlay_bytes_hard: 40_000, cache_bytes: 6_000 };
    let mut machine = StateMachine::open(engine, config).unwrap();
    let (reader, checkpointer, done) = (machine.reader(), machine.checkpointer(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut checkpoints = 0;
            while checkpointer.wait() {
                checkpointer.run().unwrap();
                checkpoints += 1;
            }
            assert!(checkpoints > 3, "only {checkpoints} checkpoints ran");
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut held = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let view = reader.view();
                    check_view(&view);
                    let at = view.revision().get();
                    check_changes(&reader, at.saturating_sub(50).max(1), at);
                    // Some stay, and are looked at again much later.
                    if held.len() < 8 {
                        held.push(view);
                    } else {
                        held[(at % 8) as usize] = view;
                    }
                    check_view(&held[(at % held.len() as u64) as usize]);
                }
                held.iter().for_each(check_view);
            });
        }
        for revision in 1..=revisions {
            assert!(machine.wait_for_room());
            let success = written_by(revision).map(|of| put_op(name(of), revision.to_string())).to_vec();
            machine.apply(position(revision as usize), &[command(Txn { success, ..Txn::default() })]).unwrap();
            machine.publish();
            if revision % 500 == 0 {
                let pinned = machine.pin();
                scope.spawn(move || {
                    let records: Vec<_> = pinned.records().map(Result::unwrap).collect();
                    assert_eq!(hash_of(&records), pinned.applied().hash);
                });
            }
        }
        done.store(true, Ordering::Relaxed);
        checkpointer.close();
    });
    assert_eq!(reader.applied().revision, Revision::new(revisions));
}

#[test]
fn readers_stay_exact_over_memory_while_a_writer_and_a_checkpointer_run() {
    readers_stay_exact(Arc::new(MemoryEngine::new()), 3_000);
}

#[test]
fn readers_stay_exact_over_sled_while_a_writer_and_a_checkpointer_run() {
    let directory = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(&directory.path().join("state"), &SledConfig::default()).unwrap();
    readers_stay_exact(Arc::new(engine), 1_500);
}

/// Holds the first look-up of a version until it is told to go on.
struct Gate {
    engine: MemoryEngine,
    armed: AtomicBool,
    reached: Barrier,
    go_on: Barrier,
}

impl Engine for Gate {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let found = self.engine.get(key);
        // 3 is the section of records.
        if key[0] == 3 && self.armed.swap(false, Ordering::SeqCst) {
            self.reached.wait();
            self.go_on.wait();
        }
        found
    }

    fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, Error> {
        self.engine.scan(scan)
    }

    fn commit(&self, batch: crate::storage::Batch) -> Result<(), Error> {
        self.engine.commit(batch)
    }

    fn flush(&self) -> Result<(), Error> {
        self.engine.flush()
    }

    fn size_on_disk(&self) -> Result<u64, Error> {
        self.engine.size_on_disk()
    }
}

#[test]
fn a_slow_reader_never_puts_an_outdated_record_into_the_cache() {
    let gate = Arc::new(Gate {
        engine: MemoryEngine::new(),
        armed: AtomicBool::new(false),
        reached: Barrier::new(2),
        go_on: Barrier::new(2),
    });
    let open = || StateMachine::open(Arc::clone(&gate) as Arc<dyn Engine>, StateConfig::default()).unwrap();
    let write_and_checkpoint = |machine: &mut StateMachine, index: usize, op: TxnOp| {
        machine.apply(position(index), &[command(Txn { success: vec![op], ..Txn::default() })]).unwrap();
        machine.publish();
        machine.checkpointer().run().unwrap();
    };
    for (round, next) in
        [put_op("k", "new"), TxnOp::Delete { selector: Selector::Key(key("k")) }].into_iter().enumerate()
    {
        let mut machine = open();
        write_and_checkpoint(&mut machine, 2 * round, put_op("k", "old"));
        // Opened anew: nothing is cached.
        let mut machine = open();
        let reader = machine.reader();
        gate.armed.store(true, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| reader.view().get(&key("k")).unwrap().unwrap().value);
            gate.reached.wait();
            write_and_checkpoint(&mut machine, 2 * round + 1, next.clone());
            gate.go_on.wait();
            assert_eq!(slow.join().unwrap(), "old");
        });
        let expected = matches!(next, TxnOp::Put { .. }).then(|| Bytes::from("new"));
        assert_eq!(reader.view().get(&key("k")).unwrap().map(|record| record.value), expected);
    }
}

#[test]
fn the_doors_go_where_threads_need_them() {
    fn assert_send<T: Send>() {}
    fn assert_shared<T: Send + Sync + Clone>() {}
    assert_send::<StateMachine>();
    assert_send::<PinnedState>();
    assert_shared::<StateReader>();
    assert_shared::<StateView>();
    assert_shared::<Checkpointer>();
}

#[test]
fn nothing_shows_before_it_is_published() {
    let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
    let reader = machine.reader();
    for index in 0..3 {
        let success = vec![put_op("k", index.to_string())];
        machine.apply(position(index), &[command(Txn { success, ..Txn::default() })]).unwrap();
    }
    // Not even once it is in the engine.
    machine.checkpointer().run().unwrap();
    assert_eq!(reader.view().get(&key("k")).unwrap(), None);
    assert_eq!(reader.changes(Revision::ZERO, Revision::new(9), 9).unwrap(), []);
    machine.publish();
    assert_eq!(reader.view().get(&key("k")).unwrap().unwrap().value, "2");
    assert_eq!(reader.changes(Revision::ZERO, Revision::new(9), 9).unwrap().len(), 3);
}

#[test]
fn waiting_ends_with_a_request_and_with_closing() {
    let machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
    let checkpointer = machine.checkpointer();
    checkpointer.request();
    assert!(checkpointer.wait());
    assert_eq!(checkpointer.run().unwrap().records, 0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| checkpointer.wait());
        machine.checkpointer().close();
        assert!(!waiting.join().unwrap());
    });
}

#[test]
fn a_full_overlay_has_no_room_until_it_is_checkpointed_or_closed() {
    let config = StateConfig { overlay_bytes_soft: 100, overlay_bytes_hard: 1_000, cache_bytes: 0 };
    let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), config).unwrap();
    let mut index = 0;
    while machine.has_room() {
        let success = vec![put_op("k", index.to_string())];
        machine.apply(position(index), &[command(Txn { success, ..Txn::default() })]).unwrap();
        index += 1;
    }
    assert_eq!(index, 4);
    let checkpointer = machine.checkpointer();
    assert!(checkpointer.wait());
    checkpointer.run().unwrap();
    assert!(machine.wait_for_room());
    machine
        .apply(position(9), &[command(Txn { success: vec![put_op("k", vec![0; 2_000])], ..Txn::default() })])
        .unwrap();
    checkpointer.close();
    assert!(!machine.wait_for_room());
}
