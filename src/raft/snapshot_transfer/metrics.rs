//! What transfers of snapshots count.
//!
//! Guarantees: a part costs a few atomic additions. Leaves out: what its calls take (`transport`).

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Figures of sending and receiving snapshots. Clones share them.
#[derive(Debug, Clone, Default)]
pub(in crate::raft) struct TransferMetrics {
    /// Transfers whose beginning a member has answered.
    pub(super) begun: Counter,
    /// Transfers that ended with an installed snapshot.
    pub(super) finished: Counter,
    /// Transfers under way.
    pub(super) active: Gauge,
    /// Bytes of parts sent.
    pub(super) sent: Counter,
    /// Those of them that were sent before.
    pub(super) sent_again: Counter,
    /// Time waited for the limit.
    pub(super) limited: Counter<f64, AtomicU64>,
    /// Bytes of parts received and kept.
    pub(super) received: Counter,
}

impl TransferMetrics {
    /// New figures, shown by `registry`.
    pub(in crate::raft) fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        let catchup = registry.sub_registry_with_prefix("catchup");
        catchup.register("begun", "Transfers of a snapshot to a member that it has answered", new.begun.clone());
        catchup.register("finished", "Transfers of a snapshot that ended with its installation", new.finished.clone());
        catchup.register("active", "Transfers of a snapshot to members under way", new.active.clone());
        let sent = "Bytes of snapshots sent to members, compressed as they are in the file";
        catchup.register_with_unit("sent", sent, Unit::Bytes, new.sent.clone());
        let again = "Bytes of snapshots sent again, because it was not known whether they had arrived";
        catchup.register_with_unit("sent_again", again, Unit::Bytes, new.sent_again.clone());
        let limited = "Time that transfers have waited for the limit";
        catchup.register_with_unit("limited", limited, Unit::Seconds, new.limited.clone());
        let received = "Bytes of snapshots received from leaders and kept";
        catchup.register_with_unit("received", received, Unit::Bytes, new.received.clone());
        new
    }
}
