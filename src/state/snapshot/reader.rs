//! Reading a snapshot, from a file or from anything that gives bytes, and verifying it on the way.
//!
//! Guarantees: every byte is covered by a checksum that is checked before the byte is used; the memory taken is three
//! blocks at most ([`BLOCK_BYTES_MAX`] each) and the read buffer; after an error nothing more is handed out. Leaves
//! out: putting records anywhere.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use zstd::bulk::Decompressor;

use super::format::{
    BLOCK_BYTES_MAX, BLOCK_HEAD_BYTES, BlockHead, FLAG_SKIPPABLE, FLAG_ZSTD, FOOTER_BYTES, FORMAT_PLAIN,
    FORMAT_VERSION, Footer, HEADER_BYTES_MAX, HEADER_MAGIC, MAGIC, PREAMBLE_BYTES, RECORD_BYTES_MIN, Records,
    SECTION_END, SECTION_RECORDS, decode_preamble,
};
use super::tally::{RecordOrder, Tally};
use super::{Draft, SnapshotError, SnapshotMeta, SnapshotSummary};
use crate::codec::framed::{self, FrameError};
use crate::state::VersionedRecord;

/// Bytes read from a file at once.
const READ_BUFFER_BYTES: usize = 1024 * 1024;

/// The records of a snapshot, each key's in order of revision, verified while they are read.
///
/// The last record comes only once the footer has been verified, so whoever got `None` without an `Err` before has the
/// whole, sound snapshot. After an `Err` there is only `None`. Keys and values share the memory of their block (256 KiB
/// as a rule): copy what is to be kept alone for long.
pub struct SnapshotReader<R = BufReader<File>> {
    source: Source<R>,
    meta: SnapshotMeta,
    decompressor: Decompressor<'static>,
    /// The stored form of a compressed block; kept for its memory.
    stored: Vec<u8>,
    block: OpenBlock,
    tally: Tally,
    blocks: u64,
    chain: u32,
    /// The newest record; held back until it is known whether it is the last.
    held: Option<VersionedRecord>,
    /// What takes over the blocks of records, once they were checked.
    draft: Option<Draft>,
    is_over: bool,
    summary: Option<SnapshotSummary>,
}

/// The block of records that is being taken apart.
#[derive(Default)]
struct OpenBlock {
    records: Records,
    /// Records not yet taken.
    left: u32,
    /// Where the block begins in the file.
    at_byte: u64,
}

impl SnapshotReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`SnapshotError`] if there is none, or it does not begin as a snapshot that this program reads.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let file = File::open(path)
            .map_err(|source| SnapshotError::Io { action: format!("open the snapshot {}", path.display()), source })?;
        Self::from_stream(BufReader::with_capacity(READ_BUFFER_BYTES, file))
    }
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the header from a stream that holds one snapshot and nothing behind it; for one inside a longer stream use
    /// [`Read::take`]. The stream should be buffered.
    ///
    /// # Errors
    /// [`SnapshotError`] if the stream fails or does not begin as a snapshot that this program reads.
    pub fn from_stream(stream: R) -> Result<Self, SnapshotError> {
        let mut source = Source { stream, at: 0, sha256: Sha256::new() };
        let (meta, order, chain) = read_header(&mut source)?;
        let decompressor = Decompressor::new()
            .map_err(|source| SnapshotError::Io { action: "set up decompression".into(), source })?;
        Ok(Self {
            source,
            meta,
            decompressor,
            stored: Vec::new(),
            block: OpenBlock::default(),
            tally: Tally::new(order),
            blocks: 0,
            chain,
            held: None,
            draft: None,
            is_over: false,
            summary: None,
        })
    }

    /// What the snapshot is of, as its header tells. Its `hash` and `revision` are proven only at the end.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Has a new file take over the records as they are read; [`Self::into_draft`] gives it back. One of an older format has
    /// them in another order, so that nothing is taken over. Before the first record.
    pub fn copy_to(&mut self, draft: Draft) {
        self.draft = Some(draft);
    }

    /// The file that was given to [`Self::copy_to`], once all was read and found sound.
    #[must_use]
    pub fn into_draft(self) -> Option<Draft> {
        let mut draft = self.draft.filter(|_| self.summary.is_some())?;
        if self.tally.order() == RecordOrder::Revision {
            draft.go_on(self.tally);
        }
        Some(draft)
    }

    /// What the snapshot holds: known once it was read to its end and found sound.
    #[must_use]
    pub fn summary(&self) -> Option<&SnapshotSummary> {
        self.summary.as_ref()
    }

    /// Bytes of the file that were read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.source.at
    }

    /// Reads what is left and gives the summary.
    ///
    /// # Errors
    /// [`SnapshotError`] if the snapshot is not sound. A reader that has already given an error gives
    /// [`SnapshotError::Damaged`] where it stopped.
    pub fn finish(mut self) -> Result<SnapshotSummary, SnapshotError> {
        for record in &mut self {
            record?;
        }
        let at_byte = self.source.at;
        self.summary.ok_or_else(|| SnapshotError::damaged(at_byte, "reading stopped here at an earlier error"))
    }

    /// The next record of the file, or `None` once the footer has been verified.
    fn read_record(&mut self) -> Result<Option<VersionedRecord>, SnapshotError> {
        while self.block.left == 0 {
            if !self.next_block()? {
                return Ok(None);
            }
        }
        let at_byte = self.block.at_byte;
        let record = self
            .block
            .records
            .take()
            .ok_or_else(|| SnapshotError::damaged(at_byte, "a record of this block can't be decoded"))?;
        self.block.left -= 1;
        if self.block.left == 0 && !self.block.records.is_at_end() {
            return Err(SnapshotError::damaged(at_byte, "bytes are left behind the records of this block"));
        }
        if record.revision > self.meta.revision {
            let what =
                format!("a record has revision {}, the snapshot only revision {}", record.revision, self.meta.revision);
            return Err(SnapshotError::damaged(at_byte, what));
        }
        self.tally.add(&record).map_err(|_| SnapshotError::damaged(at_byte, "the records are not in order"))?;
        Ok(Some(record))
    }

    /// Loads the next block of records; false once the footer has been verified instead.
    fn next_block(&mut self) -> Result<bool, SnapshotError> {
        loop {
            let at_byte = self.source.at;
            let head_bytes: [u8; BLOCK_HEAD_BYTES] = self.source.array()?;
            let head = BlockHead::decode(&head_bytes)
                .ok_or_else(|| SnapshotError::damaged(at_byte, "the checksum of the block's head does not match"))?;
            check_lengths(&head, at_byte)?;
            match head.section {
                SECTION_END => {
                    self.end(&head, at_byte)?;
                    return Ok(false);
                }
                SECTION_RECORDS if head.flags & !FLAG_ZSTD == 0 => {}
                section if section != SECTION_RECORDS && head.flags & FLAG_SKIPPABLE != 0 => {}
                section => return Err(SnapshotError::NewerSection { section, flags: head.flags, at_byte }),
            }
            self.blocks += 1;
            self.chain = crc32c::crc32c_append(self.chain, &head_bytes);
            if head.section == SECTION_RECORDS {
                let body = self.records_body(&head, at_byte)?;
                self.copy_block(&head, &head_bytes, &body)?;
                self.block = OpenBlock { records: Records::new(body), left: head.items, at_byte };
                return Ok(true);
            }
            self.source.fill_checked(&mut self.stored, &head, at_byte)?;
        }
    }

    /// Hands a block of records on to whoever takes it over.
    fn copy_block(
        &mut self,
        head: &BlockHead,
        head_bytes: &[u8; BLOCK_HEAD_BYTES],
        body: &Bytes,
    ) -> Result<(), SnapshotError> {
        let Some(draft) = self.draft.as_mut().filter(|_| self.tally.order() == RecordOrder::Revision) else {
            return Ok(());
        };
        let stored = if head.flags & FLAG_ZSTD == 0 { body } else { &self.stored[..] };
        let copied = draft.copy(head_bytes, stored);
        copied.map_err(|source| SnapshotError::Io { action: "write the copy of the snapshot".into(), source })
    }

    /// Reads the body of a block of records, decompressed.
    fn records_body(&mut self, head: &BlockHead, at_byte: u64) -> Result<Bytes, SnapshotError> {
        let plain_len = head.plain_len as usize;
        if head.items == 0 || head.items as usize > plain_len / RECORD_BYTES_MIN {
            let what = format!("a block of {plain_len} bytes can't hold {} records", head.items);
            return Err(SnapshotError::damaged(at_byte, what));
        }
        if head.flags & FLAG_ZSTD == 0 {
            if head.stored_len != head.plain_len {
                return Err(SnapshotError::damaged(at_byte, "a block that is not compressed has two lengths"));
            }
            // Read in place: the records will share this memory.
            let mut plain = Vec::new();
            self.source.fill_checked(&mut plain, head, at_byte)?;
            return Ok(plain.into());
        }
        self.source.fill_checked(&mut self.stored, head, at_byte)?;
        // The decompressor writes at most what the slice holds, whatever the compressed bytes say.
        let mut plain = vec![0; plain_len];
        match self.decompressor.decompress_to_buffer(&self.stored, &mut plain[..]) {
            Ok(len) if len == plain_len => Ok(plain.into()),
            Ok(len) => {
                let what = format!("the block decompresses to {len} bytes instead of {plain_len}");
                Err(SnapshotError::damaged(at_byte, what))
            }
            Err(error) => {
                let what = format!("the block does not decompress to {plain_len} bytes ({error})");
                Err(SnapshotError::damaged(at_byte, what))
            }
        }
    }

    /// Verifies the footer against all that was read, and that nothing stands behind it.
    fn end(&mut self, head: &BlockHead, at_byte: u64) -> Result<(), SnapshotError> {
        let damaged = |what: &str| SnapshotError::damaged(at_byte, what);
        if head.flags != 0 {
            return Err(SnapshotError::NewerSection { section: head.section, flags: head.flags, at_byte });
        }
        if head.stored_len as usize != FOOTER_BYTES {
            return Err(damaged("the footer has a wrong length"));
        }
        self.source.fill_checked(&mut self.stored, head, at_byte)?;
        let footer = Footer::decode(&self.stored).ok_or_else(|| damaged("the footer can't be decoded"))?;
        let counted = Footer {
            records: self.tally.records,
            keys: self.tally.keys().unwrap_or(footer.keys),
            blocks: self.blocks,
            hash: self.tally.hash,
            file_bytes: self.source.at,
            chain: self.chain,
        };
        if footer != counted {
            let what = format!("the footer does not fit what stands before it: {footer:?} instead of {counted:?}");
            return Err(damaged(&what));
        }
        self.tally.check(&self.meta).map_err(|what| damaged(&format!("header and records differ: {what}")))?;
        if !self.source.is_at_end()? {
            return Err(SnapshotError::damaged(self.source.at, "there are bytes behind the end of the snapshot"));
        }
        self.summary = Some(SnapshotSummary {
            meta: self.meta.clone(),
            records: footer.records,
            keys: footer.keys,
            file_bytes: footer.file_bytes,
            sha256: self.source.sha256.finalize_reset().into(),
        });
        Ok(())
    }
}

impl<R: Read> Iterator for SnapshotReader<R> {
    type Item = Result<VersionedRecord, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            match self.read_record() {
                Ok(Some(record)) => {
                    if let Some(before) = self.held.replace(record) {
                        return Some(Ok(before));
                    }
                }
                Ok(None) => self.is_over = true,
                Err(error) => {
                    self.is_over = true;
                    self.held = None;
                    return Some(Err(error));
                }
            }
        }
        self.held.take().map(Ok)
    }
}

impl<R> fmt::Debug for SnapshotReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReader").field("meta", &self.meta).field("at", &self.source.at).finish_non_exhaustive()
    }
}

/// Reads a whole snapshot file and checks everything there is to check: checksums, order, counts, state hash.
///
/// # Errors
/// [`SnapshotError`] saying what is wrong and where.
pub fn verify(path: &Path) -> Result<SnapshotSummary, SnapshotError> {
    SnapshotReader::open(path)?.finish()
}

/// As [`verify`], of a buffered stream.
///
/// # Errors
/// As for [`verify`].
pub fn verify_stream(stream: impl Read) -> Result<SnapshotSummary, SnapshotError> {
    SnapshotReader::from_stream(stream)?.finish()
}

/// Reads the header of a snapshot file and nothing else: whether the rest is sound is not known.
///
/// # Errors
/// [`SnapshotError`] if there is no file, or it does not begin as a snapshot that this program reads.
pub fn inspect(path: &Path) -> Result<SnapshotMeta, SnapshotError> {
    SnapshotReader::open(path).map(|reader| reader.meta)
}

/// Reads preamble and header frame; gives the meta, how the records follow each other, and the checksum over both.
fn read_header<R: Read>(source: &mut Source<R>) -> Result<(SnapshotMeta, RecordOrder, u32), SnapshotError> {
    let mut magic = Vec::new();
    source.read_up_to(&mut magic, MAGIC.len())?;
    if !MAGIC.starts_with(&magic) {
        return Err(SnapshotError::NotASnapshot { found: magic });
    }
    let mut preamble = [0; PREAMBLE_BYTES];
    preamble[..magic.len()].copy_from_slice(&magic);
    source.fill(&mut preamble[magic.len()..])?;
    let frame_len = decode_preamble(&preamble)
        .ok_or_else(|| SnapshotError::damaged(0, "the checksum of the first bytes does not match"))?;
    let at_byte = source.at;
    let frame_len = frame_len as usize;
    if frame_len > HEADER_BYTES_MAX {
        let what = format!("the header claims {frame_len} bytes; at most {HEADER_BYTES_MAX} are allowed");
        return Err(SnapshotError::damaged(at_byte, what));
    }
    let mut frame = vec![0; frame_len];
    source.fill(&mut frame)?;
    let (version, body) = framed::open(HEADER_MAGIC, FORMAT_VERSION, &frame).map_err(|error| match error {
        FrameError::Newer { found, newest } => SnapshotError::Newer { found, newest },
        error => SnapshotError::damaged(at_byte, format!("header: {error}")),
    })?;
    let order = match version {
        1 => RecordOrder::Key,
        FORMAT_PLAIN | FORMAT_VERSION => RecordOrder::Revision,
        version => return Err(SnapshotError::damaged(at_byte, format!("there is no format version {version}"))),
    };
    let decoded = postcard::take_from_bytes::<SnapshotMeta>(body).and_then(|(mut meta, rest)| {
        if version < FORMAT_VERSION {
            return Ok((meta, rest));
        }
        let (targets, rest) = postcard::take_from_bytes(rest)?;
        meta.targets = targets;
        Ok((meta, rest))
    });
    match decoded {
        Ok((meta, [])) => Ok((meta, order, crc32c::crc32c_append(crc32c::crc32c(&preamble), &frame))),
        Ok(_) => Err(SnapshotError::damaged(at_byte, "bytes are left behind the contents of the header")),
        Err(error) => Err(SnapshotError::damaged(at_byte, format!("the header can't be decoded: {error}"))),
    }
}

/// Refuses lengths beyond the bound, before anything is read or allocated by them.
fn check_lengths(head: &BlockHead, at_byte: u64) -> Result<(), SnapshotError> {
    for len in [head.stored_len, head.plain_len] {
        if len as usize > BLOCK_BYTES_MAX {
            let what = format!("a block claims {len} bytes; at most {BLOCK_BYTES_MAX} are allowed");
            return Err(SnapshotError::damaged(at_byte, what));
        }
    }
    Ok(())
}

/// The stream, with the place in it and the digest of all that was read.
struct Source<R> {
    stream: R,
    at: u64,
    sha256: Sha256,
}

impl<R: Read> Source<R> {
    /// Reads exactly as much as fits `out`.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), SnapshotError> {
        let mut done = 0;
        while done < out.len() {
            match self.stream.read(&mut out[done..]) {
                Ok(0) => return Err(SnapshotError::Cut { at_byte: self.at }),
                Ok(len) => {
                    self.at += len as u64;
                    done += len;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        self.sha256.update(out);
        Ok(())
    }

    /// Reads `len` bytes, or fewer if the stream ends before.
    fn read_up_to(&mut self, out: &mut Vec<u8>, len: usize) -> Result<(), SnapshotError> {
        self.stream.by_ref().take(len as u64).read_to_end(out).map_err(|source| self.failed(source))?;
        self.at += out.len() as u64;
        self.sha256.update(out);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// Reads the stored body of a block, whose length has been checked, in place of what `out` held.
    fn fill_checked(&mut self, out: &mut Vec<u8>, head: &BlockHead, at_byte: u64) -> Result<(), SnapshotError> {
        out.resize(head.stored_len as usize, 0);
        self.fill(out)?;
        if crc32c::crc32c(out) != head.body_crc {
            return Err(SnapshotError::damaged(at_byte, "the checksum of the block does not match"));
        }
        Ok(())
    }

    fn is_at_end(&mut self) -> Result<bool, SnapshotError> {
        let mut byte = Vec::new();
        self.stream.by_ref().take(1).read_to_end(&mut byte).map_err(|source| self.failed(source))?;
        Ok(byte.is_empty())
    }

    fn failed(&self, source: io::Error) -> SnapshotError {
        SnapshotError::Io { action: format!("read the snapshot at byte {}", self.at), source }
    }
}
