//! What a running node does with more than it has room for: which requests it refuses, how it tells, what it goes on with.
//!
//! Method: limits are set low, and held full by requests that can't end yet; what is told by `/metrics` says when they are.
//! Leaves out: rates and times under a real load; `scripts/overload` measures those.

#[path = "support/http.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod http;
mod support;

use std::time::Duration;

use quorate::api::model::{OutcomeKind, Problem};
use quorate::raft::Timers;
use quorate::state::{Principal, Txn, TxnOp};
use quorate::types::{Key, LeaseId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::{Headers, Http, header, problem_of};
use crate::support::PATIENCE;

const MIB: usize = 1024 * 1024;

/// What is answered whatever the load.
const SPARED: [&str; 5] = ["/healthz", "/metrics", "/v1/status", "/v1/cluster", "/openapi.json"];

/// The value of one series of a node; 0 while it is not told.
async fn series(http: &Http, name: &str) -> f64 {
    let text = http.get("/metrics").await.text().await.unwrap();
    let value = |line: &str| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '))?.parse().ok();
    text.lines().find_map(value).unwrap_or(0.0)
}

/// Waits until a series has come this far.
async fn reached(http: &Http, name: &str, least: f64) {
    let coming = async {
        while series(http, name).await < least {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, coming).await.unwrap_or_else(|_| panic!("{name} does not reach {least}"));
}

/// One connection, kept over several requests.
struct Wire(TcpStream);

impl Wire {
    async fn open(http: &Http) -> Self {
        Self(TcpStream::connect(http.url.trim_start_matches("http://")).await.unwrap())
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads one answer: its status, its head and its body.
    async fn answer(&mut self) -> (u16, String, Vec<u8>) {
        let reading = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.expect("an answer comes before the connection ends"));
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.split("content-length: ").nth(1).expect("an answer has a length");
            let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
            self.0.read_exact(&mut body).await.unwrap();
            (head[9..12].parse().unwrap(), head, body)
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("an answer comes")
    }

    /// Reads a refusal, which must say that nothing was changed and when to come back.
    async fn refusal(&mut self) {
        let (status, head, body) = self.answer().await;
        let shown = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, 429, "{head}{shown}");
        assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
        let problem: Problem = serde_json::from_str(&shown).unwrap();
        assert_eq!(problem.code.as_str(), "too_many_requests");
        assert!(problem.retryable && problem.outcome == OutcomeKind::NotApplied, "{shown}");
    }
}

fn put(key: &str, headers: &str, length: usize) -> String {
    format!("PUT /v1/kv/{key} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n")
}

async fn refused(
    http: &Http,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: impl Into<reqwest::Body>,
) -> Problem {
    let response = http.send(method, path, headers, body).await;
    assert_eq!(header(response.headers(), "retry-after"), "1", "{method} {path}");
    problem_of(response, 429, "too_many_requests", path).await
}

async fn all_spared_answer(http: &Http) {
    for path in SPARED {
        assert_eq!(http.get(path).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn one_request_too_many_is_refused_on_a_connection_that_stays() {
    let node = support::single_node_with(|api| api.in_flight_max = 1).await;
    let http = Http::new(&node.url);
    http.put("k", "v").await;
    let mut waiting = Wire::open(&http).await;
    // It waits for a revision that comes past the edge, further down.
    let next = http.revision().await + 1;
    waiting.send(format!("GET /v1/kv/k?min_revision={next} HTTP/1.1\r\nhost: x\r\nquorate-timeout: 60s\r\n\r\n")).await;
    // The probe itself is one of the two.
    reached(&http, "quorate_http_requests_in_flight", 2.0).await;

    let mut crowd = Wire::open(&http).await;
    for _ in 0..3 {
        crowd.send(put("other", "", 5) + "value").await;
        crowd.refusal().await;
        crowd.send("GET /v1/kv/k HTTP/1.1\r\nhost: x\r\n\r\n").await;
        crowd.refusal().await;
    }
    all_spared_answer(&http).await;
    assert_eq!(http.get("/readyz").await.status(), 200);
    assert_eq!(series(&http, "quorate_http_requests_refused_total{reason=\"requests\"}").await, 6.0);

    let written = TxnOp::Put { key: Key::new("k").unwrap(), value: "w".into(), lease: LeaseId::ZERO };
    let written = Txn { success: vec![written], ..Txn::default() };
    node.node.write(written, Principal::Anonymous, None, quorate::clock::now() + PATIENCE).await.unwrap();
    assert_eq!(waiting.answer().await.0, 200);
    crowd.send(put("k", "", 5) + "value").await;
    assert_eq!(crowd.answer().await.0, 200, "the place is free again");
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_are_refused_before_they_are_read() {
    let node = support::single_node_with(|api| api.in_flight_bytes_max = 16 * MIB).await;
    let http = Http::new(&node.url);
    let value = vec![b'x'; 4 * MIB];
    let mut uploads = Vec::new();
    for upload in 0..4 {
        let mut wire = Wire::open(&http).await;
        wire.send(put(&format!("large/{upload}"), "", value.len())).await;
        // All but the last byte: the memory is taken, and the request can't end.
        wire.send(&value[1..]).await;
        uploads.push(wire);
    }
    let bodies = "quorate_http_in_flight_bytes{kind=\"bodies\"}";
    reached(&http, bodies, 16.0 * MIB as f64).await;
    assert_eq!(series(&http, bodies).await, 16.0 * MIB as f64, "bounded, and counted");

    let mut crowd = Wire::open(&http).await;
    crowd.send(put("k", "expect: 100-continue\r\n", MIB)).await;
    crowd.refusal().await;
    let mut crowd = Wire::open(&http).await;
    for _ in 0..2 {
        crowd.send(put("k", "", MIB)).await;
        crowd.send(vec![b'y'; MIB]).await;
        crowd.refusal().await;
        // Nobody knows how long this one gets.
        crowd.send("PUT /v1/kv/k HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
        crowd.refusal().await;
    }
    let told = refused(&http, "PUT", "/v1/kv/k", &[], vec![b'y'; MIB]).await.detail;
    assert!(told.contains("bodies of requests"), "{told}");
    all_spared_answer(&http).await;
    assert!(series(&http, "quorate_http_requests_refused_total{reason=\"body_bytes\"}").await >= 6.0);
    assert_eq!(http.get("/v1/kv/k").await.status(), 404, "nothing was changed by what was refused");

    for (number, mut wire) in uploads.into_iter().enumerate() {
        wire.send("x").await;
        assert_eq!(wire.answer().await.0, 201, "{number}");
    }
    assert_eq!(series(&http, bodies).await, 0.0);
    http.put("k", vec![b'y'; MIB]).await;
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_in_memory() {
    let node = support::single_node_with(|api| api.answer_bytes_max = MIB).await;
    let http = Http::new(&node.url);
    http.put("large", vec![b'x'; 4 * MIB]).await;
    http.put("small", "v").await;
    let mut idle = Wire::open(&http).await;
    // More than the buffers of the system hold, so that an answer stays behind.
    let requests = 16;
    idle.send("GET /v1/kv/large HTTP/1.1\r\nhost: x\r\n\r\n".repeat(requests)).await;
    let answers = "quorate_http_in_flight_bytes{kind=\"answers\"}";
    let stuck = async {
        let mut before = -1.0;
        loop {
            let sent =
                series(&http, "quorate_http_requests_total{route=\"/v1/kv/{key}\",method=\"GET\",status=\"200\"}")
                    .await;
            if sent == before && series(&http, answers).await > 0.0 {
                return;
            }
            before = sent;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stuck).await.expect("the reader that does not read is waited for");
    assert_eq!(series(&http, answers).await, 4.0 * MIB as f64, "one alone may be larger than the limit");

    assert!(refused(&http, "GET", "/v1/kv/large", &[], "").await.detail.contains("answers"));
    refused(&http, "GET", "/v1/kv?prefix=l", &[], "").await;
    let txn = r#"{"success":[{"put":{"key":"new","value":"v"}},{"get":{"key":"large"}}]}"#;
    refused(&http, "POST", "/v1/txn", &[], txn).await;
    assert_eq!(http.get("/v1/kv/new").await.status(), 404, "nothing was changed by what was refused");
    assert_eq!(http.get("/v1/kv/small").await.status(), 200);
    assert_eq!(http.send("HEAD", "/v1/kv/large", &[], "").await.status(), 200);
    all_spared_answer(&http).await;

    for number in 0..requests {
        let (status, _, body) = idle.answer().await;
        assert_eq!((status, body.len()), (200, 4 * MIB), "{number}");
    }
    assert_eq!(series(&http, answers).await, 0.0);
    assert_eq!(http.send("POST", "/v1/txn", &[], txn).await.status(), 200);
}

#[tokio::test]
async fn writes_that_would_wait_too_long_are_refused_at_once() {
    // The leader takes writes for a lease without a quorum: long enough to send it one.
    let timers =
        Timers { election_min: Duration::from_secs(10), election_max: Duration::from_secs(20), ..Timers::default() };
    let mut cluster = support::cluster_with(3, timers).await;
    let leader = cluster.leader().await;
    for other in (0..3).filter(|other| *other != leader) {
        cluster.stop(other).await;
    }
    let http = Http::new(&cluster.nodes[leader].url);
    let limit = series(&http, "quorate_http_write_bytes_limit").await;
    // Without a quorum it stays under way for as long as it is waited for.
    let mut stuck = Wire::open(&http).await;
    let size = limit as usize / 4 * 3;
    stuck.send(put("a", "quorate-timeout: 60s\r\n", size)).await;
    stuck.send(vec![b'x'; size]).await;
    reached(&http, "quorate_http_in_flight_bytes{kind=\"writes\"}", size as f64).await;

    let began = quorate::clock::now();
    let mut crowd = Wire::open(&http).await;
    for _ in 0..3 {
        crowd.send(put("b", "quorate-timeout: 60s\r\n", size)).await;
        crowd.send(vec![b'y'; size]).await;
        crowd.refusal().await;
    }
    let told = refused(&http, "PUT", "/v1/kv/b", &[], vec![b'y'; size]).await.detail;
    assert!(told.contains("more is being written"), "{told}");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    assert_eq!(series(&http, "quorate_http_requests_refused_total{reason=\"write_time\"}").await, 4.0);
    assert_eq!(http.get("/v1/kv/b?consistency=stale").await.status(), 404);
    assert_eq!(http.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn a_crowd_of_connections_does_not_shut_out_who_asks_how_the_node_does() {
    let node = support::single_node_with(|api| api.connections_per_ip_max = 2).await;
    let http = Http::new(&node.url);
    let mut held = [Wire::open(&http).await, Wire::open(&http).await];
    for wire in &mut held {
        wire.send("GET /v1/kv/k HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(wire.answer().await.0, 404);
    }
    for path in SPARED {
        let response = http.get(path).await;
        assert_eq!(
            (response.status().as_u16(), header(response.headers(), "connection")),
            (200, "close".to_owned()),
            "{path}"
        );
    }
    for (method, path) in [("GET", "/v1/kv/k"), ("PUT", "/v1/kv/k"), ("GET", "/v1/kv"), ("POST", "/v1/txn")] {
        let told = refused(&http, method, path, &[], "").await.detail;
        assert!(told.contains("connections"), "{told}");
    }
    assert_eq!(series(&http, "quorate_http_requests_refused_total{reason=\"connections\"}").await, 4.0);
    for wire in &mut held {
        wire.send(put("k", "", 5) + "value").await;
        assert!([200, 201].contains(&wire.answer().await.0), "who has a place keeps it");
    }
}
