//! Bytes between members: calls with a deadline over persistent connections, one kind of traffic a connection.
//!
//! A transport guarantees that an answer belongs to its call, that a call ends by its deadline, and that a heartbeat never
//! waits behind a snapshot. Leaves out: what the bytes mean, who may call, and retries: those are `raft/`'s.
//!
//! [`tcp`] is the real one with [`listener`] as its other end; [`memory`] is a switchboard for tests and simulations. On
//! the wire a connection is a hello each way, then frames: request, answer, request, answer; a pipe sends requests ahead of
//! the answers, which the other end works on one by one all the same.

mod frames;
mod hello;
pub mod listener;
pub mod memory;
pub mod metrics;
mod pipe;
pub mod tcp;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Instant;

/// The kinds of traffic; each has connections of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Channel {
    /// Heartbeats, questions before reads, echoes: small, urgent. Their round trips are measured.
    Heartbeat = 1,
    /// Log replication.
    Append = 2,
    /// Votes, leadership transfer, probes.
    Control = 3,
    /// Snapshot parts.
    Snapshot = 4,
    /// Client commands on their way to the leader.
    Forward = 5,
}

impl Channel {
    /// Every channel, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Heartbeat, Self::Append, Self::Control, Self::Snapshot, Self::Forward];

    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Append => "append",
            Self::Control => "control",
            Self::Snapshot => "snapshot",
            Self::Forward => "forward",
        }
    }

    /// The number that stands for it on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The channel of a number; `None` if this program knows no such channel.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.code() == code)
    }

    /// Its place in [`Channel::ALL`].
    const fn index(self) -> usize {
        self as usize - 1
    }
}

/// The largest request or answer, in bytes. A transaction of the largest size and a snapshot part fit several times over.
pub const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;

const _: () = assert!(FRAME_BYTES_MAX >= 2 * crate::types::limits::TXN_BYTES_MAX);

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection could be made, so nothing was sent: the peer did not see the call.
    #[error("can't reach {peer}: {reason}")]
    Unreachable {
        /// The address that was dialled.
        peer: String,
        /// What the system or the other side said.
        reason: String,
    },
    /// The call may have reached the peer, but no answer came: the connection broke or time ran out.
    #[error("no answer from {peer}: {reason}")]
    NoAnswer {
        /// The address that was called.
        peer: String,
        /// What happened.
        reason: String,
    },
    /// The message is larger than a frame may be ([`FRAME_BYTES_MAX`]); nothing was sent.
    #[error("a message of {bytes} bytes is over the frame limit of {limit} bytes")]
    TooLarge {
        /// Size of the message.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// A boxed future, so that the traits here can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Requests on one connection, one behind the other without waiting for answers, which come in the order of the requests.
/// Dropped with requests that are not answered, it closes the connection.
pub trait Pipe: Send {
    /// Hands a request to the system, within `deadline`. An error ends the pipe: what was sent before has no answers then.
    fn send<'a>(&'a mut self, request: Bytes, deadline: Instant) -> BoxFuture<'a, Result<(), CallError>>;

    /// The answer to the oldest request that has none yet, within `deadline`. Dropping the future loses nothing; an error
    /// ends the pipe.
    fn answer<'a>(&'a mut self, deadline: Instant) -> BoxFuture<'a, Result<Bytes, CallError>>;
}

/// Calls to other members.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request to the member at `peer` (`host:port`) and waits for its answer, no longer than to `deadline`.
    fn call<'a>(
        &'a self,
        peer: &'a str,
        channel: Channel,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, CallError>>;

    /// Whether [`Self::pipe`] does anything.
    fn has_pipes(&self) -> bool {
        false
    }

    /// Opens a pipe to the member at `peer`, within `deadline`.
    fn pipe<'a>(
        &'a self,
        peer: &'a str,
        _channel: Channel,
        _deadline: Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Pipe>, CallError>> {
        let reason = "this transport has no pipes".to_owned();
        Box::pin(std::future::ready(Err(CallError::Unreachable { peer: peer.to_owned(), reason })))
    }

    /// Round-trip time to a peer, as last measured; `None` where it never was.
    fn rtt(&self, _peer: &str) -> Option<Duration> {
        None
    }

    /// When a peer last answered; `None` if it never did or nobody takes note.
    fn last_ok(&self, _peer: &str) -> Option<Instant> {
        None
    }
}

/// Answers calls of other members.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers one request. Calls on one connection come one after the other. `None` closes the connection without an
    /// answer: the request was no message of this protocol.
    fn handle(&self, channel: Channel, request: Bytes) -> BoxFuture<'_, Option<Bytes>>;
}
