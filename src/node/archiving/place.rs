//! One place for backups that this node could archive to.
//!
//! Guarantees: its state is read without waiting. Leaves out: other nodes (`mod`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use xxhash_rust::xxh3::xxh3_64;

use super::news::{Archived, Full, PlaceNews, Proofs, Trouble};
use crate::backup::archiver::{Desk, Status};
use crate::backup::care::Health;
use crate::backup::repository::Repository;
use crate::backup::settings::TargetSettings;
use crate::backup::target::{self, Options, Stores};
use crate::clock::{self, Instant};
use crate::types::{LogIndex, LogPosition, WallTime};
use crate::{host, watch};

/// How often it is looked whether the credentials of a store that fails were renewed.
const RENEWED_EVERY: Duration = Duration::from_secs(15);

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
    /// What was declared to the cluster; `None` for a place of the configuration.
    pub(super) declared: Option<Bytes>,
    /// Why the last drill here said nothing about the archive.
    drill_trouble: Mutex<Option<Trouble>>,
}

impl Place {
    /// `exposure` is where its desk notes how late it archives.
    pub(super) fn new(settings: TargetSettings, exposure: Histogram) -> Self {
        Self {
            url_hash: url_hash(&settings.url),
            url: target::redacted(&settings.url),
            settings,
            desk: Arc::new(Desk::new(exposure)),
            active: watch::Sender::new(false),
            began: clock::now(),
            health: watch::Sender::new(None),
            refused: Mutex::new(None),
            declared: None,
            drill_trouble: Mutex::new(None),
        }
    }

    /// One that was declared to the cluster.
    pub(super) fn declared(settings: TargetSettings, exposure: Histogram, declaration: Bytes) -> Self {
        Self { declared: Some(declaration), ..Self::new(settings, exposure) }
    }

    /// Whether some node's news are of this place.
    pub(super) fn is_told(&self, news: &PlaceNews) -> bool {
        news.name == self.settings.name && news.url_hash == self.url_hash
    }

    /// Whether a URL means the same store.
    pub(super) fn is_at(&self, url: &str) -> bool {
        self.url_hash == url_hash(url)
    }

    pub(super) fn set_drill_trouble(&self, why: Option<String>) {
        let mut trouble = self.drill_trouble.lock();
        let since = trouble.as_ref().map_or_else(clock::wall, |trouble| trouble.since);
        *trouble = why.map(|error| Trouble { since, error });
    }

    pub(super) fn drill_trouble(&self) -> Option<Trouble> {
        self.drill_trouble.lock().clone()
    }

    fn proofs(&self) -> Option<Proofs> {
        let health = self.health.borrow();
        let health = health.as_ref()?;
        Some(Proofs {
            verified: health.verified,
            read: health.read,
            drilled: health.drilled,
            failed: health.failed.clone(),
            drills_here: self.settings.drill.is_some(),
            drill_trouble: self.drill_trouble(),
        })
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

    /// What others are told. The log is needed behind `needed`, and goes here from behind `purged` to `applied`.
    pub(super) fn news(&self, needed: Option<LogIndex>, purged: Option<LogPosition>, applied: u64) -> PlaceNews {
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
            errors: status.errors,
            held_entries: self.settings.log.then(|| applied.saturating_sub(needed.map_or(0, LogIndex::get))),
            proofs: self.proofs(),
        }
    }
}

/// The options of a store, with the credentials that are to be had now.
///
/// # Errors
/// Why some are not to be had on this node.
pub(super) async fn options(settings: &TargetSettings) -> Result<Options, String> {
    let (mut options, credentials) = (settings.options.clone(), settings.credentials.clone());
    // A file may lie on a disk that is slow.
    let resolving = host::spawn_blocking(move || {
        options.extend(credentials.resolve()?);
        Ok(options)
    });
    resolving.await.map_err(|error| error.to_string())?
}

/// Opens the store of a place.
///
/// # Errors
/// Why that is not possible on this node.
pub(super) async fn open(stores: &Stores, settings: &TargetSettings, options: Options) -> Result<Repository, String> {
    let (stores, url) = (stores.clone(), settings.url.clone());
    // So may the folder of a file:// URL.
    let opening = host::spawn_blocking(move || stores.open_existing(&url, &options));
    opening.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Returns once a store fails and its credentials are others than those in use: somebody has renewed them.
pub(super) async fn renewed(place: &Place, in_use: &Options) {
    loop {
        tokio::time::sleep(RENEWED_EVERY).await;
        let fails = place.trouble(&place.status()).is_some();
        if fails && options(&place.settings).await.is_ok_and(|options| options != *in_use) {
            return;
        }
    }
}

/// Stands for a URL.
fn url_hash(url: &str) -> u64 {
    xxh3_64(url.trim_end_matches('/').as_bytes())
}

fn of_status(status: &Status) -> Option<Archived> {
    status.archived.map(|archived| Archived { position: archived.position, revision: archived.revision })
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::backup::archiver::EXPOSURE_BUCKETS;
    use crate::backup::credentials::Credentials;
    use crate::types::{NodeId, Term};

    #[test]
    fn a_log_continues_the_archive_if_it_reaches_back_to_what_is_needed() {
        let place = Place::new(TargetSettings::sample(), Histogram::new(EXPOSURE_BUCKETS));
        let purged = LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(8) };
        let continues = |needed: Option<u64>| place.news(needed.map(LogIndex::new), Some(purged), 10).continues;
        assert!(continues(Some(8)) && continues(Some(9)) && continues(None));
        assert!(!continues(Some(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_were_renewed_are_noticed_once_the_store_fails() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "AWS_SESSION_TOKEN=old\n").unwrap();
        let credentials = Credentials { file: Some(file.clone()), ..Credentials::default() };
        let place =
            Place::new(TargetSettings { credentials, ..TargetSettings::sample() }, Histogram::new(EXPOSURE_BUCKETS));
        let in_use = options(&place.settings).await.unwrap();
        let noticed = || tokio::time::timeout(3 * RENEWED_EVERY, renewed(&place, &in_use));
        place.set_refused(Some("expired".into()));
        assert!(noticed().await.is_err(), "they are the same");
        std::fs::write(&file, "AWS_SESSION_TOKEN=new\n").unwrap();
        assert!(noticed().await.is_ok());
        place.set_refused(None);
        assert!(noticed().await.is_err(), "what works is left alone");
    }
}
