//! What a call can ask for beyond its key: freshness, revisions, preconditions, time.
//!
//! Guarantees: the defaults are the safest (linearizable, unconditional, the client's own timeout). Leaves out: checking;
//! the cluster refuses what does not go together.

use std::time::Duration;

use crate::types::Revision;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began.
    #[default]
    Linearizable,
    /// Proven to be no older than this.
    Bounded {
        /// The oldest the answer may be.
        max_staleness: Duration,
    },
    /// Whatever the node that is asked has.
    Stale,
}

/// What a read asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// How fresh.
    pub consistency: Consistency,
    /// Wait until this revision is there ("read your writes").
    pub min_revision: Option<Revision>,
    /// Read the store as it was at this revision.
    pub revision: Option<Revision>,
    /// How long the call may take with all its retries; the client's timeout if not given.
    pub timeout: Option<Duration>,
}

/// When a write may take place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Always.
    #[default]
    None,
    /// Only if the key was last changed by this revision.
    Match(Revision),
    /// Only if there is no such key.
    Absent,
}

/// What a write asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// When it may take place.
    pub precondition: Precondition,
    /// Answer only once it is off-site. If that takes too long it was done all the same: [`super::Error::Incomplete`].
    pub offsite: bool,
    /// How long the call may take with all its retries; the client's timeout if not given.
    pub timeout: Option<Duration>,
}

/// What a listing asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListOptions {
    /// Freshness, revision and time; the time is that of one page.
    pub read: ReadOptions,
    /// Records in one page; the server's choice if not given.
    pub page_records: Option<u32>,
    /// Leave the values out.
    pub keys_only: bool,
    /// From the last key to the first.
    pub descending: bool,
}
