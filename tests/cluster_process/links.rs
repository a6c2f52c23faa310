//! The network between the members: a relay in front of each, whose links can be long, lossy, or cut one way.
//!
//! All members call one address, so the relay tells callers apart by the process that owns the calling socket. Guarantees:
//! what is sent over a link arrives in its order and as much later as the link is long; opening a connection takes a round
//! trip; what is sent over a cut link is held back, as by a network that drops packets, and arrives after healing; a lost
//! packet is a stall of its connection, as TCP makes it one; a severed connection ends wherever it stands. Leaves out:
//! bandwidth.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::process::{Cluster, Settings, address};

/// The most chunks of one connection that are on their way in one direction.
const CHUNKS_MAX: usize = 4_096;

/// The most bytes of one.
const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// What is wrong with the network.
#[derive(Clone, Debug, Default)]
struct Weather {
    /// Links that are cut, as (from, to): nothing gets through.
    links: Vec<(usize, usize)>,
    /// Connections that are cut, as (caller, callee), both ways; those that the callee makes to the caller are not
    /// concerned.
    calls: Vec<(usize, usize)>,
    /// How long everything takes one way.
    delay: Duration,
    /// Each so many chunks of a connection, one way, the next is held up for so long, and all behind it.
    stalls: Option<(usize, Duration)>,
}

impl Weather {
    fn cuts(&self, link: (usize, usize), call: (usize, usize)) -> bool {
        self.links.contains(&link) || self.calls.contains(&call)
    }
}

/// Relays for all members.
pub(crate) struct Links {
    weather: watch::Sender<Weather>,
    /// Whose connections were severed last, as (caller, callee).
    severed: watch::Sender<(usize, usize)>,
    /// Process ids of the members, as they change.
    pids: Arc<Mutex<Vec<Option<u32>>>>,
    _relays: JoinSet<()>,
}

impl Links {
    /// Three nodes that serve and reach each other through relays.
    pub(crate) async fn start(settings: &Settings) -> (Cluster, Self) {
        Self::start_far(settings, 3, Duration::ZERO).await
    }

    /// So many nodes, with links that take so long one way.
    pub(crate) async fn start_far(settings: &Settings, nodes: usize, delay: Duration) -> (Cluster, Self) {
        let (mut listeners, mut listen, mut advertised) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..nodes {
            let relay = TcpListener::bind(address()).await.unwrap();
            listen.push(address());
            advertised.push(relay.local_addr().unwrap().to_string());
            listeners.push(relay);
        }
        let mut cluster = Cluster::prepare_behind(settings, &listen, &advertised).await;
        let (weather, watched) = watch::channel(Weather { delay, ..Weather::default() });
        let (severed, watched_severed) = watch::channel((usize::MAX, usize::MAX));
        let pids = Arc::new(Mutex::new(vec![None; listen.len()]));
        let mut relays = JoinSet::new();
        for (callee, (listener, target)) in listeners.into_iter().zip(listen).enumerate() {
            let news = News { weather: watched.clone(), severed: watched_severed.clone() };
            relays.spawn(relay(listener, target, callee, pids.clone(), news));
        }
        let links = Self { weather, severed, pids, _relays: relays };
        for node in &mut cluster.nodes {
            node.start();
        }
        links.know(&cluster);
        cluster.ready().await;
        (cluster, links)
    }

    /// Takes note of the processes; to be called after each start of one.
    pub(crate) fn know(&self, cluster: &Cluster) {
        *self.pids.lock().unwrap() = cluster.nodes.iter().map(crate::process::Member::pid).collect();
    }

    /// Cuts these links, as (from, to), and no others.
    pub(crate) fn cut(&self, links: &[(usize, usize)]) {
        self.weather.send_modify(|weather| (weather.links, weather.calls) = (links.to_vec(), Vec::new()));
    }

    /// Cuts what these call each other for, as (caller, callee), and nothing else: a caller goes without answers, but is
    /// still called and answers.
    pub(crate) fn cut_calls(&self, calls: &[(usize, usize)]) {
        self.weather.send_modify(|weather| (weather.links, weather.calls) = (Vec::new(), calls.to_vec()));
    }

    /// Cuts every link between two groups, both ways.
    pub(crate) fn part(&self, one: &[usize], other: &[usize]) {
        let pairs = one.iter().flat_map(|a| other.iter().flat_map(move |b| [(*a, *b), (*b, *a)]));
        self.cut(&pairs.collect::<Vec<_>>());
    }

    /// Breaks the connections that stand from a caller to a callee, in the middle of what they carry. New ones can be made.
    pub(crate) fn sever(&self, caller: usize, callee: usize) {
        self.severed.send_replace((caller, callee));
    }

    /// Cuts a node off all others, both ways.
    pub(crate) fn isolate(&self, node: usize, nodes: usize) {
        self.part(&[node], &(0..nodes).filter(|other| *other != node).collect::<Vec<_>>());
    }

    /// From now on each so many chunks the next one of a connection is held up for so long, with all behind it.
    pub(crate) fn lose(&self, each: usize, stall: Duration) {
        self.weather.send_modify(|weather| weather.stalls = Some((each, stall)));
    }

    /// Mends all cuts and losses; the way stays as long as it is.
    pub(crate) fn heal(&self) {
        self.weather.send_modify(|weather| *weather = Weather { delay: weather.delay, ..Weather::default() });
    }
}

/// What happens to connections.
#[derive(Clone)]
struct News {
    weather: watch::Receiver<Weather>,
    severed: watch::Receiver<(usize, usize)>,
}

impl News {
    /// Returns once the connections of this call are severed from now on.
    async fn severed(&mut self, call: (usize, usize)) {
        self.severed.mark_unchanged();
        while self.severed.changed().await.is_ok() {
            if *self.severed.borrow_and_update() == call {
                return;
            }
        }
    }
}

async fn relay(listener: TcpListener, target: String, callee: usize, pids: Arc<Mutex<Vec<Option<u32>>>>, news: News) {
    let mut connections = JoinSet::new();
    while let Ok((inbound, from)) = listener.accept().await {
        let (target, mut news, pids) = (target.clone(), news.clone(), pids.lock().unwrap().clone());
        let weather = news.weather.clone();
        connections.spawn(async move {
            let to = inbound.local_addr().unwrap();
            let asked_at = Instant::now();
            let caller = tokio::task::spawn_blocking(move || owner(from, to, &pids)).await.unwrap();
            // A caller that has gone already, or one that is no member: nothing to relay.
            let Some(caller) = caller else { return };
            let (call, back) = ((caller, callee), (callee, caller));
            // A connection can be made only where both directions work, and takes a round trip.
            if !open(&mut weather.clone(), call, call).await || !open(&mut weather.clone(), back, call).await {
                return;
            }
            let round_trip = weather.borrow().delay * 2;
            sleep_until(asked_at + round_trip).await;
            let Ok(outbound) = TcpStream::connect(target).await else { return };
            let (_, _) = (inbound.set_nodelay(true), outbound.set_nodelay(true));
            let ((in_read, in_write), (out_read, out_write)) = (inbound.into_split(), outbound.into_split());
            tokio::select! {
                () = pump(in_read, out_write, call, call, weather.clone()) => {}
                () = pump(out_read, in_write, back, call, weather) => {}
                () = news.severed(call) => {}
            }
        });
    }
}

/// Waits until a link is open for a connection; false if the test is over.
async fn open(weather: &mut watch::Receiver<Weather>, link: (usize, usize), call: (usize, usize)) -> bool {
    weather.wait_for(|weather| !weather.cuts(link, call)).await.is_ok()
}

/// Carries one direction of a connection.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: (usize, usize),
    call: (usize, usize),
    mut weather: watch::Receiver<Weather>,
) {
    let (queue, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let seen = weather.clone();
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + seen.borrow().delay;
            if queue.send((due, buffer[..read].to_vec())).await.is_err() {
                break;
            }
        }
        drop(queue);
        std::future::pending::<()>().await;
    };
    let writing = async move {
        let mut count = 0;
        while let Some((due, chunk)) = on_the_way.recv().await {
            sleep_until(due).await;
            count += 1;
            let stall = weather.borrow().stalls.filter(|(each, _)| count % each == 0);
            if let Some((_, stall)) = stall {
                sleep(stall).await;
            }
            if !open(&mut weather, link, call).await || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

/// Which member's process has the socket at the other end of a connection.
fn owner(from: SocketAddr, to: SocketAddr, pids: &[Option<u32>]) -> Option<usize> {
    // "sl local remote state tx:rx tr:when retrnsmt uid timeout inode", addresses in hexadecimal.
    let ends = (format!(":{:04X}", from.port()), format!(":{:04X}", to.port()));
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields.get(1)?.ends_with(&ends.0) && fields.get(2)?.ends_with(&ends.1)).then(|| fields[9].to_owned())
    })?;
    let wanted = format!("socket:[{inode}]");
    pids.iter().position(|pid| {
        let Some(pid) = pid else { return false };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.to_string_lossy() == wanted)
    })
}
