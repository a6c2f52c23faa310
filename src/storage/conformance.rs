//! What every [`Engine`] must do, as a suite that runs on any of them.
//!
//! [`check`] is the whole contract; the parts can be called alone. They panic with what was expected and what was found,
//! so they belong into tests, but they are part of the library: an engine that lives elsewhere is judged by the same suite.
//! Leaves out: crashes, which need a process to kill or a model of one, and a comparison with a model on random histories.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::engine::{BATCH_OPERATIONS_MAX, Engine, Error, Order, Scan, Write};

/// Something an engine can be opened on, again and again.
pub trait Medium {
    /// The engine under test.
    type Engine: Engine;

    /// Opens the engine on what was left here; the first time it is empty. Never called while another one is open.
    ///
    /// # Errors
    /// What opening the engine returns.
    fn open(&self) -> Result<Self::Engine, Error>;
}

/// Keys in the check of pinned scans; each gets a new version in every round.
const PINNED_KEYS: u64 = 300;
/// Rounds that the writer of that check makes: each is a version of every key, a round of deletes and some flushes.
const PINNED_ROUNDS: u64 = 40;
/// Pairs in a page of that check: small enough that a leaf is left and entered again many times.
const PINNED_PAGE: usize = 37;

/// Runs every part, each on a fresh medium.
///
/// # Panics
/// If the engine breaks the contract.
pub fn check<M: Medium>(fresh: impl Fn() -> M) {
    keys_are_put_overwritten_and_deleted(&fresh());
    the_last_write_of_a_key_in_a_batch_wins(&fresh());
    scans_honour_bounds_order_and_limit(&fresh());
    scans_stop_behind_the_pair_that_passes_the_bytes(&fresh());
    a_closed_engine_reopens_with_every_batch(&fresh());
    emptied_ranges_stay_empty_and_can_be_filled_again(&fresh());
    large_values_come_back_whole(&fresh());
    an_oversized_batch_is_refused(&fresh());
    a_scan_at_a_pinned_revision_is_exact(&fresh());
    stable_keys_are_seen_while_others_come_and_go(&fresh());
}

fn open<M: Medium>(medium: &M) -> M::Engine {
    medium.open().expect("the engine opens")
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(name: &str, value: &str) -> Write {
    Write::Put(key(name), key(value))
}

fn delete(name: &str) -> Write {
    Write::Delete(key(name))
}

fn everything(order: Order) -> Scan<'static> {
    Scan { start: Bound::Unbounded, end: Bound::Unbounded, order, limit: usize::MAX, bytes_max: usize::MAX }
}

fn keys_of(pairs: Vec<(Bytes, Bytes)>) -> Vec<String> {
    pairs.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect()
}

/// Put, overwrite, delete, delete again, the empty value and the empty batch.
///
/// # Panics
/// If the engine breaks the contract.
pub fn keys_are_put_overwritten_and_deleted<M: Medium>(medium: &M) {
    let engine = open(medium);
    assert_eq!(engine.get(b"a").expect("get"), None);
    engine.commit(vec![put("a", "1"), put("b", "2")]).expect("commit");
    assert_eq!(engine.get(b"a").expect("get"), Some(key("1")));
    engine.commit(vec![put("a", "3"), delete("b"), delete("missing")]).expect("commit");
    assert_eq!(engine.get(b"a").expect("get"), Some(key("3")));
    assert_eq!(engine.get(b"b").expect("get"), None);
    engine.commit(vec![delete("b"), put("empty", "")]).expect("commit");
    assert_eq!(engine.get(b"empty").expect("get"), Some(Bytes::new()));
    engine.commit(Vec::new()).expect("an empty batch is no mistake");
    assert_eq!(keys_of(engine.scan(everything(Order::Ascending)).expect("scan")), ["a", "empty"]);
}

/// Several writes of one key in one batch act in their order.
///
/// # Panics
/// If the engine breaks the contract.
pub fn the_last_write_of_a_key_in_a_batch_wins<M: Medium>(medium: &M) {
    let engine = open(medium);
    engine
        .commit(vec![put("a", "1"), delete("a"), put("b", "1"), put("b", "2"), delete("c"), put("c", "3")])
        .expect("commit");
    assert_eq!(engine.get(b"a").expect("get"), None);
    assert_eq!(engine.get(b"b").expect("get"), Some(key("2")));
    assert_eq!(engine.get(b"c").expect("get"), Some(key("3")));
}

/// Every kind of bound on either side, on keys and between them, in both orders, with limits; also bounds that enclose
/// nothing. Checked against the same range of a sorted list.
///
/// # Panics
/// If the engine breaks the contract.
pub fn scans_honour_bounds_order_and_limit<M: Medium>(medium: &M) {
    const KEYS: u32 = 700;
    let engine = open(medium);
    let model: BTreeMap<Bytes, Bytes> =
        (0..KEYS).map(|number| (key(&format!("k{:04}", number * 2)), key(&format!("v{number}")))).collect();
    for chunk in model.iter().collect::<Vec<_>>().chunks(BATCH_OPERATIONS_MAX) {
        let batch = chunk.iter().map(|(key, value)| Write::Put((*key).clone(), (*value).clone())).collect();
        engine.commit(batch).expect("commit");
    }
    let edges = ["", "j", "k0000", "k0001", "k0256", "k0257", "k0258", "k0600", "k1397", "k1398", "k1399", "z"];
    let bounds: Vec<Bound<&[u8]>> = edges
        .iter()
        .flat_map(|edge| [Bound::Included(edge.as_bytes()), Bound::Excluded(edge.as_bytes())])
        .chain([Bound::Unbounded])
        .collect();
    for &start in &bounds {
        for &end in &bounds {
            for limit in [0, 1, 3, 200, usize::MAX] {
                for order in [Order::Ascending, Order::Descending] {
                    let found = engine.scan(Scan { start, end, order, limit, bytes_max: usize::MAX }).expect("scan");
                    let inside = model.iter().filter(|(key, _)| is_inside(key, start, end));
                    let pairs = inside.map(|(key, value)| (key.clone(), value.clone()));
                    let expected: Vec<_> = match order {
                        Order::Ascending => pairs.take(limit).collect(),
                        Order::Descending => pairs.rev().take(limit).collect(),
                    };
                    assert_eq!(found, expected, "{start:?} to {end:?}, {order:?}, at most {limit}");
                }
            }
        }
    }
}

fn is_inside(key: &[u8], start: Bound<&[u8]>, end: Bound<&[u8]>) -> bool {
    let above = match start {
        Bound::Unbounded => true,
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
    };
    let below = match end {
        Bound::Unbounded => true,
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
    };
    above && below
}

/// `bytes_max` ends a scan behind the pair that takes the sum over it, and never before the first pair.
///
/// # Panics
/// If the engine breaks the contract.
pub fn scans_stop_behind_the_pair_that_passes_the_bytes<M: Medium>(medium: &M) {
    let engine = open(medium);
    // Ten bytes a pair.
    engine.commit(["a", "b", "c", "d"].map(|name| put(name, "123456789")).to_vec()).expect("commit");
    for (bytes_max, expected) in [(0, 1), (9, 1), (10, 2), (19, 2), (20, 3), (39, 4), (usize::MAX, 4)] {
        for order in [Order::Ascending, Order::Descending] {
            let found = engine.scan(Scan { bytes_max, ..everything(order) }).expect("scan");
            assert_eq!(found.len(), expected, "at most {bytes_max} bytes, {order:?}");
        }
    }
}

/// Flushed and unflushed batches are all there after a clean close, whole, over several openings; the size on disk is
/// known.
///
/// # Panics
/// If the engine breaks the contract.
pub fn a_closed_engine_reopens_with_every_batch<M: Medium>(medium: &M) {
    let mut expected = Vec::new();
    for opening in 0..3 {
        let engine = open(medium);
        assert_eq!(keys_of(engine.scan(everything(Order::Ascending)).expect("scan")), expected, "opening {opening}");
        for round in 0..4 {
            let names: Vec<String> = (0..100).map(|number| format!("{opening}-{round}-{number:03}")).collect();
            engine.commit(names.iter().map(|name| put(name, name)).collect()).expect("commit");
            expected.extend(names);
            if round == 1 {
                engine.flush().expect("flush");
            }
        }
        assert!(engine.size_on_disk().expect("size") > 0);
    }
    let engine = open(medium);
    assert_eq!(keys_of(engine.scan(everything(Order::Ascending)).expect("scan")), expected);
}

/// Deleting everything, from both ends, leaves nothing to scan, also after reopening, and the room can be used again.
///
/// # Panics
/// If the engine breaks the contract.
pub fn emptied_ranges_stay_empty_and_can_be_filled_again<M: Medium>(medium: &M) {
    const KEYS: usize = 3_000;
    let names: Vec<String> = (0..KEYS).map(|number| format!("n{number:05}")).collect();
    for round in 0..3 {
        let engine = open(medium);
        for chunk in names.chunks(BATCH_OPERATIONS_MAX) {
            engine.commit(chunk.iter().map(|name| put(name, "x")).collect()).expect("commit");
        }
        engine.flush().expect("flush");
        let mut doomed: Vec<&String> = names.iter().collect();
        if round % 2 == 1 {
            doomed.reverse();
        }
        for (count, chunk) in doomed.chunks(BATCH_OPERATIONS_MAX).enumerate() {
            engine.commit(chunk.iter().map(|name| delete(name)).collect()).expect("commit");
            let left = KEYS.saturating_sub((count + 1) * BATCH_OPERATIONS_MAX);
            for order in [Order::Ascending, Order::Descending] {
                assert_eq!(engine.scan(everything(order)).expect("scan").len(), left, "round {round}, {order:?}");
            }
        }
        drop(engine);
        let engine = open(medium);
        assert!(engine.scan(everything(Order::Descending)).expect("scan").is_empty(), "round {round}");
    }
}

/// Values from nothing to some megabytes survive a reopening byte by byte.
///
/// # Panics
/// If the engine breaks the contract.
pub fn large_values_come_back_whole<M: Medium>(medium: &M) {
    let value_of = |length: usize| Bytes::from((0..length).map(|at| (at * 31 % 251) as u8).collect::<Vec<_>>());
    let lengths = [0, 1, 22, 255, 256, 65_535, 65_536, 1 << 20, 4 << 20];
    let engine = open(medium);
    for length in lengths {
        engine.commit(vec![Write::Put(key(&format!("{length:08}")), value_of(length))]).expect("commit");
    }
    drop(engine);
    let engine = open(medium);
    for length in lengths {
        let found = engine.get(format!("{length:08}").as_bytes()).expect("get");
        assert!(found == Some(value_of(length)), "the value of {length} bytes differs");
    }
}

/// A batch of the limit is taken, one above is refused without effect, and the engine goes on.
///
/// # Panics
/// If the engine breaks the contract.
pub fn an_oversized_batch_is_refused<M: Medium>(medium: &M) {
    let engine = open(medium);
    let batch_of = |size: usize| (0..size).map(|number| put(&format!("{number:04}"), "x")).collect::<Vec<_>>();
    let refused = engine.commit(batch_of(BATCH_OPERATIONS_MAX + 1));
    assert!(matches!(refused, Err(Error::BatchTooLarge { operations }) if operations == BATCH_OPERATIONS_MAX + 1));
    assert!(engine.scan(everything(Order::Ascending)).expect("scan").is_empty());
    engine.commit(batch_of(BATCH_OPERATIONS_MAX)).expect("commit");
    assert_eq!(engine.scan(everything(Order::Ascending)).expect("scan").len(), BATCH_OPERATIONS_MAX);
}

/// `(key, revision)`, ordered by key, then revision.
fn versioned(key: u64, revision: u64) -> Bytes {
    let mut bytes = key.to_be_bytes().to_vec();
    bytes.extend_from_slice(&revision.to_be_bytes());
    Bytes::from(bytes)
}

fn parts(bytes: &[u8]) -> (u64, u64) {
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("the suite wrote 16 bytes"));
    (number(0), number(8))
}

/// Reads the whole engine in small pages, from whichever end.
fn paged(engine: &impl Engine, order: Order) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut last: Option<Bytes> = None;
    loop {
        let (start, end) = match (&last, order) {
            (None, _) => (Bound::Unbounded, Bound::Unbounded),
            (Some(last), Order::Ascending) => (Bound::Excluded(&last[..]), Bound::Unbounded),
            (Some(last), Order::Descending) => (Bound::Unbounded, Bound::Excluded(&last[..])),
        };
        let page =
            engine.scan(Scan { start, end, order, limit: PINNED_PAGE, bytes_max: usize::MAX }).expect("scan a page");
        found.extend(page.iter().map(|(key, _)| parts(key)));
        match page.last() {
            Some((key, _)) if page.len() == PINNED_PAGE => last = Some(key.clone()),
            _ => break,
        }
    }
    if order == Order::Descending {
        found.reverse();
    }
    found
}

/// The reason for versioned records: while a thread adds newer versions between the older ones and flushes, a paged scan
/// returns exactly the versions up to the revision that was complete when it began, and then what is newer.
///
/// # Panics
/// If the engine breaks the contract.
pub fn a_scan_at_a_pinned_revision_is_exact<M: Medium>(medium: &M) {
    let engine = open(medium);
    let complete = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for revision in 1..=PINNED_ROUNDS {
                for first in (0..PINNED_KEYS).step_by(100) {
                    let keys = first..PINNED_KEYS.min(first + 100);
                    let value = Bytes::from(vec![b'v'; 100]);
                    let batch = keys.map(|key| Write::Put(versioned(key, revision), value.clone())).collect();
                    engine.commit(batch).expect("commit");
                }
                complete.store(revision, Ordering::Release);
                if revision % 4 == 0 {
                    engine.flush().expect("flush");
                }
            }
            done.store(true, Ordering::Release);
        });
        for order in [Order::Ascending, Order::Descending] {
            let (engine, complete, done) = (&engine, &complete, &done);
            scope.spawn(move || {
                loop {
                    let last = done.load(Ordering::Acquire);
                    let pinned = complete.load(Ordering::Acquire);
                    let mut found = paged(engine, order);
                    found.retain(|&(_, revision)| revision <= pinned);
                    let expected = (0..PINNED_KEYS).flat_map(|key| (1..=pinned).map(move |revision| (key, revision)));
                    assert!(found.iter().copied().eq(expected), "{order:?} scan at revision {pinned} is not exact");
                    if last {
                        break;
                    }
                }
            });
        }
    });
}

/// While whole ranges between them are filled and emptied, keys that stay are seen by every scan and every look-up.
///
/// # Panics
/// If the engine breaks the contract.
pub fn stable_keys_are_seen_while_others_come_and_go<M: Medium>(medium: &M) {
    const STABLE: u64 = 40;
    const BETWEEN: u64 = 400;
    let engine = open(medium);
    let batch = (0..STABLE).map(|key| Write::Put(versioned(key, 0), Bytes::from_static(b"stable"))).collect();
    engine.commit(batch).expect("commit");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..PINNED_ROUNDS {
                let key = round * 7 % STABLE;
                let value = Bytes::from(vec![b'v'; 50]);
                let batch = (1..=BETWEEN).map(|number| Write::Put(versioned(key, number), value.clone())).collect();
                engine.commit(batch).expect("commit");
                if round % 5 == 0 {
                    engine.flush().expect("flush");
                }
                // Half of the rounds empty what the round before filled, so that some deletes meet flushed leaves.
                for doomed in [key, (round / 2) * 7 % STABLE] {
                    let batch = (1..=BETWEEN).map(|number| Write::Delete(versioned(doomed, number))).collect();
                    engine.commit(batch).expect("commit");
                }
            }
            done.store(true, Ordering::Release);
        });
        for order in [Order::Ascending, Order::Descending] {
            let (engine, done) = (&engine, &done);
            scope.spawn(move || {
                loop {
                    let last = done.load(Ordering::Acquire);
                    let mut found = paged(engine, order);
                    found.retain(|&(_, number)| number == 0);
                    let expected = (0..STABLE).map(|key| (key, 0));
                    assert!(found.iter().copied().eq(expected), "a {order:?} scan missed a stable key: {found:?}");
                    for key in 0..STABLE {
                        let value = engine.get(&versioned(key, 0)).expect("get");
                        assert_eq!(value.as_deref(), Some(&b"stable"[..]), "a look-up missed stable key {key}");
                    }
                    if last {
                        break;
                    }
                }
            });
        }
    });
    assert_eq!(paged(&engine, Order::Ascending).len() as u64, STABLE, "an emptied range kept a key");
}
