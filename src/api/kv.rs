//! Single keys, and deletes of ranges.
//!
//! Guarantees: a write with a precondition is one transaction, decided where it is applied; a value is passed through
//! without a copy. Leaves out: listings (`list`).

use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::body;
use super::call::{Call, DURABILITY, counted_json, etag, json};
use super::freshness::Freshness;
use super::model::{DeleteReply, Invalid, Problem, PutReply, Record, Selector};
use super::path::key_of;
use super::precondition::{Guarded, Precondition, ReadVerdict};
use super::problem::{EdgeError, Failure};
use super::query::Query;
use super::routes::Api;
use crate::state::{self, OpReply, RecordMeta, TxnOp, TxnReply};
use crate::types::LeaseId;

const CREATE_REVISION: HeaderName = HeaderName::from_static("quorate-create-revision");
const VERSION: HeaderName = HeaderName::from_static("quorate-version");
const LEASE: HeaderName = HeaderName::from_static("quorate-lease");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Parameters of a put that come with leases.
const LATER: &[&str] = &["lease", "ttl"];

/// The parameters that choose a range.
const RANGE: &[&str] = &["prefix", "start", "end", DURABILITY];

/// The parameters of a write of one key.
const WRITE: &[&str] = &[DURABILITY];

/// Read one key
///
/// The raw value, or with `Accept: application/json` the record. The entity tag is the key's mod revision.
#[utoipa::path(get, path = "/v1/kv/{key}", tag = "keys", params(
    ("key" = String, Path, description = "1 to 4,096 bytes, percent-encoded; `/` may stand as it is"),
    ("consistency" = Option<String>, Query, description = "linearizable (default), bounded or stale"),
    ("max_staleness" = Option<String>, Query, description = "with consistency=bounded: a duration such as 2s"),
    ("min_revision" = Option<u64>, Query, description = "wait until this revision is applied"),
    ("revision" = Option<u64>, Query, description = "read the store as it was at this revision"),
    ("If-None-Match" = Option<String>, Header, description = "304 if the key is at this mod revision"),
    ("If-Match" = Option<String>, Header, description = "412 if the key is not at this mod revision"),
    ("Prefer" = Option<String>, Header, description = "local: answer 503 rather than ask the leader"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200,
        description = "the value", content((Vec<u8> = "application/octet-stream"), (Record = "application/json"))),
    (status = 304, description = "the key has not changed"),
    (status = 400, description = "bad_request, invalid_key", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "key_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 410, description = "revision_compacted", body = Problem, content_type = "application/problem+json"),
    (status = 412, description = "precondition_failed", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready, stale_beyond_bound",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_key(api: &Api, call: &mut Call, head: bool) -> Result<Response, Failure> {
    let key = key_of(call.head.uri.path())?;
    let freshness = Freshness::parse(&call.query(&Freshness::PARAMETERS, &[])?, call.prefers("local"))?;
    let precondition = Precondition::parse(call.headers())?;
    let view = api.read(call, freshness).await?;
    let record = view.get(&key).map_err(crate::node::ReadError::from)?.ok_or(EdgeError::KeyNotFound)?;
    match precondition.judge_read(record.meta.mod_revision) {
        ReadVerdict::Answer => record_response(api, call, record, head),
        ReadVerdict::NotModified => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            set_meta(response.headers_mut(), record.meta);
            Ok(response)
        }
        ReadVerdict::Failed => Err(EdgeError::PreconditionFailed { current: Some(record.meta.mod_revision) }.into()),
    }
}

/// Whether a key exists
///
/// As `GET`, with the headers alone.
#[utoipa::path(head, path = "/v1/kv/{key}", tag = "keys", params(
    ("key" = String, Path, description = "1 to 4,096 bytes, percent-encoded; `/` may stand as it is"),
), responses((status = 200, description = "the key exists"), (status = 404, description = "it does not")))]
#[expect(dead_code, reason = "the document needs an operation of its own; get_key does the work")]
pub(super) fn head_key() {}

fn record_response(api: &Api, call: &Call, record: state::Record, head: bool) -> Result<Response, Failure> {
    let meta = record.meta;
    // `HEAD` has no body to choose a form for, and must not pay for one.
    let mut response = if !head && call.accepts("application/json") {
        counted_json(api, &Record::from_state(record, false))?
    } else {
        // A head is answered with the length alone.
        let value = if head { record.value } else { api.admission().answer(record.value)? };
        let mut response = Response::new(Body::from(value));
        response.headers_mut().insert(header::CONTENT_TYPE, OCTETS);
        response
    };
    set_meta(response.headers_mut(), meta);
    Ok(response)
}

fn set_meta(headers: &mut HeaderMap, meta: RecordMeta) {
    headers.insert(header::ETAG, etag(meta.mod_revision));
    headers.insert(CREATE_REVISION, meta.create_revision.get().into());
    headers.insert(VERSION, meta.version.into());
    headers.insert(LEASE, meta.lease.get().into());
}

/// Write one key
///
/// The body is the value, byte by byte.
#[utoipa::path(put, path = "/v1/kv/{key}", tag = "keys", params(
    ("key" = String, Path, description = "1 to 4,096 bytes, percent-encoded; `/` may stand as it is"),
    ("durability" = Option<String>, Query,
        description = "quorum (default), or offsite: answer only once an archive off-site has it"),
    ("If-Match" = Option<String>, Header,
        description = "write only if the key is at this mod revision; * if it exists"),
    ("If-None-Match" = Option<String>, Header, description = "* writes only if the key does not exist"),
    ("Prefer" = Option<String>, Header, description = "redirect: answer 307 to the leader rather than forward"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 200, description = "updated", body = PutReply),
    (status = 201, description = "created", body = PutReply),
    (status = 307, description = "the leader's URL, if `Prefer: redirect` asked for it"),
    (status = 400, description = "bad_request, invalid_key", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly",
        body = Problem, content_type = "application/problem+json"),
    (status = 412, description = "precondition_failed", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: it can't be off-site", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready",
        body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown, not_offsite", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn put_key(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    note_durability(call, WRITE, LATER)?;
    call.refuse_later_headers()?;
    let key = key_of(call.head.uri.path())?;
    let precondition = Precondition::parse(call.headers())?;
    call.deadline(api)?;
    if let Some(redirect) = call.redirect(api) {
        return Ok(redirect);
    }
    let config = api.config();
    let held = body::read(body, call.expects(), config.value_bytes_max, config.body_timeout, api.admission()).await?;
    let put = TxnOp::Put { key: key.clone(), value: held.bytes.clone(), lease: LeaseId::ZERO };
    let guarded = precondition.guard(&key, put)?;
    match guarded_write(api, call, guarded, held.bytes.len()).await? {
        OpReply::Put { key, meta } => {
            let status = if meta.version == 1 { StatusCode::CREATED } else { StatusCode::OK };
            let mut response = json(status, &PutReply::from_state(key, meta))?;
            response.headers_mut().insert(header::ETAG, etag(meta.mod_revision));
            Ok(response)
        }
        other => Err(unexpected(&other)),
    }
}

/// Delete one key
#[utoipa::path(delete, path = "/v1/kv/{key}", tag = "keys", params(
    ("key" = String, Path, description = "1 to 4,096 bytes, percent-encoded; `/` may stand as it is"),
    ("durability" = Option<String>, Query,
        description = "quorum (default), or offsite: answer only once an archive off-site has it"),
    ("If-Match" = Option<String>, Header, description = "delete only if the key is at this mod revision"),
    ("Prefer" = Option<String>, Header, description = "redirect: answer 307 to the leader rather than forward"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200, description = "deleted", body = DeleteReply),
    (status = 307, description = "the leader's URL, if `Prefer: redirect` asked for it"),
    (status = 400, description = "bad_request, invalid_key", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "key_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 412, description = "precondition_failed", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: it can't be off-site", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready",
        body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown, not_offsite", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn delete_key(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    note_durability(call, WRITE, &[])?;
    call.refuse_later_headers()?;
    let key = key_of(call.head.uri.path())?;
    let precondition = Precondition::parse(call.headers())?;
    call.deadline(api)?;
    if let Some(redirect) = call.redirect(api) {
        return Ok(redirect);
    }
    let delete = TxnOp::Delete { selector: crate::types::Selector::Key(key.clone()) };
    let guarded = precondition.guard(&key, delete)?;
    match guarded_write(api, call, guarded, 0).await? {
        OpReply::Delete { deleted: 0 } => Err(EdgeError::KeyNotFound.into()),
        OpReply::Delete { deleted } => deleted_response(call, deleted),
        other => Err(unexpected(&other)),
    }
}

/// Delete a range of keys
///
/// The range must be named: `prefix` (the empty one is every key), or both `start` and `end` (an empty one is the end
/// of the key space). A range of more than 100,000 keys is refused; delete it in parts.
#[utoipa::path(delete, path = "/v1/kv", tag = "keys", params(
    ("prefix" = Option<String>, Query, description = "every key with this prefix"),
    ("start" = Option<String>, Query, description = "the inclusive lower bound"),
    ("end" = Option<String>, Query, description = "the exclusive upper bound"),
    ("durability" = Option<String>, Query,
        description = "quorum (default), or offsite: answer only once an archive off-site has it"),
    ("Prefer" = Option<String>, Header, description = "redirect: answer 307 to the leader rather than forward"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200, description = "deleted", body = DeleteReply),
    (status = 307, description = "the leader's URL, if `Prefer: redirect` asked for it"),
    (status = 400, description = "bad_request, invalid_range",
        body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: it can't be off-site", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready",
        body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown, not_offsite", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn delete_keys(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    note_durability(call, RANGE, &[])?;
    let query = call.query(RANGE, &[])?;
    call.refuse_later_headers()?;
    let selector = selector_of(&query, true)?.ok_or_else(|| {
        Invalid::request("a range delete needs prefix, or start and end; an empty prefix is every key")
    })?;
    let selector = selector.into_state()?;
    if call.headers().contains_key(header::IF_MATCH) || call.headers().contains_key(header::IF_NONE_MATCH) {
        return Err(Invalid::request("a range delete takes no precondition; use POST /v1/txn").into());
    }
    call.deadline(api)?;
    if let Some(redirect) = call.redirect(api) {
        return Ok(redirect);
    }
    let txn = state::Txn { success: vec![TxnOp::Delete { selector }], ..state::Txn::default() };
    let reply = api.write(call, txn, 0).await?;
    match only_response(reply)? {
        OpReply::Delete { deleted } => deleted_response(call, deleted),
        other => Err(unexpected(&other)),
    }
}

/// Reads the query of a write, and takes note of how safe it is to be.
pub(super) fn note_durability(
    call: &mut Call,
    allowed: &'static [&'static str],
    later: &'static [&'static str],
) -> Result<(), Invalid> {
    let durability = call.query(allowed, later)?.text(DURABILITY)?.map(ToOwned::to_owned);
    call.note_durability(durability.as_deref())
}

/// The range that a query names.
pub(super) fn selector_of(query: &Query<'_>, both_bounds: bool) -> Result<Option<Selector>, Invalid> {
    let bytes = |name| query.bytes(name).map(bytes::Bytes::copy_from_slice);
    Selector::of_parts(None, bytes("prefix"), bytes("start"), bytes("end"), both_bounds).map_err(Invalid::request)
}

fn deleted_response(call: &Call, deleted: u64) -> Result<Response, Failure> {
    let revision = call.revision.unwrap_or_default().get();
    json(StatusCode::OK, &DeleteReply { deleted, revision })
}

/// Does a write under its precondition, and gives the answer of the write.
async fn guarded_write(api: &Api, call: &mut Call, guarded: Guarded, bytes: usize) -> Result<OpReply, Failure> {
    let done_if = guarded.done_if;
    let reply = api.write(call, guarded.txn, bytes).await?;
    let done = reply.succeeded == done_if;
    match only_response(reply)? {
        response if done => Ok(response),
        OpReply::Get { records, .. } => {
            let current = records.first().map(|record| record.meta.mod_revision);
            Err(EdgeError::PreconditionFailed { current }.into())
        }
        other => Err(unexpected(&other)),
    }
}

fn only_response(reply: TxnReply) -> Result<OpReply, Failure> {
    let mut responses = reply.responses.into_iter();
    match (responses.next(), responses.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(EdgeError::InternalInWrite("the transaction of one operation had not one answer".to_owned()).into()),
    }
}

fn unexpected(reply: &OpReply) -> Failure {
    let kind = match reply {
        OpReply::Put { .. } => "put",
        OpReply::Get { .. } => "get",
        OpReply::Delete { .. } => "delete",
    };
    EdgeError::InternalInWrite(format!("the answer was that of another operation, a {kind}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(raw: &str, both_bounds: bool) -> Result<Option<Selector>, String> {
        selector_of(&Query::parse(Some(raw), RANGE, &[]).unwrap(), both_bounds).map_err(|invalid| invalid.detail)
    }

    #[test]
    fn a_range_is_a_prefix_or_two_bounds() {
        assert_eq!(selector("prefix=a%ff", true), Ok(Some(Selector::Prefix(bytes::Bytes::from_static(b"a\xFF")))));
        assert_eq!(selector("prefix=", true), Ok(Some(Selector::Prefix(bytes::Bytes::new()))));
        assert_eq!(selector("", true), Ok(None));
        assert!(selector("start=a", false).is_ok() && selector("end=a", false).is_ok());
        assert!(selector("start=a", true).unwrap_err().contains("both"));
        assert!(selector("end=a", true).unwrap_err().contains("both"));
        assert!(selector("prefix=a&start=b", false).unwrap_err().contains("not several"));
        let open = selector("start=b&end=", true).unwrap().unwrap().into_state().unwrap();
        assert!(matches!(open, crate::types::Selector::Range(range) if range.end().is_none()));
        assert!(selector("start=b&end=a", true).unwrap().unwrap().into_state().is_err());
    }
}
