//! What a run counts, while it goes on and at its end.
//!
//! Guarantees: only answers of success enter the latencies; refused, unavailable (surely not applied) and unknown are
//! counted apart. Leaves out: printing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

use super::LoadConfig;
use super::requests::Effect;
use crate::clock::{self, Instant};

/// The longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 300_000_000;

/// Decimal digits to which latencies are exact.
const LATENCY_DIGITS: u8 = 3;

/// The most kinds of errors that are told apart.
const ERROR_KINDS_MAX: usize = 64;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// It was answered with success.
    Done,
    /// It was answered: no.
    Refused(String),
    /// It surely had no effect: nobody took it.
    Unavailable(String),
    /// It may have had its effect.
    Unknown(String),
}

/// The counts of one thread. Its lock is taken by others only to show progress.
pub(super) struct Shard(Mutex<Counts>);

#[derive(Clone)]
struct Counts {
    reads: Histogram<u64>,
    writes: Histogram<u64>,
    refusals: Histogram<u64>,
    refused: u64,
    unavailable: u64,
    unknown: u64,
    errors: BTreeMap<String, u64>,
}

impl Counts {
    fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_MAX_US, LATENCY_DIGITS).expect("the bounds and digits are constants")
        };
        let (reads, writes, refusals) = (histogram(), histogram(), histogram());
        Self { reads, writes, refusals, refused: 0, unavailable: 0, unknown: 0, errors: BTreeMap::new() }
    }

    fn add(&mut self, other: &Self) {
        // Equal bounds: nothing can fail to fit.
        let _ = self.reads.add(&other.reads);
        let _ = self.writes.add(&other.writes);
        let _ = self.refusals.add(&other.refusals);
        self.refused += other.refused;
        self.unavailable += other.unavailable;
        self.unknown += other.unknown;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
    }

    fn all(&self) -> Histogram<u64> {
        let mut all = self.reads.clone();
        let _ = all.add(&self.writes);
        all
    }
}

impl Shard {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Counts::new()))
    }

    pub(super) fn record(&self, effect: Effect, ending: Ending, latency: Duration) {
        let mut counts = self.0.lock();
        let latency = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX_US);
        let kind = match ending {
            Ending::Done => {
                let histogram = match effect {
                    Effect::Read => &mut counts.reads,
                    Effect::Write => &mut counts.writes,
                };
                histogram.saturating_record(latency);
                return;
            }
            Ending::Refused(kind) => {
                counts.refusals.saturating_record(latency);
                counts.refused += 1;
                kind
            }
            Ending::Unavailable(kind) => {
                counts.unavailable += 1;
                kind
            }
            Ending::Unknown(kind) => {
                counts.unknown += 1;
                kind
            }
        };
        let known = counts.errors.contains_key(&kind) || counts.errors.len() < ERROR_KINDS_MAX;
        *counts.errors.entry(if known { kind } else { "other".to_owned() }).or_default() += 1;
    }
}

/// How a run goes, since the last time it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Time since the start.
    pub elapsed: Duration,
    /// Requests answered with success so far.
    pub operations: u64,
    /// Requests that ended otherwise so far.
    pub errors: u64,
    /// Successes a second lately.
    pub rate_per_second: f64,
    /// Half of the requests lately took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 % of the requests lately took no longer, in microseconds.
    pub p99_us: u64,
}

/// How long requests took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// On average.
    pub mean: f64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 90 % of them took no longer.
    pub p90: u64,
    /// 99 % of them took no longer.
    pub p99: u64,
    /// 99.9 % of them took no longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        (!histogram.is_empty()).then(|| Self {
            mean: (histogram.mean() * 10.0).round() / 10.0,
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        })
    }
}

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was done.
    pub kind: &'static str,
    /// By how many clients.
    pub clients: usize,
    /// Over how many different keys.
    pub keys: u64,
    /// Bytes of each value.
    pub value_size: usize,
    /// The rate that was asked for, a second.
    pub rate_target: Option<u64>,
    /// How long it took.
    pub elapsed_seconds: f64,
    /// Requests answered with success.
    pub operations: u64,
    /// Successes a second.
    pub rate_per_second: f64,
    /// Reads answered with success.
    pub reads: u64,
    /// Writes that the cluster acknowledged.
    pub writes_acknowledged: u64,
    /// Requests answered with a refusal.
    pub refused: u64,
    /// Requests that nobody took, surely without effect.
    pub unavailable: u64,
    /// Requests that may have had their effect.
    pub unknown: u64,
    /// Requests that did not succeed, by their kind: a problem code, a status, or how the connection failed.
    pub errors: BTreeMap<String, u64>,
    /// How long the successes took; absent if there were none.
    pub latency_us: Option<Latency>,
    /// The same for the reads alone.
    pub read_latency_us: Option<Latency>,
    /// The same for the writes alone.
    pub write_latency_us: Option<Latency>,
    /// How long refusals took.
    pub refusal_latency_us: Option<Latency>,
    /// All latencies of successes, in microseconds.
    #[serde(skip)]
    pub histogram: Histogram<u64>,
}

/// Reads the shards of a run.
pub(super) struct Meter {
    shards: Vec<Arc<Shard>>,
    started: Instant,
    last: (Instant, Histogram<u64>),
}

impl Meter {
    pub(super) fn new(shards: Vec<Arc<Shard>>, started: Instant) -> Self {
        Self { shards, started, last: (started, Counts::new().all()) }
    }

    fn total(&self) -> Counts {
        let mut total = Counts::new();
        for shard in &self.shards {
            total.add(&shard.0.lock());
        }
        total
    }

    pub(super) fn progress(&mut self) -> Progress {
        let (now, total) = (clock::now(), self.total());
        let all = total.all();
        let mut lately = all.clone();
        // What is counted only grows, so the difference always exists.
        let _ = lately.subtract(&self.last.1);
        let seconds = (now - self.last.0).as_secs_f64().max(f64::MIN_POSITIVE);
        let progress = Progress {
            elapsed: now - self.started,
            operations: all.len(),
            errors: total.refused + total.unavailable + total.unknown,
            rate_per_second: per_second(lately.len(), seconds),
            p50_us: lately.value_at_quantile(0.5),
            p99_us: lately.value_at_quantile(0.99),
        };
        self.last = (now, all);
        progress
    }

    pub(super) fn report(&self, config: &LoadConfig) -> Report {
        let seconds = (clock::now() - self.started).as_secs_f64();
        let total = self.total();
        let all = total.all();
        Report {
            kind: config.kind.as_str(),
            clients: config.clients,
            keys: config.keys,
            value_size: config.value_size,
            rate_target: config.rate,
            elapsed_seconds: (seconds * 1000.0).round() / 1000.0,
            operations: all.len(),
            rate_per_second: per_second(all.len(), seconds),
            reads: total.reads.len(),
            writes_acknowledged: total.writes.len(),
            refused: total.refused,
            unavailable: total.unavailable,
            unknown: total.unknown,
            errors: total.errors.clone(),
            latency_us: Latency::of(&all),
            read_latency_us: Latency::of(&total.reads),
            write_latency_us: Latency::of(&total.writes),
            refusal_latency_us: Latency::of(&total.refusals),
            histogram: all,
        }
    }
}

/// To one decimal.
fn per_second(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
    let rate = count as f64 / seconds;
    (rate * 10.0).round() / 10.0
}
