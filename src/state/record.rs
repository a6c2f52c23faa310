//! One version of one key: the immutable record everything else is built from.
//!
//! Guarantees: a record's hash depends on every field and on nothing else, and the hash of a state is the wrapping sum of
//! its records' hashes, so it can be kept incrementally and does not depend on order. Leaves out: where
//! records are kept (`schema`, `rows`, `store`) and how they are packed in files (`snapshot`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::command::RecordMeta;
use crate::types::{Key, LeaseId, Revision};

/// What became of a key at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedRecord {
    /// The key.
    pub key: Key,
    /// The revision that changed it.
    pub revision: Revision,
    /// The place of this change among those of its revision, from 0.
    pub sub: u32,
    /// The change.
    pub change: Change,
}

/// A put or a delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The key has a value from this revision on.
    Put {
        /// The revision that created the key.
        create_revision: Revision,
        /// How many revisions have written it since then; 1 for the first.
        version: u64,
        /// Its lease; zero for none.
        lease: LeaseId,
        /// Its value.
        value: Bytes,
    },
    /// The key is absent from this revision on.
    Delete,
}

impl VersionedRecord {
    /// What the API tells of the value; `None` for a delete.
    #[must_use]
    pub fn meta(&self) -> Option<RecordMeta> {
        match self.change {
            Change::Put { create_revision, version, lease, .. } => {
                Some(RecordMeta { create_revision, mod_revision: self.revision, version, lease })
            }
            Change::Delete => None,
        }
    }

    /// This record's share of the state hash: XXH3-128 over every field, lengths included.
    #[must_use]
    pub fn hash(&self) -> u128 {
        let mut hasher = Xxh3::new();
        hasher.update(&(self.key.as_bytes().len() as u64).to_le_bytes());
        hasher.update(self.key.as_bytes());
        hasher.update(&self.revision.get().to_le_bytes());
        hasher.update(&self.sub.to_le_bytes());
        match &self.change {
            Change::Delete => hasher.update(&[0]),
            Change::Put { create_revision, version, lease, value } => {
                hasher.update(&[1]);
                for number in [create_revision.get(), *version, lease.get()] {
                    hasher.update(&number.to_le_bytes());
                }
                hasher.update(value);
            }
        }
        hasher.digest128()
    }

    /// Bytes of key and value.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.key.as_bytes().len() + self.value_len()
    }

    fn value_len(&self) -> usize {
        match &self.change {
            Change::Put { value, .. } => value.len(),
            Change::Delete => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &'static [u8]) -> VersionedRecord {
        VersionedRecord {
            key: Key::new("k").unwrap(),
            revision: Revision::new(9),
            sub: 2,
            change: Change::Put {
                create_revision: Revision::new(3),
                version: 4,
                lease: LeaseId::new(5),
                value: Bytes::from_static(value),
            },
        }
    }

    #[test]
    fn every_field_counts_in_the_hash() {
        let base = put(b"v");
        let mut others = vec![put(b"w"), VersionedRecord { sub: 3, ..base.clone() }];
        others.push(VersionedRecord { revision: Revision::new(10), ..base.clone() });
        others.push(VersionedRecord { key: Key::new("l").unwrap(), ..base.clone() });
        others.push(VersionedRecord { change: Change::Delete, ..base.clone() });
        for other in others {
            assert_ne!(base.hash(), other.hash(), "{other:?}");
        }
    }
}
