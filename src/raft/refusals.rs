//! Messages that members refuse: told to the operator of the one and of the other, each seldom.
//!
//! A node whose cluster was founded anew without it calls members that are of another cluster now. openraft takes a refusal
//! for a peer that is out of reach, and tries again for ever; so what they say is kept here.
//!
//! Guarantees: the same refusal is one line in [`PAUSE`]; memory for one refusal a member. Leaves out: acting on it.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{self, Instant};
use crate::types::NodeId;

/// From one line about the same thing to the next. A refusal counts as the present state for as long: a node without a
/// leader calls the others more often than that, whatever its timers.
const PAUSE: Duration = Duration::from_secs(60);

/// What other members say when they refuse this node's messages, and what this node refuses.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    latest: Mutex<BTreeMap<NodeId, Refusal>>,
    /// When it was told last that a message of another cluster has come.
    stranger_told: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Refusal {
    reason: String,
    at: Instant,
    told: Instant,
}

impl Refusals {
    /// A member has refused a message of this node.
    pub(super) fn note(&self, by: NodeId, address: &str, reason: &str) {
        self.note_at(clock::now(), by, address, reason);
    }

    fn note_at(&self, now: Instant, by: NodeId, address: &str, reason: &str) {
        let mut latest = self.latest.lock();
        let known = latest.get(&by).filter(|known| known.reason == reason).map(|known| known.told);
        let told = known.filter(|told| now.saturating_duration_since(*told) < PAUSE).unwrap_or_else(|| {
            tracing::warn!(member = by.get(), address, reason, "a member refuses the messages of this node");
            now
        });
        latest.insert(by, Refusal { reason: reason.to_owned(), at: now, told });
    }

    /// The latest refusal, if there was one of late.
    pub(super) fn lately(&self) -> Option<String> {
        self.lately_at(clock::now())
    }

    fn lately_at(&self, now: Instant) -> Option<String> {
        let latest = self.latest.lock();
        let (by, refusal) = latest.iter().max_by_key(|(_, refusal)| refusal.at)?;
        let fresh = now.saturating_duration_since(refusal.at) < PAUSE;
        fresh.then(|| format!("member {by} refuses this node: {}", refusal.reason))
    }

    /// A message of another cluster has come, and was refused.
    pub(super) fn note_stranger(&self, error: &dyn std::fmt::Display) {
        let mut told = self.stranger_told.lock();
        if told.is_none_or(|told| told.elapsed() >= PAUSE) {
            *told = Some(clock::now());
            tracing::warn!(%error, "refused a message; a node of another cluster takes this one for a member");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_for_a_while_and_the_latest_counts() {
        let (refusals, start) = (Refusals::default(), clock::now());
        assert_eq!(refusals.lately(), None);
        refusals.note_at(start, NodeId::new(2), "h2:1", "no");
        refusals.note_at(start + PAUSE / 2, NodeId::new(3), "h3:1", "never");
        assert_eq!(refusals.lately_at(start + PAUSE).as_deref(), Some("member 3 refuses this node: never"));
        assert_eq!(refusals.lately_at(start + PAUSE * 3 / 2), None);
    }

    #[test]
    fn the_same_refusal_is_told_once_in_a_while() {
        let (refusals, start) = (Refusals::default(), clock::now());
        for (at, reason, told) in [
            (start, "no", start),
            (start + PAUSE / 2, "no", start),
            (start + PAUSE, "no", start + PAUSE),
            (start + PAUSE * 3 / 2, "never", start + PAUSE * 3 / 2),
        ] {
            refusals.note_at(at, NodeId::new(2), "h2:1", reason);
            assert_eq!(refusals.latest.lock()[&NodeId::new(2)].told, told);
        }
    }
}
