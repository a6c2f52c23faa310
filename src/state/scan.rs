//! Ranges over overlay and engine together.
//!
//! Both scans read in chunks: first the layers under a short lock, then, without it, the engine over the part the layers
//! covered. Guarantees: exact at the revision asked for, though neither the engine's scan nor the whole read is a snapshot
//! (records never change, and go from overlay to engine, in which order they are looked at); every step of work is paid
//! for by a key passed, so a range costs the same whatever the lengths of its histories. Leaves out: pages (`view`).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::overlay::Bounds;
use super::record::VersionedRecord;
use super::schema::{
    HISTORY_START, Pointer, StorageKey, decode_change_key, decode_history_key, decode_latest_key, stored_key,
    stored_record,
};
use super::store::{Live, Store};
use crate::storage::{Error, Order, Scan};
use crate::types::{KeyRange, Revision};

/// The keys in the first chunk of a range at least, and in any at most. An engine prefers larger chunks, a page of a few
/// records smaller ones. Tests read in tiny chunks, so that every seam between two is met often.
const CHUNK_KEYS_MIN: usize = if cfg!(test) { 1 } else { 16 };
const CHUNK_KEYS_MAX: usize = if cfg!(test) { 4 } else { 512 };
/// The most bytes that one scan of the engine for pointers returns; a few more by the last pair.
const POINTER_CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes that one scan of the engine for versions returns; a few more by the last pair.
const HISTORY_CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a chunk knows of a key.
enum Candidate {
    /// Its value at the revision; `None` for a delete.
    Known(Option<Live>),
    /// The engine's pointer, not yet looked into.
    Pointer(Pointer),
}

/// The keys of a range that have a value at a revision, in order.
pub(super) struct LiveScan<'a> {
    store: &'a Store,
    at: Revision,
    order: Order,
    /// What was not read yet; `None` at the end.
    rest: Option<Bounds>,
    /// The next chunk's size, in keys.
    chunk: usize,
    ready: std::vec::IntoIter<(Bytes, Candidate)>,
}

impl<'a> LiveScan<'a> {
    /// Starts. `expected` is how many keys the caller is likely to take.
    pub(super) fn new(store: &'a Store, range: &KeyRange, at: Revision, order: Order, expected: usize) -> Self {
        let end = range.end().map_or(Bound::Unbounded, |end| Bound::Excluded(end.clone()));
        let rest = Some((Bound::Included(range.start().clone()), end));
        let chunk = expected.saturating_add(1).clamp(CHUNK_KEYS_MIN, CHUNK_KEYS_MAX);
        Self { store, at, order, rest, chunk, ready: Vec::new().into_iter() }
    }

    /// The next key.
    pub(super) fn next(&mut self) -> Result<Option<(Bytes, Live)>, Error> {
        loop {
            let Some((key, candidate)) = self.ready.next() else {
                let Some(rest) = self.rest.take() else { return Ok(None) };
                self.fill(rest)?;
                continue;
            };
            let live = match candidate {
                Candidate::Known(live) => live,
                Candidate::Pointer(pointer) => self.store.resolve(&key, pointer, self.at, None)?,
            };
            if let Some(live) = live {
                return Ok(Some((key, live)));
            }
        }
    }

    /// Reads the next chunk.
    fn fill(&mut self, mut bounds: Bounds) -> Result<(), Error> {
        let rest = bounds.clone();
        let mut found: Vec<(Bytes, Candidate)> = Vec::new();
        // Up to which key, inclusive, every source was read; each may bring it nearer.
        let mut last: Option<Bytes> = None;
        {
            let layers = self.store.layers();
            for layer in layers.newest_first() {
                for (passed, (key, versions)) in (1..).zip(layer.range(&bounds, self.order)) {
                    if let Some(version) = versions.at(self.at) {
                        let live = Live::from_version(version.revision, &version.change);
                        found.push((key.clone(), Candidate::Known(live)));
                    }
                    // The keys passed over count: they too keep the writer waiting.
                    if passed == self.chunk {
                        last = Some(key.clone());
                        break;
                    }
                }
                if let Some(last) = &last {
                    narrow(&mut bounds, last.clone(), self.order);
                }
            }
        }
        let pairs = self.scan_pointers(&bounds)?;
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let cut = pairs.len() >= self.chunk || bytes >= POINTER_CHUNK_BYTES_MAX;
        found.reserve(pairs.len());
        for (key, value) in &pairs {
            found.push((decode_latest_key(key)?, Candidate::Pointer(Pointer::decode(value)?)));
        }
        if cut && let Some((key, _)) = pairs.last() {
            last = Some(decode_latest_key(key)?);
        }
        // Of equal keys the first one stays, which came from the newest source: the sort is stable.
        match self.order {
            Order::Ascending => found.sort_by(|a, b| a.0.cmp(&b.0)),
            Order::Descending => found.sort_by(|a, b| b.0.cmp(&a.0)),
        }
        found.dedup_by(|later, kept| later.0 == kept.0);
        if let Some(last) = last {
            found.retain(|(key, _)| match self.order {
                Order::Ascending => *key <= last,
                Order::Descending => *key >= last,
            });
            self.rest = Some(match self.order {
                Order::Ascending => (Bound::Excluded(last), rest.1),
                Order::Descending => (rest.0, Bound::Excluded(last)),
            });
        }
        self.ready = found.into_iter();
        self.chunk = (self.chunk * 2).min(CHUNK_KEYS_MAX);
        Ok(())
    }

    fn scan_pointers(&self, bounds: &Bounds) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let encode = |bound: &Bound<Bytes>| bound.as_ref().map(|key| StorageKey::Latest { key }.encode());
        let start = encode(&bounds.0);
        let end = match encode(&bounds.1) {
            Bound::Unbounded => Bound::Excluded(StorageKey::LatestEnd.encode()),
            bound => bound,
        };
        self.store.engine.scan(Scan {
            start: start.as_ref().map(|key| &key[..]),
            end: end.as_ref().map(|key| &key[..]),
            order: self.order,
            limit: self.chunk,
            bytes_max: POINTER_CHUNK_BYTES_MAX,
        })
    }
}

/// Lets the range end with a key that lies in it.
fn narrow(bounds: &mut Bounds, last: Bytes, order: Order) {
    match order {
        Order::Ascending => bounds.1 = Bound::Included(last),
        Order::Descending => bounds.0 = Bound::Included(last),
    }
}

/// Every version up to a revision, by key and revision.
pub(super) struct HistoryScan<'a> {
    store: &'a Store,
    at: Revision,
    /// The last version passed; `None` at the start.
    passed: Option<(Bytes, Revision)>,
    ended: bool,
    ready: std::vec::IntoIter<VersionedRecord>,
}

impl<'a> HistoryScan<'a> {
    pub(super) fn new(store: &'a Store, at: Revision) -> Self {
        Self { store, at, passed: None, ended: false, ready: Vec::new().into_iter() }
    }

    /// Reads the next chunk.
    fn fill(&mut self) -> Result<(), Error> {
        let mut found = Vec::new();
        let mut last = self.read_layers(&mut found)?;
        let pairs = self.scan_versions(last.as_ref())?;
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let cut = pairs.len() >= CHUNK_KEYS_MAX || bytes >= HISTORY_CHUNK_BYTES_MAX;
        for (key, body) in &pairs {
            let (key, revision) = decode_history_key(key)?;
            if revision <= self.at {
                found.push(stored_record(key, revision, body)?);
            }
        }
        if cut && let Some((key, _)) = pairs.last() {
            last = Some(decode_history_key(key)?);
        }
        found.sort_by(|a, b| place(a).cmp(&place(b)));
        found.dedup_by(|later, kept| place(later) == place(kept));
        match &last {
            Some((key, revision)) => found.retain(|record| place(record) <= (key, *revision)),
            None => self.ended = true,
        }
        self.passed = last;
        self.ready = found.into_iter();
        Ok(())
    }

    /// Reads a chunk of the overlay; returns up to where, `None` for the end.
    fn read_layers(&self, found: &mut Vec<VersionedRecord>) -> Result<Option<(Bytes, Revision)>, Error> {
        let mut last: Option<(Bytes, Revision)> = None;
        let layers = self.store.layers();
        for layer in layers.newest_first() {
            let start = self.passed.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.clone()));
            let end = last.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.clone()));
            let mut steps = 0;
            'layer: for (key, versions) in layer.range(&(start, end), Order::Ascending) {
                let versions = versions.as_slice();
                let done = match &self.passed {
                    Some((passed, revision)) if passed == key => *revision,
                    _ => Revision::ZERO,
                };
                let from = versions.partition_point(|version| version.revision <= done);
                for version in versions[from..].iter().take_while(|version| version.revision <= self.at) {
                    let (revision, sub, change) = (version.revision, version.sub, version.change.clone());
                    found.push(VersionedRecord { key: stored_key(key.clone())?, revision, sub, change });
                    steps += 1;
                    if steps >= CHUNK_KEYS_MAX {
                        last = earlier(last, (key.clone(), revision));
                        break 'layer;
                    }
                }
                // A key without a version wanted is a step too.
                steps += 1;
                if steps >= CHUNK_KEYS_MAX {
                    last = earlier(last, (key.clone(), self.at));
                    break;
                }
            }
        }
        Ok(last)
    }

    fn scan_versions(&self, last: Option<&(Bytes, Revision)>) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let encode = |(key, revision): &(Bytes, Revision)| StorageKey::History { key, revision: *revision }.encode();
        let start =
            self.passed.as_ref().map_or(Bound::Included(HISTORY_START.to_vec()), |at| Bound::Excluded(encode(at)));
        let end = last.map_or(Bound::Excluded(StorageKey::HistoryEnd.encode()), |at| Bound::Included(encode(at)));
        if let (Bound::Excluded(start), Bound::Included(end)) = (&start, &end)
            && start >= end
        {
            return Ok(Vec::new());
        }
        self.store.engine.scan(Scan {
            start: start.as_ref().map(|key| &key[..]),
            end: end.as_ref().map(|key| &key[..]),
            order: Order::Ascending,
            limit: CHUNK_KEYS_MAX,
            bytes_max: HISTORY_CHUNK_BYTES_MAX,
        })
    }
}

impl Iterator for HistoryScan<'_> {
    type Item = Result<VersionedRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(Ok(record));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.fill() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}

fn place(record: &VersionedRecord) -> (&Bytes, Revision) {
    (record.key.as_bytes(), record.revision)
}

fn earlier(known: Option<(Bytes, Revision)>, new: (Bytes, Revision)) -> Option<(Bytes, Revision)> {
    Some(known.map_or(new.clone(), |known| known.min(new)))
}

/// A row of the change index.
enum Row {
    /// From the overlay.
    Record(VersionedRecord),
    /// From the engine, which has the record too.
    InEngine(Bytes),
}

/// The changes from one revision to another, both included, in order of `(revision, sub)`: at least `limit` if there are
/// as many, and never a part of a revision.
pub(super) fn changes(
    store: &Store,
    from: Revision,
    to: Revision,
    limit: usize,
) -> Result<Vec<VersionedRecord>, Error> {
    let mut rows: BTreeMap<(Revision, u32), Row> = BTreeMap::new();
    let mut to = to;
    if limit == 0 || from > to {
        return Ok(Vec::new());
    }
    {
        let layers = store.layers();
        let mut oldest_first: Vec<_> = layers.newest_first().collect();
        oldest_first.reverse();
        'layers: for layer in oldest_first {
            for (revision, sub, key) in layer.changes_from(from).iter().take_while(|row| row.0 <= to) {
                // Whole revisions: stop only where one begins.
                if rows.len() >= limit && rows.last_key_value().is_some_and(|(row, _)| row.0 < *revision) {
                    to = Revision::new(revision.get() - 1);
                    break 'layers;
                }
                let Some(version) = layer.version(key, *revision) else { continue };
                let (key, change) = (stored_key(key.clone())?, version.change.clone());
                let record = VersionedRecord { key, revision: *revision, sub: *sub, change };
                rows.insert((*revision, *sub), Row::Record(record));
            }
        }
    }
    engine_changes(store, from, to, limit, &mut rows)?;
    let mut records: Vec<VersionedRecord> = Vec::with_capacity(rows.len().min(limit));
    for ((revision, _), row) in rows {
        if records.len() >= limit && records.last().is_some_and(|record| record.revision < revision) {
            break;
        }
        records.push(match row {
            Row::Record(record) => record,
            Row::InEngine(key) => store.engine_version(key, revision)?,
        });
    }
    Ok(records)
}

/// Adds the engine's rows up to `to`, or as many as make `limit` whole, to those of the overlay.
fn engine_changes(
    store: &Store,
    from: Revision,
    to: Revision,
    limit: usize,
    rows: &mut BTreeMap<(Revision, u32), Row>,
) -> Result<(), Error> {
    let end = StorageKey::Change { revision: to, sub: u32::MAX }.encode();
    let mut start = Bound::Included(StorageKey::Change { revision: from, sub: 0 }.encode());
    let mut engine_rows = 0;
    loop {
        let pairs = store.engine.scan(Scan {
            start: start.as_ref().map(|key| &key[..]),
            end: Bound::Included(&end),
            order: Order::Ascending,
            limit: CHUNK_KEYS_MAX,
            bytes_max: POINTER_CHUNK_BYTES_MAX,
        })?;
        let Some((last_key, _)) = pairs.last() else { return Ok(()) };
        let (last, _) = decode_change_key(last_key)?;
        start = Bound::Excluded(last_key.to_vec());
        for (row, key) in &pairs {
            let (revision, sub) = decode_change_key(row)?;
            // Those of the last revision may go on in the next chunk: they don't count as whole yet.
            engine_rows += usize::from(revision < last);
            rows.entry((revision, sub)).or_insert_with(|| Row::InEngine(key.clone()));
        }
        if engine_rows >= limit {
            // What is left of a cut revision, and everything behind it, is for the next call.
            drop(rows.split_off(&(last, 0)));
            return Ok(());
        }
    }
}
