//! Appends to one member ahead of the answers to those before, for members that are far away.
//!
//! openraft's own way waits for each answer before it sends the next append. Between data centres that makes every entry
//! wait for up to a round trip before its own begins, if only behind the news of what is committed. Here what is sent next
//! does not wait.
//!
//! Guarantees: one connection, so that appends arrive in their order; answers in the order of requests; at most
//! [`APPENDS_MAX`] under way; the first error ends the stream, and openraft begins another one from what is known to have
//! arrived. Leaves out: members that are near, where merging more entries into an append is worth more.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use openraft::base::BoxStream;
use openraft::error::RPCError;
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};

use super::messages::{Request, Response};
use super::network::{PeerClient, PeerError, understand, unexpected};
use super::types::{LogId, TypeConfig};
use crate::clock::{self, Instant};
use crate::transport::Pipe;

/// The most appends under way to one member: more than twice the rounds that a leader has in flight, because the news that
/// one is committed is an append of its own.
pub(super) const APPENDS_MAX: usize = 64;

/// What openraft takes for a stream of answers.
pub(super) type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// An append under way: what it follows, what its last entry is, and when it was sent.
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    at: Instant,
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
            let may_send = !self.input_ended && self.sent.len() < APPENDS_MAX;
            // The other end works on one after the other: as long as answers come, it has no more than its time for each.
            let due = self.sent.front().map(|front| front.at.max(self.answered) + self.timeout);
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

    async fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Result<(), PeerError> {
        self.client.may_append()?;
        let at = clock::now();
        let deadline = at + self.timeout;
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let request = Request::Append(request);
        let mut pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => self.client.pipe(deadline).await?,
        };
        pipe.send(self.client.encode(&request).await?, deadline).await?;
        self.pipe = Some(pipe);
        self.sent.push_back(Sent { prev, last, at });
        Ok(())
    }

    /// Makes of an answer what openraft takes.
    fn take(&mut self, answer: &[u8]) -> Result<Option<Answered>, PeerError> {
        let response = match understand(answer)? {
            Response::Append(response) => response,
            other => return Err(unexpected(&other)),
        };
        self.answered = clock::now();
        let Some(Sent { prev, last, .. }) = self.sent.pop_front() else { return Ok(None) };
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
