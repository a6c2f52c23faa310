//! What a node tells of itself and of its group: `GET /v1/status`, `GET /v1/cluster`.
//!
//! Guarantees: the status never waits for a disk or another node; the view of the group waits for others only within a
//! short bound. Leaves out: changing the group.

use axum::response::Response;
use http::StatusCode;

use super::call::{Call, json};
use super::model::{ClusterReply, Problem, StatusReply};
use super::problem::Failure;
use super::routes::Api;
use crate::node::ReadError;

/// How this node does
#[utoipa::path(get, path = "/v1/status", tag = "cluster", responses(
    (status = 200, description = "this node's view of itself", body = StatusReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
))]
pub(super) fn get_status(api: &Api, call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    json(StatusCode::OK, &StatusReply::from(api.node().status()))
}

/// How the group does
///
/// As its leader sees it, whichever node is asked; `view` is `local` where no leader answers and the node tells what it
/// found out itself.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster", responses(
    (status = 200, description = "the members and how they stand", body = ClusterReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready: the cluster is not formed yet, or the node is starting",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_cluster(api: &Api, call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    json(StatusCode::OK, &ClusterReply::from(api.node().cluster().await.map_err(ReadError::NotReady)?))
}
