//! Appends to one member ahead of the answers to those before, for members that are far away.
//!
//! openraft's own way waits for each answer before it sends the next append. Between data centres that makes every entry
//! wait for up to a round trip before its own begins, if only behind the news of what is committed. Here what is sent next
//! does not wait.
//!
//! Guarantees: one connection, so that appends arrive in their order; answers in the order of requests; at most
//! [`APPENDS_MAX`] under way, and none beyond [`BYTES_MAX`]; the first error ends the stream, and openraft begins another
//! one from what is known to have arrived. Leaves out: members that are near, where merging more entries into an append is
//! worth more.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use openraft::base::BoxStream;
use openraft::error::RPCError;
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};

use super::forgetting::Question;
use super::messages::{Request, Response};
use super::network::{PeerClient, PeerError, last_of, time_on_the_way, understand, unexpected};
use super::types::{LogId, TypeConfig};
use crate::clock::{self, Instant};
use crate::transport::{FRAME_BYTES_MAX, Pipe};

/// The most appends under way to one member: more than twice the rounds that a leader has in flight, because the news that
/// one is committed is an append of its own.
pub(super) const APPENDS_MAX: usize = 64;

/// With so many bytes under way no further append is sent: what 150 ms hold at a gigabit a second, and more.
const BYTES_MAX: usize = FRAME_BYTES_MAX;

/// What openraft takes for a stream of answers.
pub(super) type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// An append under way: what it follows, what its last entry is, and when it was sent.
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    at: Instant,
    bytes: usize,
    question: Question,
}

/// Sends what comes from `input`, and tells the answers.
pub(super) fn append<'s, S>(client: &'s mut PeerClient, input: S, option: &RPCOption) -> Answers<'s>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let timeout = client.append_timeout(option);
    let (sent, answered) = (VecDeque::new(), clock::now());
    let pipeline = Pipeline { client, timeout, input, input_ended: false, pipe: None, sent, answered };
    Box::pin(stream::unfold(Some(pipeline), |pipeline| async move {
        let mut pipeline = pipeline?;
        match pipeline.next().await {
            Ok(Some((answer, last))) => Some((Ok(answer), Some(pipeline).filter(|_| !last))),
            Ok(None) => None,
            Err(error) => Some((Err(error.into()), None)),
        }
    }))
}

struct Pipeline<'s, S> {
    client: &'s mut PeerClient,
    timeout: Duration,
    input: S,
    input_ended: bool,
    pipe: Option<Box<dyn Pipe>>,
    sent: VecDeque<Sent>,
    /// When the last answer came.
    answered: Instant,
}

/// An answer, and whether the stream ends with it.
type Answered = (StreamAppendResult<TypeConfig>, bool);

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    /// The next answer; `None` once everything was sent and answered.
    async fn next(&mut self) -> Result<Option<Answered>, PeerError> {
        loop {
            if self.input_ended && self.sent.is_empty() {
                return Ok(None);
            }
            let room = self.sent.len() < APPENDS_MAX && self.bytes_under_way() < BYTES_MAX;
            let (may_send, due) = (room && !self.input_ended, self.due());
            tokio::select! {
                biased;
                answer = answer(&mut self.pipe, due) => return self.take(&answer?),
                request = self.input.next(), if may_send => match request {
                    None => self.input_ended = true,
                    Some(request) => self.send(request).await?,
                },
            }
        }
    }

    fn bytes_under_way(&self) -> usize {
        self.sent.iter().map(|sent| sent.bytes).sum()
    }

    /// When the next answer must be there. The other end works on one after the other: as long as answers come, it has no
    /// more than its time for each.
    fn due(&self) -> Option<Instant> {
        let front = self.sent.front()?;
        Some(front.at.max(self.answered) + self.timeout + time_on_the_way(front.bytes))
    }

    async fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Result<(), PeerError> {
        self.client.may_append()?;
        let at = clock::now();
        let (prev, last) = (request.prev_log_id, last_of(&request));
        let question = self.client.acknowledged.ask(self.client.target(), request.vote, prev, last);
        let request = Request::Append(request);
        let mut pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => self.client.pipe(at + self.timeout).await?,
        };
        let request = self.client.encode(&request).await?;
        let bytes = request.len();
        // All that is before it may have to leave first.
        pipe.send(request, at + self.timeout + time_on_the_way(self.bytes_under_way() + bytes)).await?;
        self.pipe = Some(pipe);
        if self.due().is_some_and(|due| due <= clock::now()) {
            // Nobody has listened since, and an end that takes more is alive.
            self.answered = clock::now();
        }
        self.sent.push_back(Sent { prev, last, at, bytes, question });
        Ok(())
    }

    /// Makes of an answer what openraft takes.
    fn take(&mut self, answer: &[u8]) -> Result<Option<Answered>, PeerError> {
        let response = match understand(answer)? {
            Response::Append(response) => response,
            other => return Err(unexpected(&other)),
        };
        self.answered = clock::now();
        let Some(Sent { prev, last, question, .. }) = self.sent.pop_front() else { return Ok(None) };
        self.client.acknowledged.answered(&question, &response);
        if self.sent.is_empty() {
            // Back to the others that idle, where those that idle too long are not used again.
            self.pipe = None;
        }
        // What was taken in part is sent again from there, by a stream of its own.
        let whole = !matches!(&response, AppendEntriesResponse::PartialSuccess(taken) if *taken != last);
        let result = response.into_stream_result(prev, last);
        let ends = result.is_err() || !whole;
        Ok(Some((result, ends)))
    }
}

/// The next answer; for ever if none is due.
async fn answer(pipe: &mut Option<Box<dyn Pipe>>, deadline: Option<Instant>) -> Result<bytes::Bytes, PeerError> {
    match (pipe, deadline) {
        (Some(pipe), Some(deadline)) => Ok(pipe.answer(deadline).await?),
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use bytes::Bytes;
    use openraft::RaftNetworkFactory;
    use parking_lot::Mutex;

    use super::*;
    use crate::raft::address_book::{AddressBook, Place};
    use crate::raft::messages::{Form, decode_request, encode_response, form};
    use crate::raft::network::{NetworkFactory, Peers, Quorum};
    use crate::raft::packing::{Packer, Unpacker};
    use crate::raft::snapshot_transfer::{LogHolds, Outgoing, TransferMetrics};
    use crate::raft::types::{Entry, LeaderId, Payload, Vote};
    use crate::state::Batch;
    use crate::transport::{BoxFuture, CallError, Channel, Transport};
    use crate::types::{ClusterId, Member, NodeId, Term};

    const CLUSTER: ClusterId = ClusterId::new(7);
    const ME: NodeId = NodeId::new(1);
    const OTHER: NodeId = NodeId::new(2);
    const TIMEOUT: Duration = Duration::from_secs(2);

    /// The other end: takes each append within a given time, answers at once, and keeps what came and how long it might take.
    #[derive(Clone, Default)]
    struct End {
        takes: Arc<Mutex<VecDeque<Duration>>>,
        came: Arc<Mutex<Vec<(Bytes, Duration)>>>,
        /// Appends without an answer, and the most there were at a time.
        under_way: Arc<Mutex<(usize, usize)>>,
    }

    impl Transport for End {
        fn call<'a>(&'a self, _: &'a str, _: Channel, _: Bytes, _: Instant) -> BoxFuture<'a, Result<Bytes, CallError>> {
            panic!("appends go through the pipe");
        }

        fn has_pipes(&self) -> bool {
            true
        }

        fn pipe<'a>(&'a self, _: &'a str, _: Channel, _: Instant) -> BoxFuture<'a, Result<Box<dyn Pipe>, CallError>> {
            Box::pin(std::future::ready(Ok(Box::new(self.clone()) as Box<dyn Pipe>)))
        }
    }

    impl Pipe for End {
        fn send<'a>(&'a mut self, request: Bytes, deadline: Instant) -> BoxFuture<'a, Result<(), CallError>> {
            Box::pin(async move {
                self.came.lock().push((request, deadline - clock::now()));
                let takes = self.takes.lock().pop_front().unwrap_or_default();
                tokio::time::sleep(takes).await;
                assert!(clock::now() <= deadline, "it was not waited for");
                let mut under_way = self.under_way.lock();
                under_way.0 += 1;
                under_way.1 = under_way.1.max(under_way.0);
                Ok(())
            })
        }

        fn answer<'a>(&'a mut self, deadline: Instant) -> BoxFuture<'a, Result<Bytes, CallError>> {
            Box::pin(async move {
                // Over a way of some length, so that what is ready to be sent goes first.
                let arrives = tokio::time::timeout_at(deadline, tokio::time::sleep(Duration::from_millis(1))).await;
                let late = CallError::NoAnswer { peer: "n2".into(), reason: "the deadline passed".into() };
                arrives.map_err(|_| late)?;
                self.under_way.lock().0 -= 1;
                Ok(encode_response(&Response::Append(AppendEntriesResponse::Success)).unwrap())
            })
        }
    }

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: Term::new(3), node_id: ME }, index }
    }

    /// Appends of one entry each, of so many bytes, which compress well.
    fn appends(bytes: &[usize]) -> Vec<AppendEntriesRequest<TypeConfig>> {
        let append = |(index, bytes): (u64, &usize)| AppendEntriesRequest {
            vote: Vote::new_committed(Term::new(3), ME),
            prev_log_id: Some(log_id(index)),
            entries: vec![Entry {
                log_id: log_id(index + 1),
                payload: Payload::Normal(Batch::from(Bytes::from(vec![7; *bytes]))),
            }],
            leader_commit: None,
        };
        (10..).zip(bytes).map(append).collect()
    }

    /// Sends them to the other end, which stands in another zone if it is `far`; what is told of each.
    async fn send(end: &End, far: bool, requests: Vec<AppendEntriesRequest<TypeConfig>>) -> Vec<Option<LogId>> {
        let (book, transport) = (AddressBook::default(), Arc::new(end.clone()));
        let place = |zone: &str| Place { peer_addr: "n2:1".into(), zone: zone.into() };
        book.set(BTreeMap::from([(ME, place("dc1")), (OTHER, place(if far { "dc2" } else { "dc1" }))]));
        let peers = Peers { transport, cluster: CLUSTER, me: ME, book, zone: "".into(), packer: Packer::default() };
        let outgoing = Arc::new(Outgoing::new(1, LogHolds::default(), TransferMetrics::default()));
        let quorum = Quorum::new(TIMEOUT);
        let (refusals, acknowledged) = (Arc::default(), Arc::default());
        let mut network = NetworkFactory { peers, outgoing, pipelined: true, quorum, refusals, acknowledged };
        let mut client = network.new_client(OTHER, &Member::default()).await;
        let answers = append(&mut client, stream::iter(requests), &RPCOption::new(Duration::from_millis(100)));
        let taken = |answer: Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>| answer.unwrap().unwrap();
        answers.map(taken).collect().await
    }

    #[tokio::test]
    async fn appends_to_another_zone_are_packed_and_answered_in_their_order() {
        let (end, requests) = (End::default(), appends(&[300_000, 100, 30_000]));
        let told = send(&end, true, requests.clone()).await;
        assert_eq!(told, [Some(log_id(11)), Some(log_id(12)), Some(log_id(13))]);
        let forms = [Form::Zstd, Form::Plain, Form::Zstd];
        let came = end.came.lock().clone();
        assert_eq!(came.len(), requests.len());
        for (((message, _), sent), expected) in came.into_iter().zip(requests).zip(forms) {
            assert_eq!(form(&message), Some(expected), "{} bytes", message.len());
            let unpacked = Unpacker::default().unpack(message).await.unwrap().message;
            let (_, came) = decode_request(&unpacked, CLUSTER, OTHER).unwrap();
            assert_eq!(format!("{came:?}"), format!("{:?}", Request::Append(sent)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_has_the_time_that_its_bytes_take_on_a_slow_way() {
        let (end, large) = (End::default(), 16 * 1024 * 1024);
        send(&end, false, appends(&[100, large])).await;
        let given: Vec<Duration> = end.came.lock().iter().map(|(_, given)| *given).collect();
        assert!(given[0] >= TIMEOUT && given[0] < TIMEOUT * 2, "{given:?}");
        assert!(given[1] >= TIMEOUT + time_on_the_way(large) && given[1] < Duration::from_secs(60), "{given:?}");
    }

    /// While an append leaves slowly nobody listens for the answers to those before it.
    #[tokio::test(start_paused = true)]
    async fn answers_that_came_while_an_append_was_sent_are_not_too_late() {
        let end = End::default();
        end.takes.lock().extend([Duration::ZERO, Duration::from_secs(5)]);
        let told = send(&end, false, appends(&[100, 4 * 1024 * 1024, 100])).await;
        assert_eq!(told.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_bounded_in_number_and_in_bytes() {
        let large = 3 * 1024 * 1024;
        for (bytes, appended, at_most) in [(100, APPENDS_MAX * 2, APPENDS_MAX), (large, 20, BYTES_MAX / large + 1)] {
            let end = End::default();
            let told = send(&end, false, appends(&vec![bytes; appended])).await;
            assert_eq!((told.len(), end.under_way.lock().1), (appended, at_most), "{bytes} bytes each");
        }
    }
}
