//! openraft's calls to other members, over a [`Transport`].
//!
//! Guarantees: heartbeats, appends, votes and snapshots use channels of their own; a peer that can't be reached is reported
//! as such, so that openraft backs off; pre-vote is really asked, never assumed; entries and forwarded commands are packed on
//! their way to another zone, and only there. Leaves out: what the peer does (`server`) and how a snapshot is cut into parts
//! (`snapshot_transfer`).

use std::borrow::Cow;
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
use super::forgetting::Acknowledged;
use super::leadership::overdue;
use super::messages::{Envelope, Request, Response, decode_response, encode_request};
use super::packing::Packer;
use super::pipeline;
use super::refusals::Refusals;
use super::snapshot_store::SnapshotHandle;
use super::snapshot_transfer::{self, Outgoing};
use super::types::{LogId, Snapshot, TypeConfig, Vote};
use crate::clock::{self, Instant};
use crate::transport::{CallError, Channel, Pipe, Transport};
use crate::types::{ClusterId, Member, NodeId};

/// An append may wait for a slow disk on the other side: it gets at least this long, whatever the heartbeat interval.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// What the way to a member carries at least, in bytes a second. An append gets the time that this takes on top: an entry
/// that is given up before it has arrived is sent again, and would be for ever, with all that waits behind it.
const LINK_BYTES_PER_SECOND_MIN: u64 = 512 * 1024;

/// For so many leases a leader that has lost its quorum sends no entries, so that others can be elected, also where votes are
/// split once or twice; then it does for so many, longer than openraft pauses between attempts, and so on.
const HELD_BACK_LEASES: u32 = 4;
const SENT_LEASES: u32 = 4;

/// The time that so many bytes take on the slowest way that is made for.
pub(super) fn time_on_the_way(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1_000 / LINK_BYTES_PER_SECOND_MIN)
}

/// Who this node is, and how it reaches others.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) cluster: ClusterId,
    pub(super) me: NodeId,
    /// Where members are now: openraft keeps calling a member as it was when the call's client was made.
    pub(super) book: AddressBook,
    /// The data centre of this node, until the membership tells; empty if none was named.
    pub(super) zone: Arc<str>,
    pub(super) packer: Packer,
}

impl Peers {
    /// One request to one member. An append gets the time that its bytes take on top.
    pub(super) async fn call(
        &self,
        to: NodeId,
        member: &Member,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        let deadline = clock::now() + timeout;
        let bytes = self.encode(to, member, request).await?;
        let deadline = match request {
            Request::Append(_) => deadline + time_on_the_way(bytes.len()),
            _ => deadline,
        };
        understand(&self.transport.call(&member.peer_addr, channel, bytes, deadline).await?)
    }

    /// The bytes of a request to a member, packed where that is worth it.
    async fn encode(&self, to: NodeId, member: &Member, request: &Request) -> Result<Bytes, PeerError> {
        let envelope = Envelope { cluster: self.cluster, from: self.me, to };
        let bytes = encode_request(envelope, request).map_err(|error| PeerError::Refused(error.to_string()))?;
        // Between data centres a byte costs more than the time to save it.
        if matches!(request, Request::Append(_) | Request::Forward { .. })
            && self.book.are_apart((self.me, &self.zone), (to, &member.zone))
        {
            return Ok(self.packer.pack(bytes).await);
        }
        Ok(bytes)
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
    pub(super) outgoing: Arc<Outgoing>,
    /// Whether appends are sent ahead of the answers to those before.
    pub(super) pipelined: bool,
    pub(super) quorum: Quorum,
    pub(super) refusals: Arc<Refusals>,
    pub(super) acknowledged: Arc<Acknowledged>,
}

/// Whether a quorum answers this leader. Clones share it.
///
/// A leader that hears nobody is still heard. openraft then stops its heartbeats for a while, so that its followers elect
/// another one; but it goes on repeating entries that nobody confirms, and each of them would put the election off. So they are
/// held back as well, and also for a while only: where a quorum needs somebody who lacks an entry that this leader has,
/// nobody else can be elected before they have it. A leader whose hand-over has failed sends no heartbeats ever again.
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
        let overdue = self.metrics.get().and_then(|metrics| overdue(&metrics.borrow_watched(), self.lease));
        overdue.is_some_and(|overdue| holds_back(overdue, self.lease))
    }
}

/// Whether entries are held back once the quorum is lost for so long.
fn holds_back(lost: Duration, lease: Duration) -> bool {
    let round = lease * (HELD_BACK_LEASES + SENT_LEASES);
    let into_round = lost.as_nanos() % round.as_nanos().max(1);
    into_round < (lease * HELD_BACK_LEASES).as_nanos()
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerClient {
        let (peers, member, outgoing) = (self.peers.clone(), member.clone(), Arc::clone(&self.outgoing));
        let (pipelined, quorum) = (self.pipelined, self.quorum.clone());
        let (refusals, acknowledged) = (self.refusals.clone(), self.acknowledged.clone());
        let channel = Channel::Append;
        PeerClient { peers, target, member, channel, outgoing, pipelined, quorum, refusals, acknowledged }
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
    pub(super) acknowledged: Arc<Acknowledged>,
    target: NodeId,
    /// As it was when this client was made.
    member: Member,
    channel: Channel,
    outgoing: Arc<Outgoing>,
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

    /// How long an append may take, beside what its bytes take on the way.
    pub(super) fn append_timeout(&self, option: &RPCOption) -> Duration {
        match self.channel {
            Channel::Heartbeat => option.hard_ttl(),
            _ => option.hard_ttl().max(APPEND_TIMEOUT_MIN),
        }
    }

    /// Who is called.
    pub(super) fn target(&self) -> NodeId {
        self.target
    }

    /// The round-trip time to it, where it is known.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.peers.transport.rtt(&self.member().peer_addr)
    }

    /// The member, where it is now.
    fn member(&self) -> Cow<'_, Member> {
        match self.peers.book.address(self.target) {
            Some(moved) if moved != self.member.peer_addr => {
                Cow::Owned(Member { peer_addr: moved, ..self.member.clone() })
            }
            _ => Cow::Borrowed(&self.member),
        }
    }

    /// The bytes of a request to this member, packed where that is worth it.
    pub(super) async fn encode(&self, request: &Request) -> Result<Bytes, PeerError> {
        self.peers.encode(self.target, &self.member, request).await
    }

    /// A way to send appends ahead of the answers to those before.
    pub(super) async fn pipe(&self, deadline: Instant) -> Result<Box<dyn Pipe>, PeerError> {
        Ok(self.peers.transport.pipe(&self.member().peer_addr, self.channel, deadline).await?)
    }

    pub(super) async fn call(
        &self,
        channel: Channel,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, PeerError> {
        let member = self.member();
        let answer = self.peers.call(self.target, &member, channel, request, timeout).await;
        answer.inspect_err(|error| {
            if let PeerError::Refused(reason) = error {
                self.refusals.note(self.target, &member.peer_addr, reason);
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

/// The last entry that a member has once it has taken this.
pub(super) fn last_of(request: &AppendEntriesRequest<TypeConfig>) -> Option<LogId> {
    request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id)
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
        let question = self.acknowledged.ask(self.target, rpc.vote, rpc.prev_log_id, last_of(&rpc));
        match self.call(self.channel, &Request::Append(rpc), timeout).await? {
            Response::Append(response) => {
                self.acknowledged.answered(&question, &response);
                Ok(response)
            }
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
        let send = snapshot_transfer::send(self, &self.outgoing, vote, &snapshot);
        tokio::select! {
            biased;
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
    use parking_lot::Mutex;

    use super::super::messages::{Form, encode_response, form, head};
    use super::*;

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
        let book = AddressBook::default();
        (Peers { transport: transport.clone(), cluster, me, book, zone: zone.into(), packer }, transport)
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
