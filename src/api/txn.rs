//! `POST /v1/txn`.
//!
//! Guarantees: a transaction is checked whole before anything is proposed. Leaves out: what it does (`state::apply`).

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;

use super::body;
use super::call::{Call, DURABILITY, json, json_bytes};
use super::config::TXN_BODY_BYTES_MAX;
use super::kv::note_durability;
use super::model::{Invalid, Problem, TxnReply, TxnRequest};
use super::problem::{EdgeError, Failure};
use super::routes::Api;
use crate::state::{TXN_REPLY_BYTES_MAX, Txn, TxnOp};
use crate::types::Selector;

/// A body up to this size is parsed where it was read; a larger one would hold up other requests for too long.
const PARSE_INLINE_BYTES_MAX: usize = 64 * 1024;

/// What is set aside for the answer of one get in a transaction, in bytes; what it really comes to counts once it is there.
const GET_ANSWER_BYTES: usize = 256 * 1024;

/// The same for a get of a range, in bytes.
const RANGE_ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// Run a transaction
///
/// All comparisons are judged at one point in the order of writes; then the operations of one branch are done in order,
/// all or nothing, under one revision. Its ranges may pass 100,000 keys in all, those counted beyond a limit too.
#[utoipa::path(post, path = "/v1/txn", tag = "keys", params(
    ("durability" = Option<String>, Query,
        description = "quorum (default), or offsite: answer only once an archive off-site has it"),
    ("Prefer" = Option<String>, Header, description = "redirect: answer 307 to the leader rather than forward"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = TxnRequest), responses(
    (status = 200, description = "done; `succeeded` tells which branch", body = TxnReply),
    (status = 307, description = "the leader's URL, if `Prefer: redirect` asked for it"),
    (status = 400, description = "bad_request, invalid_key, invalid_range",
        body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly",
        body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: it can't be off-site", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready",
        body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown, not_offsite", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn run_txn(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    note_durability(call, &[DURABILITY], &[])?;
    call.refuse_later_headers()?;
    call.deadline(api)?;
    if let Some(redirect) = call.redirect(api) {
        return Ok(redirect);
    }
    let config = api.config();
    let held = body::read(body, call.expects(), TXN_BODY_BYTES_MAX, config.body_timeout, api.admission()).await?;
    let value_bytes_max = config.value_bytes_max;
    let txn = if held.bytes.len() <= PARSE_INLINE_BYTES_MAX {
        parse(&held.bytes, value_bytes_max)?
    } else {
        let bytes = held.bytes.clone();
        let parsing = tokio::task::spawn_blocking(move || parse(&bytes, value_bytes_max));
        parsing.await.map_err(|error| EdgeError::Internal(error.to_string()))??
    };
    let expected = match expected_answer_bytes(&txn) {
        0 => None,
        // Once it is done it can't be refused any more.
        bytes => Some(api.admission().expect_answer(bytes)?),
    };
    let reply = api.write(call, txn, held.bytes.len()).await?;
    let Some(expected) = expected else { return json(StatusCode::OK, &TxnReply::from(reply)) };
    let body =
        serde_json::to_vec(&TxnReply::from(reply)).map_err(|error| EdgeError::InternalInWrite(error.to_string()))?;
    Ok(json_bytes(StatusCode::OK, expected.answer(body)))
}

/// What the answer of a transaction is expected to take, in bytes, of which branch ever; 0 if it is small for sure.
fn expected_answer_bytes(txn: &Txn) -> usize {
    let op = |op: &TxnOp| match op {
        TxnOp::Get { selector: Selector::Range(_), .. } => RANGE_ANSWER_BYTES,
        TxnOp::Get { keys_only: false, .. } => GET_ANSWER_BYTES,
        TxnOp::Get { .. } | TxnOp::Put { .. } | TxnOp::Delete { .. } => 0,
    };
    let branch = |ops: &[TxnOp]| ops.iter().map(op).sum::<usize>();
    branch(&txn.success).max(branch(&txn.failure)).min(TXN_REPLY_BYTES_MAX)
}

fn parse(body: &Bytes, value_bytes_max: usize) -> Result<Txn, Invalid> {
    // The parser would take an array for the fields in their order; the contract knows objects only.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Invalid::request("the body is not a transaction in JSON: expected an object at line 1 column 1"));
    }
    let request: TxnRequest = serde_json::from_slice(body)
        .map_err(|error| Invalid::request(format!("the body is not a transaction in JSON: {error}")))?;
    request.into_txn(value_bytes_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_transaction_is_refused_with_the_place() {
        for body in ["", "[]", "{", "null", "{\"success\":{}}", "{} {}", "{\"success\":[],\"success\":[]}", "\u{0}"] {
            let refused = parse(&Bytes::from(body), 100).unwrap_err();
            assert!(refused.detail.contains("line 1 column"), "{body}: {refused}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&Bytes::from(format!("{{\"success\":{deep}")), 100).is_err());
        assert_eq!(parse(&Bytes::from("{}"), 100), Ok(Txn::default()));
    }
}
