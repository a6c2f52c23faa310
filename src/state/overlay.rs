//! The overlay: what was applied but does not stand in the engine yet.
//!
//! One [`Layer`] takes what is applied; at most one more is frozen while the checkpointer drains it. Guarantees: a layer's
//! records are found by key at any revision, and by revision; inserting costs one walk down a tree. Leaves out: locks
//! (`store`) and what lies below (`scan` merges).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::chain::Place;
use super::record::{Change, VersionedRecord};
use crate::storage::Order;
use crate::types::Revision;

/// What one record costs beside key and value, in bytes: tree node, version, index row, reference counts (measured: 190 to
/// 230), and 80 while a checkpoint writes it.
const RECORD_OVERHEAD_BYTES: usize = 320;

/// Bounds of a range of plain keys.
pub(super) type Bounds = (Bound<Bytes>, Bound<Bytes>);

/// Borrows the bounds, as the standard map wants them.
pub(super) fn as_slices(bounds: &Bounds) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (bounds.0.as_ref().map(|key| &key[..]), bounds.1.as_ref().map(|key| &key[..]))
}

/// One version of a key that is held by it.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) revision: Revision,
    pub(super) sub: u32,
    pub(super) change: Change,
}

impl Version {
    /// Where its record stands.
    pub(super) fn place(&self) -> Place {
        Place { revision: self.revision, sub: self.sub }
    }
}

/// The versions of one key, oldest first, never none. Most keys change once between two checkpoints, and then need no
/// allocation of their own.
#[derive(Debug)]
pub(super) enum Versions {
    One(Version),
    Many(Vec<Version>),
}

impl Versions {
    /// All of them, oldest first.
    pub(super) fn as_slice(&self) -> &[Version] {
        match self {
            Versions::One(version) => std::slice::from_ref(version),
            Versions::Many(versions) => versions,
        }
    }

    /// The newest at or below a revision.
    pub(super) fn at(&self, revision: Revision) -> Option<&Version> {
        // Nearly always the newest is wanted.
        let newest = self.newest();
        if newest.revision <= revision {
            return Some(newest);
        }
        let versions = self.as_slice();
        versions[..versions.partition_point(|version| version.revision <= revision)].last()
    }

    /// The newest.
    pub(super) fn newest(&self) -> &Version {
        match self {
            Versions::One(version) => version,
            Versions::Many(versions) => versions.last().expect("made of two versions, and never shrinks"),
        }
    }

    fn push(&mut self, version: Version) {
        match self {
            Versions::Many(versions) => versions.push(version),
            Versions::One(_) => {
                if let Versions::One(first) = std::mem::replace(self, Versions::Many(Vec::with_capacity(4))) {
                    self.push(first);
                    self.push(version);
                }
            }
        }
    }
}

/// A part of the records, ordered by key and by revision.
#[derive(Debug, Default)]
pub(super) struct Layer {
    keys: BTreeMap<Bytes, Versions>,
    /// The keys in the order in which their records came.
    changes: Vec<(Place, Bytes)>,
    bytes: usize,
}

impl Layer {
    /// Takes a record. Of a key an older one comes first; [`Self::changes_from`] and [`Self::first`] are right only if all
    /// come in rising order of `(revision, sub)`, as they are applied.
    pub(super) fn insert(&mut self, record: VersionedRecord) {
        self.bytes += record.payload_len() + RECORD_OVERHEAD_BYTES;
        let VersionedRecord { key, revision, sub, change } = record;
        let key = key.into_bytes();
        self.changes.push((Place { revision, sub }, key.clone()));
        let version = Version { revision, sub, change };
        match self.keys.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Versions::One(version));
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().push(version),
        }
    }

    /// The newest version of a key at or below a revision.
    pub(super) fn find(&self, key: &[u8], revision: Revision) -> Option<&Version> {
        self.keys.get(key)?.at(revision)
    }

    /// One version of a key, exactly.
    pub(super) fn version(&self, key: &[u8], revision: Revision) -> Option<&Version> {
        self.find(key, revision).filter(|version| version.revision == revision)
    }

    /// The keys of a range with their versions, in order.
    pub(super) fn range<'a>(
        &'a self,
        bounds: &Bounds,
        order: Order,
    ) -> Box<dyn Iterator<Item = (&'a Bytes, &'a Versions)> + 'a> {
        if self.keys.is_empty() {
            return Box::new(std::iter::empty());
        }
        let range = self.keys.range::<[u8], _>(as_slices(bounds));
        match order {
            Order::Ascending => Box::new(range),
            Order::Descending => Box::new(range.rev()),
        }
    }

    /// Every key with its versions, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Bytes, &Versions)> {
        self.keys.iter()
    }

    /// The keys in the order of their records, from a place on.
    pub(super) fn changes_from(&self, from: Place) -> &[(Place, Bytes)] {
        &self.changes[self.changes.partition_point(|row| row.0 < from)..]
    }

    /// The first place; `None` if there are no records.
    pub(super) fn first(&self) -> Option<Place> {
        self.changes.first().map(|row| row.0)
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Memory taken, in bytes, by estimate.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Key, LeaseId};

    fn put(key: &'static str, revision: u64) -> VersionedRecord {
        let change = Change::Put {
            create_revision: Revision::new(1),
            version: revision,
            lease: LeaseId::ZERO,
            value: Bytes::from(vec![b'v'; 10]),
        };
        VersionedRecord { key: Key::new(key).unwrap(), revision: Revision::new(revision), sub: 0, change }
    }

    #[test]
    fn a_layer_finds_the_newest_version_at_or_below_a_revision() {
        let mut layer = Layer::default();
        for revision in [3, 5, 9] {
            layer.insert(put("a", revision));
        }
        let found = |at| layer.find(b"a", Revision::new(at)).map(|version| version.revision.get());
        assert_eq!([2, 3, 4, 5, 8, 9, 99].map(found), [None, Some(3), Some(3), Some(5), Some(5), Some(9), Some(9)]);
        assert!(layer.find(b"b", Revision::new(9)).is_none());
        assert_eq!(layer.version(b"a", Revision::new(5)).map(|version| version.revision.get()), Some(5));
        assert!(layer.version(b"a", Revision::new(6)).is_none());
    }

    #[test]
    fn changes_start_at_the_place_asked_for() {
        let mut layer = Layer::default();
        for (key, revision) in [("b", 3), ("a", 5), ("b", 9)] {
            layer.insert(put(key, revision));
        }
        let from = |at| {
            let rows = layer.changes_from(Place::first_of(Revision::new(at)));
            rows.iter().map(|row| row.0.revision.get()).collect::<Vec<_>>()
        };
        assert_eq!([from(0), from(4), from(9), from(10)], [vec![3, 5, 9], vec![5, 9], vec![9], vec![]]);
        assert_eq!((layer.len(), layer.bytes()), (3, 3 * (11 + RECORD_OVERHEAD_BYTES)));
    }
}
