//! TCP: the common suite, the life of connections, and what strangers and other versions send.

use std::net::SocketAddr;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::transport::listener::{ListenerLimits, SHUTDOWN_GRACE, serve};
use crate::transport::metrics::TransportMetrics;
use crate::transport::tcp::{CONNECTIONS_PER_CHANNEL_MAX, PEERS_MAX, TcpTransport};

/// A hello of this program for the append channel, and what it is answered.
const HELLO: &[u8; 8] = b"QPER\x01\x01\x02\x00";
const ACCEPTED: &[u8; 8] = b"QPER\x00\x01\x01\x01";

/// A listening member and a caller.
struct Wire {
    address: SocketAddr,
    transport: Arc<TcpTransport>,
    handler: Arc<Scripted>,
    limits: ListenerLimits,
    registry: Registry,
    metrics: TransportMetrics,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl Wire {
    async fn new() -> Self {
        Self::with_limits(ListenerLimits::default()).await
    }

    async fn with_limits(limits: ListenerLimits) -> Self {
        let mut registry = Registry::default();
        let metrics = TransportMetrics::register(&mut registry);
        let mut wire = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            transport: Arc::new(TcpTransport::new(metrics.clone())),
            handler: Arc::default(),
            limits,
            registry,
            metrics,
            shutdown: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        wire.start().await;
        wire
    }

    async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        (self.shutdown, self.tracker) = (CancellationToken::new(), TaskTracker::new());
        let handler = Arc::clone(&self.handler) as Arc<dyn PeerHandler>;
        serve(listener, handler, self.limits, self.metrics.clone(), self.shutdown.clone(), &self.tracker);
    }

    async fn stop(&self) {
        self.shutdown.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// A raw connection.
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What the listener says until it closes to one who sends `bytes`.
    async fn said_to(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        heard(&mut stream).await
    }

    /// The value of one series.
    fn series(&self, line: &str) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    fn connects(&self, channel: Channel) -> u64 {
        let Self { address, .. } = self;
        self.series(&format!("peer_connects_total{{peer=\"{address}\",channel=\"{}\"}}", channel.name()))
    }

    fn refused(&self, reason: &str) -> u64 {
        self.series(&format!("peer_listener_refused_total{{reason=\"{reason}\"}}"))
    }
}

/// All that comes until the other side closes or resets.
async fn heard(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 64];
    while let Ok(count @ 1..) =
        tokio::time::timeout(AMPLE, stream.read(&mut chunk)).await.expect("it is closed in time")
    {
        bytes.extend_from_slice(&chunk[..count]);
    }
    bytes
}

/// A member that is none: does what `act` says with each connection; its address.
async fn impostor<F: Future<Output = ()> + Send + 'static>(act: impl Fn(TcpStream) -> F + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(act(stream));
        }
    });
    address
}

impl Rig for Wire {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport) as Arc<dyn Transport>
    }

    fn address(&self) -> String {
        self.address.to_string()
    }

    fn nobody(&self) -> OwnedFuture<'_, String> {
        Box::pin(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().to_string()
        })
    }

    fn handler(&self) -> Arc<Scripted> {
        Arc::clone(&self.handler)
    }

    fn restart(&mut self) -> OwnedFuture<'_, ()> {
        Box::pin(async {
            self.stop().await;
            self.start().await;
        })
    }
}

conformance!(super::Wire::new());

#[tokio::test]
async fn calls_share_one_connection_while_they_do_not_overlap() {
    let mut wire = Wire::new().await;
    for _ in 0..50 {
        assert_answers(&wire).await;
    }
    assert_eq!(wire.connects(Channel::Append), 1);
    wire.restart().await;
    assert_answers(&wire).await;
    assert_eq!(wire.connects(Channel::Append), 2, "the dead connection was noticed before anything was written to it");
    assert_eq!(wire.connects(Channel::Snapshot), 0);
}

#[tokio::test]
async fn connections_per_peer_and_channel_are_limited() {
    let wire = Wire::new().await;
    let stuck = join_all((0..CONNECTIONS_PER_CHANNEL_MAX).map(|_| ask(&wire, Channel::Append, b"hang")));
    tokio::select! {
        biased;
        _ = stuck => panic!("the stuck calls ended"),
        () = async {
            while wire.handler.begun() < CONNECTIONS_PER_CHANNEL_MAX {
                wire.handler.waiting.notified().await;
            }
            let answer = ask_within(&wire, Channel::Append, b"one more", BRIEF).await;
            assert!(matches!(answer, Err(CallError::Unreachable { .. })), "{answer:?}");
        } => {}
    }
    assert_eq!(wire.connects(Channel::Append), CONNECTIONS_PER_CHANNEL_MAX as u64);
    assert_answers(&wire).await;
}

#[tokio::test]
async fn a_name_is_resolved_at_each_connect() {
    let wire = Wire::new().await;
    let name = format!("localhost:{}", wire.address.port());
    let answer = wire.transport.call(&name, Channel::Append, Bytes::from_static(b"x"), clock::now() + AMPLE).await;
    assert_eq!(answer.unwrap(), "x");
    for bad in ["localhost", "no such name:1", "localhost:99999"] {
        let answer = wire.transport.call(bad, Channel::Append, Bytes::new(), clock::now() + AMPLE).await;
        assert!(matches!(answer, Err(CallError::Unreachable { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn strangers_are_closed_without_harm_to_others() {
    let wire = Wire::new().await;
    assert_answers(&wire).await;
    let cases: [(&[u8], &[u8]); 6] = [
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", listener::HTTP_ANSWER.as_bytes()),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", b""),
        (&[0; 64], b""),
        (&[0xFF; 4096], b""),
        // A frame of 4 GiB, and one just over the limit, behind a good hello.
        (&[&HELLO[..], &[0xFF; 4]].concat(), ACCEPTED),
        (&[&HELLO[..], &(FRAME_BYTES_MAX as u32 + 1).to_be_bytes()].concat(), ACCEPTED),
    ];
    for (sent, said) in cases {
        assert_eq!(wire.said_to(sent).await, said, "to {}", sent[..8].escape_ascii());
        assert_answers(&wire).await;
    }
    assert_eq!((wire.refused("no_hello"), wire.refused("oversized")), (4, 2));
    assert_eq!(wire.connects(Channel::Append), 1, "the caller kept its connection throughout");
}

#[tokio::test]
async fn the_wire_format_is_a_length_and_a_body() {
    let wire = Wire::new().await;
    let mut stream = wire.connect().await;
    // Byte by byte, and two requests one behind the other: how the bytes arrive means nothing.
    for byte in [&HELLO[..], b"\0\0\0\x02hi\0\0\0\0\0\0\0\x03you"].concat() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    let expected = [&ACCEPTED[..], b"\0\0\0\x02hi\0\0\0\0\0\0\0\x03you"].concat();
    assert_eq!(heard(&mut stream).await, expected);
}

#[tokio::test]
async fn members_of_other_versions_are_told_why() {
    let wire = Wire::new().await;
    assert_eq!(wire.said_to(b"QPER\x02\x07\x02\x00").await, b"QPER\x01\x00\x01\x01");
    assert_eq!(wire.said_to(b"QPER\x01\x01\x63\x00").await, b"QPER\x03\x00\x01\x01");
    assert_eq!((wire.refused("version"), wire.refused("channel")), (1, 1));

    let newer = impostor(|mut stream| async move {
        let mut hello = [0; 8];
        stream.read_exact(&mut hello).await.unwrap();
        stream.write_all(b"QPER\x01\x00\x02\x07").await.unwrap();
    });
    let newer = newer.await;
    let answer = wire.transport.call(&newer, Channel::Append, Bytes::new(), clock::now() + AMPLE).await.unwrap_err();
    let why = "it speaks peer protocol versions 2 to 7, this member speaks version 1: upgrade the older of the two";
    assert_eq!(answer.to_string(), format!("can't reach {newer}: {why}"));
}

#[tokio::test]
async fn what_is_no_member_is_unreachable() {
    let transport = TcpTransport::new(TransportMetrics::default()).with_connect_timeout(BRIEF);
    let late = format!("no connection within {BRIEF:?}");
    let silent = impostor(|stream| async move { drop((stream, pending::<()>().await)) }).await;
    let http =
        impostor(|mut stream| async move { stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap() }).await;
    let closing = impostor(|stream| async move { drop(stream) }).await;
    for (address, reason) in [(silent, late.as_str()), (http, "no member's peer port"), (closing, "no hello")] {
        let answer = transport.call(&address, Channel::Append, Bytes::new(), clock::now() + AMPLE).await;
        let Err(CallError::Unreachable { reason: found, .. }) = answer else { panic!("{answer:?}") };
        assert!(found.contains(reason), "{found}");
    }
}

#[tokio::test]
async fn a_request_whose_connection_breaks_is_not_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    // Takes the hello, answers the first request of a connection, and closes at the second.
    let address = impostor(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut buffer = [0; 8];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(ACCEPTED).await.unwrap();
            for answer in [Some(b"\0\0\0\x01y"), None] {
                stream.read_exact(&mut buffer[..5]).await.unwrap();
                seen.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer {
                    stream.write_all(answer).await.unwrap();
                }
            }
        }
    })
    .await;
    let transport = TcpTransport::new(TransportMetrics::default());
    let call = || transport.call(&address, Channel::Append, Bytes::from_static(b"x"), clock::now() + AMPLE);
    assert_eq!(call().await.unwrap(), "y");
    assert!(matches!(call().await, Err(CallError::NoAnswer { .. })));
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    assert_eq!(call().await.unwrap(), "y");
}

#[tokio::test]
async fn a_connection_that_says_more_than_it_was_asked_is_not_used_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    let address = impostor(move |mut stream| {
        let number = seen.fetch_add(1, Ordering::SeqCst) as u8;
        async move {
            let mut buffer = [0; 8];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(ACCEPTED).await.unwrap();
            stream.read_exact(&mut buffer[..5]).await.unwrap();
            stream.write_all(&[0, 0, 0, 1, number, 0, 0, 0, 1, 99]).await.unwrap();
            pending::<()>().await;
        }
    })
    .await;
    let transport = TcpTransport::new(TransportMetrics::default());
    for number in 0..3 {
        let call = transport.call(&address, Channel::Append, Bytes::from_static(b"x"), clock::now() + AMPLE);
        assert_eq!(call.await.unwrap().as_ref(), [number]);
    }
}

#[tokio::test]
async fn every_wait_for_the_other_side_ends() {
    let limits = ListenerLimits {
        hello_timeout: BRIEF,
        first_request_timeout: BRIEF,
        idle_timeout: BRIEF,
        frame_timeout: BRIEF,
        ..ListenerLimits::default()
    };
    let wire = Wire::with_limits(limits).await;
    let request = [&HELLO[..], b"\0\0\0\x01x"].concat();
    let answered = [&ACCEPTED[..], b"\0\0\0\x01x"].concat();
    for (sent, said) in [
        (&b""[..], &b""[..]),
        (&HELLO[..7], b""),
        (HELLO, ACCEPTED),
        (&[&HELLO[..], b"\0\0\0\x05half"].concat(), ACCEPTED),
        (&request, &answered),
    ] {
        assert_eq!(wire.said_to(sent).await, said, "to {}", sent.escape_ascii());
    }
    assert_eq!(wire.refused("timeout"), 5);
    // A pooled connection that the listener gave up is replaced without an error.
    assert_answers(&wire).await;
    while wire.refused("timeout") < 6 {
        tokio::time::sleep(BRIEF / 50).await;
    }
    assert_answers(&wire).await;
}

#[tokio::test]
async fn connections_are_limited_in_total_and_per_address_and_free_again() {
    let limits = ListenerLimits { connections_max: 3, connections_per_ip_max: 2, ..ListenerLimits::default() };
    for (limits, room) in [(limits, 2), (ListenerLimits { connections_per_ip_max: 9, ..limits }, 3)] {
        let wire = Wire::with_limits(limits).await;
        let mut held = Vec::new();
        for _ in 0..room {
            let mut stream = wire.connect().await;
            stream.write_all(HELLO).await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            held.push(stream);
        }
        let answer = ask(&wire, Channel::Append, b"x").await.unwrap_err();
        let why = format!("can't reach {}: it has as many connections as it may", wire.address);
        assert_eq!(answer.to_string(), why);
        assert_eq!(wire.refused("busy"), 1);
        assert_eq!(wire.series("peer_listener_connections"), room);

        let mut gone = held.pop().unwrap();
        gone.shutdown().await.unwrap();
        // The listener closes its side a moment before it gives the place back: ask until it is free.
        heard(&mut gone).await;
        let free = async {
            while ask(&wire, Channel::Append, b"x").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(AMPLE, free).await.expect("a place is free");
    }
}

#[tokio::test]
async fn a_stopping_member_answers_what_it_began_and_waits_for_nothing_else() {
    let wire = Wire::new().await;
    assert_eq!(ask(&wire, Channel::Heartbeat, b"idle after this").await.unwrap(), "idle after this");
    let started = clock::now();
    let (waited, hung, ()) =
        tokio::join!(ask(&wire, Channel::Append, b"wait"), ask(&wire, Channel::Append, b"hang"), async {
            while wire.handler.begun() < 3 {
                wire.handler.waiting.notified().await;
            }
            wire.shutdown.cancel();
            wire.handler.release.notify_one();
            wire.stop().await;
        });
    assert_eq!(waited.unwrap(), "waited");
    assert!(matches!(hung, Err(CallError::NoAnswer { .. })), "{hung:?}");
    assert!(started.elapsed() < 5 * SHUTDOWN_GRACE);
    assert!(matches!(ask(&wire, Channel::Append, b"x").await, Err(CallError::Unreachable { .. })));
}

#[tokio::test]
async fn heartbeats_measure_the_round_trip_and_every_answer_its_time() {
    let wire = Wire::new().await;
    let (transport, address) = (&wire.transport, wire.address());
    assert_eq!((transport.rtt(&address), transport.last_ok(&address)), (None, None));
    let before = clock::now();
    assert_answers(&wire).await;
    assert_eq!(transport.rtt(&address), None);
    let last_ok = transport.last_ok(&address).unwrap();
    assert!(before <= last_ok && last_ok <= clock::now());

    for _ in 0..10 {
        ask(&wire, Channel::Heartbeat, b"beat").await.unwrap();
    }
    let rtt = transport.rtt(&address).unwrap();
    assert!(rtt > Duration::ZERO && rtt < before.elapsed());
    assert!(transport.last_ok(&address).unwrap() > last_ok);
    ask_within(&wire, Channel::Heartbeat, b"hang", BRIEF).await.unwrap_err();
    assert_eq!(transport.rtt(&address), Some(rtt), "a call without an answer has no round trip");

    let lane = format!("{{peer=\"{address}\",channel=\"heartbeat\"}}");
    assert_eq!(wire.series(&format!("peer_calls_total{lane}")), 10);
    assert_eq!(wire.series(&format!("peer_sent_bytes_total{lane}")), 40);
    assert_eq!(wire.series(&format!("peer_call_duration_seconds_count{lane}")), 10);
    let error = lane.replace('}', ",error=\"no_answer\"}");
    assert_eq!(wire.series(&format!("peer_call_errors_total{error}")), 1);

    transport.forget(&address);
    assert_eq!(transport.rtt(&address), None);
    assert_eq!(wire.series(&format!("peer_calls_total{lane}")), 0);
}

/// To a peer that is far away, opening a connection takes longer than a heartbeat may.
#[tokio::test]
async fn calls_too_short_to_open_a_connection_open_it_together() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let address = impostor(move |mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut hello = [0; HELLO.len()];
            stream.read_exact(&mut hello).await.unwrap();
            tokio::time::sleep(BRIEF * 2).await;
            stream.write_all(ACCEPTED).await.unwrap();
            let mut request = [0; 4];
            while stream.read_exact(&mut request).await.is_ok() {
                // An empty request is answered with an empty answer.
                stream.write_all(&request).await.unwrap();
            }
        }
    })
    .await;
    let transport = TcpTransport::new(TransportMetrics::default());
    let (mut failed, mut late) = (0, 0);
    let started = clock::now();
    while let Err(error) = transport.call(&address, Channel::Heartbeat, Bytes::new(), clock::now() + BRIEF).await {
        // Once it is open, an answer may come too late on a busy machine, which costs the connection.
        let unreachable = matches!(error, CallError::Unreachable { .. });
        *(if unreachable { &mut failed } else { &mut late }) += 1;
        assert!(started.elapsed() < AMPLE);
    }
    assert!(failed > 0, "the peer was not far enough away");
    assert!(accepted.load(Ordering::SeqCst) <= 1 + late, "each call began anew");
    let rtt = transport.rtt(&address).unwrap();
    assert!(rtt < BRIEF, "{rtt:?} is the time of opening the connection");
}

#[tokio::test]
async fn a_pipe_sends_ahead_of_the_answers_which_come_in_order() {
    let wire = Wire::new().await;
    let address = wire.address();
    let open = || wire.transport.pipe(&address, Channel::Append, clock::now() + AMPLE);
    let mut pipe = open().await.unwrap();
    for request in ["wait", "1", "2"] {
        pipe.send(Bytes::from_static(request.as_bytes()), clock::now() + AMPLE).await.unwrap();
    }
    wire.handler.waiting.notified().await;
    assert_eq!(wire.handler.begun(), 1, "the other end works on one after the other");
    // Waiting in vain loses nothing.
    let early = tokio::time::timeout(BRIEF, pipe.answer(clock::now() + AMPLE)).await;
    assert!(early.is_err());
    wire.handler.release.notify_one();
    for expected in ["waited", "1", "2"] {
        assert_eq!(pipe.answer(clock::now() + AMPLE).await.unwrap(), expected);
    }
    // With all answered its connection serves others; given up, it does not.
    drop(pipe);
    assert_answers(&wire).await;
    let mut pipe = open().await.unwrap();
    assert_eq!(wire.connects(Channel::Append), 1);
    pipe.send(Bytes::from_static(b"hang"), clock::now() + AMPLE).await.unwrap();
    drop(pipe);
    assert_answers(&wire).await;
    assert_eq!(wire.connects(Channel::Append), 2);
}

#[tokio::test]
async fn a_pipe_ends_with_the_first_answer_that_does_not_come() {
    let wire = Wire::new().await;
    for (request, limit) in [(&b"hang"[..], BRIEF), (b"refuse", AMPLE)] {
        let mut pipe = wire.transport.pipe(&wire.address(), Channel::Append, clock::now() + AMPLE).await.unwrap();
        pipe.send(Bytes::from_static(request), clock::now() + AMPLE).await.unwrap();
        pipe.send(Bytes::from_static(b"next"), clock::now() + AMPLE).await.unwrap();
        let answer = pipe.answer(clock::now() + limit).await;
        assert!(matches!(answer, Err(CallError::NoAnswer { .. })), "{answer:?}");
        assert!(pipe.answer(clock::now() + AMPLE).await.is_err(), "nobody can tell whose the next one is");
        assert!(pipe.send(Bytes::from_static(b"more"), clock::now() + AMPLE).await.is_err());
    }
    let nobody = wire.nobody().await;
    let pipe = wire.transport.pipe(&nobody, Channel::Append, clock::now() + AMPLE).await;
    assert!(matches!(pipe, Err(CallError::Unreachable { .. })));
}

#[tokio::test]
async fn the_peer_that_was_silent_longest_is_forgotten_first() {
    let wire = Wire::new().await;
    assert_answers(&wire).await;
    for number in 0..=PEERS_MAX {
        let nobody = format!("not an address {number}");
        wire.transport.call(&nobody, Channel::Control, Bytes::new(), clock::now() + AMPLE).await.unwrap_err();
    }
    assert!(wire.transport.last_ok(&wire.address()).is_some(), "the one that answers is kept");
    assert_eq!(wire.transport.peers_known(), PEERS_MAX);
}
