//! Writing a snapshot file, in a way that leaves a verified file or none.
//!
//! Guarantees: the file appears under its name only after it was synced, read back in full and found to be what was
//! meant; the same meta and records give the same bytes with the same compressor. Leaves out: keeping two writers from
//! the same path; the caller writes one snapshot at a time.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zstd::bulk::Compressor;
use zstd::zstd_safe;

use super::format::{
    BLOCK_BYTES_MAX, BLOCK_HEAD_BYTES, BLOCK_TARGET_BYTES, BlockHead, FLAG_ZSTD, FOOTER_BYTES, FORMAT_PLAIN,
    FORMAT_VERSION, Footer, HEADER_BYTES_MAX, HEADER_MAGIC, PREAMBLE_BYTES, SECTION_END, SECTION_RECORDS,
    encode_preamble, put_record, record_bytes_max,
};
use super::tally::{RecordOrder, Tally};
use super::{SnapshotMeta, SnapshotSummary, WriteError, reader};
use crate::codec::framed;
use crate::state::VersionedRecord;

/// Bytes handed to the operating system at once.
pub(super) const WRITE_BUFFER_BYTES: usize = 1024 * 1024;

/// The file is synced each time this many bytes were written, so that the last sync, and whoever else syncs on that
/// disk meanwhile (the log), never waits for the whole file.
const SYNC_EVERY_BYTES: usize = 32 * 1024 * 1024;

/// The fastest level of zstd that is not a trade of ratio for nothing.
const ZSTD_LEVEL: i32 = 1;

/// A block is stored as it is unless compression saves at least this part of it: decompressing costs time at each read.
const SAVING_WORTH_IT: usize = 16;

/// Writes a snapshot file: to `<path>.tmp` beside it first, which is synced, read back, verified, renamed to `path`
/// (in place of what stood there), and made durable by syncing the folder. Left-over `.tmp` files are overwritten.
///
/// Blocks on the disk for as long as all of that takes.
///
/// `keys` is how many keys have a value at the revision of the snapshot; only people read it.
///
/// # Errors
/// [`WriteError`]; records must rise by revision and the place in it, and be those of which `meta` gives revision and hash.
pub fn write<E>(
    path: &Path,
    meta: &SnapshotMeta,
    keys: u64,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<SnapshotSummary, WriteError<E>> {
    let mut temporary = OsString::from(path);
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let result = write_temporary(&temporary, meta, keys, records).and_then(|summary| {
        publish(&temporary, path)?;
        Ok(summary)
    });
    if result.is_err() {
        // Only to free the space: the next attempt overwrites it anyway.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Writes, syncs, reads back.
fn write_temporary<E>(
    temporary: &Path,
    meta: &SnapshotMeta,
    keys: u64,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<SnapshotSummary, WriteError<E>> {
    let file = File::create(temporary).map_err(|source| failed("create", temporary, source))?;
    let out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, SyncingFile::new(file));
    let (written, out) = encode(out, meta, keys, records).map_err(|error| match error {
        WriteError::Io { source, .. } => failed("write", temporary, source),
        error => error,
    })?;
    let file = out.into_inner().map_err(|error| failed("write", temporary, error.into_error()))?.file;
    file.sync_all().map_err(|source| failed("sync", temporary, source))?;
    let found = reader::verify(temporary).map_err(WriteError::ReadBack)?;
    if found != written {
        return Err(WriteError::ReadBackDiffers);
    }
    Ok(written)
}

/// Gives the file its name, durably.
pub(super) fn publish<E>(temporary: &Path, path: &Path) -> Result<(), WriteError<E>> {
    fs::rename(temporary, path).map_err(|source| failed("rename", temporary, source))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed("sync the folder", folder, source))
}

/// Writes all bytes of a snapshot; gives back the stream, flushed.
pub(super) fn encode<W: Write, E>(
    out: W,
    meta: &SnapshotMeta,
    keys: u64,
    records: impl Iterator<Item = Result<VersionedRecord, E>>,
) -> Result<(SnapshotSummary, W), WriteError<E>> {
    let mut encoder = Encoder::new(out).map_err(stream_failed)?;
    let header = encode_header(meta)?;
    encoder.header(&header).map_err(stream_failed)?;

    let mut tally = Tally::new(RecordOrder::Revision);
    let mut block = Vec::with_capacity(BLOCK_TARGET_BYTES + BLOCK_TARGET_BYTES / 4);
    let mut items = 0;
    for record in records {
        let record = record.map_err(WriteError::Records)?;
        tally.add(&record).map_err(|last| WriteError::Unsorted {
            last: last.key,
            last_revision: last.revision,
            next: record.key.clone(),
            next_revision: record.revision,
        })?;
        let bytes = record_bytes_max(&record);
        if bytes > BLOCK_BYTES_MAX {
            return Err(WriteError::RecordTooLarge { key: record.key, revision: record.revision, bytes });
        }
        if items > 0 && (block.len() >= BLOCK_TARGET_BYTES || block.len() + bytes > BLOCK_BYTES_MAX) {
            encoder.block(SECTION_RECORDS, 0, items, &block).map_err(stream_failed)?;
            block.clear();
            items = 0;
        }
        put_record(&mut block, &record);
        items += 1;
    }
    if items > 0 {
        encoder.block(SECTION_RECORDS, 0, items, &block).map_err(stream_failed)?;
    }
    tally.check(meta).map_err(WriteError::Mismatch)?;
    encoder.finish(meta, &tally, keys).map_err(stream_failed)
}

/// The header frame.
pub(super) fn encode_header<E>(meta: &SnapshotMeta) -> Result<Vec<u8>, WriteError<E>> {
    // Encoding into memory can only fail on types that refuse to be serialized; these don't.
    let mismatch = |error: postcard::Error| WriteError::Mismatch(error.to_string());
    let mut body = postcard::to_stdvec(meta).map_err(mismatch)?;
    let mut version = FORMAT_PLAIN;
    if !meta.targets.is_empty() {
        version = FORMAT_VERSION;
        body = postcard::to_extend(&meta.targets, body).map_err(mismatch)?;
    }
    let frame = framed::seal(HEADER_MAGIC, version, &body);
    if frame.len() > HEADER_BYTES_MAX {
        return Err(WriteError::HeaderTooLarge(frame.len()));
    }
    Ok(frame)
}

/// Puts the pieces of a snapshot after each other, counting and digesting what it writes.
pub(super) struct Encoder<W> {
    out: W,
    at: u64,
    sha256: Sha256,
    compressor: Compressor<'static>,
    /// The compressed form of a block; kept for its memory.
    packed: Vec<u8>,
    blocks: u64,
    chain: u32,
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(out: W) -> io::Result<Self> {
        let compressor = compressor()?;
        Ok(Self { out, at: 0, sha256: Sha256::new(), compressor, packed: Vec::new(), blocks: 0, chain: 0 })
    }

    /// Writes preamble and header frame, which is at most [`HEADER_BYTES_MAX`] long.
    pub(super) fn header(&mut self, frame: &[u8]) -> io::Result<()> {
        let preamble: [u8; PREAMBLE_BYTES] = encode_preamble(frame.len() as u32);
        self.chain = crc32c::crc32c_append(crc32c::crc32c(&preamble), frame);
        self.put(&preamble)?;
        self.put(frame)
    }

    /// Writes one block of at most [`BLOCK_BYTES_MAX`], compressed where that is worth it.
    pub(super) fn block(&mut self, section: u16, flags: u16, items: u32, plain: &[u8]) -> io::Result<()> {
        let mut packed = std::mem::take(&mut self.packed);
        let (form, stored) = pack(&mut self.compressor, plain, &mut packed)?;
        self.block_stored(section, flags | form, items, plain.len(), stored)?;
        self.packed = packed;
        Ok(())
    }

    /// Writes one block whose body is already in its stored form.
    pub(super) fn block_stored(
        &mut self,
        section: u16,
        flags: u16,
        items: u32,
        plain_len: usize,
        stored: &[u8],
    ) -> io::Result<()> {
        let head = BlockHead::of(section, flags, items, plain_len, stored).encode();
        if section != SECTION_END {
            self.blocks += 1;
            self.chain = crc32c::crc32c_append(self.chain, &head);
        }
        self.put(&head)?;
        self.put(stored)
    }

    /// Writes the footer and flushes.
    pub(super) fn finish(mut self, meta: &SnapshotMeta, tally: &Tally, keys: u64) -> io::Result<(SnapshotSummary, W)> {
        let footer = Footer {
            records: tally.records,
            keys,
            blocks: self.blocks,
            hash: tally.hash,
            file_bytes: self.at + (BLOCK_HEAD_BYTES + FOOTER_BYTES) as u64,
            chain: self.chain,
        };
        self.block_stored(SECTION_END, 0, 1, FOOTER_BYTES, &footer.encode())?;
        self.out.flush()?;
        let summary = SnapshotSummary {
            meta: meta.clone(),
            records: tally.records,
            keys,
            file_bytes: self.at,
            sha256: self.sha256.finalize().into(),
        };
        Ok((summary, self.out))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        self.sha256.update(bytes);
        Ok(())
    }
}

/// What packs blocks.
pub(super) fn compressor() -> io::Result<Compressor<'static>> {
    Compressor::new(ZSTD_LEVEL)
}

/// The stored form of a block of at most [`BLOCK_BYTES_MAX`], compressed where that is worth it, and its flags. `packed` is
/// memory for it.
pub(super) fn pack<'a>(
    compressor: &mut Compressor<'static>,
    plain: &'a [u8],
    packed: &'a mut Vec<u8>,
) -> io::Result<(u16, &'a [u8])> {
    packed.clear();
    packed.reserve(zstd_safe::compress_bound(plain.len()));
    compressor.compress_to_buffer(plain, packed)?;
    let worth_it = packed.len() + plain.len() / SAVING_WORTH_IT <= plain.len();
    Ok(if worth_it { (FLAG_ZSTD, packed) } else { (0, plain) })
}

/// A file that is synced while it grows.
pub(super) struct SyncingFile {
    pub(super) file: File,
    /// Bytes since the last sync.
    unsynced: usize,
}

impl SyncingFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, unsynced: 0 }
    }
}

impl Write for SyncingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Before the write, not behind it: an interrupted sync may be tried again, a write that was done may not.
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        let len = self.file.write(bytes)?;
        self.unsynced += len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(super) fn failed<E>(verb: &str, path: &Path, source: io::Error) -> WriteError<E> {
    WriteError::Io { action: format!("{verb} {}", path.display()), source }
}

pub(super) fn stream_failed<E>(source: io::Error) -> WriteError<E> {
    WriteError::Io { action: "write the snapshot".into(), source }
}
