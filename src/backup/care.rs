//! What is done for an archive beside filling it: it is verified and pruned by schedule, superseded manifests are removed,
//! and the proofs of all that, and of drills made elsewhere, are looked at.
//!
//! Every node that knows of the place runs a [`Caretaker`], which reads proofs; only that of the node that archives verifies,
//! prunes and removes. Guarantees: when something was done last is found from the proofs in the repository, so it is not
//! repeated when another node takes over, and done once, late, where no node ran when it was due; no object of data is
//! removed unless [`Care::keep`] says what is kept; what can't be removed for want of the right is tried once a day, and told
//! once it matters. Leaves out: drills, which start a cluster (`cli`), and alarms (`node`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layout;
use super::marker::MarkerError;
use super::proof::{self, ProofKind, Told};
use super::prune::{self, How, PruneError};
use super::repository::{Repository, StoreError};
use super::retention::Keep;
use super::schedule::Schedule;
use super::seal::{Identities, KeyError};
use super::trim::{self, TrimError};
use super::verify::{self, Level, Scope, VerifyError};
use crate::clock;
use crate::types::{ClusterId, WallTime};
use crate::{host, watch};

/// How often proofs are looked at, and what is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// So many of the newest proofs are looked at, and those behind the oldest one that did not pass, but not more than this.
const PROOFS_MIN: usize = 64;
const PROOFS_MAX: usize = 1_000;

/// What was due while no node ran is done once a node has archived for so long: one that ends again and again does not
/// begin it each time.
const LATE_AFTER: Duration = Duration::from_secs(5 * 60);

/// How often superseded manifests are removed, and how often it is tried where the right for that is missing.
const TRIM_EVERY: Duration = Duration::from_secs(60 * 60);
const TRIM_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// So many manifests, some days' worth, and no right to remove any is something to tell.
const MANIFESTS_MAX: usize = if cfg!(test) { 250 } else { 250_000 };

/// What is done, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Care {
    /// When the archive is verified.
    pub verify: Schedule,
    /// How deep.
    pub level: Level,
    /// A file of private keys, needed from level 3 on where the archive is encrypted.
    pub identity_file: Option<PathBuf>,
    /// What is kept; without it nothing is ever removed.
    pub keep: Option<Keep>,
    /// When the rest is removed.
    pub prune: Schedule,
}

/// What the proofs tell of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// When the repository was made.
    pub since: WallTime,
    /// The end of the last verification without damage, however deep.
    pub verified: Option<WallTime>,
    /// The end of the last one that read everything.
    pub read: Option<WallTime>,
    /// The end of the last drill that passed.
    pub drilled: Option<WallTime>,
    /// What the last verification or drill found that did not pass, and when, unless a verification as deep has passed since.
    /// What a drill finds, one of level 4 alone can settle: another drill restores another point.
    pub failed: Option<(WallTime, String)>,
    /// Since when what should be removed is not, and why; known to the node that archives.
    pub unpruned: Option<(WallTime, String)>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
enum CareError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the archive can't be verified: {0}")]
    Verify(#[from] VerifyError),
    #[error("the archive can't be pruned: {0}")]
    Prune(#[from] PruneError),
    #[error(transparent)]
    Trim(#[from] TrimError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{0}")]
    Local(#[from] io::Error),
}

impl CareError {
    /// Whether it only says that nothing is archived yet.
    fn is_early(&self) -> bool {
        matches!(
            self,
            Self::Verify(
                VerifyError::NoArchive { .. } | VerifyError::Marker(MarkerError::Store(StoreError::Missing { .. }))
            )
        )
    }
}

/// Looks after the archive of a cluster.
#[derive(Debug)]
pub struct Caretaker {
    /// The cluster.
    pub cluster: ClusterId,
    /// Name of this node, for proofs.
    pub author: String,
    /// What is to be done.
    pub care: Care,
    /// Where the archive is.
    pub repository: Repository,
    /// A folder that may be made and removed, with room for what is verified from level 3 on.
    pub scratch: PathBuf,
    /// Where it is told what the proofs say.
    pub health: watch::Sender<Option<Health>>,
}

impl Caretaker {
    /// Works for ever; what takes long is begun only while `active` says so. Can be dropped at any point.
    pub async fn run(self, active: watch::Receiver<bool>) {
        let mut known = Known::default();
        loop {
            if let Err(error) = self.look(&active, &mut known, clock::wall()).await
                && !error.is_early()
            {
                let at = layout::cluster_name(self.cluster);
                tracing::warn!(archive = at, url = self.repository.url(), %error, "an archive was not looked after");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, active: &watch::Receiver<bool>, known: &mut Known, now: WallTime) -> Result<(), CareError> {
        if !*active.borrow() {
            // Another node tells of it.
            (known.active_since, known.unpruned, known.untrimmed) = (None, None, None);
            return self.read(known).await.map(drop);
        }
        let told = self.read(known).await?;
        let began = *known.active_since.get_or_insert(now);
        let last = |kind: ProofKind, tried: WallTime| {
            let proven = told.iter().rfind(|told| told.kind == kind).map_or(known.since, |told| told.at);
            // One that could not be finished waits for the next time, too: at level 3 and above it is dear.
            proven.max(tried)
        };
        let verify = is_due(&self.care.verify, last(ProofKind::Verify, known.verified), began, now);
        let prune = is_due(&self.care.prune, last(ProofKind::Prune, known.pruned), began, now);
        let (keep, trim) = (self.care.keep.as_ref().filter(|_| prune), known.trim_at <= now);
        if !verify && !trim && keep.is_none() {
            return Ok(());
        }
        let trimmed = if trim { self.trim(known, now).await } else { Ok(()) };
        let pruned = match keep {
            Some(keep) => {
                known.pruned = now;
                let pruned = self.prune(keep).await;
                known.unpruned = failing(known.unpruned.take(), &pruned, now);
                pruned
            }
            None => Ok(()),
        };
        let verified = if verify {
            known.verified = now;
            self.verify(self.care.level).await
        } else {
            Ok(())
        };
        self.read(known).await?;
        trimmed.and(pruned).and(verified)
    }

    async fn prune(&self, keep: &Keep) -> Result<(), CareError> {
        let how = How { keep, grace: prune::GRACE, by: &self.author, lost: false, dry_run: false };
        let begun = prune::begin(&self.repository, self.cluster, &self.author).await?;
        let done = prune::run(&self.repository, self.cluster, how, begun).await?;
        let (dropped, deleted) = (done.plan.drops.len(), done.deleted.len());
        tracing::info!(url = self.repository.url(), dropped, deleted, "an archive was pruned");
        if !done.lost.is_empty() {
            let (url, objects) = (self.repository.url(), done.lost.len());
            tracing::warn!(
                url,
                objects,
                "what was stored before the archive began is left: see 'quorate backup verify'"
            );
        }
        Ok(())
    }

    /// Removes superseded manifests, as far as this node may.
    async fn trim(&self, known: &mut Known, now: WallTime) -> Result<(), CareError> {
        known.trim_at = behind(now, TRIM_EVERY);
        let lock = self.care.keep.as_ref().map_or(Duration::ZERO, |keep| keep.object_lock);
        let trimmed = trim::run_before_newest(&self.repository, self.cluster, lock).await;
        let refused = matches!(&trimmed, Err(TrimError::Refused { source: StoreError::Forbidden { .. }, .. }));
        let matters = match &trimmed {
            Err(TrimError::Refused { left, .. }) => refused && *left > MANIFESTS_MAX,
            Err(TrimError::Chain(error)) => error.is_broken(),
            Ok(_) => false,
        };
        known.untrimmed = match &trimmed {
            Err(error) if matters => Some((known.untrimmed.take().map_or(now, |(since, _)| since), error.to_string())),
            Err(_) => known.untrimmed.take(),
            Ok(_) => None,
        };
        match trimmed {
            Ok(trimmed) => {
                known.refused = false;
                if trimmed.removed > 0 {
                    let (removed, left) = (trimmed.removed, trimmed.left);
                    tracing::info!(url = self.repository.url(), removed, left, "superseded manifests were removed");
                }
                Ok(())
            }
            Err(error) if refused => {
                known.trim_at = behind(now, TRIM_AGAIN);
                if !std::mem::replace(&mut known.refused, true) {
                    tracing::warn!(url = self.repository.url(), %error, "superseded manifests stay");
                }
                Ok(())
            }
            // Once, so that it is kept beside the archive, and told, what is wrong with the chain.
            Err(error) if matters && self.health.borrow().as_ref().is_none_or(|health| health.failed.is_none()) => {
                self.verify(Level::Chain).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the proofs and tells what they say.
    async fn read(&self, known: &mut Known) -> Result<Vec<Told>, CareError> {
        let told = proof::list(&self.repository, self.cluster).await?;
        let since = self.repository.head(layout::REPOSITORY).await?.stored_at;
        known.since = since;
        let unpruned = known.unpruned.clone().or_else(|| known.untrimmed.clone());
        let mut health = Health { since, unpruned, ..Health::default() };
        // The deepest check that passed behind the proof that is looked at.
        let mut passed = 0;
        let checks: Vec<&Told> = told.iter().rev().filter(|told| told.kind != ProofKind::Prune).collect();
        let failed = checks.iter().rposition(|told| !told.passed).map_or(0, |at| at + 1);
        for (at, told) in checks.into_iter().take(failed.clamp(PROOFS_MIN, PROOFS_MAX)).enumerate() {
            if at >= PROOFS_MIN && passed >= Level::Replay.number() {
                // Nothing older can still matter.
                break;
            }
            let level = self.level(told, known).await?;
            match (told.kind, told.passed) {
                (ProofKind::Drill, true) => health.drilled = health.drilled.max(Some(told.at)),
                (_, true) => {
                    passed = passed.max(level);
                    health.verified = health.verified.max(Some(told.at));
                    if level >= Level::Content.number() {
                        health.read = health.read.max(Some(told.at));
                    }
                }
                // A shallower check that passed says nothing of what a deeper one found.
                (_, false) if health.failed.is_none() && passed < level => {
                    let proof = proof::read(&self.repository, &told.name).await?;
                    let finding = proof.and_then(|proof| proof.findings.into_iter().next()).unwrap_or_default();
                    health.failed = Some((told.at, format!("{}: {finding}", told.kind.name())));
                }
                (_, false) => {}
            }
        }
        known.levels.retain(|name, _| told.iter().any(|told| told.name == *name));
        self.health.send_replace(Some(health));
        Ok(told)
    }

    /// How deep what a proof tells of went. A drill reads and replays what it restores.
    async fn level(&self, told: &Told, known: &mut Known) -> Result<u8, CareError> {
        if told.kind == ProofKind::Drill {
            return Ok(Level::Replay.number());
        }
        if let Some(level) = known.levels.get(&told.name) {
            return Ok(*level);
        }
        let proof = proof::read(&self.repository, &told.name).await?;
        let level = proof.and_then(|proof| proof.level).unwrap_or(Level::Exist.number());
        known.levels.insert(told.name.clone(), level);
        Ok(level)
    }

    /// Does something to the folder for what is verified, where blocking does no harm.
    async fn on_disk(&self, work: fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let scratch = self.scratch.clone();
        host::spawn_blocking(move || work(&scratch)).await?
    }

    async fn verify(&self, level: Level) -> Result<(), CareError> {
        let identities = match &self.care.identity_file {
            Some(file) if level >= Level::Content => {
                // What never ends, like a pipe, would hold up all that is done for this place.
                if tokio::fs::metadata(file).await.is_ok_and(|meta| !meta.is_file()) {
                    let why = format!("{} is no regular file, as a node's identity_file must be", file.display());
                    return Err(std::io::Error::other(why).into());
                }
                Identities::from_file(file)?
            }
            _ => Identities::default(),
        };
        self.on_disk(|scratch| fs::create_dir_all(scratch)).await?;
        let began = clock::wall();
        let scope = Scope { level, identities: &identities, scratch: &self.scratch };
        let report = verify::verify(&self.repository, self.cluster, scope, &|_| ()).await;
        self.on_disk(|scratch| fs::remove_dir_all(scratch)).await?;
        let proof = report?.proof(&self.author, began, clock::wall());
        proof::write(&self.repository, self.cluster, &proof).await?;
        if proof.passed {
            tracing::info!(url = self.repository.url(), level = proof.level, "an archive was verified");
        } else {
            tracing::error!(url = self.repository.url(), findings = ?proof.findings, "an archive is damaged");
        }
        Ok(())
    }
}

/// What a caretaker remembers.
#[derive(Debug, Default)]
struct Known {
    /// When the repository was made.
    since: WallTime,
    /// Since when this node archives.
    active_since: Option<WallTime>,
    /// When verifying was begun here last.
    verified: WallTime,
    /// When pruning was.
    pruned: WallTime,
    /// When superseded manifests are removed next.
    trim_at: WallTime,
    /// Whether it was told that they may not be removed.
    refused: bool,
    /// Since when pruning fails, and why.
    unpruned: Option<(WallTime, String)>,
    /// Since when manifests stay, and why, where that matters.
    untrimmed: Option<(WallTime, String)>,
    /// How deep verifications went, by the name of their proof.
    levels: BTreeMap<String, u8>,
}

/// Whether a schedule has come since `last`, for a node that archives since `began`: at once, if it has come while it did.
fn is_due(schedule: &Schedule, last: WallTime, began: WallTime, now: WallTime) -> bool {
    schedule.next_after(last).is_some_and(|due| due <= now && (due >= began || behind(began, LATE_AFTER) <= now))
}

fn behind(at: WallTime, span: Duration) -> WallTime {
    WallTime::new(at.get().saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
}

/// Since when something fails, and why, after it was done once more.
fn failing(
    before: Option<(WallTime, String)>,
    done: &Result<(), CareError>,
    now: WallTime,
) -> Option<(WallTime, String)> {
    let error = done.as_ref().err().filter(|error| !error.is_early())?;
    Some((before.map_or(now, |(since, _)| since), error.to_string()))
}

#[cfg(test)]
mod tests;
