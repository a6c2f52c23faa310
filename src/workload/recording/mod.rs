//! Records histories: clients that do a bit of everything to a cluster, whatever becomes of it, and note down all they see.
//!
//! Guarantees: every operation is sent once and noted once, with the moments before and behind it on one clock; what failed
//! is told apart as refused or unknown; keys are used by this recording alone, are few at a time so that clients meet, and
//! are given up for new ones, so that none has more operations than a judge can bear. At the end every key is read
//! linearizably. Leaves out: judging ([`crate::workload::history`]), and faults, which somebody else has to bring about.

mod choice;
mod client;
mod exchange;
mod finale;
mod keys;
mod tally;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use tally::Summary;

use super::history::{FORMAT, Head, Nanos, Operation, VERSION};
use super::plan::{self, Endpoint};
use super::{CLIENTS_MAX, Error, RATE_MAX};
use crate::clock::{self, Instant};
use crate::types::limits::KEY_BYTES_MAX;
use client::Client;
use keys::KeySpace;
use tally::Tally;

/// The most keys that a recording uses at a time.
pub const RECORDED_KEYS_MAX: u64 = 100_000;

/// The longest values that a recording writes, in bytes: a page of them must fit into a line of a file.
pub const RECORDED_VALUE_BYTES_MAX: usize = 64 * 1024;

/// The longest deadline that operations can be given.
pub const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// Operations that have ended and wait to be noted down.
pub const NOTES_MAX: usize = 1_024;

/// The most bytes of a prefix of keys: what is behind it must find room.
const PREFIX_BYTES_MAX: usize = KEY_BYTES_MAX - 64;

/// What clients do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mix {
    /// Puts, deletes, both with conditions, transactions over several keys, reads of every kind, listings.
    #[default]
    Default,
    /// Puts and linearizable gets alone.
    Registers,
}

/// What to record.
#[derive(Debug, Clone)]
pub struct RecordingConfig {
    /// Nodes as `http://host:port`; each client keeps to one as a rule, and turns to others now and then.
    pub endpoints: Vec<String>,
    /// Clients, each with one operation at a time: 1 to [`CLIENTS_MAX`].
    pub clients: usize,
    /// Keys in use at a time: 1 to [`RECORDED_KEYS_MAX`].
    pub keys: u64,
    /// What is done.
    pub mix: Mix,
    /// Operations a second by all clients together; `None` for a short pause behind each.
    pub rate: Option<u64>,
    /// Determines what is done; not when.
    pub seed: u64,
    /// How long each operation may take: up to [`DEADLINE_MAX`].
    pub deadline: Duration,
    /// The least size of values, in bytes: up to [`RECORDED_VALUE_BYTES_MAX`].
    pub value_size: usize,
    /// What every key begins with; the name of the recording follows.
    pub key_prefix: String,
    /// The longest rest of a client behind failures.
    pub rest_max: Duration,
    /// How long reading all keys at the end may take.
    pub final_timeout: Duration,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            clients: 20,
            keys: 50,
            mix: Mix::Default,
            rate: None,
            seed: 1,
            deadline: Duration::from_secs(1),
            value_size: 0,
            key_prefix: "history/".to_owned(),
            rest_max: Duration::from_millis(500),
            final_timeout: Duration::from_secs(60),
        }
    }
}

/// The latest acknowledged write.
#[derive(Debug, Clone, Copy)]
pub struct News {
    /// How many there were so far.
    pub acknowledged: u64,
    /// When the one that was sent last of all had been sent.
    pub sent: Instant,
    /// When that one was acknowledged.
    pub answered: Instant,
}

/// A recording under way. Ends with [`Recording::finish`]; dropped, it just stops.
#[derive(Debug)]
pub struct Recording {
    shared: Arc<Shared>,
    started: String,
    stop: watch::Sender<bool>,
    news: watch::Receiver<News>,
    clients: JoinSet<()>,
    /// The number of the next client.
    next_client: u32,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    config: RecordingConfig,
    nodes: RwLock<Vec<(String, Endpoint)>>,
    keys: KeySpace,
    ids: AtomicU64,
    origin: Instant,
    sink: mpsc::Sender<Operation>,
    news: watch::Sender<News>,
    tally: Mutex<Tally>,
}

impl Shared {
    fn nodes(&self) -> usize {
        self.nodes.read().len()
    }

    fn endpoint(&self, node: usize) -> Endpoint {
        self.nodes.read()[node].1.clone()
    }
}

impl Recording {
    /// Starts the clients. Whatever ends goes into `sink`, which somebody must empty; once it is closed, clients stop.
    ///
    /// # Errors
    /// [`Error::Usage`] if what is asked for makes no sense.
    pub fn start(config: &RecordingConfig, sink: mpsc::Sender<Operation>) -> Result<Self, Error> {
        check(config)?;
        let name = format!("{:016x}", rand::random::<u64>());
        let keys = KeySpace::new(format!("{}{name}/", config.key_prefix), config.keys);
        let now = clock::now();
        let (news_in, news) = watch::channel(News { acknowledged: 0, sent: now, answered: now });
        let shared = Arc::new(Shared {
            config: config.clone(),
            nodes: RwLock::default(),
            keys,
            ids: AtomicU64::new(0),
            origin: now,
            sink,
            news: news_in,
            tally: Mutex::new(Tally::new(now)),
        });
        let since_epoch = Duration::from_millis(clock::wall().get());
        let started = humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since_epoch).to_string();
        let (stop, _) = watch::channel(false);
        let mut new = Self { shared, started, stop, news, clients: JoinSet::new(), next_client: 0 };
        for endpoint in &config.endpoints {
            new.know(endpoint)?;
        }
        for client in 0..config.clients {
            new.add_client(client % config.endpoints.len());
        }
        Ok(new)
    }

    /// One more node, with clients of its own. Whoever wrote down [`Self::head`] before must do it again.
    ///
    /// # Errors
    /// [`Error::Usage`] if the endpoint is none.
    pub fn join(&mut self, endpoint: &str, clients: usize) -> Result<(), Error> {
        self.know(endpoint)?;
        let node = self.shared.nodes() - 1;
        (0..clients).for_each(|_| self.add_client(node));
        Ok(())
    }

    fn know(&mut self, endpoint: &str) -> Result<(), Error> {
        let parsed = plan::endpoint(endpoint)?;
        self.shared.nodes.write().push((endpoint.to_owned(), parsed));
        Ok(())
    }

    fn add_client(&mut self, node: usize) {
        let client = Client::new(self.shared.clone(), self.next_client, node);
        self.next_client += 1;
        self.clients.spawn(client.run(self.stop.subscribe()));
    }

    /// The head of the history.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            format: FORMAT.to_owned(),
            version: VERSION,
            started: self.started.clone(),
            nodes: self.shared.nodes.read().iter().map(|(name, _)| name.clone()).collect(),
            prefix: self.shared.keys.prefix().to_owned(),
        }
    }

    /// The latest acknowledged write, to be waited for.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<News> {
        self.news.clone()
    }

    /// How long it has been going on: the clock of its operations.
    #[must_use]
    pub fn elapsed(&self) -> Nanos {
        self.shared.elapsed()
    }

    /// What it has come to so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.shared.tally.lock().summary(clock::now())
    }

    /// Ends the clients, each behind its operation, and reads all keys, until it is done or `cut_short` comes, and no longer
    /// than the configuration says. The sink is closed then.
    pub async fn finish(mut self, cut_short: impl Future<Output = ()>) -> Summary {
        self.stop.send_replace(true);
        // A client ends by returning; a panic is shown by the hook of its thread.
        while self.clients.join_next().await.is_some() {}
        self.shared.tally.lock().load_ended(clock::now());
        let unread = finale::read_all(&self.shared, self.next_client, cut_short).await;
        let mut summary = self.summary();
        summary.keys_without_final_read = unread;
        summary
    }
}

fn check(config: &RecordingConfig) -> Result<(), Error> {
    let within = |what: &str, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(Error::Usage(format!("{what} is {value}; it must be {least} to {most}"))),
    };
    within("the number of clients", config.clients as u64, 1, CLIENTS_MAX as u64)?;
    within("the number of keys", config.keys, 1, RECORDED_KEYS_MAX)?;
    within("the size of a value", config.value_size as u64, 0, RECORDED_VALUE_BYTES_MAX as u64)?;
    within("the rate", config.rate.unwrap_or(1), 1, RATE_MAX)?;
    let deadline = u64::try_from(config.deadline.as_millis()).unwrap_or(u64::MAX);
    within("the deadline in milliseconds", deadline, 1, DEADLINE_MAX.as_millis() as u64)?;
    within("the length of the prefix of keys in bytes", config.key_prefix.len() as u64, 0, PREFIX_BYTES_MAX as u64)?;
    match config.endpoints.is_empty() {
        true => Err(Error::Usage("no endpoint is given; give one like http://10.0.0.1:7480".to_owned())),
        false => Ok(()),
    }
}
