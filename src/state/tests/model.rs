//! Random histories against a plain map. Property: whatever was checkpointed, interrupted, lost and replayed in between,
//! every answer, every read of every past revision, the change index, the copy of all records and the hash are those of
//! a map that is cloned at each revision.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::rows::PART_BYTES;
use super::super::txn::KEYS_MAX;
use super::super::*;
use super::harness::{Entry, Harness, command, hash_of, key, records};
use crate::storage::{FaultPoint, Order};
use crate::types::{KeyRange, LeaseId, Revision, Selector};

type Map = BTreeMap<Bytes, (RecordMeta, Bytes)>;

/// The state at every revision, and what changed there.
struct Model {
    states: Vec<Map>,
    records: Vec<VersionedRecord>,
}

impl Model {
    fn new() -> Self {
        Self { states: vec![Map::new()], records: Vec::new() }
    }

    fn apply(&mut self, txn: &Txn) -> Outcome {
        let state = self.states.last().unwrap().clone();
        let (revision, next) = (self.revision(), self.revision().next());
        let succeeded = txn.compares.iter().all(|compare| holds(&state, compare));
        let (mut work, mut touched) = (state, BTreeMap::new());
        let (mut responses, mut passed) = (Vec::new(), 0);
        for operation in if succeeded { &txn.success } else { &txn.failure } {
            if let TxnOp::Get { selector: Selector::Range(range), .. }
            | TxnOp::Delete { selector: Selector::Range(range) } = operation
            {
                let keys: BTreeSet<&Bytes> = work.keys().chain(touched.keys()).collect();
                passed += keys.into_iter().filter(|key| range.contains(key)).count();
                if passed > KEYS_MAX {
                    return Err(Rejection::TooManyKeys { limit: KEYS_MAX as u64 });
                }
            }
            responses.push(match operation {
                TxnOp::Put { key, value, lease } => {
                    let meta = match work.get(key.as_bytes()) {
                        Some((meta, _)) if meta.mod_revision == next => RecordMeta { lease: *lease, ..*meta },
                        Some((meta, _)) => {
                            RecordMeta { mod_revision: next, version: meta.version + 1, lease: *lease, ..*meta }
                        }
                        None => RecordMeta { create_revision: next, mod_revision: next, version: 1, lease: *lease },
                    };
                    work.insert(key.as_bytes().clone(), (meta, value.clone()));
                    touched.insert(key.as_bytes().clone(), ());
                    OpReply::Put { key: key.clone(), meta }
                }
                TxnOp::Get { selector, limit, keys_only } => {
                    let found = select(&work, selector);
                    let mut records: Vec<_> =
                        found.iter().take(*limit as usize).map(|key| record(&work, key)).collect();
                    if *keys_only {
                        records.iter_mut().for_each(|record| record.value = Bytes::new());
                    }
                    OpReply::Get { records, count: found.len() as u64, keys_only: *keys_only }
                }
                TxnOp::Delete { selector } => {
                    let found = select(&work, selector);
                    for key in &found {
                        work.remove(key);
                        touched.insert(key.clone(), ());
                    }
                    OpReply::Delete { deleted: found.len() as u64 }
                }
            });
        }
        if touched.is_empty() {
            return Ok(Reply::Txn(TxnReply { succeeded, revision, responses }));
        }
        for (sub, name) in (0..).zip(touched.into_keys()) {
            let change = match work.get(&name) {
                Some((RecordMeta { create_revision, version, lease, .. }, value)) => Change::Put {
                    create_revision: *create_revision,
                    version: *version,
                    lease: *lease,
                    value: value.clone(),
                },
                None => Change::Delete,
            };
            self.records.push(VersionedRecord { key: key(name), revision: next, sub, change });
        }
        self.states.push(work);
        Ok(Reply::Txn(TxnReply { succeeded, revision: next, responses }))
    }

    fn revision(&self) -> Revision {
        Revision::new(self.states.len() as u64 - 1)
    }
}

fn holds(state: &Map, compare: &Compare) -> bool {
    let found = state.get(compare.key.as_bytes());
    let meta = found.map_or(RecordMeta::default(), |(meta, _)| *meta);
    let ordering = match &compare.target {
        CompareTarget::Value(operand) => match found {
            Some((_, value)) => value[..].cmp(&operand[..]),
            None => return false,
        },
        CompareTarget::Version(operand) => meta.version.cmp(operand),
        CompareTarget::CreateRevision(operand) => meta.create_revision.cmp(operand),
        CompareTarget::ModRevision(operand) => meta.mod_revision.cmp(operand),
        CompareTarget::Lease(operand) => meta.lease.cmp(operand),
    };
    match compare.operator {
        CompareOperator::Equal => ordering.is_eq(),
        CompareOperator::NotEqual => ordering.is_ne(),
        CompareOperator::Less => ordering.is_lt(),
        CompareOperator::Greater => ordering.is_gt(),
        CompareOperator::LessOrEqual => ordering.is_le(),
        CompareOperator::GreaterOrEqual => ordering.is_ge(),
    }
}

fn select(state: &Map, selector: &Selector) -> Vec<Bytes> {
    let wanted = |key: &Bytes| match selector {
        Selector::Key(wanted) => wanted.as_bytes() == key,
        Selector::Range(range) => range.contains(key),
    };
    state.keys().filter(|key| wanted(key)).cloned().collect()
}

fn record(state: &Map, name: &Bytes) -> Record {
    let (meta, value) = &state[name];
    Record { key: key(name), value: value.clone(), meta: *meta }
}

/// What happens to the machine.
#[derive(Debug, Clone)]
enum Step {
    /// One log entry.
    Entry(Vec<Txn>),
    Blank,
    Membership(u8),
    Checkpoint,
    /// The disk fails at the nth batch of a checkpoint, the power goes with some of the batches kept, the log is replayed.
    Interrupted {
        batch: u64,
        keep: usize,
    },
    /// The disk fails in the flush.
    FlushFails {
        keep: usize,
    },
    /// The power goes between two checkpoints.
    Crash,
    /// A copy takes the machine's place.
    Restore,
}

/// Few keys, so that they meet; with the bytes that an encoding might get wrong.
fn keys() -> impl Strategy<Value = Bytes> {
    prop::sample::select(
        [&b"a"[..], b"a\0", b"a\0\0", b"a\0\xFF", b"a\xFF", b"ab", b"b", b"\0", b"\xFF", b"\xFF\xFF", b"c", b"d"]
            .map(Bytes::from_static)
            .to_vec(),
    )
}

fn ranges() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        1 => Just(KeyRange::all()),
        1 => keys().prop_map(|key| KeyRange::prefix(key).unwrap()),
        3 => (keys(), prop::option::of(keys())).prop_map(|(start, end)| {
            KeyRange::new(start.clone(), end.clone()).unwrap_or_else(|_| KeyRange::new(end.unwrap(), None).unwrap())
        }),
    ]
}

fn selectors() -> impl Strategy<Value = Selector> {
    prop_oneof![keys().prop_map(|name| Selector::Key(key(name))), ranges().prop_map(Selector::Range)]
}

/// Most are short; some stand apart from their records, in one part or more.
fn values() -> impl Strategy<Value = Bytes> {
    let len = prop_oneof![8 => 0..4usize, 1 => PART_BYTES - 1..2 * PART_BYTES + 2];
    len.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len)).prop_map(Bytes::from)
}

fn operations() -> impl Strategy<Value = TxnOp> {
    prop_oneof![
        5 => (keys(), values(), 0..3u64)
            .prop_map(|(name, value, lease)| TxnOp::Put { key: key(name), value, lease: LeaseId::new(lease) }),
        2 => (selectors(), 1..5u32, any::<bool>())
            .prop_map(|(selector, limit, keys_only)| TxnOp::Get { selector, limit, keys_only }),
        2 => selectors().prop_map(|selector| TxnOp::Delete { selector }),
    ]
}

fn compares() -> impl Strategy<Value = Compare> {
    use CompareOperator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let target = prop_oneof![
        values().prop_map(CompareTarget::Value),
        (0..4u64).prop_map(CompareTarget::Version),
        (0..9u64).prop_map(|n| CompareTarget::CreateRevision(Revision::new(n))),
        (0..9u64).prop_map(|n| CompareTarget::ModRevision(Revision::new(n))),
        (0..3u64).prop_map(|n| CompareTarget::Lease(LeaseId::new(n))),
    ];
    let operator = prop::sample::select(vec![Equal, NotEqual, Less, Greater, LessOrEqual, GreaterOrEqual]);
    (keys(), target, operator).prop_map(|(name, target, operator)| Compare { key: key(name), target, operator })
}

fn txns() -> impl Strategy<Value = Txn> {
    let operations = || prop::collection::vec(operations(), 0..5);
    (prop::collection::vec(compares(), 0..2), operations(), operations()).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => prop::collection::vec(txns(), 0..4).prop_map(Step::Entry),
        1 => Just(Step::Blank),
        1 => any::<u8>().prop_map(Step::Membership),
        2 => Just(Step::Checkpoint),
        3 => (1..12u64, 0..12usize).prop_map(|(batch, keep)| Step::Interrupted { batch, keep }),
        1 => (0..30usize).prop_map(|keep| Step::FlushFails { keep }),
        1 => Just(Step::Crash),
        1 => Just(Step::Restore),
    ]
}

/// A page that the model makes.
fn page(state: &Map, read: &RangeRead) -> Page {
    let mut names = select(state, &Selector::Range(read.range.clone()));
    if read.order == Order::Descending {
        names.reverse();
    }
    let mut page = Page { records: Vec::new(), more: false };
    let mut bytes = 0;
    for name in names {
        if page.records.len() >= read.limit || bytes > read.bytes_max {
            page.more = true;
            break;
        }
        let mut record = record(state, &name);
        if read.keys_only {
            record.value = Bytes::new();
        }
        bytes += name.len() + record.value.len();
        page.records.push(record);
    }
    page
}

fn check_view(view: &StateView, state: &Map, reads: &[RangeRead]) -> Result<(), TestCaseError> {
    for name in state.keys().map(key).chain([key("absent"), key("a"), key("b"), key("\0")]) {
        let expected = state.contains_key(name.as_bytes()).then(|| record(state, name.as_bytes()));
        prop_assert_eq!(view.get(&name).unwrap(), expected, "at {}", view.revision());
    }
    for read in reads {
        prop_assert_eq!(view.range(read).unwrap(), page(state, read), "{:?} at {}", read, view.revision());
        let count = select(state, &Selector::Range(read.range.clone())).len() as u64;
        prop_assert_eq!(view.count(&read.range).unwrap(), count);
    }
    Ok(())
}

fn check(
    harness: &Harness,
    model: &Model,
    reads: &[RangeRead],
    past: &[prop::sample::Index],
) -> Result<(), TestCaseError> {
    let reader = harness.machine.reader();
    let newest = model.revision();
    prop_assert_eq!(reader.view().revision(), newest);
    prop_assert_eq!(harness.machine.applied(), &*reader.applied());
    for revision in past.iter().map(|index| index.index(model.states.len())).chain([model.states.len() - 1]) {
        check_view(&harness.view_at(revision as u64), &model.states[revision], reads)?;
    }
    prop_assert_eq!(reader.view_at(newest.next()).unwrap_err(), ViewError::Future { requested: newest.next(), newest });
    prop_assert_eq!(&reader.changes(Revision::ZERO, newest.next(), usize::MAX).unwrap(), &model.records);
    let pinned = harness.machine.pin();
    let found = records(&pinned);
    prop_assert_eq!(&found, &model.records);
    prop_assert_eq!(pinned.keys().unwrap(), model.states.last().unwrap().len() as u64);
    prop_assert_eq!(hash_of(&found), pinned.applied().hash);
    Ok(())
}

fn run(harness: &mut Harness, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Entry(txns) => {
            let expected: Vec<Outcome> = txns.iter().map(|txn| model.apply(txn)).collect();
            prop_assert_eq!(harness.enter(Entry::Commands(txns.into_iter().map(command).collect())), expected);
        }
        Step::Blank => drop(harness.enter(Entry::Blank)),
        Step::Membership(byte) => drop(harness.enter(Entry::Membership(Bytes::copy_from_slice(&[byte])))),
        Step::Checkpoint => {
            let report = harness.checkpoint().unwrap();
            prop_assert_eq!(&*report.applied, harness.machine.applied());
            prop_assert_eq!(harness.machine.reader().overlay_bytes(), 0);
        }
        Step::Interrupted { batch, keep } => {
            harness.engine.fail(FaultPoint::Commit, batch);
            let _ = harness.checkpoint();
            harness.crash_and_replay(keep);
        }
        Step::FlushFails { keep } => {
            harness.engine.fail(FaultPoint::Flush, 1);
            let _ = harness.checkpoint();
            harness.crash_and_replay(keep);
        }
        Step::Crash => harness.crash_and_replay(0),
        Step::Restore => harness.restore(),
    }
    Ok(())
}

fn reads() -> impl Strategy<Value = RangeRead> {
    let order = prop_oneof![Just(Order::Ascending), Just(Order::Descending)];
    let bytes_max = prop_oneof![Just(usize::MAX), 0..12usize];
    let limit = prop_oneof![Just(usize::MAX), 0..7usize];
    (ranges(), order, limit, bytes_max, any::<bool>())
        .prop_map(|(range, order, limit, bytes_max, keys_only)| RangeRead { range, order, limit, bytes_max, keys_only })
}

proptest! {
    #[test]
    fn random_histories_read_like_a_map_cloned_at_each_revision(
        script in prop::collection::vec(
            (steps(), prop::collection::vec(reads(), 1..4), prop::collection::vec(any::<prop::sample::Index>(), 2)),
            1..40,
        ),
    ) {
        let (mut harness, mut model) = (Harness::new(), Model::new());
        // Views taken along the way: they must stay what they were.
        let mut held: Vec<(StateView, usize)> = Vec::new();
        for (step, reads, past) in script {
            let replaced = matches!(step, Step::Interrupted { .. } | Step::FlushFails { .. } | Step::Crash | Step::Restore);
            run(&mut harness, &mut model, step)?;
            if replaced {
                held.clear();
            }
            check(&harness, &model, &reads, &past)?;
            held.push((harness.machine.reader().view(), model.states.len() - 1));
            for (view, revision) in &held {
                check_view(view, &model.states[*revision], &reads)?;
            }
        }
    }

    #[test]
    fn changes_are_paged_by_whole_revisions(
        txns in prop::collection::vec(txns(), 1..30), checkpoints in any::<[bool; 30]>(), limit in 1..9usize,
    ) {
        let (mut harness, mut model) = (Harness::new(), Model::new());
        for (txn, checkpoint) in txns.into_iter().zip(checkpoints) {
            run(&mut harness, &mut model, Step::Entry(vec![txn]))?;
            if checkpoint {
                harness.checkpoint().unwrap();
            }
        }
        let reader = harness.machine.reader();
        let (mut from, mut all) = (Revision::ZERO, Vec::new());
        loop {
            let page = reader.changes(from, Revision::new(u64::MAX), limit).unwrap();
            let Some(last) = page.last() else { break };
            let (last, before_last) = (last.revision, page.iter().filter(|record| record.revision < last.revision).count());
            prop_assert!(before_last < limit, "no more than the limit needs");
            from = last.next();
            all.extend(page);
        }
        prop_assert_eq!(all, model.records);
    }
}
