//! How much of the log a node keeps, and when it makes a snapshot.
//!
//! Guarantees: nothing is removed that no verified snapshot covers; what a member is about to need is kept, but never more
//! than [`LOG_SIZES_HELD`] times what makes a snapshot due, so that no member can fill another's disk. Leaves out: asking
//! for any of it (`maintenance`).

use std::time::Duration;

use crate::types::NodeId;

/// Log entries kept behind a snapshot, so that a follower that was away for a short while need not load it: some minutes
/// of a busy leader, which makes about a thousand entries a second. Each takes about a hundred bytes of memory.
const LOG_ENTRIES_KEPT: u64 = 200_000;

/// The log is removed behind snapshots once it is larger than this many times what makes one due. As that is at least the
/// size of a snapshot, a member that was away for as long as a snapshot takes to send finds the log it needs, unless more
/// was written meanwhile than `--catchup-limit` sends.
const LOG_SIZES_KEPT: u64 = 2;

/// Beyond this many times what makes a snapshot due the log is removed also if members need it still.
const LOG_SIZES_HELD: u64 = 4;

/// The log is removed in steps of so many entries, unless its size asks for it.
const REMOVE_ENTRIES_MIN: u64 = 1_000;

/// The log is kept for a member that was heard from within this time: one that is restarted is, one that is gone is not.
const REACHABLE_WITHIN: Duration = Duration::from_secs(60);

/// By how much of itself, as a divisor, the size of the log that makes a snapshot due differs from node to node at most.
const SPREAD_PART: u64 = 4;

/// A number whose multiples spread evenly over the range of a `u64`: 2^64 by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a node knows of its log. Numbers of entries are indexes.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogView<'a> {
    /// Up to where it was removed.
    pub(super) purged: Option<u64>,
    /// The last entries covered by verified snapshots, ascending.
    pub(super) snapshots: &'a [u64],
    /// Up to where members still need it: they have everything up to there. `None` if nobody does.
    pub(super) needed: Option<u64>,
    /// Its size on disk.
    pub(super) bytes: u64,
    /// The size that makes a snapshot due.
    pub(super) due_bytes: u64,
}

impl LogView<'_> {
    /// Up to which entry it should be removed now, if at all.
    pub(super) fn removable(&self) -> Option<u64> {
        let newest = *self.snapshots.last()?;
        let purged = self.purged.unwrap_or(0);
        let by_count = newest.saturating_sub(LOG_ENTRIES_KEPT);
        let by_count = if by_count >= purged + REMOVE_ENTRIES_MIN { by_count } else { 0 };
        let over = |sizes: u64| self.bytes > self.due_bytes.saturating_mul(sizes);
        // An older snapshot if that frees anything, so that a member that was away for a while finds more.
        let older = self.snapshots.iter().copied().find(|covered| *covered > purged).unwrap_or(0);
        let by_size = if over(LOG_SIZES_KEPT) { older } else { 0 };
        let mut upto = by_count.max(by_size);
        if !over(LOG_SIZES_HELD) {
            upto = upto.min(self.needed.unwrap_or(u64::MAX));
        }
        (upto > purged).then_some(upto)
    }
}

/// What a leader knows of another member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Follower {
    /// Up to where its log is known to be the leader's; `None` until it has told.
    pub(super) matched: Option<u64>,
    /// How long ago it was heard from last.
    pub(super) heard: Option<Duration>,
}

/// Up to where followers that can be reached have the log, of those that a log which begins behind `purged` can serve.
pub(super) fn needed(followers: impl Iterator<Item = Follower>, purged: Option<u64>) -> Option<u64> {
    let purged = purged.unwrap_or(0);
    let reachable = followers.filter(|one| one.heard.is_some_and(|heard| heard < REACHABLE_WITHIN));
    // Of one that has not told yet all is kept that there is. One that lacks what is gone gets a snapshot.
    reachable.map(|one| one.matched.unwrap_or(purged)).filter(|matched| *matched >= purged).min()
}

/// How much log makes a snapshot due on this node: `bytes`, and up to a quarter more, for each node another part of it.
/// Nodes of a group write the same log, and would all make their snapshots at the same time.
pub(super) fn due_bytes(bytes: u64, me: NodeId) -> u64 {
    let place = me.get().wrapping_mul(GOLDEN);
    let more = (u128::from(bytes / SPREAD_PART) * u128::from(place)) >> 64;
    bytes.saturating_add(u64::try_from(more).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    const VIEW: LogView<'static> = LogView {
        purged: Some(1_000_000),
        snapshots: &[1_500_000, 2_000_000],
        needed: None,
        bytes: 300 * MIB,
        due_bytes: 256 * MIB,
    };

    #[test]
    fn nothing_is_removed_that_no_snapshot_covers() {
        assert_eq!(LogView { snapshots: &[], bytes: u64::MAX, ..VIEW }.removable(), None);
        let all = LogView { purged: Some(2_000_000), bytes: u64::MAX, ..VIEW };
        assert_eq!(all.removable(), None);
        for bytes in [0, 300 * MIB, 600 * MIB, u64::MAX] {
            let upto = LogView { bytes, ..VIEW }.removable();
            assert!(upto.is_none_or(|upto| upto <= 2_000_000), "{upto:?}");
        }
    }

    #[test]
    fn a_number_of_entries_is_kept_behind_the_newest_snapshot() {
        assert_eq!(VIEW.removable(), Some(1_800_000));
        assert_eq!(LogView { purged: Some(1_800_000), ..VIEW }.removable(), None);
        assert_eq!(LogView { purged: Some(1_799_500), ..VIEW }.removable(), None, "not for a few");
        assert_eq!(LogView { purged: None, snapshots: &[100], ..VIEW }.removable(), None);
    }

    #[test]
    fn a_large_log_is_removed_snapshot_by_snapshot() {
        let large = LogView { purged: Some(1_950_000), bytes: 600 * MIB, ..VIEW };
        assert_eq!(large.removable(), Some(2_000_000));
        let few = LogView { purged: None, snapshots: &[10, 20], bytes: 600 * MIB, ..VIEW };
        assert_eq!(few.removable(), Some(10));
        assert_eq!(LogView { purged: Some(10), ..few }.removable(), Some(20));
        assert_eq!(LogView { bytes: 500 * MIB, ..few }.removable(), None);
    }

    #[test]
    fn what_members_need_is_kept_as_long_as_there_is_room() {
        let view = LogView { needed: Some(1_200_000), ..VIEW };
        assert_eq!(view.removable(), Some(1_200_000));
        assert_eq!(LogView { bytes: 1_024 * MIB, ..view }.removable(), Some(1_200_000));
        assert_eq!(LogView { bytes: 1_025 * MIB, ..view }.removable(), Some(1_800_000), "no member fills the disk");
        assert_eq!(LogView { needed: Some(1_000_000), ..VIEW }.removable(), None);
        assert_eq!(LogView { needed: Some(5), ..VIEW }.removable(), None, "it has what it had");
    }

    #[test]
    fn the_log_is_kept_for_who_can_be_reached_and_served_from_it() {
        let follower = |matched, seconds| Follower { matched, heard: Some(Duration::from_secs(seconds)) };
        let needed = |followers: &[Follower]| needed(followers.iter().copied(), Some(100));
        assert_eq!(needed(&[follower(Some(900), 0), follower(Some(300), 5)]), Some(300));
        assert_eq!(needed(&[follower(Some(900), 0), follower(Some(300), 120)]), Some(900), "gone");
        assert_eq!(needed(&[follower(Some(900), 0), Follower { matched: Some(300), heard: None }]), Some(900));
        assert_eq!(needed(&[follower(Some(900), 0), follower(Some(99), 0)]), Some(900), "it gets a snapshot");
        assert_eq!(needed(&[follower(Some(900), 0), follower(None, 0)]), Some(100), "not known yet");
        assert_eq!(needed(&[]), None);
    }

    #[test]
    fn nodes_make_their_snapshots_at_different_sizes() {
        for nodes in [3, 5, 7] {
            let mut sizes: Vec<u64> = (1..=nodes).map(|id| due_bytes(256 * MIB, NodeId::new(id))).collect();
            assert!(sizes.iter().all(|size| (256 * MIB..=320 * MIB).contains(size)), "{sizes:?}");
            sizes.sort_unstable();
            // An even spread of so many would be 64 MiB by their number.
            let least = 64 * MIB / nodes / 2;
            assert!(sizes.windows(2).all(|pair| pair[1] - pair[0] >= least), "{sizes:?}");
        }
        assert_eq!(due_bytes(u64::MAX, NodeId::new(2)), u64::MAX);
        assert_eq!(due_bytes(0, NodeId::new(2)), 0);
    }
}
