//! Every key and value that the state machine keeps in its engine.
//!
//! | key | value |
//! |---|---|
//! | `00 "applied"` | the marker: [`Applied`] in a checksummed frame |
//! | `01 key` | the pointer to the newest version of the key, without its value |
//! | `02 revision sub part` | a part of a long value of a version, from 0 |
//! | `03 revision sub` | one version of a key, with its links to older ones (`rows`, `chain`) |
//!
//! Records lie in the order in which they were made, so that a checkpoint writes each of them once, into pages that no
//! later one changes; what changes all over are the pointers, which are small and dense (etcd's bbolt lies the same way).
//! It is also the order of the change index, so there is no other. They are the last section, because sled fills pages
//! whole only where the store grows at its end; elsewhere it leaves them half full.
//!
//! Guarantees: keys sort by section, then by what they stand for; every value begins with a format byte or a frame; a
//! record never changes once written. Leaves out: the values (`rows`), when they are written (`checkpoint`, `load`) and
//! read (`store`, `scan`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::chain::Place;
use super::targets::Targets;
use crate::codec::{framed, ordered};
use crate::storage::{Engine, Error};
use crate::types::{Key, LogPosition, Revision};

/// First bytes of the sections.
const APPLIED: u8 = 0;
const LATEST: u8 = 1;
const PARTS: u8 = 2;
const RECORDS: u8 = 3;

/// What the marker's frame begins with.
const MARKER_MAGIC: [u8; 4] = *b"QAPL";
/// The format of the marker, postcard of [`Applied`], and of all that stands beside it. Format 1 had the versions by key.
const MARKER_PLAIN: u8 = 2;
/// The same with the declared places for backups behind it. Written only if there are some, so that an older program goes
/// on with a store that has none.
const MARKER_VERSION: u8 = 3;

/// How far a state has come, and what it amounts to. Stored as the marker.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// The last log entry applied; `None` before the first.
    pub position: Option<LogPosition>,
    /// The revision of the last mutating command.
    pub revision: Revision,
    /// History below this revision was given up.
    pub compacted: Revision,
    /// The membership as of `position`, in a form that only its owner (`raft/`) reads.
    pub membership: Bytes,
    /// The wrapping sum of the hashes of all records.
    pub hash: u128,
    /// The places for backups that are declared.
    #[serde(skip)]
    pub targets: Targets,
}

/// One key of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorageKey<'a> {
    /// The marker.
    Applied,
    /// A version of a key.
    Record(Place),
    /// A part of the value of a version.
    Part { place: Place, part: u32 },
    /// The pointer to the newest version of a key. The empty key stands for the start of the section.
    Latest { key: &'a [u8] },
    /// Right behind the last pointer.
    LatestEnd,
}

impl StorageKey<'_> {
    /// The bytes the engine sorts by.
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            StorageKey::Applied => [&[APPLIED], &b"applied"[..]].concat(),
            StorageKey::Record(place) => placed(RECORDS, place),
            StorageKey::Part { place, part } => {
                let mut out = placed(PARTS, place);
                out.extend_from_slice(&part.to_be_bytes());
                out
            }
            StorageKey::Latest { key } => {
                let mut out = Vec::with_capacity(key.len() + 1);
                out.push(LATEST);
                out.extend_from_slice(key);
                out
            }
            StorageKey::LatestEnd => vec![LATEST + 1],
        }
    }
}

fn placed(section: u8, Place { revision, sub }: Place) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 8 + 4 + 4);
    out.push(section);
    out.extend_from_slice(&revision.get().to_be_bytes());
    out.extend_from_slice(&sub.to_be_bytes());
    out
}

/// Reads a `Record` key.
pub(super) fn decode_record_key(bytes: &[u8]) -> Result<Place, Error> {
    let parse = || {
        let (revision, rest) = ordered::take_u64(bytes.strip_prefix(&[RECORDS])?).ok()?;
        let (sub, rest) = ordered::take_u32(rest).ok()?;
        rest.is_empty().then_some(Place { revision: Revision::new(revision), sub })
    };
    parse().ok_or_else(|| damaged_key(bytes))
}

/// Reads a `Latest` key. Takes the engine's bytes, whose memory the key shares.
pub(super) fn decode_latest_key(bytes: &Bytes) -> Result<Bytes, Error> {
    if bytes.first() == Some(&LATEST) { Ok(bytes.slice(1..)) } else { Err(damaged_key(bytes)) }
}

/// A key as it came out of the store. Only valid keys go in, so another one is damage.
pub(super) fn stored_key(bytes: Bytes) -> Result<Key, Error> {
    Key::new(bytes).map_err(|error| Error::Damaged(format!("a stored key is invalid: {error}")))
}

fn damaged_key(bytes: &[u8]) -> Error {
    Error::Damaged(format!("a storage key can't be decoded: {}", bytes.escape_ascii()))
}

impl Applied {
    /// The marker of an engine; `None` if it has none.
    ///
    /// # Errors
    /// The disk failed, or the marker is damaged or from an older or newer program.
    pub fn of(engine: &dyn Engine) -> Result<Option<Self>, Error> {
        engine.get(&StorageKey::Applied.encode())?.as_deref().map(Self::decode).transpose()
    }

    /// The marker's stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Encoding into a growing vector can only fail on types that refuse to be serialized; these don't.
        let plain = postcard::to_stdvec(self).expect("plain data is always serialized");
        if self.targets.is_empty() {
            return framed::seal(MARKER_MAGIC, MARKER_PLAIN, &plain);
        }
        let body = postcard::to_extend(&self.targets, plain).expect("plain data is always serialized");
        framed::seal(MARKER_MAGIC, MARKER_VERSION, &body)
    }

    /// Reads the marker.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |error: framed::FrameError| Error::Damaged(format!("the applied marker: {error}"));
        let (version, body) = framed::open(MARKER_MAGIC, MARKER_VERSION, bytes).map_err(damaged)?;
        if version < MARKER_PLAIN {
            return Err(Error::Damaged(format!(
                "the store has format {version}, from an older program; this one reads {MARKER_VERSION}, and rebuilds it"
            )));
        }
        let undecodable = |_| damaged(framed::FrameError::Body);
        let (mut applied, rest) = postcard::take_from_bytes::<Self>(body).map_err(undecodable)?;
        if version > MARKER_PLAIN {
            applied.targets = postcard::from_bytes(rest).map_err(undecodable)?;
        }
        Ok(applied)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::targets::TargetChange;
    use super::*;
    use crate::types::{LogIndex, NodeId, Term};

    fn marker() -> Applied {
        Applied {
            position: Some(LogPosition { term: Term::new(2), leader: NodeId::new(1), index: LogIndex::new(300) }),
            revision: Revision::new(260),
            compacted: Revision::new(7),
            membership: Bytes::from_static(b"m"),
            hash: u128::MAX - 5,
            targets: Targets::default(),
        }
    }

    #[test]
    fn the_marker_comes_back_and_damage_is_noticed() {
        let bytes = marker().encode();
        assert_eq!(Applied::decode(&bytes).unwrap(), marker());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(matches!(Applied::decode(&bad), Err(Error::Damaged(_))), "byte {at}");
        }
    }

    #[test]
    fn the_bytes_of_the_marker_stay_as_they_are() {
        let body = b"\x01\x02\x01\xAC\x02\x84\x02\x07\x01m\xFA\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\
                     \xFF\xFF\xFF\x03";
        assert_eq!(marker().encode(), framed::seal(*b"QAPL", 2, body));
        let older = Applied::decode(&framed::seal(*b"QAPL", 1, body)).unwrap_err().to_string();
        assert!(older.contains("has format 1") && older.contains("reads 3"), "{older}");
    }

    #[test]
    fn declared_places_for_backups_stand_behind_the_marker_in_a_format_of_their_own() {
        let mut declared = marker();
        let declaration = Bytes::from_static(b"d");
        declared.targets.apply(&TargetChange::Add { name: "n".into(), declaration }).unwrap();
        let (plain, bytes) = (postcard::to_stdvec(&marker()).unwrap(), declared.encode());
        assert_eq!(bytes, framed::seal(*b"QAPL", 3, &[&plain[..], b"\x01\x01n\x01d"].concat()));
        assert_eq!(Applied::decode(&bytes).unwrap(), declared);
        assert!(Applied::decode(&framed::seal(*b"QAPL", 3, &plain)).is_err());
    }

    #[test]
    fn the_bytes_of_storage_keys_stay_as_they_are() {
        let place = Place { revision: Revision::new(0x0102), sub: 3 };
        assert_eq!(StorageKey::Applied.encode(), b"\0applied");
        assert_eq!(StorageKey::Record(place).encode(), b"\x03\0\0\0\0\0\0\x01\x02\0\0\0\x03");
        assert_eq!(StorageKey::Part { place, part: 4 }.encode(), b"\x02\0\0\0\0\0\0\x01\x02\0\0\0\x03\0\0\0\x04");
        assert_eq!(StorageKey::Latest { key: b"a\0b" }.encode(), b"\x01a\0b");
    }

    proptest! {
        #[test]
        fn records_sort_by_revision_then_sub(x in any::<u64>(), m in any::<u32>(), y in any::<u64>(), n in any::<u32>()) {
            let (a, b) = (Place { revision: Revision::new(x), sub: m }, Place { revision: Revision::new(y), sub: n });
            let (left, right) = (StorageKey::Record(a).encode(), StorageKey::Record(b).encode());
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(decode_record_key(&left).unwrap(), a);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..48)) {
            let _ = (decode_record_key(&bytes), Applied::decode(&bytes), decode_latest_key(&Bytes::from(bytes)));
        }
    }
}
