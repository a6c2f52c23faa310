//! What this room measures of itself: rounds, applies, checkpoints, snapshots, and Raft's own state at each scrape.
//!
//! Guarantees: recording costs an atomic operation or two. Leaves out: the log store's figures (`log_store`) and the
//! registry (`telemetry`).

use std::fmt;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant as _, RaftMetrics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::log_store::LogStore;
use super::state_store::StateAccess;
use super::types::TypeConfig;
use crate::clock;
use crate::telemetry::{count_buckets, latency_buckets};

/// Figures of proposing.
#[derive(Debug, Clone)]
pub(super) struct ProposerMetrics {
    pub(super) commands_per_round: Histogram,
    pub(super) round_seconds: Histogram,
}

/// Figures of applying.
#[derive(Debug, Clone)]
pub(super) struct StateMetrics {
    pub(super) commands: Counter,
    pub(super) commands_per_entry: Histogram,
    pub(super) entries_per_apply: Histogram,
    pub(super) apply_seconds: Histogram,
    pub(super) checkpoint_seconds: Histogram,
    pub(super) checkpoint_records: Counter,
    pub(super) snapshot_seconds: Histogram,
}

impl ProposerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            commands_per_round: Histogram::new(count_buckets()),
            round_seconds: Histogram::new(latency_buckets()),
        };
        let help = "Commands that this node proposed or forwarded together";
        registry.register("propose_commands_per_round", help, metrics.commands_per_round.clone());
        let help = "Time from proposing or forwarding commands to their outcomes";
        registry.register_with_unit("propose_round", help, Unit::Seconds, metrics.round_seconds.clone());
        metrics
    }
}

impl StateMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(latency_buckets());
        let metrics = Self {
            commands: Counter::default(),
            commands_per_entry: Histogram::new(count_buckets()),
            entries_per_apply: Histogram::new(count_buckets()),
            apply_seconds: seconds(),
            checkpoint_seconds: seconds(),
            checkpoint_records: Counter::default(),
            snapshot_seconds: seconds(),
        };
        registry.register("apply_commands", "Commands applied", metrics.commands.clone());
        let help = "Commands in one log entry";
        registry.register("apply_commands_per_entry", help, metrics.commands_per_entry.clone());
        let help = "Log entries applied together";
        registry.register("apply_entries_per_batch", help, metrics.entries_per_apply.clone());
        let help = "Time to apply all entries that were ready";
        registry.register_with_unit("apply", help, Unit::Seconds, metrics.apply_seconds.clone());
        let help = "Time to move applied records to the state engine and flush it";
        registry.register_with_unit("checkpoint", help, Unit::Seconds, metrics.checkpoint_seconds.clone());
        let help = "Records moved to the state engine";
        registry.register("checkpoint_records", help, metrics.checkpoint_records.clone());
        let help = "Time to write and verify a snapshot";
        registry.register_with_unit("snapshot_build", help, Unit::Seconds, metrics.snapshot_seconds.clone());
        metrics
    }
}

/// Reads Raft's state, the store's sizes and the snapshot's age at each scrape.
pub(super) struct RaftCollector {
    pub(super) metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    pub(super) state: StateAccess,
    pub(super) log: LogStore,
}

impl fmt::Debug for RaftCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RaftCollector")
    }
}

/// A gauge by name, help and value; a value that is not known is left out.
type Reading = (&'static str, &'static str, Option<f64>);

impl RaftCollector {
    fn raft(&self) -> Vec<Reading> {
        let raft = self.metrics.borrow_watched().clone();
        let number = |value: Option<u64>| value.map(|value| value as f64);
        let applied = raft.last_applied.as_ref().map(|id| id.index);
        let lag = raft.local_committed.as_ref().map(|id| id.index.saturating_sub(applied.unwrap_or(0)));
        let quorum = raft.last_quorum_acked.as_ref().map(|at| at.elapsed().as_secs_f64());
        let leads = f64::from(u8::from(raft.state.is_leader()));
        let knows = f64::from(u8::from(raft.current_leader.is_some()));
        vec![
            ("raft_term", "Current term", number(Some(raft.current_term.get()))),
            ("raft_is_leader", "Whether this node leads", Some(leads)),
            ("raft_has_leader", "Whether this node knows a leader", Some(knows)),
            ("raft_last_log_index", "Last entry in the log", number(raft.last_log_index)),
            (
                "raft_committed_index",
                "Last entry known to be committed",
                number(raft.local_committed.map(|id| id.index)),
            ),
            ("raft_applied_index", "Last entry applied", number(applied)),
            ("raft_apply_lag_entries", "Entries committed but not yet applied", number(lag)),
            (
                "raft_snapshot_index",
                "Last entry covered by the newest snapshot",
                number(raft.snapshot.map(|id| id.index)),
            ),
            ("raft_purged_index", "Last entry removed from the log", number(raft.purged.map(|id| id.index))),
            ("raft_quorum_ack_age_seconds", "Time since a quorum last confirmed this leader", quorum),
        ]
    }

    fn store(&self) -> Vec<Reading> {
        let reader = self.state.reader();
        let applied = reader.applied();
        let snapshot = self.state.snapshots.newest();
        let age_ms = |file: &super::SnapshotHandle| clock::wall().get().saturating_sub(file.meta().created_at.get());
        let log_bytes = self.log.size_on_disk();
        vec![
            ("store_revision", "Revision of the store", Some(applied.revision.get() as f64)),
            ("store_overlay_bytes", "Applied records not yet moved to the engine", Some(reader.overlay_bytes() as f64)),
            ("store_engine_bytes", "State engine on disk", reader.engine_bytes().ok().map(|bytes| bytes as f64)),
            ("store_log_bytes", "Raft log on disk", Some(log_bytes as f64)),
            ("store_snapshot_bytes", "Snapshot files on disk", Some(self.state.snapshots.size_on_disk() as f64)),
            (
                "snapshot_age_seconds",
                "Age of the newest snapshot",
                snapshot.as_ref().map(|file| age_ms(file) as f64 / 1e3),
            ),
        ]
    }
}

impl Collector for RaftCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in self.raft().into_iter().chain(self.store()) {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
