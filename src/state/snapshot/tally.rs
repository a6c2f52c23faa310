//! What writer and reader both count while records pass: their order, number, state hash, and live keys where the order
//! tells them.
//!
//! Guarantees: both sides judge by the same rules. Leaves out: bytes and blocks.

use super::SnapshotMeta;
use crate::state::{Change, VersionedRecord};
use crate::types::{Key, Revision};

/// How the records of a file follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordOrder {
    /// By key and revision: format version 1.
    Key,
    /// By revision and the place in it.
    Revision,
}

/// The record that was counted last.
#[derive(Debug, Clone)]
pub(super) struct Last {
    pub(super) key: Key,
    pub(super) revision: Revision,
    sub: u32,
    is_put: bool,
}

/// Counts over the records so far.
#[derive(Debug)]
pub(super) struct Tally {
    order: RecordOrder,
    pub(super) records: u64,
    pub(super) hash: u128,
    pub(super) last: Option<Last>,
    /// Live keys before that of `last`.
    keys_before: u64,
    greatest: Revision,
}

impl Tally {
    /// Of no records.
    pub(super) fn new(order: RecordOrder) -> Self {
        Self { order, records: 0, hash: 0, last: None, keys_before: 0, greatest: Revision::ZERO }
    }

    /// How the records follow each other.
    pub(super) fn order(&self) -> RecordOrder {
        self.order
    }

    /// Counts a record, or gives back the one before if the two are not in order.
    pub(super) fn add(&mut self, record: &VersionedRecord) -> Result<(), Last> {
        if let Some(last) = &self.last {
            let rises = match self.order {
                RecordOrder::Key => (&last.key, last.revision) < (&record.key, record.revision),
                RecordOrder::Revision => (last.revision, last.sub) < (record.revision, record.sub),
            };
            if !rises {
                return Err(last.clone());
            }
            // What a key's last version is, is only known once the next key begins.
            if last.is_put && last.key != record.key {
                self.keys_before += 1;
            }
        }
        self.records += 1;
        self.hash = self.hash.wrapping_add(record.hash());
        self.greatest = self.greatest.max(record.revision);
        let is_put = matches!(record.change, Change::Put { .. });
        self.last = Some(Last { key: record.key.clone(), revision: record.revision, sub: record.sub, is_put });
        Ok(())
    }

    /// Live keys among the records so far, taking them for all there are; `None` if their order doesn't tell.
    pub(super) fn keys(&self) -> Option<u64> {
        let last = u64::from(self.last.as_ref().is_some_and(|last| last.is_put));
        (self.order == RecordOrder::Key).then_some(self.keys_before + last)
    }

    /// Whether these records, taken for all there are, are those `meta` tells of; says what is wrong if not.
    pub(super) fn check(&self, meta: &SnapshotMeta) -> Result<(), String> {
        let (revision, compacted, greatest) = (meta.revision, meta.compacted, self.greatest);
        if compacted > revision {
            return Err(format!("it is compacted up to revision {compacted}, which is above its revision {revision}"));
        }
        // Each revision leaves a record. Only compaction may take away the record of the newest one (a deletion), and a
        // restore may move revision and compacted ahead of all records together.
        if greatest > revision || (greatest < revision && compacted < revision) {
            return Err(format!("its revision is {revision}, but the newest record has revision {greatest}"));
        }
        if self.hash != meta.hash {
            return Err(format!("its state hash is {:032x}, but the records give {:032x}", meta.hash, self.hash));
        }
        Ok(())
    }
}
