//! Calls to other members over persistent TCP connections.
//!
//! Each peer has connections of its own for each [`Channel`]. A call takes one out of the pool, or opens one, and puts it
//! back only after its answer has come whole; so a call that was given up, by its deadline or by dropping its future,
//! takes its connection with it, and no later call can read its answer. Opening one takes two round trips, so where a call
//! has no time for them, the next one goes on with what it has begun: else short calls would never get to a far peer.
//!
//! Guarantees: [`CallError::Unreachable`] means that not one byte of the request was handed to the system;
//! once a byte was, the outcome is an answer or [`CallError::NoAnswer`], and nothing is sent a second time. Connections
//! per peer and channel are at most [`CONNECTIONS_PER_CHANNEL_MAX`]. Leaves out: retries, and who the peer is.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};

use super::frames::{Frames, WriteError};
use super::hello::{self, OURS};
use super::metrics::{LaneMetrics, TransportMetrics};
use super::pipe::TcpPipe;
use super::{BoxFuture, CallError, Channel, FRAME_BYTES_MAX, Pipe, Transport};
use crate::clock::{self, Instant};

/// Connections to one peer for one channel, in use and idle. A call beyond them waits for one to come free.
pub const CONNECTIONS_PER_CHANNEL_MAX: usize = 8;

/// Peers whose connections and figures are kept. Beyond it the one that was silent longest is forgotten.
pub const PEERS_MAX: usize = 256;

/// A connection that idled for longer is not used again. Well below the listener's own limit, so that it is this side
/// that ends an idle connection, never both at once.
const POOL_IDLE_MAX: Duration = Duration::from_secs(60);

/// Time to open a connection, hello included, unless set otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Addresses of one name that are tried, each with an equal share of the time that is left.
const ADDRESSES_MAX: usize = 8;

/// The weight of the newest sample in the smoothed round-trip time, as a divisor: 1/8, as TCP has it (RFC 6298 §2).
const RTT_SMOOTHING: u64 = 8;

/// The members' transport. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct TcpTransport {
    peers: RwLock<HashMap<String, Arc<Peer>>>,
    connect_timeout: Duration,
    metrics: TransportMetrics,
    /// What `Peer`'s points in time are counted from.
    epoch: Instant,
}

/// What is kept of one peer.
#[derive(Debug)]
pub(super) struct Peer {
    lanes: [Lane; Channel::ALL.len()],
    /// Smoothed heartbeat round trip in nanoseconds; 0 until the first.
    rtt_nanos: AtomicU64,
    /// When the last answer came, in nanoseconds since the transport's epoch; 0 if none did.
    last_ok_nanos: AtomicU64,
    round_trip: Gauge<f64, AtomicU64>,
}

/// The connections to one peer for one channel. Idle ones of a peer that is never called again stay until it is forgotten;
/// the peer's listener closes its side of them.
pub(super) struct Lane {
    channel: Channel,
    slots: Arc<Semaphore>,
    /// The most recently used at the end.
    idle: Mutex<Vec<Idle>>,
    /// A connection that a call began to open and had no time to wait for.
    begun: Mutex<Option<Opening>>,
    pub(super) metrics: LaneMetrics,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("channel", &self.channel).finish_non_exhaustive()
    }
}

/// A connection that is being opened.
struct Opening {
    opened: BoxFuture<'static, Result<Frames, String>>,
    since: Instant,
}

/// One that a call waits for; left to the next call if this one is given up.
struct AwaitedOpening<'a> {
    lane: &'a Lane,
    opening: Option<Opening>,
}

impl Drop for AwaitedOpening<'_> {
    fn drop(&mut self) {
        if let Some(opening) = self.opening.take() {
            self.lane.begun.lock().get_or_insert(opening);
        }
    }
}

#[derive(Debug)]
struct Idle {
    frames: Frames,
    since: Instant,
}

/// Why an exchange failed, and whether the peer may have seen the request.
enum Failure {
    NotSent(String),
    Sent(String),
}

impl TcpTransport {
    /// A transport without connections, which counts in `metrics`.
    #[must_use]
    pub fn new(metrics: TransportMetrics) -> Self {
        Self { peers: RwLock::default(), connect_timeout: CONNECT_TIMEOUT, metrics, epoch: clock::now() }
    }

    /// Sets how long opening a connection may take, hello included; 3 s by default. A call's deadline still bounds it.
    #[must_use]
    pub fn with_connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// The smoothed round-trip time of heartbeats to a peer, its work on them included and the opening of connections left
    /// out; `None` before the first answer.
    #[must_use]
    pub fn rtt(&self, peer: &str) -> Option<Duration> {
        let nanos = self.peers.read().get(peer)?.rtt_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// When a peer last answered a call on any channel.
    #[must_use]
    pub fn last_ok(&self, peer: &str) -> Option<Instant> {
        let nanos = self.peers.read().get(peer)?.last_ok_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.epoch + Duration::from_nanos(nanos))
    }

    /// Closes the idle connections to a peer and drops its figures: it is no member any more.
    pub fn forget(&self, peer: &str) {
        self.peers.write().remove(peer);
        self.metrics.forget(peer);
    }

    /// Peers that are kept.
    #[cfg(test)]
    pub(super) fn peers_known(&self) -> usize {
        self.peers.read().len()
    }

    /// The peer's entry, made on the first call.
    fn peer(&self, address: &str) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(address) {
            return Arc::clone(peer);
        }
        let mut peers = self.peers.write();
        if let Some(peer) = peers.get(address) {
            return Arc::clone(peer);
        }
        if peers.len() >= PEERS_MAX {
            let silent = peers.iter().min_by_key(|(_, peer)| peer.last_ok_nanos.load(Ordering::Relaxed));
            if let Some(silent) = silent.map(|(address, _)| address.clone()) {
                peers.remove(&silent);
                self.metrics.forget(&silent);
            }
        }
        let peer = Arc::new(Peer::new(address, &self.metrics));
        peers.insert(address.to_owned(), Arc::clone(&peer));
        peer
    }

    /// One call with its figures.
    async fn measured_call(
        &self,
        address: &str,
        channel: Channel,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let peer = self.peer(address);
        let lane = peer.lane(channel);
        let started = clock::now();
        let mut sent = None;
        let result = self.bounded_call(lane, address, &request, started, deadline, &mut sent).await;
        match &result {
            Ok(answer) => {
                let ended = clock::now();
                peer.answered(channel, ended - sent.unwrap_or(started), ended - self.epoch);
                lane.metrics.answered(request.len(), answer.len(), (ended - started).as_secs_f64());
            }
            Err(error) => lane.metrics.failed(error),
        }
        result
    }

    /// One call, over by its deadline.
    async fn bounded_call(
        &self,
        lane: &Lane,
        address: &str,
        request: &[u8],
        started: Instant,
        deadline: Instant,
        sent: &mut Option<Instant>,
    ) -> Result<Bytes, CallError> {
        if request.len() > FRAME_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: request.len(), limit: FRAME_BYTES_MAX });
        }
        // A timeout polls what it bounds before it looks at the clock: a call that comes too late must not be sent.
        let failure = if deadline <= started {
            Failure::NotSent("its deadline had passed before it was sent".to_owned())
        } else {
            match timeout_at(deadline, self.exchange(lane, address, request, sent)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_elapsed) if sent.is_some() => Failure::Sent("the deadline passed".to_owned()),
                Err(_elapsed) => Failure::NotSent("no connection by the deadline".to_owned()),
            }
        };
        Err(failure.of(address))
    }

    /// Sends a request and reads its answer. `sent` tells since when the peer may have seen some of the request; dropping
    /// the future closes the connection.
    async fn exchange(
        &self,
        lane: &Lane,
        address: &str,
        request: &[u8],
        sent: &mut Option<Instant>,
    ) -> Result<Bytes, Failure> {
        let Ok(_slot) = lane.slots.acquire().await else {
            return Err(Failure::NotSent("the transport is closed".to_owned()));
        };
        let mut idle = lane.take_idle();
        let mut frames = loop {
            let pooled = idle.is_some();
            let mut frames = match idle.take() {
                Some(frames) => frames,
                None => self.connect(lane, address).await.map_err(Failure::NotSent)?,
            };
            *sent = Some(clock::now());
            match frames.write(request).await {
                Ok(()) => break frames,
                // An idle connection that died unnoticed: as nothing left, a fresh one may carry the call.
                Err(WriteError { nothing_sent: true, .. }) if pooled => *sent = None,
                Err(WriteError { nothing_sent: true, source }) => return Err(Failure::NotSent(source.to_string())),
                Err(WriteError { nothing_sent: false, source }) => return Err(Failure::Sent(source.to_string())),
            }
        };
        match frames.next().await {
            Ok(Some(answer)) => {
                lane.put_back(frames);
                Ok(answer)
            }
            Ok(None) => Err(Failure::Sent("it closed the connection without an answer".to_owned())),
            Err(error) => Err(Failure::Sent(error.to_string())),
        }
    }

    /// Opens a connection for a lane, within the connect timeout, or goes on with the opening that an earlier call began.
    async fn connect(&self, lane: &Lane, address: &str) -> Result<Frames, String> {
        let (limit, now) = (self.connect_timeout, clock::now());
        let begun = lane.begun.lock().take().filter(|begun| now.saturating_duration_since(begun.since) < limit);
        let opening = begun.unwrap_or_else(|| {
            let opened = Box::pin(open(address.to_owned(), lane.channel, limit));
            Opening { opened, since: now }
        });
        let mut awaited = AwaitedOpening { lane, opening: Some(opening) };
        let Some(opening) = awaited.opening.as_mut() else { return Err("no connection is being opened".to_owned()) };
        let opened = opening.opened.as_mut().await;
        awaited.opening = None;
        lane.metrics.connects.inc();
        opened
    }

    /// A connection for requests one behind the other.
    async fn open_pipe(&self, address: &str, channel: Channel, deadline: Instant) -> Result<TcpPipe, CallError> {
        let peer = self.peer(address);
        let lane = peer.lane(channel);
        let opened = async {
            let slot = Arc::clone(&lane.slots).acquire_owned().await.map_err(|error| error.to_string())?;
            let frames = match lane.take_idle() {
                Some(frames) => frames,
                None => self.connect(lane, address).await?,
            };
            Ok((slot, frames))
        };
        let opened = timeout_at(deadline, opened).await;
        let opened = opened.unwrap_or_else(|_elapsed| Err("no connection by the deadline".to_owned()));
        let (slot, frames) = opened.map_err(|reason| {
            let error = Failure::NotSent(reason).of(address);
            lane.metrics.failed(&error);
            error
        })?;
        Ok(TcpPipe::new(Arc::clone(&peer), channel, address, frames, slot, self.epoch))
    }
}

impl Failure {
    /// What the caller is told.
    fn of(self, address: &str) -> CallError {
        let peer = address.to_owned();
        match self {
            Self::NotSent(reason) => CallError::Unreachable { peer, reason },
            Self::Sent(reason) => CallError::NoAnswer { peer, reason },
        }
    }
}

/// Opens a connection, hello included.
async fn open(address: String, channel: Channel, limit: Duration) -> Result<Frames, String> {
    let opened = timeout(limit, async {
        let stream = dial(&address, limit).await.map_err(|error| error.to_string())?;
        let mut frames = Frames::new(stream).map_err(|error| error.to_string())?;
        let greeted = frames.write_bare(&hello::greet(OURS, channel)).await;
        // Read even if that failed: a listener that has no room says so without waiting for a hello.
        let answer = frames
            .read_bare()
            .await
            .map_err(|error| format!("no hello from it, is this a peer port? ({})", greeted.err().unwrap_or(error)))?;
        hello::understand(OURS, answer)?;
        Ok(frames)
    });
    opened.await.unwrap_or_else(|_elapsed| Err(format!("no connection within {limit:?}")))
}

/// Resolves a name and connects to the first of its addresses that answers. One that swallows packets must not use up
/// the time of the others.
async fn dial(address: &str, limit: Duration) -> io::Result<TcpStream> {
    let deadline = clock::now() + limit;
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.take(ADDRESSES_MAX).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(clock::now());
        // At most ADDRESSES_MAX, so the cast and the division are exact enough.
        let share = left / (addresses.len() - tried) as u32;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

impl Peer {
    fn new(address: &str, metrics: &TransportMetrics) -> Self {
        Self {
            lanes: Channel::ALL.map(|channel| Lane {
                channel,
                slots: Arc::new(Semaphore::new(CONNECTIONS_PER_CHANNEL_MAX)),
                idle: Mutex::default(),
                begun: Mutex::default(),
                metrics: metrics.lane(address, channel),
            }),
            rtt_nanos: AtomicU64::new(0),
            last_ok_nanos: AtomicU64::new(0),
            round_trip: metrics.round_trip(address),
        }
    }

    /// Its connections for one channel.
    pub(super) fn lane(&self, channel: Channel) -> &Lane {
        &self.lanes[channel.index()]
    }

    /// Keeps the time of an answer and, for a heartbeat, how long it took. Two at once may lose one sample.
    pub(super) fn answered(&self, channel: Channel, took: Duration, at: Duration) {
        self.last_ok_nanos.fetch_max(nanos(at).max(1), Ordering::Relaxed);
        if channel == Channel::Heartbeat {
            let smoothed = match self.rtt_nanos.load(Ordering::Relaxed) {
                0 => nanos(took),
                old => old - old / RTT_SMOOTHING + nanos(took) / RTT_SMOOTHING,
            };
            self.rtt_nanos.store(smoothed.max(1), Ordering::Relaxed);
            self.round_trip.set(Duration::from_nanos(smoothed).as_secs_f64());
        }
    }
}

impl Lane {
    /// The most recently used idle connection that still stands. Those that don't are closed.
    fn take_idle(&self) -> Option<Frames> {
        let now = clock::now();
        let mut idle = self.idle.lock();
        while let Some(Idle { frames, since }) = idle.pop() {
            if now.saturating_duration_since(since) > POOL_IDLE_MAX {
                // All below it idled even longer.
                idle.clear();
                return None;
            }
            if frames.stands() {
                return Some(frames);
            }
        }
        None
    }

    /// Keeps a connection for the next call. Bounded by the slots: a connection is put back before its slot is free.
    pub(super) fn put_back(&self, frames: Frames) {
        // Bytes behind the answer belong to no call: the two sides are out of step.
        if frames.has_unread() {
            return;
        }
        let since = clock::now();
        let mut idle = self.idle.lock();
        idle.retain(|old| since.saturating_duration_since(old.since) <= POOL_IDLE_MAX);
        idle.push(Idle { frames, since });
    }
}

/// A span in nanoseconds; 584 years is for ever.
fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Transport for TcpTransport {
    fn call<'a>(
        &'a self,
        peer: &'a str,
        channel: Channel,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(self.measured_call(peer, channel, request, deadline))
    }

    fn has_pipes(&self) -> bool {
        true
    }

    fn pipe<'a>(
        &'a self,
        peer: &'a str,
        channel: Channel,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Pipe>, CallError>> {
        Box::pin(async move { Ok(Box::new(self.open_pipe(peer, channel, deadline).await?) as Box<dyn Pipe>) })
    }

    fn rtt(&self, peer: &str) -> Option<Duration> {
        Self::rtt(self, peer)
    }

    fn last_ok(&self, peer: &str) -> Option<Instant> {
        Self::last_ok(self, peer)
    }
}
