//! Whole answers for connections that never got as far as a request: over the limit, or not HTTP as we take it.
//!
//! The parser answers what it can't read by itself, with a bare status. [`instead_of`] recognises that answer on its way
//! out and gives the problem document to send in its place.
//!
//! Guarantees: also these refusals are problem documents. Leaves out: `Quorate-Revision`; nothing was read.

use http::StatusCode;

use super::admission::Scarce;
use super::config::{HEAD_BYTES_MAX, HEADERS_MAX};
use super::model::Problem;
use super::problem::{EdgeError, Failure, title};

/// What a connection over the limit is told before it is closed.
pub(super) fn too_many_connections() -> Vec<u8> {
    whole(StatusCode::SERVICE_UNAVAILABLE, &EdgeError::Busy(Scarce::Connections).into())
}

/// The answer to send in place of a bare one of the parser; `None` for every other answer.
pub(super) fn instead_of(answer: &[u8]) -> Option<Vec<u8>> {
    // Nearly all answers end here.
    if !answer.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let text = std::str::from_utf8(answer).ok()?.strip_suffix("\r\n\r\n")?;
    let (line, headers) = text.split_once("\r\n")?;
    // Every answer of ours carries its revision, so this one is none of ours.
    let bare =
        |header: &str| ["connection: close", "content-length: 0"].contains(&header) || header.starts_with("date:");
    if !headers.split("\r\n").all(bare) {
        return None;
    }
    let error = match line.split(' ').nth(1)? {
        "400" => EdgeError::NotHttp,
        "414" => EdgeError::UriTooLong { bytes: HEAD_BYTES_MAX },
        "431" => EdgeError::HeadersTooLarge { headers: HEADERS_MAX, bytes: HEAD_BYTES_MAX },
        _ => return None,
    };
    let failure = Failure::from(error);
    Some(whole(failure.class().status, &failure))
}

fn whole(status: StatusCode, failure: &Failure) -> Vec<u8> {
    let class = failure.class();
    let request_id = format!("{:016x}", rand::random::<u64>());
    let problem = Problem {
        kind: format!("urn:quorate:problem:{}", class.code),
        title: title(class.code).to_owned(),
        status: status.as_u16(),
        detail: failure.to_string(),
        code: class.code,
        retryable: class.retryable,
        outcome: class.outcome,
        request_id: request_id.clone(),
        leader: None,
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let later = if class.retry_after.is_some() { "retry-after: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\n{later}x-request-id: {request_id}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_answers_are_replaced() {
        let bare = "HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\ndate: today\r\n\r\n";
        let document = String::from_utf8(instead_of(bare.as_bytes()).unwrap()).unwrap();
        assert!(document.starts_with("HTTP/1.1 414 URI Too Long\r\n"), "{document}");
        let (head, body) = document.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.status, 414);
        for other in [
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nquorate-revision: 7\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\ndate: today\r\n\r\nhi",
            "HTTP/1.1 418 I'm a teapot\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 4",
            "",
        ] {
            assert_eq!(instead_of(other.as_bytes()), None, "{other}");
        }
    }
}
