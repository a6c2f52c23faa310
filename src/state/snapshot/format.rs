//! The bytes of a snapshot file, piece by piece; `docs/formats.md` shows how they follow each other.
//!
//! Guarantees: decoding any bytes neither panics nor allocates by a number that was not checked against a bound.
//! Numbers of fixed size are little-endian. Leaves out: reading and writing files, and the order of records.

use bytes::Bytes;

use crate::state::{Change, VersionedRecord};
use crate::types::limits::{KEY_BYTES_MAX, TXN_BYTES_MAX};
use crate::types::{Key, LeaseId, Revision};

/// The newest format version, which is the one that is written.
///
/// | version | records | live keys in the footer |
/// |---|---|---|
/// | 1 | by key and revision | follow from the records |
/// | 2 | by revision and the place in it, as the state has them | as the writer counted them |
/// | 3 | as in 2; the declared places for backups stand behind the rest of the header | |
///
/// Version 3 is written only if places are declared, so that older programs read whatever they can.
pub const FORMAT_VERSION: u8 = 3;

/// The version of a file without declared places.
pub(super) const FORMAT_PLAIN: u8 = 2;

/// The longest header frame, in bytes; the membership is what varies in it.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// A block of records is closed once it holds this many bytes, before compression.
pub const BLOCK_TARGET_BYTES: usize = 256 * 1024;

/// The largest block in bytes, before and after compression. A record can't be larger than the transaction that wrote
/// it.
pub const BLOCK_BYTES_MAX: usize = 16 * 1024 * 1024;

const _: () =
    assert!(BLOCK_BYTES_MAX >= BLOCK_TARGET_BYTES + TXN_BYTES_MAX + KEY_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX);

/// The first bytes. Like those of PNG they give away a transfer that stripped the high bit or changed line ends.
pub(super) const MAGIC: [u8; 8] = *b"\x89QSN\r\n\x1a\n";

/// The last bytes of a complete file.
pub(super) const END_MAGIC: [u8; 8] = *b"QSNAPEND";

/// Begins the header frame.
pub(super) const HEADER_MAGIC: [u8; 4] = *b"QSNH";

/// Section of the versioned records.
pub(super) const SECTION_RECORDS: u16 = 1;

/// Section of nothing: zeros that keep room for a header which was not known yet when what follows was written.
pub(super) const SECTION_PADDING: u16 = 2;

/// Section of the footer: the one block of it is the last of the file.
pub(super) const SECTION_END: u16 = u16::MAX;

/// Flag of a block: the body is one zstd frame.
pub(super) const FLAG_ZSTD: u16 = 1;

/// Flag of a block: a program that does not know the section may pass it over.
pub(super) const FLAG_SKIPPABLE: u16 = 2;

/// What stands before the header frame: magic, length of the frame, checksum of these two.
pub(super) const PREAMBLE_BYTES: usize = 16;

/// What stands before the body of a block.
pub(super) const BLOCK_HEAD_BYTES: usize = 24;

/// The body of the footer.
pub(super) const FOOTER_BYTES: usize = 60;

/// The least a record takes in a block: a key of one byte, every number zero.
pub(super) const RECORD_BYTES_MIN: usize = 5;

/// The most a record takes beside its key and value: kind, seven numbers.
const RECORD_OVERHEAD_BYTES_MAX: usize = 1 + 7 * VARINT_BYTES_MAX;

/// The longest LEB128 form of a `u64`.
const VARINT_BYTES_MAX: usize = 10;

/// Kinds of a record.
const KIND_DELETE: u8 = 0;
const KIND_PUT: u8 = 1;

/// The bytes before the header frame.
pub(super) fn encode_preamble(frame_len: u32) -> [u8; PREAMBLE_BYTES] {
    let mut out = [0; PREAMBLE_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&frame_len.to_le_bytes());
    let sum = crc32c::crc32c(&out[..12]);
    out[12..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The length of the header frame, if magic and checksum are right; the length itself is not judged.
pub(super) fn decode_preamble(bytes: &[u8; PREAMBLE_BYTES]) -> Option<u32> {
    let mut fields = Fields(bytes);
    let sound = fields.array()? == MAGIC;
    let frame_len = fields.u32()?;
    (sound && fields.u32()? == crc32c::crc32c(&bytes[..12])).then_some(frame_len)
}

/// What is known of a block before its body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHead {
    pub(super) section: u16,
    pub(super) flags: u16,
    /// Length of the body as it stands in the file.
    pub(super) stored_len: u32,
    /// Length of the body once decompressed.
    pub(super) plain_len: u32,
    /// How many records, or whatever the section is made of, the body holds.
    pub(super) items: u32,
    /// CRC-32C of the stored body.
    pub(super) body_crc: u32,
}

impl BlockHead {
    /// The head of a block with this stored form.
    pub(super) fn of(section: u16, flags: u16, items: u32, plain_len: usize, stored: &[u8]) -> Self {
        let (stored_len, body_crc) = (stored.len() as u32, crc32c::crc32c(stored));
        Self { section, flags, stored_len, plain_len: plain_len as u32, items, body_crc }
    }

    pub(super) fn encode(&self) -> [u8; BLOCK_HEAD_BYTES] {
        let mut out = [0; BLOCK_HEAD_BYTES];
        out[..2].copy_from_slice(&self.section.to_le_bytes());
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[4..8].copy_from_slice(&self.stored_len.to_le_bytes());
        out[8..12].copy_from_slice(&self.plain_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.items.to_le_bytes());
        out[16..20].copy_from_slice(&self.body_crc.to_le_bytes());
        let sum = crc32c::crc32c(&out[..20]);
        out[20..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// `None` if the checksum is wrong. The checksum of the head stands alone so that a length is never believed, let
    /// alone waited for, before it was checked.
    pub(super) fn decode(bytes: &[u8; BLOCK_HEAD_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let head = Self {
            section: u16::from_le_bytes(fields.array()?),
            flags: u16::from_le_bytes(fields.array()?),
            stored_len: fields.u32()?,
            plain_len: fields.u32()?,
            items: fields.u32()?,
            body_crc: fields.u32()?,
        };
        (fields.u32()? == crc32c::crc32c(&bytes[..20])).then_some(head)
    }
}

/// What the end of the file says of everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) records: u64,
    pub(super) keys: u64,
    /// Blocks before this one, of every section.
    pub(super) blocks: u64,
    pub(super) hash: u128,
    /// Length of the whole file, this footer included.
    pub(super) file_bytes: u64,
    /// CRC-32C over preamble, header frame and the head of every block before this one. As each head holds the checksum
    /// of its body, pieces of two files never make a third.
    pub(super) chain: u32,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[..8].copy_from_slice(&self.records.to_le_bytes());
        out[8..16].copy_from_slice(&self.keys.to_le_bytes());
        out[16..24].copy_from_slice(&self.blocks.to_le_bytes());
        out[24..40].copy_from_slice(&self.hash.to_le_bytes());
        out[40..48].copy_from_slice(&self.file_bytes.to_le_bytes());
        out[48..52].copy_from_slice(&self.chain.to_le_bytes());
        out[52..].copy_from_slice(&END_MAGIC);
        out
    }

    /// `None` if the length or the end magic is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let footer = Self {
            records: fields.u64()?,
            keys: fields.u64()?,
            blocks: fields.u64()?,
            hash: u128::from_le_bytes(fields.array()?),
            file_bytes: fields.u64()?,
            chain: fields.u32()?,
        };
        (fields.array()? == END_MAGIC && fields.0.is_empty()).then_some(footer)
    }
}

/// Appends a record to a block. Keys are written whole: zstd takes shared prefixes out just as well, and a reader can
/// hand out keys and values that share the memory of the block.
pub(super) fn put_record(out: &mut Vec<u8>, record: &VersionedRecord) {
    put_slice(out, record.key.as_bytes());
    put_varint(out, record.revision.get());
    put_varint(out, record.sub.into());
    match &record.change {
        Change::Delete => out.push(KIND_DELETE),
        Change::Put { create_revision, version, lease, value } => {
            out.push(KIND_PUT);
            for number in [create_revision.get(), *version, lease.get()] {
                put_varint(out, number);
            }
            put_slice(out, value);
        }
    }
}

/// The most bytes [`put_record`] may append.
pub(super) fn record_bytes_max(record: &VersionedRecord) -> usize {
    record.payload_len() + RECORD_OVERHEAD_BYTES_MAX
}

/// Takes the records out of the body of one block, one after the other.
#[derive(Debug, Default)]
pub(super) struct Records {
    body: Bytes,
    at: usize,
}

impl Records {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body, at: 0 }
    }

    /// Whether the body is used up.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.body.len()
    }

    /// The next record, sharing the memory of the block; `None` if there is no valid one.
    pub(super) fn take(&mut self) -> Option<VersionedRecord> {
        let key = Key::new(self.slice()?).ok()?;
        let revision = Revision::new(self.varint()?);
        let sub = u32::try_from(self.varint()?).ok()?;
        let kind = *self.body.get(self.at)?;
        self.at += 1;
        let change = match kind {
            KIND_DELETE => Change::Delete,
            KIND_PUT => Change::Put {
                create_revision: Revision::new(self.varint()?),
                version: self.varint()?,
                lease: LeaseId::new(self.varint()?),
                value: self.slice()?,
            },
            _ => return None,
        };
        Some(VersionedRecord { key, revision, sub, change })
    }

    fn slice(&mut self) -> Option<Bytes> {
        let len = usize::try_from(self.varint()?).ok()?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.body.len())?;
        let slice = self.body.slice(self.at..end);
        self.at = end;
        Some(slice)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for place in 0..VARINT_BYTES_MAX {
            let byte = *self.body.get(self.at)?;
            self.at += 1;
            // The tenth byte has room for one bit only.
            if place == VARINT_BYTES_MAX - 1 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

fn put_slice(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// LEB128: seven bits a byte, the lowest first, the high bit set in all but the last.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads fields of fixed size from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
