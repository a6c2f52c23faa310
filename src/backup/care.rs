//! What is done for an archive beside filling it: it is verified and pruned by schedule, and the proofs of that, and of
//! drills made elsewhere, are looked at.
//!
//! Every node that knows of the place runs a [`Caretaker`], which reads proofs; only that of the node that archives verifies
//! and prunes. Guarantees: what is due is found from the proofs in the repository, so it is neither forgotten nor repeated
//! when another node takes over or this one restarts; nothing is pruned unless [`Care::keep`] says what is kept. Leaves out:
//! drills, which start a cluster (`cli`), and alarms (`node`).

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::layout;
use super::marker::MarkerError;
use super::proof::{self, ProofKind, Told};
use super::prune::{self, How, PruneError};
use super::repository::{Repository, StoreError};
use super::retention::Keep;
use super::schedule::Schedule;
use super::seal::{Identities, KeyError};
use super::verify::{self, Level, Scope, VerifyError};
use crate::clock;
use crate::types::{ClusterId, WallTime};

/// How often proofs are looked at, and what is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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
    /// The end of the last verification without a finding.
    pub verified: Option<WallTime>,
    /// The end of the last drill that passed.
    pub drilled: Option<WallTime>,
    /// What the last verification or drill found, if it did not pass, and when.
    pub failed: Option<(WallTime, String)>,
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
    Key(#[from] KeyError),
    #[error("{0}")]
    Local(#[from] std::io::Error),
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
        let mut pruned = clock::wall();
        let began = pruned;
        loop {
            if let Err(error) = self.look(&active, began, &mut pruned).await
                && !error.is_early()
            {
                let at = layout::cluster_name(self.cluster);
                tracing::warn!(archive = at, url = self.repository.url(), %error, "an archive was not looked after");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(
        &self,
        active: &watch::Receiver<bool>,
        began: WallTime,
        pruned: &mut WallTime,
    ) -> Result<(), CareError> {
        let told = self.read().await?;
        if !*active.borrow() {
            return Ok(());
        }
        let now = clock::wall();
        let last = told.iter().rfind(|told| told.kind == ProofKind::Verify).map_or(began, |told| told.at);
        if is_due(&self.care.verify, last, now) {
            self.verify().await?;
            self.read().await?;
        }
        if let Some(keep) = self.care.keep.as_ref().filter(|_| is_due(&self.care.prune, *pruned, now)) {
            *pruned = now;
            let how = How { keep, grace: prune::GRACE, by: &self.author, dry_run: false };
            let done = prune::run(&self.repository, self.cluster, how, now).await?;
            let (dropped, deleted) = (done.plan.drops.len(), done.deleted.len());
            tracing::info!(url = self.repository.url(), dropped, deleted, "an archive was pruned");
        }
        Ok(())
    }

    /// Reads the proofs and tells what they say.
    async fn read(&self) -> Result<Vec<Told>, CareError> {
        let told = proof::list(&self.repository, self.cluster).await?;
        let since = self.repository.head(layout::REPOSITORY).await?.stored_at;
        let passed = |kind| told.iter().rfind(|told| told.kind == kind && told.passed).map(|told| told.at);
        let newest = |kind| told.iter().rfind(|told| told.kind == kind);
        let failed = [newest(ProofKind::Verify), newest(ProofKind::Drill)].into_iter().flatten();
        let failed = match failed.filter(|told| !told.passed).max_by_key(|told| told.at) {
            Some(failed) => {
                let proof = proof::read(&self.repository, &failed.name).await?;
                let finding = proof.and_then(|proof| proof.findings.into_iter().next()).unwrap_or_default();
                Some((failed.at, format!("{}: {finding}", failed.kind.name())))
            }
            None => None,
        };
        let health = Health { since, verified: passed(ProofKind::Verify), drilled: passed(ProofKind::Drill), failed };
        self.health.send_replace(Some(health));
        Ok(told)
    }

    async fn verify(&self) -> Result<(), CareError> {
        let identities = match &self.care.identity_file {
            Some(file) if self.care.level >= Level::Content => Identities::from_file(file)?,
            _ => Identities::default(),
        };
        tokio::fs::create_dir_all(&self.scratch).await?;
        let began = clock::wall();
        let scope = Scope { level: self.care.level, identities: &identities, scratch: &self.scratch };
        let report = verify::verify(&self.repository, self.cluster, scope, &|_| ()).await;
        tokio::fs::remove_dir_all(&self.scratch).await?;
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

/// Whether a schedule has come since `last`.
fn is_due(schedule: &Schedule, last: WallTime, now: WallTime) -> bool {
    schedule.next_after(last).is_some_and(|due| due <= now)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backup::faults::Faults;
    use crate::backup::sample::{Archive, CLUSTER};
    use crate::backup::seal::Recipients;

    const MINUTE: u64 = 60_000;

    async fn archive() -> Archive {
        Archive::filled(Faults::repository().0, Recipients::default()).await.0
    }

    fn caretaker(repository: &Repository, keep: Option<Keep>) -> (Caretaker, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let always: Schedule = "* * * * *".parse().unwrap();
        let level = Level::Replay;
        let care = Care { verify: always.clone(), level, identity_file: None, keep, prune: always };
        let (author, repository, scratch) = ("n1".to_owned(), repository.clone(), dir.path().join("scratch"));
        (Caretaker { cluster: CLUSTER, author, care, repository, scratch, health: watch::Sender::new(None) }, dir)
    }

    fn names(archive: &Archive) -> BTreeSet<String> {
        archive.catalogue.objects().map(|object| object.name.clone()).collect()
    }

    /// What the archive holds by now.
    async fn reread(archive: &mut Archive) -> BTreeSet<String> {
        archive.catalogue.refresh(&archive.repository).await.unwrap();
        names(archive)
    }

    #[test]
    fn a_schedule_is_due_once_it_has_come_since_the_last_time() {
        let schedule: Schedule = "*/10 * * * *".parse().unwrap();
        let at = |minutes: u64| WallTime::new(minutes * MINUTE);
        assert!(
            !is_due(&schedule, at(1), at(9)) && is_due(&schedule, at(1), at(10)) && is_due(&schedule, at(1), at(99))
        );
        assert!(!is_due(&schedule, at(10), at(19)));
    }

    #[tokio::test]
    async fn the_node_that_archives_verifies_and_the_others_hear_of_it() {
        let mut archive = archive().await;
        let (caretaker, _dir) = caretaker(&archive.repository, None);
        let (active, mut pruned) = (watch::Sender::new(false), WallTime::ZERO);
        let before = names(&archive);
        caretaker.look(&active.subscribe(), WallTime::ZERO, &mut pruned).await.unwrap();
        assert_eq!(caretaker.health.borrow().as_ref().unwrap().verified, None, "another node archives");
        active.send_replace(true);
        caretaker.look(&active.subscribe(), WallTime::ZERO, &mut pruned).await.unwrap();
        let health = caretaker.health.borrow().clone().unwrap();
        assert!(health.verified.is_some() && health.failed.is_none() && health.drilled.is_none(), "{health:?}");
        let proof = proof::newest(&archive.repository, CLUSTER, ProofKind::Verify, true).await.unwrap().unwrap();
        assert_eq!((proof.level, proof.by.as_str()), (Some(4), "n1"));
        assert!(!caretaker.scratch.exists());
        assert_eq!(reread(&mut archive).await, before, "nothing is removed unasked");
    }

    #[tokio::test]
    async fn what_is_not_to_be_kept_is_removed_by_the_node_that_archives_alone() {
        let mut archive = archive().await;
        let none =
            Keep { window: Duration::ZERO, hourly: 0, daily: 0, weekly: 0, monthly: 0, object_lock: Duration::ZERO };
        let (caretaker, _dir) = caretaker(&archive.repository, Some(none));
        let active = watch::Sender::new(false);
        let before = names(&archive);
        caretaker.look(&active.subscribe(), WallTime::ZERO, &mut WallTime::ZERO.clone()).await.unwrap();
        assert_eq!(reread(&mut archive).await, before);
        active.send_replace(true);
        let mut pruned = WallTime::ZERO;
        caretaker.look(&active.subscribe(), WallTime::ZERO, &mut pruned).await.unwrap();
        let after = reread(&mut archive).await;
        assert!(after.len() < before.len() && archive.catalogue.fulls().len() == 1, "{after:?}");
        assert!(pruned > WallTime::ZERO);
    }

    #[tokio::test]
    async fn damage_is_told_until_a_verification_passes() {
        let archive = archive().await;
        let victim = names(&archive).into_iter().next().unwrap();
        let kept = archive.repository.get(&victim, 1 << 24).await.unwrap();
        archive.repository.delete(&victim).await.unwrap();
        let (caretaker, _dir) = caretaker(&archive.repository, None);
        let active = watch::Sender::new(true);
        caretaker.look(&active.subscribe(), WallTime::ZERO, &mut WallTime::ZERO.clone()).await.unwrap();
        let failed = caretaker.health.borrow().clone().unwrap().failed.unwrap().1;
        assert!(failed.starts_with("verify: ") && failed.contains(&victim), "{failed}");
        archive.repository.create(&victim, kept).await.unwrap();
        caretaker.verify().await.unwrap();
        caretaker.read().await.unwrap();
        assert_eq!(caretaker.health.borrow().clone().unwrap().failed, None);
    }
}
