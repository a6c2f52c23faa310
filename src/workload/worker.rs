//! The clients of one thread.
//!
//! Guarantees: a client has one request at a time; after a failure it pauses for [`ERROR_PAUSE`], or for as long as the
//! server asks it to, and, where the connection is lost, goes on with the next endpoint; no request is sent twice. Leaves out: counting (`tally`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use http::{Request, StatusCode};
use http_body_util::Full;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::Error;
use super::connection::{Answer, Connection, Lost};
use super::plan::Plan;
use super::requests::{Effect, Operation};
use super::tally::{Ending, Shard};
use crate::api::model::{Code, OutcomeKind, Problem};
use crate::clock::{self, Instant};

/// How long a client waits after a failure, so that a dead cluster is not drowned in connections.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Clients that write the keys before a run.
const PRELOAD_CLIENTS: u64 = 8;

/// Keys in one request of a preload; etcd takes 128 operations by default.
const PRELOAD_KEYS: u64 = 100;

/// Bytes of values in one request of a preload, at most, if that is one value at least.
const PRELOAD_BYTES: usize = 512 * 1024;

/// How often a request of a preload is repeated.
const PRELOAD_ATTEMPTS: u32 = 600;

/// How long to wait before a request of a preload is repeated.
const PRELOAD_PAUSE: Duration = Duration::from_millis(100);

/// Runs these clients until the time is up.
pub(super) async fn run(plan: Arc<Plan>, shard: Arc<Shard>, clients: Vec<usize>, started: Instant) {
    let mut running = JoinSet::new();
    for index in clients {
        running.spawn(Client::new(plan.clone(), index).run(shard.clone(), started));
    }
    // A client ends by returning; a panic is shown by the thread's hook and costs the run its load, not its report.
    while running.join_next().await.is_some() {}
}

/// One client with its connection.
struct Client {
    plan: Arc<Plan>,
    index: usize,
    /// Which endpoint it talks to; counts on when a connection is lost.
    place: usize,
    connection: Option<Connection>,
    random: SmallRng,
}

/// When a client of an open loop is due.
struct Schedule {
    next: Instant,
    interval: Duration,
}

impl Client {
    fn new(plan: Arc<Plan>, index: usize) -> Self {
        let random = SmallRng::seed_from_u64(plan.config.seed.wrapping_add(1 + index as u64));
        Self { plan, index, place: index, connection: None, random }
    }

    async fn run(mut self, shard: Arc<Shard>, started: Instant) {
        let end = started + self.plan.config.duration;
        let mut schedule = self.schedule(started);
        loop {
            let Some(began) = due(&mut schedule, end).await else { return };
            let operation = Operation::choose(self.plan.config.kind, &mut self.random);
            let (ending, pause) = self.perform(operation).await;
            shard.record(operation.effect(), ending, clock::now() - began);
            if let Some(pause) = pause {
                tokio::time::sleep_until((clock::now() + pause).min(end)).await;
            }
        }
    }

    fn schedule(&self, started: Instant) -> Option<Schedule> {
        let rate = self.plan.config.rate?;
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
        let seconds = |requests: usize| requests as f64 / rate as f64;
        Some(Schedule {
            // Clients take turns, so that requests are spread evenly over time.
            next: started + Duration::from_secs_f64(seconds(self.index)),
            interval: Duration::from_secs_f64(seconds(self.plan.config.clients)),
        })
    }

    /// Sends one request; tells how it ended and, if it failed, how long to pause.
    async fn perform(&mut self, operation: Operation) -> (Ending, Option<Duration>) {
        let endpoint = &self.plan.endpoints[self.place % self.plan.endpoints.len()];
        let request = match self.plan.request(operation, endpoint, &mut self.random) {
            Ok(request) => request,
            Err(error) => return (Ending::Unavailable(error.to_string()), Some(ERROR_PAUSE)),
        };
        match self.send(request).await {
            Ok(answer) if answer.status.is_success() => (Ending::Done, None),
            Ok(answer) => {
                let ending = ending_of(operation.effect(), answer.status, &answer.body);
                (ending, Some(self.pause_behind(&answer)))
            }
            Err(ending) => (ending, Some(ERROR_PAUSE)),
        }
    }

    /// How long to leave the server alone. No two clients come back at the same time.
    fn pause_behind(&mut self, answer: &Answer) -> Duration {
        let asked = answer.retry_after.filter(|_| self.plan.config.heed_retry_after);
        asked.map_or(ERROR_PAUSE, |asked| asked.mul_f64(self.random.random_range(1.0..1.5)))
    }

    /// Sends over the connection, opening one if need be.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Ending> {
        if !self.connection.as_ref().is_some_and(Connection::is_open) {
            let endpoint = &self.plan.endpoints[self.place % self.plan.endpoints.len()];
            match tokio::time::timeout(CONNECT_TIMEOUT, Connection::open(endpoint)).await {
                Ok(Ok(connection)) => self.connection = Some(connection),
                Ok(Err(_)) | Err(_) => {
                    self.place += 1;
                    return Err(Ending::Unavailable("connect_failed".to_owned()));
                }
            }
        }
        // Taken out for the time of the request: a connection with an unknown answer under way is of no use.
        let Some(mut connection) = self.connection.take() else {
            return Err(Ending::Unavailable("connect_failed".to_owned()));
        };
        match tokio::time::timeout(self.plan.config.timeout, connection.exchange(request)).await {
            Ok(Ok(answer)) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Ok(Err(lost)) => {
                self.place += 1;
                Err(match lost {
                    Lost::Unsent => Ending::Unavailable("connection_closed".to_owned()),
                    Lost::Unanswered => Ending::Unknown("connection_lost".to_owned()),
                })
            }
            Err(_) => {
                self.place += 1;
                Err(Ending::Unknown("timeout".to_owned()))
            }
        }
    }
}

/// Waits until the next request is due and says from when its latency counts; `None` when the time is up.
async fn due(schedule: &mut Option<Schedule>, end: Instant) -> Option<Instant> {
    let now = clock::now();
    let Some(schedule) = schedule else { return (now < end).then_some(now) };
    let intended = schedule.next;
    if intended >= end {
        return None;
    }
    schedule.next += schedule.interval;
    if intended <= now {
        // Late, because the answer before came late: the wait of this request began when it was due.
        return Some(intended);
    }
    tokio::time::sleep_until(intended).await;
    // Timers go by the millisecond; what they overshoot is not the cluster's fault.
    Some(clock::now())
}

fn ending_of(effect: Effect, status: StatusCode, body: &Bytes) -> Ending {
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        let kind = format!("status_{}", status.as_u16());
        return if status.is_server_error() && effect == Effect::Write {
            Ending::Unknown(kind)
        } else {
            Ending::Refused(kind)
        };
    };
    let kind = problem.code.to_string();
    match (problem.outcome, problem.code) {
        // What was done must count as perhaps done.
        (OutcomeKind::Unknown | OutcomeKind::Applied, _) => Ending::Unknown(kind),
        (_, Code::NoLeader | Code::NoQuorum | Code::NotReady) => Ending::Unavailable(kind),
        _ => Ending::Refused(kind),
    }
}

/// Writes every key of the run.
pub(super) async fn preload(plan: Arc<Plan>) -> Result<(), Error> {
    let batch = (PRELOAD_BYTES / plan.config.value_size.max(1)).clamp(1, PRELOAD_KEYS as usize) as u64;
    let batches = plan.config.keys.div_ceil(batch);
    let mut clients: FuturesUnordered<_> = (0..PRELOAD_CLIENTS.min(batches))
        .map(|first| {
            let plan = plan.clone();
            async move {
                let mut client = Client::new(plan.clone(), usize::try_from(first).unwrap_or_default());
                for place in (first..batches).step_by(PRELOAD_CLIENTS as usize) {
                    let keys = place * batch..((place + 1) * batch).min(plan.config.keys);
                    client.fill(keys).await?;
                }
                Ok::<_, Error>(())
            }
        })
        .collect();
    while let Some(done) = clients.next().await {
        done?;
    }
    Ok(())
}

impl Client {
    /// Writes some keys. Writing them twice does no harm, so whatever fails is tried again.
    async fn fill(&mut self, keys: std::ops::Range<u64>) -> Result<(), Error> {
        let mut last = String::new();
        for _ in 0..PRELOAD_ATTEMPTS {
            let endpoint = &self.plan.endpoints[self.place % self.plan.endpoints.len()];
            let request = self.plan.fill(keys.clone(), endpoint, &mut self.random)?;
            match self.send(request).await {
                Ok(answer) if answer.status.is_success() => return Ok(()),
                Ok(answer) => match ending_of(Effect::Write, answer.status, &answer.body) {
                    Ending::Refused(why) if answer.status != StatusCode::TOO_MANY_REQUESTS => {
                        let detail = String::from_utf8_lossy(&answer.body);
                        return Err(Error::Preload(format!("{why}: {}", detail.trim())));
                    }
                    ending => last = format!("{ending:?}"),
                },
                Err(ending) => last = format!("{ending:?}"),
            }
            tokio::time::sleep(PRELOAD_PAUSE).await;
        }
        Err(Error::Preload(format!("given up after {PRELOAD_ATTEMPTS} attempts; the last ended with {last}")))
    }
}
