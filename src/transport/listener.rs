//! The peer port: takes connections of other members and has their requests answered, one after the other on each.
//!
//! Guarantees: what does not begin with a valid hello is closed after eight bytes; every wait for the other side has a
//! limit; connections are limited in total and per remote address, and what is over the limit is told so and closed
//! without a task of its own. After `shutdown` no request is begun and those under way have [`SHUTDOWN_GRACE`] to end.
//! Leaves out: who calls; a valid hello proves nothing about it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::frames::{Frames, Room};
use super::hello::{self, OURS, Refusal};
use super::metrics::TransportMetrics;
use super::{Channel, FRAME_BYTES_MAX, PeerHandler};

/// What a request that is under way at shutdown gets to end and to have its answer sent.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// The pause after the system could not give a connection (no descriptors left, as a rule), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client of the HTTP API is told that has come to the wrong port.
pub(super) const HTTP_ANSWER: &str = "HTTP/1.1 421 Misdirected Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 100\r\nconnection: close\r\n\r\n\
    this is the port for members of the cluster; clients are served on the client port, 7480 by default\n";

/// What the peer port allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Connections in total.
    pub connections_max: usize,
    /// Connections from one remote address. Members of one cluster on one machine share an address.
    pub connections_per_ip_max: usize,
    /// Bytes of large requests that are read or worked on, of all connections together; at least one frame. A request beyond
    /// it waits, for no longer than the time of a frame. Small ones, heartbeats among them, don't count and never wait.
    pub request_bytes_max: usize,
    /// From the connection to a whole hello.
    pub hello_timeout: Duration,
    /// From the hello to the first byte of the first request: a caller opens a connection when it has one.
    pub first_request_timeout: Duration,
    /// From one request's answer to the first byte of the next request. Longer than a caller keeps an idle connection.
    pub idle_timeout: Duration,
    /// From the first byte of a request to its last, and the same for an answer.
    pub frame_timeout: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            connections_per_ip_max: 256,
            request_bytes_max: 256 * 1024 * 1024,
            hello_timeout: Duration::from_secs(5),
            first_request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            frame_timeout: Duration::from_secs(60),
        }
    }
}

/// Answers peers on `listener` until `shutdown`. Returns at once; `tracker` waits for the accept loop and the
/// connections, which end at most [`SHUTDOWN_GRACE`] after `shutdown`.
pub fn serve(
    listener: TcpListener,
    handler: Arc<dyn PeerHandler>,
    limits: ListenerLimits,
    metrics: TransportMetrics,
    shutdown: CancellationToken,
    tracker: &TaskTracker,
) {
    let room = Room::new(limits.request_bytes_max, metrics.frame_bytes.clone());
    let shared = Arc::new(Shared { handler, limits, metrics, shutdown, held: Mutex::default(), room });
    let connections = tracker.clone();
    tracker.spawn(async move {
        let stopped = shared.shutdown.clone();
        let mut stopped = pin!(stopped.cancelled());
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stopped => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => shared.admit(stream, from, &connections),
                // The one connection is gone, the listener is well.
                Err(error) if of_one_connection(error.kind()) => debug!(%error, "a peer gave up its connection"),
                Err(error) => {
                    warn!(%error, "can't take a peer's connection");
                    tokio::select! { () = &mut stopped => return, () = sleep(ACCEPT_PAUSE) => {} }
                }
            }
        }
    });
}

/// What all connections of a listener share.
struct Shared {
    handler: Arc<dyn PeerHandler>,
    limits: ListenerLimits,
    metrics: TransportMetrics,
    shutdown: CancellationToken,
    held: Mutex<Held>,
    room: Room,
}

/// How many connections are open.
#[derive(Default)]
struct Held {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// One connection's place under the limits, given back on drop.
struct Place {
    shared: Arc<Shared>,
    ip: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.shared.held.lock();
        held.total -= 1;
        if let Some(count) = held.by_ip.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                held.by_ip.remove(&self.ip);
            }
        }
        self.shared.metrics.connection_closed();
    }
}

impl Shared {
    /// Gives a connection a task if there is room for it.
    fn admit(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, tracker: &TaskTracker) {
        // An IPv4 address is one address, however the listening socket writes it.
        let Some(place) = self.take_place(from.ip().to_canonical()) else {
            self.metrics.connection_refused(Refusal::Busy.name());
            debug!(%from, "too many connections of peers: closed one");
            // Eight bytes fit into a fresh socket's buffer; if they don't, the close has to say it.
            let _ = stream.try_write(&hello::answer(OURS, Err(Refusal::Busy)));
            return;
        };
        tracker.spawn(async move {
            let shared = &place.shared;
            if let Err(end) = shared.converse(stream).await {
                if let Some(reason) = end.counted_as() {
                    shared.metrics.connection_refused(reason);
                }
                debug!(%from, %end, "closed a peer's connection");
            }
        });
    }

    fn take_place(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let mut held = self.held.lock();
        let Held { total, by_ip } = &mut *held;
        if *total >= self.limits.connections_max {
            return None;
        }
        let from_ip = by_ip.entry(ip).or_insert(0);
        if *from_ip >= self.limits.connections_per_ip_max {
            // With a limit of 0 the entry was made just now; it must not stay.
            if *from_ip == 0 {
                by_ip.remove(&ip);
            }
            return None;
        }
        *from_ip += 1;
        *total += 1;
        self.metrics.connection_opened();
        Some(Place { shared: Arc::clone(self), ip })
    }

    /// One connection from hello to end.
    async fn converse(&self, stream: TcpStream) -> Result<(), End> {
        // One future each for the whole connection: a request costs a poll of them, not a registration.
        let mut stopping = pin!(self.shutdown.cancelled());
        let mut frames = Frames::new(stream)?.within(self.room.clone());
        let channel = tokio::select! {
            biased;
            () = &mut stopping => return Ok(()),
            channel = within(self.limits.hello_timeout, "hello", self.meet(&mut frames)) => channel?,
        };
        let mut graced = pin!(async {
            self.shutdown.cancelled().await;
            sleep(SHUTDOWN_GRACE).await;
        });
        let requests = self.metrics.requests(channel);
        let mut patience = self.limits.first_request_timeout;
        loop {
            let request = tokio::select! {
                biased;
                () = &mut stopping => return Ok(()),
                request = self.next_request(&mut frames, patience) => request?,
            };
            let Some(request) = request else { return Ok(()) };
            let answered = async {
                let answer = self.handler.handle(channel, request).await.ok_or(End::NotUnderstood)?;
                if answer.len() > FRAME_BYTES_MAX {
                    warn!(channel = channel.name(), bytes = answer.len(), "an answer is over the frame limit");
                    return Err(End::AnswerTooLarge);
                }
                let write = async { frames.write(&answer).await.map_err(|error| error.source) };
                within(self.limits.frame_timeout, "reading of an answer", async { Ok(write.await?) }).await
            };
            tokio::select! {
                biased;
                done = answered => done?,
                () = &mut graced => return Err(End::Stopped),
            }
            requests.inc();
            patience = self.limits.idle_timeout;
        }
    }

    /// Hears the hello and answers it.
    async fn meet(&self, frames: &mut Frames) -> Result<Channel, End> {
        let heard = frames.read_bare().await?;
        let Some(verdict) = hello::judge(OURS, heard) else {
            if hello::is_http(heard) {
                // Somebody mixed up the two ports. The answer may be lost in the reset that unread bytes cause.
                let _ = frames.write_bare(HTTP_ANSWER.as_bytes()).await;
                frames.part().await;
            }
            return Err(End::NoHello);
        };
        frames.write_bare(&hello::answer(OURS, verdict.map(|(_, version)| version))).await?;
        verdict.map(|(channel, _)| channel).map_err(|refusal| {
            let from = frames.peer_addr().map_or_else(|error| error.to_string(), |from| from.to_string());
            info!(from, reason = refusal.name(), oldest = heard[4], newest = heard[5], "refused a peer's connection");
            End::Refused(refusal)
        })
    }

    /// Waits for a request, then reads it.
    async fn next_request(&self, frames: &mut Frames, patience: Duration) -> Result<Option<bytes::Bytes>, End> {
        if !within(patience, "request", async { Ok(frames.begun().await?) }).await? {
            return Ok(None);
        }
        within(self.limits.frame_timeout, "rest of a request", async { Ok(frames.next().await?) }).await
    }
}

/// Whether a failed accept is about the connection and not about the listener or the system.
fn of_one_connection(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(kind, ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Bounds a wait for the other side.
async fn within<T>(limit: Duration, what: &'static str, wait: impl Future<Output = Result<T, End>>) -> Result<T, End> {
    timeout(limit, wait).await.unwrap_or(Err(End::Late(what)))
}

/// Why a connection ended before its other side closed it.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it is no member: no hello")]
    NoHello,
    #[error("refused for its {}", .0.name())]
    Refused(Refusal),
    #[error("no {0} in time")]
    Late(&'static str),
    #[error("its request was no message of this protocol")]
    NotUnderstood,
    #[error("the answer is over the frame limit")]
    AnswerTooLarge,
    #[error("this member stopped before the answer")]
    Stopped,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl End {
    /// The `reason` label for what the other side is to blame for.
    fn counted_as(&self) -> Option<&'static str> {
        match self {
            Self::NoHello => Some("no_hello"),
            Self::Refused(refusal) => Some(refusal.name()),
            Self::Late(_) => Some("timeout"),
            Self::NotUnderstood => Some("not_understood"),
            Self::Io(error) if error.kind() == io::ErrorKind::InvalidData => Some("oversized"),
            Self::AnswerTooLarge | Self::Stopped | Self::Io(_) => None,
        }
    }
}
