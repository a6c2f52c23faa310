//! What the log store measures.
//!
//! Guarantees: counting costs an atomic addition; what raft-log counts itself (writes, fsyncs) is read when somebody asks.
//! Leaves out: the registry.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::Inner;

/// Figures of the log store, shared by all its handles.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// Entries appended.
    pub appended_entries: Counter,
    /// Bytes of the bodies of appended entries.
    pub appended_bytes: Counter,
    /// From append to on disk, in seconds, one observation per append.
    pub flush_seconds: Histogram,
    /// The same, smoothed.
    pub flush_time: FlushTime,
    /// Reads that went to another thread because they may touch the disk.
    pub cold_reads: Counter,
}

/// The weight of the newest time in the smoothed one, as a divisor: 1/8, as in a smoothed round-trip time.
const FLUSH_SMOOTHING: u32 = 8;

/// How long it takes from append to on disk, of late. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FlushTime(Arc<AtomicU64>);

impl FlushTime {
    /// Zero before the first.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Takes note of one more. Two at once may lose one.
    pub(in crate::raft) fn note(&self, took: Duration) {
        let smoothed = match self.get() {
            Duration::ZERO => took,
            old => old - old / FLUSH_SMOOTHING + took / FLUSH_SMOOTHING,
        };
        self.0.store(u64::try_from(smoothed.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Default for LogMetrics {
    fn default() -> Self {
        Self {
            appended_entries: Counter::default(),
            appended_bytes: Counter::default(),
            // 50 µs to 1.6 s.
            flush_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            flush_time: FlushTime::default(),
            cold_reads: Counter::default(),
        }
    }
}

impl LogMetrics {
    /// Makes the figures known to a registry, as `raft_log_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("raft_log_appended_entries", "Entries appended", self.appended_entries.clone());
        registry.register_with_unit(
            "raft_log_appended",
            "Size of the appended entries",
            Unit::Bytes,
            self.appended_bytes.clone(),
        );
        registry.register_with_unit(
            "raft_log_flush",
            "Time from append until on disk",
            Unit::Seconds,
            self.flush_seconds.clone(),
        );
        registry.register("raft_log_cold_reads", "Reads of entries not held in memory", self.cold_reads.clone());
    }
}

/// Reads raft-log's own figures when the metrics are scraped.
pub(super) struct WalCollector(pub(super) Weak<Inner>);

impl fmt::Debug for WalCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WalCollector")
    }
}

impl Collector for WalCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(inner) = self.0.upgrade() else { return Ok(()) };
        let (figures, size) = {
            let wal = inner.wal.read();
            (wal.log.figures(), wal.log.size_on_disk())
        };
        let counters = [
            ("raft_log_writes", "Batches written", figures.writes),
            ("raft_log_fsyncs", "Batches brought to disk by fdatasync", figures.syncs),
            ("raft_log_written_bytes", "Bytes written", figures.written_bytes),
            ("raft_log_fsync_microseconds", "Time spent in fdatasync", figures.sync_us),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let gauges = [
            ("raft_log_size", "Size of the log on disk", size),
            ("raft_log_cache_size", "Size of the entries held in memory", figures.cached_bytes),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Bytes), gauge.metric_type())?)?;
        }
        Ok(())
    }
}
