//! The network between the members: a relay in front of each, whose links can be cut one way.
//!
//! All members call one address, so the relay tells callers apart by the process that owns the calling socket. Guarantees:
//! what is sent over a cut link is held back, as by a network that drops packets; after healing it arrives; a severed
//! connection ends wherever it stands. Leaves out: delays and reordering, which TCP would hide.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::process::{Cluster, Settings, address};

/// What is cut.
#[derive(Clone, Debug, Default)]
struct Cuts {
    /// Links, as (from, to): nothing gets through.
    links: Vec<(usize, usize)>,
    /// Connections, as (caller, callee), both ways; those that the callee makes to the caller are not concerned.
    calls: Vec<(usize, usize)>,
}

/// Relays for all members.
pub(crate) struct Links {
    cuts: watch::Sender<Cuts>,
    /// Whose connections were severed last, as (caller, callee).
    severed: watch::Sender<(usize, usize)>,
    /// Process ids of the members, as they change.
    pids: Arc<Mutex<Vec<Option<u32>>>>,
    _relays: JoinSet<()>,
}

impl Links {
    /// Three nodes that serve and reach each other through relays.
    pub(crate) async fn start(settings: &Settings) -> (Cluster, Self) {
        let (mut listeners, mut listen, mut advertised) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let relay = TcpListener::bind(address()).await.unwrap();
            listen.push(address());
            advertised.push(relay.local_addr().unwrap().to_string());
            listeners.push(relay);
        }
        let mut cluster = Cluster::prepare_behind(settings, &listen, &advertised).await;
        let (cuts, watched) = watch::channel(Cuts::default());
        let (severed, watched_severed) = watch::channel((usize::MAX, usize::MAX));
        let pids = Arc::new(Mutex::new(vec![None; listen.len()]));
        let mut relays = JoinSet::new();
        for (callee, (listener, target)) in listeners.into_iter().zip(listen).enumerate() {
            let news = News { cuts: watched.clone(), severed: watched_severed.clone() };
            relays.spawn(relay(listener, target, callee, pids.clone(), news));
        }
        let links = Self { cuts, severed, pids, _relays: relays };
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

    /// Cuts these links, and no others.
    pub(crate) fn cut(&self, links: &[(usize, usize)]) {
        self.cuts.send_replace(Cuts { links: links.to_vec(), calls: Vec::new() });
    }

    /// Cuts what these call each other for, as (caller, callee), and nothing else: a caller goes without answers, but is
    /// still called and answers.
    pub(crate) fn cut_calls(&self, calls: &[(usize, usize)]) {
        self.cuts.send_replace(Cuts { links: Vec::new(), calls: calls.to_vec() });
    }

    /// Breaks the connections that stand from a caller to a callee, in the middle of what they carry. New ones can be made.
    pub(crate) fn sever(&self, caller: usize, callee: usize) {
        self.severed.send_replace((caller, callee));
    }

    /// Cuts a node off all others, both ways.
    pub(crate) fn isolate(&self, node: usize, nodes: usize) {
        let others = (0..nodes).filter(|other| *other != node);
        self.cut(&others.flat_map(|other| [(node, other), (other, node)]).collect::<Vec<_>>());
    }

    pub(crate) fn heal(&self) {
        self.cut(&[]);
    }
}

/// What happens to connections.
#[derive(Clone)]
struct News {
    cuts: watch::Receiver<Cuts>,
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
        let cuts = news.cuts.clone();
        connections.spawn(async move {
            let to = inbound.local_addr().unwrap();
            let caller = tokio::task::spawn_blocking(move || owner(from, to, &pids)).await.unwrap();
            // A caller that has gone already, or one that is no member: nothing to relay.
            let Some(caller) = caller else { return };
            // A connection can be made only where both directions work.
            let call = (caller, callee);
            if !open(&mut cuts.clone(), call, call).await || !open(&mut cuts.clone(), (callee, caller), call).await {
                return;
            }
            let Ok(outbound) = TcpStream::connect(target).await else { return };
            let (_, _) = (inbound.set_nodelay(true), outbound.set_nodelay(true));
            let ((in_read, in_write), (out_read, out_write)) = (inbound.into_split(), outbound.into_split());
            tokio::select! {
                () = pump(in_read, out_write, call, call, cuts.clone()) => {}
                () = pump(out_read, in_write, (callee, caller), call, cuts) => {}
                () = news.severed(call) => {}
            }
        });
    }
}

/// Waits until a link is open for a connection; false if the test is over.
async fn open(cuts: &mut watch::Receiver<Cuts>, link: (usize, usize), call: (usize, usize)) -> bool {
    cuts.wait_for(|cuts| !cuts.links.contains(&link) && !cuts.calls.contains(&call)).await.is_ok()
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: (usize, usize),
    call: (usize, usize),
    mut cuts: watch::Receiver<Cuts>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if !open(&mut cuts, link, call).await || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
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
