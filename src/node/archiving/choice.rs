//! Which node archives to a place.
//!
//! Guarantees: nodes that have heard the same choose the same; a node that archives keeps doing so as long as none is in a
//! better position; nobody is chosen whose store fails. Two that choose differently for a while do no harm (`backup`).
//! Leaves out: hearing (`gossip`).

use crate::types::NodeId;

/// A node that lacks more entries than this of those another candidate has applied is passed over for it: what it archives
/// would be late.
const LAG_ENTRIES_MAX: u64 = 5_000;

/// A node that could archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: NodeId,
    /// Whether the store did what it asked of it last.
    pub(super) healthy: bool,
    /// Whether its log reaches back to what is archived.
    pub(super) continues: bool,
    pub(super) leads: bool,
    pub(super) active: bool,
    /// The last entry it has applied.
    pub(super) applied: u64,
}

/// Who archives; `None` while no store can be used.
pub(super) fn choose(candidates: &[Candidate]) -> Option<NodeId> {
    let farthest = candidates.iter().map(|one| one.applied).max().unwrap_or(0);
    let rank = |one: &&Candidate| {
        let late = farthest.saturating_sub(one.applied) > LAG_ENTRIES_MAX;
        // The leader has enough to do.
        (!one.continues, late, one.leads, !one.active, one.id)
    };
    candidates.iter().filter(|one| one.healthy).min_by_key(rank).map(|one| one.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: u64) -> Candidate {
        let id = NodeId::new(id);
        Candidate { id, healthy: true, continues: true, leads: false, active: false, applied: 100_000 }
    }

    fn chosen(candidates: &[Candidate]) -> Option<u64> {
        choose(candidates).map(NodeId::get)
    }

    #[test]
    fn a_follower_with_log_and_store_archives_and_goes_on_doing_so() {
        let leader = Candidate { leads: true, ..candidate(1) };
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[leader]), Some(1), "better the leader than nobody");
        assert_eq!(chosen(&[leader, candidate(2), candidate(3)]), Some(2));
        let busy = Candidate { active: true, ..candidate(3) };
        assert_eq!(chosen(&[leader, candidate(2), busy]), Some(3));
        assert_eq!(chosen(&[candidate(2), Candidate { leads: true, ..busy }]), Some(2), "it came to lead");
    }

    #[test]
    fn who_would_archive_nothing_or_late_is_passed_over() {
        let busy = Candidate { active: true, ..candidate(2) };
        assert_eq!(chosen(&[Candidate { healthy: false, ..busy }, candidate(3)]), Some(3));
        assert_eq!(chosen(&[Candidate { healthy: false, ..busy }]), None);
        let leader = Candidate { leads: true, ..candidate(1) };
        assert_eq!(chosen(&[leader, Candidate { continues: false, ..busy }]), Some(1));
        assert_eq!(chosen(&[leader, Candidate { applied: 94_999, ..busy }]), Some(1));
        assert_eq!(chosen(&[leader, Candidate { applied: 95_000, ..busy }]), Some(2));
    }
}
