//! What writer and reader both count while records pass: their order, number, live keys, state hash.
//!
//! Guarantees: both sides judge by the same rules. Leaves out: bytes and blocks.

use super::SnapshotMeta;
use crate::state::{Change, VersionedRecord};
use crate::types::{Key, Revision};

/// The record that was counted last.
#[derive(Debug, Clone)]
pub(super) struct Last {
    pub(super) key: Key,
    pub(super) revision: Revision,
    is_put: bool,
}

/// Counts over the records so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) records: u64,
    pub(super) hash: u128,
    pub(super) last: Option<Last>,
    /// Live keys before that of `last`.
    keys_before: u64,
    greatest: Revision,
}

impl Tally {
    /// Counts a record, or gives back the one before if the two are not in order.
    pub(super) fn add(&mut self, record: &VersionedRecord) -> Result<(), Last> {
        if let Some(last) = &self.last {
            if (&last.key, last.revision) >= (&record.key, record.revision) {
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
        self.last = Some(Last { key: record.key.clone(), revision: record.revision, is_put });
        Ok(())
    }

    /// Live keys among the records so far, taking them for all there are.
    pub(super) fn keys(&self) -> u64 {
        self.keys_before + u64::from(self.last.as_ref().is_some_and(|last| last.is_put))
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
