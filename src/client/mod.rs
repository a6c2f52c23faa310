//! The typed client: several endpoints, deadlines, and retries only where they are safe.
//!
//! Guarantees: a read is repeated until its deadline; a write is repeated only while it surely was not applied (it was
//! never sent, or the cluster said so); a write whose fate is not known is [`Error::OutcomeUnknown`] and never sent again.
//! Every call ends a little after its deadline at the latest. Leaves out: TLS and credentials, and watches.

mod backups;
mod call;
mod cluster;
mod endpoints;
mod error;
mod kv;
mod options;
mod snapshot;

use std::sync::Arc;
use std::time::Duration;

pub use backups::BackupChangeOptions;
pub use cluster::MemberOptions;
pub use error::Error;
pub use options::{Consistency, ListOptions, Precondition, ReadOptions, WriteOptions};
pub use snapshot::{SavedSnapshot, SnapshotDownload};

use endpoints::Endpoints;

use crate::tls;
use crate::types::Revision;

/// The node that is talked to where none is named: the default client listener on this machine.
pub const ENDPOINT_DEFAULT: &str = "http://127.0.0.1:7480";

/// How long a call may take where nothing else is said.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// How long to wait for a connection before another endpoint gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer with what its headers say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// The revision of the store behind it.
    pub revision: Revision,
    /// How old the data can be at most; told for bounded and stale reads, where it is known.
    pub staleness: Option<Duration>,
}

/// A client of one cluster: a cheap handle, to be cloned rather than built again, because it keeps connections.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    endpoints: Endpoints,
    timeout: Duration,
    attempts_max: u32,
}

/// What a [`Client`] is made of.
#[derive(Debug, Clone)]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    attempts_max: u32,
}

impl Client {
    /// A client of the default endpoint, to be changed before it is built.
    #[must_use]
    pub fn builder() -> Builder {
        let attempts_max = call::ATTEMPTS_MAX;
        Builder { endpoints: vec![ENDPOINT_DEFAULT.to_owned()], timeout: TIMEOUT_DEFAULT, attempts_max }
    }

    /// The endpoints, as they were given.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.shared.endpoints.iter()
    }
}

impl Builder {
    /// The nodes to talk to, as `http://host:port`. Any node takes any request: they are alternatives, and the one that
    /// answered last is asked first.
    #[must_use]
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// How long a call may take with all its retries, unless its options say otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Ends every call after this many attempts, at least one: a look at a node that may be down should not wait for it.
    #[must_use]
    pub fn attempts_max(mut self, attempts: u32) -> Self {
        self.attempts_max = attempts.clamp(1, call::ATTEMPTS_MAX);
        self
    }

    /// Builds the client. Connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are no endpoints, or one of them is no URL that this client can speak.
    pub fn build(self) -> Result<Client, Error> {
        // Also a client that never speaks TLS wants to know how it would.
        tls::install();
        let http = reqwest::Client::builder()
            .user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // A store inside a data centre is not reached through the proxy of the people in it.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // Only this client knows which request may be sent twice.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| Error::Usage(format!("the HTTP client can't be set up: {error}")))?;
        let endpoints = Endpoints::new(self.endpoints.clone())?;
        let Self { timeout, attempts_max, .. } = self;
        Ok(Client { shared: Arc::new(Shared { http, endpoints, timeout, attempts_max }) })
    }
}
