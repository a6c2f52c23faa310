//! How entries, votes and log ids stand in the chunk files of raft-log.
//!
//! ```text
//! log id     term (8) | leader (8) | index (8)
//! vote       format (1) | its complement (1) | term (8) | node (8) | granted by a quorum (1)
//! payload    format (1) | kind (1) | length (4) | crc32c of the six bytes before (4) | body
//! ```
//! Integers are big-endian. raft-log frames each record with a type (4) and a CRC-32 (8), but knows no lengths: how long an
//! entry is stands only in its payload. Hence the checksum of its own over the head of the payload: without it one
//! flipped bit in a length would look like a record that was cut off by a crash, and all that follows would be dropped.
//! The head stays as it is in every future format, so that an old program can name a newer one.
//!
//! Guarantees: a decoded payload is what was encoded, or an error that says which of damage and newer format it is;
//! encoding copies the bytes of a batch and does not look into them. Leaves out: where records stand in files (raft-log).

use std::io::{self, Read, Write};

use bytes::Bytes;
use raft_log::codeq::{Decode, Encode};

use super::flush::Flushed;
use crate::raft::membership::of_v1;
use crate::raft::types::{Entry, LeaderId, Payload, Vote};
use crate::types::{LogIndex, LogPosition, MemberV1, NodeId, Term};

/// The newest format of payloads. Memberships are written in it; the others are as in format 1, and say so.
pub(super) const FORMAT: u8 = 2;

/// The format before, in which members have no priority and no wish.
const FORMAT_1: u8 = 1;

/// The newest format of votes.
const VOTE_FORMAT: u8 = 1;

/// The longest body of an entry, in bytes. Well above what a proposer merges into one entry, and a bound for what a
/// decoder allocates.
pub(super) const ENTRY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What stands before the body of a payload, in bytes.
const HEAD_BYTES: usize = 10;

/// An upper bound for what a record takes beside its body, in bytes: type, log id, head, checksum; a vote takes less.
pub(super) const RECORD_OVERHEAD_BYTES: u64 = 4 + 24 + HEAD_BYTES as u64 + 8;

/// Why a record can't be decoded, beside being cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    /// Written by a newer program.
    #[error("record format {0} is newer than the newest this program reads ({FORMAT})")]
    Newer(u8),
    /// Not what was written.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What raft-log is told about our types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WalTypes;

impl raft_log::Types for WalTypes {
    type LogId = LogPosition;
    type LogPayload = WalPayload;
    type Vote = WalVote;
    type Callback = Flushed;
    type UserData = ();

    fn log_index(position: &LogPosition) -> u64 {
        position.index.get()
    }

    fn payload_size(payload: &WalPayload) -> u64 {
        payload.body.len() as u64 + RECORD_OVERHEAD_BYTES
    }
}

/// What an entry carries, encoded: a batch stays the bytes it came as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WalPayload {
    kind: Kind,
    body: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No body.
    Blank,
    /// The body is a batch.
    Normal,
    /// The body is a membership in postcard.
    Membership,
    /// The same with members of format 1.
    MembershipV1,
}

impl Kind {
    /// Format and number on disk.
    const fn tags(self) -> [u8; 2] {
        match self {
            Self::Blank => [FORMAT_1, 0],
            Self::Normal => [FORMAT_1, 1],
            Self::Membership => [FORMAT, 2],
            Self::MembershipV1 => [FORMAT_1, 2],
        }
    }

    const fn of_tags(tags: [u8; 2]) -> Option<Self> {
        match tags {
            [FORMAT_1 | FORMAT, 0] => Some(Self::Blank),
            [FORMAT_1 | FORMAT, 1] => Some(Self::Normal),
            [FORMAT, 2] => Some(Self::Membership),
            [FORMAT_1, 2] => Some(Self::MembershipV1),
            _ => None,
        }
    }
}

impl WalPayload {
    /// Bytes of the body.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// From openraft's form.
    ///
    /// # Errors
    /// `InvalidInput` if the body is over [`ENTRY_BYTES_MAX`].
    pub(super) fn encode_entry(payload: Payload) -> io::Result<Self> {
        let (kind, body) = match payload {
            Payload::Blank => (Kind::Blank, Bytes::new()),
            Payload::Normal(batch) => (Kind::Normal, batch.as_bytes().clone()),
            Payload::Membership(membership) => {
                (Kind::Membership, postcard::to_stdvec(&membership).map_err(io::Error::other)?.into())
            }
        };
        if body.len() > ENTRY_BYTES_MAX {
            let problem = format!("an entry of {} bytes is over the limit of {ENTRY_BYTES_MAX}", body.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self { kind, body })
    }

    /// Into openraft's form.
    ///
    /// # Errors
    /// [`CodecError::Malformed`] if a membership can't be decoded.
    pub(super) fn decode_entry(self, position: LogPosition) -> io::Result<Entry> {
        let malformed = |_error| CodecError::Malformed("membership");
        let payload = match self.kind {
            Kind::Blank => Payload::Blank,
            Kind::Normal => Payload::Normal(self.body.into()),
            Kind::Membership => Payload::Membership(postcard::from_bytes(&self.body).map_err(malformed)?),
            Kind::MembershipV1 => {
                let old: openraft::Membership<NodeId, MemberV1> =
                    postcard::from_bytes(&self.body).map_err(malformed)?;
                Payload::Membership(of_v1(&old).map_err(|_error| CodecError::Malformed("membership"))?)
            }
        };
        Ok(Entry { log_id: position.into(), payload })
    }

    fn head(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..2].copy_from_slice(&self.kind.tags());
        // Bounded by `encode_entry` and by `decode`.
        head[2..6].copy_from_slice(&u32::try_from(self.body.len()).unwrap_or(u32::MAX).to_be_bytes());
        let sum = crc32c::crc32c(&head[..6]);
        head[6..].copy_from_slice(&sum.to_be_bytes());
        head
    }
}

/// Decodes the head of a payload: its kind and the length of its body.
fn decode_head(head: [u8; HEAD_BYTES]) -> Result<(Kind, usize), CodecError> {
    let [format, kind, l0, l1, l2, l3, s0, s1, s2, s3] = head;
    if crc32c::crc32c(&head[..6]) != u32::from_be_bytes([s0, s1, s2, s3]) {
        return Err(CodecError::Malformed("entry head"));
    }
    if format > FORMAT {
        return Err(CodecError::Newer(format));
    }
    let Some(kind) = Kind::of_tags([format, kind]) else { return Err(CodecError::Malformed("entry kind")) };
    match usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])) {
        Ok(len) if len <= ENTRY_BYTES_MAX => Ok((kind, len)),
        _ => Err(CodecError::Malformed("entry head")),
    }
}

/// How long the append record at the start of `record` says it is, in bytes with its checksum; `None` if it is another
/// record, or if its head is incomplete or damaged.
pub(super) fn append_record_bytes(record: &[u8]) -> Option<u64> {
    const APPEND: [u8; 4] = [0, 0, 0, 1];
    let head = record.strip_prefix(&APPEND)?.get(24..24 + HEAD_BYTES)?;
    let (_kind, len) = decode_head(head.try_into().ok()?).ok()?;
    Some(RECORD_OVERHEAD_BYTES + len as u64)
}

impl Encode for WalPayload {
    fn encode<W: Write>(&self, mut to: W) -> io::Result<usize> {
        to.write_all(&self.head())?;
        to.write_all(&self.body)?;
        Ok(HEAD_BYTES + self.body.len())
    }
}

impl Decode for WalPayload {
    fn decode<R: Read>(mut from: R) -> io::Result<Self> {
        let (kind, len) = decode_head(take(&mut from)?)?;
        let mut body = Vec::with_capacity(len);
        if from.take(len as u64).read_to_end(&mut body)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { kind, body: body.into() })
    }
}

/// A vote with a codec.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub(super) struct WalVote(pub(super) Vote);

impl Encode for WalVote {
    fn encode<W: Write>(&self, mut to: W) -> io::Result<usize> {
        let mut bytes = [0; 19];
        bytes[..2].copy_from_slice(&[VOTE_FORMAT, !VOTE_FORMAT]);
        bytes[2..10].copy_from_slice(&self.0.leader_id.term.get().to_be_bytes());
        bytes[10..18].copy_from_slice(&self.0.leader_id.node_id.get().to_be_bytes());
        bytes[18] = u8::from(self.0.committed);
        to.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for WalVote {
    fn decode<R: Read>(mut from: R) -> io::Result<Self> {
        match take(&mut from)? {
            [VOTE_FORMAT, complement] if complement == !VOTE_FORMAT => {}
            [format, complement] if complement == !format && format > VOTE_FORMAT => {
                return Err(CodecError::Newer(format).into());
            }
            _ => return Err(CodecError::Malformed("vote").into()),
        }
        let term = Term::new(u64::from_be_bytes(take(&mut from)?));
        let node_id = NodeId::new(u64::from_be_bytes(take(&mut from)?));
        match take(&mut from)? {
            [committed @ (0 | 1)] => {
                Ok(Self(Vote { leader_id: LeaderId { term, node_id }, committed: committed == 1 }))
            }
            _ => Err(CodecError::Malformed("vote").into()),
        }
    }
}

impl Encode for LogPosition {
    fn encode<W: Write>(&self, mut to: W) -> io::Result<usize> {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.term.get().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.leader.get().to_be_bytes());
        bytes[16..].copy_from_slice(&self.index.get().to_be_bytes());
        to.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for LogPosition {
    fn decode<R: Read>(mut from: R) -> io::Result<Self> {
        Ok(Self {
            term: Term::new(u64::from_be_bytes(take(&mut from)?)),
            leader: NodeId::new(u64::from_be_bytes(take(&mut from)?)),
            index: LogIndex::new(u64::from_be_bytes(take(&mut from)?)),
        })
    }
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Membership;
    use crate::types::Member;

    fn encoded(payload: Payload) -> Vec<u8> {
        let mut out = Vec::new();
        WalPayload::encode_entry(payload).unwrap().encode(&mut out).unwrap();
        out
    }

    fn kind_of(error: &io::Error) -> Option<CodecError> {
        error.get_ref().and_then(|inner| inner.downcast_ref().copied())
    }

    #[test]
    fn every_payload_comes_back() {
        let member = Member { name: "n1".into(), peer_addr: "a:1".into(), ..Member::default() };
        let membership = Membership::from(std::collections::BTreeMap::from([(NodeId::new(7), member)]));
        for payload in [Payload::Blank, Payload::Normal(Bytes::from("batch").into()), Payload::Membership(membership)] {
            let bytes = encoded(payload.clone());
            let position = LogPosition::default();
            let entry = WalPayload::decode(&bytes[..]).unwrap().decode_entry(position).unwrap();
            assert_eq!(entry, Entry { log_id: position.into(), payload });
        }
    }

    #[test]
    fn a_membership_of_format_one_stays_readable() {
        let body = b"\x01\x01\x07\x01\x07\x02n1\x03a:1\0\x03dc1";
        let mut bytes = vec![1, 2, 0, 0, 0, u8::try_from(body.len()).unwrap()];
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        bytes.extend(body);
        let entry = WalPayload::decode(&bytes[..]).unwrap().decode_entry(LogPosition::default()).unwrap();
        let member = Member { name: "n1".into(), peer_addr: "a:1".into(), zone: "dc1".into(), ..Member::default() };
        let membership = Membership::from(std::collections::BTreeMap::from([(NodeId::new(7), member)]));
        assert_eq!(entry.payload, Payload::Membership(membership));
    }

    #[test]
    fn a_flipped_bit_in_the_head_is_never_taken_for_a_cut_end_or_a_newer_format() {
        let bytes = encoded(Payload::Normal(Bytes::from("batch").into()));
        for bit in 0..HEAD_BYTES * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = WalPayload::decode(&bad[..]).unwrap_err();
            assert_eq!(kind_of(&error), Some(CodecError::Malformed("entry head")), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_and_a_cut_end_are_named() {
        let mut bytes = encoded(Payload::Normal(Bytes::from("batch").into()));
        let cut = WalPayload::decode(&bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        bytes[0] = FORMAT + 1;
        let sum = crc32c::crc32c(&bytes[..6]).to_be_bytes();
        bytes[6..10].copy_from_slice(&sum);
        assert_eq!(kind_of(&WalPayload::decode(&bytes[..]).unwrap_err()), Some(CodecError::Newer(FORMAT + 1)));
    }
}
