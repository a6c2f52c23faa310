//! For operators and their machines: health, readiness, metrics, and the snapshot of this moment.
//!
//! Guarantees: `/healthz` says that the process answers and nothing more; `/readyz` proves now, by a read barrier, that
//! linearizable reads are served. Leaves out: making the snapshot (`node`).

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use http::header::{self, HeaderName, HeaderValue};
use tokio_util::io::ReaderStream;

use super::call::Call;
use super::config::TIMEOUT_MAX;
use super::model::Problem;
use super::problem::{EdgeError, Failure};
use super::routes::Api;
use crate::clock;
use crate::node::ReadError;

const SNAPSHOT_REVISION: HeaderName = HeaderName::from_static("quorate-snapshot-revision");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// A snapshot is read and sent in pieces of this many bytes.
const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;

fn text(content_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// Whether the process answers
#[utoipa::path(get, path = "/healthz", tag = "operations", responses(
    (status = 200, description = "it does", body = String, content_type = "text/plain"),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
))]
pub(super) fn get_healthz(call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    Ok(text(TEXT, "ok\n"))
}

/// Whether linearizable reads are served
#[utoipa::path(get, path = "/readyz", tag = "operations", params(
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200, description = "they are", body = String, content_type = "text/plain"),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready, with the reason",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_readyz(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    let deadline = call.deadline(api)?;
    api.node().ready(deadline).await.map_err(ReadError::NotReady)?;
    Ok(text(TEXT, "ready\n"))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
))]
pub(super) fn get_metrics(api: &Api, call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    Ok(text(OPEN_METRICS, api.metrics_text()))
}

/// The snapshot file of this moment
///
/// `Repr-Digest` is the SHA-256 of the file (RFC 9530), `Quorate-Snapshot-Revision` the revision it holds.
#[utoipa::path(get, path = "/v1/snapshot", tag = "operations", params(
    ("Quorate-Timeout" = Option<String>, Header,
        description = "how long to wait for the file to be made; 60s by default"),
), responses(
    (status = 200, description = "the file", body = Vec<u8>, content_type = "application/octet-stream"),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_snapshot(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    let deadline = clock::now() + call.timeout(TIMEOUT_MAX)?;
    let pass = api.admission().streams.enter(1)?;
    let snapshot = api.node().snapshot(deadline).await?;
    let unreadable = |error: std::io::Error| {
        EdgeError::Internal(format!("the snapshot file {} can't be read: {error}", snapshot.path.display()))
    };
    let file = tokio::fs::File::open(&snapshot.path).await.map_err(unreadable)?;
    let digest = format!("sha-256=:{}:", STANDARD.encode(snapshot.sha256));
    call.revision = Some(snapshot.revision);
    let (size, revision) = (snapshot.size, snapshot.revision);
    // The file and the place among the streams are held until the last piece is sent.
    let held = (snapshot, pass);
    let pieces = ReaderStream::with_capacity(file, SNAPSHOT_CHUNK_BYTES).map(move |piece| {
        let _held = &held;
        piece
    });
    let mut response = text(HeaderValue::from_static("application/octet-stream"), Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, size.into());
    headers.insert(SNAPSHOT_REVISION, revision.get().into());
    if let Ok(digest) = HeaderValue::try_from(digest) {
        headers.insert(REPR_DIGEST, digest);
    }
    Ok(response)
}
