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
use crate::clock;
use crate::types::{LogPosition, WallTime};

/// A place and how this node stands with it.
pub(super) struct Place {
    pub(super) settings: TargetSettings,
    pub(super) url_hash: u64,
    /// For people.
    pub(super) url: String,
    pub(super) desk: Arc<Desk>,
    /// Whether this node is the one that archives.
    pub(super) active: watch::Sender<bool>,
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

    /// What others are told. `known` is the farthest that anybody knows to be archived.
    pub(super) fn news(&self, known: Option<Archived>, purged: Option<LogPosition>) -> PlaceNews {
        let status = self.status();
        let archived = of_status(&status);
        let needed = [archived, known].into_iter().flatten().map(|one| one.position.index).max();
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
            full_under_way: status.full_under_way,
            objects: status.objects,
            object_bytes: status.object_bytes,
            trouble: self.trouble(&status),
        }
    }
}

fn of_status(status: &Status) -> Option<Archived> {
    status.archived.map(|archived| Archived { position: archived.position, revision: archived.revision })
}
