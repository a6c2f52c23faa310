//! What a recording counts.
//!
//! Guarantees: each operation is counted once, as done, refused or unknown. Leaves out: latencies (`workload::tally`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::clock::Instant;
use crate::workload::history::{Action, MALFORMED_ANSWER, Outcome};

/// The most codes that are told apart.
const CODES_MAX: usize = 64;

/// What a recording came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Operations that have ended.
    pub operations: u64,
    /// Those that were answered.
    pub done: u64,
    /// Those that surely were not done.
    pub refused: u64,
    /// Those of which nobody knows.
    pub unknown: u64,
    /// Answers that made no sense: each is a fault of the store.
    pub malformed: u64,
    /// Keys that may have been used.
    pub keys: u64,
    /// Keys of which no node told at the end what they are.
    pub keys_without_final_read: u64,
    /// How long it took, without the reads at the end.
    pub elapsed_seconds: f64,
    /// The longest time in which nobody's write was acknowledged, in milliseconds.
    pub longest_gap_ms: u64,
    /// Operations by what was asked for.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// Operations that were not answered, by the code of the problem or how the connection failed.
    pub by_code: BTreeMap<String, u64>,
}

/// The counts of a recording under way.
#[derive(Debug)]
pub(super) struct Tally {
    counts: Summary,
    started: Instant,
    ended: Option<Instant>,
    /// When the last write was acknowledged.
    acknowledged: Instant,
    longest_gap: Duration,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self { counts: Summary::default(), started: now, ended: None, acknowledged: now, longest_gap: Duration::ZERO }
    }

    pub(super) fn count(&mut self, action: &Action, outcome: &Outcome) {
        let counts = &mut self.counts;
        counts.operations += 1;
        *counts.by_kind.entry(action.kind()).or_default() += 1;
        let cause = match outcome {
            Outcome::Done(_) => {
                counts.done += 1;
                return;
            }
            Outcome::Refused(cause) => {
                counts.refused += 1;
                cause
            }
            Outcome::Unknown(cause) => {
                counts.unknown += 1;
                counts.malformed += u64::from(cause.code == MALFORMED_ANSWER);
                cause
            }
        };
        let known = counts.by_code.contains_key(&cause.code) || counts.by_code.len() < CODES_MAX;
        *counts.by_code.entry(if known { cause.code.clone() } else { "other".to_owned() }).or_default() += 1;
    }

    pub(super) fn keys(&mut self, keys: usize) {
        self.counts.keys = keys as u64;
    }

    pub(super) fn acknowledged(&mut self, at: Instant) {
        self.longest_gap = self.longest_gap.max(at.saturating_duration_since(self.acknowledged));
        self.acknowledged = at;
    }

    /// From now on nobody writes.
    pub(super) fn load_ended(&mut self, at: Instant) {
        self.acknowledged(at);
        self.ended = Some(at);
    }

    pub(super) fn summary(&self, now: Instant) -> Summary {
        let elapsed = self.ended.unwrap_or(now).saturating_duration_since(self.started);
        let silent = self.ended.map_or_else(|| now.saturating_duration_since(self.acknowledged), |_| Duration::ZERO);
        Summary {
            elapsed_seconds: (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            longest_gap_ms: u64::try_from(self.longest_gap.max(silent).as_millis()).unwrap_or(u64::MAX),
            ..self.counts.clone()
        }
    }
}
