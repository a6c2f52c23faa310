//! Answers the calls of other members.
//!
//! Guarantees: only messages of this cluster for this node are acted on; a forwarded command is proposed here or refused,
//! never forwarded again; a snapshot is verified before it is installed, and an installation that was begun is not broken
//! off by a connection that breaks. Leaves out: connections (`transport`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::background;
use super::leadership::Leadership;
use super::messages::{
    ForwardRefusal, MessageError, Request, Response, SnapshotOffer, decode_request, encode_response,
};
use super::packing::Unpacker;
use super::payload::carried_back;
use super::proposer::{ProposeError, Proposer};
use super::read_barrier::ReadIndexSource;
use super::refusals::Refusals;
use super::snapshot_store::SnapshotStore;
use super::snapshot_transfer::Receiver;
use super::standing::standing;
use super::state_store::{StateAccess, StateStore};
use super::types::{Snapshot, TypeConfig};
use crate::clock;
use crate::state::{Batch, Outcome};
use crate::transport::{BoxFuture, Channel, FRAME_BYTES_MAX, PeerHandler};
use crate::types::{ClusterId, LogPosition, NodeId};

/// A caller that asks for longer is given this long.
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// The most bytes of outcomes in one answer to a forwarded round: a frame, less what stands around them.
const OUTCOMES_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

/// Answers for one node.
pub(super) struct PeerServer {
    pub(super) cluster: ClusterId,
    pub(super) me: NodeId,
    pub(super) raft: openraft::Raft<TypeConfig, StateStore>,
    pub(super) proposer: Proposer,
    pub(super) read_index: ReadIndexSource,
    pub(super) state: StateAccess,
    pub(super) receiver: Arc<Mutex<Receiver>>,
    /// Where installations run, so that stopping waits for them.
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    pub(super) leadership: Leadership,
    /// Holds a token for each call with forwarded commands.
    pub(super) forwarded: TaskTracker,
    pub(super) refusals: Arc<Refusals>,
    pub(super) unpacker: Unpacker,
}

impl PeerHandler for PeerServer {
    fn handle(&self, _channel: Channel, request: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            let answer = async {
                // Its room is held until it is answered.
                let request = self.unpacker.unpack(request).await.map_err(io::Error::other)?;
                let decoded = decode_request(&request.message, self.cluster, self.me).inspect_err(|error| {
                    if matches!(error, MessageError::OtherCluster { .. }) {
                        self.refusals.note_stranger(error);
                    }
                });
                let (_, decoded) = decoded.map_err(io::Error::other)?;
                self.answer(decoded).await
            };
            let response = answer.await.unwrap_or_else(|error| Response::Refused(error.to_string()));
            encode_response(&response).ok()
        })
    }
}

impl PeerServer {
    async fn answer(&self, request: Request) -> io::Result<Response> {
        Ok(match request {
            Request::Append(rpc) => {
                let response = self.raft.append_entries(rpc).await.map_err(io::Error::other)?;
                // One of an older term is refused with the vote that deposed it.
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.leadership.heard();
                }
                Response::Append(response)
            }
            Request::Vote(rpc) => Response::Vote(self.raft.vote(rpc).await.map_err(io::Error::other)?),
            Request::PreVote(rpc) => Response::Vote(self.raft.pre_vote(rpc).await.map_err(io::Error::other)?),
            Request::TransferLeader { from, to, last_log_id } => {
                let request = TransferLeaderRequest::new(from, to, last_log_id);
                let result = self.raft.handle_transfer_leader(request).await.map_err(io::Error::other)?;
                Response::TransferLeader(result.map_err(|error| error.to_string()))
            }
            Request::SnapshotBegin(offer) => self.begin_snapshot(offer).await?,
            Request::SnapshotPart(part) => {
                self.leadership.heard();
                let received = self.receiver.lock().await.part(part).await.map_err(io::Error::other)?;
                Response::SnapshotProgress { received }
            }
            Request::SnapshotEnd(offer) => self.install_snapshot(offer).await?,
            Request::ReadIndex { timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms).min(CALL_TIMEOUT_MAX);
                Response::ReadIndex(self.read_index.as_leader(timeout).await)
            }
            Request::Standing => {
                let (standing, _) = standing(&self.raft).await.map_err(io::Error::other)?;
                Response::Standing(standing)
            }
            Request::Forward { commands, timeout_ms } => Response::Forward(self.propose(commands, timeout_ms).await),
        })
    }

    async fn propose(&self, commands: Bytes, timeout_ms: u64) -> Result<Vec<Option<Outcome>>, ForwardRefusal> {
        let _at_work = self.forwarded.token();
        let commands =
            Batch::from(commands).decode().map_err(|error| ForwardRefusal::NotProposed(error.to_string()))?;
        let deadline = clock::now() + Duration::from_millis(timeout_ms).min(CALL_TIMEOUT_MAX);
        let outcomes = self.proposer.submit(commands, false, deadline).await;
        outcomes.map(|outcomes| carried_back(outcomes, OUTCOMES_BYTES_MAX)).map_err(|error| match error {
            ProposeError::NotLeader(hint) => ForwardRefusal::NotLeader(hint),
            ProposeError::Unknown(reason) => ForwardRefusal::Unknown(reason),
            ProposeError::NoLeader | ProposeError::NoQuorum | ProposeError::Overloaded | ProposeError::Stopping => {
                ForwardRefusal::NotProposed(error.to_string())
            }
        })
    }

    /// Whether this node is past the snapshot already, so that it needs no byte of it.
    fn has_applied(&self, offer: &SnapshotOffer) -> bool {
        let offered = offer.meta.last_log_id.map(LogPosition::from);
        self.state.applied().borrow().position >= offered
    }

    async fn begin_snapshot(&self, offer: SnapshotOffer) -> io::Result<Response> {
        if self.has_applied(&offer) {
            return Ok(Response::SnapshotProgress { received: offer.file_bytes });
        }
        let received = self.receiver.lock().await.begin(offer).await.map_err(io::Error::other)?;
        Ok(Response::SnapshotProgress { received })
    }

    /// Installs the file that was received. In a task of its own: were it dropped half way because the connection broke,
    /// the next transfer would write into a file that is being taken over.
    async fn install_snapshot(&self, offer: SnapshotOffer) -> io::Result<Response> {
        // Held all through: a second transfer waits until this one is installed, and then finds it applied.
        let receiver = Arc::clone(&self.receiver).lock_owned().await;
        if self.has_applied(&offer) {
            let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(io::Error::other)?;
            return Ok(Response::SnapshotInstalled(SnapshotResponse::new(vote)));
        }
        let installation = install(self.raft.clone(), Arc::clone(&self.state.snapshots), receiver, offer);
        let stopped = self.shutdown.clone();
        let task = self.tasks.spawn(async move {
            tokio::select! {
                biased;
                response = installation => response,
                () = stopped.cancelled() => Err(io::Error::other("the node is stopping")),
            }
        });
        Ok(Response::SnapshotInstalled(task.await??))
    }
}

async fn install(
    raft: openraft::Raft<TypeConfig, StateStore>,
    snapshots: Arc<SnapshotStore>,
    mut receiver: OwnedMutexGuard<Receiver>,
    offer: SnapshotOffer,
) -> io::Result<SnapshotResponse<TypeConfig>> {
    let incoming = receiver.end(&offer).await.map_err(io::Error::other)?;
    let (path, sha256) = (incoming.clone(), offer.sha256);
    let handle = match background::run("snapshot-check", move || snapshots.adopt(&path, sha256)).await? {
        Ok(handle) => handle,
        Err(error) => {
            // Damaged on the way or at its source: it must not be taken for the beginning of the next transfer.
            tokio::fs::remove_file(&incoming).await.ok();
            return Err(error.into());
        }
    };
    tracing::info!(file = %handle.path().display(), bytes = handle.file_bytes(), "installing a snapshot from the leader");
    let snapshot = Snapshot { meta: handle.raft_meta().clone(), snapshot: handle };
    let response = raft.install_full_snapshot(offer.vote, snapshot).await.map_err(io::Error::other)?;
    drop(receiver);
    Ok(response)
}
