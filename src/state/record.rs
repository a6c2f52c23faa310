//! One version of one key: the immutable record everything else is built from.
//!
//! Guarantees: a record's hash depends on every field and on nothing else, and the hash of a state is the wrapping sum of
//! its records' hashes, so it can be kept incrementally and does not depend on order. The encoded form begins with a format
//! byte. Leaves out: where records are kept (`schema`, `store`) and how they are packed in files (`snapshot`).

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

/// The format byte of an encoded record.
const RECORD_FORMAT: u8 = 1;

/// Why stored bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored record can't be decoded: {0}")]
pub struct MalformedRecord(pub String);

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

    /// The stored form of everything but key and revision, which stand in the storage key.
    #[must_use]
    pub fn encode_body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.value_len());
        out.push(RECORD_FORMAT);
        out.extend_from_slice(&self.sub.to_be_bytes());
        match &self.change {
            Change::Delete => out.push(0),
            Change::Put { create_revision, version, lease, value } => {
                out.push(1);
                for number in [create_revision.get(), *version, lease.get()] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
                out.extend_from_slice(value);
            }
        }
        out
    }

    /// Reads what [`Self::encode_body`] wrote; the value shares the memory of `body`.
    ///
    /// # Errors
    /// [`MalformedRecord`] if the bytes are cut, of an unknown format or of an unknown kind.
    pub fn decode_body(key: Key, revision: Revision, body: &Bytes) -> Result<Self, MalformedRecord> {
        let malformed = || MalformedRecord(format!("{} bytes: {:02x?}", body.len(), &body[..body.len().min(8)]));
        let number = |at: usize| -> Option<u64> { Some(u64::from_be_bytes(body.get(at..at + 8)?.try_into().ok()?)) };
        let parse = || -> Option<(u32, Change)> {
            if *body.first()? != RECORD_FORMAT {
                return None;
            }
            let sub = u32::from_be_bytes(body.get(1..5)?.try_into().ok()?);
            match *body.get(5)? {
                0 if body.len() == 6 => Some((sub, Change::Delete)),
                1 => {
                    let change = Change::Put {
                        create_revision: Revision::new(number(6)?),
                        version: number(14)?,
                        lease: LeaseId::new(number(22)?),
                        value: body.slice(30..),
                    };
                    Some((sub, change))
                }
                _ => None,
            }
        };
        let (sub, change) = parse().ok_or_else(malformed)?;
        Ok(Self { key, revision, sub, change })
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

    fn round_trip(record: &VersionedRecord) -> VersionedRecord {
        let body = Bytes::from(record.encode_body());
        VersionedRecord::decode_body(record.key.clone(), record.revision, &body).unwrap()
    }

    #[test]
    fn records_come_back() {
        for record in [put(b"value"), put(b""), VersionedRecord { change: Change::Delete, ..put(b"") }] {
            assert_eq!(round_trip(&record), record);
        }
    }

    #[test]
    fn cut_and_foreign_bodies_are_refused() {
        let body = Bytes::from(put(b"").encode_body());
        for len in 0..body.len() {
            assert!(VersionedRecord::decode_body(put(b"").key, Revision::ZERO, &body.slice(..len)).is_err());
        }
        let foreign = Bytes::from_static(&[9; 40]);
        assert!(VersionedRecord::decode_body(put(b"").key, Revision::ZERO, &foreign).is_err());
    }

    #[test]
    fn the_bytes_of_format_one_stay_readable() {
        let body = Bytes::from_static(b"\x01\0\0\0\x02\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05value");
        assert_eq!(VersionedRecord::decode_body(put(b"").key, Revision::new(9), &body), Ok(put(b"value")));
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
