//! What callers ask of a node and how it may go wrong: the values that cross the door of this room.
//!
//! Guarantees: a refusal that is sure ([`WriteError::NoLeader`] …) and an outcome nobody knows
//! ([`WriteError::OutcomeUnknown`]) are different cases. Leaves out: status codes; those are `api/`'s.

use std::time::Duration;

use crate::clock::Instant;
use crate::state::{Rejection, StateView};
use crate::storage;
use crate::types::Revision;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began.
    #[default]
    Linearizable,
    /// Proven to be no older than this.
    Bounded {
        /// The oldest the answer may be.
        max_staleness: Duration,
    },
    /// Whatever this node has.
    Stale,
}

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// How fresh.
    pub consistency: Consistency,
    /// Wait until this revision is applied here ("read your writes").
    pub min_revision: Option<Revision>,
    /// Read the store as it was at this revision.
    pub at_revision: Option<Revision>,
    /// A bounded read that can't be proven here is refused instead of asking the leader.
    pub local_only: bool,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A consistent view to read from.
#[derive(Debug)]
pub struct ReadView {
    /// The records, pinned at one revision.
    pub view: StateView,
    /// How old the view can be at most, where that is known: zero for a linearizable read.
    pub staleness: Option<Duration>,
}

/// Why a write was not done, or is not known to be done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nothing was proposed: no leader was known within the deadline.
    #[error("there is no leader at present; nothing was changed")]
    NoLeader,
    /// Nothing was proposed: the leader has lost its quorum.
    #[error("the leader can't reach a quorum; nothing was changed")]
    NoQuorum,
    /// Nothing was proposed: this node is not ready (starting, stopping, not a member).
    #[error("this node is not ready: {0}; nothing was changed")]
    NotReady(String),
    /// Nothing was proposed: more is waiting than this node takes.
    #[error("too many writes are waiting; nothing was changed")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// It may have been done, now or later, or not at all.
    #[error("the write was proposed, but its outcome is not known: {0}")]
    OutcomeUnknown(String),
    /// Nothing was proposed: it was to be off-site, and there are not enough places for backups that count.
    #[error(
        "the write was to be off-site in {wanted} places, but {known} are known that count for it; nothing was changed. \
         Write without durability=offsite, or give the nodes a [[backup]]"
    )]
    NoOffsite {
        /// How many there are.
        known: usize,
        /// How many it takes.
        wanted: usize,
    },
    /// It was done and is on the disks of a majority, but not off-site within the deadline.
    #[error(
        "the write was done, at revision {revision}, and a majority has it on disk; but within the deadline only {copies} \
         of {wanted} places for backups got it. It follows there as soon as they can be reached; don't repeat it"
    )]
    NotOffsite {
        /// The revision it has.
        revision: Revision,
        /// How many archives have it.
        copies: usize,
        /// How many were to have it.
        wanted: usize,
    },
    /// The state machine refused; nothing was changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

/// Why a read brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No leader was known within the deadline.
    #[error("there is no leader at present")]
    NoLeader,
    /// The leader could not confirm its leadership within the deadline.
    #[error("the leader can't reach a quorum")]
    NoQuorum,
    /// This node can't serve it within the deadline.
    #[error("this node is not ready: {0}")]
    NotReady(String),
    /// The bound can't be proven.
    #[error("the data here may be older than the bound of {} ms", .bound.as_millis())]
    StaleBeyondBound {
        /// What was asked for.
        bound: Duration,
        /// What can be proven; `None` if nothing.
        proven: Option<Duration>,
    },
    /// History below a revision was given up.
    #[error("revision {requested} is compacted; the oldest that can be read is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest that can still be read.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {requested} does not exist yet; the newest here is {newest}")]
    FutureRevision {
        /// What was asked for.
        requested: Revision,
        /// The newest there is.
        newest: Revision,
    },
    /// The local disk failed.
    #[error("the local store failed: {0}")]
    Storage(#[from] storage::Error),
}
