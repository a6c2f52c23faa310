//! The table of endpoints, and the way of a request through it.
//!
//! Guarantees: [`Route`] is the one list of endpoints: the router, `Allow`, the metrics and the OpenAPI document's test
//! go by it; whatever a handler does, also a panic, the client gets an answer. Leaves out: what the handlers do.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use futures::FutureExt;
use http::Method;

use super::admission::Admission;
use super::call::Call;
use super::config::ApiConfig;
use super::freshness::Freshness;
use super::metrics::ApiMetrics;
use super::path::KEY_PREFIX;
use super::problem::{EdgeError, Failure};
use super::request_log::RequestLog;
use super::{backups, body, cluster, guard, kv, list, members, openapi, ops, txn};
use crate::clock;
use crate::node::{Node, WriteError};
use crate::state::{Principal, StateView, Txn, TxnReply};

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Key,
    Keys,
    Txn,
    Status,
    Cluster,
    Leader,
    Members,
    Member,
    Snapshot,
    Backups,
    Backup,
    BackupRun,
    Alarms,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
}

impl Route {
    pub(super) const ALL: [Self; 17] = [
        Self::Key,
        Self::Keys,
        Self::Txn,
        Self::Status,
        Self::Cluster,
        Self::Leader,
        Self::Members,
        Self::Member,
        Self::Snapshot,
        Self::Backups,
        Self::Backup,
        Self::BackupRun,
        Self::Alarms,
        Self::Healthz,
        Self::Readyz,
        Self::Metrics,
        Self::OpenApi,
    ];

    /// Its path, as the OpenAPI document and the metrics name it.
    pub(super) const fn template(self) -> &'static str {
        match self {
            Self::Key => "/v1/kv/{key}",
            Self::Keys => "/v1/kv",
            Self::Txn => "/v1/txn",
            Self::Status => "/v1/status",
            Self::Cluster => "/v1/cluster",
            Self::Leader => "/v1/cluster/leader",
            Self::Members => "/v1/cluster/members",
            Self::Member => "/v1/cluster/members/{id}",
            Self::Snapshot => "/v1/snapshot",
            Self::Backups => "/v1/backups",
            Self::Backup => "/v1/backups/{name}",
            Self::BackupRun => "/v1/backups/{name}/run",
            Self::Alarms => "/v1/alarms",
            Self::Healthz => "/healthz",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
        }
    }

    /// Its methods, as `Allow` lists them. `HEAD` stands where a check by a load balancer or a cache makes sense.
    pub(super) const fn allowed(self) -> &'static str {
        match self {
            Self::Key => "GET, HEAD, PUT, DELETE",
            Self::Keys => "GET, DELETE",
            Self::Txn | Self::Leader | Self::Members | Self::BackupRun => "POST",
            Self::Member => "PATCH, DELETE",
            Self::Backups => "GET, HEAD, POST",
            Self::Backup => "GET, HEAD, PATCH, DELETE",
            Self::Snapshot => "GET",
            Self::Status
            | Self::Cluster
            | Self::Alarms
            | Self::Healthz
            | Self::Readyz
            | Self::Metrics
            | Self::OpenApi => "GET, HEAD",
        }
    }

    /// Whether it counts against the requests at work: what tells how the node does must not be shut out by load.
    pub(super) const fn is_admitted(self) -> bool {
        matches!(self, Self::Key | Self::Keys | Self::Txn | Self::Snapshot)
    }
}

impl Route {
    /// Whether this path is for those who look after the node, and so answered also on a spare connection.
    pub(super) fn is_spared(path: &str) -> bool {
        let is_at = |route: &Self| match route {
            Self::Member => path.starts_with(members::PATH_PREFIX),
            Self::Backup | Self::BackupRun => path.starts_with(backups::PATH_PREFIX),
            route => route.template() == path,
        };
        Self::ALL.iter().any(|route| !route.is_admitted() && is_at(route))
    }
}

/// The HTTP edge of one node: a cheap handle.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    node: Node,
    config: ApiConfig,
    metrics: ApiMetrics,
    metrics_text: Box<dyn Fn() -> String + Send + Sync>,
    admission: Admission,
    log: RequestLog,
}

impl Api {
    /// The edge of `node`. `metrics_text` gives what `/metrics` answers.
    pub fn new(
        node: Node,
        config: ApiConfig,
        metrics: ApiMetrics,
        metrics_text: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        let admission = Admission::new(&config);
        Self(Arc::new(Shared {
            node,
            config,
            metrics,
            metrics_text: Box::new(metrics_text),
            admission,
            log: RequestLog::default(),
        }))
    }

    pub(super) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(super) fn config(&self) -> &ApiConfig {
        &self.0.config
    }

    pub(super) fn metrics(&self) -> &ApiMetrics {
        &self.0.metrics
    }

    pub(super) fn metrics_text(&self) -> String {
        self.0.metrics.tell_admission(&self.0.admission);
        (self.0.metrics_text)()
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.0.admission
    }

    /// Proposes a transaction on behalf of a request, and waits until it is off-site where that was asked for or is the rule.
    /// `bytes` is how much it carries.
    pub(super) async fn write(&self, call: &mut Call, txn: Txn, bytes: usize) -> Result<TxnReply, Failure> {
        let deadline = call.deadline(self)?;
        let offsite = call.offsite || self.node().must_be_offsite(&txn);
        if offsite {
            self.node().can_be_offsite()?;
        }
        let work = self.admission().writes.begin(bytes, self.node().apply_backlog_percent())?;
        let outcome = self.node().write(txn, Principal::Anonymous, None, deadline).await;
        // How long it takes to find no leader says nothing about how much can be written.
        if matches!(outcome, Ok(_) | Err(WriteError::Rejected(_) | WriteError::OutcomeUnknown(_))) {
            work.end();
        }
        let reply = outcome?;
        call.revision = Some(reply.revision);
        if offsite {
            self.node().await_offsite(&reply, deadline).await?;
        }
        Ok(reply)
    }

    /// A view as fresh as a request asks for.
    pub(super) async fn read(&self, call: &mut Call, freshness: Freshness) -> Result<StateView, Failure> {
        let deadline = call.deadline(self)?;
        let read = self.node().read(freshness.options(deadline)).await?;
        call.note_read(freshness, read.view.revision(), read.staleness);
        Ok(read.view)
    }

    /// Answers a request to an endpoint, or to none.
    pub(super) async fn answer(&self, route: Option<Route>, request: Request) -> Response {
        let started = clock::now();
        let metrics = self.metrics();
        let _in_flight = InFlight::new(metrics);
        let (head, body) = request.into_parts();
        let is_write = !matches!(head.method, Method::GET | Method::HEAD);
        let mut call = Call::new(head);
        // A handler that panics has broken its own promise and nobody else's: the request fails, the node lives on.
        let result = AssertUnwindSafe(self.handle(route, &mut call, body)).catch_unwind().await;
        let result = result.unwrap_or_else(|_| {
            let what = "the request met a defect; see the log of this node".to_owned();
            Err(if is_write { EdgeError::InternalInWrite(what) } else { EdgeError::Internal(what) }.into())
        });
        let finished = call.finish(self, result);
        let took = clock::now().saturating_duration_since(started);
        if let Some(Failure::Edge(EdgeError::Busy(what))) = &finished.failure {
            metrics.refused(*what);
        }
        metrics.answered(route, finished.method(), finished.response.status(), took);
        self.0.log.tell(route, finished, took)
    }

    /// Refuses a request without a look at what it asks for.
    pub(super) fn refuse(&self, request: Request, error: EdgeError) -> Response {
        let started = clock::now();
        if let EdgeError::Busy(what) = &error {
            self.metrics().refused(*what);
        }
        let finished = Call::new(request.into_parts().0).finish(self, Err(error.into()));
        let took = clock::now().saturating_duration_since(started);
        self.metrics().answered(None, finished.method(), finished.response.status(), took);
        self.0.log.tell(None, finished, took)
    }

    async fn handle(&self, route: Option<Route>, call: &mut Call, body: Body) -> Result<Response, Failure> {
        guard::check(&call.head, self.config())?;
        let route = route.ok_or(EdgeError::UnknownEndpoint)?;
        let _pass = match route.is_admitted().then(|| self.admission().requests.enter(1)).transpose() {
            Ok(pass) => pass,
            Err(error) => return Err(body::refuse(body, call.expects(), error).await.into()),
        };
        let head = call.head.method == Method::HEAD;
        match (route, &call.head.method) {
            (Route::Key, &Method::GET | &Method::HEAD) => kv::get_key(self, call, head).await,
            (Route::Key, &Method::PUT) => kv::put_key(self, call, body).await,
            (Route::Key, &Method::DELETE) => kv::delete_key(self, call).await,
            (Route::Keys, &Method::GET) => list::list_keys(self, call).await,
            (Route::Keys, &Method::DELETE) => kv::delete_keys(self, call).await,
            (Route::Txn, &Method::POST) => txn::run_txn(self, call, body).await,
            (Route::Status, &Method::GET | &Method::HEAD) => cluster::get_status(self, call),
            (Route::Cluster, &Method::GET | &Method::HEAD) => cluster::get_cluster(self, call).await,
            (Route::Leader, &Method::POST) => cluster::post_leader(self, call, body).await,
            (Route::Members, &Method::POST) => members::post_member(self, call, body).await,
            (Route::Member, &Method::PATCH) => members::patch_member(self, call, body).await,
            (Route::Member, &Method::DELETE) => members::delete_member(self, call).await,
            (Route::Snapshot, &Method::GET) => ops::get_snapshot(self, call).await,
            (Route::Backups, &Method::GET | &Method::HEAD) => backups::list_backups(self, call).await,
            (Route::Backup, &Method::GET | &Method::HEAD) => backups::get_backup(self, call).await,
            (Route::Backups, &Method::POST) => backups::post_backup(self, call, body).await,
            (Route::Backup, &Method::PATCH) => backups::patch_backup(self, call, body).await,
            (Route::Backup, &Method::DELETE) => backups::delete_backup(self, call).await,
            (Route::BackupRun, &Method::POST) => backups::run_backup(self, call, body).await,
            (Route::Alarms, &Method::GET | &Method::HEAD) => backups::list_alarms(self, call).await,
            (Route::Healthz, &Method::GET | &Method::HEAD) => ops::get_healthz(call),
            (Route::Readyz, &Method::GET | &Method::HEAD) => ops::get_readyz(self, call).await,
            (Route::Metrics, &Method::GET | &Method::HEAD) => ops::get_metrics(self, call),
            (Route::OpenApi, &Method::GET | &Method::HEAD) => openapi::get_openapi(call),
            (route, method) => {
                Err(EdgeError::MethodNotAllowed { method: method.clone(), allowed: route.allowed() }.into())
            }
        }
    }
}

/// Counts a request at work for as long as it lives, also if it is cancelled.
struct InFlight<'a>(&'a ApiMetrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a ApiMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// The endpoints as a service of axum.
pub fn router(api: Api) -> Router {
    let to = |route: Option<Route>| {
        let api = api.clone();
        any(move |request: Request| async move { api.answer(route, request).await })
    };
    let mut router = Router::new();
    for route in Route::ALL {
        router = match route {
            // The key is read from the raw path, so the router must only find out that there is one.
            Route::Key => {
                router.route("/v1/kv/", to(Some(route))).route(&format!("{KEY_PREFIX}{{*key}}"), to(Some(route)))
            }
            _ => router.route(route.template(), to(Some(route))),
        };
    }
    router.fallback_service(to(None).with_state(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_route_is_its_number() {
        for (place, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, place, "{}", route.template());
        }
    }
}
