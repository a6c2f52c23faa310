//! openraft's calls to other members, over a [`Transport`].
//!
//! Guarantees: heartbeats, appends, votes and snapshots use channels of their own; a peer that can't be reached is reported
//! as such, so that openraft backs off; pre-vote is really asked, never assumed. Leaves out: what the peer does (`server`)
//! and how a snapshot is cut into parts (`snapshot_transfer`).

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::base::BoxFuture;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{AnyError, RaftMetrics, RaftNetworkFactory, RaftNetworkV2};

use super::address_book::AddressBook;
use super::leadership::is_overdue;
use super::messages::{Envelope, Request, Response, decode_response, encode_request};
use super::pipeline;
use super::refusals::Refusals;
use super::snapshot_store::SnapshotHandle;
use super::snapshot_transfer;
use super::types::{Snapshot, TypeConfig, Vote};
use crate::clock::{self, Instant};
use crate::transport::{CallError, Channel, Pipe, Transport};
use crate::types::{ClusterId, Member, NodeId};

/// An append may wait for a slow disk on the other side: it gets at least this long, whatever the heartbeat interval.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// Who this node is, and how it reaches others.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) cluster: ClusterId,
    pub(super) me: NodeId,
    /// Where members are now: openraft keeps calling a member as it was when the call's client was made.
    pub(super) book: AddressBook,
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
        let bytes = self.encode(to, request)?;
        understand(&self.transport.call(address, channel, bytes, clock::now() + timeout).await?)
    }

    fn encode(&self, to: NodeId, request: &Request) -> Result<Bytes, PeerError> {
        let envelope = Envelope { cluster: self.cluster, from: self.me, to };
        encode_request(envelope, request).map_err(|error| PeerError::Refused(error.to_string()))
    }
}

/// What a member answers.
pub(super) fn understand(answer: &[u8]) -> Result<Response, PeerError> {
    match decode_response(answer).map_err(|error| PeerError::NotUnderstood(error.to_string()))? {
        Response::Refused(reason) => Err(PeerError::Refused(reason)),
        response => Ok(response),
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
    /// Whether appends are sent ahead of the answers to those before.
    pub(super) pipelined: bool,
    pub(super) quorum: Quorum,
    pub(super) refusals: Arc<Refusals>,
}

/// Whether a quorum answers this leader. Clones share it.
///
/// A leader that hears nobody is still heard. openraft then stops its heartbeats for a while, so that its followers elect
/// another one; but it goes on repeating entries that nobody confirms, and each of them would put the election off.
#[derive(Clone)]
pub(super) struct Quorum {
    metrics: Arc<OnceLock<WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>>>,
    lease: Duration,
}

impl Quorum {
    /// It counts as lost when nobody has confirmed the leadership for as long as `lease`.
    pub(super) fn new(lease: Duration) -> Self {
        Self { metrics: Arc::default(), lease }
    }

    /// Where it is looked up, once Raft runs.
    pub(super) fn watch(&self, metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>) {
        // Set once: Raft is started once.
        let _ = self.metrics.set(metrics);
    }

    fn is_lost(&self) -> bool {
        self.metrics.get().is_some_and(|metrics| is_overdue(&metrics.borrow_watched(), self.lease))
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        let (peers, address) = (self.peers.clone(), member.peer_addr.clone());
        let (pipelined, quorum) = (self.pipelined, self.quorum.clone());
        let refusals = self.refusals.clone();
        PeerClient { peers, target, address, channel: Channel::Append, pipelined, quorum, refusals }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        PeerClient { channel: Channel::Heartbeat, pipelined: false, ..self.new_client(target, member).await }
    }

    async fn new_snapshot_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        PeerClient { channel: Channel::Snapshot, pipelined: false, ..self.new_client(target, member).await }
    }
}

/// Calls to one member.
pub(super) struct PeerClient {
    peers: Peers,
    refusals: Arc<Refusals>,
    target: NodeId,
    address: String,
    channel: Channel,
    pipelined: bool,
    quorum: Quorum,
}

impl PeerClient {
    /// Whether appends may be sent now. Heartbeats have their own rule in openraft.
    pub(super) fn may_append(&self) -> Result<(), PeerError> {
        if self.channel == Channel::Append && self.quorum.is_lost() {
            return Err(PeerError::Refused("not sent: no quorum answers, and others are to be elected".into()));
        }
        Ok(())
    }

    /// How long an append may take.
    pub(super) fn append_timeout(&self, option: &RPCOption) -> Duration {
        match self.channel {
            Channel::Heartbeat => option.hard_ttl(),
            _ => option.hard_ttl().max(APPEND_TIMEOUT_MIN),
        }
    }

    /// The bytes of a request to this member.
    pub(super) fn encode(&self, request: &Request) -> Result<Bytes, PeerError> {
        self.peers.encode(self.target, request)
    }

    /// A way to send appends ahead of the answers to those before.
    pub(super) async fn pipe(&self, deadline: Instant) -> Result<Box<dyn Pipe>, PeerError> {
        Ok(self.peers.transport.pipe(&self.address, self.channel, deadline).await?)
    }

    pub(super) async fn call(
        &self,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        let moved = self.peers.book.address(self.target);
        let address = moved.as_deref().unwrap_or(&self.address);
        let answer = self.peers.call(self.target, address, channel, request, timeout).await;
        answer.inspect_err(|error| {
            if let PeerError::Refused(reason) = error {
                self.refusals.note(self.target, address, reason);
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

/// What openraft takes for a stream of answers, once there is one.
type BoxedAnswers<'s> = BoxFuture<'s, Result<pipeline::Answers<'s>, RPCError<TypeConfig>>>;

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.may_append()?;
        let timeout = self.append_timeout(&option);
        match self.call(self.channel, &Request::Append(rpc), timeout).await? {
            Response::Append(response) => Ok(response),
            other => Err(unexpected(&other).into()),
        }
    }

    fn stream_append<'s, S>(&'s mut self, input: S, option: RPCOption) -> BoxedAnswers<'s>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        if self.pipelined {
            return Box::pin(std::future::ready(Ok(pipeline::append(self, input, &option))));
        }
        stream_append_sequential(self, input, option)
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
    use super::*;

    /// Gives the same answer to everything.
    struct Answers(Bytes);

    impl Transport for Answers {
        fn call<'a>(
            &'a self,
            _: &'a str,
            _: Channel,
            _: Bytes,
            _: Instant,
        ) -> crate::transport::BoxFuture<'a, Result<Bytes, CallError>> {
            Box::pin(std::future::ready(Ok(self.0.clone())))
        }
    }

    #[tokio::test]
    async fn only_a_refusal_proves_that_a_request_was_not_acted_on() {
        let refusal = super::super::messages::encode_response(&Response::Refused("no".into())).unwrap();
        for (answer, may_have_arrived) in [
            (refusal, false),
            (Bytes::from_static(b"\x03from a newer program"), true),
            (Bytes::from_static(b"\x01\xff an answer of a kind unknown here"), true),
            (Bytes::new(), true),
        ] {
            let transport = Arc::new(Answers(answer.clone()));
            let peers =
                Peers { transport, cluster: ClusterId::new(1), me: NodeId::new(1), book: AddressBook::default() };
            let request = Request::Forward { commands: Bytes::new(), timeout_ms: 1 };
            let call = peers.call(NodeId::new(2), "n2:1", Channel::Forward, &request, Duration::from_secs(1));
            let error = call.await.unwrap_err();
            assert_eq!(error.may_have_arrived(), may_have_arrived, "{answer:?}: {error}");
        }
    }
}
