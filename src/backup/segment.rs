//! One file of the archive: committed entries of the log, one behind the other, before it is sealed.
//!
//! ```text
//! magic (8) | length (4) | header frame | entries… | 00 00 00 00 | length (4) | end frame
//! entry:  length (4) | crc32c of the body (4) | body: postcard of a LogEntry
//! ```
//!
//! Numbers are little-endian. Guarantees: a reader hands out an entry only if its bytes are what was written and it
//! follows the one before it; it ends without an error only if the file is whole; no length is believed beyond
//! [`ENTRY_BYTES_MAX`]. Leaves out: compression and encryption (`seal`), and which entries belong into a file (`archiver`).

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::codec::framed::{self, FrameError};
use crate::state::LogEntry;
use crate::types::{ClusterId, LogPosition, Revision};

/// The longest body of an entry that is believed, in bytes: no entry of the log comes near.
pub const ENTRY_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The longest header or end, in bytes.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

const MAGIC: [u8; 8] = *b"\x89QLG\r\n\x1a\n";
const HEADER_MAGIC: [u8; 4] = *b"QLGH";
const END_MAGIC: [u8; 4] = *b"QLGE";

/// The newest format, which is the one that is written.
pub const FORMAT_VERSION: u8 = 1;

/// What a file begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// The cluster whose log it is.
    pub cluster: ClusterId,
    /// The entry right before the first one; `None` if that is the first of all.
    pub previous: Option<LogPosition>,
}

/// What the state amounts to behind an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMark {
    /// The revision of the store.
    pub revision: Revision,
    /// The state hash.
    pub hash: u128,
}

/// What a file ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEnd {
    /// How many entries there are, at least one.
    pub entries: u64,
    /// The last of them.
    pub last: LogPosition,
    /// The state behind it, if the node that wrote the file knew it.
    pub state: Option<StateMark>,
}

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Not a file of the archive.
    #[error("this is no log segment of Quorate")]
    Foreign,
    /// Header or end are damaged or newer.
    #[error("its {part}: {source}")]
    Frame {
        /// Which of them.
        part: &'static str,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// An entry is damaged, or does not follow the one before it.
    #[error("damaged behind entry {after}: {why}")]
    Damaged {
        /// The index of the last entry that was whole.
        after: u64,
        /// What is wrong.
        why: String,
    },
    /// It can't be read, or ends early.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Writes a file.
pub struct SegmentWriter<W: Write> {
    out: W,
    last: Option<LogPosition>,
    entries: u64,
    body: Vec<u8>,
}

impl<W: Write> SegmentWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// `out` failed.
    pub fn new(mut out: W, header: &SegmentHeader) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        write_frame(&mut out, HEADER_MAGIC, header)?;
        Ok(Self { out, last: header.previous, entries: 0, body: Vec::new() })
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// `out` failed, or the entry is not the next one: a mistake of the caller, nothing was written.
    pub fn push(&mut self, entry: &LogEntry) -> io::Result<()> {
        if !follows(self.last, entry.position) {
            return Err(io::Error::other(format!("entry {} does not follow {:?}", entry.position, self.last)));
        }
        self.body.clear();
        self.body = postcard::to_extend(entry, std::mem::take(&mut self.body)).map_err(io::Error::other)?;
        let length = u32::try_from(self.body.len()).ok().filter(|_| self.body.len() <= ENTRY_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::other("an entry is too large for the archive"))?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&crc32c::crc32c(&self.body).to_le_bytes())?;
        self.out.write_all(&self.body)?;
        self.last = Some(entry.position);
        self.entries += 1;
        Ok(())
    }

    /// Ends the file, which must hold an entry at least.
    ///
    /// # Errors
    /// `out` failed, or there is no entry.
    pub fn finish(mut self, state: Option<StateMark>) -> io::Result<(SegmentEnd, W)> {
        let last = self.last.filter(|_| self.entries > 0);
        let last = last.ok_or_else(|| io::Error::other("a segment without an entry"))?;
        let end = SegmentEnd { entries: self.entries, last, state };
        self.out.write_all(&0_u32.to_le_bytes())?;
        write_frame(&mut self.out, END_MAGIC, &end)?;
        Ok((end, self.out))
    }
}

/// Whether an entry may stand right behind another.
fn follows(last: Option<LogPosition>, next: LogPosition) -> bool {
    match last {
        None => next.index.get() == 0,
        Some(last) => next.index == last.index.next() && (next.term, next.leader) >= (last.term, last.leader),
    }
}

fn write_frame(out: &mut impl Write, magic: [u8; 4], body: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_stdvec(body).map_err(io::Error::other)?;
    let frame = framed::seal(magic, FORMAT_VERSION, &body);
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&frame)
}

/// Reads a file, entry by entry.
#[derive(Debug)]
pub struct SegmentReader<R: Read> {
    input: R,
    header: SegmentHeader,
    last: Option<LogPosition>,
    entries: u64,
    end: Option<SegmentEnd>,
}

impl<R: Read> SegmentReader<R> {
    /// Reads the beginning of a file.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn new(mut input: R) -> Result<Self, SegmentError> {
        let mut magic = [0; 8];
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(SegmentError::Foreign);
        }
        let header: SegmentHeader = read_frame(&mut input, HEADER_MAGIC, "header")?;
        Ok(Self { input, last: header.previous, header, entries: 0, end: None })
    }

    /// What the file begins with.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// What it ends with, once everything was read.
    #[must_use]
    pub fn end(&self) -> Option<&SegmentEnd> {
        self.end.as_ref()
    }

    /// The next entry; `None` behind the last one, and only if the file is whole.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, SegmentError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let length = read_u32(&mut self.input)?;
        if length == 0 {
            self.finish()?;
            return Ok(None);
        }
        let length = length as usize;
        if length > ENTRY_BYTES_MAX {
            return Err(self.damaged(format!("a length of {length} bytes")));
        }
        let sum = read_u32(&mut self.input)?;
        let body = read_bytes(&mut self.input, length)?;
        if crc32c::crc32c(&body) != sum {
            return Err(self.damaged("the checksum does not match".into()));
        }
        let entry: LogEntry = postcard::from_bytes(&body).map_err(|error| self.damaged(error.to_string()))?;
        if !follows(self.last, entry.position) {
            return Err(self.damaged(format!("entry {} does not follow", entry.position)));
        }
        self.last = Some(entry.position);
        self.entries += 1;
        Ok(Some(entry))
    }

    fn finish(&mut self) -> Result<(), SegmentError> {
        let end: SegmentEnd = read_frame(&mut self.input, END_MAGIC, "end")?;
        if (end.entries, Some(end.last)) != (self.entries, self.last) || self.entries == 0 {
            return Err(self.damaged("the end tells of other entries than there are".into()));
        }
        if self.input.read(&mut [0])? != 0 {
            return Err(self.damaged("there is more behind the end".into()));
        }
        self.end = Some(end);
        Ok(())
    }

    fn damaged(&self, why: String) -> SegmentError {
        SegmentError::Damaged { after: self.last.map_or(0, |last| last.index.get()), why }
    }
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads so many bytes, without making room for them before they are there.
fn read_bytes(input: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_frame<T: for<'a> Deserialize<'a>>(
    input: &mut impl Read,
    magic: [u8; 4],
    part: &'static str,
) -> Result<T, SegmentError> {
    let wrong = |source| SegmentError::Frame { part, source };
    let length = read_u32(input)? as usize;
    if length > FRAME_BYTES_MAX {
        return Err(wrong(FrameError::Checksum));
    }
    let frame = read_bytes(input, length)?;
    let (_, body) = framed::open(magic, FORMAT_VERSION, &frame).map_err(wrong)?;
    postcard::from_bytes(body).map_err(|_| wrong(FrameError::Body))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::state::{Batch, LogContent};
    use crate::types::{LogIndex, NodeId, Term};

    fn position(index: u64) -> LogPosition {
        LogPosition { term: Term::new(2), leader: NodeId::new(1), index: LogIndex::new(index) }
    }

    fn header() -> SegmentHeader {
        SegmentHeader { cluster: ClusterId::new(7), previous: Some(position(9)) }
    }

    fn entries() -> Vec<LogEntry> {
        let contents = [
            LogContent::Blank,
            LogContent::Membership(Bytes::from_static(b"members")),
            LogContent::Commands(Batch::encode(&[])),
        ];
        (10..).zip(contents).map(|(index, content)| LogEntry { position: position(index), content }).collect()
    }

    fn mark() -> StateMark {
        StateMark { revision: Revision::new(5), hash: u128::MAX - 2 }
    }

    fn written(entries: &[LogEntry]) -> Vec<u8> {
        let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
        for entry in entries {
            writer.push(entry).unwrap();
        }
        writer.finish(Some(mark())).unwrap().1
    }

    fn read(bytes: &[u8]) -> Result<(Vec<LogEntry>, SegmentEnd), SegmentError> {
        let mut reader = SegmentReader::new(bytes)?;
        assert_eq!(reader.header(), &header());
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            found.push(entry);
        }
        Ok((found, reader.end().cloned().unwrap()))
    }

    #[test]
    fn entries_come_back_with_the_state_behind_them() {
        let end = SegmentEnd { entries: 3, last: position(12), state: Some(mark()) };
        assert_eq!(read(&written(&entries())).unwrap(), (entries(), end));
    }

    #[test]
    fn the_bytes_of_a_segment_stay_as_they_are() {
        let begin = SegmentHeader { cluster: ClusterId::new(7), previous: None };
        let first = LogEntry { position: position(0), content: LogContent::Blank };
        let mut shortest = SegmentWriter::new(Vec::new(), &begin).unwrap();
        shortest.push(&first).unwrap();
        let shortest = shortest.finish(None).unwrap().1;
        let stored = crate::codec::golden::check(
            "backup-segment-v1",
            [("three_entries", written(&entries())), ("one_entry", shortest)],
        );
        assert_eq!(read(&stored["three_entries"]).unwrap().0, entries());
        let mut reader = SegmentReader::new(stored["one_entry"].as_slice()).unwrap();
        assert_eq!((reader.header().clone(), reader.next_entry().unwrap()), (begin, Some(first)));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = written(&entries());
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len]).is_err(), "cut to {len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(read(&longer).unwrap_err().to_string().contains("more behind"));
    }

    #[test]
    fn an_entry_that_does_not_follow_is_refused_by_writer_and_reader() {
        let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
        for wrong in [position(9), position(11)] {
            assert!(writer.push(&LogEntry { position: wrong, content: LogContent::Blank }).is_err());
        }
        let older = LogPosition { term: Term::new(1), ..position(10) };
        assert!(writer.push(&LogEntry { position: older, content: LogContent::Blank }).is_err());
        assert!(writer.finish(None).is_err(), "there is no entry");
        let first = LogEntry { position: position(0), content: LogContent::Blank };
        let begin = SegmentHeader { previous: None, ..header() };
        SegmentWriter::new(Vec::new(), &begin).unwrap().push(&first).unwrap();
    }
}
