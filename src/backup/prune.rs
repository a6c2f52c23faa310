//! Taking things out of an archive, in two steps that are a grace apart: first a manifest says that an object does not belong to
//! the archive any more, and only a later run deletes it. Whoever is restoring meanwhile still finds it.
//!
//! Guarantees: an object that belongs to the archive is never deleted; nothing is taken out unless what stays is there, with
//! its length; a run that ends in the middle leaves nothing that the next one does not mend. Deleted are data, superseded
//! manifests (`trim`) and old proofs of one cluster, by their names, and nothing else. Leaves out: what is kept
//! (`retention`), and the schedule.
//!
//! What no manifest names is deleted once it is older than the grace, and was not taken out of the archive within the grace:
//! when that was is known from the proofs of pruning and, of a piece of the log that was replaced by a larger one, from the
//! time at which that was stored. Whoever stores an object must name it in a manifest within [`NAME_WITHIN`], or store it
//! again; so no grace may be shorter. What was stored before the archive began is of another one, whose manifests are gone, or
//! of a first upload that came to nothing: it stays unless it is asked for ([`How::lost`]), since with its manifests put back it
//! can be restored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::catalogue::{Catalogue, CatalogueError};
use super::layout::Layout;
use super::marker::{self, MarkerError};
use super::proof::{self, Proof, ProofKind};
use super::repository::{Listed, Repository, StoreError};
use super::retention::{self, Keep, Plan};
use super::trim::{self, TrimError};
use super::verify;
use crate::clock;
use crate::types::{ClusterId, WallTime};

/// How long an object stays that belongs to nothing: longer than any restore, or upload, should take.
pub const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after it was stored an object may be named in a manifest, and the shortest grace.
pub const NAME_WITHIN: Duration = Duration::from_secs(60 * 60);

/// So many proofs of a kind that passed stay, and as many that did not.
const PROOFS_MAX: usize = 100;

/// How often the manifest is tried again when others append at the same time.
const APPENDS_MAX: usize = 10;

/// So many objects are deleted at a time.
const DELETES_AT_ONCE: usize = 16;

/// What a run may do.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// What is kept.
    pub keep: &'a Keep,
    /// How long dropped objects and orphans stay; [`GRACE`] where nobody knows better, [`NAME_WITHIN`] at least.
    pub grace: Duration,
    /// The node or command that does it.
    pub by: &'a str,
    /// Also delete what was stored before the archive began, once the grace is over.
    pub lost: bool,
    /// Only tell what would happen.
    pub dry_run: bool,
}

/// What a run has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What was kept and why, and what was taken out of the archive by this run.
    pub plan: Plan,
    /// What was deleted.
    pub deleted: Vec<Listed>,
    /// What belongs to nothing, and waits for the end of its grace.
    pub waiting: Vec<Listed>,
    /// What was stored before the archive began, and stays.
    pub lost: Vec<Listed>,
    /// How many old manifests were deleted.
    pub manifests: usize,
    /// How many old proofs were.
    pub proofs: usize,
}

/// Why an archive is not pruned (any further).
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Objects that are about to belong to the archive could be deleted.
    #[error(
        "a grace of {} is too short: an object may be stored for {} before a manifest names it, and would be deleted \
         meanwhile; it must be that long at least",
        humantime::format_duration(*.0), humantime::format_duration(NAME_WITHIN)
    )]
    Grace(Duration),
    /// Superseded manifests can't be removed.
    #[error(transparent)]
    Trim(#[from] TrimError),
    /// It is not a repository that this program reads.
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain can't be read or continued.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// Something that would be kept is not there.
    #[error(
        "nothing was removed: {name}, which would be kept, {why}; run `quorate backup verify`, and prune once that is settled"
    )]
    Incomplete {
        /// What.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Keeps a proof that pruning is begun, and gives the time by the store's clock: by a clock that is wrong, what was stored
/// just now would be old.
///
/// # Errors
/// [`StoreError`].
pub async fn begin(repository: &Repository, cluster: ClusterId, by: &str) -> Result<WallTime, StoreError> {
    let now = clock::wall();
    let proof = Proof::new(ProofKind::Prune, by, true, now, now);
    let name = proof::write(repository, cluster, &proof).await?;
    Ok(repository.head(&name).await?.stored_at)
}

/// Prunes the archive of a cluster; `now` is by the store's clock ([`begin`]).
///
/// # Errors
/// [`PruneError`]; what was removed until then stays removed.
pub async fn run(
    repository: &Repository,
    cluster: ClusterId,
    how: How<'_>,
    now: WallTime,
) -> Result<Pruned, PruneError> {
    if how.grace < NAME_WITHIN {
        return Err(PruneError::Grace(how.grace));
    }
    marker::check(repository).await?;
    let mut catalogue = Catalogue::read(repository, cluster).await?;
    let mut listed = verify::listed(repository, cluster).await?;
    let dropped = recently_dropped(repository, cluster, how.grace, now).await?;
    let mut pruned =
        Pruned { plan: drop_objects(repository, &mut catalogue, &mut listed, how, now).await?, ..Pruned::default() };
    let gone: BTreeSet<&str> = pruned.plan.drops.iter().map(|object| object.name.as_str()).collect();
    let spared = how.grace.max(how.keep.object_lock);
    let replaced = Replaced::of(cluster, listed.values().filter(|object| !is_older(object.stored_at, spared, now)));
    let before = Before::of(repository, &catalogue, &listed, now).await?;
    for (name, object) in listed {
        // In a dry run the catalogue still has what would be dropped.
        if catalogue.object(&name).is_some() && !gone.contains(name.as_str()) {
            continue;
        }
        let lately = dropped.contains(&name) || gone.contains(name.as_str()) || replaced.holds(&name);
        let free = is_older(object.stored_at, spared, now) && !lately;
        if !how.lost && !lately && before.holds(&object) {
            pruned.lost.push(object);
        } else if free {
            pruned.deleted.push(object);
        } else {
            pruned.waiting.push(object);
        }
    }
    // What was named since the listing belongs to the archive.
    catalogue.refresh(repository).await?;
    pruned.deleted.retain(|object| catalogue.object(&object.name).is_none());
    let names = pruned.deleted.iter().map(|object| object.name.clone()).collect();
    delete(repository, names, how.dry_run).await?;
    let lock = how.keep.object_lock;
    pruned.manifests = match how.dry_run {
        true => trim::look(repository, cluster, lock, now).await?.removed,
        false => trim::run(repository, cluster, lock, now).await?.removed,
    };
    let proofs = old_proofs(repository, cluster, how.grace, now).await?;
    pruned.proofs = proofs.len();
    delete(repository, proofs, how.dry_run).await?;
    Ok(pruned)
}

/// Has the archive forget what is not kept; gives what that was.
async fn drop_objects(
    repository: &Repository,
    catalogue: &mut Catalogue,
    listed: &mut BTreeMap<String, Listed>,
    how: How<'_>,
    now: WallTime,
) -> Result<Plan, PruneError> {
    for _ in 0..APPENDS_MAX {
        let plan = retention::plan(catalogue, how.keep, now);
        if plan.drops.is_empty() || how.dry_run {
            return Ok(plan);
        }
        for object in catalogue.objects().filter(|object| plan.kept.contains_key(&object.name)) {
            let why = match listed.get(&object.name) {
                Some(found) if found.bytes == object.bytes => continue,
                Some(found) => format!("has {} bytes instead of {}", found.bytes, object.bytes),
                None => "is missing".to_owned(),
            };
            return Err(PruneError::Incomplete { name: object.name.clone(), why });
        }
        let drops: Vec<String> = plan.drops.iter().map(|object| object.name.clone()).collect();
        // First, so that the grace is known even if nothing else comes to pass.
        let note = Proof { drops: drops.clone(), ..Proof::new(ProofKind::Prune, how.by, true, now, clock::wall()) };
        proof::write(repository, catalogue.cluster(), &note).await?;
        match catalogue.append(repository, how.by, Vec::new(), drops).await {
            Ok(()) => return Ok(plan),
            // A listing must be newer than the catalogue it is compared with.
            Err(CatalogueError::Overtaken) => *listed = verify::listed(repository, catalogue.cluster()).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(CatalogueError::Overtaken.into())
}

fn is_older(at: WallTime, than: Duration, now: WallTime) -> bool {
    u128::from(now.get().saturating_sub(at.get())) >= than.as_millis()
}

/// What earlier runs took out of the archive, not longer than the grace ago.
async fn recently_dropped(
    repository: &Repository,
    cluster: ClusterId,
    grace: Duration,
    now: WallTime,
) -> Result<BTreeSet<String>, PruneError> {
    let mut dropped = BTreeSet::new();
    for told in proof::list(repository, cluster).await? {
        if told.kind == ProofKind::Prune
            && !is_older(told.stored_at, grace, now)
            && let Some(proof) = proof::read(repository, &told.name).await?
        {
            dropped.extend(proof.drops);
        }
    }
    Ok(dropped)
}

/// What was stored before the archive began, and never belonged to it as far as anybody knows.
struct Before {
    /// Nothing if there is no archive: then all was.
    began: Option<WallTime>,
    /// What was taken out of the archive, of what the proofs tell. Two nodes may both send a first whole state.
    dropped: BTreeSet<String>,
}

impl Before {
    async fn of(
        repository: &Repository,
        catalogue: &Catalogue,
        listed: &BTreeMap<String, Listed>,
        now: WallTime,
    ) -> Result<Self, PruneError> {
        let mut before = Self { began: catalogue.began(repository).await?, dropped: BTreeSet::new() };
        if listed.values().any(|object| catalogue.object(&object.name).is_none() && before.holds(object)) {
            before.dropped = recently_dropped(repository, catalogue.cluster(), Duration::MAX, now).await?;
        }
        Ok(before)
    }

    fn holds(&self, object: &Listed) -> bool {
        self.began.is_none_or(|began| object.stored_at < began) && !self.dropped.contains(&object.name)
    }
}

/// Which entries of the log were stored anew lately, so that other pieces with them may have been replaced by that.
struct Replaced {
    layout: Layout,
    /// First entries, ascending, each with the last one of all that begin there or before.
    reach: Vec<(u64, u64)>,
}

impl Replaced {
    fn of<'a>(cluster: ClusterId, lately: impl Iterator<Item = &'a Listed>) -> Self {
        let layout = Layout::new(cluster);
        let mut reach: Vec<(u64, u64)> = lately.filter_map(|object| layout.log_range(&object.name)).collect();
        reach.sort_unstable();
        let mut farthest = 0;
        for (_, last) in &mut reach {
            farthest = farthest.max(*last);
            *last = farthest;
        }
        Self { layout, reach }
    }

    /// Whether one of the new pieces holds all of this one.
    fn holds(&self, name: &str) -> bool {
        let Some((first, last)) = self.layout.log_range(name) else { return false };
        let begins = self.reach.partition_point(|(begin, _)| *begin <= first);
        begins.checked_sub(1).is_some_and(|at| self.reach[at].1 >= last)
    }
}

/// The names of proofs beyond those that stay: the newest of each kind that passed or did not, and those that tell of a
/// grace.
async fn old_proofs(
    repository: &Repository,
    cluster: ClusterId,
    grace: Duration,
    now: WallTime,
) -> Result<Vec<String>, PruneError> {
    let mut old = Vec::new();
    let told = proof::list(repository, cluster).await?;
    for kind in [ProofKind::Verify, ProofKind::Drill, ProofKind::Prune] {
        // Apart: what did not pass matters until something as deep did, however often something shallower has.
        for passed in [true, false] {
            let alike = told.iter().rev().filter(|told| told.kind == kind && told.passed == passed);
            let over = alike.skip(PROOFS_MAX).filter(|told| is_older(told.at, grace, now));
            old.extend(over.map(|told| told.name.clone()));
        }
    }
    Ok(old)
}

async fn delete(repository: &Repository, names: Vec<String>, dry_run: bool) -> Result<(), StoreError> {
    if dry_run {
        return Ok(());
    }
    let deleting = stream::iter(names).map(|name| async move { repository.delete(&name).await });
    deleting.buffer_unordered(DELETES_AT_ONCE).try_collect().await
}

#[cfg(test)]
mod tests;
