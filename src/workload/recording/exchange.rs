//! One operation on the wire: the request it is, and what its answer says.
//!
//! Guarantees: an outcome is "done" only with an answer that was read whole and understood, "refused" only where nothing was
//! sent or the node said that nothing was changed, and "unknown" in every other case; a success that makes no sense is named as
//! that, because it is wrong whatever was done. Leaves out: when, and over which
//! connection (`client`).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;

use super::super::Error;
use super::super::connection;
use super::super::history::{
    Action, Answer, Cause, Consistency, Delete, DeleteAnswer, FailedAnswer, Freshness, Get, GetAnswer, List,
    ListAnswer, Listed, MALFORMED_ANSWER, Outcome, Put, PutAnswer, Record, TxnAnswer, TxnResponse,
};
use super::super::plan::{Endpoint, PATH};
use crate::api::model::{Code, DeleteReply, Listing, OutcomeKind, Problem, PutReply, TxnOpReply, TxnReply};

/// The request of an operation. `cursor` is that of the page before, for a page that continues one.
pub(super) fn request(
    action: &Action,
    cursor: Option<&str>,
    endpoint: &Endpoint,
    deadline: Duration,
) -> Result<Request<Full<Bytes>>, Error> {
    let (method, target, body) = match action {
        Action::Put(Put { key, value, .. }) => (Method::PUT, path(key), Bytes::copy_from_slice(value.as_bytes())),
        Action::Delete(Delete { key, .. }) => (Method::DELETE, path(key), Bytes::new()),
        Action::Get(Get { key, .. }) => (Method::GET, path(key) + &query(action, '?'), Bytes::new()),
        Action::List(List { limit, prefix, .. }) => {
            let target = match cursor {
                Some(cursor) => format!("/v1/kv?limit={limit}&cursor={}", escaped(cursor)),
                None => format!("/v1/kv?limit={limit}&prefix={}{}", escaped(prefix), query(action, '&')),
            };
            (Method::GET, target, Bytes::new())
        }
        Action::Txn(txn) => {
            let body = serde_json::to_vec(txn).map_err(|error| Error::Usage(error.to_string()))?;
            (Method::POST, "/v1/txn".to_owned(), body.into())
        }
    };
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, endpoint.authority.clone());
    request = request.header("quorate-timeout", format!("{}ms", deadline.as_millis()));
    match action {
        Action::Put(Put { if_revision: Some(at), .. }) | Action::Delete(Delete { if_revision: Some(at), .. }) => {
            request = request.header(header::IF_MATCH, format!("\"{at}\""));
        }
        Action::Put(Put { if_absent: true, .. }) => request = request.header(header::IF_NONE_MATCH, "*"),
        Action::Txn(_) => {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Action::Put(_) | Action::Delete(_) | Action::Get(_) | Action::List(_) => {}
    }
    request.body(Full::new(body)).map_err(|error| Error::Usage(format!("a request can't be built: {error}")))
}

fn path(key: &str) -> String {
    format!("/v1/kv/{}", utf8_percent_encode(key, PATH))
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// What a read asks for beside its keys, behind `first`.
fn query(action: &Action, first: char) -> String {
    let Some(freshness) = action.freshness() else { return String::new() };
    let Freshness { consistency, max_staleness_ms, min_revision, at_revision } = freshness;
    let mut query = Vec::new();
    match (consistency, max_staleness_ms) {
        (Consistency::Linearizable, _) => {}
        (Consistency::Stale, _) => query.push("consistency=stale".to_owned()),
        (Consistency::Bounded, bound) => {
            query.push(format!("consistency=bounded&max_staleness={}ms", bound.unwrap_or_default()));
        }
    }
    query.extend(min_revision.map(|revision| format!("min_revision={revision}")));
    query.extend(at_revision.map(|revision| format!("revision={revision}")));
    if query.is_empty() { String::new() } else { format!("{first}{}", query.join("&")) }
}

/// What the answer to an operation says, with the cursor of the next page if there is one.
pub(super) fn outcome(action: &Action, answer: &connection::Answer) -> (Outcome, Option<String>) {
    let connection::Answer { status, headers, body, .. } = answer;
    let understood = match action {
        _ if !status.is_success() => failed(action, *status, headers, body),
        Action::Put(_) => put(body).map(|answer| (Outcome::Done(answer), None)),
        Action::Delete(_) => delete(body).map(|answer| (Outcome::Done(answer), None)),
        Action::Get(_) => get(headers, body).map(|answer| (Outcome::Done(answer), None)),
        Action::List(_) => list(headers, body).map(|(answer, cursor)| (Outcome::Done(answer), cursor)),
        Action::Txn(_) => txn(body).map(|answer| (Outcome::Done(answer), None)),
    };
    understood.unwrap_or_else(|| (unknown(MALFORMED_ANSWER), None))
}

/// It may have been done.
pub(super) fn unknown(code: impl Into<String>) -> Outcome {
    Outcome::Unknown(Cause { code: code.into() })
}

/// It was not done.
pub(super) fn refused(code: impl Into<String>) -> Outcome {
    Outcome::Refused(Cause { code: code.into() })
}

fn json<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Option<T> {
    serde_json::from_slice(body).ok()
}

/// A number in a header; entity tags have quotes.
fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim_matches('"').parse().ok()
}

fn revision(headers: &HeaderMap) -> Option<u64> {
    number(headers, "quorate-revision")
}

/// What a status other than success says.
fn failed(action: &Action, status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Option<(Outcome, Option<String>)> {
    let Some(problem) = json::<Problem>(body) else {
        return Some((unknown(format!("status_{}", status.as_u16())), None));
    };
    let answer = match (problem.code, action) {
        (Code::KeyNotFound, Action::Get(_)) => {
            let staleness_ms = number(headers, "quorate-staleness-ms");
            Answer::Get(GetAnswer { revision: Some(revision(headers)?), staleness_ms, record: None })
        }
        (Code::KeyNotFound, Action::Delete(_)) => {
            Answer::Delete(DeleteAnswer { revision: Some(revision(headers)?), deleted: false })
        }
        (Code::PreconditionFailed, Action::Put(_) | Action::Delete(_)) => {
            let mod_revision = number(headers, "etag");
            Answer::Failed(FailedAnswer { revision: Some(revision(headers)?), mod_revision })
        }
        (code, _) => {
            let outcome = match problem.outcome {
                OutcomeKind::NotApplied => refused(code.as_str()),
                OutcomeKind::Unknown | OutcomeKind::Applied => unknown(code.as_str()),
            };
            return Some((outcome, None));
        }
    };
    Some((Outcome::Done(answer), None))
}

fn put(body: &Bytes) -> Option<Answer> {
    let reply: PutReply = json(body)?;
    Some(Answer::Put(PutAnswer {
        revision: Some(reply.mod_revision),
        create_revision: Some(reply.create_revision),
        version: Some(reply.version),
    }))
}

fn delete(body: &Bytes) -> Option<Answer> {
    let reply: DeleteReply = json(body)?;
    Some(Answer::Delete(DeleteAnswer { revision: Some(reply.revision), deleted: reply.deleted > 0 }))
}

fn get(headers: &HeaderMap, body: &Bytes) -> Option<Answer> {
    let record = Record {
        value: text(body)?,
        mod_revision: Some(number(headers, "etag")?),
        create_revision: Some(number(headers, "quorate-create-revision")?),
        version: Some(number(headers, "quorate-version")?),
    };
    let staleness_ms = number(headers, "quorate-staleness-ms");
    Some(Answer::Get(GetAnswer { revision: Some(revision(headers)?), staleness_ms, record: Some(record) }))
}

fn list(headers: &HeaderMap, body: &Bytes) -> Option<(Answer, Option<String>)> {
    let listing: Listing = json(body)?;
    let records = listing.items.into_iter().map(|item| {
        Some(Listed {
            key: text(&item.key)?,
            value: text(&item.value?)?,
            mod_revision: item.mod_revision,
            create_revision: item.create_revision,
            version: item.version,
        })
    });
    let answer = ListAnswer {
        revision: listing.revision,
        staleness_ms: number(headers, "quorate-staleness-ms"),
        count: listing.count,
        records: records.collect::<Option<_>>()?,
        more: listing.next_cursor.is_some(),
    };
    Some((Answer::List(answer), listing.next_cursor))
}

fn txn(body: &Bytes) -> Option<Answer> {
    let reply: TxnReply = json(body)?;
    let responses = reply.responses.into_iter().map(|response| {
        Some(match response {
            TxnOpReply::Put(put) => {
                TxnResponse::Put { create_revision: Some(put.create_revision), version: Some(put.version) }
            }
            TxnOpReply::Delete(delete) => TxnResponse::Delete { deleted: delete.deleted > 0 },
            TxnOpReply::Get(get) => {
                let record = match get.items.into_iter().next() {
                    None => None,
                    Some(item) => Some(Record {
                        value: text(&item.value?)?,
                        mod_revision: Some(item.mod_revision),
                        create_revision: Some(item.create_revision),
                        version: Some(item.version),
                    }),
                };
                TxnResponse::Get { record }
            }
        })
    });
    Some(Answer::Txn(TxnAnswer {
        revision: Some(reply.revision),
        succeeded: reply.succeeded,
        responses: responses.collect::<Option<_>>()?,
    }))
}

fn text(bytes: &Bytes) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: StatusCode, headers: &[(&'static str, &'static str)], body: &'static [u8]) -> connection::Answer {
        let headers =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        connection::Answer { status, headers: headers.collect(), body: Bytes::from_static(body), retry_after: None }
    }

    /// A value that rotted on a disk, or an answer that lost a part of itself, is never one more operation of unknown outcome.
    #[test]
    fn an_answer_that_makes_no_sense_is_named_as_that() {
        const WHOLE: [(&str, &str); 4] =
            [("etag", "\"3\""), ("quorate-create-revision", "2"), ("quorate-version", "2"), ("quorate-revision", "4")];
        let get = Action::Get(Get { key: "k".into(), ..Get::default() });
        let told = |headers: &[(&'static str, &'static str)], body: &'static [u8]| {
            outcome(&get, &answer(StatusCode::OK, headers, body)).0
        };
        assert!(matches!(told(&WHOLE, b"value"), Outcome::Done(Answer::Get(_))));
        let malformed = unknown(MALFORMED_ANSWER);
        assert_eq!(told(&WHOLE, b"val\xffe"), malformed, "a flipped bit");
        for missing in WHOLE {
            let rest: Vec<_> = WHOLE.into_iter().filter(|one| *one != missing).collect();
            assert_eq!(told(&rest, b"value"), malformed, "without {}", missing.0);
        }
        let put = Action::Put(Put { key: "k".into(), value: "v".into(), ..Put::default() });
        assert_eq!(outcome(&put, &answer(StatusCode::OK, &WHOLE, b"{\"mod_rev")).0, malformed);
    }
}
