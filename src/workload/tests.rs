//! Load against servers that answer, refuse, and hang up.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;

/// A server on a thread of its own; lives as long as the test's process.
fn server(answer: impl Fn(u64) -> Option<Response<Full<Bytes>>> + Send + Sync + Copy + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests: &'static AtomicU64 = Box::leak(Box::default());
    std::thread::spawn(move || {
        runtime().unwrap().block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let service = service_fn(move |request: http::Request<Incoming>| async move {
                        let _ = request.into_body().collect().await;
                        let count = requests.fetch_add(1, Ordering::Relaxed);
                        answer(count).ok_or("hang up")
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    url
}

fn ok() -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(b"value")))
}

fn problem(status: u16, code: &str, outcome: &str) -> Response<Full<Bytes>> {
    let body = format!(
        r#"{{"type":"t","title":"t","status":{status},"detail":"d","code":"{code}","retryable":true,
            "outcome":"{outcome}","request_id":"r"}}"#
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn config(endpoint: String, kind: Kind) -> LoadConfig {
    LoadConfig {
        endpoints: vec![endpoint],
        kind,
        clients: 4,
        duration: Duration::from_millis(300),
        keys: 50,
        ..LoadConfig::default()
    }
}

fn load(config: &LoadConfig) -> Report {
    run(config, &mut |_| {}).unwrap()
}

#[test]
fn every_kind_of_load_is_counted_as_what_it_is() {
    let server = server(|_| Some(ok()));
    for kind in [Kind::Put, Kind::Get, Kind::Stale, Kind::Mixed { reads_per_write: 1 }, Kind::Txn] {
        let report = load(&config(server.clone(), kind));
        assert!(report.operations > 0 && report.errors.is_empty(), "{report:?}");
        assert_eq!(report.reads > 0, kind.reads());
        assert_eq!(report.writes_acknowledged > 0, !matches!(kind, Kind::Get | Kind::Stale));
        assert_eq!(report.histogram.len(), report.reads + report.writes_acknowledged);
        let latency = report.latency_us.unwrap();
        assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
    }
}

#[test]
fn a_fixed_rate_is_kept() {
    let server = server(|_| Some(ok()));
    let runs = (0..20).map(|_| load(&LoadConfig { rate: Some(100), ..config(server.clone(), Kind::Put) }).operations);
    // It is never above. A machine that is busy when a run ends leaves some out, but not each time.
    let found =
        runs.inspect(|operations| assert!(*operations <= 30, "{operations}")).find(|operations| *operations >= 25);
    assert!(found.is_some(), "it lags behind each time");
}

#[test]
fn acknowledged_refused_and_unknown_are_told_apart() {
    let server = server(|count| match count % 4 {
        0 => Some(ok()),
        1 => Some(problem(503, "no_leader", "not_applied")),
        2 => Some(problem(413, "value_too_large", "not_applied")),
        _ => Some(problem(504, "outcome_unknown", "unknown")),
    });
    let report = load(&config(server, Kind::Put));
    assert!(report.writes_acknowledged > 0 && report.refused > 0 && report.unavailable > 0 && report.unknown > 0);
    assert_eq!(report.errors.keys().collect::<Vec<_>>(), ["no_leader", "outcome_unknown", "value_too_large"]);
    assert_eq!(report.errors.values().sum::<u64>(), report.refused + report.unavailable + report.unknown);
}

#[test]
fn lost_connections_are_counted_and_made_anew() {
    let hangs_up = server(|count| (count % 2 == 0).then(ok));
    let report = load(&config(hangs_up, Kind::Put));
    assert!(report.writes_acknowledged > 1 && report.unknown > 1, "{report:?}");
    assert!(report.errors.contains_key("connection_lost"));
}

#[test]
fn a_dead_endpoint_hands_over_to_a_live_one() {
    let live = server(|_| Some(ok()));
    let dead = {
        // Bound and closed again: nobody listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let report = load(&LoadConfig { endpoints: vec![dead, live], ..config(String::new(), Kind::Get) });
    assert_eq!(report.errors.keys().collect::<Vec<_>>(), ["connect_failed"]);
    assert!(report.reads > 0 && report.unavailable == 2, "{report:?}");
}

#[test]
fn keys_that_cannot_be_written_are_told_before_reading() {
    let server = server(|_| Some(problem(413, "value_too_large", "not_applied")));
    let error = run(&config(server, Kind::Get), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("value_too_large"), "{error}");
}

#[test]
fn progress_is_told_while_it_runs() {
    let server = server(|_| Some(ok()));
    let mut told = Vec::new();
    let config = LoadConfig { duration: PROGRESS_INTERVAL * 3, ..config(server, Kind::Put) };
    run(&config, &mut |progress| told.push(progress.operations)).unwrap();
    assert!(told.len() >= 2 && told.is_sorted() && told[0] > 0, "{told:?}");
}

#[test]
fn nonsense_is_refused() {
    let usage = |config: LoadConfig| matches!(run(&config, &mut |_| {}), Err(Error::Usage(_)));
    let base = LoadConfig::default;
    assert!(usage(LoadConfig { clients: 0, ..base() }));
    assert!(usage(LoadConfig { keys: 0, ..base() }));
    assert!(usage(LoadConfig { rate: Some(0), ..base() }));
    assert!(usage(LoadConfig { duration: Duration::ZERO, ..base() }));
    assert!(usage(LoadConfig { endpoints: Vec::new(), ..base() }));
    assert!(usage(LoadConfig { endpoints: vec!["https://h".into()], ..base() }));
    assert!(usage(LoadConfig { key_prefix: "x".repeat(5000), ..base() }));
}
