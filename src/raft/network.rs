//! openraft's calls to other members, over a [`Transport`].
//!
//! Guarantees: heartbeats, appends, votes and snapshots use channels of their own; a peer that can't be reached is reported
//! as such, so that openraft backs off; pre-vote is really asked, never assumed; entries and forwarded commands are packed on
//! their way to another zone, and only there. Leaves out: what the peer does (`server`) and how a snapshot is cut into parts
//! (`snapshot_transfer`).

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
use super::packing::Packer;
use super::snapshot_store::SnapshotHandle;
use super::snapshot_transfer::{self, Outgoing};
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
    /// The data centre of this node; empty if none was named.
    pub(super) zone: Arc<str>,
    pub(super) packer: Packer,
}

impl Peers {
    /// One request to one member.
    pub(super) async fn call(
        &self,
        to: NodeId,
        member: &Member,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        let deadline = clock::now() + timeout;
        let envelope = Envelope { cluster: self.cluster, from: self.me, to };
        let mut bytes = encode_request(envelope, request).map_err(|error| PeerError::Refused(error.to_string()))?;
        if matches!(request, Request::Append(_) | Request::Forward { .. }) && self.is_far(member) {
            bytes = self.packer.pack(bytes).await;
        }
        let answer = self.transport.call(&member.peer_addr, channel, bytes, deadline).await?;
        match decode_response(&answer).map_err(|error| PeerError::NotUnderstood(error.to_string()))? {
            Response::Refused(reason) => Err(PeerError::Refused(reason)),
            response => Ok(response),
        }
    }

    /// Whether a member stands in another data centre: there a byte costs more than the time to save it.
    fn is_far(&self, member: &Member) -> bool {
        !self.zone.is_empty() && !member.zone.is_empty() && *self.zone != *member.zone
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
    pub(super) outgoing: Arc<Outgoing>,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        let (peers, outgoing) = (self.peers.clone(), Arc::clone(&self.outgoing));
        PeerClient { peers, target, member: member.clone(), channel: Channel::Append, outgoing }
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
    target: NodeId,
    member: Member,
    channel: Channel,
    outgoing: Arc<Outgoing>,
}

impl PeerClient {
    pub(super) async fn call(
        &self,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        self.peers.call(self.target, &self.member, channel, request, timeout).await
    }

    /// Who is called.
    pub(super) fn target(&self) -> NodeId {
        self.target
    }

    /// The round-trip time to it, where it is known.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.peers.transport.rtt(&self.member.peer_addr)
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
        let send = snapshot_transfer::send(self, &self.outgoing, vote, &snapshot);
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
    use parking_lot::Mutex;

    use super::super::messages::{Form, encode_response, form, head};
    use super::*;
    use crate::clock::Instant;
    use crate::transport::BoxFuture;

    /// Gives the same answer to everything, and keeps what was asked last.
    struct Answers {
        answer: Bytes,
        asked: Mutex<Bytes>,
    }

    impl Transport for Answers {
        fn call<'a>(
            &'a self,
            _: &'a str,
            _: Channel,
            request: Bytes,
            _: Instant,
        ) -> BoxFuture<'a, Result<Bytes, CallError>> {
            *self.asked.lock() = request;
            Box::pin(std::future::ready(Ok(self.answer.clone())))
        }
    }

    fn peers(answer: Bytes, zone: &str) -> (Peers, Arc<Answers>) {
        let transport = Arc::new(Answers { answer, asked: Mutex::default() });
        let packer = Packer::default();
        let (cluster, me) = (ClusterId::new(1), NodeId::new(1));
        (Peers { transport: transport.clone(), cluster, me, zone: zone.into(), packer }, transport)
    }

    fn member(zone: &str) -> Member {
        Member { peer_addr: "n2:1".into(), zone: zone.into(), ..Member::default() }
    }

    #[tokio::test]
    async fn only_a_refusal_proves_that_a_request_was_not_acted_on() {
        let refusal = encode_response(&Response::Refused("no".into())).unwrap();
        let unknown = head(Form::Plain).into_iter().chain(*b"\xff an answer of a kind unknown here").collect();
        for (answer, may_have_arrived) in [
            (refusal, false),
            (Bytes::from_static(b"\x7f from a newer program"), true),
            (unknown, true),
            (Bytes::new(), true),
        ] {
            let (peers, _) = peers(answer.clone(), "");
            let request = Request::Forward { commands: Bytes::new(), timeout_ms: 1 };
            let (to, member) = (NodeId::new(2), member(""));
            let call = peers.call(to, &member, Channel::Forward, &request, Duration::from_secs(1));
            let error = call.await.unwrap_err();
            assert_eq!(error.may_have_arrived(), may_have_arrived, "{answer:?}: {error}");
        }
    }

    #[tokio::test]
    async fn commands_are_packed_on_their_way_to_another_zone_and_only_there() {
        let answer = encode_response(&Response::Forward(Ok(Vec::new()))).unwrap();
        let (large, small) = (Bytes::from(vec![7; 100_000]), Bytes::from(vec![7; 100]));
        for (mine, theirs, commands, expected) in [
            ("dc1", "dc2", &large, Form::Zstd),
            ("dc1", "dc2", &small, Form::Plain),
            ("dc1", "dc1", &large, Form::Plain),
            ("", "dc2", &large, Form::Plain),
            ("dc1", "", &large, Form::Plain),
        ] {
            let (peers, transport) = peers(answer.clone(), mine);
            let request = Request::Forward { commands: commands.clone(), timeout_ms: 1 };
            let (to, limit) = (NodeId::new(2), Duration::from_secs(1));
            peers.call(to, &member(theirs), Channel::Forward, &request, limit).await.unwrap();
            let asked = transport.asked.lock().clone();
            assert_eq!(form(&asked), Some(expected), "{mine} {theirs} {}", commands.len());
        }
    }
}
