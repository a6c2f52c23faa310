//! Crashes and timing. Property: after a crash at any moment, replay gives the state that an uninterrupted twin has.

use std::sync::Arc;

use bytes::Bytes;

use super::super::*;
use super::harness::{Entry, Harness, command, delete, key, position, put, put_op, records};
use crate::storage::{Engine, Error, FaultPoint, MemoryEngine, Order, Scan};
use crate::types::{KeyRange, LogIndex, Revision, Selector};

/// Entries in which every kind of change meets every other: some of them twice, on both sides of the checkpoints.
fn entries() -> Vec<Entry> {
    let increment = |expected: u64| {
        // A compare-and-set: replayed against a future value it would take the other branch.
        let compare =
            Compare { key: key("counter"), target: CompareTarget::Version(expected), operator: CompareOperator::Equal };
        let success = vec![put_op("counter", format!("{expected}"))];
        let failure = vec![put_op("counter", "wrong")];
        command(Txn { compares: vec![compare], success, failure })
    };
    let sweep = || {
        let all = Selector::Range(KeyRange::prefix("k").unwrap());
        let get = TxnOp::Get { selector: all.clone(), limit: 3, keys_only: false };
        command(Txn { success: vec![get.clone(), TxnOp::Delete { selector: all }, get], ..Txn::default() })
    };
    let mut entries = Vec::new();
    for round in 0..6 {
        let commands =
            vec![put(format!("k{round}"), "x"), increment(round), put("k", format!("{round}")), delete("k1")];
        entries.push(Entry::Commands(commands));
        entries.push(if round == 2 { Entry::Membership(Bytes::from_static(b"m")) } else { Entry::Blank });
        if round % 2 == 1 {
            entries.push(Entry::Commands(vec![sweep(), put("k\0", "y")]));
        }
    }
    entries
}

/// Everything there is, by every way of reading.
fn contents(machine: &StateMachine) -> (Applied, Vec<VersionedRecord>, Vec<VersionedRecord>, Vec<Page>) {
    let reader = machine.reader();
    let newest = reader.applied().revision;
    let read = RangeRead {
        range: KeyRange::all(),
        order: Order::Ascending,
        limit: usize::MAX,
        bytes_max: usize::MAX,
        keys_only: false,
    };
    let pages = (0..=newest.get()).map(|at| reader.view_at(Revision::new(at)).unwrap().range(&read).unwrap());
    let changes = reader.changes(Revision::ZERO, newest, usize::MAX).unwrap();
    (machine.applied().clone(), records(&machine.pin()), changes, pages.collect())
}

fn twin() -> Harness {
    let mut twin = Harness::new();
    for entry in entries() {
        twin.enter(entry);
    }
    twin
}

/// The engine as the second of two checkpoints, cut off behind `batches` batches, leaves it; `None` if it has no more.
fn interrupted(first_at: usize, batches: usize) -> Option<Harness> {
    let mut harness = Harness::new();
    for (index, entry) in entries().into_iter().enumerate() {
        harness.enter(entry);
        if index == first_at {
            harness.checkpoint().unwrap();
        }
    }
    harness.engine.fail(FaultPoint::Commit, batches as u64 + 1);
    let cut = harness.checkpoint().is_err();
    harness.crash(usize::MAX);
    cut.then_some(harness)
}

#[test]
fn a_checkpoint_cut_at_any_batch_is_recovered_by_replay() {
    let entries = entries();
    let expected: Vec<_> = {
        let mut twin = Harness::new();
        let states = entries.iter().map(|entry| {
            twin.enter(entry.clone());
            contents(&twin.machine)
        });
        states.collect()
    };
    let mut cuts = 0;
    for first_at in [0, 4, 9] {
        for batches in 0.. {
            let Some(mut harness) = interrupted(first_at, batches) else { break };
            cuts += 1;
            // At the marker nothing of the future shows.
            assert_eq!(contents(&harness.machine), expected[first_at], "cut behind batch {batches}");
            // Nor at any entry on the way.
            harness.replay(|machine| {
                let at = machine.applied().position.unwrap().index.get() as usize;
                assert_eq!(contents(machine), expected[at], "entry {at}, cut behind batch {batches}");
            });
            // A checkpoint that overtakes a cut one leaves nothing of it behind.
            harness.checkpoint().unwrap();
            harness.crash(0);
            assert_eq!(&contents(&harness.machine), expected.last().unwrap());
        }
    }
    assert!(cuts > 30, "only {cuts} cuts were tried");
}

#[test]
fn a_checkpoint_in_the_middle_of_a_replay_over_future_records_holds() {
    let expected = contents(&twin().machine);
    for batches in 0.. {
        let Some(mut harness) = interrupted(2, batches) else { break };
        let log = std::mem::take(&mut harness.log);
        let next = harness.machine.applied().position.unwrap().index.get() as usize + 1;
        harness.log = log[..next].to_vec();
        for (index, entry) in log.into_iter().enumerate().skip(next) {
            harness.enter(entry);
            if index % 3 == 0 {
                harness.checkpoint().unwrap();
                harness.crash_and_replay(0);
            }
        }
        assert_eq!(contents(&harness.machine), expected);
    }
}

#[test]
fn the_marker_reaches_the_engine_alone_and_last() {
    /// Notes which batches carry the marker.
    struct Watching(MemoryEngine, parking_lot::Mutex<Vec<(usize, bool)>>);
    impl Engine for Watching {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
            self.0.get(key)
        }
        fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, Error> {
            self.0.scan(scan)
        }
        fn commit(&self, batch: crate::storage::Batch) -> Result<(), Error> {
            let marker = |write: &crate::storage::Write| matches!(write, crate::storage::Write::Put(key, _) if key[..] == b"\0applied"[..]);
            self.1.lock().push((batch.len(), batch.iter().any(marker)));
            self.0.commit(batch)
        }
        fn flush(&self) -> Result<(), Error> {
            self.0.flush()
        }
        fn size_on_disk(&self) -> Result<u64, Error> {
            self.0.size_on_disk()
        }
    }
    let engine = Arc::new(Watching(MemoryEngine::new(), parking_lot::Mutex::default()));
    let mut machine = StateMachine::open(Arc::clone(&engine) as Arc<dyn Engine>, StateConfig::default()).unwrap();
    machine.apply(position(0), &[put("a", "1"), put("b", "2")]).unwrap();
    machine.checkpointer().run().unwrap();
    // Nothing new: nothing written.
    machine.checkpointer().run().unwrap();
    machine.apply_blank(position(1));
    machine.checkpointer().run().unwrap();
    assert_eq!(*engine.1.lock(), [(2, false), (2, false), (1, true), (1, true)]);
    assert_eq!(engine.0.unflushed(), 0);
}

#[test]
fn checkpoint_timing_and_cut_of_entries_do_not_change_the_state() {
    let commands: Vec<Command> = entries()
        .into_iter()
        .filter_map(|entry| if let Entry::Commands(commands) = entry { Some(commands) } else { None })
        .flatten()
        .collect();
    let run = |per_entry: usize, checkpoint_every: usize| {
        let mut harness = Harness::new();
        for (index, chunk) in commands.chunks(per_entry).enumerate() {
            harness.enter(Entry::Commands(chunk.to_vec()));
            if index % checkpoint_every == checkpoint_every - 1 {
                harness.checkpoint().unwrap();
            }
        }
        let (applied, records, changes, pages) = contents(&harness.machine);
        // The position is that of the entries; all else must agree.
        (Applied { position: None, ..applied }, records, changes, pages)
    };
    let expected = run(1, usize::MAX);
    for (per_entry, checkpoint_every) in [(1, 1), (1, 3), (4, 1), (7, 2), (1000, 1), (3, usize::MAX)] {
        assert_eq!(run(per_entry, checkpoint_every), expected, "{per_entry} an entry, {checkpoint_every} a checkpoint");
    }
}

#[test]
fn the_hash_of_a_known_history_stays_what_it_is() {
    // A change of this number means that nodes of two versions would disagree.
    assert_eq!(format!("{:032x}", twin().machine.applied().hash), "0d68b760d3c1e1a45ec75d7745bd37c3");
}

#[test]
fn opening_reads_the_marker_and_refuses_a_damaged_one() {
    let harness = twin();
    harness.checkpoint().unwrap();
    let reopened = StateMachine::open(Arc::new(harness.engine.clone()), StateConfig::default()).unwrap();
    assert_eq!(reopened.applied(), harness.machine.applied());
    assert_eq!(reopened.applied().position.unwrap().index, LogIndex::new(entries().len() as u64 - 1));
    let write = crate::storage::Write::Put(Bytes::from_static(b"\0applied"), Bytes::from_static(b"QAPL\x01garbage"));
    harness.engine.commit(vec![write]).unwrap();
    let refused = StateMachine::open(Arc::new(harness.engine.clone()), StateConfig::default()).err();
    assert!(matches!(refused, Some(Error::Damaged(_))));
}

#[test]
fn a_failing_disk_is_an_error_and_never_an_answer() {
    let mut harness = twin();
    harness.checkpoint().unwrap();
    harness.crash(0);
    let reader = harness.machine.reader();
    harness.engine.fail(FaultPoint::Read, 1);
    assert!(reader.view().get(&key("counter")).is_err());
    harness.engine.fail(FaultPoint::Read, 1);
    assert!(reader.view().count(&KeyRange::all()).is_err());
    harness.engine.fail(FaultPoint::Read, 2);
    let pinned = harness.machine.pin();
    assert!(pinned.records().last().unwrap().is_err());
    harness.engine.fail(FaultPoint::Read, 1);
    assert!(harness.machine.apply(position(99), &[put("counter", "x")]).is_err());
}
