//! One place for backups in the configuration of this node.
//!
//! Guarantees: its state is read without waiting. Leaves out: other nodes (`mod`).

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use super::news::{Archived, Full, PlaceNews, Trouble};
use crate::backup::archiver::{Desk, Status};
use crate::backup::care::Health;
use crate::backup::settings::TargetSettings;
use crate::backup::target;
use crate::clock::{self, Instant};
use crate::types::{LogIndex, LogPosition, WallTime};

/// A place and how this node stands with it.
pub(super) struct Place {
    pub(super) settings: TargetSettings,
    pub(super) url_hash: u64,
    /// For people.
    pub(super) url: String,
    pub(super) desk: Arc<Desk>,
    /// Whether this node is the one that archives.
    pub(super) active: watch::Sender<bool>,
    /// When this node began to try.
    pub(super) began: Instant,
    /// What the proofs beside the archive tell; `None` until they were read.
    pub(super) health: watch::Sender<Option<Health>>,
    /// Why the store can't be set up, since when.
    refused: Mutex<Option<(WallTime, String)>>,
}

impl Place {
    /// `exposure` is where its desk notes how late it archives.
    pub(super) fn new(settings: TargetSettings, exposure: Histogram) -> Self {
        Self {
            url_hash: xxh3_64(settings.url.trim_end_matches('/').as_bytes()),
            url: target::redacted(&settings.url),
            settings,
            desk: Arc::new(Desk::new(exposure)),
            active: watch::Sender::new(false),
            began: clock::now(),
            health: watch::Sender::new(None),
            refused: Mutex::new(None),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.desk.status().borrow().clone()
    }

    pub(super) fn set_refused(&self, why: Option<String>) {
        let mut refused = self.refused.lock();
        *refused = why.map(|why| (refused.as_ref().map_or_else(clock::wall, |(since, _)| *since), why));
    }

    /// Why it does not go on, if it does not.
    pub(super) fn trouble(&self, status: &Status) -> Option<Trouble> {
        let refused = self.refused.lock().clone().map(|(since, error)| Trouble { since, error });
        let failing = status.failing.as_ref();
        refused.or_else(|| failing.map(|failing| Trouble { since: failing.since, error: failing.error.clone() }))
    }

    /// What others are told. The log is needed behind `needed`, and begins here behind `purged`.
    pub(super) fn news(&self, needed: Option<LogIndex>, purged: Option<LogPosition>) -> PlaceNews {
        let status = self.status();
        let archived = of_status(&status);
        let continues = needed.zip(purged).is_none_or(|(needed, purged)| purged.index <= needed);
        let age = status.covered_at.map(|at| clock::now().saturating_duration_since(at));
        PlaceNews {
            name: self.settings.name.clone(),
            url_hash: self.url_hash,
            url: self.url.clone(),
            durable: self.settings.durable,
            encrypted: !self.settings.recipients.is_empty(),
            healthy: status.healthy && self.refused.lock().is_none(),
            active: *self.active.borrow(),
            continues,
            archived,
            behind_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            full: status.full.map(|full| Full { revision: full.revision, at: full.at, bytes: full.bytes }),
            full_under_way: status.full_under_way || self.desk.is_full_wanted(),
            objects: status.objects,
            object_bytes: status.object_bytes,
            trouble: self.trouble(&status),
            shipped: status.shipped.map(|shipped| shipped.index),
        }
    }
}

fn of_status(status: &Status) -> Option<Archived> {
    status.archived.map(|archived| Archived { position: archived.position, revision: archived.revision })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::backup::archiver::EXPOSURE_BUCKETS;
    use crate::backup::care::Care;
    use crate::backup::seal::Recipients;
    use crate::backup::verify::Level;
    use crate::types::{NodeId, Term};

    #[test]
    fn a_log_continues_the_archive_if_it_reaches_back_to_what_is_needed() {
        let settings = TargetSettings {
            name: "main".into(),
            url: "memory:".into(),
            options: BTreeMap::new(),
            recipients: Recipients::default(),
            log: true,
            full: "0 3 * * *".parse().unwrap(),
            flush_interval: Duration::from_secs(1),
            flush_bytes: 1,
            merge_interval: Duration::ZERO,
            bandwidth: None,
            durable: true,
            care: Care {
                verify: "0 5 * * *".parse().unwrap(),
                level: Level::Chain,
                identity_file: None,
                keep: None,
                prune: "0 4 * * *".parse().unwrap(),
            },
        };
        let place = Place::new(settings, Histogram::new(EXPOSURE_BUCKETS));
        let purged = LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(8) };
        let continues = |needed: Option<u64>| place.news(needed.map(LogIndex::new), Some(purged)).continues;
        assert!(continues(Some(8)) && continues(Some(9)) && continues(None));
        assert!(!continues(Some(7)));
    }
}
