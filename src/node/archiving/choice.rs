//! Which node archives to a place, and up to where the log need not be kept for any.
//!
//! Guarantees: nodes that have heard the same choose the same; a node that archives keeps doing so as long as none is in a
//! better position; nobody is chosen whose store fails. Two that choose differently for a while do no harm (`backup`). What
//! is not known to be archived is kept. Leaves out: hearing (`gossip`), and the bound of what is kept (`raft::retention`).

use std::time::Duration;

use super::GONE_AFTER;
use crate::types::{LogIndex, NodeId};

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

/// How a place stands with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Whether the log goes there.
    pub(super) log: bool,
    /// The last entry that need not be sent there any more; `None` while nobody has told, as after a start.
    pub(super) done: Option<LogIndex>,
}

/// Up to where no place needs the log any more; `None` if none ever does.
pub(super) fn hold(places: impl Iterator<Item = Need>) -> Option<LogIndex> {
    places.filter(|place| place.log).map(|place| place.done.unwrap_or(LogIndex::ZERO)).min()
}

/// Whether a node knows enough of others to choose: `told` of `live` ones that were heard from lately have told how they stand
/// with a place that this node has known for `known`. Of one that was declared just now they may not have told yet, and each
/// would think that it is alone; one of the configuration may be this node's alone.
pub(super) fn is_settled(declared: bool, told: usize, live: usize, known: Duration) -> bool {
    !declared || told >= live || known >= GONE_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(places: &[(bool, Option<u64>)]) -> Option<u64> {
        let need = |(log, done): &(bool, Option<u64>)| Need { log: *log, done: done.map(LogIndex::new) };
        hold(places.iter().map(need)).map(LogIndex::get)
    }

    #[test]
    fn the_log_is_kept_for_the_place_that_is_the_farthest_behind() {
        assert_eq!(held(&[(true, Some(90))]), Some(90));
        assert_eq!(held(&[(true, Some(90)), (true, Some(70)), (true, Some(80))]), Some(70));
        assert_eq!(held(&[(true, Some(90)), (false, Some(10)), (false, None)]), Some(90), "whole states need no log");
    }

    #[test]
    fn nothing_is_removed_before_it_is_known_what_is_archived() {
        assert_eq!(held(&[(true, None)]), Some(0), "as after a start");
        assert_eq!(held(&[(true, Some(90)), (true, None)]), Some(0));
    }

    #[test]
    fn without_a_place_for_the_log_none_is_kept() {
        assert_eq!(held(&[]), None);
        assert_eq!(held(&[(false, None), (false, Some(3))]), None);
    }

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
    fn of_a_place_that_was_declared_just_now_the_others_are_heard_first() {
        let soon = Duration::from_millis(100);
        assert!(!is_settled(true, 1, 2, soon));
        assert!(is_settled(true, 2, 2, soon) && is_settled(true, 0, 0, soon), "nobody else is there");
        assert!(is_settled(true, 1, 2, GONE_AFTER), "one that never tells holds up nobody");
        assert!(is_settled(false, 0, 2, soon), "others need not have it in their configuration");
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
