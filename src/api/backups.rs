//! Off-site copies and alarms: `GET /v1/backups`, `POST /v1/backups/{name}/run`, `GET /v1/alarms`.
//!
//! Guarantees: any node answers for all. Leaves out: what is in an archive (the command line reads it), and archiving
//! (`node`).

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use super::body;
use super::call::{Call, json};
use super::model::{AlarmInfo, AlarmsReply, BackupInfo, BackupRunReply, BackupsReply, Problem};
use super::problem::Failure;
use super::routes::Api;
use crate::node::BackupError;

/// What stands before the name in the path.
pub(super) const PATH_PREFIX: &str = "/v1/backups/";

/// What stands behind it in an order.
const RUN: &str = "/run";

/// An order has no body; so much of one is read and passed over.
const BODY_BYTES_MAX: usize = 1_024;

/// The places for backups
///
/// As the node that is asked knows them, and those members that it hears of. How far each archive reaches, how much would be
/// lost, and why a node fails to archive.
#[utoipa::path(get, path = "/v1/backups", tag = "operations", responses(
    (status = 200, description = "all places", body = BackupsReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list_backups(api: &Api, call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    let backups = api.node().backups().await?.into_iter().map(BackupInfo::from).collect();
    json(StatusCode::OK, &BackupsReply { backups })
}

/// One place for backups
#[utoipa::path(get, path = "/v1/backups/{name}", tag = "operations", params(
    ("name" = String, Path, description = "its name in the configuration"),
), responses(
    (status = 200, description = "the place", body = BackupInfo),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "backup_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_backup(api: &Api, call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    let name = call.head.uri.path().strip_prefix(PATH_PREFIX).unwrap_or_default();
    let mut all = api.node().backups().await?;
    match all.iter().position(|place| place.name == name) {
        Some(at) => json(StatusCode::OK, &BackupInfo::from(all.swap_remove(at))),
        None => {
            let known: Vec<_> = all.into_iter().map(|place| place.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(BackupError::Unknown { name: name.to_owned(), known }.into())
        }
    }
}

/// Send a whole state now
///
/// Beside the schedule. It is taken from the node that archives, and sent while everything goes on; `GET` tells when it is
/// there.
#[utoipa::path(post, path = "/v1/backups/{name}/run", tag = "operations", params(
    ("name" = String, Path, description = "its name in the configuration"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 202, description = "it will be sent", body = BackupRunReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "backup_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: nobody can archive there at present", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn run_backup(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    call.refuse_later_headers()?;
    let deadline = call.deadline(api)?;
    body::read(body, call.expects(), BODY_BYTES_MAX, api.config().body_timeout, api.admission()).await?;
    let path = call.head.uri.path();
    let name = path.strip_prefix(PATH_PREFIX).and_then(|rest| rest.strip_suffix(RUN)).unwrap_or_default();
    let node = api.node().send_full(name, deadline).await?;
    json(StatusCode::ACCEPTED, &BackupRunReply { name: name.to_owned(), node: node.get() })
}

/// What an operator should look at
///
/// The alarms of all members, each with what to do.
#[utoipa::path(get, path = "/v1/alarms", tag = "operations", responses(
    (status = 200, description = "all alarms that stand", body = AlarmsReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "not_ready", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list_alarms(api: &Api, call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    let node = api.node();
    let (alarms, silent) = node.alarms().await?;
    let alarms = alarms.iter().map(|(id, alarm)| AlarmInfo::of(*id, &node.member(*id).name, alarm)).collect();
    let silent = silent.into_iter().map(|id| node.member(id).name).collect();
    json(StatusCode::OK, &AlarmsReply { alarms, silent })
}
