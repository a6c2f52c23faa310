//! Sends a snapshot file to one member.
//!
//! Guarantees: as [`super`]; what is told of a file here, by a member or by the disk, never ends another transfer. Leaves
//! out: the receiving side (`receiver`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::AnyError;
use openraft::error::{RPCError, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;

use super::Outgoing;
use super::holds::Hold;
use super::{PART_BYTES_MAX, PART_BYTES_MIN};
use crate::clock::{self, Instant};
use crate::host::spawn_blocking;
use crate::raft::background;
use crate::raft::messages::{Request, Response, SnapshotOffer, SnapshotPart};
use crate::raft::network::{PeerClient, PeerError, unexpected};
use crate::raft::snapshot_store::SnapshotHandle;
use crate::raft::types::{Snapshot, TypeConfig, Vote};
use crate::transport::Channel;

/// How long one part may take, and the answer to an announcement.
const PART_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the other side may take to verify and install the whole file.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The pause before a transfer that was cut is gone on with.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// After this time in which no byte arrived a transfer is given up, and with it the log that was kept for it. The next
/// one is of the newest file. Long enough for a member to be restarted.
const STALLED_MAX: Duration = Duration::from_secs(120);

/// Why a transfer did not come to its end.
enum SendError {
    /// The file can't be read here.
    Source(std::io::Error),
    /// The other side did not take it.
    Peer(PeerError),
    /// The other side has all of it and did not install it.
    NotInstalled(PeerError),
    /// The log behind the file is gone: installed, it would be of no use.
    Overtaken,
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

/// Sends a snapshot to a member and waits until it is installed there. A file that turns out damaged here is passed over
/// from then on, so that the next attempt sends another.
pub(in crate::raft) async fn send(
    peer: &PeerClient,
    outgoing: &Outgoing,
    vote: Vote,
    snapshot: &Snapshot<SnapshotHandle>,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let unreachable = |error: &std::io::Error| RPCError::Unreachable(Unreachable::new(&AnyError::new(error)));
    let handle = &snapshot.snapshot;
    let sent = async {
        let mut transfer = Transfer::open(peer, outgoing, vote, snapshot).await?;
        let _counted = Active::new(outgoing);
        transfer.run().await
    };
    match sent.await {
        Ok(response) => Ok(response),
        Err(SendError::Source(error)) => {
            handle.mark_damaged(&error);
            Err(unreachable(&error).into())
        }
        Err(SendError::Overtaken) => {
            let told = "the log was removed beyond this snapshot, which takes too long to send; the newest one is sent";
            tracing::warn!(file = %handle.path().display(), "{told}");
            Err(unreachable(&std::io::Error::other(told)).into())
        }
        Err(SendError::NotInstalled(error)) => {
            // Perhaps because of damage, and that may be at the source.
            if matches!(error, PeerError::Refused(_)) {
                let handle = handle.clone();
                let _ = background::run("snapshot-check", move || handle.verify_again()).await;
            }
            Err(RPCError::from(error).into())
        }
        Err(SendError::Peer(error)) => Err(RPCError::from(error).into()),
    }
}

/// Counts a transfer while it is under way.
struct Active<'a>(&'a Outgoing);

impl<'a> Active<'a> {
    fn new(outgoing: &'a Outgoing) -> Self {
        outgoing.metrics.active.inc();
        Self(outgoing)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.metrics.active.dec();
    }
}

/// One file on its way to one member, over as many connections as it takes.
struct Transfer<'a> {
    peer: &'a PeerClient,
    outgoing: &'a Outgoing,
    offer: SnapshotOffer,
    file: Arc<File>,
    /// Keeps the log that the member will need behind the file; from its first answer on.
    hold: Option<Hold>,
    /// How far the file was handed to a connection, whether it arrived or not.
    sent_to: u64,
    /// When bytes arrived last.
    moved_at: Instant,
    /// The largest part that is sent; less where one has failed twice.
    part_bytes_max: usize,
    /// Where the last part began that got no answer.
    failed_at: Option<u64>,
    /// Whether the member was told that the file is complete: it may be installing it.
    ended: bool,
}

impl<'a> Transfer<'a> {
    async fn open(
        peer: &'a PeerClient,
        outgoing: &'a Outgoing,
        vote: Vote,
        snapshot: &Snapshot<SnapshotHandle>,
    ) -> Result<Self, SendError> {
        let handle = snapshot.snapshot.clone();
        let file_bytes = handle.file_bytes();
        let opened = move || {
            // The digest of a file from an earlier life of this process takes reading all of it.
            let sha256 = handle.sha256().map_err(std::io::Error::other)?;
            std::io::Result::Ok((sha256, File::open(handle.path())?))
        };
        let (sha256, file) = background::run("snapshot-open", opened).await??;
        Ok(Self {
            peer,
            outgoing,
            offer: SnapshotOffer { vote, meta: snapshot.meta.clone(), file_bytes, sha256 },
            file: Arc::new(file),
            hold: None,
            sent_to: 0,
            moved_at: clock::now(),
            part_bytes_max: PART_BYTES_MAX,
            failed_at: None,
            ended: false,
        })
    }

    /// Sends the file to its end, over cuts.
    async fn run(&mut self) -> Result<SnapshotResponse<TypeConfig>, SendError> {
        loop {
            let error = match self.attempt().await {
                Err(SendError::Peer(error)) => error,
                done => return done,
            };
            // Nothing was begun that would have to be brought to its end, or there is nobody any more.
            if self.hold.is_none() || self.moved_at.elapsed() > STALLED_MAX {
                return Err(error.into());
            }
            tracing::debug!(%error, file_bytes = self.offer.file_bytes, sent = self.sent_to, "a snapshot transfer was cut");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Goes on where the other side is.
    async fn attempt(&mut self) -> Result<SnapshotResponse<TypeConfig>, SendError> {
        // While it installs the file it answers only behind that.
        let timeout = if self.ended { INSTALL_TIMEOUT } else { PART_TIMEOUT };
        let mut received = progress(self.call(&Request::SnapshotBegin(self.offer.clone()), timeout).await?)?;
        self.begun();
        let part_bytes = self.outgoing.pace.part_bytes(self.peer.rtt()).min(self.part_bytes_max);
        let mut ahead = None;
        while received < self.offer.file_bytes {
            if self.hold.as_ref().is_some_and(Hold::is_lost) {
                return Err(SendError::Overtaken);
            }
            let part = match ahead.take().filter(|part: &SnapshotPart| part.offset == received) {
                Some(part) => part,
                None => self.read(received, part_bytes).await?,
            };
            let waited = self.outgoing.pace.take(part.bytes.len()).await;
            self.outgoing.metrics.limited.inc_by(waited.as_secs_f64());
            self.count(&part);
            // While this one is under way the next is read, and not sent: a cut costs one part.
            let next = self.read(part.offset + part.bytes.len() as u64, part_bytes);
            let request = Request::SnapshotPart(part);
            let (answer, next) = tokio::join!(self.call(&request, PART_TIMEOUT), next);
            ahead = Some(next?);
            if answer.is_err() && self.failed_at.replace(received) == Some(received) {
                self.part_bytes_max = (part_bytes / 2).max(PART_BYTES_MIN);
            }
            let before = received;
            received = progress(answer?)?;
            if received > before {
                self.moved_at = clock::now();
            }
        }
        self.ended = true;
        self.end().await
    }

    async fn end(&mut self) -> Result<SnapshotResponse<TypeConfig>, SendError> {
        match self.call(&Request::SnapshotEnd(self.offer.clone()), INSTALL_TIMEOUT).await {
            Ok(Response::SnapshotInstalled(response)) => {
                self.outgoing.metrics.finished.inc();
                Ok(response)
            }
            Ok(other) => Err(unexpected(&other).into()),
            // It may be installing it, or may have been restarted: ask how far it is.
            Err(error @ PeerError::Call(_)) => {
                self.moved_at = clock::now();
                Err(error.into())
            }
            Err(error) => Err(SendError::NotInstalled(error)),
        }
    }

    async fn call(&self, request: &Request, timeout: Duration) -> Result<Response, PeerError> {
        self.peer.call(Channel::Snapshot, request, timeout).await
    }

    /// The member takes the file: from now on what it will need of the log is kept.
    fn begun(&mut self) {
        if self.hold.is_none() {
            let covered = self.offer.meta.last_log_id.map_or(0, |id| id.index);
            self.hold = Some(self.outgoing.holds.hold(self.peer.target(), covered));
            self.outgoing.metrics.begun.inc();
        }
    }

    async fn read(&self, offset: u64, part_bytes: usize) -> Result<SnapshotPart, SendError> {
        let (file, sha256) = (Arc::clone(&self.file), self.offer.sha256);
        let rest = usize::try_from(self.offer.file_bytes - offset).unwrap_or(usize::MAX);
        let read = move || {
            let mut bytes = vec![0; rest.min(part_bytes)];
            file.read_exact_at(&mut bytes, offset)?;
            let crc = crc32c::crc32c(&bytes);
            std::io::Result::Ok(SnapshotPart { sha256, offset, crc, bytes: Bytes::from(bytes) })
        };
        Ok(spawn_blocking(read).await.map_err(std::io::Error::from)??)
    }

    fn count(&mut self, part: &SnapshotPart) {
        let (begin, end) = (part.offset, part.offset + part.bytes.len() as u64);
        self.outgoing.metrics.sent.inc_by(end - begin);
        self.outgoing.metrics.sent_again.inc_by(self.sent_to.min(end).saturating_sub(begin));
        self.sent_to = self.sent_to.max(end);
    }
}

fn progress(answer: Response) -> Result<u64, PeerError> {
    match answer {
        Response::SnapshotProgress { received } => Ok(received),
        other => Err(unexpected(&other)),
    }
}
