//! Ranges over overlay and engine together.
//!
//! Both scans read in chunks: first the layers under a short lock, then, without it, the engine. Guarantees: exact at the
//! revision asked for, though neither the engine's scan nor the whole read is a snapshot (records never change, and go
//! from overlay to engine, in which order they are looked at); a range of the newest state costs the same whatever the
//! lengths of its histories, one of an older state a search in the history of each key that changed since. Leaves out:
//! pages (`view`).

use std::ops::Bound;

use bytes::Bytes;

use super::chain::Place;
use super::history;
use super::overlay::Bounds;
use super::record::VersionedRecord;
use super::rows::{Pointer, decode_record};
use super::schema::{StorageKey, decode_latest_key, decode_record_key, stored_key};
use super::store::{Layers, Live, Store};
use crate::storage::{Error, Order, Scan};
use crate::types::{KeyRange, Revision};

/// The keys in the first chunk of a range at least, and in any at most. An engine prefers larger chunks, a page of a few
/// records smaller ones. Tests read in tiny chunks, so that every seam between two is met often.
const CHUNK_KEYS_MIN: usize = if cfg!(test) { 1 } else { 16 };
const CHUNK_KEYS_MAX: usize = if cfg!(test) { 4 } else { 512 };
/// The most bytes that one scan of the engine for pointers returns; a few more by the last pair.
const POINTER_CHUNK_BYTES_MAX: usize = if cfg!(test) { 100 } else { 1024 * 1024 };
/// The most bytes that one scan of the engine for records returns; a few more by the last pair.
const RECORD_CHUNK_BYTES_MAX: usize = if cfg!(test) { 100 } else { 4 * 1024 * 1024 };

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

/// The records from one revision to another, both included, in the order in which they were made.
pub(super) struct ChangeScan<'a> {
    store: &'a Store,
    /// What comes next; `None` at the end.
    next: Option<Place>,
    to: Revision,
    ready: std::vec::IntoIter<VersionedRecord>,
}

impl<'a> ChangeScan<'a> {
    /// Starts. Everything up to `to` must have been applied.
    pub(super) fn new(store: &'a Store, from: Revision, to: Revision) -> Self {
        Self { store, next: Some(Place::first_of(from)), to, ready: Vec::new().into_iter() }
    }

    /// Reads the next chunk. Every record stands either in the engine or, from the oldest one there on, in the overlay;
    /// those that move meanwhile are in both.
    fn fill(&mut self, from: Place) -> Result<(), Error> {
        let mut chunk: Vec<VersionedRecord> = Vec::new();
        let end = {
            let layers = self.store.layers();
            match layers.first() {
                Some(first) if first <= from => {
                    self.read_layers(&layers, from, &mut chunk)?;
                    None
                }
                Some(first) => Some(first.min(Place::first_of(self.to.next()))),
                None => Some(Place::first_of(self.to.next())),
            }
        };
        let cut = match end {
            None => chunk.len() >= CHUNK_KEYS_MAX,
            Some(end) => self.read_engine(from, end, &mut chunk)?,
        };
        self.next = match end {
            _ if cut => chunk.last().map(|last| Place { revision: last.revision, sub: last.sub }.next()),
            // Behind the engine's records come those of the overlay.
            Some(end) => Some(end),
            None => None,
        };
        self.ready = chunk.into_iter();
        Ok(())
    }

    /// Reads a chunk of the overlay.
    fn read_layers(&self, layers: &Layers, from: Place, chunk: &mut Vec<VersionedRecord>) -> Result<(), Error> {
        for layer in layers.oldest_first() {
            for (place, key) in layer.changes_from(from).iter().take_while(|row| row.0.revision <= self.to) {
                if chunk.len() >= CHUNK_KEYS_MAX {
                    return Ok(());
                }
                let Place { revision, sub } = *place;
                if let Some(version) = layer.version(key, revision) {
                    let change = version.change.clone();
                    chunk.push(VersionedRecord { key: stored_key(key.clone())?, revision, sub, change });
                }
            }
        }
        Ok(())
    }

    /// Reads a chunk of the engine; tells whether there may be more before the end.
    fn read_engine(&self, from: Place, end: Place, chunk: &mut Vec<VersionedRecord>) -> Result<bool, Error> {
        if from >= end {
            return Ok(false);
        }
        let (start, end) = (StorageKey::Record(from).encode(), StorageKey::Record(end).encode());
        let pairs = self.store.engine.scan(Scan {
            start: Bound::Included(&start),
            end: Bound::Excluded(&end),
            order: Order::Ascending,
            limit: CHUNK_KEYS_MAX,
            bytes_max: RECORD_CHUNK_BYTES_MAX,
        })?;
        let mut bytes = 0;
        for (key, body) in &pairs {
            let (engine, place) = (&*self.store.engine, decode_record_key(key)?);
            let record = decode_record(place, body, |len| history::value_apart(engine, place, len))?.record;
            bytes += record.payload_len();
            chunk.push(record);
            if bytes >= RECORD_CHUNK_BYTES_MAX {
                return Ok(true);
            }
        }
        // The engine may have ended early by the same bound, counted with what stands around the records.
        let scanned: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        Ok(pairs.len() >= CHUNK_KEYS_MAX || scanned >= RECORD_CHUNK_BYTES_MAX)
    }
}

impl Iterator for ChangeScan<'_> {
    type Item = Result<VersionedRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(Ok(record));
            }
            let from = self.next.take().filter(|from| from.revision <= self.to)?;
            if let Err(error) = self.fill(from) {
                self.next = None;
                return Some(Err(error));
            }
        }
    }
}
