//! Every key and value that the state machine keeps in its engine.
//!
//! | key | value |
//! |---|---|
//! | `00 "applied"` | the marker: [`Applied`] in a checksummed frame |
//! | `01 ordered(key) revision` | one version of a key ([`VersionedRecord::encode_body`]) |
//! | `02 revision sub` | the key that changed: the change index |
//! | `03 key` | [`Pointer`]: the newest version of the key, without its value |
//!
//! Guarantees: keys sort by section, then by what they stand for (`codec::ordered`); every value begins with a format byte
//! or a frame, except the change index, whose values are plain keys. Records and index rows never change once written.
//! Leaves out: when they are written (`checkpoint`, `load`) and read (`store`, `scan`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::RecordMeta;
use super::record::{Change, VersionedRecord};
use crate::codec::{framed, ordered};
use crate::storage::Error;
use crate::types::{Key, LeaseId, LogPosition, Revision};

/// First bytes of the sections.
const APPLIED: u8 = 0;
const HISTORY: u8 = 1;
const CHANGES: u8 = 2;
const LATEST: u8 = 3;

/// What the marker's frame begins with.
const MARKER_MAGIC: [u8; 4] = *b"QAPL";
/// The newest format of the marker: postcard of [`Applied`].
const MARKER_VERSION: u8 = 1;
/// The format byte of an encoded [`Pointer`].
const POINTER_FORMAT: u8 = 1;
/// Bytes of an encoded [`Pointer`]: format, flags, four numbers.
const POINTER_BYTES: usize = 2 + 4 * 8;
/// Set in a pointer's flags if the newest version is a delete.
const POINTER_DELETED: u8 = 1;

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
}

/// One key of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorageKey<'a> {
    /// The marker.
    Applied,
    /// A version of a key.
    History { key: &'a [u8], revision: Revision },
    /// A row of the change index.
    Change { revision: Revision, sub: u32 },
    /// The pointer to the newest version of a key. The empty key stands for the start of the section.
    Latest { key: &'a [u8] },
    /// Right behind the last pointer.
    LatestEnd,
    /// Right behind the last version.
    HistoryEnd,
}

impl StorageKey<'_> {
    /// The bytes the engine sorts by.
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            StorageKey::Applied => [&[APPLIED], &b"applied"[..]].concat(),
            StorageKey::History { key, revision } => {
                // Room for a few escapes; more of them cost a reallocation.
                let mut out = Vec::with_capacity(key.len() + 16);
                out.push(HISTORY);
                ordered::put_bytes(&mut out, key);
                out.extend_from_slice(&revision.get().to_be_bytes());
                out
            }
            StorageKey::Change { revision, sub } => {
                let mut out = Vec::with_capacity(13);
                out.push(CHANGES);
                out.extend_from_slice(&revision.get().to_be_bytes());
                out.extend_from_slice(&sub.to_be_bytes());
                out
            }
            StorageKey::Latest { key } => {
                let mut out = Vec::with_capacity(key.len() + 1);
                out.push(LATEST);
                out.extend_from_slice(key);
                out
            }
            StorageKey::LatestEnd => vec![LATEST + 1],
            StorageKey::HistoryEnd => vec![HISTORY + 1],
        }
    }
}

/// Where the section of versions begins.
pub(super) const HISTORY_START: [u8; 1] = [HISTORY];

/// Reads a `History` key: the key and the revision.
pub(super) fn decode_history_key(bytes: &[u8]) -> Result<(Bytes, Revision), Error> {
    let parse = || {
        let (key, rest) = ordered::take_bytes(bytes.strip_prefix(&[HISTORY])?).ok()?;
        let (revision, rest) = ordered::take_u64(rest).ok()?;
        rest.is_empty().then(|| (Bytes::from(key), Revision::new(revision)))
    };
    parse().ok_or_else(|| damaged_key(bytes))
}

/// Reads a `Change` key: the revision and the place in it.
pub(super) fn decode_change_key(bytes: &[u8]) -> Result<(Revision, u32), Error> {
    let parse = || {
        let (revision, rest) = ordered::take_u64(bytes.strip_prefix(&[CHANGES])?).ok()?;
        let (sub, rest) = ordered::take_u32(rest).ok()?;
        rest.is_empty().then_some((Revision::new(revision), sub))
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

/// A version as it came out of the store.
pub(super) fn stored_record(key: Bytes, revision: Revision, body: &Bytes) -> Result<VersionedRecord, Error> {
    VersionedRecord::decode_body(stored_key(key)?, revision, body).map_err(|error| Error::Damaged(error.to_string()))
}

fn damaged_key(bytes: &[u8]) -> Error {
    Error::Damaged(format!("a storage key can't be decoded: {}", bytes.escape_ascii()))
}

/// The newest version of a key, without its value: all that a put has to know of what it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer {
    /// Where the version comes from; for a delete only `mod_revision` means something, the rest is zero.
    pub(super) meta: RecordMeta,
    /// Whether the newest version is a delete.
    pub(super) deleted: bool,
}

impl Pointer {
    /// The pointer to a version.
    pub(super) fn to(revision: Revision, change: &Change) -> Self {
        match *change {
            Change::Put { create_revision, version, lease, .. } => {
                Self { meta: RecordMeta { create_revision, mod_revision: revision, version, lease }, deleted: false }
            }
            Change::Delete => {
                Self { meta: RecordMeta { mod_revision: revision, ..RecordMeta::default() }, deleted: true }
            }
        }
    }

    /// The stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(POINTER_BYTES);
        out.extend_from_slice(&[POINTER_FORMAT, if self.deleted { POINTER_DELETED } else { 0 }]);
        let RecordMeta { create_revision, mod_revision, version, lease } = self.meta;
        for number in [mod_revision.get(), create_revision.get(), version, lease.get()] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out
    }

    /// Reads the stored form.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = || Error::Damaged(format!("a pointer can't be decoded: {}", bytes.escape_ascii()));
        let bytes: &[u8; POINTER_BYTES] = bytes.try_into().map_err(|_| damaged())?;
        let (&[format, flags], numbers) = bytes.split_first_chunk::<2>().ok_or_else(damaged)?;
        if format != POINTER_FORMAT || flags > POINTER_DELETED {
            return Err(damaged());
        }
        let (mod_revision, rest) = ordered::take_u64(numbers).map_err(|_| damaged())?;
        let (create_revision, rest) = ordered::take_u64(rest).map_err(|_| damaged())?;
        let (version, rest) = ordered::take_u64(rest).map_err(|_| damaged())?;
        let (lease, _) = ordered::take_u64(rest).map_err(|_| damaged())?;
        let meta = RecordMeta {
            create_revision: Revision::new(create_revision),
            mod_revision: Revision::new(mod_revision),
            version,
            lease: LeaseId::new(lease),
        };
        Ok(Self { meta, deleted: flags == POINTER_DELETED })
    }
}

impl Applied {
    /// The marker's stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Encoding into a growing vector can only fail on types that refuse to be serialized; these don't.
        let body = postcard::to_stdvec(self).expect("plain data is always serialized");
        framed::seal(MARKER_MAGIC, MARKER_VERSION, &body)
    }

    /// Reads the marker.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |error: framed::FrameError| Error::Damaged(format!("the applied marker: {error}"));
        let (_, body) = framed::open(MARKER_MAGIC, MARKER_VERSION, bytes).map_err(damaged)?;
        postcard::from_bytes(body).map_err(|_| damaged(framed::FrameError::Body))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{LogIndex, NodeId, Term};

    fn marker() -> Applied {
        Applied {
            position: Some(LogPosition { term: Term::new(2), leader: NodeId::new(1), index: LogIndex::new(300) }),
            revision: Revision::new(260),
            compacted: Revision::new(7),
            membership: Bytes::from_static(b"m"),
            hash: u128::MAX - 5,
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
    fn the_bytes_of_marker_format_one_stay_readable() {
        let body = b"\x01\x02\x01\xAC\x02\x84\x02\x07\x01m\xFA\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\
                     \xFF\xFF\xFF\x03";
        assert_eq!(marker().encode(), framed::seal(*b"QAPL", 1, body));
    }

    #[test]
    fn the_bytes_of_pointer_format_one_stay_readable() {
        let meta = RecordMeta {
            mod_revision: Revision::new(9),
            create_revision: Revision::new(3),
            version: 4,
            lease: LeaseId::new(5),
        };
        let bytes = b"\x01\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05";
        assert_eq!(Pointer::decode(bytes).unwrap(), Pointer { meta, deleted: false });
        assert_eq!(Pointer { meta, deleted: false }.encode(), bytes);
        for bad in [&bytes[1..], b"", b"\x02\0", &[9; POINTER_BYTES]] {
            assert!(Pointer::decode(bad).is_err());
        }
    }

    #[test]
    fn the_bytes_of_storage_keys_stay_as_they_are() {
        let revision = Revision::new(0x0102);
        assert_eq!(StorageKey::Applied.encode(), b"\0applied");
        assert_eq!(StorageKey::History { key: b"a\0b", revision }.encode(), b"\x01a\0\xFFb\0\0\0\0\0\0\0\0\x01\x02");
        assert_eq!(StorageKey::Change { revision, sub: 3 }.encode(), b"\x02\0\0\0\0\0\0\x01\x02\0\0\0\x03");
        assert_eq!(StorageKey::Latest { key: b"a\0b" }.encode(), b"\x03a\0b");
    }

    proptest! {
        #[test]
        fn history_sorts_by_key_then_revision(
            a in prop::collection::vec(prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 1..5), x in any::<u64>(),
            b in prop::collection::vec(prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 1..5), y in any::<u64>(),
        ) {
            let left = StorageKey::History { key: &a, revision: Revision::new(x) }.encode();
            let right = StorageKey::History { key: &b, revision: Revision::new(y) }.encode();
            prop_assert_eq!(left.cmp(&right), (&a, x).cmp(&(&b, y)));
            prop_assert_eq!(decode_history_key(&left).unwrap(), (Bytes::from(a), Revision::new(x)));
            prop_assert!(left.as_slice() > &HISTORY_START[..] && left < StorageKey::HistoryEnd.encode());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..48)) {
            let _ = (decode_history_key(&bytes), decode_change_key(&bytes), Pointer::decode(&bytes));
            let _ = (Applied::decode(&bytes), decode_latest_key(&Bytes::from(bytes)));
        }
    }
}
