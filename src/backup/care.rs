//! What is done for an archive beside filling it: it is verified and pruned by schedule, and the proofs of that, and of
//! drills made elsewhere, are looked at.
//!
//! Every node that knows of the place runs a [`Caretaker`], which reads proofs; only that of the node that archives verifies
//! and prunes. Guarantees: what was verified is found from the proofs in the repository, so it is not repeated when another
//! node takes over; nothing is pruned unless [`Care::keep`] says what is kept. Leaves out: what was due while no node ran,
//! which waits for the next time; drills, which start a cluster (`cli`), and alarms (`node`).

use std::collections::BTreeMap;
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

/// So many of the newest proofs are looked at.
const PROOFS_MAX: usize = 64;

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
        let mut known = Known::since(clock::wall());
        loop {
            if let Err(error) = self.look(&active, &mut known).await
                && !error.is_early()
            {
                let at = layout::cluster_name(self.cluster);
                tracing::warn!(archive = at, url = self.repository.url(), %error, "an archive was not looked after");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, active: &watch::Receiver<bool>, known: &mut Known) -> Result<(), CareError> {
        let told = self.read(known).await?;
        if !*active.borrow() {
            return Ok(());
        }
        let now = clock::wall();
        let pruned = match self.care.keep.as_ref().filter(|_| is_due(&self.care.prune, known.pruned, now)) {
            Some(keep) => {
                known.pruned = now;
                self.prune(keep, now).await
            }
            None => Ok(()),
        };
        let last = told.iter().rfind(|told| told.kind == ProofKind::Verify).map_or(known.verified, |told| told.at);
        // One that could not be finished waits for the next time, too: at level 3 and above it is dear.
        if is_due(&self.care.verify, last.max(known.verified), now) {
            known.verified = now;
            self.verify().await?;
            self.read(known).await?;
        }
        pruned
    }

    async fn prune(&self, keep: &Keep, now: WallTime) -> Result<(), CareError> {
        let how = How { keep, grace: prune::GRACE, by: &self.author, dry_run: false };
        let done = prune::run(&self.repository, self.cluster, how, now).await?;
        let (dropped, deleted) = (done.plan.drops.len(), done.deleted.len());
        tracing::info!(url = self.repository.url(), dropped, deleted, "an archive was pruned");
        Ok(())
    }

    /// Reads the proofs and tells what they say.
    async fn read(&self, known: &mut Known) -> Result<Vec<Told>, CareError> {
        let told = proof::list(&self.repository, self.cluster).await?;
        let since = self.repository.head(layout::REPOSITORY).await?.stored_at;
        let mut health = Health { since, ..Health::default() };
        // The deepest check that passed behind the proof that is looked at.
        let mut passed = 0;
        let of_kind = |told: &&Told| told.kind != ProofKind::Prune;
        for told in told.iter().rev().filter(of_kind).take(PROOFS_MAX) {
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

/// What a caretaker remembers.
#[derive(Debug)]
struct Known {
    /// When verifying was begun last.
    verified: WallTime,
    /// When pruning was.
    pruned: WallTime,
    /// How deep verifications went, by the name of their proof.
    levels: BTreeMap<String, u8>,
}

impl Known {
    fn since(now: WallTime) -> Self {
        Self { verified: now, pruned: now, levels: BTreeMap::new() }
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
        let (active, mut known) = (watch::Sender::new(false), Known::since(WallTime::ZERO));
        let before = names(&archive);
        caretaker.look(&active.subscribe(), &mut known).await.unwrap();
        assert_eq!(caretaker.health.borrow().as_ref().unwrap().verified, None, "another node archives");
        active.send_replace(true);
        caretaker.look(&active.subscribe(), &mut known).await.unwrap();
        let health = caretaker.health.borrow().clone().unwrap();
        assert!(health.verified.is_some() && health.read.is_some(), "{health:?}");
        assert!(health.failed.is_none() && health.drilled.is_none(), "{health:?}");
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
        caretaker.look(&active.subscribe(), &mut Known::since(WallTime::ZERO)).await.unwrap();
        assert_eq!(reread(&mut archive).await, before);
        active.send_replace(true);
        let mut known = Known::since(WallTime::ZERO);
        caretaker.look(&active.subscribe(), &mut known).await.unwrap();
        let after = reread(&mut archive).await;
        assert!(after.len() < before.len() && archive.catalogue.fulls().len() == 1, "{after:?}");
        assert!(known.pruned > WallTime::ZERO);
    }

    #[tokio::test]
    async fn damage_is_told_until_a_verification_passes() {
        let archive = archive().await;
        let victim = names(&archive).into_iter().next().unwrap();
        let kept = archive.repository.get(&victim, 1 << 24).await.unwrap();
        archive.repository.delete(&victim).await.unwrap();
        let (caretaker, _dir) = caretaker(&archive.repository, None);
        let active = watch::Sender::new(true);
        caretaker.look(&active.subscribe(), &mut Known::since(WallTime::ZERO)).await.unwrap();
        let failed = caretaker.health.borrow().clone().unwrap().failed.unwrap().1;
        assert!(failed.starts_with("verify: ") && failed.contains(&victim), "{failed}");
        archive.repository.create(&victim, kept).await.unwrap();
        let mut known = Known::since(WallTime::ZERO);
        let shallow = Care { level: Level::Chain, ..caretaker.care.clone() };
        let shallow = Caretaker { care: shallow, health: caretaker.health.clone(), ..caretaker_like(&caretaker) };
        shallow.verify().await.unwrap();
        shallow.read(&mut known).await.unwrap();
        assert!(shallow.health.borrow().clone().unwrap().failed.is_some(), "a shallower look settles nothing");
        caretaker.verify().await.unwrap();
        caretaker.read(&mut known).await.unwrap();
        let health = caretaker.health.borrow().clone().unwrap();
        assert!(health.failed.is_none() && health.read == health.verified, "{health:?}");
    }

    fn caretaker_like(other: &Caretaker) -> Caretaker {
        caretaker(&other.repository, None).0
    }
}
