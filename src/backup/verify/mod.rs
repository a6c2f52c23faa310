//! Whether an archive can be believed, in four steps, each with all before it.
//!
//! | level | what it does | what it reads |
//! |---|---|---|
//! | 1 | every object that belongs to the archive is there, with its length | newest manifests, listings |
//! | 2 | the chain of manifests is whole, and all it says fits together | manifests from the oldest list of all on, 8192 at most |
//! | 3 | every object is fetched, has its SHA-256, opens, and decodes to what the manifest says | everything |
//! | 4 | snapshots and log are replayed in an engine of their own; the state has the hash that the cluster noted | everything |
//!
//! Guarantees: what is wrong with the archive is a finding, with what to do; an error means that it could not be checked (the
//! store is away, the disk is full, a key is missing), and is never taken for damage. Nothing in the repository is changed.
//! Leaves out: the schedule, and keeping the result (`proof`).

mod chain;
mod content;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::catalogue::{Catalogue, Head};
use super::layout::{self, Kind, Layout, is_encrypted};
use super::manifest::Object;
use super::marker::{self, MarkerError};
use super::proof::{Proof, ProofKind};
use super::rebuild::RebuildError;
use super::repository::{Listed, Repository, StoreError};
use super::seal::Identities;
use super::segment::StateMark;
use crate::types::{ClusterId, LogPosition, WallTime};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Existence and lengths.
    Exist = 1,
    /// The chain, and what it says.
    Chain = 2,
    /// Content.
    Content = 3,
    /// Replay.
    Replay = 4,
}

impl Level {
    /// From its number, 1 to 4.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Exist),
            2 => Some(Self::Chain),
            3 => Some(Self::Content),
            4 => Some(Self::Replay),
            _ => None,
        }
    }

    /// 1 to 4.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// What to check, and with what.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// How deep.
    pub level: Level,
    /// Private keys; needed from level 3 on where the archive is encrypted.
    pub identities: &'a Identities,
    /// A folder with room for a few objects, unpacked, and at level 4 for a whole state. What is put there is removed.
    pub scratch: &'a Path,
}

/// How far a check has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of objects that were fetched.
    pub bytes: u64,
    /// Bytes that will be in the end.
    pub bytes_total: u64,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong with what the archive promises.
    Note,
    /// Something that the archive promises can't be restored.
    Damage,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The object it is about, if it is about one.
    pub object: Option<String>,
    /// What is the matter.
    pub what: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl Finding {
    fn damage(object: Option<&str>, what: impl Into<String>, advice: &'static str) -> Self {
        Self { severity: Severity::Damage, object: object.map(ToOwned::to_owned), what: what.into(), advice }
    }

    fn note(object: Option<&str>, what: impl Into<String>, advice: &'static str) -> Self {
        Self { severity: Severity::Note, ..Self::damage(object, what, advice) }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        write!(f, "{}: {}", self.what, self.advice)
    }
}

/// A stretch of the log of which every point can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The snapshot it begins with.
    pub full: Object,
    /// The pieces of the log behind it that are needed, in order.
    pub segments: Vec<Object>,
    /// The last point.
    pub end: LogPosition,
}

/// What was checked and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The cluster.
    pub cluster: ClusterId,
    /// How deep.
    pub level: Level,
    /// The newest manifest.
    pub head: Option<Head>,
    /// Manifests that were read, at level 2 and above.
    pub manifests: u64,
    /// Objects of data that belong to the archive.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What can be restored, oldest first. Between two runs lie points that can't be.
    pub runs: Vec<Run>,
    /// Objects that belong to nothing; pruning removes them.
    pub orphans: Vec<Listed>,
    /// Objects that were stored before the archive began: of another one, whose manifests are gone. Pruning leaves them.
    pub lost: Vec<Listed>,
    /// Entries that were decoded, from level 3 on.
    pub entries: u64,
    /// Records of snapshots that were decoded, from level 3 on.
    pub records: u64,
    /// How often a replayed state was compared with what the cluster had noted, at level 4.
    pub compared: u64,
    /// The last point that was replayed and compared, at level 4.
    pub reached: Option<(LogPosition, StateMark)>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Damage)
    }

    /// What is kept beside the archive of a check that `by` has made.
    #[must_use]
    pub fn proof(&self, by: &str, began: WallTime, ended: WallTime) -> Proof {
        let figures = [
            ("objects", self.objects),
            ("read_bytes", if self.level >= Level::Content { self.bytes } else { 0 }),
            ("entries", self.entries),
            ("records", self.records),
            ("states_compared", self.compared),
        ];
        Proof {
            level: Some(self.level.number()),
            manifest: self.head.map(|head| head.seq),
            reached: self.reached.map(|(position, _)| position.into()),
            state: self.reached.map(|(_, mark)| mark.into()),
            figures: figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            findings: self.findings.iter().map(ToString::to_string).collect(),
            ..Proof::new(ProofKind::Verify, by, self.passed(), began, ended)
        }
    }

    fn new(cluster: ClusterId, level: Level) -> Self {
        Self {
            cluster,
            level,
            head: None,
            manifests: 0,
            objects: 0,
            bytes: 0,
            runs: Vec::new(),
            orphans: Vec::new(),
            lost: Vec::new(),
            entries: 0,
            records: 0,
            compared: 0,
            reached: None,
            findings: Vec::new(),
        }
    }
}

/// Why an archive can't be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is not a repository that this program reads.
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no archive of this cluster.
    #[error("the repository holds no archive of cluster {cluster}; it holds {there}")]
    NoArchive {
        /// Which was asked for.
        cluster: String,
        /// Which there are, for people.
        there: String,
    },
    /// Objects are encrypted, and there is no key.
    #[error("the archive is encrypted: levels 3 and 4 need a private key (--identity FILE); levels 1 and 2 don't")]
    NoIdentity,
    /// The keys that were given open nothing.
    #[error(
        "none of the given private keys opens any encrypted object of the archive: it was encrypted to other public keys; name \
         the file of the key that was configured when it was archived (--identity FILE)"
    )]
    WrongIdentity,
    /// An object was written by a newer program.
    #[error("{name}: {why}; check it with the program that archived, or a newer one")]
    Newer {
        /// Which.
        name: String,
        /// What is newer.
        why: String,
    },
    /// The local disk does not do.
    #[error("can't use {} for the check: {source}", .path.display())]
    Scratch {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The engine of the replay does not do.
    #[error("the replay stopped: {0}")]
    Replay(#[source] RebuildError),
}

/// Checks the archive of a cluster. `progress` hears of the bytes that are fetched, from level 3 on.
///
/// # Errors
/// [`VerifyError`] if it could not be checked; damage is told in the report.
pub async fn verify(
    repository: &Repository,
    cluster: ClusterId,
    scope: Scope<'_>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Report, VerifyError> {
    exists(repository, cluster).await?;
    let mut report = Report::new(cluster, scope.level);
    let Some(catalogue) = chain::catalogue(repository, &mut report).await? else { return Ok(report) };
    report.head = catalogue.head();
    report.objects = catalogue.objects().count() as u64;
    // The numbers of manifests are anybody's.
    report.bytes = catalogue.objects().fold(0_u64, |sum, object| sum.saturating_add(object.bytes));
    report.runs = runs(&catalogue);
    let listed = listed(repository, cluster).await?;
    chain::existence(&catalogue, &listed, catalogue.began(repository).await?, &mut report);
    chain::clock(repository, &catalogue, &mut report).await?;
    if scope.level >= Level::Chain {
        chain::consistency(&catalogue, &mut report);
    }
    if scope.level >= Level::Content {
        if scope.identities.is_empty() && catalogue.objects().any(|object| is_encrypted(&object.name)) {
            return Err(VerifyError::NoIdentity);
        }
        content::check(repository, &catalogue, scope, &mut report, progress).await?;
    }
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(report)
}

/// Makes sure that there is an archive of this cluster.
async fn exists(repository: &Repository, cluster: ClusterId) -> Result<(), VerifyError> {
    let there = marker::clusters(repository).await?;
    if there.contains(&cluster) {
        return Ok(());
    }
    let names: Vec<String> = there.into_iter().map(layout::cluster_name).collect();
    let there = if names.is_empty() { "none at all".to_owned() } else { names.join(", ") };
    Err(VerifyError::NoArchive { cluster: layout::cluster_name(cluster), there })
}

/// All objects of data of a cluster that are in the store, by name, whether they belong to the archive or not.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn listed(
    repository: &Repository,
    cluster: ClusterId,
) -> Result<BTreeMap<String, Listed>, StoreError> {
    let layout = Layout::new(cluster);
    let mut found = BTreeMap::new();
    for kind in [Kind::Log, Kind::Full] {
        let listed = repository.list(&layout.data(kind), None).await?;
        found.extend(listed.into_iter().filter(|object| layout.is_data(&object.name)).map(|o| (o.name.clone(), o)));
    }
    Ok(found)
}

/// What of an archive can be restored, oldest first: the stretches of the log without a gap that begin with a snapshot.
#[must_use]
pub fn runs(catalogue: &Catalogue) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for full in catalogue.fulls() {
        if runs.last().is_some_and(|run| full.last.index <= run.end.index.get()) {
            continue;
        }
        let (end, segments) = catalogue.follow(full.last.into());
        runs.push(Run { full: full.clone(), segments: segments.into_iter().cloned().collect(), end });
    }
    runs
}
