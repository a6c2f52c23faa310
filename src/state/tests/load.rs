//! Loading a copy, and refusing what is not one.

use std::convert::Infallible;
use std::ops::Bound;

use bytes::Bytes;

use super::super::*;
use super::harness::{Entry, Harness, delete, put, records};
use crate::storage::{Engine, FaultPoint, MemoryEngine, Order, Scan};
use crate::types::Revision;

fn source() -> Harness {
    let mut harness = Harness::new();
    for round in 0..5 {
        harness.done(put(format!("k{round}"), "v"));
        harness.done(put("again", format!("{round}")));
        harness.enter(Entry::Commands(vec![delete(format!("k{}", round / 2)), put(format!("z{round}"), "w")]));
        if round == 2 {
            harness.checkpoint().unwrap();
        }
    }
    harness
}

fn try_load(applied: &Applied, records: Vec<VersionedRecord>) -> Result<MemoryEngine, LoadError<Infallible>> {
    let engine = MemoryEngine::new();
    let result = load(&engine, applied, records.into_iter().map(Ok));
    if result.is_err() {
        assert_eq!(engine.get(b"\0applied").unwrap(), None, "a refused load must leave no marker");
    }
    result.map(|()| engine)
}

fn everything(engine: &MemoryEngine) -> Vec<(Bytes, Bytes)> {
    let (start, end, order) = (Bound::Unbounded, Bound::Unbounded, Order::Ascending);
    engine.scan(Scan { start, end, order, limit: usize::MAX, bytes_max: usize::MAX }).unwrap()
}

#[test]
fn a_loaded_engine_is_the_same_as_a_checkpointed_one() {
    let source = source();
    source.checkpoint().unwrap();
    let pinned = source.machine.pin();
    let engine = try_load(pinned.applied(), records(&pinned)).unwrap();
    assert_eq!(engine.unflushed(), 0);
    assert_eq!(everything(&engine), everything(&source.engine));
}

#[test]
fn a_pinned_state_stays_what_it_was() {
    let mut harness = source();
    let pinned = harness.machine.pin();
    let before = records(&pinned);
    for round in 0..9 {
        harness.done(put("again", "later"));
        harness.done(delete(format!("z{round}")));
        if round % 3 == 0 {
            harness.checkpoint().unwrap();
        }
    }
    assert_eq!(records(&pinned), before);
    assert_ne!(records(&harness.machine.pin()), before);
}

#[test]
fn records_that_do_not_make_up_the_state_are_refused() {
    let pinned = source().machine.pin();
    let (applied, good) = (pinned.applied().clone(), records(&pinned));
    let mismatch = |result| assert!(matches!(result, Err(LoadError::Mismatch { .. })));
    for at in 0..good.len() {
        let mut missing = good.clone();
        missing.remove(at);
        mismatch(try_load(&applied, missing));
        let mut changed = good.clone();
        changed[at].sub += 1;
        mismatch(try_load(&applied, changed));
    }
    mismatch(try_load(&Applied { revision: applied.revision.next(), ..applied.clone() }, good.clone()));
    mismatch(try_load(&Applied { revision: Revision::new(1), ..applied }, good));
}

#[test]
fn versions_of_a_key_out_of_order_or_twice_are_refused() {
    let pinned = source().machine.pin();
    let good = records(&pinned);
    let refused = |result| assert!(matches!(result, Err(LoadError::OutOfOrder(_))));
    let mut pairs = 0;
    for at in 0..good.len() {
        let mut twice = good.clone();
        twice.push(good[at].clone());
        refused(try_load(pinned.applied(), twice));
        if let Some(next) = (at + 1..good.len()).find(|next| good[*next].key == good[at].key) {
            let mut swapped = good.clone();
            swapped.swap(at, next);
            refused(try_load(pinned.applied(), swapped));
            pairs += 1;
        }
    }
    assert!(pairs > 5, "only {pairs} keys have a history");
}

#[test]
fn records_by_key_make_the_same_engine_as_records_by_revision() {
    let pinned = source().machine.pin();
    let by_revision = records(&pinned);
    let mut by_key = by_revision.clone();
    by_key.sort_by(|a, b| (&a.key, a.revision).cmp(&(&b.key, b.revision)));
    assert_ne!(by_key, by_revision);
    let engines = [by_key, by_revision].map(|records| everything(&try_load(pinned.applied(), records).unwrap()));
    assert_eq!(engines[0], engines[1]);
}

/// Pointers are written behind some twenty keys, so a key comes again when its pointer is held back, and when it is written.
#[test]
fn keys_that_come_again_and_again_keep_their_history() {
    let mut source = Harness::new();
    for round in 0..6 {
        for key in (0..60).filter(|key| key % (round + 1) == 0) {
            source.done(put(format!("key-{key:03}"), format!("{round}").repeat(60)));
        }
    }
    source.checkpoint().unwrap();
    let pinned = source.machine.pin();
    let mut by_key = records(&pinned);
    by_key.sort_by(|a, b| (&a.key, a.revision).cmp(&(&b.key, b.revision)));
    for order in [records(&pinned), by_key] {
        let engine = try_load(pinned.applied(), order).unwrap();
        assert_eq!(everything(&engine), everything(&source.engine));
    }
}

#[test]
fn an_engine_that_holds_something_and_a_source_that_fails_are_refused() {
    let source = source();
    source.checkpoint().unwrap();
    let pinned = source.machine.pin();
    assert!(matches!(load(&source.engine, pinned.applied(), pinned.records()), Err(LoadError::NotEmpty)));
    let failing = pinned.records().take(3).map(Result::unwrap).map(Ok).chain([Err("torn")]);
    let engine = MemoryEngine::new();
    assert!(matches!(load(&engine, pinned.applied(), failing), Err(LoadError::Records("torn"))));
    assert_eq!(engine.get(b"\0applied").unwrap(), None);
}

#[test]
fn the_empty_state_is_loaded_too() {
    let engine = try_load(&Applied::default(), Vec::new()).unwrap();
    assert!(engine.get(b"\0applied").unwrap().is_some());
}

#[test]
fn an_engine_that_fails_while_it_is_filled_ends_the_load_and_is_what_is_told() {
    let pinned = source().machine.pin();
    // Enough for more chunks than may wait.
    let many = || records(&pinned).into_iter().chain((0..200).map(later)).map(Ok::<_, Infallible>);
    for nth in [1, 2, 7, 60] {
        let engine = MemoryEngine::new();
        engine.fail(FaultPoint::Commit, nth);
        let refused = load(&engine, pinned.applied(), many()).unwrap_err();
        assert!(matches!(refused, LoadError::Engine(_)), "commit {nth}: {refused}");
    }
    // While it is filled, and in the end.
    for nth in [1, 2] {
        let engine = MemoryEngine::new();
        engine.fail(FaultPoint::Flush, nth);
        let refused = load(&engine, pinned.applied(), pinned.records());
        assert!(matches!(refused, Err(LoadError::Engine(_))), "flush {nth}");
    }
}

/// A record behind all others.
fn later(number: u64) -> VersionedRecord {
    let change = Change::Put {
        create_revision: Revision::new(1_000 + number),
        version: 1,
        lease: crate::types::LeaseId::ZERO,
        value: Bytes::from(vec![0; 100]),
    };
    let (key, revision) = (super::harness::key(format!("later-{number}")), Revision::new(1_000 + number));
    VersionedRecord { key, revision, sub: 0, change }
}

#[test]
fn a_state_that_goes_on_from_a_later_revision_is_the_one_that_its_copy_gives() {
    let mut harness = source();
    let before = harness.machine.applied().clone();
    let kept = records(&harness.machine.pin());
    let skipped = Revision::new(before.revision.get() + 1_000);
    harness.machine.skip_to(before.revision);
    assert_eq!(*harness.machine.applied(), before, "nothing is skipped, so history stays");
    harness.machine.skip_to(skipped);
    harness.machine.publish();
    let pinned = harness.machine.pin();
    let applied = pinned.applied();
    assert_eq!((applied.revision, applied.compacted, applied.hash), (skipped, skipped, before.hash));
    assert_eq!(records(&pinned), kept);
    assert_eq!(pinned.records_from(before.revision).count(), 1);
    harness.checkpoint().unwrap();
    let copy = try_load(applied, kept).unwrap();
    assert_eq!(everything(&copy), everything(&harness.engine));
    assert!(harness.machine.reader().view_at(before.revision).is_err());
    harness.done(put("next", "v"));
    assert_eq!(harness.machine.applied().revision, skipped.next());
}
