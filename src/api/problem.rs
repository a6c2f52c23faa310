//! What goes wrong, and how it is told: every failure of the edge and of the node as one problem document (RFC 9457).
//!
//! Guarantees: [`Failure::class`] is the one place that gives a failure its status and code, and the compiler checks
//! that it knows them all; `outcome` is `unknown` only where a write may have happened. `docs/errors.md` is generated
//! from here. Leaves out: the document's type (`model`).

use std::time::Duration;

use http::{Method, StatusCode};

use super::admission::Scarce;
use super::model::{Code, Invalid, OutcomeKind};
use super::query::shown;
use crate::node::{BackupError, MemberError, ReadError, TransferError, WriteError};
use crate::state::Rejection;
use crate::types::Revision;

/// When to try again where nothing better is known: about as long as an election takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

/// What the edge itself refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub(super) enum EdgeError {
    #[error("there is no endpoint at this path; GET /openapi.json lists all")]
    UnknownEndpoint,
    #[error("{} is not allowed here; allowed are: {allowed}", shown(.method.as_str().as_bytes()))]
    MethodNotAllowed { method: Method, allowed: &'static str },
    #[error("the request has too many headers or too long ones; {headers} headers and {bytes} bytes are allowed")]
    HeadersTooLarge { headers: usize, bytes: usize },
    #[error(
        "requests of web pages are not served (origin {origin}); use a client of your own, or a proxy that removes Origin"
    )]
    FromBrowser { origin: String },
    #[error("a development cluster does not answer to the name {host}; use 127.0.0.1 or localhost")]
    ForeignHost { host: String },
    #[error(
        "this is no HTTP/1.1 request: its first line or a header is malformed; encode bytes other than plain ASCII as %XX"
    )]
    NotHttp,
    #[error("the path and query have more than {bytes} bytes, the most that is allowed")]
    UriTooLong { bytes: usize },
    #[error("the key does not exist")]
    KeyNotFound,
    #[error("{}", match .current {
        Some(current) => format!("the precondition does not hold: the key is at mod revision {current}"),
        None => "the precondition does not hold: the key does not exist".to_owned(),
    })]
    PreconditionFailed { current: Option<Revision> },
    #[error("the body is larger than {limit} bytes, the most that is allowed here")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive within {} s; nothing was changed", .limit.as_secs_f32())]
    BodyTooSlow { limit: Duration },
    #[error("the body broke off; nothing was changed")]
    BodyBroken,
    #[error("{0}; nothing was changed, try again later")]
    Busy(Scarce),
    #[error("the answer was not complete within the deadline; ask for less, or allow more with quorate-timeout")]
    DeadlinePassed,
    #[error("this node failed: {0}")]
    Internal(String),
    #[error("this node failed while it worked on the write; it may have been done or not: {0}")]
    InternalInWrite(String),
}

/// How a failure is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) status: StatusCode,
    pub(super) code: Code,
    pub(super) retryable: bool,
    pub(super) outcome: OutcomeKind,
    /// Sent as `Retry-After`, in whole seconds, rounded up.
    pub(super) retry_after: Option<Duration>,
}

impl Class {
    const fn refused(status: StatusCode, code: Code) -> Self {
        Self { status, code, retryable: false, outcome: OutcomeKind::NotApplied, retry_after: None }
    }

    const fn later(status: StatusCode, code: Code, retry_after: Duration) -> Self {
        Self { retryable: true, retry_after: Some(retry_after), ..Self::refused(status, code) }
    }

    const fn unknown(status: StatusCode, code: Code) -> Self {
        Self { outcome: OutcomeKind::Unknown, ..Self::refused(status, code) }
    }
}

impl Failure {
    /// Status, code and the rest for each failure there is.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Invalid(invalid) => of_invalid(invalid),
            Self::Write(error) => of_write(error),
            Self::Read(error) => of_read(error),
            Self::Transfer(error) => of_transfer(error),
            Self::Member(error) => of_member(error),
            Self::Backup(error) => of_backup(error),
            Self::Edge(error) => of_edge(error),
        }
    }
}

fn of_invalid(invalid: &Invalid) -> Class {
    match invalid.code {
        Code::ValueTooLarge => Class::refused(StatusCode::PAYLOAD_TOO_LARGE, Code::ValueTooLarge),
        code => Class::refused(StatusCode::BAD_REQUEST, code),
    }
}

fn of_write(error: &WriteError) -> Class {
    let unavailable = |code| Class::later(StatusCode::SERVICE_UNAVAILABLE, code, RETRY_AFTER);
    match error {
        WriteError::NoLeader => unavailable(Code::NoLeader),
        WriteError::NoQuorum => unavailable(Code::NoQuorum),
        WriteError::NotReady(_) => unavailable(Code::NotReady),
        WriteError::Overloaded { retry_after } => {
            Class::later(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, *retry_after)
        }
        WriteError::NoOffsite { .. } => Class::refused(StatusCode::CONFLICT, Code::Conflict),
        WriteError::NotOffsite { .. } => {
            Class { outcome: OutcomeKind::Applied, ..Class::refused(StatusCode::GATEWAY_TIMEOUT, Code::NotOffsite) }
        }
        WriteError::OutcomeUnknown(_) => Class::unknown(StatusCode::GATEWAY_TIMEOUT, Code::OutcomeUnknown),
        WriteError::Rejected(Rejection::ReplyTooLarge { .. } | Rejection::TooManyKeys { .. }) => {
            Class::refused(StatusCode::BAD_REQUEST, Code::BadRequest)
        }
        WriteError::Rejected(Rejection::TargetExists { .. } | Rejection::TooManyTargets { .. }) => {
            Class::refused(StatusCode::CONFLICT, Code::Conflict)
        }
        WriteError::Rejected(Rejection::TargetChanged { .. }) => {
            Class { retryable: true, ..Class::refused(StatusCode::CONFLICT, Code::Conflict) }
        }
        WriteError::Rejected(Rejection::NoSuchTarget { .. }) => {
            Class::refused(StatusCode::NOT_FOUND, Code::BackupNotFound)
        }
        WriteError::Rejected(Rejection::TargetTooLarge { .. }) => {
            Class::refused(StatusCode::PAYLOAD_TOO_LARGE, Code::ValueTooLarge)
        }
        WriteError::Rejected(Rejection::Malformed(_)) => {
            Class::refused(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal)
        }
    }
}

fn of_read(error: &ReadError) -> Class {
    let unavailable = |code| Class::later(StatusCode::SERVICE_UNAVAILABLE, code, RETRY_AFTER);
    match error {
        ReadError::NoLeader => unavailable(Code::NoLeader),
        ReadError::NoQuorum => unavailable(Code::NoQuorum),
        ReadError::NotReady(_) => unavailable(Code::NotReady),
        ReadError::StaleBeyondBound { .. } => unavailable(Code::StaleBeyondBound),
        ReadError::Compacted { .. } => Class::refused(StatusCode::GONE, Code::RevisionCompacted),
        ReadError::FutureRevision { .. } => Class::refused(StatusCode::BAD_REQUEST, Code::BadRequest),
        ReadError::Storage(_) => {
            Class { retryable: true, ..Class::refused(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal) }
        }
    }
}

fn of_transfer(error: &TransferError) -> Class {
    let unavailable = |code| Class::later(StatusCode::SERVICE_UNAVAILABLE, code, RETRY_AFTER);
    match error {
        TransferError::NotReady(_) => unavailable(Code::NotReady),
        TransferError::NoLeader | TransferError::NotLeader => unavailable(Code::NoLeader),
        TransferError::NoQuorum => unavailable(Code::NoQuorum),
        TransferError::UnknownMember { .. } => Class::refused(StatusCode::NOT_FOUND, Code::MemberNotFound),
        // Not to be tried again unseen: somebody has to look at the member first.
        TransferError::Learner { .. }
        | TransferError::Unreachable { .. }
        | TransferError::Behind { .. }
        | TransferError::Missed { .. } => Class::refused(StatusCode::CONFLICT, Code::Conflict),
        TransferError::Busy => Class { retryable: true, ..Class::refused(StatusCode::CONFLICT, Code::MembershipBusy) },
        TransferError::Unknown(_) => Class::unknown(StatusCode::GATEWAY_TIMEOUT, Code::OutcomeUnknown),
    }
}

fn of_member(error: &MemberError) -> Class {
    let unavailable = |code| Class::later(StatusCode::SERVICE_UNAVAILABLE, code, RETRY_AFTER);
    match error {
        MemberError::NotReady(_) => unavailable(Code::NotReady),
        MemberError::NoLeader | MemberError::NotLeader => unavailable(Code::NoLeader),
        MemberError::NoQuorum => unavailable(Code::NoQuorum),
        MemberError::UnknownMember { .. } => Class::refused(StatusCode::NOT_FOUND, Code::MemberNotFound),
        // Not to be tried again unseen: somebody has to look at the node first.
        MemberError::Conflict(_) | MemberError::Unreachable(_) => Class::refused(StatusCode::CONFLICT, Code::Conflict),
        MemberError::WouldLoseQuorum(_) => Class::refused(StatusCode::CONFLICT, Code::WouldLoseQuorum),
        MemberError::Busy => Class { retryable: true, ..Class::refused(StatusCode::CONFLICT, Code::MembershipBusy) },
        MemberError::Unknown(_) => Class::unknown(StatusCode::GATEWAY_TIMEOUT, Code::OutcomeUnknown),
    }
}

fn of_backup(error: &BackupError) -> Class {
    match error {
        BackupError::NotReady(_) => Class::later(StatusCode::SERVICE_UNAVAILABLE, Code::NotReady, RETRY_AFTER),
        BackupError::Unknown { .. } => Class::refused(StatusCode::NOT_FOUND, Code::BackupNotFound),
        // Not to be tried again unseen: somebody has to look at the store first.
        BackupError::Nobody { .. } | BackupError::Conflict(_) | BackupError::Unusable(_) => {
            Class::refused(StatusCode::CONFLICT, Code::Conflict)
        }
        BackupError::Invalid(_) => Class::refused(StatusCode::BAD_REQUEST, Code::BadRequest),
        BackupError::Write(error) => of_write(error),
    }
}

fn of_edge(error: &EdgeError) -> Class {
    match error {
        EdgeError::UnknownEndpoint => Class::refused(StatusCode::NOT_FOUND, Code::NotFound),
        EdgeError::MethodNotAllowed { .. } => Class::refused(StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed),
        EdgeError::HeadersTooLarge { .. } => {
            Class::refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::BadRequest)
        }
        EdgeError::FromBrowser { .. } | EdgeError::ForeignHost { .. } => {
            Class::refused(StatusCode::FORBIDDEN, Code::PermissionDenied)
        }
        EdgeError::UriTooLong { .. } => Class::refused(StatusCode::URI_TOO_LONG, Code::BadRequest),
        EdgeError::KeyNotFound => Class::refused(StatusCode::NOT_FOUND, Code::KeyNotFound),
        EdgeError::PreconditionFailed { .. } => {
            Class::refused(StatusCode::PRECONDITION_FAILED, Code::PreconditionFailed)
        }
        EdgeError::BodyTooLarge { .. } => Class::refused(StatusCode::PAYLOAD_TOO_LARGE, Code::ValueTooLarge),
        EdgeError::BodyTooSlow { .. } => {
            Class { retryable: true, ..Class::refused(StatusCode::REQUEST_TIMEOUT, Code::BadRequest) }
        }
        EdgeError::NotHttp | EdgeError::BodyBroken => Class::refused(StatusCode::BAD_REQUEST, Code::BadRequest),
        EdgeError::Busy(_) => Class::later(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, RETRY_AFTER),
        EdgeError::DeadlinePassed => Class::later(StatusCode::SERVICE_UNAVAILABLE, Code::NotReady, RETRY_AFTER),
        EdgeError::Internal(_) => {
            Class { retryable: true, ..Class::refused(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal) }
        }
        EdgeError::InternalInWrite(_) => Class::unknown(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
    }
}

/// A kind of problem in words, the same each time.
pub(super) const fn title(code: Code) -> &'static str {
    match code {
        Code::BadRequest => "the request is malformed",
        Code::InvalidKey => "the key is invalid",
        Code::InvalidRange => "the range is invalid",
        Code::PermissionDenied => "the request is not allowed",
        Code::KeyNotFound => "the key does not exist",
        Code::NotFound => "there is no such endpoint",
        Code::MemberNotFound => "there is no such member",
        Code::MethodNotAllowed => "the method is not allowed here",
        Code::Conflict => "the request does not go with how things stand",
        Code::MembershipBusy => "another change of the group is under way",
        Code::WouldLoseQuorum => "the group would lose its quorum",
        Code::RevisionCompacted => "the history asked for was given up",
        Code::PreconditionFailed => "the precondition does not hold",
        Code::ValueTooLarge => "the value or body is too large",
        Code::TooManyRequests => "too much is asked for at a time",
        Code::Internal => "this node failed",
        Code::NoLeader => "no leader is known",
        Code::NoQuorum => "the leader can't reach a quorum",
        Code::NotReady => "this node can't serve at present",
        Code::StaleBeyondBound => "the freshness asked for can't be proven here",
        Code::OutcomeUnknown => "the outcome is not known",
        Code::NotOffsite => "the write was done, but is not off-site yet",
        Code::BackupNotFound => "there is no such place for backups",
        Code::Unknown => "a problem of a newer version",
    }
}

#[cfg(test)]
mod tests;
