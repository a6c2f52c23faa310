//! Moving a snapshot file to a member that is too far behind for the log: announced, sent in checksummed parts, verified as
//! a whole, installed.
//!
//! Guarantees: a transfer that was cut goes on behind the last byte that arrived; a file is only installed after its
//! SHA-256, its own checksums and its state hash were verified; parts travel on a channel of their own. Leaves out:
//! limiting the rate, and when a snapshot is needed (openraft).

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use openraft::AnyError;
use openraft::error::{RPCError, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::messages::{Request, Response, SnapshotOffer, SnapshotPart};
use super::network::{PeerClient, PeerError, unexpected};
use super::snapshot_store::SnapshotHandle;
use super::types::{Snapshot, TypeConfig, Vote};
use crate::transport::Channel;

/// Bytes of the file in one part.
const PART_BYTES: usize = 1024 * 1024;

/// How long one part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the other side may take to verify and install the whole file.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Sends a snapshot to a member and waits until it is installed there. A file that turns out damaged here is passed over
/// from then on, so that the next attempt sends another.
pub(super) async fn send(
    peer: &PeerClient,
    vote: Vote,
    snapshot: &Snapshot<SnapshotHandle>,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let file = &snapshot.snapshot;
    let answer = match send_file(peer, vote, snapshot).await {
        Ok(answer) => answer,
        Err(SendError::Source(error)) => {
            file.mark_damaged(&error);
            return Err(RPCError::Unreachable(Unreachable::new(&AnyError::new(&error))).into());
        }
        Err(SendError::Peer(error)) => return Err(RPCError::from(error).into()),
    };
    match answer {
        Ok(Response::SnapshotInstalled(response)) => Ok(response),
        Ok(other) => Err(RPCError::from(unexpected(&other)).into()),
        Err(error) => {
            if matches!(error, PeerError::Refused(_)) {
                // Perhaps because of damage, and that may be at the source.
                let file = file.clone();
                let _ = tokio::task::spawn_blocking(move || file.verify_again()).await;
            }
            Err(RPCError::from(error).into())
        }
    }
}

/// Why a file was not sent to its end.
enum SendError {
    /// It can't be read here.
    Source(std::io::Error),
    /// The other side did not take it.
    Peer(PeerError),
}

impl From<std::io::Error> for SendError {
    fn from(error: std::io::Error) -> Self {
        Self::Source(error)
    }
}

impl From<PeerError> for SendError {
    fn from(error: PeerError) -> Self {
        Self::Peer(error)
    }
}

/// Sends the whole file; returns the answer to its end.
async fn send_file(
    peer: &PeerClient,
    vote: Vote,
    snapshot: &Snapshot<SnapshotHandle>,
) -> Result<Result<Response, PeerError>, SendError> {
    let file = &snapshot.snapshot;
    // The digest of a file from an earlier life of this process takes reading all of it.
    let digest = {
        let file = file.clone();
        tokio::task::spawn_blocking(move || file.sha256()).await.map_err(std::io::Error::from)?
    };
    let sha256 = digest.map_err(std::io::Error::other)?;
    let offer = SnapshotOffer { vote, meta: snapshot.meta.clone(), file_bytes: file.file_bytes(), sha256 };
    let mut input = tokio::fs::File::open(file.path()).await?;
    let mut received =
        progress(peer.call(Channel::Snapshot, &Request::SnapshotBegin(offer.clone()), PART_TIMEOUT).await?)?;
    input.seek(SeekFrom::Start(received)).await?;
    while received < offer.file_bytes {
        let rest = usize::try_from(offer.file_bytes - received).unwrap_or(usize::MAX);
        let mut part = vec![0; rest.min(PART_BYTES)];
        input.read_exact(&mut part).await?;
        let part = SnapshotPart {
            sha256: offer.sha256,
            offset: received,
            crc: crc32c::crc32c(&part),
            bytes: Bytes::from(part),
        };
        let sent_to = received + part.bytes.len() as u64;
        received = progress(peer.call(Channel::Snapshot, &Request::SnapshotPart(part), PART_TIMEOUT).await?)?;
        if received != sent_to {
            input.seek(SeekFrom::Start(received)).await?;
        }
    }
    Ok(peer.call(Channel::Snapshot, &Request::SnapshotEnd(offer), INSTALL_TIMEOUT).await)
}

fn progress(answer: Response) -> Result<u64, PeerError> {
    match answer {
        Response::SnapshotProgress { received } => Ok(received),
        other => Err(unexpected(&other)),
    }
}

/// Why a part of a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    /// The disk refused.
    #[error("can't keep the snapshot: {0}")]
    Io(#[from] std::io::Error),
    /// The part was damaged on its way.
    #[error("the part at byte {0} was damaged on its way")]
    Checksum(u64),
    /// Parts of a file that was not announced, or another one.
    #[error("no transfer of this snapshot was announced")]
    NotAnnounced,
    /// More bytes than were announced.
    #[error("the part at byte {0} reaches beyond the announced size")]
    Beyond(u64),
}

/// A snapshot on its way to this node. At most one at a time: a newer offer takes the place of an older one.
pub(super) struct Receiver {
    dir: PathBuf,
    current: Option<Incoming>,
}

struct Incoming {
    offer: SnapshotOffer,
    path: PathBuf,
    file: tokio::fs::File,
    received: u64,
}

/// The name of a file that is being received; its SHA-256 stands in it, so that a cut transfer finds its beginning again.
fn incoming_name(offer: &SnapshotOffer) -> String {
    let digest: String = offer.sha256.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("incoming-{digest}.part")
}

/// Whether a file name is one of a snapshot that is being received.
pub(super) fn is_incoming(name: &str) -> bool {
    name.starts_with("incoming-")
}

impl Receiver {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), current: None }
    }

    /// Begins a transfer, or goes on with one that was cut; returns how many bytes are there.
    pub(super) async fn begin(&mut self, offer: SnapshotOffer) -> Result<u64, ReceiveError> {
        if let Some(current) = &self.current
            && current.offer.sha256 == offer.sha256
        {
            return Ok(current.received);
        }
        self.current = None;
        self.remove_others(&incoming_name(&offer)).await?;
        let path = self.dir.join(incoming_name(&offer));
        let mut file = tokio::fs::OpenOptions::new().create(true).write(true).truncate(false).open(&path).await?;
        let mut received = file.metadata().await?.len();
        if received > offer.file_bytes {
            received = 0;
        }
        // The last part may have been torn by a crash; whole parts before it are checked by the file's digest at the end.
        received -= received % PART_BYTES as u64;
        file.set_len(received).await?;
        file.seek(SeekFrom::Start(received)).await?;
        self.current = Some(Incoming { offer, path, file, received });
        Ok(received)
    }

    /// Removes what transfers of other files left behind, in this life of the process or an earlier one.
    async fn remove_others(&self, keep: &str) -> std::io::Result<()> {
        let mut entries = tokio::fs::read_dir(&self.dir).await?;
        while let Some(entry) = entries.next_entry().await? {
            if entry.file_name().to_str().is_some_and(|name| is_incoming(name) && name != keep) {
                tokio::fs::remove_file(entry.path()).await?;
            }
        }
        Ok(())
    }

    /// Takes one part; returns how many bytes are there. A part that is not the next one is passed over.
    pub(super) async fn part(&mut self, part: SnapshotPart) -> Result<u64, ReceiveError> {
        let current = self.current.as_mut().ok_or(ReceiveError::NotAnnounced)?;
        if current.offer.sha256 != part.sha256 {
            return Err(ReceiveError::NotAnnounced);
        }
        if crc32c::crc32c(&part.bytes) != part.crc {
            return Err(ReceiveError::Checksum(part.offset));
        }
        if part.offset == current.received {
            let received = current.received + part.bytes.len() as u64;
            if received > current.offer.file_bytes {
                return Err(ReceiveError::Beyond(part.offset));
            }
            // A call that was given up in the middle of its write has moved on in the file.
            current.file.seek(SeekFrom::Start(current.received)).await?;
            current.file.write_all(&part.bytes).await?;
            current.file.flush().await?;
            current.received = received;
        }
        Ok(current.received)
    }

    /// Ends the transfer: the file is on disk and handed over, to be verified by the caller.
    pub(super) async fn end(&mut self, offer: &SnapshotOffer) -> Result<PathBuf, ReceiveError> {
        let complete =
            |current: &Incoming| current.offer.sha256 == offer.sha256 && current.received == current.offer.file_bytes;
        if !self.current.as_ref().is_some_and(complete) {
            return Err(ReceiveError::NotAnnounced);
        }
        let Some(current) = self.current.take() else { return Err(ReceiveError::NotAnnounced) };
        current.file.sync_all().await?;
        Ok(current.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(bytes: &[u8], digest: u8) -> SnapshotOffer {
        SnapshotOffer {
            vote: Vote::new_committed(crate::types::Term::new(1), crate::types::NodeId::new(1)),
            meta: super::super::types::SnapshotMeta::default(),
            file_bytes: bytes.len() as u64,
            sha256: [digest; 32],
        }
    }

    fn part(bytes: &[u8], digest: u8, offset: usize, end: usize) -> SnapshotPart {
        let bytes = Bytes::copy_from_slice(&bytes[offset..end]);
        SnapshotPart { sha256: [digest; 32], offset: offset as u64, crc: crc32c::crc32c(&bytes), bytes }
    }

    #[tokio::test]
    async fn a_cut_transfer_goes_on_behind_the_last_whole_part() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..2 * PART_BYTES + 100).map(|i| (i % 251) as u8).collect();
        let mut receiver = Receiver::new(dir.path());
        assert_eq!(receiver.begin(offer(&bytes, 1)).await.unwrap(), 0);
        assert_eq!(receiver.part(part(&bytes, 1, 0, PART_BYTES)).await.unwrap(), PART_BYTES as u64);
        receiver.part(part(&bytes, 1, PART_BYTES, PART_BYTES + 50)).await.unwrap();

        // The process was killed: what is left is the file, with a torn part at its end.
        let mut receiver = Receiver::new(dir.path());
        assert_eq!(receiver.begin(offer(&bytes, 1)).await.unwrap(), PART_BYTES as u64);
        receiver.part(part(&bytes, 1, PART_BYTES, 2 * PART_BYTES)).await.unwrap();
        receiver.part(part(&bytes, 1, 2 * PART_BYTES, bytes.len())).await.unwrap();
        let path = receiver.end(&offer(&bytes, 1)).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes);
    }

    #[tokio::test]
    async fn damaged_repeated_and_foreign_parts_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7; 300];
        let mut receiver = Receiver::new(dir.path());
        receiver.begin(offer(&bytes, 1)).await.unwrap();
        let mut damaged = part(&bytes, 1, 0, 100);
        damaged.crc ^= 1;
        assert!(matches!(receiver.part(damaged).await, Err(ReceiveError::Checksum(0))));
        assert!(matches!(receiver.part(part(&bytes, 2, 0, 100)).await, Err(ReceiveError::NotAnnounced)));
        assert_eq!(receiver.part(part(&bytes, 1, 0, 100)).await.unwrap(), 100);
        assert_eq!(receiver.part(part(&bytes, 1, 0, 100)).await.unwrap(), 100, "repeated");
        assert_eq!(receiver.part(part(&bytes, 1, 200, 300)).await.unwrap(), 100, "ahead of the rest");
        assert!(matches!(receiver.end(&offer(&bytes, 1)).await, Err(ReceiveError::NotAnnounced)), "not complete");
    }

    #[tokio::test]
    async fn a_newer_offer_takes_the_place_of_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = Receiver::new(dir.path());
        receiver.begin(offer(&[1; 10], 1)).await.unwrap();
        receiver.begin(offer(&[2; 10], 2)).await.unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [incoming_name(&offer(&[], 2)).as_str()]);
    }
}
