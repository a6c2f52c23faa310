//! The loop under clients that mean no good, on real sockets, with a handler that reads the body and tells its length.

use http::StatusCode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::super::admission::Admission;
use super::super::body;
use super::super::problem::Failure;
use super::*;
use crate::clock;

/// The largest body of the test handler, in bytes.
const BODY_MAX: usize = 100_000;

/// Longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    metrics: Arc<ApiMetrics>,
}

fn quick() -> ApiConfig {
    ApiConfig {
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(900),
        body_timeout: Duration::from_millis(300),
        drain_timeout: Duration::from_secs(2),
        ..ApiConfig::default()
    }
}

async fn start(config: ApiConfig) -> Server {
    let admission = Arc::new(Admission::new(&config));
    let body_timeout = config.body_timeout;
    let handler = move |request: Request| {
        let admission = Arc::clone(&admission);
        async move {
            let path = request.uri().path().to_owned();
            match path.as_str() {
                "/hang" => std::future::pending().await,
                "/large" => return Response::new(Body::from(vec![b'x'; 64 * 1024 * 1024])),
                _ => {}
            }
            match body::read(request.into_body(), false, BODY_MAX, body_timeout, &admission).await {
                Ok(held) => Response::new(Body::from(format!("{path} {}", held.bytes.len()))),
                Err(error) => {
                    let failure = Failure::from(error);
                    let mut response = Response::new(Body::from(failure.to_string()));
                    *response.status_mut() = failure.class().status;
                    response
                }
            }
        }
    };
    start_with(config, handler).await
}

async fn start_with<H, F>(config: ApiConfig, handler: H) -> Server
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let metrics = Arc::new(ApiMetrics::register(&mut Registry::default()));
    let running = tokio::spawn({
        let (shutdown, metrics) = (shutdown.clone(), Arc::clone(&metrics));
        async move { run(listener, move |request, _| handler(request), &config, &metrics, shutdown).await }
    });
    Server { address, shutdown, running, metrics }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // A server that refuses may close before everything is sent; what it answered is what counts.
        let _ = stream.write_all(bytes).await;
        to_end(&mut stream).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("the server ends").unwrap();
    }
}

async fn to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    let reading = async {
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            answer.extend_from_slice(&piece[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<u16> {
    answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

#[tokio::test]
async fn a_request_is_answered_and_its_connection_kept() {
    let server = start(quick()).await;
    let answer = server
        .exchange(
            b"PUT /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc\
            GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(statuses(&answer), [200, 200]);
    assert!(answer.contains("/a 3") && answer.contains("/b 0"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(quick()).await;
    let mut requests = String::new();
    for number in 0..100 {
        requests.push_str(&format!("GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n"));
    }
    requests.push_str("GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = server.exchange(requests.as_bytes()).await;
    assert_eq!(statuses(&answer), [200; 101]);
    let order: Vec<usize> = (0..100).map(|number| answer.find(&format!("\r\n\r\n/{number} 0")).unwrap()).collect();
    assert!(order.is_sorted());
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_closed_its_side_still_gets_the_answer() {
    let server = start(quick()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /half HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(to_end(&mut stream).await.contains("/half 0"));
    server.stop().await;
}

#[tokio::test]
async fn head_tells_the_length_without_the_body() {
    let server = start(quick()).await;
    let answer = server.exchange(b"HEAD /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("content-length: 67108864\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn headers_that_dribble_in_are_cut_off() {
    let server = start(quick()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let began = clock::now();
    let (mut reader, mut writer) = stream.into_split();
    let dribble = tokio::spawn(async move {
        // Each byte is progress, yet none of them gains the head more time.
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        while writer.write_all(b"x").await.is_ok() {
            beat.tick().await;
        }
    });
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the connection is closed");
    assert!(clock::now() - began < PATIENCE);
    dribble.abort();
    assert_eq!(server.metrics.timed_out.get(), 1);
    server.stop().await;
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let server = start(quick()).await;
    let mut fresh = server.connect().await;
    assert_eq!(to_end(&mut fresh).await, "");
    let mut used = server.connect().await;
    used.write_all(b"GET /once HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(statuses(&to_end(&mut used).await), [200]);
    assert_eq!(server.metrics.timed_out.get(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_closed() {
    let server = start(quick()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let closing = async {
        while server.metrics.timed_out.get() == 0 || server.metrics.connections.get() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, closing).await.expect("the connection is closed");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_dribbles_in_is_refused() {
    let server = start(quick()).await;
    let answer = server.exchange(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    assert_eq!(statuses(&answer), [StatusCode::REQUEST_TIMEOUT.as_u16()]);
    assert!(answer.contains("did not arrive within 0.3 s"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused() {
    let server = start(quick()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(statuses(&to_end(&mut stream).await), [400]);
    server.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whichever_way_it_is_sent() {
    let server = start(quick()).await;
    let sent = vec![b'x'; 20 * BODY_MAX];
    let head = format!("PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", sent.len());
    let answer = server.exchange(&[head.as_bytes(), &sent].concat()).await;
    assert_eq!(statuses(&answer), [413], "declared");

    let chunked = b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut request = chunked.to_vec();
    for piece in sent.chunks(10_000) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(statuses(&server.exchange(&request).await), [413], "chunked");

    let lie = b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99999999999999\r\n\r\nx";
    assert_eq!(statuses(&server.exchange(lie).await), [413], "declared, but never sent");

    let exact = format!("PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {BODY_MAX}\r\n\r\n");
    let answer = server.exchange(&[exact.as_bytes(), &sent[..BODY_MAX]].concat()).await;
    assert!(answer.ends_with(&format!("/ {BODY_MAX}")), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn bodies_over_the_byte_budget_are_refused_for_now() {
    let server = start(ApiConfig { in_flight_bytes_max: 50, ..quick() }).await;
    let request = b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 51\r\n\r\n";
    assert_eq!(statuses(&server.exchange(&[&request[..], &[b'x'; 51]].concat()).await), [429]);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_closed() {
    let server = start(quick()).await;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX * PARSER_FACTOR + 1));
    let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX * PARSER_FACTOR));
    let cases: [(&[u8], &[u16]); 8] = [
        (b"\x16\x03\x01\x02\x00\x01\x00", &[400]),
        (b"hello\r\n\r\n", &[400]),
        (b"GET / HTTP/9.9\r\n\r\n", &[400]),
        (b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", &[400]),
        (b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", &[400]),
        (b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n", &[400]),
        (many.as_bytes(), &[431]),
        (long.as_bytes(), &[431]),
    ];
    for (request, expected) in cases {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        assert_eq!(statuses(&server.exchange(request).await), expected, "{shown}");
    }
    server.stop().await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_told_so() {
    for config in [ApiConfig { connections_max: 2, ..quick() }, ApiConfig { connections_per_ip_max: 2, ..quick() }] {
        let config = ApiConfig { header_timeout: PATIENCE, idle_timeout: PATIENCE, spare_connections: 0, ..config };
        let server = start(config).await;
        let mut held = [server.connect().await, server.connect().await];
        for stream in &mut held {
            stream.write_all(b"GET /in HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
        }
        let answer = to_end(&mut server.connect().await).await;
        assert_eq!(statuses(&answer), [503]);
        let (head, document) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", document.len())), "{head} {}", document.len());
        let problem: super::super::model::Problem = serde_json::from_str(document).unwrap();
        assert_eq!(problem.code, super::super::model::Code::TooManyRequests);
        // A place that was left is taken again.
        drop(held);
        let retried = async {
            loop {
                let answer = server.exchange(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
                if statuses(&answer) == [200] {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, retried).await.expect("a place becomes free");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_stop_waits_for_requests_at_work_and_cuts_off_what_hangs() {
    let release = CancellationToken::new();
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    let handler = {
        let (release, begun) = (release.clone(), Arc::clone(&begun));
        move |_: Request| {
            let (release, begun) = (release.clone(), Arc::clone(&begun));
            async move {
                begun.add_permits(1);
                release.cancelled().await;
                Response::new(Body::from("done"))
            }
        }
    };
    let server = start_with(quick(), handler).await;
    let mut at_work = server.connect().await;
    at_work.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    begun.acquire().await.unwrap().forget();
    server.shutdown.cancel();
    release.cancel();
    let answer = to_end(&mut at_work).await;
    assert!(answer.ends_with("done"), "{answer}");
    server.stop().await;

    let server = start(quick()).await;
    let mut hanging = server.connect().await;
    hanging.write_all(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    while server.metrics.connections.get() == 0 {
        tokio::task::yield_now().await;
    }
    server.stop().await;
    assert_eq!(to_end(&mut hanging).await, "");
}
