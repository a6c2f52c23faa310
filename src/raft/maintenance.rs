//! What a node does by itself in the background: snapshots by size of the log, freshness of reads, watching for the end.
//!
//! Guarantees: a snapshot is asked for once the log has outgrown both the configured size and the last snapshot, so that
//! writing snapshots at most doubles what is written; the log stays within a small multiple of that size, and is removed
//! here alone; a node that serves bounded reads refreshes its proof of freshness; what is left of a transfer that nobody goes
//! on with is removed. Leaves out: how any of it is done, and how much of the log is worth keeping (`retention`).

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, RaftMetrics};
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fatal::Fatal;
use super::log_store::LogStore;
use super::read_barrier::ReadBarrier;
use super::retention::{self, Follower, LogView};
use super::snapshot_transfer::{LogHolds, Receiver};
use super::state_store::{StateAccess, StateStore};
use super::types::TypeConfig;
use crate::clock;
use crate::types::NodeId;

/// How often the size of the log is looked at.
const SIZE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How often is looked for what is left of transfers.
const LEFTOVERS_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How old the proof of freshness may grow before it is renewed in the background.
const FRESHNESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long one renewal may take.
const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Background work of one node.
pub(super) struct Maintenance {
    pub(super) raft: openraft::Raft<TypeConfig, StateStore>,
    pub(super) log: LogStore,
    pub(super) state: StateAccess,
    pub(super) barrier: ReadBarrier,
    pub(super) me: NodeId,
    pub(super) snapshot_log_bytes: u64,
    pub(super) holds: LogHolds,
    pub(super) receiver: Arc<Mutex<Receiver>>,
    pub(super) fatal: Fatal,
}

impl Maintenance {
    pub(super) fn spawn(self, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let until = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    biased;
                    () = work => {}
                    () = stop.cancelled() => {}
                }
            });
        };
        let Self { raft, log, state, barrier, me, snapshot_log_bytes, holds, receiver, fatal } = self;
        let keeper =
            LogKeeper { raft: raft.clone(), log: log.clone(), state: state.clone(), me, snapshot_log_bytes, holds };
        until(Box::pin(keeper.run()));
        until(Box::pin(remove_leftovers(receiver, state)));
        until(Box::pin(freshness(barrier)));
        until(Box::pin(watch_for_the_end(raft, log, fatal)));
    }
}

/// Bounds the log: asks for snapshots, and removes what stands behind them.
struct LogKeeper {
    raft: openraft::Raft<TypeConfig, StateStore>,
    log: LogStore,
    state: StateAccess,
    me: NodeId,
    snapshot_log_bytes: u64,
    holds: LogHolds,
}

impl LogKeeper {
    /// Asks for a snapshot whenever the log since the last one is long enough, and removes what is not worth keeping.
    async fn run(self) {
        let mut ticks = tokio::time::interval(SIZE_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What an earlier life left in the log counts as not yet covered: too early a snapshot is only work.
        let mut covered = 0;
        let mut position = self.state.snapshots.newest().map(|file| file.meta().position);
        let mut asked_at = None;
        let found = self.log.size_on_disk();
        let written = || found + self.log.metrics().appended_bytes.get();
        loop {
            ticks.tick().await;
            let newest = self.state.snapshots.newest();
            let newest_position = newest.as_ref().map(|file| file.meta().position);
            if newest_position != position {
                position = newest_position;
                covered = asked_at.take().unwrap_or_else(written);
            }
            let least = self.snapshot_log_bytes.max(newest.map_or(0, |file| file.file_bytes()));
            let due_bytes = retention::due_bytes(least, self.me);
            if let Some(index) = self.removable(due_bytes) {
                if self.raft.trigger().purge_log(index).await.is_err() {
                    return;
                }
                self.holds.removed(index);
            }
            if written().saturating_sub(covered) < due_bytes {
                continue;
            }
            asked_at.get_or_insert_with(written);
            if self.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }

    /// Up to where the log should be removed now, if at all.
    fn removable(&self, due_bytes: u64) -> Option<u64> {
        let purged = self.log.purged().map(|position| position.index.get());
        let files = self.state.snapshots.all();
        let mut snapshots: Vec<u64> =
            files.iter().filter_map(|file| file.meta().position).map(|position| position.index.get()).collect();
        snapshots.sort_unstable();
        let followers = followers(&self.raft.metrics().borrow_watched(), self.me);
        let by_members = retention::needed(followers.into_iter(), purged);
        let needed = by_members.into_iter().chain(self.holds.lowest()).chain(self.log.kept_behind()).min();
        LogView { purged, snapshots: &snapshots, needed, bytes: self.log.size_on_disk(), due_bytes }.removable()
    }
}

/// What this node knows of the others; nothing where it does not lead.
fn followers(metrics: &RaftMetrics<TypeConfig>, me: NodeId) -> Vec<Follower> {
    let replication = metrics.replication.iter().flatten().filter(|(id, _)| **id != me);
    let heard = |id| metrics.heartbeat.as_ref()?.get(id)?.as_ref().map(|at| at.elapsed());
    replication.map(|(id, matched)| Follower { matched: matched.map(|id| id.index), heard: heard(id) }).collect()
}

/// Removes what is left of snapshots that were on their way here, once nobody goes on with them.
async fn remove_leftovers(receiver: Arc<Mutex<Receiver>>, state: StateAccess) {
    let mut ticks = tokio::time::interval(LEFTOVERS_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Who installs a snapshot holds it for as long as that takes.
        let mut receiver = receiver.lock().await;
        let applied = state.applied().borrow().position;
        if let Err(error) = receiver.remove_outdated(applied).await {
            tracing::warn!(%error, "can't remove what is left of a snapshot that was on its way here");
        }
    }
}

/// Renews the proof that local data is fresh, so that bounded reads find one.
async fn freshness(barrier: ReadBarrier) {
    let mut ticks = tokio::time::interval(FRESHNESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if barrier.freshness().staleness().is_some_and(|age| age < FRESHNESS_INTERVAL) {
            continue;
        }
        // Without a leader there is no proof to be had; the next tick tries again.
        let _ = barrier.wait(clock::now() + FRESHNESS_TIMEOUT).await;
    }
}

/// Raises the alarm if the log store or openraft has stopped for a local failure.
async fn watch_for_the_end(raft: openraft::Raft<TypeConfig, StateStore>, log: LogStore, fatal: Fatal) {
    let stopped = async {
        let mut metrics = raft.metrics();
        loop {
            let failure = metrics.borrow_and_update().running_state.clone().err();
            match failure {
                Some(openraft::error::Fatal::Stopped) => return None,
                Some(failure) => return Some(failure.to_string()),
                None => {}
            }
            if metrics.changed().await.is_err() {
                // It tells before it ends in order; otherwise it has panicked, and nobody leads or follows here any more.
                return match metrics.borrow_and_update().running_state.clone() {
                    Ok(()) => Some("it panicked".to_owned()),
                    Err(openraft::error::Fatal::Stopped) => None,
                    Err(failure) => Some(failure.to_string()),
                };
            }
        }
    };
    tokio::select! {
        biased;
        failure = log_failure(log.fatal()) => fatal.raise(&format!("writing the log failed: {failure}")),
        failure = stopped => if let Some(failure) = failure { fatal.raise(&format!("consensus stopped: {failure}")) },
    }
}

/// Waits until the log can no longer be written.
async fn log_failure(mut fatal: super::log_store::Fatal) -> String {
    loop {
        if let Some(failure) = fatal.borrow_and_update().as_ref() {
            return failure.to_string();
        }
        if fatal.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
