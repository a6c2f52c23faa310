//! Figures of off-site copies.
//!
//! Guarantees: what is not known is left out, never a made-up zero. Leaves out: what they mean for alarms (`alarms`).

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Archiving;
use super::place::Place;
use crate::backup::archiver::{EXPOSURE_BUCKETS, Sent, Status};
use crate::clock;
use crate::types::{LogIndex, WallTime};

/// Reads the figures at each scrape.
pub(super) struct ArchiveCollector(pub(super) Archiving);

impl fmt::Debug for ArchiveCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArchiveCollector")
    }
}

/// The label of a place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Target {
    target: String,
}

/// For how long entries stood on the nodes' disks alone, one series a place.
#[derive(Clone)]
pub(super) struct Exposure(Family<Target, Histogram, fn() -> Histogram>);

impl Exposure {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family: Family<Target, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(EXPOSURE_BUCKETS));
        let help = "For how long the oldest of the entries archived together had stood on the nodes' disks alone";
        registry.register_with_unit("backup_exposure", help, Unit::Seconds, family.clone());
        Self(family)
    }

    pub(super) fn of(&self, target: &str) -> Histogram {
        self.0.get_or_create_owned(&Target { target: target.to_owned() })
    }
}

/// A gauge by name and help, and what it is of one place.
type Gauge = (&'static str, &'static str, fn(&Archiving, &Place, &Status) -> Option<f64>);

const GAUGES: &[Gauge] = &[
    ("backup_rpo_seconds", "What was written in this time may not be archived yet", |archiving, place, _| {
        archiving.behind(place).map(|behind| behind.as_secs_f64())
    }),
    ("backup_archived_index", "Last entry of the log that is archived", |archiving, place, _| {
        archiving.archived(place).map(|archived| archived.position.index.get() as f64)
    }),
    ("backup_archived_revision", "Revision that is surely archived", |archiving, place, _| {
        archiving.archived(place).map(|archived| archived.revision.get() as f64)
    }),
    ("backup_active", "Whether this node archives", |_, place, _| Some(f64::from(u8::from(*place.active.borrow())))),
    ("backup_healthy", "Whether the store did what this node asked of it last", |_, _, status| {
        Some(f64::from(u8::from(status.healthy)))
    }),
    ("backup_full_timestamp_seconds", "When the newest archived snapshot was made", |_, _, status| {
        status.full.map(|full| full.at.get() as f64 / 1e3)
    }),
    ("backup_last_verified_age_seconds", "Time since the archive was last verified and found sound", |_, place, _| {
        place.health.borrow().as_ref().and_then(|health| health.verified).map(seconds_since)
    }),
    ("backup_last_read_age_seconds", "Time since all of the archive was last read and found sound", |_, place, _| {
        place.health.borrow().as_ref().and_then(|health| health.read).map(seconds_since)
    }),
    (
        "backup_last_drill_age_seconds",
        "Time since a point of the archive was last restored, started and read from",
        |_, place, _| place.health.borrow().as_ref().and_then(|health| health.drilled).map(seconds_since),
    ),
    (
        "backup_held_entries",
        "Entries of the log of this node that are kept until they are archived",
        |archiving, place, _| {
            let applied = archiving.0.raft.applied().borrow().position.map_or(0, |position| position.index.get());
            let needed = archiving.needed(place).map_or(0, LogIndex::get);
            place.settings.log.then(|| applied.saturating_sub(needed) as f64)
        },
    ),
    ("backup_objects", "Objects in the archive", |_, _, status| status.archived.map(|_| status.objects as f64)),
    ("backup_object_bytes", "Length of all objects in the archive", |_, _, status| {
        status.archived.map(|_| status.object_bytes as f64)
    }),
];

fn seconds_since(at: WallTime) -> f64 {
    clock::wall().get().saturating_sub(at.get()) as f64 / 1e3
}

/// A counter by name and help, and what it is of what was sent.
type Counter = (&'static str, &'static str, fn(&Sent) -> u64);

const COUNTERS: &[Counter] = &[
    ("backup_sent_objects", "Objects that this node has archived", |sent| sent.objects),
    ("backup_sent_bytes", "Their length as they are stored", |sent| sent.bytes),
    ("backup_sent_plain_bytes", "Their length unpacked", |sent| sent.plain_bytes),
];

impl Collector for ArchiveCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let list = self.0.list();
        let places: Vec<_> = list.iter().map(|place| (place, place.status())).collect();
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::new(0.0_f64).metric_type())?;
            for (place, status) in &places {
                if let Some(value) = value(&self.0, place, status) {
                    let labels = [("target", place.settings.name.as_str())];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        for (name, help, value) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0_u64).metric_type())?;
            for (place, status) in &places {
                let kinds = [("log", status.sent_log), ("merged", status.sent_merged), ("full", status.sent_full)];
                for (kind, sent) in kinds {
                    let labels = [("target", place.settings.name.as_str()), ("kind", kind)];
                    ConstCounter::new(value(&sent)).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        self.encode_times(&mut encoder, &places)?;
        self.encode_alarms(&mut encoder)
    }
}

impl ArchiveCollector {
    fn encode_times(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        places: &[(&Arc<Place>, Status)],
    ) -> Result<(), fmt::Error> {
        let help = "When this node last archived something";
        let of_type = ConstGauge::new(0.0_f64).metric_type();
        let mut family = encoder.encode_descriptor("backup_last_success_timestamp_seconds", help, None, of_type)?;
        for (place, status) in places {
            for (kind, sent) in [("log", status.sent_log), ("full", status.sent_full)] {
                if let Some(at) = sent.last_at {
                    let labels = [("target", place.settings.name.as_str()), ("kind", kind)];
                    ConstGauge::new(at.get() as f64 / 1e3).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Tries to archive that failed";
        let of_type = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor("backup_errors", help, None, of_type)?;
        for (place, status) in places {
            let labels = [("target", place.settings.name.as_str())];
            ConstCounter::new(status.errors).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_alarms(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Alarms of this node that stand; GET /v1/alarms tells what to do";
        let mut family = encoder.encode_descriptor("alarm", help, None, ConstGauge::new(0.0_f64).metric_type())?;
        for alarm in self.0.0.board.lock().all() {
            let labels = [("name", alarm.name.as_str()), ("subject", alarm.subject.as_str())];
            ConstGauge::new(1.0_f64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
