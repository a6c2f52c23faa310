//! Problem documents (RFC 9457): how every refusal and failure is told.
//!
//! Guarantees: `code` is stable and one of [`Code`]; `outcome` says whether a write may have happened. Leaves out:
//! which error becomes which problem (`api::problem`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The stable name of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed: a parameter, a header or the body.
    BadRequest,
    /// The key is empty, too long, or badly percent-encoded.
    InvalidKey,
    /// The range is empty or a bound is too long.
    InvalidRange,
    /// The request is not allowed, whoever sends it.
    PermissionDenied,
    /// The key does not exist.
    KeyNotFound,
    /// There is no such endpoint.
    NotFound,
    /// No member has this id.
    MemberNotFound,
    /// The endpoint exists, but not with this method.
    MethodNotAllowed,
    /// What is asked for does not go with how things stand.
    Conflict,
    /// Another change of the group is under way.
    MembershipBusy,
    /// The change would leave no quorum of voters that can be reached.
    WouldLoseQuorum,
    /// The history that was asked for was given up.
    RevisionCompacted,
    /// `If-Match` or `If-None-Match` does not hold.
    PreconditionFailed,
    /// The value or the body is too large.
    ValueTooLarge,
    /// More is asked for at once than this node takes.
    TooManyRequests,
    /// This node failed.
    Internal,
    /// No leader is known.
    NoLeader,
    /// The leader can't reach a quorum.
    NoQuorum,
    /// This node can't serve: it starts, stops, or is no member.
    NotReady,
    /// The freshness asked for can't be proven here.
    StaleBeyondBound,
    /// The write may have been done, now or later, or not at all.
    OutcomeUnknown,
    /// The write was done, but is not off-site yet, as it was to be.
    NotOffsite,
    /// No place for backups has this name.
    BackupNotFound,
    /// A code this program does not know; it comes from a newer server.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// Every code this program produces.
    pub const ALL: [Self; 23] = [
        Self::BadRequest,
        Self::InvalidKey,
        Self::InvalidRange,
        Self::PermissionDenied,
        Self::KeyNotFound,
        Self::NotFound,
        Self::MemberNotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::MembershipBusy,
        Self::WouldLoseQuorum,
        Self::RevisionCompacted,
        Self::PreconditionFailed,
        Self::ValueTooLarge,
        Self::TooManyRequests,
        Self::Internal,
        Self::NoLeader,
        Self::NoQuorum,
        Self::NotReady,
        Self::StaleBeyondBound,
        Self::OutcomeUnknown,
        Self::NotOffsite,
        Self::BackupNotFound,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::InvalidKey => "invalid_key",
            Self::InvalidRange => "invalid_range",
            Self::PermissionDenied => "permission_denied",
            Self::KeyNotFound => "key_not_found",
            Self::NotFound => "not_found",
            Self::MemberNotFound => "member_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::MembershipBusy => "membership_busy",
            Self::WouldLoseQuorum => "would_lose_quorum",
            Self::RevisionCompacted => "revision_compacted",
            Self::PreconditionFailed => "precondition_failed",
            Self::ValueTooLarge => "value_too_large",
            Self::TooManyRequests => "too_many_requests",
            Self::Internal => "internal",
            Self::NoLeader => "no_leader",
            Self::NoQuorum => "no_quorum",
            Self::NotReady => "not_ready",
            Self::StaleBeyondBound => "stale_beyond_bound",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::NotOffsite => "not_offsite",
            Self::BackupNotFound => "backup_not_found",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of the request that met a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// Nothing was changed and nothing will be.
    NotApplied,
    /// A write may have been done, now or later, or not at all.
    Unknown,
    /// The write was done; what else was asked for was not.
    Applied,
}

/// Where the leader is, for a client that wants to turn to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderHint {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The URL of its client listener; empty while it is not known.
    pub client_url: String,
}

/// A problem document: `application/problem+json`, RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem: `urn:quorate:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words, the same each time.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// This case in words: what was wrong, what is allowed, what to do.
    pub detail: String,
    /// The stable name of the problem.
    pub code: Code,
    /// Whether the same request may succeed later without a change and without harm: never where `outcome` is
    /// `unknown`, as a repeated write might be applied twice.
    pub retryable: bool,
    /// What became of the request.
    pub outcome: OutcomeKind,
    /// Names the request in the logs of the node that answered.
    pub request_id: String,
    /// The leader, where it helps and is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderHint>,
}

/// Why a request that was read can't be carried out as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Invalid {
    /// What kind of problem it is: a malformed request, key or range, or too large a value.
    pub code: Code,
    /// What was wrong and what is allowed.
    pub detail: String,
}

impl Invalid {
    /// A malformed request.
    pub fn request(detail: impl Into<String>) -> Self {
        Self { code: Code::BadRequest, detail: detail.into() }
    }

    /// A malformed key.
    pub fn key(detail: impl std::fmt::Display) -> Self {
        Self { code: Code::InvalidKey, detail: detail.to_string() }
    }

    /// A malformed range.
    pub fn range(detail: impl std::fmt::Display) -> Self {
        Self { code: Code::InvalidRange, detail: detail.to_string() }
    }

    /// Too large a value or body.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self { code: Code::ValueTooLarge, detail: detail.into() }
    }
}
