//! The accept loop of the client listener: our own, on hyper's HTTP/1.1, because a ready-made one sets no timer at all.
//!
//! A connection over the limit gets a spare seat if there is one: one request, which is answered if it asks how the node
//! does and refused otherwise. So health checks are not shut out by a crowd, and the crowd is told what to do instead of
//! being hung up on.
//!
//! Guarantees: connections are bounded in number, in total and by address, and in every phase by time; `TCP_NODELAY` is
//! on; on shutdown nothing new is accepted, requests at work are finished, and what takes longer than the drain timeout
//! is cut off. Leaves out: TLS, and what requests mean (`routes`).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::admission::{Gate, Pass, Scarce};
use super::config::{ApiConfig, HEAD_BYTES_MAX, HEADERS_MAX};
use super::connection::{Sweeper, Watch, Watched};
use super::metrics::ApiMetrics;
use super::path::KEY_PREFIX;
use super::places::{Full, Open, Place, Places};
use super::problem::EdgeError;
use super::refusal::too_many_connections;
use super::routes::{Api, Route, router};

/// The pause after the system refused a connection: it is short of descriptors or memory, and asking at once again
/// would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The hard limits of hyper stand above ours, so that what is a little over ours is answered like any other request.
const PARSER_FACTOR: usize = 2;

/// The longest that one request on a spare seat may take, in coming and in being answered.
const SPARE_TIME: Duration = Duration::from_secs(5);

/// What a connection may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    Regular,
    /// One request, and only about the node.
    Spare,
}

/// What a connection takes up; given back on drop.
enum Taken {
    Place(#[expect(dead_code, reason = "held for its drop")] Place),
    Spare(#[expect(dead_code, reason = "held for its drop")] Pass),
}

/// Serves the API on a listener until `shutdown`, then until its requests are done or the drain timeout has passed.
pub async fn serve(listener: TcpListener, api: Api, shutdown: CancellationToken) {
    let router = router(api.clone());
    let config = api.config().clone();
    let metrics_of = api.clone();
    let handler = move |request: Request, seat: Seat| {
        let (api, router) = (api.clone(), router.clone());
        async move {
            if seat == Seat::Spare && !Route::is_spared(request.uri().path()) {
                return api.refuse(request, EdgeError::Busy(Scarce::Connections));
            }
            // Single keys are most of the work, and need no routing beyond this comparison.
            if request.uri().path().starts_with(KEY_PREFIX) {
                return api.answer(Some(Route::Key), request).await;
            }
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    };
    run(listener, handler, &config, metrics_of.metrics(), shutdown).await;
}

/// The loop itself, for any handler.
async fn run<H, F>(
    listener: TcpListener,
    handler: H,
    config: &ApiConfig,
    metrics: &ApiMetrics,
    shutdown: CancellationToken,
) where
    H: Fn(Request, Seat) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let connections = TaskTracker::new();
    let refusal = too_many_connections();
    let sweeper = Sweeper::new(config.header_timeout, config.idle_timeout);
    let places = Places::new(config.connections_max, config.connections_per_ip_max);
    let spare = Gate::new(config.spare_connections, Scarce::Connections);
    // Outlives `shutdown`: connections that drain are still looked after.
    let ended = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "awaited below, behind the connections it looks after")]
    let sweeping = tokio::spawn({
        let (sweeper, ended) = (Arc::clone(&sweeper), ended.clone());
        async move { sweeper.run(ended).await }
    });
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a client connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (taken, seat) = match places.take(peer.ip()) {
            Ok(place) => (Taken::Place(place), Seat::Regular),
            Err(full) => {
                match full {
                    Full::Total => metrics.rejected_total.inc(),
                    Full::Address => metrics.rejected_per_ip.inc(),
                };
                tracing::debug!(%peer, ?full, "a client connection is over the limit");
                let Ok(pass) = spare.enter(1) else {
                    // One try, no waiting: the answer is small, and the socket's buffer empty.
                    let _ = stream.try_write(&refusal);
                    continue;
                };
                (Taken::Spare(pass), Seat::Spare)
            }
        };
        // Without it small answers would wait for the client's acknowledgements; without success they just do.
        let _ = stream.set_nodelay(true);
        let guards = (taken, Open::new(metrics.connections.clone()));
        let overdue = metrics.timed_out.clone();
        let connection = connection(stream, seat, sweeper.watch(), handler.clone(), shutdown.clone(), ended.clone());
        connections.spawn(async move {
            let _guards = guards;
            if let Ended::Overdue = connection.await {
                overdue.inc();
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(config.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "client connections are cut off after the drain timeout");
    }
    ended.cancel();
    connections.wait().await;
    let _ = sweeping.await;
}

/// How a connection ended.
enum Ended {
    /// By itself, by the client, or by an error of the protocol.
    Closed,
    /// A limit of time was passed.
    Overdue,
    /// The drain timeout was passed.
    CutOff,
}

/// Serves one connection.
async fn connection<H, F>(
    stream: TcpStream,
    seat: Seat,
    watch: Watch,
    handler: H,
    shutdown: CancellationToken,
    ended: CancellationToken,
) -> Ended
where
    H: Fn(Request, Seat) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let pulse = Arc::clone(&watch.pulse);
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        pulse.request_begins();
        let pulse = Arc::clone(&pulse);
        let answer = handler(request.map(Body::new), seat);
        async move {
            let response = answer.await;
            pulse.request_ends();
            Ok::<_, Infallible>(response)
        }
    });
    let io = Watched::new(stream, Arc::clone(&watch.pulse));
    let http = http1::Builder::new()
        // The sweep does what this timer does, without one per request.
        .header_read_timeout(None)
        .keep_alive(seat == Seat::Regular)
        .max_headers(HEADERS_MAX * PARSER_FACTOR)
        .max_header_size(HEAD_BYTES_MAX * PARSER_FACTOR)
        .max_buf_size(HEAD_BYTES_MAX * PARSER_FACTOR)
        // A client that has sent all it wants to send may close its side and still read the answer.
        .half_close(true)
        .serve_connection(io, service);
    let out_of_time = async {
        match seat {
            Seat::Regular => std::future::pending().await,
            Seat::Spare => tokio::time::sleep(SPARE_TIME).await,
        }
    };
    tokio::pin!(http, out_of_time);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            // What the client did wrong is told by hyper's own answer; what the network did is nobody's fault.
            result = http.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a client connection broke");
                }
                return Ended::Closed;
            }
            () = watch.pulse.overdue.cancelled() => return Ended::Overdue,
            () = &mut out_of_time => return Ended::Overdue,
            () = ended.cancelled() => return Ended::CutOff,
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                http.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
