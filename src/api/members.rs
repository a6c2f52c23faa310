//! Changing the members: `POST /v1/cluster/members`, `PATCH` and `DELETE /v1/cluster/members/{id}`.
//!
//! Guarantees: a body or an id that is malformed is refused before anybody is asked; `dry_run` changes nothing. Leaves out:
//! what a change takes (`node::membership`).

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde::de::DeserializeOwned;

use super::body;
use super::call::{Call, json};
use super::model::{AddMemberRequest, Invalid, MemberChangeReply, Problem, UpdateMemberRequest};
use super::problem::Failure;
use super::routes::Api;
use crate::node::{Change, ChangeOptions};
use crate::types::NodeId;
use crate::types::limits::JSON_INTEGER_MAX;

/// The most bytes of an order to change the members.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// What stands before the id in the path.
pub(super) const PATH_PREFIX: &str = "/v1/cluster/members/";

/// Add a member
///
/// The node must run already, with an empty directory and `--join`. The leader dials it before anything is changed, and
/// takes it in as a learner; one that shall vote does so by itself once it has caught up.
#[utoipa::path(post, path = "/v1/cluster/members", tag = "cluster", params(
    ("dry_run" = Option<bool>, Query, description = "only tell what would happen"),
    ("force" = Option<bool>, Query, description = "also where too few voters would be reachable"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = AddMemberRequest), responses(
    (status = 200, description = "with dry_run: what would happen", body = MemberChangeReply),
    (status = 202, description = "it is a member; whether it votes already, done tells", body = MemberChangeReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "member_not_found: nobody to replace", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: the node can't be reached, is another one, or not an empty one, or its name or \
        address is taken; membership_busy: another change is under way; would_lose_quorum", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready", body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown: it may be a member or not; the same order again finds out",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn post_member(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    let options = options(call)?;
    let example = "{\"name\": \"n4\", \"peer_addr\": \"10.0.0.4:7481\"}";
    let request: AddMemberRequest = read(api, call, body, example).await?;
    change(api, call, &request.into_change()?, options, StatusCode::ACCEPTED).await
}

/// Change a member
///
/// Whether it votes, its data centre, its priority as the leader, its name, or where it is reached. A member that shall have another
/// peer address must answer there already.
#[utoipa::path(patch, path = "/v1/cluster/members/{id}", tag = "cluster", params(
    ("id" = u64, Path, description = "the id of the member"),
    ("dry_run" = Option<bool>, Query, description = "only tell what would happen"),
    ("force" = Option<bool>, Query, description = "also where too few voters would be reachable"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = UpdateMemberRequest), responses(
    (status = 200, description = "it is changed; or, if done is false, will vote once it has caught up", body = MemberChangeReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "member_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict, membership_busy, would_lose_quorum", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready", body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown; the same order again finds out",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn patch_member(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    let (options, id) = (options(call)?, id(call)?);
    let request: UpdateMemberRequest = read(api, call, body, "{\"role\": \"learner\"}").await?;
    change(api, call, &request.into_change(id)?, options, StatusCode::OK).await
}

/// Remove a member
///
/// It loses its vote, hears so, and is taken out. Its id is never given again; to come back it needs an empty directory.
#[utoipa::path(delete, path = "/v1/cluster/members/{id}", tag = "cluster", params(
    ("id" = u64, Path, description = "the id of the member"),
    ("dry_run" = Option<bool>, Query, description = "only tell what would happen"),
    ("force" = Option<bool>, Query, description = "also where too few voters would be reachable"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200, description = "it has no vote any more; if done is true, it is no member any more", body = MemberChangeReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "member_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict, membership_busy, would_lose_quorum", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready", body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown; the same order again finds out; 404 then means that it is out",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn delete_member(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    let (options, id) = (options(call)?, id(call)?);
    change(api, call, &Change::Remove(id), options, StatusCode::OK).await
}

fn options(call: &Call) -> Result<ChangeOptions, Invalid> {
    let query = call.query(&["dry_run", "force"], &[])?;
    call.refuse_later_headers()?;
    let flag = |name| Ok::<_, Invalid>(query.flag(name)?.unwrap_or(false));
    Ok(ChangeOptions { dry_run: flag("dry_run")?, force: flag("force")? })
}

/// The id in the path.
fn id(call: &Call) -> Result<NodeId, Invalid> {
    let text = call.head.uri.path().strip_prefix(PATH_PREFIX).unwrap_or_default();
    let id = text.parse().ok().filter(|id| *id <= JSON_INTEGER_MAX && text.bytes().all(|byte| byte.is_ascii_digit()));
    id.map(NodeId::new).ok_or_else(|| {
        Invalid::request(format!(
            "\"{text}\" is no id of a member; it must be a whole number, as GET /v1/cluster lists them"
        ))
    })
}

/// Reads an order as JSON.
pub(super) async fn read<T: DeserializeOwned>(api: &Api, call: &Call, body: Body, example: &str) -> Result<T, Failure> {
    call.deadline(api)?;
    let held = body::read(body, call.expects(), BODY_BYTES_MAX, api.config().body_timeout, api.admission()).await?;
    // The parser would take an array for the fields in their order; the contract knows objects only.
    if held.bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Invalid::request(format!("the body is a list; it must be an object such as {example}")).into());
    }
    serde_json::from_slice(&held.bytes)
        .map_err(|error| Invalid::request(format!("the body is no object such as {example}: {error}")).into())
}

async fn change(
    api: &Api,
    call: &Call,
    change: &Change,
    options: ChangeOptions,
    success: StatusCode,
) -> Result<Response, Failure> {
    let changed = api.node().change_members(change, options, call.deadline(api)?).await?;
    let status = if options.dry_run { StatusCode::OK } else { success };
    json(status, &MemberChangeReply::of(changed, options.dry_run))
}
