//! Requests one behind the other on one TCP connection, without waiting for the answers.
//!
//! Over a long way a round trip for each request is what takes the time. The other end needs to know nothing of it: it reads
//! a request, answers it, and finds the next one waiting. Guarantees: answers belong to the requests in their order; a pipe
//! that was given up with requests under way closes its connection, one with none gives it back. Leaves out: how many
//! requests may be under way, which is the caller's to bound, and sending anything a second time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::frames::Frames;
use super::tcp::Peer;
use super::{BoxFuture, CallError, Channel, FRAME_BYTES_MAX, Pipe};
use crate::clock::{self, Instant};

/// A request that has no answer yet.
struct Sent {
    at: Instant,
    bytes: usize,
}

/// One connection that is used in this way.
pub(super) struct TcpPipe {
    peer: Arc<Peer>,
    channel: Channel,
    address: String,
    /// Gone once anything went wrong with it.
    frames: Option<Frames>,
    sent: VecDeque<Sent>,
    epoch: Instant,
    _slot: OwnedSemaphorePermit,
}

impl TcpPipe {
    pub(super) fn new(
        peer: Arc<Peer>,
        channel: Channel,
        address: &str,
        frames: Frames,
        slot: OwnedSemaphorePermit,
        epoch: Instant,
    ) -> Self {
        let frames = Some(frames);
        Self { peer, channel, address: address.to_owned(), frames, sent: VecDeque::new(), epoch, _slot: slot }
    }

    /// Ends the pipe: with what it has sent before, nobody can tell any more which answer is whose.
    fn break_off(&mut self, reason: impl ToString) -> CallError {
        self.frames = None;
        self.sent.clear();
        let error = CallError::NoAnswer { peer: self.address.clone(), reason: reason.to_string() };
        self.peer.lane(self.channel).metrics.failed(&error);
        error
    }

    async fn send(&mut self, request: Bytes, deadline: Instant) -> Result<(), CallError> {
        if request.len() > FRAME_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: request.len(), limit: FRAME_BYTES_MAX });
        }
        // Taken out: a write that is given up half way leaves a connection that is of no use.
        let Some(mut frames) = self.frames.take() else { return Err(self.break_off("the connection is closed")) };
        let at = clock::now();
        match timeout_at(deadline, frames.write(&request)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.break_off(error.source)),
            Err(_elapsed) => return Err(self.break_off("it does not take what is sent")),
        }
        self.frames = Some(frames);
        self.sent.push_back(Sent { at, bytes: request.len() });
        Ok(())
    }

    async fn answer(&mut self, deadline: Instant) -> Result<Bytes, CallError> {
        if self.sent.is_empty() {
            return Err(self.break_off("nothing was asked"));
        }
        let Some(frames) = self.frames.as_mut() else { return Err(self.break_off("the connection is closed")) };
        let answer = match timeout_at(deadline, frames.next()).await {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => return Err(self.break_off("it closed the connection without an answer")),
            Ok(Err(error)) => return Err(self.break_off(error)),
            Err(_elapsed) => return Err(self.break_off("the deadline passed")),
        };
        if let Some(Sent { at, bytes }) = self.sent.pop_front() {
            let ended = clock::now();
            let took: Duration = ended - at;
            self.peer.answered(self.channel, took, ended - self.epoch);
            self.peer.lane(self.channel).metrics.answered(bytes, answer.len(), took.as_secs_f64());
        }
        Ok(answer)
    }
}

impl Pipe for TcpPipe {
    fn send<'a>(&'a mut self, request: Bytes, deadline: Instant) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(Self::send(self, request, deadline))
    }

    fn answer<'a>(&'a mut self, deadline: Instant) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(Self::answer(self, deadline))
    }
}

impl Drop for TcpPipe {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take().filter(|_| self.sent.is_empty()) {
            self.peer.lane(self.channel).put_back(frames);
        }
    }
}
