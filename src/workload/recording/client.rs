//! One client of a recording: one operation after the other, each sent once.
//!
//! Guarantees: every operation that was begun is noted down with its outcome; after a failure the client rests, longer each
//! time, and goes on with another operation. Leaves out: what it does (`choice`) and what answers mean (`exchange`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::choice::Memory;
use super::exchange::{self, refused, unknown};
use super::{News, Shared};
use crate::clock;
use crate::workload::connection::{Connection, Lost};
use crate::workload::history::{Action, Answer, List, Nanos, Operation, Outcome};
use crate::workload::plan::Endpoint;

/// How much longer than its deadline a client waits for an answer.
const ANSWER_SLACK: Duration = Duration::from_secs(4);

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The rest behind the first of a row of failures; doubles with each.
const REST_MIN: Duration = Duration::from_millis(10);

/// The rest behind an operation that went well, where no rate is asked for.
const PAUSE: Duration = Duration::from_millis(2);

/// How often a client turns to another node than its own.
const ELSEWHERE: f64 = 0.2;

/// The most pages of one listing.
const PAGES_MAX: usize = 16;

/// A client with its connections.
pub(super) struct Client {
    shared: Arc<Shared>,
    number: u32,
    /// The node it turns to as a rule, also when that is cut off: a stale read would come from there.
    home: usize,
    /// By node, as far as there is one.
    connections: Vec<Option<Connection>>,
    random: SmallRng,
    failures: u32,
}

/// An operation that has ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    cursor: Option<String>,
    id: u64,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, number: u32, home: usize) -> Self {
        let random = SmallRng::seed_from_u64(shared.config.seed.wrapping_add(1 + u64::from(number)));
        Self { shared, number, home, connections: Vec::new(), random, failures: 0 }
    }

    /// Works until it is told to stop.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut memory = Memory::new(self.number);
        let interval = self.shared.config.rate.map(|rate| per_client(self.shared.config.clients, rate));
        let mut due = clock::now();
        while !*stopped.borrow() {
            let node = self.node();
            let config = &self.shared.config;
            let action = memory.choose(config.mix, &self.shared.keys, config.value_size, &mut self.random);
            if !self.work(&mut memory, action, node).await {
                // Nobody takes note any more.
                return;
            }
            let mut rest = self.rest();
            if let Some(interval) = interval {
                due += interval;
                rest = rest.max(due.saturating_duration_since(clock::now()));
            }
            // Either the time is over or all is.
            let _ = timeout(rest, stopped.wait_for(|stopped| *stopped)).await;
        }
    }

    /// Does an action, and where it is a listing, reads its further pages.
    async fn work(&mut self, memory: &mut Memory, mut action: Action, node: usize) -> bool {
        let mut cursor = None;
        for _ in 0..PAGES_MAX {
            let Some(ended) = self.perform(action.clone(), cursor.as_deref(), node).await else { return false };
            if let Outcome::Done(answer) = &ended.outcome {
                memory.learn(&action, answer);
            }
            let (Action::List(list), Some(next)) = (&action, ended.cursor) else { break };
            let continues = Some(ended.id);
            action =
                Action::List(List { prefix: list.prefix.clone(), limit: list.limit, continues, ..List::default() });
            cursor = Some(next);
        }
        true
    }

    fn node(&mut self) -> usize {
        let nodes = self.shared.nodes();
        if self.random.random_bool(ELSEWHERE) { self.random.random_range(0..nodes) } else { self.home % nodes }
    }

    fn rest(&mut self) -> Duration {
        match self.failures {
            0 if self.shared.config.rate.is_some() => Duration::ZERO,
            0 => PAUSE,
            failures => {
                let rest = REST_MIN.saturating_mul(1 << failures.min(10)).min(self.shared.config.rest_max);
                rest.mul_f64(self.random.random_range(0.5..1.0))
            }
        }
    }

    /// Sends one operation and takes note of it; `None` if nobody takes notes any more.
    pub(super) async fn perform(&mut self, action: Action, cursor: Option<&str>, node: usize) -> Option<Ended> {
        let shared = self.shared.clone();
        let id = shared.ids.fetch_add(1, Ordering::Relaxed);
        let (sent, called) = (clock::now(), shared.elapsed());
        let (outcome, cursor) = self.exchange(&action, cursor, node).await;
        let returned = shared.elapsed();
        match &outcome {
            Outcome::Done(_) => self.failures = 0,
            Outcome::Refused(_) | Outcome::Unknown(_) => self.failures = self.failures.saturating_add(1),
        }
        let changed = match &outcome {
            Outcome::Done(Answer::Failed(_)) => false,
            Outcome::Done(_) => action.writes(),
            Outcome::Refused(_) | Outcome::Unknown(_) => false,
        };
        if changed {
            shared.acknowledged(News { acknowledged: 0, sent, answered: clock::now() });
        }
        shared.tally.lock().count(&action, &outcome);
        let operation = Operation {
            id,
            client: self.number,
            node: u32::try_from(node).unwrap_or(u32::MAX),
            called,
            returned: returned_of(&outcome, returned),
            action,
            outcome: outcome.clone(),
        };
        shared.sink.send(operation).await.ok()?;
        Some(Ended { outcome, cursor, id })
    }

    async fn exchange(&mut self, action: &Action, cursor: Option<&str>, node: usize) -> (Outcome, Option<String>) {
        let endpoint = self.shared.endpoint(node);
        let deadline = self.shared.config.deadline;
        let request = match exchange::request(action, cursor, &endpoint, deadline) {
            Ok(request) => request,
            Err(error) => return (refused(error.to_string()), None),
        };
        let connection = match self.connection(node, &endpoint).await {
            Ok(connection) => connection,
            Err(code) => return (refused(code), None),
        };
        let answer = timeout(deadline + ANSWER_SLACK, connection.exchange(request)).await;
        let lost = match answer {
            Ok(Ok(answer)) => return exchange::outcome(action, &answer),
            Ok(Err(Lost::Unsent)) => refused("connection_closed"),
            Ok(Err(Lost::Unanswered)) => unknown("connection_lost"),
            Err(_) => unknown("timeout"),
        };
        self.connections[node] = None;
        (lost, None)
    }

    /// A connection to a node, a new one if need be.
    async fn connection(&mut self, node: usize, endpoint: &Endpoint) -> Result<&mut Connection, &'static str> {
        if self.connections.len() <= node {
            self.connections.resize_with(node + 1, || None);
        }
        let place = &mut self.connections[node];
        if !place.as_ref().is_some_and(Connection::is_open) {
            let opened = timeout(CONNECT_TIMEOUT, Connection::open(endpoint)).await;
            *place = Some(opened.map_err(|_| "connect_timeout")?.map_err(|_| "connect_failed")?);
        }
        place.as_mut().ok_or("connect_failed")
    }

    /// Rests behind a failure, if that was one.
    pub(super) async fn rest_if_failed(&mut self) {
        if self.failures > 0 {
            sleep(self.rest()).await;
        }
    }
}

/// What has an unknown outcome has not returned, whatever the client was told.
fn returned_of(outcome: &Outcome, at: Nanos) -> Option<Nanos> {
    match outcome {
        Outcome::Done(_) | Outcome::Refused(_) => Some(at),
        Outcome::Unknown(_) => None,
    }
}

/// How far apart the operations of one client are, so that all together keep a rate.
fn per_client(clients: usize, rate: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
    let seconds = clients as f64 / rate as f64;
    Duration::from_secs_f64(seconds)
}

impl Shared {
    /// Takes note of an acknowledged write.
    fn acknowledged(&self, news: News) {
        self.tally.lock().acknowledged(news.answered);
        self.news.send_modify(|known| {
            known.acknowledged += 1;
            if news.sent > known.sent {
                (known.sent, known.answered) = (news.sent, news.answered);
            }
        });
    }

    /// How long the recording has been going on.
    pub(super) fn elapsed(&self) -> Nanos {
        let elapsed = clock::now() - self.origin;
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }
}
