//! purged ≤ snapshot ≤ applied ≤ committed ≤ last on every node, and none of a node's figures goes back while it lives.
//!
//! Guarantees: looked at wherever a node is asked for its status. Leaves out: snapshots between two looks.

use quorate::node::NodeStatus;
use quorate::types::{LogIndex, Revision};

use super::{NodeLog, Violation};
use crate::wire::Place;

/// The highest figures of a life.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    applied: Option<LogIndex>,
    revision: Revision,
    purged: Option<LogIndex>,
    term: u64,
}

pub(super) struct Order {
    seen: Vec<Seen>,
    /// Machines whose snapshots were damaged, until there is one again that reaches as far as they must.
    damaged: Vec<bool>,
}

impl Order {
    pub(super) fn new(machines: usize) -> Self {
        Self { seen: vec![Seen::default(); machines], damaged: vec![false; machines] }
    }

    pub(super) fn crashed(&mut self, place: Place) {
        self.seen[place] = Seen::default();
    }

    pub(super) fn snapshots_damaged(&mut self, place: Place) {
        self.damaged[place] = true;
    }

    pub(super) fn wiped(&mut self, place: Place) {
        self.damaged[place] = false;
    }

    pub(super) fn check(&mut self, place: Place, status: &NodeStatus, log: &NodeLog) -> Result<(), Violation> {
        let wrong = |what: String| Err(Violation::new("order of indexes", format!("machine {place}: {what}")));
        let purged = log.purged.map(|purged| purged.index);
        let (snapshot, applied) = (status.snapshot_index, status.applied_index);
        if purged <= snapshot {
            self.damaged[place] = false;
        } else if !self.damaged[place] {
            return wrong(format!("purged up to {purged:?}, but the snapshot ends at {snapshot:?}"));
        }
        if snapshot > applied {
            return wrong(format!("the snapshot ends at {snapshot:?}, but only {applied:?} is applied"));
        }
        let (committed, end) = (status.committed_index, status.last_log_index);
        if applied > committed {
            return wrong(format!("{applied:?} is applied, but only {committed:?} is known to be committed"));
        }
        if committed > end {
            return wrong(format!("committed up to {committed:?}, but the log ends at {end:?}, as it says itself"));
        }
        let last = log.last().map(|last| last.index);
        if log.committed.map(|committed| committed.index) > last {
            return wrong(format!("committed up to {:?}, but the log ends at {last:?}", log.committed));
        }
        let now = Seen { applied, revision: status.revision, purged, term: status.term.get() };
        let before = std::mem::replace(&mut self.seen[place], now);
        let back = now.applied < before.applied
            || now.revision < before.revision
            || now.purged < before.purged
            || now.term < before.term;
        if back { wrong(format!("{now:?} behind {before:?}")) } else { Ok(()) }
    }
}
