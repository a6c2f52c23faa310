//! A snapshot file that is begun before it is known which state it will be of.
//!
//! Where a state is built from a snapshot and what came behind it, the file of the new state has the records of the old one
//! and then newer ones: its blocks are taken over as they are while they are read (`SnapshotReader::copy_to`), without
//! packing them again, and only what is newer is packed. The header comes first in the file and is known last, so room
//! is kept for it.
//!
//! Guarantees: those of [`write()`](super::write()): a complete file that was synced and read back appears under its name, or
//! none; every byte is covered by checksums that were made or checked here. Leaves out: which records are newer.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use zstd::bulk::Compressor;

use super::format::{
    BLOCK_BYTES_MAX, BLOCK_HEAD_BYTES, BLOCK_TARGET_BYTES, BlockHead, FLAG_SKIPPABLE, FOOTER_BYTES, Footer,
    HEADER_BYTES_MAX, PREAMBLE_BYTES, SECTION_END, SECTION_PADDING, SECTION_RECORDS, encode_preamble, put_record,
    record_bytes_max,
};
use super::tally::{RecordOrder, Tally};
use super::writer::{SyncingFile, WRITE_BUFFER_BYTES, compressor, encode_header, failed, pack, publish, stream_failed};
use super::{SnapshotMeta, SnapshotSummary, WriteError, reader};
use crate::state::VersionedRecord;
use crate::state::targets::ENCODED_BYTES_MAX as TARGETS_BYTES_MAX;
use crate::types::Revision;

/// Room for the membership in the header, and for all that is short in it, in bytes. One member fits well.
const MEMBERSHIP_ROOM: usize = 64 * 1024;

/// Room for preamble, header and padding, in bytes: all that can be declared fits.
const HEADER_ROOM: usize = PREAMBLE_BYTES + BLOCK_HEAD_BYTES + MEMBERSHIP_ROOM + TARGETS_BYTES_MAX;

const _: () = assert!(PREAMBLE_BYTES + MEMBERSHIP_ROOM + TARGETS_BYTES_MAX <= HEADER_BYTES_MAX);
const _: () = assert!(HEADER_ROOM <= BLOCK_BYTES_MAX, "the padding is one block");

/// A file that is being written. Dropped unfinished, it is removed.
pub struct Draft {
    /// Where it is written; `None` once it has another name.
    temporary: Option<PathBuf>,
    out: BufWriter<SyncingFile>,
    at: u64,
    /// Of every block so far. Their checksum begins with the header, which comes last.
    heads: Vec<[u8; BLOCK_HEAD_BYTES]>,
    compressor: Compressor<'static>,
    /// The compressed form of a block; kept for its memory.
    packed: Vec<u8>,
    /// Records of the block that is filled.
    block: Vec<u8>,
    items: u32,
    tally: Tally,
}

impl Draft {
    /// Begins a file, in the folder where it is to stand, under a name that means nothing. What stands there is overwritten.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn create(temporary: &Path) -> io::Result<Self> {
        let mut file = File::create(temporary)?;
        file.seek(SeekFrom::Start(HEADER_ROOM as u64))?;
        Ok(Self {
            temporary: Some(temporary.to_owned()),
            out: BufWriter::with_capacity(WRITE_BUFFER_BYTES, SyncingFile::new(file)),
            at: HEADER_ROOM as u64,
            heads: Vec::new(),
            compressor: compressor()?,
            packed: Vec::new(),
            block: Vec::with_capacity(BLOCK_TARGET_BYTES + BLOCK_TARGET_BYTES / 4),
            items: 0,
            tally: Tally::new(RecordOrder::Revision),
        })
    }

    /// Takes a block over as it stands in another file. What the records in it amount to comes with [`Self::go_on`].
    pub(super) fn copy(&mut self, head: &[u8; BLOCK_HEAD_BYTES], stored: &[u8]) -> io::Result<()> {
        self.put(head)?;
        self.put(stored)?;
        self.heads.push(*head);
        Ok(())
    }

    /// Goes on behind the blocks that were taken over, which were counted by their reader.
    pub(super) fn go_on(&mut self, tally: Tally) {
        self.tally = tally;
    }

    /// The first revision that is not in it: of each revision it has all records.
    #[must_use]
    pub fn next_revision(&self) -> Revision {
        self.tally.last.as_ref().map_or(Revision::ZERO, |last| last.revision.next())
    }

    /// Adds a record behind all others.
    ///
    /// # Errors
    /// [`WriteError`], also if it does not belong there.
    pub fn push<E>(&mut self, record: &VersionedRecord) -> Result<(), WriteError<E>> {
        self.tally.add(record).map_err(|last| WriteError::Unsorted {
            last: last.key,
            last_revision: last.revision,
            next: record.key.clone(),
            next_revision: record.revision,
        })?;
        let bytes = record_bytes_max(record);
        if bytes > BLOCK_BYTES_MAX {
            return Err(WriteError::RecordTooLarge { key: record.key.clone(), revision: record.revision, bytes });
        }
        if self.items > 0 && (self.block.len() >= BLOCK_TARGET_BYTES || self.block.len() + bytes > BLOCK_BYTES_MAX) {
            self.close_block().map_err(stream_failed)?;
        }
        put_record(&mut self.block, record);
        self.items += 1;
        Ok(())
    }

    fn close_block(&mut self) -> io::Result<()> {
        if self.items == 0 {
            return Ok(());
        }
        let items = std::mem::take(&mut self.items);
        let mut block = std::mem::take(&mut self.block);
        let mut packed = std::mem::take(&mut self.packed);
        let (flags, stored) = pack(&mut self.compressor, &block, &mut packed)?;
        let head = BlockHead::of(SECTION_RECORDS, flags, items, block.len(), stored).encode();
        self.copy(&head, stored)?;
        block.clear();
        (self.block, self.packed) = (block, packed);
        Ok(())
    }

    /// Completes the file: it is of the state that `meta` tells of, in which `keys` keys have a value. It is synced, read
    /// back, and then stands at `path`. Blocks on the disk for as long as that takes.
    ///
    /// # Errors
    /// [`WriteError`], also if the records are not those of that state; there is no file then.
    pub fn finish<E>(mut self, path: &Path, meta: &SnapshotMeta, keys: u64) -> Result<SnapshotSummary, WriteError<E>> {
        self.close_block().map_err(stream_failed)?;
        self.tally.check(meta).map_err(WriteError::Mismatch)?;
        let begin = beginning(meta)?;
        // The padding is a block, too.
        let blocks = self.heads.len() as u64 + 1;
        let chain = self.heads.iter().fold(begin.chain, |chain, head| crc32c::crc32c_append(chain, head));
        let file_bytes = self.at + (BLOCK_HEAD_BYTES + FOOTER_BYTES) as u64;
        let footer =
            Footer { records: self.tally.records, keys, blocks, hash: self.tally.hash, file_bytes, chain }.encode();
        let head = BlockHead::of(SECTION_END, 0, 1, FOOTER_BYTES, &footer).encode();
        self.put(&head).and_then(|()| self.put(&footer)).and_then(|()| self.out.flush()).map_err(stream_failed)?;
        let temporary = self.temporary.clone().unwrap_or_default();
        let file = &self.out.get_ref().file;
        file.write_all_at(&begin.bytes, 0).map_err(|source| failed("write", &temporary, source))?;
        file.sync_all().map_err(|source| failed("sync", &temporary, source))?;
        let found = reader::verify(&temporary).map_err(WriteError::ReadBack)?;
        let records = self.tally.records;
        if (&found.meta, found.records, found.keys, found.file_bytes) != (meta, records, keys, file_bytes) {
            return Err(WriteError::ReadBackDiffers);
        }
        publish(&temporary, path)?;
        self.temporary = None;
        Ok(found)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // Only to free the space: it has no name that means anything.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// What stands before the first block of records.
struct Beginning {
    bytes: Vec<u8>,
    /// The checksum over preamble, header and the head of the padding.
    chain: u32,
}

fn beginning<E>(meta: &SnapshotMeta) -> Result<Beginning, WriteError<E>> {
    let frame = encode_header(meta)?;
    let used = PREAMBLE_BYTES + frame.len() + BLOCK_HEAD_BYTES;
    let Some(room) = HEADER_ROOM.checked_sub(used) else { return Err(WriteError::HeaderTooLarge(frame.len())) };
    let padding = vec![0; room];
    let head = BlockHead::of(SECTION_PADDING, FLAG_SKIPPABLE, 1, room, &padding).encode();
    let bytes = [&encode_preamble(frame.len() as u32)[..], &frame, &head, &padding].concat();
    let chain = crc32c::crc32c(&bytes[..used]);
    Ok(Beginning { bytes, chain })
}
