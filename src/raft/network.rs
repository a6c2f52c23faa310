//! openraft's calls to other members, over a [`Transport`].
//!
//! Guarantees: heartbeats, appends, votes and snapshots use channels of their own; a peer that can't be reached is reported
//! as such, so that openraft backs off; pre-vote is really asked, never assumed. Leaves out: what the peer does (`server`)
//! and how a snapshot is cut into parts (`snapshot_transfer`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, RaftNetworkFactory, RaftNetworkV2};

use super::messages::{Envelope, Request, Response, decode_response, encode_request};
use super::refusals::Refusals;
use super::snapshot_store::SnapshotHandle;
use super::snapshot_transfer;
use super::types::{Snapshot, TypeConfig, Vote};
use crate::clock;
use crate::transport::{CallError, Channel, Transport};
use crate::types::{ClusterId, Member, NodeId};

/// An append may wait for a slow disk on the other side: it gets at least this long, whatever the heartbeat interval.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// Who this node is, and how it reaches others.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) cluster: ClusterId,
    pub(super) me: NodeId,
}

impl Peers {
    /// One request to one member.
    pub(super) async fn call(
        &self,
        to: NodeId,
        address: &str,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        let envelope = Envelope { cluster: self.cluster, from: self.me, to };
        let bytes = encode_request(envelope, request).map_err(|error| PeerError::Refused(error.to_string()))?;
        let answer = self.transport.call(address, channel, bytes, clock::now() + timeout).await?;
        match decode_response(&answer).map_err(|error| PeerError::NotUnderstood(error.to_string()))? {
            Response::Refused(reason) => Err(PeerError::Refused(reason)),
            response => Ok(response),
        }
    }
}

/// Why a member gave no answer to a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The transport brought none.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It answered that it could not act, or with something else than was asked.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// It answered, but the answer can't be read here (a newer program may say more): it may well have acted.
    #[error("the answer of the peer can't be understood: {0}")]
    NotUnderstood(String),
}

impl PeerError {
    /// Whether the request may have been acted on.
    pub(super) fn may_have_arrived(&self) -> bool {
        match self {
            Self::Call(CallError::NoAnswer { .. }) | Self::NotUnderstood(_) => true,
            Self::Call(CallError::Unreachable { .. } | CallError::TooLarge { .. }) | Self::Refused(_) => false,
        }
    }
}

impl From<PeerError> for RPCError<TypeConfig> {
    fn from(error: PeerError) -> Self {
        match error {
            // The connection is there, the answer is late: try again at once.
            PeerError::Call(CallError::NoAnswer { .. }) => Self::Network(NetworkError::new(&AnyError::error(&error))),
            PeerError::Call(_) | PeerError::Refused(_) | PeerError::NotUnderstood(_) => {
                Self::Unreachable(Unreachable::new(&AnyError::error(&error)))
            }
        }
    }
}

/// Makes the clients openraft calls members with.
pub(super) struct NetworkFactory {
    pub(super) peers: Peers,
    pub(super) refusals: Arc<Refusals>,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        PeerClient {
            peers: self.peers.clone(),
            refusals: self.refusals.clone(),
            target,
            address: member.peer_addr.clone(),
            channel: Channel::Append,
        }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        PeerClient { channel: Channel::Heartbeat, ..self.new_client(target, member).await }
    }

    async fn new_snapshot_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        PeerClient { channel: Channel::Snapshot, ..self.new_client(target, member).await }
    }
}

/// Calls to one member.
pub(super) struct PeerClient {
    peers: Peers,
    refusals: Arc<Refusals>,
    target: NodeId,
    address: String,
    channel: Channel,
}

impl PeerClient {
    pub(super) async fn call(
        &self,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        let answer = self.peers.call(self.target, &self.address, channel, request, timeout).await;
        answer.inspect_err(|error| {
            if let PeerError::Refused(reason) = error {
                self.refusals.note(self.target, &self.address, reason);
            }
        })
    }

    async fn ask_for_vote(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Channel::Control, &request, option.hard_ttl()).await? {
            Response::Vote(response) => Ok(response),
            other => Err(unexpected(&other).into()),
        }
    }
}

pub(super) fn unexpected(response: &Response) -> PeerError {
    PeerError::Refused(format!("unexpected answer: {response:?}"))
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = match self.channel {
            Channel::Heartbeat => option.hard_ttl(),
            _ => option.hard_ttl().max(APPEND_TIMEOUT_MIN),
        };
        match self.call(self.channel, &Request::Append(rpc), timeout).await? {
            Response::Append(response) => Ok(response),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(Request::Vote(rpc), &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(Request::PreVote(rpc), &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = snapshot_transfer::send(self, vote, &snapshot);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = send => result,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = Request::TransferLeader {
            from: *request.from_leader(),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().copied(),
        };
        match self.call(Channel::Control, &request, option.hard_ttl()).await? {
            Response::TransferLeader(Ok(())) => Ok(Ok(())),
            Response::TransferLeader(Err(reason)) => Err(PeerError::Refused(reason).into()),
            other => Err(unexpected(&other).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Instant;
    use crate::transport::BoxFuture;

    /// Gives the same answer to everything.
    struct Answers(Bytes);

    impl Transport for Answers {
        fn call<'a>(&'a self, _: &'a str, _: Channel, _: Bytes, _: Instant) -> BoxFuture<'a, Result<Bytes, CallError>> {
            Box::pin(std::future::ready(Ok(self.0.clone())))
        }
    }

    #[tokio::test]
    async fn only_a_refusal_proves_that_a_request_was_not_acted_on() {
        let refusal = super::super::messages::encode_response(&Response::Refused("no".into())).unwrap();
        for (answer, may_have_arrived) in [
            (refusal, false),
            (Bytes::from_static(b"\x02from a newer program"), true),
            (Bytes::from_static(b"\x01\xff an answer of a kind unknown here"), true),
            (Bytes::new(), true),
        ] {
            let transport = Arc::new(Answers(answer.clone()));
            let peers = Peers { transport, cluster: ClusterId::new(1), me: NodeId::new(1) };
            let request = Request::Forward { commands: Bytes::new(), timeout_ms: 1 };
            let call = peers.call(NodeId::new(2), "n2:1", Channel::Forward, &request, Duration::from_secs(1));
            let error = call.await.unwrap_err();
            assert_eq!(error.may_have_arrived(), may_have_arrived, "{answer:?}: {error}");
        }
    }
}
