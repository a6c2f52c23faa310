//! Election safety and leader completeness: only the leader that a position names makes its entry, a term of a node is one
//! reign, and a new leader has all that was committed before.
//!
//! A term may see more than one elected leader here; they are ordered by (term, node), and that pair must be unique.
//! Guarantees: exact for what is known to be committed when a leader writes its first entry. Leaves out: votes that were
//! given and came to nothing.

use std::collections::BTreeMap;

use quorate::raft::types::Entry;
use quorate::types::{LogPosition, NodeId};

use super::chosen::Chosen;
use super::{NodeLog, Violation};
use crate::wire::Place;

/// The reigns that were seen, each with the machine of its leader.
#[derive(Default)]
pub(super) struct Election {
    reigns: BTreeMap<(u64, NodeId), Place>,
}

impl Election {
    /// How many reigns there were.
    pub(super) fn reigns(&self) -> usize {
        self.reigns.len()
    }

    /// An entry is about to stand behind this log.
    pub(super) fn appended(
        &mut self,
        place: Place,
        id: Option<NodeId>,
        log: &NodeLog,
        entry: &Entry,
        chosen: &Chosen,
    ) -> Result<(), Violation> {
        let position = LogPosition::from(entry.log_id);
        let reign = (position.term.get(), position.leader);
        if self.reigns.contains_key(&reign) {
            return Ok(());
        }
        if let Some(id) = id
            && id != position.leader
        {
            let what = format!("node {id} has {position}, which node {} never wrote", position.leader);
            return Err(Violation::new("election safety", what));
        }
        self.reigns.insert(reign, place);
        // The first entry of a reign, on its leader: what was committed before must be there.
        let Some(last) = chosen.last() else { return Ok(()) };
        let index = last.index.get();
        let has = log.entries.get(&index).map(|entry| LogPosition::from(entry.log_id)) == Some(last)
            || log.purged.is_some_and(|purged| purged.index.get() >= index);
        let later = (last.term.get(), last.leader) > reign;
        if has || later {
            return Ok(());
        }
        let what = format!(
            "machine {place} leads in {reign:?} without {last}, which is committed; its log ends at {:?}",
            log.last()
        );
        Err(Violation::new("leader completeness", what))
    }
}
