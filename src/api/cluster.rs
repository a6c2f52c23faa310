//! What a node tells of itself and of its group, and who leads it: `GET /v1/status`, `GET /v1/cluster`,
//! `POST /v1/cluster/leader`.
//!
//! Guarantees: the status never waits for a disk or another node; the view of the group waits for others only within a
//! short bound. Leaves out: changing the members.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use super::body;
use super::call::{Call, json};
use super::model::{ClusterReply, Invalid, LeaderReply, LeaderRequest, Problem, StatusReply};
use super::problem::Failure;
use super::routes::Api;
use crate::node::ReadError;
use crate::types::NodeId;

/// The most bytes of an order to move the leadership.
const LEADER_BODY_BYTES_MAX: usize = 4 * 1024;

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

/// Move the leadership
///
/// To a voter that answers and has the log, through whichever node is asked. The answer comes when the new leader is
/// elected; writes that come meanwhile wait. A member that leads already is a success with `moved` false.
#[utoipa::path(post, path = "/v1/cluster/leader", tag = "cluster", params(
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = LeaderRequest), responses(
    (status = 200, description = "that member leads", body = LeaderReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "member_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly",
        body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: a learner, out of reach or too far behind, or another was elected; \
        membership_busy: another transfer is under way", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready",
        body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown: the voters were told, but no leader is known yet",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn post_leader(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    call.refuse_later_headers()?;
    call.deadline(api)?;
    let (config, expects) = (api.config(), call.expects());
    let held = body::read(body, expects, LEADER_BODY_BYTES_MAX, config.body_timeout, api.admission()).await?;
    let order = parse(&held.bytes)?;
    let moved = api.node().transfer_leadership(NodeId::new(order.to), call.deadline(api)?).await?;
    let leader = api.node().member(moved.leader);
    let reply = LeaderReply { leader: (moved.leader, leader).into(), term: moved.term.get(), moved: moved.moved };
    json(StatusCode::OK, &reply)
}

fn parse(body: &[u8]) -> Result<LeaderRequest, Invalid> {
    // The parser would take an array for the fields in their order; the contract knows objects only.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Invalid::request("the body is a list; it must be an object such as {\"to\": 2}"));
    }
    serde_json::from_slice(body).map_err(|error| {
        Invalid::request(format!("the body does not say who shall lead, as in {{\"to\": 2}}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_with_an_id_says_who_shall_lead() {
        assert_eq!(parse(b" {\"to\": 2}").unwrap().to, 2);
        for body in ["", "{}", "[2]", "2", "{\"to\":\"n2\"}", "{\"to\":-1}", "{\"to\":2,\"now\":true}", "{\"to\":2} 3"]
        {
            let refused = parse(body.as_bytes()).unwrap_err();
            assert!(refused.detail.contains("{\"to\": 2}"), "{body}: {refused}");
        }
    }
}
