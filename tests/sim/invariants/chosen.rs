//! State machine safety: what one node takes for committed at an index, every node does, and for ever.
//!
//! Guarantees: the entries here are those of the one log that all nodes must apply. Leaves out: applying them (`reference`).

use quorate::raft::types::{Entry, Membership, Payload};
use quorate::types::LogPosition;

use super::{NodeLog, Violation, next};
use crate::wire::Place;

const NAME: &str = "state machine safety";

/// The committed log, from index 0.
#[derive(Default)]
pub(super) struct Chosen {
    entries: Vec<Entry>,
    /// The indexes of those that changed the members.
    memberships: Vec<usize>,
}

impl Chosen {
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index).ok()?)
    }

    pub(super) fn last(&self) -> Option<LogPosition> {
        self.entries.last().map(|entry| entry.log_id.into())
    }

    /// How often the members were changed.
    pub(super) fn memberships(&self) -> usize {
        self.memberships.len()
    }

    /// The members as of an entry.
    pub(super) fn membership_at(&self, index: u64) -> Option<&Membership> {
        let before = self.memberships.partition_point(|at| *at as u64 <= index);
        let at = *self.memberships.get(before.checked_sub(1)?)?;
        match &self.entries.get(at)?.payload {
            Payload::Membership(membership) => Some(membership),
            Payload::Blank | Payload::Normal(_) => None,
        }
    }

    /// A node takes all up to a position for committed.
    pub(super) fn committed(&mut self, place: Place, logs: &[NodeLog], upto: LogPosition) -> Result<(), Violation> {
        for index in self.len()..next(Some(upto)) {
            // A node that was given a snapshot does not have the entries itself.
            let of = |log: &NodeLog| log.entries.get(&index).cloned();
            let elsewhere =
                || logs.iter().filter(|log| log.committed.is_some_and(|c| c.index.get() >= index)).find_map(of);
            let Some(entry) = of(&logs[place]).or_else(elsewhere) else {
                let what = format!("machine {place} takes {upto} for committed, and nobody has entry {index}");
                return Err(Violation::new(NAME, what));
            };
            if let Payload::Membership(_) = entry.payload {
                self.memberships.push(self.entries.len());
            }
            self.entries.push(entry);
        }
        let known = self.get(upto.index.get()).map(|entry| LogPosition::from(entry.log_id));
        if known == Some(upto) {
            return Ok(());
        }
        let what = format!("machine {place} takes {upto} for committed, where {known:?} is");
        Err(Violation::new(NAME, what))
    }

    /// A node is about to remove what stands behind a position.
    pub(super) fn truncated(&self, place: Place, log: &NodeLog, keep: Option<LogPosition>) -> Result<(), Violation> {
        // Only what the node itself took for committed: the others' news may be younger than its own log.
        let Some(committed) = log.committed.filter(|committed| Some(*committed) > keep) else { return Ok(()) };
        let what = format!("machine {place} removes what is behind {keep:?}, but {committed} is committed");
        Err(Violation::new(NAME, what))
    }
}
