//! Who leads, as this node knows it.
//!
//! Guarantees: cheap to ask, and changes can be awaited. Leaves out: proof. Somebody else may lead by now; whoever acts on
//! an answer must be able to be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;

use tokio_util::sync::CancellationToken;

use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::types::{Member, NodeId, Term};

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

/// No call of a leader yet.
const NEVER: u64 = u64::MAX;

/// Asks openraft's metrics. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leadership {
    me: NodeId,
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    /// When the leader last called, in milliseconds since `epoch`; [`NEVER`] in this life.
    heard_ms: Arc<AtomicU64>,
    epoch: Instant,
}

impl Leadership {
    pub(super) fn new(me: NodeId, metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>) -> Self {
        Self { me, metrics, heard_ms: Arc::new(AtomicU64::new(NEVER)), epoch: clock::now() }
    }

    /// The leader called: it is alive, and reaches this node.
    pub(super) fn heard(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now, Ordering::Relaxed);
    }

    /// As [`Self::leader`], but another leader that was silent for longer than `silence` counts as none: openraft goes on
    /// naming it until the next one is elected, which without a quorum is never.
    pub(super) fn leader_heard(&self, silence: Duration) -> Leader {
        // After a start the vote on disk names a leader of the last life.
        let heard = Some(self.heard_ms.load(Ordering::Relaxed)).filter(|heard| *heard != NEVER);
        let silent = heard.is_none_or(|heard| (self.epoch + Duration::from_millis(heard)).elapsed() > silence);
        match self.leader() {
            Leader::Other(..) if silent => Leader::None,
            leader => leader,
        }
    }

    /// Tells the log who leads, whenever that changes, until `shutdown`.
    pub(super) async fn tell(self, silence: Duration, shutdown: CancellationToken) {
        let mut changes = self.subscribe();
        let mut told = None;
        loop {
            let leader = self.leader_heard(silence);
            if leader.is_known() != told.is_some() || told.as_ref().is_some_and(|told| *told != leader) {
                match &leader {
                    Leader::Me => tracing::info!("this node leads"),
                    Leader::Other(id, member) => tracing::info!(leader = member.name, id = id.get(), "following"),
                    Leader::None => tracing::warn!("no leader is heard from"),
                }
                told = leader.is_known().then_some(leader);
            }
            // Silence brings no news by itself, so it is looked for.
            let news = tokio::time::timeout(silence, changes.changed());
            if shutdown.run_until_cancelled(news).await.is_none() {
                return;
            }
        }
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

    pub(super) fn me(&self) -> NodeId {
        self.me
    }

    /// The current term.
    pub(super) fn term(&self) -> Term {
        self.metrics.borrow_watched().vote.leader_id.term
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
    fn is_known(&self) -> bool {
        !matches!(self, Self::None)
    }

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
