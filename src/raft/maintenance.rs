//! What a node does by itself in the background: snapshots by size of the log, freshness of reads, watching for the end.
//!
//! Guarantees: a snapshot is asked for once the log has outgrown both the configured size and the last snapshot, so that
//! writing snapshots at most doubles what is written; the log stays within a small multiple of that size; a node that serves bounded reads refreshes its proof of freshness.
//! Leaves out: how any of it is done.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fatal::Fatal;
use super::log_store::LogStore;
use super::read_barrier::ReadBarrier;
use super::state_store::{StateAccess, StateStore};
use super::types::TypeConfig;
use crate::clock;

/// How often the size of the log is looked at.
const SIZE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The log is purged behind snapshots once it is larger than this many times what triggers one. (openraft purges by count
/// of entries, which for large ones would be far too late.)
const LOG_SIZES_KEPT: u64 = 2;

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
    pub(super) snapshot_log_bytes: u64,
    pub(super) fatal: Fatal,
}

impl Maintenance {
    pub(super) fn spawn(self, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let until = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = work => {}
                    () = stop.cancelled() => {}
                }
            });
        };
        let Self { raft, log, state, barrier, snapshot_log_bytes, fatal } = self;
        until(Box::pin(snapshots_by_size(raft.clone(), log.clone(), state, snapshot_log_bytes)));
        until(Box::pin(freshness(barrier)));
        until(Box::pin(watch_for_the_end(raft, log, fatal)));
    }
}

/// Asks for a snapshot whenever the log since the last one is long enough.
async fn snapshots_by_size(
    raft: openraft::Raft<TypeConfig, StateStore>,
    log: LogStore,
    state: StateAccess,
    snapshot_log_bytes: u64,
) {
    let mut ticks = tokio::time::interval(SIZE_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What an earlier life left in the log counts as not yet covered: too early a snapshot is only work.
    let mut covered = 0;
    let mut position = state.snapshots.newest().map(|file| file.meta().position);
    let mut asked_at = None;
    let found = log.size_on_disk();
    let written = || found + log.metrics().appended_bytes.get();
    loop {
        ticks.tick().await;
        let newest = state.snapshots.newest();
        let newest_position = newest.as_ref().map(|file| file.meta().position);
        if newest_position != position {
            position = newest_position;
            covered = asked_at.take().unwrap_or_else(written);
        }
        let threshold = snapshot_log_bytes.max(newest.map_or(0, |file| file.file_bytes()));
        if log.size_on_disk() > threshold.saturating_mul(LOG_SIZES_KEPT)
            && let Some(index) = purgeable(&state, &log)
            && raft.trigger().purge_log(index).await.is_err()
        {
            return;
        }
        if written().saturating_sub(covered) < threshold {
            continue;
        }
        asked_at.get_or_insert_with(written);
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// Up to where the log may be purged at most: an older snapshot if that frees anything, so that a member that was away for
/// a short while still finds what it lacks, else the newest.
fn purgeable(state: &StateAccess, log: &LogStore) -> Option<u64> {
    let purged = log.purged();
    let mut positions: Vec<_> = state.snapshots.all().iter().filter_map(|file| file.meta().position).collect();
    positions.sort_unstable();
    positions.into_iter().find(|position| Some(*position) > purged).map(|position| position.index.get())
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
                return None;
            }
        }
    };
    tokio::select! {
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
