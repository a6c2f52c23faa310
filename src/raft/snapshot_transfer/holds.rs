//! The part of the log that members will need who are being sent a snapshot.
//!
//! Guarantees: from the first answer of a member to the end of its transfer, and for [`GRACE`] behind that, it is known here
//! up to where the log may be removed at most; a transfer whose log was removed all the same is told. Leaves out: when the
//! log is removed (`maintenance`), and for how long it is worth keeping (`retention`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{self, Instant};
use crate::types::NodeId;

/// For how long the log is kept behind a transfer that has ended: until the member is known to follow it, or the transfer
/// is tried again.
const GRACE: Duration = Duration::from_secs(30);

/// What all transfers of a node hold of the log. Clones share it.
#[derive(Debug, Clone, Default)]
pub(in crate::raft) struct LogHolds(Arc<Mutex<Vec<Held>>>);

#[derive(Debug)]
struct Held {
    target: NodeId,
    /// Index of the last entry that the member will not need.
    covered: u64,
    /// When it ends; `None` while the transfer goes on.
    until: Option<Instant>,
    lost: Arc<AtomicBool>,
}

/// Keeps the log for one member. Ends some time after it was dropped.
#[derive(Debug)]
pub(super) struct Hold {
    holds: LogHolds,
    target: NodeId,
    lost: Arc<AtomicBool>,
}

impl LogHolds {
    /// Keeps the entries behind `covered` for a member, in the place of what was kept for it before.
    pub(super) fn hold(&self, target: NodeId, covered: u64) -> Hold {
        let lost = Arc::new(AtomicBool::new(false));
        let mut held = self.0.lock();
        held.retain(|held| held.target != target);
        held.push(Held { target, covered, until: None, lost: Arc::clone(&lost) });
        Hold { holds: self.clone(), target, lost }
    }

    /// Up to which entry the log may be removed without loss to any transfer; `None` if there is none.
    pub(in crate::raft) fn lowest(&self) -> Option<u64> {
        let now = clock::now();
        let mut held = self.0.lock();
        held.retain(|held| held.until.is_none_or(|until| until > now));
        held.iter().map(|held| held.covered).min()
    }

    /// Takes note that the log was removed up to this entry, all the same.
    pub(in crate::raft) fn removed(&self, index: u64) {
        self.0.lock().retain(|held| {
            let lost = held.covered < index;
            held.lost.fetch_or(lost, Ordering::Relaxed);
            !lost
        });
    }
}

impl Hold {
    /// Whether the log no longer continues the snapshot, so that sending the rest of it is in vain.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let until = clock::now() + GRACE;
        for held in self.holds.0.lock().iter_mut() {
            if held.target == self.target && Arc::ptr_eq(&held.lost, &self.lost) {
                held.until = Some(until);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_log_is_kept_for_every_transfer_and_a_while_behind_it() {
        let holds = LogHolds::default();
        assert_eq!(holds.lowest(), None);
        let first = holds.hold(NodeId::new(2), 100);
        let second = holds.hold(NodeId::new(3), 50);
        assert_eq!(holds.lowest(), Some(50));
        drop(second);
        assert_eq!(holds.lowest(), Some(50), "it may be tried again");
        tokio::time::advance(GRACE + Duration::from_secs(1)).await;
        assert_eq!(holds.lowest(), Some(100));
        drop(first);
        tokio::time::advance(GRACE + Duration::from_secs(1)).await;
        assert_eq!(holds.lowest(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_has_one_hold_and_a_new_one_outlives_the_old() {
        let holds = LogHolds::default();
        let old = holds.hold(NodeId::new(2), 100);
        let new = holds.hold(NodeId::new(2), 200);
        drop(old);
        tokio::time::advance(GRACE * 2).await;
        assert_eq!(holds.lowest(), Some(200));
        drop(new);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_without_its_log_is_told() {
        let holds = LogHolds::default();
        let (low, high) = (holds.hold(NodeId::new(2), 100), holds.hold(NodeId::new(3), 200));
        holds.removed(100);
        assert!(!low.is_lost());
        holds.removed(150);
        assert!(low.is_lost() && !high.is_lost());
        assert_eq!(holds.lowest(), Some(200), "what is lost holds nothing up");
    }
}
