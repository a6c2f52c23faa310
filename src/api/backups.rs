//! Off-site copies and alarms: `/v1/backups`, `/v1/backups/{name}`, `POST /v1/backups/{name}/run`, `GET /v1/alarms`.
//!
//! Guarantees: any node answers for all, and takes orders for all. Leaves out: what is in an archive (the command line reads it), and archiving
//! (`node`).

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use super::body;
use super::call::{Call, json};
use super::members;
use super::model::{
    AlarmInfo, AlarmsReply, BackupChangeReply, BackupDeclaration, BackupInfo, BackupRunReply, BackupsReply, Invalid,
    Problem,
};
use super::problem::Failure;
use super::routes::Api;
use crate::node::{BackupChange, BackupChangeOptions, BackupError};

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
    let name = name(call);
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

/// Declare a place for backups
///
/// The same as a `[[backup]]` block in the configuration of every node, kept by the cluster. Credentials are referred to, never
/// given. The node that is asked tries the store first, as an archiver would; an empty place becomes a repository by that, also
/// with `dry_run`. A cluster that is restored from a backup does not archive there by itself.
#[utoipa::path(post, path = "/v1/backups", tag = "operations", params(
    ("dry_run" = Option<bool>, Query, description = "only try the store, and tell"),
    ("force" = Option<bool>, Query, description = "also where the store can't be used at present, or a member does not answer"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = BackupDeclaration), responses(
    (status = 200, description = "with dry_run: what was found", body = BackupChangeReply),
    (status = 201, description = "it is declared, and all members archive to it or are ready to", body = BackupChangeReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: the name or the store is taken, the store can't be used, or a member does not answer", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready", body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown; the same order again finds out", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn post_backup(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    let options = options(call, true)?;
    let example = "{\"name\": \"main\", \"url\": \"s3://bucket/prefix\"}";
    let block = members::read(api, call, body, example).await?;
    change(api, call, BackupChange::Add(block), options, StatusCode::CREATED).await
}

/// Change a place for backups
///
/// Of one that was declared here: what is given replaces what is there, `null` brings the default back, `{}` changes nothing.
/// The whole is tried as if it were new. In a cluster that was restored from a backup any change, also `{}`, has the members
/// archive there again, into a folder of this cluster.
#[utoipa::path(patch, path = "/v1/backups/{name}", tag = "operations", params(
    ("name" = String, Path, description = "its name"),
    ("dry_run" = Option<bool>, Query, description = "only try the store, and tell"),
    ("force" = Option<bool>, Query, description = "also where the store can't be used at present, or a member does not answer"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), request_body(content = BackupDeclaration), responses(
    (status = 200, description = "it is changed; or, with dry_run, what was found", body = BackupChangeReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "backup_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "bad_request: the body came too slowly", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: as for POST; or it stands in the configuration, or was changed meanwhile", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "value_too_large", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready", body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown; the same order again finds out", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn patch_backup(api: &Api, call: &mut Call, body: Body) -> Result<Response, Failure> {
    let options = options(call, true)?;
    let name = name(call).to_owned();
    let patch = members::read(api, call, body, "{\"full\": \"0 4 * * *\"}").await?;
    change(api, call, BackupChange::Update(name, patch), options, StatusCode::OK).await
}

/// Forget a place for backups
///
/// One that was declared here. Nothing is archived there any more; what is there stays.
#[utoipa::path(delete, path = "/v1/backups/{name}", tag = "operations", params(
    ("name" = String, Path, description = "its name"),
    ("force" = Option<bool>, Query, description = "also where a member does not answer"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200, description = "it is forgotten", body = BackupChangeReply),
    (status = 400, description = "bad_request", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "backup_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "conflict: it stands in the configuration, or a member does not answer", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready", body = Problem, content_type = "application/problem+json"),
    (status = 504, description = "outcome_unknown; the same order again finds out; 404 then means that it is forgotten", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn delete_backup(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    let options = options(call, false)?;
    let name = name(call).to_owned();
    change(api, call, BackupChange::Remove(name), options, StatusCode::OK).await
}

/// The name in the path.
fn name(call: &Call) -> &str {
    call.head.uri.path().strip_prefix(PATH_PREFIX).unwrap_or_default()
}

fn options(call: &Call, may_be_tried: bool) -> Result<BackupChangeOptions, Invalid> {
    let known: &[&'static str] = if may_be_tried { &["dry_run", "force"] } else { &["force"] };
    let query = call.query(known, &[])?;
    call.refuse_later_headers()?;
    let flag = |name| Ok::<_, Invalid>(query.flag(name)?.unwrap_or(false));
    Ok(BackupChangeOptions { dry_run: may_be_tried && flag("dry_run")?, force: flag("force")? })
}

async fn change(
    api: &Api,
    call: &Call,
    change: BackupChange,
    options: BackupChangeOptions,
    success: StatusCode,
) -> Result<Response, Failure> {
    let changed = api.node().change_backups(change, options, call.deadline(api)?).await?;
    let status = if options.dry_run { StatusCode::OK } else { success };
    json(status, &BackupChangeReply::of(changed, options.dry_run))
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
