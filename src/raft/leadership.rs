//! Who leads, as this node knows it.
//!
//! openraft's leader that has lost its quorum refuses new entries once its lease is over, but goes on calling itself leader
//! until it hears of the next one, which may be never. Here it steps down: it counts as no leader, and whoever waits for it
//! to serve is turned away at once, not at their deadlines.
//!
//! Guarantees: cheap to ask, and changes can be awaited. Leaves out: proof. Somebody else may lead by now; whoever acts on
//! an answer must be able to be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant as _, RaftMetrics};
use tokio_util::sync::CancellationToken;

use super::membership_change::Roster;
use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::types::{Member, NodeId, Term};
use crate::watch;

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

/// It has not happened yet.
const NEVER: u64 = u64::MAX;

/// A leader has lost its quorum once it was found without one so many times in a row: one that slept is given the time to
/// hear from the others before it turns anybody away.
const LOST_LOOKS: u32 = 2;

/// The time in leases within which somebody is elected behind a hand-over that failed: writes wait for that.
const HAND_OVER_LEASES: u32 = 3;

/// Asks openraft's metrics. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leadership {
    me: NodeId,
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    /// When the leader last called, in milliseconds since `epoch`; [`NEVER`] in this life.
    heard_ms: Arc<AtomicU64>,
    epoch: Instant,
    /// When this node last began to hand over, as `heard_ms`.
    handed_ms: Arc<AtomicU64>,
    /// Whether this node leads and has lost its quorum, as far as [`Self::watch_quorum`] found.
    lost: Arc<watch::Sender<bool>>,
}

impl Leadership {
    pub(super) fn new(me: NodeId, metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>) -> Self {
        let lost = Arc::new(watch::Sender::new(false));
        let never = || Arc::new(AtomicU64::new(NEVER));
        Self { me, metrics, heard_ms: never(), epoch: clock::now(), handed_ms: never(), lost }
    }

    /// The leader called: it is alive, and reaches this node.
    pub(super) fn heard(&self) {
        self.note(&self.heard_ms);
    }

    /// This node begins to hand over: it asks for no confirmation any more, and that it gets none means nothing.
    pub(super) fn hands_over(&self) {
        self.note(&self.handed_ms);
    }

    fn note(&self, moment: &AtomicU64) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        moment.store(now, Ordering::Relaxed);
    }

    /// The time since a moment that was noted; `None` if none was.
    fn since(&self, moment: &AtomicU64) -> Option<Duration> {
        let noted = Some(moment.load(Ordering::Relaxed)).filter(|noted| *noted != NEVER)?;
        Some((self.epoch + Duration::from_millis(noted)).elapsed())
    }

    /// Looks again and again whether this node leads without a quorum, until `shutdown`. A quorum is lost when none has
    /// confirmed the leadership for as long as `lease`.
    pub(super) async fn watch_quorum(
        self,
        raft: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
        lease: Duration,
        pause: Duration,
        shutdown: CancellationToken,
    ) {
        let mut changes = self.subscribe();
        let mut found = 0;
        let mut unconfirmed = None;
        loop {
            let news = tokio::time::timeout(pause, changes.changed());
            let Some(news) = shutdown.run_until_cancelled(news).await else { return };
            // A change can only end it: it is counted as often as it was looked for.
            let looked = u32::from(news.is_err());
            let hands_over = self.since(&self.handed_ms).is_some_and(|begun| begun < lease * HAND_OVER_LEASES);
            let age = match confirmed_age(&raft.borrow_watched()) {
                // Elected, and nobody has answered since.
                Some(None) => Some(unconfirmed.get_or_insert_with(clock::now).elapsed()),
                known => {
                    unconfirmed = None;
                    known.flatten()
                }
            };
            let overdue = !hands_over && age.is_some_and(|age| age > lease);
            found = if overdue { found + looked } else { 0 };
            let lost = found >= LOST_LOOKS;
            if self.lost.send_if_modified(|before| std::mem::replace(before, lost) != lost) && lost {
                tracing::warn!("no quorum confirms that this node leads; it stops serving until one does");
            }
        }
    }

    /// Whether this node leads, but has lost its quorum, and when that changes.
    pub(super) fn lost_quorum(&self) -> watch::Receiver<bool> {
        self.lost.subscribe()
    }

    /// Whether this node leads, and has a quorum as far as it knows.
    pub(super) fn leads(&self) -> bool {
        self.leader() == Leader::Me && !*self.lost.borrow()
    }

    /// As [`Self::leader`], but this node counts as none if it has lost its quorum, and so does another leader that was
    /// silent for longer than `silence`: openraft goes on naming it until the next one is elected, which without a quorum
    /// is never.
    pub(super) fn leader_heard(&self, silence: Duration) -> Leader {
        // After a start the vote on disk names a leader of the last life.
        let silent = self.since(&self.heard_ms).is_none_or(|heard| heard > silence);
        match self.leader() {
            Leader::Other(..) if silent => Leader::None,
            Leader::Me if *self.lost.borrow() => Leader::None,
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

    /// The members, as the newest entry has them that this node knows to be committed.
    pub(super) fn committed_roster(&self) -> Roster {
        let metrics = self.metrics.borrow_watched();
        Roster::of(&metrics.committed_membership_config, &metrics.committed_membership_config)
    }

    /// The members, as the newest entry has them that this node has.
    pub(super) fn roster(&self) -> Roster {
        let metrics = self.metrics.borrow_watched();
        Roster::of(&metrics.membership_config, &metrics.committed_membership_config)
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

/// How long ago a quorum has confirmed this leader of others, `Some(None)` if none ever has; `None` if it is no such leader.
fn confirmed_age(metrics: &RaftMetrics<TypeConfig>) -> Option<Option<Duration>> {
    leads_others(metrics).then(|| metrics.last_quorum_acked.as_ref().map(|at| at.elapsed()))
}

fn leads_others(metrics: &RaftMetrics<TypeConfig>) -> bool {
    let alone = || metrics.membership_config.membership().voter_ids().all(|id| id == metrics.id);
    metrics.state.is_leader() && !alone()
}

/// For how much longer than `lease` a quorum has not confirmed this leader of others; `None` if it has, or never did, or this
/// is no such leader.
pub(super) fn overdue(metrics: &RaftMetrics<TypeConfig>, lease: Duration) -> Option<Duration> {
    // The time first: this is asked for each append.
    let overdue = metrics.last_quorum_acked.as_ref()?.elapsed().checked_sub(lease)?;
    (!overdue.is_zero() && leads_others(metrics)).then_some(overdue)
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
pub struct LeadershipChanges(WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>);

impl LeadershipChanges {
    /// Waits for the next change; for ever once Raft has stopped.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
