//! Moving the leadership on purpose, from the leader's side.
//!
//! openraft does the protocol (Ongaro's thesis §3.10 and §4.2.3): the leader takes no new entries and sends no heartbeats
//! any more, tells all voters so that their leases end, and the chosen one campaigns at once when it has every entry.
//! Commands and reads that come meanwhile wait in the proposer and the read barrier, and go to whoever leads next.
//!
//! openraft does not take it back: if the chosen one fails now, nobody writes until the others elect, an election timeout
//! later. So whoever calls this has found out before that the target is there and has the log.
//!
//! Guarantees: one transfer at a time; an answer only when the next leader is known to be elected. Leaves out: whether
//! the target is a sensible one (`node`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::leadership::{Leader, Leadership};
use super::state_store::StateStore;
use super::types::TypeConfig;
use crate::clock::Instant;
use crate::types::NodeId;

/// Why the leadership was not moved, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// This node does not lead; perhaps this one does.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// Another transfer has not ended.
    #[error("another transfer is under way")]
    Busy,
    /// The voters were told, but no leader was elected within the deadline, as far as this node knows.
    #[error("no leader was elected within the deadline")]
    Unknown,
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

/// Figures of transfers that this node began as the leader.
#[derive(Debug, Clone, Default)]
pub(super) struct TransferMetrics {
    moved: Counter,
    failed: Counter,
}

impl TransferMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Times this node gave the leadership to the member it was meant for";
        registry.register("raft_leader_transfers", help, metrics.moved.clone());
        let help = "Times this node tried to and another member was elected, or none in time";
        registry.register("raft_leader_transfers_failed", help, metrics.failed.clone());
        metrics
    }
}

/// Moves the leadership away from this node. Cheap to clone.
#[derive(Clone)]
pub(super) struct LeaderMover {
    raft: openraft::Raft<TypeConfig, StateStore>,
    leadership: Leadership,
    busy: Arc<AtomicBool>,
    metrics: TransferMetrics,
}

/// The one transfer under way; over when dropped.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(busy: &'a AtomicBool) -> Option<Self> {
        (!busy.swap(true, Ordering::AcqRel)).then(|| Self(busy))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl LeaderMover {
    pub(super) fn new(
        raft: openraft::Raft<TypeConfig, StateStore>,
        leadership: Leadership,
        metrics: TransferMetrics,
    ) -> Self {
        Self { raft, leadership, busy: Arc::default(), metrics }
    }

    /// Has `to` take over, and waits until a leader is elected, no longer than to `deadline`; returns which one it is.
    pub(super) async fn transfer(&self, to: NodeId, deadline: Instant) -> Result<NodeId, MoveError> {
        let turn = Turn::take(&self.busy).ok_or(MoveError::Busy)?;
        let mut changes = self.leadership.subscribe();
        let leader = self.leadership.leader();
        if leader != Leader::Me {
            return Err(MoveError::NotLeader(leader.id()));
        }
        let term = self.leadership.term();
        tracing::info!(to = to.get(), term = term.get(), "handing over the leadership");
        self.leadership.hands_over();
        self.raft.trigger().transfer_leader(to).await.map_err(|_| MoveError::Stopping)?;
        let elected = async {
            loop {
                match self.leadership.leader() {
                    Leader::Other(id, _) => return id,
                    // Deposed, and elected again because the other could not be.
                    Leader::Me if self.leadership.term() > term => return self.leadership.me(),
                    Leader::Me | Leader::None => changes.changed().await,
                }
            }
        };
        let elected = tokio::time::timeout_at(deadline, elected).await;
        drop(turn);
        match elected {
            Ok(id) if id == to => self.metrics.moved.inc(),
            Ok(_) | Err(_) => self.metrics.failed.inc(),
        };
        elected.map_err(|_| MoveError::Unknown)
    }
}
