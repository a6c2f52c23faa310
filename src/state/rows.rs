//! What stands behind the engine's keys: records and pointers, byte by byte.
//!
//! A value that is long stands apart from its record, in parts: an engine keeps many rows on a page, and reads and
//! writes whole pages.
//!
//! Guarantees: every record and pointer begins with its format; bytes of another format, cut or foreign ones are
//! [`Error::Damaged`], never a panic; a decoded record shares the memory of its bytes. Leaves out: the keys and the
//! marker (`schema`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::chain::{Chain, Links, Place};
use super::command::RecordMeta;
use super::record::{Change, VersionedRecord};
use super::schema::stored_key;
use crate::storage::Error;
use crate::types::{LeaseId, Revision};

/// The format byte of a record.
const RECORD_FORMAT: u8 = 2;
/// The format byte of a pointer.
const POINTER_FORMAT: u8 = 2;

/// The longest key and value together that stand in one row, in bytes. With 64 rows a page, a page stays below 64 KiB unless
/// keys are longer: sled writes one of exactly 65,529 bytes so that it can't be read again (see there).
pub(super) const INLINE_BYTES_MAX: usize = if cfg!(test) { 64 } else { 900 };

/// The length of the parts of a value that stands apart, but the last, in bytes.
pub(super) const PART_BYTES: usize = if cfg!(test) { 64 } else { 960 };

/// A record as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredRecord {
    pub(super) record: VersionedRecord,
    pub(super) links: Links,
}

/// What stands before the value.
#[derive(Serialize, Deserialize)]
struct RecordHead<'a> {
    key: &'a [u8],
    links: Links,
    /// Of a put; `None` for a delete.
    put: Option<PutHead>,
}

#[derive(Serialize, Deserialize)]
struct PutHead {
    create_revision: Revision,
    version: u64,
    lease: LeaseId,
    /// The length of a value that stands apart; `None` if it follows.
    apart: Option<u64>,
}

impl PutHead {
    fn of(change: &Change, apart: Option<u64>) -> Option<Self> {
        match *change {
            Change::Put { create_revision, version, lease, .. } => {
                Some(Self { create_revision, version, lease, apart })
            }
            Change::Delete => None,
        }
    }

    fn meta(&self, mod_revision: Revision) -> RecordMeta {
        let Self { create_revision, version, lease, .. } = *self;
        RecordMeta { create_revision, mod_revision, version, lease }
    }
}

/// The value of a change, and whether it stands apart.
fn placed_value<'a>(key: &[u8], change: &'a Change) -> (&'a [u8], bool) {
    match change {
        Change::Put { value, .. } => (value, value.len() > INLINE_BYTES_MAX.saturating_sub(key.len())),
        Change::Delete => (&[], false),
    }
}

/// The parts of a value that stands apart, in order; none for any other.
pub(super) fn parts(key: &[u8], change: &Change) -> impl Iterator<Item = Bytes> {
    let value = match change {
        Change::Put { value, .. } if placed_value(key, change).1 => value.clone(),
        Change::Put { .. } | Change::Delete => Bytes::new(),
    };
    (0..value.len()).step_by(PART_BYTES).map(move |at| value.slice(at..value.len().min(at + PART_BYTES)))
}

/// The stored form of a record, without its place and its parts.
pub(super) fn encode_record(key: &[u8], change: &Change, links: Links) -> Vec<u8> {
    let (value, is_apart) = placed_value(key, change);
    let put = PutHead::of(change, is_apart.then_some(value.len() as u64));
    let value = if is_apart { &[] } else { value };
    let mut out = Vec::with_capacity(64 + key.len() + value.len());
    out.push(RECORD_FORMAT);
    let mut out = serialize_into(out, &RecordHead { key, links, put });
    out.extend_from_slice(value);
    out
}

/// Reads what [`encode_record`] wrote. `apart` fetches the value of a length that stands apart.
pub(super) fn decode_record(
    place: Place,
    body: &Bytes,
    apart: impl FnOnce(u64) -> Result<Bytes, Error>,
) -> Result<StoredRecord, Error> {
    let (head, value) = decode_head(body)?;
    let change = match head.put {
        Some(PutHead { create_revision, version, lease, apart: None }) => {
            Change::Put { create_revision, version, lease, value: body.slice_ref(value) }
        }
        Some(PutHead { create_revision, version, lease, apart: Some(len) }) if value.is_empty() => {
            Change::Put { create_revision, version, lease, value: apart(len)? }
        }
        None if value.is_empty() => Change::Delete,
        _ => return Err(damaged_record(body)),
    };
    let key = stored_key(body.slice_ref(head.key))?;
    let record = VersionedRecord { key, revision: place.revision, sub: place.sub, change };
    Ok(StoredRecord { record, links: head.links })
}

/// Reads the key and the links of a record.
pub(super) fn decode_links(body: &[u8]) -> Result<(&[u8], Links), Error> {
    decode_head(body).map(|(head, _)| (head.key, head.links))
}

/// Reads the key of a record and where its value comes from; `None` for a delete.
pub(super) fn decode_meta(place: Place, body: &[u8]) -> Result<(&[u8], Option<RecordMeta>), Error> {
    let (head, _) = decode_head(body)?;
    Ok((head.key, head.put.map(|put| put.meta(place.revision))))
}

fn decode_head(body: &[u8]) -> Result<(RecordHead<'_>, &[u8]), Error> {
    let Some((&RECORD_FORMAT, rest)) = body.split_first() else { return Err(damaged_record(body)) };
    postcard::take_from_bytes(rest).map_err(|_| damaged_record(body))
}

fn damaged_record(body: &[u8]) -> Error {
    let start = body[..body.len().min(8)].escape_ascii();
    Error::Damaged(format!("a stored record of {} bytes can't be decoded: it begins with {start}", body.len()))
}

/// The newest version of a key, without its value: all that a put has to know of what it replaces, and all that a listing
/// without values has to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    /// Where the version comes from; for a delete only `mod_revision` means something, the rest is zero.
    pub(super) meta: RecordMeta,
    /// The place of the version among the records of its revision.
    pub(super) sub: u32,
    /// Whether the newest version is a delete.
    pub(super) deleted: bool,
    /// The version and the way to older ones. Never empty.
    pub(super) chain: Chain,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct PointerRow {
    put: Option<PutHead>,
    chain: Chain,
}

/// The stored form of the pointer to a version, which `chain` ends with.
pub(super) fn encode_pointer(change: &Change, chain: Chain) -> Vec<u8> {
    let put = PutHead::of(change, None);
    serialize_into(vec![POINTER_FORMAT], &PointerRow { put, chain })
}

impl Pointer {
    /// Reads what [`encode_pointer`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = || Error::Damaged(format!("a pointer can't be decoded: {}", bytes.escape_ascii()));
        let Some((&POINTER_FORMAT, rest)) = bytes.split_first() else { return Err(damaged()) };
        let Ok((PointerRow { put, chain }, [])) = postcard::take_from_bytes(rest) else { return Err(damaged()) };
        let Place { revision: mod_revision, sub } = chain.newest().ok_or_else(damaged)?;
        let deleted = put.is_none();
        let meta = put.map_or(RecordMeta { mod_revision, ..RecordMeta::default() }, |put| put.meta(mod_revision));
        Ok(Self { meta, sub, deleted, chain })
    }
}

/// Appends the postcard form of plain data.
fn serialize_into(out: Vec<u8>, value: &impl Serialize) -> Vec<u8> {
    // Encoding into a growing vector can only fail on types that refuse to be serialized; these don't.
    postcard::to_extend(value, out).expect("plain data is always serialized")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(revision: u64, sub: u32) -> Place {
        Place { revision: Revision::new(revision), sub }
    }

    fn put(value: &'static [u8]) -> Change {
        Change::Put {
            create_revision: Revision::new(3),
            version: 4,
            lease: LeaseId::new(5),
            value: Bytes::from_static(value),
        }
    }

    fn no_parts(len: u64) -> Result<Bytes, Error> {
        Err(Error::Damaged(format!("{len} bytes are missing")))
    }

    fn links() -> Links {
        Links { previous: Some(place(300, 1)), jump: Some(place(2, 0)) }
    }

    #[test]
    fn records_come_back() {
        for (change, links) in [(put(b"value"), links()), (put(b""), Links::default()), (Change::Delete, links())] {
            let body = Bytes::from(encode_record(b"k", &change, links));
            let found = decode_record(place(310, 2), &body, no_parts).unwrap();
            let key = stored_key(Bytes::from_static(b"k")).unwrap();
            let record = VersionedRecord { key, revision: Revision::new(310), sub: 2, change };
            assert_eq!(found, StoredRecord { record, links });
        }
    }

    #[test]
    fn cut_and_foreign_records_are_refused() {
        let body = Bytes::from(encode_record(b"k", &put(b""), links()));
        for len in 0..body.len() {
            assert!(decode_record(place(9, 0), &body.slice(..len), no_parts).is_err());
        }
        let mut delete = encode_record(b"k", &Change::Delete, links());
        delete.push(0);
        for foreign in [delete, vec![9; 40], encode_record(b"", &Change::Delete, links())] {
            assert!(matches!(decode_record(place(9, 0), &Bytes::from(foreign), no_parts), Err(Error::Damaged(_))));
        }
    }

    #[test]
    fn a_value_too_long_for_a_page_stands_apart_in_parts() {
        let put = |len: usize| {
            let value = (0..len).map(|at| at as u8).collect::<Vec<_>>();
            Change::Put { create_revision: Revision::new(3), version: 4, lease: LeaseId::ZERO, value: value.into() }
        };
        assert_eq!(parts(b"k", &put(INLINE_BYTES_MAX - 1)).count() + parts(b"k", &Change::Delete).count(), 0);
        assert_eq!(parts(b"k", &put(INLINE_BYTES_MAX)).count(), 1);
        assert_eq!(parts(&[b'k'; INLINE_BYTES_MAX], &put(1)).count(), 1);
        for (len, count) in [(PART_BYTES + 1, 2), (2 * PART_BYTES, 2), (5 * PART_BYTES - 1, 5)] {
            let body = Bytes::from(encode_record(b"k", &put(len), links()));
            assert!(body.len() < 32);
            let found = decode_record(place(9, 0), &body, |asked| {
                assert_eq!(asked, len as u64);
                let parts: Vec<Bytes> = parts(b"k", &put(len)).collect();
                assert_eq!(parts.len(), count);
                Ok(parts.concat().into())
            });
            assert_eq!(found.unwrap().record.change, put(len));
            assert_eq!(decode_links(&body).unwrap(), (&b"k"[..], links()));
            assert!(decode_record(place(9, 0), &body, no_parts).is_err());
        }
    }

    #[test]
    fn the_bytes_of_a_record_stay_as_they_are() {
        let bytes = b"\x02\x01k\x01\xAC\x02\x01\x01\x02\0\x01\x03\x04\x05\0value";
        assert_eq!(encode_record(b"k", &put(b"value"), links()), bytes);
        assert_eq!(encode_record(b"k", &Change::Delete, Links::default()), b"\x02\x01k\0\0\0");
    }

    #[test]
    fn the_bytes_of_a_pointer_stay_as_they_are() {
        let mut chain = Chain::begun_at(place(3, 0));
        chain.append(place(300, 1));
        let bytes = b"\x02\x01\x03\x04\x05\0\x02\x03\0\x01\xAC\x02\x01\x01";
        assert_eq!(encode_pointer(&put(b"left out"), chain.clone()), bytes);
        let meta = RecordMeta {
            mod_revision: Revision::new(300),
            create_revision: Revision::new(3),
            version: 4,
            lease: LeaseId::new(5),
        };
        let pointer = Pointer { meta, sub: 1, deleted: false, chain: chain.clone() };
        assert_eq!(Pointer::decode(bytes).unwrap(), pointer);
        let deleted = Pointer::decode(&encode_pointer(&Change::Delete, chain)).unwrap();
        assert_eq!((deleted.deleted, deleted.meta.mod_revision), (true, Revision::new(300)));
        let empty = encode_pointer(&Change::Delete, Chain::default());
        for bad in [&bytes[1..], b"", b"\x01\0", &[&bytes[..], b"\0"].concat(), &empty] {
            assert!(Pointer::decode(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..48)) {
            let _ = (Pointer::decode(&bytes), decode_record(place(1, 0), &Bytes::from(bytes), no_parts));
        }
    }
}
