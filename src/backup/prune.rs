//! Taking things out of an archive, in two steps that are a grace apart: first a manifest says that an object does not belong to
//! the archive any more, and only a later run deletes it. Whoever is restoring meanwhile still finds it.
//!
//! Guarantees: an object that belongs to the archive is never deleted; nothing is taken out unless what stays is there, with
//! its length; a run that ends in the middle leaves nothing that the next one does not mend. Deleted are data, old manifests
//! and old proofs of one cluster, by their names, and nothing else. Leaves out: what is kept (`retention`), and the schedule.
//!
//! What no manifest names is deleted once it is older than the grace. So whoever stores an object must name it in a
//! manifest within [`NAME_WITHIN`], or store it again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::catalogue::{BASE_EVERY, Catalogue, CatalogueError, MANIFEST_BYTES_MAX};
use super::layout::Layout;
use super::manifest::Manifest;
use super::marker::{self, MarkerError};
use super::proof::{self, Proof, ProofKind};
use super::repository::{Listed, Repository, StoreError};
use super::retention::{self, Keep, Plan};
use super::verify;
use crate::clock;
use crate::types::{ClusterId, WallTime};

/// How long an object stays that belongs to nothing: longer than any restore, or upload, should take.
pub const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after it was stored an object may be named in a manifest.
pub const NAME_WITHIN: Duration = Duration::from_secs(60 * 60);

/// Manifests stay for so long behind one that lists all: whoever reads the chain is done with it.
const MANIFEST_GRACE: Duration = Duration::from_secs(60 * 60);

/// So many proofs of a kind stay.
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
    /// How long dropped objects and orphans stay; [`GRACE`] where nobody knows better.
    pub grace: Duration,
    /// The node or command that does it.
    pub by: &'a str,
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
    /// How many old manifests were deleted.
    pub manifests: usize,
    /// How many old proofs were.
    pub proofs: usize,
}

/// Why an archive is not pruned (any further).
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
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

/// Prunes the archive of a cluster.
///
/// # Errors
/// [`PruneError`]; what was removed until then stays removed.
pub async fn run(
    repository: &Repository,
    cluster: ClusterId,
    how: How<'_>,
    now: WallTime,
) -> Result<Pruned, PruneError> {
    marker::check(repository).await?;
    let mut catalogue = Catalogue::read(repository, cluster).await?;
    let mut listed = verify::listed(repository, cluster).await?;
    let dropped = recently_dropped(repository, cluster, how.grace, now).await?;
    let mut pruned =
        Pruned { plan: drop_objects(repository, &mut catalogue, &mut listed, how, now).await?, ..Pruned::default() };
    let gone: BTreeSet<&str> = pruned.plan.drops.iter().map(|object| object.name.as_str()).collect();
    let spared = how.grace.max(how.keep.object_lock);
    for (name, object) in listed {
        // In a dry run the catalogue still has what would be dropped.
        if catalogue.object(&name).is_some() && !gone.contains(name.as_str()) {
            continue;
        }
        let free = is_older(object.stored_at, spared, now) && !dropped.contains(&name) && !gone.contains(name.as_str());
        if free { pruned.deleted.push(object) } else { pruned.waiting.push(object) }
    }
    // What was named since the listing belongs to the archive.
    catalogue.refresh(repository).await?;
    pruned.deleted.retain(|object| catalogue.object(&object.name).is_none());
    let names = pruned.deleted.iter().map(|object| object.name.clone()).collect();
    delete(repository, names, how.dry_run).await?;
    let manifests = old_manifests(repository, cluster, now).await?;
    pruned.manifests = manifests.len();
    delete(repository, manifests, how.dry_run).await?;
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
            && !is_older(told.at, grace, now)
            && let Some(proof) = proof::read(repository, &told.name).await?
        {
            dropped.extend(proof.drops);
        }
    }
    Ok(dropped)
}

/// The names of manifests that nobody needs: those in front of one that lists all, and has done so for a while.
async fn old_manifests(repository: &Repository, cluster: ClusterId, now: WallTime) -> Result<Vec<String>, PruneError> {
    let layout = Layout::new(cluster);
    let listed = repository.list(&layout.chain(), None).await?;
    let lists_all = |object: &&Listed| {
        let seq = layout.manifest_seq(&object.name);
        seq.is_some_and(|seq| seq.is_multiple_of(BASE_EVERY)) && is_older(object.stored_at, MANIFEST_GRACE, now)
    };
    let Some(base) = listed.iter().rfind(lists_all) else { return Ok(Vec::new()) };
    let seq = layout.manifest_seq(&base.name).unwrap_or_default();
    let bytes = repository.get(&base.name, MANIFEST_BYTES_MAX).await?;
    let manifest = Manifest::decode(&bytes, cluster, seq).map_err(|source| CatalogueError::Manifest { seq, source })?;
    if manifest.base.is_none() {
        return Ok(Vec::new());
    }
    let older = |object: &&Listed| layout.manifest_seq(&object.name).is_some_and(|found| found < seq);
    Ok(listed.iter().filter(older).map(|object| object.name.clone()).collect())
}

/// The names of proofs beyond those that stay: the newest of each kind, and those that tell of a grace.
async fn old_proofs(
    repository: &Repository,
    cluster: ClusterId,
    grace: Duration,
    now: WallTime,
) -> Result<Vec<String>, PruneError> {
    let mut old = Vec::new();
    let told = proof::list(repository, cluster).await?;
    for kind in [ProofKind::Verify, ProofKind::Drill, ProofKind::Prune] {
        let of_kind = told.iter().rev().filter(|told| told.kind == kind);
        let newest_good = told.iter().rfind(|told| told.kind == kind && told.passed);
        let over = of_kind.skip(PROOFS_MAX).filter(|told| Some(*told) != newest_good && is_older(told.at, grace, now));
        old.extend(over.map(|told| told.name.clone()));
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
