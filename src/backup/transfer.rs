//! Objects of data, on their way into a repository and back.
//!
//! Guarantees: an object that is told of in a [`Object`] is stored whole, under a name that nobody else uses; a file that was
//! fetched has the length and the SHA-256 of its manifest and was unpacked without an error, or does not appear under its
//! name. Packing and unpacking happen on threads that may block; memory holds a few parts of an object, never all of a large
//! one. Leaves out: making the object known (`catalogue`).

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::layout::{Kind, Layout, is_encrypted};
use super::manifest::{Object, Sha};
use super::repository::{PART_BYTES, Repository, StoreError};
use super::seal::{Identities, OpenError, OpenReader, Recipients, SealWriter, Sealed};
use super::segment::{SegmentHeader, SegmentWriter, StateMark};
use crate::host;
use crate::state::snapshot::SnapshotMeta;
use crate::state::{LogContent, LogEntry};
use crate::types::{ClusterId, LogPosition};

/// Parts that may wait between the thread that packs and the one that sends.
pub(super) const PARTS_WAITING: usize = 2;

/// So much of an encrypted object is read to see whether a key opens it, in bytes: its head, for some hundred keys.
const OPENING_BYTES: usize = 64 * 1024;

/// An object that no key opens is read to its end, to tell a wrong key from damage, if it is not larger, in bytes.
const HASHED_BEHIND_WRONG_KEY_MAX: u64 = 64 * 1024 * 1024;

/// Why an object was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreDataError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It can't be read or packed here.
    #[error("{0}")]
    Local(#[from] io::Error),
}

/// Why an object was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not what the manifest says.
    #[error("{name}: damaged: {why}")]
    Damaged {
        /// Which.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It can't be opened.
    #[error("{name}: {source}")]
    Open {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The local disk refused.
    #[error("can't write {}: {source}", .path.display())]
    Local {
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Stores entries of the log that follow `previous`, at least one.
///
/// # Errors
/// [`StoreDataError`].
pub async fn store_entries(
    repository: &Repository,
    cluster: ClusterId,
    previous: Option<LogPosition>,
    entries: Vec<LogEntry>,
    state: Option<StateMark>,
    recipients: &Recipients,
) -> Result<Object, StoreDataError> {
    let (first, times) = (entries.first().map_or(0, |entry| entry.position.index.get()), times(&entries));
    let keys = recipients.clone();
    let packing = host::spawn_blocking(move || {
        let sealing = SealWriter::new(Vec::new(), &keys)?;
        let mut writer = SegmentWriter::new(sealing, &SegmentHeader { cluster, previous })?;
        for entry in &entries {
            writer.push(entry)?;
        }
        let (end, sealing) = writer.finish(state)?;
        let (sealed, bytes) = sealing.finish()?;
        Ok::<_, io::Error>((end, sealed, bytes))
    });
    let (end, sealed, bytes) = packing.await.map_err(io::Error::other)??;
    let name = Layout::new(cluster).log(first, end.last.index.get(), host::random(), !recipients.is_empty());
    put(repository, &name, Bytes::from(bytes)).await?;
    let previous = previous.map(Into::into);
    Ok(object(name, Kind::Log, sealed, end.last, end.state, times, previous))
}

/// Stores bytes that are here, in parts where they are many.
async fn put(repository: &Repository, name: &str, bytes: Bytes) -> Result<(), StoreError> {
    if bytes.len() <= PART_BYTES {
        return repository.create(name, bytes).await;
    }
    let mut upload = repository.upload(name).await?;
    for begin in (0..bytes.len()).step_by(PART_BYTES) {
        if let Err(error) = upload.part(bytes.slice(begin..bytes.len().min(begin + PART_BYTES))).await {
            upload.abort().await;
            return Err(error);
        }
    }
    upload.complete().await
}

pub(super) fn object(
    name: String,
    kind: Kind,
    sealed: Sealed,
    last: LogPosition,
    state: Option<StateMark>,
    times: Option<(u64, u64)>,
    previous: Option<super::manifest::Place>,
) -> Object {
    let Sealed { bytes, sha256, plain_bytes } = sealed;
    let (sha256, last, state) = (Sha(sha256), last.into(), state.map(Into::into));
    Object { name, kind, bytes, sha256, plain_bytes, previous, last, state, times }
}

/// When the first and the last command were proposed.
pub(super) fn times(entries: &[LogEntry]) -> Option<(u64, u64)> {
    let of = |entry: &LogEntry| match &entry.content {
        LogContent::Commands(batch) => batch.decode().ok(),
        LogContent::Blank | LogContent::Membership(_) => None,
    };
    let first = entries.iter().find_map(|entry| of(entry)?.first().map(|command| command.proposed_at.get()));
    let last = entries.iter().rev().find_map(|entry| of(entry)?.last().map(|command| command.proposed_at.get()));
    first.zip(last)
}

/// Stores a snapshot file, whose header is `meta`. `pace` is called before each part is sent, with its length in bytes.
///
/// # Errors
/// [`StoreDataError`]; of what was sent nothing appears.
pub async fn store_snapshot<F: Future<Output = ()>>(
    repository: &Repository,
    path: &Path,
    meta: &SnapshotMeta,
    recipients: &Recipients,
    pace: impl FnMut(usize) -> F,
) -> Result<Object, StoreDataError> {
    let last = meta.position.ok_or_else(|| io::Error::other("the snapshot holds nothing"))?;
    let name = Layout::new(meta.cluster_id).full(last.index.get(), host::random(), !recipients.is_empty());
    let sealed = store_file(repository, &name, path, recipients, pace).await?;
    let state = StateMark { revision: meta.revision, hash: meta.hash };
    let at = meta.created_at.get();
    Ok(object(name, Kind::Full, sealed, last, Some(state), Some((at, at)), None))
}

/// Stores the content of an object, unpacked into a file, once more: under a new name, to other keys.
///
/// # Errors
/// [`StoreDataError`]; of what was sent nothing appears.
pub(super) async fn store_again(
    repository: &Repository,
    cluster: ClusterId,
    what: &Object,
    path: &Path,
    recipients: &Recipients,
) -> Result<Object, StoreDataError> {
    let (layout, encrypted) = (Layout::new(cluster), !recipients.is_empty());
    let name = match what.kind {
        Kind::Full => layout.full(what.last.index, host::random(), encrypted),
        Kind::Log => {
            let first = what.previous.map_or(0, |previous| previous.index + 1);
            layout.log(first, what.last.index, host::random(), encrypted)
        }
    };
    let Sealed { bytes, sha256, plain_bytes } =
        store_file(repository, &name, path, recipients, |_| std::future::ready(())).await?;
    Ok(Object { name, bytes, sha256: Sha(sha256), plain_bytes, ..what.clone() })
}

/// Packs a file and stores it.
async fn store_file<F: Future<Output = ()>>(
    repository: &Repository,
    name: &str,
    path: &Path,
    recipients: &Recipients,
    mut pace: impl FnMut(usize) -> F,
) -> Result<Sealed, StoreDataError> {
    let (parts, mut waiting) = mpsc::channel(PARTS_WAITING);
    let (file, keys) = (path.to_owned(), recipients.clone());
    let packing = host::spawn_blocking(move || {
        let sealing = SealWriter::new(Parts::new(parts), &keys)?;
        let mut sealing = BufWriter::with_capacity(PART_BYTES / 8, sealing);
        io::copy(&mut BufReader::with_capacity(PART_BYTES / 8, File::open(file)?), &mut sealing)?;
        let (sealed, mut parts) = sealing.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
        parts.send()?;
        Ok::<_, io::Error>(sealed)
    });
    let mut upload = repository.upload(name).await?;
    while let Some(part) = waiting.recv().await {
        pace(part.len()).await;
        if let Err(error) = upload.part(part).await {
            // Ends the thread at its next part.
            drop(waiting);
            upload.abort().await;
            return Err(error.into());
        }
    }
    let sealed = match packing.await.map_err(io::Error::other).flatten() {
        Ok(sealed) => sealed,
        Err(error) => {
            upload.abort().await;
            return Err(error.into());
        }
    };
    upload.complete().await?;
    Ok(sealed)
}

/// Hands what is written on, in parts.
pub(super) struct Parts {
    parts: mpsc::Sender<Bytes>,
    filled: BytesMut,
}

impl Parts {
    pub(super) fn new(parts: mpsc::Sender<Bytes>) -> Self {
        Self { parts, filled: BytesMut::new() }
    }

    pub(super) fn send(&mut self) -> io::Result<()> {
        if self.filled.is_empty() {
            return Ok(());
        }
        let part = self.filled.split().freeze();
        let given_up = || io::Error::other("the upload was given up");
        // Without waiting where there is room, and so also where this is a task and no thread (`host`).
        match self.parts.try_send(part) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(part)) => self.parts.blocking_send(part).map_err(|_| given_up()),
            Err(TrySendError::Closed(_)) => Err(given_up()),
        }
    }
}

impl Write for Parts {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(PART_BYTES - self.filled.len());
        self.filled.extend_from_slice(&buf[..taken]);
        if self.filled.len() == PART_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fetches an object into a file: unpacked, synced, and there only once it proved whole. `seen` hears of the bytes that came
/// from the store.
///
/// # Errors
/// [`FetchError`].
pub async fn fetch(
    repository: &Repository,
    object: &Object,
    identities: &Identities,
    path: &Path,
    seen: impl Fn(usize),
) -> Result<(), FetchError> {
    let (bytes, mut stream) = repository.stream(&object.name).await?;
    if bytes != object.bytes {
        return Err(damaged(object, format!("it has {bytes} bytes, not {}", object.bytes)));
    }
    let (parts, arrived) = mpsc::channel(PARTS_WAITING);
    let (what, keys, to) = (object.clone(), identities.clone(), path.to_owned());
    let unpacking = host::spawn_blocking(move || unpack(&what, Arriving::new(arrived), &keys, &to));
    let received = async {
        while let Some(part) = stream.try_next().await? {
            seen(part.len());
            if parts.send(part).await.is_err() {
                break;
            }
        }
        Ok::<_, StoreError>(())
    };
    let received = received.await;
    drop(parts);
    let unpacked = unpacking.await.map_err(|error| local(path)(io::Error::other(error)));
    // What the store says explains a file that ends early.
    received?;
    unpacked?
}

/// Reads so much of an object as tells whether the private keys open it.
///
/// # Errors
/// [`FetchError`]; [`FetchError::Open`] if they don't.
pub async fn opens(repository: &Repository, object: &Object, identities: &Identities) -> Result<(), FetchError> {
    let (_, mut stream) = repository.stream(&object.name).await?;
    let mut begin = BytesMut::new();
    while begin.len() < OPENING_BYTES
        && let Some(part) = stream.try_next().await?
    {
        begin.extend_from_slice(&part);
    }
    let open = |source| FetchError::Open { name: object.name.clone(), source };
    OpenReader::new(&begin[..], is_encrypted(&object.name), identities).map(drop).map_err(open)
}

fn damaged(object: &Object, why: String) -> FetchError {
    FetchError::Damaged { name: object.name.clone(), why }
}

fn local(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Local { path, source }
}

/// Unpacks what arrives into a file.
fn unpack(object: &Object, arriving: Arriving, identities: &Identities, path: &Path) -> Result<(), FetchError> {
    let name = || object.name.clone();
    let mut hashed = Hashing { inner: arriving, hash: Sha256::new() };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = PathBuf::from(temporary);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary).map_err(local(&temporary))?);
    let opened = OpenReader::new(&mut hashed, is_encrypted(&object.name), identities);
    if matches!(opened, Err(OpenError::WrongIdentity)) && object.bytes <= HASHED_BEHIND_WRONG_KEY_MAX {
        drop(opened);
        // What it is encrypted to stands at its beginning, and may be what is damaged.
        is_whole(object, hashed)?;
        return Err(FetchError::Open { name: name(), source: OpenError::WrongIdentity });
    }
    let mut reader = opened.map_err(|source| FetchError::Open { name: name(), source })?;
    let (mut buffer, mut unpacked) = (vec![0; 1 << 20], 0_u64);
    loop {
        let read = reader.read(&mut buffer).map_err(|error| damaged(object, error.to_string()))?;
        unpacked += read as u64;
        // Before it is written: a few bytes can unpack to more than any disk holds.
        if unpacked > object.plain_bytes || (read == 0 && unpacked < object.plain_bytes) {
            return Err(damaged(object, format!("it does not unpack to {} bytes", object.plain_bytes)));
        }
        if read == 0 {
            break;
        }
        out.write_all(&buffer[..read]).map_err(local(&temporary))?;
    }
    drop(reader);
    is_whole(object, hashed)?;
    let file = out.into_inner().map_err(|error| local(&temporary)(error.into_error()))?;
    file.sync_all().map_err(local(&temporary))?;
    fs::rename(&temporary, path).map_err(local(path))
}

/// Reads what is left, and looks whether it is what the manifest tells of: what the packed formats did not need to read belongs
/// to the object as well.
fn is_whole<R: Read>(object: &Object, mut hashed: Hashing<R>) -> Result<(), FetchError> {
    io::copy(&mut hashed, &mut io::sink()).map_err(|error| damaged(object, error.to_string()))?;
    if Sha(hashed.hash.finalize().into()) == object.sha256 {
        return Ok(());
    }
    Err(damaged(object, "its SHA-256 is not that of the manifest".into()))
}

/// Bytes as they come from the store.
struct Arriving {
    parts: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Arriving {
    fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self { parts, rest: Bytes::new() }
    }
}

impl Read for Arriving {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.rest = part,
                None => return Ok(0),
            }
        }
        let taken = buf.len().min(self.rest.len());
        buf[..taken].copy_from_slice(&self.rest.split_to(taken));
        Ok(taken)
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.hash.update(&buf[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
