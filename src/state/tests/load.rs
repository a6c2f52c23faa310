//! Loading a copy, and refusing what is not one.

use std::convert::Infallible;

use super::super::*;
use super::harness::{Entry, Harness, delete, put, records};
use crate::storage::{Engine, MemoryEngine};
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

#[test]
fn a_loaded_engine_is_the_same_as_a_checkpointed_one() {
    let source = source();
    source.checkpoint().unwrap();
    let pinned = source.machine.pin();
    let engine = try_load(pinned.applied(), records(&pinned)).unwrap();
    assert_eq!(engine.unflushed(), 0);
    let all = |engine: &MemoryEngine| {
        let (start, end) = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let order = crate::storage::Order::Ascending;
        engine.scan(crate::storage::Scan { start, end, order, limit: usize::MAX, bytes_max: usize::MAX }).unwrap()
    };
    assert_eq!(all(&engine), all(&source.engine));
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
fn records_out_of_order_or_twice_are_refused() {
    let pinned = source().machine.pin();
    let good = records(&pinned);
    for at in 1..good.len() {
        let mut swapped = good.clone();
        swapped.swap(at - 1, at);
        assert!(matches!(try_load(pinned.applied(), swapped), Err(LoadError::OutOfOrder { .. })));
        let mut twice = good.clone();
        twice.insert(at, good[at].clone());
        assert!(matches!(try_load(pinned.applied(), twice), Err(LoadError::OutOfOrder { .. })));
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
