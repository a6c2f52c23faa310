//! Keeps the archive of one place up to date with the log of the node that it runs on.
//!
//! Every node that knows of the place runs an [`Archiver`]; one of them is active at a time (the node decides which). It
//! sends a whole state first, then the entries behind it as they are applied, and tells on its [`Desk`] how it stands.
//!
//! Guarantees: it can be stopped, or overtaken by that of another node, at any point, and leaves neither a gap nor harm; the
//! store being away ends nothing: it is tried again, more and more seldom up to [`PAUSE_MAX`]. What takes time to compute
//! happens on threads that may block, and the log is read in pieces. Leaves out: which node is active (`node`), removing
//! old objects (`prune`).

mod jobs;
mod merging;
mod outcome;
mod progress;
mod source;
#[cfg(test)]
mod tests;
mod worker;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder as _;

pub use progress::{Archived, Desk, EXPOSURE_BUCKETS, Failing, FullStatus, Gap, Lost, Sent, Status};
pub use source::{LogSource, Reached, SourceError, SourceSnapshot};

use self::jobs::Work;
use self::worker::Worker;
use super::catalogue::{Catalogue, CatalogueError};
use super::manifest::Object;
use super::probe::{self, ProbeError, SKEW_MILLIS_MAX};
use super::repository::{Repository, StoreError};
use super::settings::TargetSettings;
use super::transfer::StoreDataError;
use crate::backup::bandwidth::Bandwidth;
use crate::clock;
use crate::types::ClusterId;
use crate::{host, watch};

/// Pause before something that failed is tried again, the first time; doubles from time to time, plus chance.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often a node that waits for its turn looks whether it could archive.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Why archiving stopped for now.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store can hold no archive.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The chain of manifests can't be read or continued.
    #[error("the archive can't be continued: {0}")]
    Chain(#[from] CatalogueError),
    /// Something was not stored.
    #[error(transparent)]
    Data(#[from] StoreDataError),
    /// An object was stored so long ago that it may have been deleted as one that belongs to nothing.
    #[error("{name} was stored {} ago and is not named yet; what is in it is sent again", humantime::format_duration(*.ago))]
    Late {
        /// Which.
        name: String,
        /// How long ago.
        ago: Duration,
    },
    /// The node can't give what is to be archived.
    #[error("this node can't give what is to be archived: {0}")]
    Source(#[from] SourceError),
}

/// Keeps one archive up to date.
pub struct Archiver<S> {
    work: Arc<Work<S>>,
    desk: Arc<Desk>,
}

impl<S: LogSource> Archiver<S> {
    /// For the archive of `cluster` in `repository`; `author` is the name of this node, which stands in manifests.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        author: String,
        settings: TargetSettings,
        repository: Repository,
        source: Arc<S>,
        desk: Arc<Desk>,
    ) -> Self {
        let bandwidth = Bandwidth::new(settings.bandwidth);
        Self { work: Arc::new(Work { cluster, author, settings, repository, source, bandwidth }), desk }
    }

    /// Archives whenever `active` says so, for ever; ends when nobody can say so any more. Dropped at any point, it leaves
    /// nothing half-done.
    pub async fn run(self, mut active: watch::Receiver<bool>) {
        let (mut pauses, mut at_work) = (pauses(), false);
        let mut sent = 0;
        while let Err(error) = self.look(&mut active, &mut at_work).await {
            let sent_now = self.desk.status().borrow().sent_objects();
            // Something went well since the last time.
            if std::mem::replace(&mut sent, sent_now) != sent_now {
                pauses = self::pauses();
            }
            self.failed(&error);
            tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// Finds out whether the store can be used, waits for its turn and archives for as long as it has it. `at_work` is
    /// whether it failed while it archived, the last time.
    async fn look(&self, active: &mut watch::Receiver<bool>, at_work: &mut bool) -> Result<(), ArchiveError> {
        loop {
            // Also by those that only wait, so that they know whether they could.
            self.try_store().await?;
            let mut chain = Catalogue::read(&self.work.repository, self.work.cluster).await?;
            self.compare(&chain).await?;
            self.usable(!*at_work);
            loop {
                let turn = async { active.wait_for(|active| *active).await.is_ok() };
                match tokio::time::timeout(RECHECK_INTERVAL, turn).await {
                    Ok(true) => break,
                    Ok(false) => return Ok(()),
                    Err(_) => {
                        self.try_store().await?;
                        chain.refresh(&self.work.repository).await?;
                        self.compare(&chain).await?;
                        *at_work = false;
                        self.usable(true);
                    }
                }
            }
            *at_work = true;
            chain.refresh(&self.work.repository).await?;
            let absent = self.compare(&chain).await?;
            tracing::info!(backup = self.work.settings.name, "this node archives");
            tokio::select! {
                biased;
                stopped = Worker::new(Arc::clone(&self.work), &self.desk, chain, absent).run() => {
                    let Err(error): Result<Infallible, _> = stopped;
                    return Err(error);
                }
                other = async { active.wait_for(|active| !*active).await.is_ok() } => if !other { return Ok(()) },
            }
            tracing::info!(backup = self.work.settings.name, "another node archives");
            self.desk.tell(|status| status.full_under_way = false);
        }
    }

    /// Refuses, once, an archive that has less than what was told as archived: it was emptied or replaced meanwhile. Gives the
    /// newest whole state if that is not there: the log behind it can't be restored without.
    async fn compare(&self, chain: &Catalogue) -> Result<Option<Object>, ArchiveError> {
        let told = self.desk.status().borrow().archived.map(|archived| archived.position.index.get());
        let found = chain.objects().map(|object| object.last.index).max();
        if told > found {
            let name = format!("what was archived up to entry {}", told.unwrap_or_default());
            return Err(CatalogueError::Replaced { name }.into());
        }
        let Some(full) = chain.newest_full() else { return Ok(None) };
        match self.work.repository.head(&full.name).await {
            Ok(_) => Ok(None),
            Err(StoreError::Missing { name }) if told.is_some() => Err(CatalogueError::Replaced { name }.into()),
            Err(StoreError::Missing { .. }) => Ok(Some(full.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds out whether the store can hold an archive, and whether this node may write there.
    async fn try_store(&self) -> Result<(), ArchiveError> {
        let probed = probe::probe(&self.work.repository).await?;
        let backup = &self.work.settings.name;
        if let Some(skew_ms) = probed.skew_millis.filter(|skew| skew.unsigned_abs() > SKEW_MILLIS_MAX) {
            tracing::warn!(backup, skew_ms, "the clock of this machine differs from that of the store; set it");
        }
        if probed.made {
            tracing::info!(backup, url = self.work.repository.url(), "a new repository for backups is begun");
        }
        Ok(())
    }

    /// The store does what is asked of it; `surely` also where it failed last.
    fn usable(&self, surely: bool) {
        self.desk.tell(|status| {
            status.healthy = true;
            status.broken = None;
            if surely {
                status.failing = None;
            }
        });
    }

    fn failed(&self, error: &ArchiveError) {
        let lost = matches!(error, ArchiveError::Chain(error) if error.is_loss());
        let broken = matches!(error, ArchiveError::Chain(error) if error.is_unreadable());
        let (backup, error) = (&self.work.settings.name, error.to_string());
        self.desk.tell(|status| {
            status.healthy = false;
            if lost {
                let upto = status.archived.map(|archived| archived.position.index);
                // Found again, as long as it is not mended, it is the same loss.
                if upto.is_some() || status.lost.is_none() {
                    status.lost = Some(Lost { since: clock::wall(), what: error.clone(), upto });
                }
                // Nobody may count on what is not there any more.
                (status.archived, status.shipped, status.full, status.covered_at) = (None, None, None, None);
            }
            if broken {
                let since = status.broken.take().map_or_else(clock::wall, |broken| broken.since);
                status.broken = Some(Failing { since, error: error.clone() });
            }
            status.full_under_way = false;
            status.errors += 1;
            let since = status.failing.take().map_or_else(clock::wall, |failing| failing.since);
            status.failing = Some(Failing { since, error: error.clone() });
        });
        tracing::warn!(backup, error, "archiving failed; it will be tried again");
    }
}

fn pauses() -> backon::ExponentialBackoff {
    let pauses = backon::ExponentialBuilder::new().with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX);
    pauses.without_max_times().with_jitter().with_jitter_seed(host::random()).build()
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Data(error.into())
    }
}
