//! Removing manifests that a later one has superseded, by listing all that belongs to the archive.
//!
//! One comes with each piece of the log, so an archive that is written to all the time would gather tens of millions in a
//! year, though a reader begins at the newest list. Guarantees: the newest list that was there for [`GRACE`], and all
//! behind it, stay, so whoever is reading the chain finds what it has listed; what is removed was walked before, from the
//! oldest list on, and is continuous, and the list that stays names what it amounts to: of a chain in which that is not so, or
//! in which one is missing between others (`catalogue::hole`), nothing is removed. The oldest goes first, one after the other, so that wherever this ends no manifest is left whose
//! follower is gone: by that a writer that slept meanwhile knows that it was left behind (`catalogue`). Two that remove at
//! the same time do no harm. Leaves out: when (`care`), and objects of data (`prune`).

use std::time::Duration;

use super::catalogue::{BASE_EVERY, Catalogue, CatalogueError, from_beginning, hole, lists_all, newest_run};
use super::layout::Layout;
use super::manifest::Manifest;
use super::repository::{Listed, Repository, StoreError};
use crate::types::{ClusterId, WallTime};

/// Manifests stay for so long behind one that lists all: whoever reads the chain is done with it.
pub const GRACE: Duration = Duration::from_secs(60 * 60);

/// So many are walked before the first of them is removed, at most: what a node pays that may not remove any.
const STEP_MAX: usize = 16 * BASE_EVERY as usize;

/// So many are removed in one go, and a step: the rest waits for the next.
const REMOVED_MAX: usize = 100_000;

/// What was removed, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Manifests that are gone.
    pub removed: usize,
    /// Those that are left.
    pub left: usize,
}

/// Why superseded manifests stay.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrimError {
    /// The chain can't be read, or is not whole.
    #[error("superseded manifests stay: {0}")]
    Chain(#[source] CatalogueError),
    /// The store refused to remove them.
    #[error("{left} manifests are in the chain, of which {superseded} are superseded and can't be removed: {source}")]
    Refused {
        /// How many there are.
        left: usize,
        /// How many of them nobody needs.
        superseded: usize,
        /// What the store says.
        #[source]
        source: StoreError,
    },
}

/// The chain of a cluster, as it is listed.
struct Chain {
    /// Numbers and names, ascending.
    manifests: Vec<(u64, String)>,
    /// The numbers of those that follow each other, up to the list that stays; nothing if there is none.
    walked: Vec<u64>,
    /// One that is missing in front of them.
    hole: Option<u64>,
}

impl Chain {
    async fn list(
        repository: &Repository,
        cluster: ClusterId,
        object_lock: Duration,
        now: Option<WallTime>,
    ) -> Result<Self, StoreError> {
        let layout = Layout::new(cluster);
        let listed = repository.list(&layout.chain(), None).await?;
        let newest = listed.iter().map(|object| object.stored_at).max().unwrap_or_default();
        let now = now.unwrap_or(newest);
        let number = |object: &Listed| Some((layout.manifest_seq(&object.name)?, object.stored_at));
        let stored: Vec<(u64, WallTime)> = listed.iter().filter_map(number).collect();
        let hole = hole(repository, cluster, &stored).await?;
        let mut walked = newest_run(stored.into_iter().map(|(seq, _)| seq).collect());
        let spared = GRACE.max(object_lock).as_millis();
        let is_old = |object: &Listed| u128::from(now.get().saturating_sub(object.stored_at.get())) >= spared;
        let old = listed.iter().filter(|object| is_old(object)).filter_map(|object| layout.manifest_seq(&object.name));
        let stays = old.filter(|seq| lists_all(*seq) && walked.binary_search(seq).is_ok()).max();
        walked.retain(|seq| Some(*seq) <= stays);
        let numbered = listed.into_iter().filter_map(|object| Some((layout.manifest_seq(&object.name)?, object.name)));
        Ok(Self { manifests: numbered.collect(), walked: from_beginning(walked), hole })
    }

    /// The names of manifests in front of this one.
    fn before(&self, seq: u64) -> &[(u64, String)] {
        &self.manifests[..self.manifests.partition_point(|(number, _)| *number < seq)]
    }

    /// What is to be walked, and removed but for its end, at a time: each step begins where the one before it ends.
    fn steps(&self) -> Vec<&[u64]> {
        let (mut steps, mut rest) = (Vec::new(), &self.walked[..]);
        if self.walked.last().is_none_or(|stays| self.before(*stays).is_empty()) {
            return steps;
        }
        while rest.len() > 1 || steps.is_empty() {
            let most = &rest[..rest.len().min(STEP_MAX)];
            let end = most.iter().rposition(|seq| lists_all(*seq)).unwrap_or(most.len() - 1);
            steps.push(&rest[..=end]);
            rest = &rest[end..];
        }
        steps
    }
}

/// Removes the manifests of a cluster that are superseded. None that is younger than `object_lock` is: the store would refuse.
/// `now` is by the store's clock.
///
/// # Errors
/// [`TrimError`]; what was removed until then stays removed, and the next run goes on.
pub async fn run(
    repository: &Repository,
    cluster: ClusterId,
    object_lock: Duration,
    now: WallTime,
) -> Result<Trimmed, TrimError> {
    work(repository, cluster, object_lock, Some(now), false).await
}

/// As [`run`], for whoever does not know the time by the store's clock: it is taken to be when the newest manifest was stored,
/// before which it can't be. Where nothing is archived any more, what came last stays so.
///
/// # Errors
/// [`TrimError`].
pub async fn run_before_newest(
    repository: &Repository,
    cluster: ClusterId,
    object_lock: Duration,
) -> Result<Trimmed, TrimError> {
    work(repository, cluster, object_lock, None, false).await
}

/// Tells what [`run`] would remove, in as many runs as it takes.
///
/// # Errors
/// [`TrimError::Chain`].
pub async fn look(
    repository: &Repository,
    cluster: ClusterId,
    object_lock: Duration,
    now: WallTime,
) -> Result<Trimmed, TrimError> {
    work(repository, cluster, object_lock, Some(now), true).await
}

async fn work(
    repository: &Repository,
    cluster: ClusterId,
    object_lock: Duration,
    now: Option<WallTime>,
    dry_run: bool,
) -> Result<Trimmed, TrimError> {
    let chain =
        Chain::list(repository, cluster, object_lock, now).await.map_err(|error| TrimError::Chain(error.into()))?;
    if let Some(seq) = chain.hole {
        return Err(TrimError::Chain(CatalogueError::Gap { seq }));
    }
    let (all, mut removed) = (chain.manifests.len(), 0);
    for step in chain.steps() {
        let mut lists_all = false;
        let seen = |_: &Catalogue, manifest: &Manifest| lists_all = manifest.base.is_some();
        match Catalogue::walk_over(repository, cluster, step.to_vec(), seen).await {
            // Another node has removed them meanwhile.
            Err(CatalogueError::Store(StoreError::Missing { .. })) => break,
            walked => drop(walked.map_err(TrimError::Chain)?),
        }
        if !lists_all {
            // Written by who knows what: nothing is superseded by it.
            break;
        }
        let superseded = chain.before(step.last().copied().unwrap_or_default());
        for (_, name) in &superseded[removed..] {
            if !dry_run && let Err(source) = repository.delete(name).await {
                let all_superseded = chain.before(chain.walked.last().copied().unwrap_or_default()).len();
                return Err(TrimError::Refused { left: all - removed, superseded: all_superseded - removed, source });
            }
            removed += 1;
        }
        if removed >= REMOVED_MAX && !dry_run {
            break;
        }
    }
    Ok(Trimmed { removed, left: all - removed })
}

#[cfg(test)]
mod tests;
