//! One whole member: its listeners, its node, its HTTP edge and its figures, started and stopped together.
//!
//! Guarantees: nothing is written before both ports are ours; health and "not ready" are answered while the cluster forms;
//! stopping drains clients first, then Raft, then peers, and a leader can hand over before. Leaves out: flags, signals, logs and threads (`cli`).

use std::future::pending;
use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api, ApiConfig, ApiMetrics};
use crate::node::{Node, NodeConfig, StartError};
use crate::telemetry::Metrics;
use crate::transport::listener::{self, ListenerLimits};
use crate::transport::metrics::TransportMetrics;
use crate::transport::tcp::TcpTransport;

/// Connections that the system keeps until they are accepted. What comes beyond it is dropped, and tried again by the
/// client's system only after a second; a crowd that comes all at once must fit. The system may set a lower limit.
const BACKLOG: u32 = 4_096;

/// What a member is started with.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Its node.
    pub node: NodeConfig,
    /// Where it serves clients, as `host:port`.
    pub client_addr: String,
    /// Where it serves members, as `host:port`.
    pub peer_addr: String,
    /// The HTTP edge.
    pub api: ApiConfig,
}

/// Why a member can't start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A port can't be had.
    #[error("can't listen on {address} for {purpose}: {source}; free the port, or give another with {flag}")]
    Listen {
        /// Which address.
        address: String,
        /// What for.
        purpose: &'static str,
        /// The flag that names it.
        flag: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A setting of the edge is out of its bounds.
    #[error(transparent)]
    Api(#[from] api::InvalidConfig),
    /// The node can't start.
    #[error(transparent)]
    Node(#[from] StartError),
}

/// A member whose listeners answer; its node may still be starting.
pub struct Server {
    node: Node,
    config: NodeConfig,
    metrics: Metrics,
    client_addr: String,
    stop_clients: CancellationToken,
    clients: TaskTracker,
    stop_peers: CancellationToken,
    peers: TaskTracker,
}

async fn listen(address: &str, purpose: &'static str, flag: &'static str) -> Result<TcpListener, ServerError> {
    bind(address).await.map_err(|source| ServerError::Listen { address: address.to_owned(), purpose, flag, source })
}

/// Listens on the first of a name's addresses that can be had.
async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for address in lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A port that a process of before has left connections on can be taken at once.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Server {
    /// Takes the ports and the directory, and answers from then on.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind but an empty directory.
    pub async fn open(config: ServerConfig) -> Result<Self, ServerError> {
        let clients = listen(&config.client_addr, "clients", "--client-addr").await?;
        let peers = listen(&config.peer_addr, "members", "--peer-addr").await?;
        Self::open_on(config, clients, peers)
    }

    /// As [`Self::open`], on listeners that the caller has already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(config: ServerConfig, clients: TcpListener, peers: TcpListener) -> Result<Self, ServerError> {
        config.api.validate()?;
        let metrics = Metrics::new();
        let transport_metrics = metrics.register(TransportMetrics::register);
        let node = Node::open(&config.node, Arc::new(TcpTransport::new(transport_metrics.clone())))?;
        let client_addr = clients.local_addr().map_or(config.client_addr, |address| address.to_string());
        let text = metrics.clone();
        let api_metrics = metrics.register(ApiMetrics::register);
        let api = Api::new(node.clone(), config.api, api_metrics, move || text.encode());
        let server = Self {
            node,
            config: config.node,
            metrics,
            client_addr,
            stop_clients: CancellationToken::new(),
            clients: TaskTracker::new(),
            stop_peers: CancellationToken::new(),
            peers: TaskTracker::new(),
        };
        let (handler, limits) = (server.node.peer_handler(), ListenerLimits::default());
        listener::serve(peers, handler, limits, transport_metrics, server.stop_peers.clone(), &server.peers);
        server.clients.spawn(api::serve(clients, api, server.stop_clients.clone()));
        Ok(server)
    }

    /// Brings the node up: forms the cluster if need be, replays the log, joins in.
    ///
    /// # Errors
    /// [`ServerError::Node`].
    pub async fn start(&self) -> Result<(), ServerError> {
        Ok(self.node.start(&self.config, &self.metrics).await?)
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where clients are served, with the port that was really taken.
    #[must_use]
    pub fn client_addr(&self) -> &str {
        &self.client_addr
    }

    /// Waits for a local failure after which the process must end; returns its reason.
    pub async fn failed(&self) -> String {
        let reason = self.node.fatal().raised().await;
        if reason.is_empty() {
            return pending().await;
        }
        reason
    }

    /// If this member leads others, has one of them take over, while everybody is served. To be called before
    /// [`Self::stop`] unless the others stop as well.
    pub async fn hand_over(&self) {
        self.node.hand_over().await;
    }

    /// Stops: no new requests, those at work to their end, then Raft, then the peer listener.
    pub async fn stop(&self) {
        self.stop_clients.cancel();
        self.clients.close();
        self.clients.wait().await;
        self.node.stop().await;
        self.stop_peers.cancel();
        self.peers.close();
        self.peers.wait().await;
    }
}
