//! Tests of the problem documents: each told once, in one voice.

use std::fmt::Write as _;

use super::*;
use crate::storage;
use crate::types::NodeId;

/// One failure of every kind, with the words for the table.
fn every_failure() -> Vec<(&'static str, Failure)> {
    let bound = Duration::from_secs(2);
    let one = Revision::new(1);
    let (id, some) = (NodeId::new(9), || "n2".to_owned());
    vec![
        ("a parameter, a header or the body is malformed", Invalid::request("x").into()),
        ("a key is empty, too long or badly encoded", Invalid::key("x").into()),
        ("start is not below end, or a bound is too long", Invalid::range("x").into()),
        ("a value in a transaction, or the transaction, is too large", Invalid::too_large("x").into()),
        ("a write found no leader", WriteError::NoLeader.into()),
        ("a write found no quorum", WriteError::NoQuorum.into()),
        ("a write reached a node that starts, stops or is no member", WriteError::NotReady("starting".into()).into()),
        ("more writes wait than are taken", WriteError::Overloaded { retry_after: RETRY_AFTER }.into()),
        ("a write was proposed, but its fate is not known", WriteError::OutcomeUnknown("timeout".into()).into()),
        (
            "a write is to be off-site, and too few places for backups are known",
            WriteError::NoOffsite { known: 0, wanted: 1 }.into(),
        ),
        (
            "a write was done, but is not off-site within the deadline",
            WriteError::NotOffsite { revision: one, copies: 0, wanted: 1 }.into(),
        ),
        (
            "the answer of a transaction is too large",
            WriteError::Rejected(Rejection::ReplyTooLarge { limit_bytes: 1 }).into(),
        ),
        (
            "a transaction or a range delete touches too many keys",
            WriteError::Rejected(Rejection::TooManyKeys { limit: 1 }).into(),
        ),
        ("the command can't be applied", WriteError::Rejected(Rejection::Malformed("x".into())).into()),
        ("a read found no leader", ReadError::NoLeader.into()),
        ("a read found no quorum", ReadError::NoQuorum.into()),
        ("a read reached a node that can't serve it", ReadError::NotReady("starting".into()).into()),
        ("a bounded read can't be proven here", ReadError::StaleBeyondBound { bound, proven: None }.into()),
        ("history below a revision was given up", ReadError::Compacted { requested: one, oldest: one }.into()),
        ("the revision does not exist yet", ReadError::FutureRevision { requested: one, newest: one }.into()),
        ("the local disk failed", ReadError::Storage(storage::Error::Damaged("x".into())).into()),
        (
            "a transfer of the leadership reached a node that starts or stops",
            TransferError::NotReady("x".into()).into(),
        ),
        ("a transfer of the leadership found no leader", TransferError::NoLeader.into()),
        ("a transfer of the leadership reached a node that led until just now", TransferError::NotLeader.into()),
        ("a transfer of the leadership found no quorum", TransferError::NoQuorum.into()),
        ("the leadership is to go to nobody known", TransferError::UnknownMember { id, voters: some() }.into()),
        ("the leadership is to go to a learner", TransferError::Learner { name: some(), voters: some() }.into()),
        (
            "the leadership is to go to a member that is out of reach",
            TransferError::Unreachable { name: some() }.into(),
        ),
        ("the leadership is to go to a member that lags", TransferError::Behind { name: some(), entries: 9 }.into()),
        (
            "another member than the one meant was elected",
            TransferError::Missed { wanted: some(), leader: some() }.into(),
        ),
        ("another transfer of the leadership is under way", TransferError::Busy.into()),
        ("nobody knows yet whether the leadership was moved", TransferError::Unknown("timeout".into()).into()),
        ("a change of the members comes before the node is ready", MemberError::NotReady("why".into()).into()),
        ("there is no leader to change the members", MemberError::NoLeader.into()),
        ("the leader of a change of the members has no quorum", MemberError::NoQuorum.into()),
        ("nobody has this id", MemberError::UnknownMember { id, members: some() }.into()),
        ("the change does not go with how things stand", MemberError::Conflict("why".into()).into()),
        ("a new member, or a new address, is out of reach", MemberError::Unreachable("why".into()).into()),
        ("too few voters would be reachable", MemberError::WouldLoseQuorum("why".into()).into()),
        ("another change of the members is under way", MemberError::Busy.into()),
        ("nobody knows yet whether the members were changed", MemberError::Unknown("timeout".into()).into()),
        ("a question about backups comes before the node is ready", BackupError::NotReady("why".into()).into()),
        ("no place for backups has this name", BackupError::Unknown { name: some(), known: some() }.into()),
        ("nobody can archive there at present", BackupError::Nobody { name: some(), why: some() }.into()),
        (
            "a place for backups is declared twice",
            WriteError::Rejected(Rejection::TargetExists { name: some() }).into(),
        ),
        (
            "a place for backups was changed meanwhile",
            WriteError::Rejected(Rejection::TargetChanged { name: some() }).into(),
        ),
        ("a place for backups is not declared", WriteError::Rejected(Rejection::NoSuchTarget { name: some() }).into()),
        (
            "too many places for backups are declared",
            WriteError::Rejected(Rejection::TooManyTargets { limit: 1 }).into(),
        ),
        (
            "a declaration of a place for backups is too large",
            WriteError::Rejected(Rejection::TargetTooLarge { limit_bytes: 1 }).into(),
        ),
        (
            "a declaration of a place for backups is malformed, or holds a secret",
            BackupError::Invalid("why".into()).into(),
        ),
        ("a place for backups does not go with the others", BackupError::Conflict("why".into()).into()),
        ("the store of a place for backups can't be used", BackupError::Unusable("why".into()).into()),
        ("the path is unknown", EdgeError::UnknownEndpoint.into()),
        (
            "the path is known, the method is not",
            EdgeError::MethodNotAllowed { method: Method::PUT, allowed: "GET" }.into(),
        ),
        ("too many headers, or too long ones", EdgeError::HeadersTooLarge { headers: 1, bytes: 1 }.into()),
        ("a web page asks", EdgeError::FromBrowser { origin: "null".into() }.into()),
        ("a development cluster is called by a foreign name", EdgeError::ForeignHost { host: "x".into() }.into()),
        ("what comes is not HTTP/1.1", EdgeError::NotHttp.into()),
        ("the path and query are too long", EdgeError::UriTooLong { bytes: 1 }.into()),
        ("the key is absent", EdgeError::KeyNotFound.into()),
        ("`If-Match` or `If-None-Match` does not hold", EdgeError::PreconditionFailed { current: Some(one) }.into()),
        ("a body is too large", EdgeError::BodyTooLarge { limit: 1 }.into()),
        ("a body arrives too slowly", EdgeError::BodyTooSlow { limit: bound }.into()),
        ("a body breaks off", EdgeError::BodyBroken.into()),
        ("more requests, bytes or streams are in flight than are taken", EdgeError::Busy(Scarce::Requests).into()),
        ("a listing takes longer than its deadline", EdgeError::DeadlinePassed.into()),
        ("this node failed in a read", EdgeError::Internal("x".into()).into()),
        ("this node failed in a write", EdgeError::InternalInWrite("x".into()).into()),
    ]
}

#[test]
fn every_failure_has_a_message_in_house_style() {
    for (when, failure) in every_failure() {
        let class = failure.class();
        let message = failure.to_string();
        println!("{} {} {message}", class.status, class.code);
        assert!(!message.ends_with('.'), "{when}: {message}");
        assert!(
            !message.starts_with(char::is_uppercase)
                || matches!(failure, Failure::Edge(EdgeError::MethodNotAllowed { .. }))
        );
        assert!(class.status.is_client_error() || class.status.is_server_error());
    }
}

#[test]
fn every_code_is_told_by_some_failure_and_titled() {
    for code in Code::ALL {
        assert!(every_failure().iter().any(|(_, failure)| failure.class().code == code), "{code}");
        assert!(!title(code).ends_with('.') && !title(code).starts_with(char::is_uppercase));
    }
}

#[test]
fn an_unknown_outcome_is_never_called_retryable() {
    for (when, failure) in every_failure() {
        let class = failure.class();
        assert!(class.outcome == OutcomeKind::NotApplied || !class.retryable, "{when}");
    }
}

#[test]
fn waiting_is_asked_for_where_it_helps() {
    for (when, failure) in every_failure() {
        let class = failure.class();
        let waits = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&class.status);
        assert_eq!(class.retry_after.is_some(), waits, "{when}");
    }
}

fn document() -> String {
    let mut out = String::from(
        "# Problems\n\nEvery refusal and failure is a problem document (RFC 9457, `application/problem+json`). \
         `code` is stable; `outcome` tells whether a write\nmay have happened; `retryable` whether the same request \
         may succeed later without a change and without harm.\n`Retry-After` comes with 429 and 503.\n\nGenerated from the \
         code: `QUORATE_UPDATE_DOCS=1 cargo test --lib api::problem` writes it anew.\n\n\
         | status | code | when | retryable | outcome |\n|---|---|---|---|---|\n",
    );
    let mut rows: Vec<_> = every_failure()
        .into_iter()
        .map(|(when, failure)| {
            let class = failure.class();
            let outcome = match class.outcome {
                OutcomeKind::NotApplied => "not_applied",
                OutcomeKind::Unknown => "unknown",
                OutcomeKind::Applied => "applied",
            };
            let retryable = if class.retryable { "yes" } else { "no" };
            let mut row = String::new();
            let _ =
                writeln!(row, "| {} | `{}` | {when} | {retryable} | `{outcome}` |", class.status.as_u16(), class.code);
            row
        })
        .collect();
    rows.sort();
    out.extend(rows);
    out
}

#[test]
fn the_table_in_the_documentation_is_that_of_the_code() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    if std::env::var_os("QUORATE_UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, document(), "run it with QUORATE_UPDATE_DOCS=1 to write docs/errors.md anew");
}
