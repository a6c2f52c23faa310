//! Who leads, as this node knows it.
//!
//! Guarantees: cheap to ask, and changes can be awaited. Leaves out: proof. Somebody else may lead by now; whoever acts on
//! an answer must be able to be refused.

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;

use super::types::TypeConfig;
use crate::types::{Member, NodeId};

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    /// This node.
    Me,
    /// Another member.
    Other(NodeId, Member),
    /// Nobody that this node knows of.
    None,
}

/// Asks openraft's metrics. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leadership {
    me: NodeId,
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
}

impl Leadership {
    pub(super) fn new(me: NodeId, metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>) -> Self {
        Self { me, metrics }
    }

    pub(super) fn leader(&self) -> Leader {
        let metrics = self.metrics.borrow_watched();
        match metrics.current_leader {
            // openraft names the last leader it voted for; only a node in the leader state may propose.
            Some(id) if id == self.me && metrics.state.is_leader() => Leader::Me,
            Some(id) if id != self.me => match metrics.membership_config.membership().get_node(&id) {
                Some(member) => Leader::Other(id, member.clone()),
                None => Leader::None,
            },
            _ => Leader::None,
        }
    }

    /// A receiver that sees changes from now on. Subscribe first, then ask [`Self::leader`], so that no change is missed.
    pub(super) fn subscribe(&self) -> LeadershipChanges {
        let mut metrics = self.metrics.clone();
        // A clone has the age of what it was cloned from: bring it up to date.
        drop(metrics.borrow_and_update());
        LeadershipChanges(metrics)
    }
}

impl Leader {
    pub(super) fn id(&self) -> Option<NodeId> {
        match self {
            Self::Other(id, _) => Some(*id),
            Self::Me | Self::None => None,
        }
    }
}

/// Waits for news of the leadership (and a few other things that change as rarely).
pub(super) struct LeadershipChanges(WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>);

impl LeadershipChanges {
    /// Waits for the next change; for ever once Raft has stopped.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
