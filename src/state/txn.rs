//! What a transaction does: etcd's meaning, worked out on the side before anything changes.
//!
//! Guarantees: all or nothing; operations run in order and each sees what those before it did; comparisons see the state
//! before all of them. All changes share one revision, and a key has one of them: the last put or delete wins, its version
//! rises by one. The work is bounded: in operations, in bytes answered, and in keys passed by ranges; each bound is judged
//! by the replicated state alone, so that all replicas refuse the same. Input that no caller should have let through is a [`Rejection`], never a panic. Leaves out: leases,
//! which a put only notes down.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;

use super::command::{
    Compare, CompareOperator, CompareTarget, OpReply, Record, RecordMeta, Rejection, Txn, TxnOp, TxnReply,
};
use super::overlay::as_slices;
use super::record::{Change, VersionedRecord};
use super::scan::LiveScan;
use super::schema::stored_key;
use super::store::{Live, Store};
use crate::storage::{Error, Order};
use crate::types::limits::{PAGE_RECORDS_MAX, TXN_KEYS_MAX, TXN_OPERATIONS_MAX};
use crate::types::{Key, KeyRange, LeaseId, Revision, Selector};

/// The most bytes of keys and values, with [`REPLY_OVERHEAD_BYTES`] for each key, that the answer of one transaction may
/// hold. Part of the replicated behaviour: every replica must refuse the same transactions.
pub const TXN_REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What each put, delete and record counts for in an answer beside key and value, in bytes.
pub const REPLY_OVERHEAD_BYTES: usize = 64;

/// The most keys that the ranges of a transaction may pass. Tests meet the bound with few keys.
pub(super) const KEYS_MAX: usize = if cfg!(test) { 24 } else { TXN_KEYS_MAX };

/// What a transaction comes to.
#[derive(Debug)]
pub(super) struct Executed {
    pub(super) reply: TxnReply,
    /// What it changes, by key.
    pub(super) records: Vec<VersionedRecord>,
}

/// Why a transaction ends early.
enum Stop {
    Rejected(Rejection),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// Works out a transaction on the state at `current`, the newest revision. Changes nothing.
pub(super) fn execute(store: &Store, txn: &Txn, current: Revision) -> Result<Result<Executed, Rejection>, Error> {
    match run(store, txn, current) {
        Ok(executed) => Ok(Ok(executed)),
        Err(Stop::Rejected(rejection)) => Ok(Err(rejection)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn run(store: &Store, txn: &Txn, current: Revision) -> Result<Executed, Stop> {
    check_form(txn).map_err(|reason| Stop::Rejected(Rejection::Malformed(reason)))?;
    let mut succeeded = true;
    for compare in &txn.compares {
        if !holds(store, compare, current)? {
            succeeded = false;
            break;
        }
    }
    let operations = if succeeded { &txn.success } else { &txn.failure };
    let mut scratch =
        Scratch { store, current, next: current.next(), changes: BTreeMap::new(), reply_bytes: 0, keys_passed: 0 };
    let mut responses = Vec::with_capacity(operations.len());
    for operation in operations {
        responses.push(match operation {
            TxnOp::Put { key, value, lease } => scratch.put(key, value, *lease)?,
            TxnOp::Get { selector, limit, keys_only } => scratch.get(selector, *limit, *keys_only)?,
            TxnOp::Delete { selector } => scratch.delete(selector)?,
        });
    }
    let revision = if scratch.changes.is_empty() { current } else { scratch.next };
    let mut records = Vec::with_capacity(scratch.changes.len());
    for (sub, (key, change)) in (0u32..).zip(scratch.changes) {
        records.push(VersionedRecord { key: stored_key(key)?, revision, sub, change });
    }
    Ok(Executed { reply: TxnReply { succeeded, revision, responses }, records })
}

/// Refuses what the types allow but the contract does not.
fn check_form(txn: &Txn) -> Result<(), String> {
    for (what, len) in
        [("comparisons", txn.compares.len()), ("operations", txn.success.len()), ("operations", txn.failure.len())]
    {
        if len > TXN_OPERATIONS_MAX {
            return Err(format!("{len} {what}; at most {TXN_OPERATIONS_MAX} are allowed"));
        }
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        if let TxnOp::Get { limit, .. } = operation
            && !(1..=PAGE_RECORDS_MAX as u64).contains(&u64::from(*limit))
        {
            return Err(format!("a get of {limit} records; 1 to {PAGE_RECORDS_MAX} are allowed"));
        }
    }
    Ok(())
}

/// Whether a comparison holds on the state at `current`.
fn holds(store: &Store, compare: &Compare, current: Revision) -> Result<bool, Error> {
    let live = store.find(compare.key.as_bytes(), current)?;
    let meta = live.as_ref().map_or(RecordMeta::default(), |live| live.meta);
    let ordering = match &compare.target {
        CompareTarget::Value(operand) => match live {
            Some(live) => store.value(compare.key.as_bytes(), live)?.cmp(operand),
            None => return Ok(false),
        },
        CompareTarget::Version(operand) => meta.version.cmp(operand),
        CompareTarget::CreateRevision(operand) => meta.create_revision.cmp(operand),
        CompareTarget::ModRevision(operand) => meta.mod_revision.cmp(operand),
        CompareTarget::Lease(operand) => meta.lease.cmp(operand),
    };
    Ok(match compare.operator {
        CompareOperator::Equal => ordering == Ordering::Equal,
        CompareOperator::NotEqual => ordering != Ordering::Equal,
        CompareOperator::Less => ordering == Ordering::Less,
        CompareOperator::Greater => ordering == Ordering::Greater,
        CompareOperator::LessOrEqual => ordering != Ordering::Greater,
        CompareOperator::GreaterOrEqual => ordering != Ordering::Less,
    })
}

/// The state a transaction sees: the store at `current`, and above it what the transaction did.
struct Scratch<'a> {
    store: &'a Store,
    current: Revision,
    next: Revision,
    changes: BTreeMap<Bytes, Change>,
    reply_bytes: usize,
    /// By its ranges, one after the other; see [`LiveKeys`].
    keys_passed: usize,
}

impl Scratch<'_> {
    fn put(&mut self, key: &Key, value: &Bytes, lease: LeaseId) -> Result<OpReply, Stop> {
        self.account(key.as_bytes().len())?;
        let (create_revision, version) = match self.changes.get(key.as_ref()) {
            // Only one version a revision: the second put takes the place of the first.
            Some(Change::Put { create_revision, version, .. }) => (*create_revision, *version),
            Some(Change::Delete) => (self.next, 1),
            None => match self.store.find(key.as_bytes(), self.current)? {
                Some(live) => (live.meta.create_revision, live.meta.version.saturating_add(1)),
                None => (self.next, 1),
            },
        };
        let change = Change::Put { create_revision, version, lease, value: value.clone() };
        self.changes.insert(key.as_bytes().clone(), change);
        let meta = RecordMeta { create_revision, mod_revision: self.next, version, lease };
        Ok(OpReply::Put { key: key.clone(), meta })
    }

    fn get(&mut self, selector: &Selector, limit: u32, keys_only: bool) -> Result<OpReply, Stop> {
        let mut records = Vec::new();
        let mut count = 0;
        match selector {
            Selector::Key(key) => {
                if let Some(live) = self.find(key.as_bytes())? {
                    count = 1;
                    records.push(self.record(key.as_bytes().clone(), live, keys_only)?);
                }
            }
            Selector::Range(range) => {
                let limit = limit as usize;
                let (store, mut reply_bytes) = (self.store, self.reply_bytes);
                let mut live_keys = self.live_keys(range, limit);
                while let Some((key, live)) = live_keys.next()? {
                    count += 1;
                    if records.len() < limit {
                        let value = if keys_only { Bytes::new() } else { store.value(&key, live.clone())? };
                        account(&mut reply_bytes, key.len() + value.len())?;
                        records.push(Record { key: stored_key(key)?, value, meta: live.meta });
                    }
                }
                (self.keys_passed, self.reply_bytes) = (live_keys.passed, reply_bytes);
            }
        }
        Ok(OpReply::Get { records, count, keys_only })
    }

    fn delete(&mut self, selector: &Selector) -> Result<OpReply, Stop> {
        self.account(0)?;
        let keys = match selector {
            Selector::Key(key) => {
                let key = key.as_bytes();
                if self.find(key)?.is_some() { vec![key.clone()] } else { Vec::new() }
            }
            Selector::Range(range) => {
                let mut keys = Vec::new();
                let mut live_keys = self.live_keys(range, usize::MAX);
                while let Some((key, _)) = live_keys.next()? {
                    keys.push(key);
                }
                self.keys_passed = live_keys.passed;
                keys
            }
        };
        let deleted = keys.len() as u64;
        // A key that this very transaction created gets a delete too: the revision then tells that it came and went.
        self.changes.extend(keys.into_iter().map(|key| (key, Change::Delete)));
        Ok(OpReply::Delete { deleted })
    }

    /// The state of one key.
    fn find(&self, key: &[u8]) -> Result<Option<Live>, Error> {
        match self.changes.get(key) {
            Some(change) => Ok(Live::from_version(self.next, change)),
            None => self.store.find(key, self.current),
        }
    }

    fn record(&mut self, key: Bytes, live: Live, keys_only: bool) -> Result<Record, Stop> {
        let meta = live.meta;
        let value = if keys_only { Bytes::new() } else { self.store.value(&key, live)? };
        self.account(key.len() + value.len())?;
        Ok(Record { key: stored_key(key)?, value, meta })
    }

    /// The keys of a range that have a value, in order.
    fn live_keys(&self, range: &KeyRange, expected: usize) -> LiveKeys<'_> {
        let end = range.end().map_or(Bound::Unbounded, |end| Bound::Excluded(end.clone()));
        let own = (Bound::Included(range.start().clone()), end);
        LiveKeys {
            next: self.next,
            own: self.changes.range::<[u8], _>(as_slices(&own)).peekable(),
            scan: LiveScan::new(self.store, range, self.current, Order::Ascending, expected),
            scanned: None,
            passed: self.keys_passed,
        }
    }

    fn account(&mut self, bytes: usize) -> Result<(), Stop> {
        account(&mut self.reply_bytes, bytes)
    }
}

/// Counts a part of the answer.
fn account(reply_bytes: &mut usize, bytes: usize) -> Result<(), Stop> {
    *reply_bytes += bytes + REPLY_OVERHEAD_BYTES;
    if *reply_bytes > TXN_REPLY_BYTES_MAX {
        return Err(Stop::Rejected(Rejection::ReplyTooLarge { limit_bytes: TXN_REPLY_BYTES_MAX as u64 }));
    }
    Ok(())
}

/// The store's keys and the transaction's own, merged; its own hide the store's.
///
/// Each key counts once a range: those that are live, and those that the transaction itself has deleted, for it would
/// otherwise pass them for nothing again and again. What counts is the logical state alone. Keys that were deleted before
/// don't count, though the scan passes them too: how many of them are kept is for each replica to say, not for the log.
struct LiveKeys<'a> {
    next: Revision,
    own: Peekable<btree_map::Range<'a, Bytes, Change>>,
    scan: LiveScan<'a>,
    /// The scan's next key, if it was read already.
    scanned: Option<(Bytes, Live)>,
    /// How many keys the transaction's ranges have passed, this one and those before it.
    passed: usize,
}

impl LiveKeys<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Live)>, Stop> {
        loop {
            if self.scanned.is_none() {
                self.scanned = self.scan.next()?;
            }
            let Some((own, _)) = self.own.peek() else { return self.take_scanned() };
            match self.scanned.as_ref().map_or(Ordering::Greater, |(scanned, _)| scanned.cmp(own)) {
                Ordering::Less => return self.take_scanned(),
                Ordering::Equal => self.scanned = None,
                Ordering::Greater => {}
            }
            self.pass()?;
            if let Some((key, change)) = self.own.next()
                && let Some(live) = Live::from_version(self.next, change)
            {
                return Ok(Some((key.clone(), live)));
            }
        }
    }

    fn take_scanned(&mut self) -> Result<Option<(Bytes, Live)>, Stop> {
        if self.scanned.is_some() {
            self.pass()?;
        }
        Ok(self.scanned.take())
    }

    /// Counts a key.
    fn pass(&mut self) -> Result<(), Stop> {
        self.passed += 1;
        if self.passed > KEYS_MAX {
            return Err(Stop::Rejected(Rejection::TooManyKeys { limit: KEYS_MAX as u64 }));
        }
        Ok(())
    }
}
