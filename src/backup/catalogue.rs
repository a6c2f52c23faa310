//! What belongs to the archive of a cluster, read from its chain of manifests, and adding to it.
//!
//! Guarantees: of the manifests that are read, none that is missing or does not name the one before it is passed over; one that
//! is missing in front of the newest list, which a reader does not need, is found by a walk (`hole`); of two that append at
//! the same time one wins, and the other knows what the first one wrote before it may try again; adding what is
//! archived already does no harm; what is told as appended continues a chain that was there at that moment. Leaves out:
//! whether the objects are there and whole (`verify`), and removing manifests that nobody needs (`trim`).
//!
//! A name that must be new says nothing where names are removed again: in a place that was emptied, and to a writer that
//! slept while others went on and removed what was superseded, each name is new. So it is looked for the manifest before,
//! once ahead of the new one, lest that become the first of nothing, and once behind it.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::layout::{self, Kind, Layout};
use super::manifest::{FORMAT_VERSION, Manifest, ManifestError, Object, Sha};
use super::repository::{Repository, StoreError};
use crate::clock;
use crate::types::{ClusterId, LogPosition, WallTime};

/// The longest manifest that is read, in bytes: one that lists some hundred thousand objects.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024 * 1024;

/// So many manifests are read at a time.
const READS_AT_ONCE: usize = 32;

/// Each manifest whose number divides by this lists all that belongs to the archive.
pub const BASE_EVERY: u64 = 256;

/// A walk looks at so many of the newest manifests at most: more than are written, at one a second, in the time for which
/// superseded ones stay. Those before them were looked at before they were superseded (`trim`).
pub const WALK_MAX: u64 = 32 * BASE_EVERY;

/// The last manifest that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// Its SHA-256.
    pub sha256: Sha,
    /// When it was written, by its writer's clock, in milliseconds since the epoch.
    pub written_at: u64,
}

/// What belongs to the archive of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    cluster: ClusterId,
    head: Option<Head>,
    objects: BTreeMap<String, Object>,
    /// When the first object was stored, as the chain says.
    began: Option<WallTime>,
    /// The number of the newest list, or of the first manifest of all.
    begin: u64,
}

/// Why the chain can't be read or continued.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogueError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest can't be used.
    #[error("manifest {seq}: {source}")]
    Manifest {
        /// Its number.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A manifest is missing between others.
    #[error("manifest {seq} is missing, while later ones exist: the chain is broken")]
    Gap {
        /// Its number.
        seq: u64,
    },
    /// A manifest does not name the one before it.
    #[error("manifest {seq} does not continue the one before it: one of them was changed or replaced")]
    Unlinked {
        /// Its number.
        seq: u64,
    },
    /// A manifest that lists all does not list what those before it amount to.
    #[error("manifest {seq} does not list what the ones before it amount to: one of them was changed or replaced")]
    Unequal {
        /// Its number.
        seq: u64,
    },
    /// What belonged to the archive is not there any more, or other than it was.
    #[error(
        "{name} is missing or another one: the archive was emptied or replaced while it was in use; what was archived \
         before is not counted on any more"
    )]
    Replaced {
        /// Which object, or what else.
        name: String,
    },
    /// Somebody else has appended first; what that was is known now.
    #[error("another writer has continued the chain")]
    Overtaken,
}

impl CatalogueError {
    /// Whether what was archived may be lost, wholly or in part; trying again won't bring it back.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Gap { .. } | Self::Unlinked { .. } | Self::Unequal { .. } | Self::Replaced { .. } => true,
            Self::Store(_) | Self::Manifest { .. } | Self::Overtaken => false,
        }
    }
}

impl CatalogueError {
    /// Whether the chain is damaged, as opposed to a store that does not answer, or another writer.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.is_loss() || self.is_unreadable()
    }

    /// Whether the chain can't be read as it is stored: nothing is added to it, nor is one begun in its place, until somebody
    /// has mended or removed it.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        match self {
            Self::Gap { .. } | Self::Unlinked { .. } | Self::Unequal { .. } => true,
            Self::Manifest { source, .. } => !matches!(source, ManifestError::Newer(_)),
            Self::Store(_) | Self::Replaced { .. } | Self::Overtaken => false,
        }
    }
}

impl Catalogue {
    /// Of a cluster of which nothing is archived.
    #[must_use]
    pub fn empty(cluster: ClusterId) -> Self {
        Self { cluster, head: None, objects: BTreeMap::new(), began: None, begin: 0 }
    }

    /// One that lists these objects, of no chain.
    #[cfg(test)]
    pub(super) fn of(cluster: ClusterId, objects: impl IntoIterator<Item = Object>) -> Self {
        let objects = objects.into_iter().map(|object| (object.name.clone(), object)).collect();
        Self { objects, ..Self::empty(cluster) }
    }

    /// Reads the chain of a cluster, back to the newest manifest that lists all.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub async fn read(repository: &Repository, cluster: ClusterId) -> Result<Self, CatalogueError> {
        let mut seqs = seqs(repository, cluster, None).await?;
        let mut found: Vec<Vec<(Manifest, Sha)>> = Vec::new();
        // None in front of the list: those may be removed at any time.
        while !seqs.is_empty() {
            let begin = seqs.iter().rposition(|seq| lists_all(*seq)).unwrap_or(0);
            let read = read_all(repository, cluster, seqs.split_off(begin)).await?;
            let lists_all = read.first().is_some_and(|(manifest, _)| manifest.base.is_some());
            found.push(read);
            if lists_all {
                break;
            }
        }
        let mut catalogue = Self::empty(cluster);
        for (manifest, sha) in found.into_iter().rev().flatten() {
            catalogue.link(manifest, sha)?;
        }
        Ok(catalogue)
    }

    /// Reads what was appended meanwhile; tells how many manifests it has read for that. The last manifest that was known is read
    /// again, and must be the same, unless it was pruned behind a later one that lists all.
    ///
    /// # Errors
    /// [`CatalogueError`]; what was read before an error stays.
    pub async fn refresh(&mut self, repository: &Repository) -> Result<usize, CatalogueError> {
        let (known, layout) = (self.head, Layout::new(self.cluster));
        // From the one before on, so that the last one known is among them.
        let seqs = seqs(repository, self.cluster, known.map(|head| head.seq.saturating_sub(1))).await?;
        let replaced = |seq: u64| CatalogueError::Replaced { name: layout.manifest(seq) };
        match (known, seqs.first()) {
            (Some(head), None) => return Err(replaced(head.seq)),
            (None, None) => return Ok(0),
            (_, Some(first)) if *first != known.map_or(1, |head| head.seq) => {
                // What came in between was pruned, as it may be behind a manifest that lists all.
                *self = Self::read(repository, self.cluster).await?;
                return Ok(seqs.len());
            }
            _ => {}
        }
        let mut read = match read_all(repository, self.cluster, seqs).await {
            Err(CatalogueError::Store(StoreError::Missing { .. })) => {
                // Removed behind the listing: this was away for so long that what it knew is superseded.
                *self = Self::read(repository, self.cluster).await?;
                return Ok(0);
            }
            read => read?.into_iter(),
        };
        if let Some(head) = known
            && read.next().is_none_or(|(_, sha)| sha != head.sha256)
        {
            return Err(replaced(head.seq));
        }
        let count = read.len();
        for (manifest, sha) in read {
            self.link(manifest, sha)?;
        }
        Ok(count)
    }

    /// Reads the manifests that are there, oldest first, and shows each to `seen` with what belonged to the archive before
    /// it: from the first of all on or, where that is gone or there are more than [`WALK_MAX`], from the oldest list of
    /// all. Unlike [`Self::read`] this checks each against the one before it, and those that list all against the others, and
    /// looks for a `hole` in front of them.
    ///
    /// # Errors
    /// [`CatalogueError`]; of a manifest that was listed and is gone [`StoreError::Missing`]: it may have been removed
    /// meanwhile, as superseded.
    pub async fn walk(
        repository: &Repository,
        cluster: ClusterId,
        seen: impl FnMut(&Self, &Manifest),
    ) -> Result<Self, CatalogueError> {
        let stored = stored(repository, cluster, None).await?;
        let mut seqs = newest_run(numbers(&stored));
        let most = usize::try_from(WALK_MAX).unwrap_or(usize::MAX);
        seqs.drain(..seqs.len().saturating_sub(most));
        let walked = Self::walk_over(repository, cluster, from_beginning(seqs), seen).await?;
        match hole(repository, cluster, &stored).await? {
            Some(seq) => Err(CatalogueError::Gap { seq }),
            None => Ok(walked),
        }
    }

    /// As [`Self::walk`], over manifests of these numbers, which follow each other.
    pub(super) async fn walk_over(
        repository: &Repository,
        cluster: ClusterId,
        seqs: Vec<u64>,
        mut seen: impl FnMut(&Self, &Manifest),
    ) -> Result<Self, CatalogueError> {
        let mut catalogue = Self::empty(cluster);
        for batch in seqs.chunks(READS_AT_ONCE) {
            for (manifest, sha) in read_all(repository, cluster, batch.to_vec()).await? {
                if let (Some(base), Some(_)) = (&manifest.base, catalogue.head) {
                    let mut expected = catalogue.objects.clone();
                    change(&mut expected, &Manifest { base: None, ..manifest.clone() });
                    if !expected.values().eq(base) {
                        return Err(CatalogueError::Unequal { seq: manifest.seq });
                    }
                }
                seen(&catalogue, &manifest);
                catalogue.link(manifest, sha)?;
            }
        }
        Ok(catalogue)
    }

    /// Appends a manifest. Objects in `adds` must be stored already.
    ///
    /// # Errors
    /// [`CatalogueError`]; on [`CatalogueError::Overtaken`] this knows what the other one has appended, nothing else is
    /// changed, and whoever asked must look again whether what it wanted still is to be done. On
    /// [`CatalogueError::Replaced`] what this was built on is gone, and nothing may be counted on.
    pub async fn append(
        &mut self,
        repository: &Repository,
        author: &str,
        adds: Vec<Object>,
        drops: Vec<String>,
    ) -> Result<(), CatalogueError> {
        self.append_beside(repository, author, adds, drops, &[]).await
    }

    /// As [`Self::append`]; `beside` are names of objects that must be there as well once the manifest is stored: an archive
    /// is emptied one object after the other, and not in the order in which it was filled.
    ///
    /// # Errors
    /// As of [`Self::append`].
    pub async fn append_beside(
        &mut self,
        repository: &Repository,
        author: &str,
        adds: Vec<Object>,
        drops: Vec<String>,
        beside: &[String],
    ) -> Result<(), CatalogueError> {
        let seq = self.head.map_or(0, |head| head.seq) + 1;
        let layout = Layout::new(self.cluster);
        let before: Vec<String> = self.head.map(|head| layout.manifest(head.seq)).into_iter().collect();
        if let Some(name) = missing(repository, &before).await? {
            return Err(self.gone(repository, name, seq - 1).await);
        }
        let began = self.beginning(repository, seq, &adds).await?;
        let manifest = self.manifest(seq, author, adds, drops, began);
        let bytes = manifest.encode();
        let sha = Sha::of(&bytes);
        match repository.create(&layout.manifest(seq), Bytes::from(bytes)).await {
            Ok(()) => {
                let all: Vec<String> = before.into_iter().chain(beside.iter().cloned()).collect();
                match missing(repository, &all).await? {
                    Some(name) => Err(self.gone(repository, name, seq).await),
                    None => self.link(manifest, sha),
                }
            }
            Err(StoreError::Exists { .. }) => {
                self.refresh(repository).await?;
                Err(CatalogueError::Overtaken)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a manifest says of when the archive began, by the store's clock. The first one and those that list all do.
    async fn beginning(
        &self,
        repository: &Repository,
        seq: u64,
        adds: &[Object],
    ) -> Result<Option<WallTime>, StoreError> {
        match seq {
            1 => {
                let names = adds.iter().map(|object| object.name.as_str());
                let times = try_join_all(names.map(|name| stored_at(repository, name))).await?;
                Ok(times.into_iter().flatten().min())
            }
            seq if lists_all(seq) => self.began(repository).await,
            _ => Ok(None),
        }
    }

    /// When the archive began, by the store's clock: what was stored before then is of none, or of another one that was here.
    /// `None` if there is no archive.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn began(&self, repository: &Repository) -> Result<Option<WallTime>, StoreError> {
        if self.began.is_some() || self.head.is_none() {
            return Ok(self.began);
        }
        // Of a chain that does not say it, this much is known.
        stored_at(repository, &Layout::new(self.cluster).manifest(self.begin)).await
    }

    fn manifest(
        &self,
        seq: u64,
        author: &str,
        adds: Vec<Object>,
        drops: Vec<String>,
        began: Option<WallTime>,
    ) -> Manifest {
        let mut manifest = Manifest {
            format: FORMAT_VERSION,
            cluster: layout::cluster_name(self.cluster),
            seq,
            previous: self.head.map(|head| head.sha256),
            written_at: clock::wall().get(),
            written_by: author.to_owned(),
            began: began.map(WallTime::get),
            adds,
            drops,
            base: None,
        };
        if lists_all(seq) {
            let mut behind = self.objects.clone();
            change(&mut behind, &manifest);
            manifest.base = Some(behind.into_values().collect());
        }
        manifest
    }

    /// What it means that something is missing that this was built on: others have gone on beyond `own`, and removed what
    /// they superseded, or the archive was emptied or replaced.
    async fn gone(&mut self, repository: &Repository, name: String, own: u64) -> CatalogueError {
        match Self::read(repository, self.cluster).await {
            Ok(now) if now.head.is_some_and(|head| head.seq > own) && now.object(&name).is_none() => {
                *self = now;
                CatalogueError::Overtaken
            }
            Err(error) if !error.is_loss() => error,
            Ok(_) | Err(_) => CatalogueError::Replaced { name },
        }
    }

    fn link(&mut self, manifest: Manifest, sha256: Sha) -> Result<(), CatalogueError> {
        let seq = manifest.seq;
        match self.head {
            Some(head) if seq != head.seq + 1 => return Err(CatalogueError::Gap { seq: head.seq + 1 }),
            Some(head) if manifest.previous != Some(head.sha256) => return Err(CatalogueError::Unlinked { seq }),
            // Older ones were deleted, or need not be read: only one that lists all may be begun with.
            None if seq != 1 && manifest.base.is_none() => return Err(CatalogueError::Gap { seq: seq - 1 }),
            _ => {}
        }
        change(&mut self.objects, &manifest);
        if manifest.base.is_some() || self.head.is_none() {
            self.begin = seq;
        }
        self.began = manifest.began.map(WallTime::new).or(self.began);
        self.head = Some(Head { seq, sha256, written_at: manifest.written_at });
        Ok(())
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The last manifest; `None` if there is none.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// All objects of data, by name.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// The object of a name.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<&Object> {
        self.objects.get(name)
    }

    /// The snapshots, oldest first.
    #[must_use]
    pub fn fulls(&self) -> Vec<&Object> {
        self.of_kind(Kind::Full)
    }

    /// The newest snapshot.
    #[must_use]
    pub fn newest_full(&self) -> Option<&Object> {
        self.objects.values().filter(|object| object.kind == Kind::Full).max_by_key(|object| object.last.index)
    }

    /// The pieces of the log, by their last entry.
    #[must_use]
    pub fn segments(&self) -> Vec<&Object> {
        self.of_kind(Kind::Log)
    }

    fn of_kind(&self, kind: Kind) -> Vec<&Object> {
        let mut objects: Vec<&Object> = self.objects.values().filter(|object| object.kind == kind).collect();
        objects.sort_by_key(|object| object.last.index);
        objects
    }

    /// The last entry up to which the log can be followed from `begin` on without a gap, and the pieces that are needed for
    /// it, in order. Pieces may overlap.
    #[must_use]
    pub fn follow(&self, begin_at: LogPosition) -> (LogPosition, Vec<&Object>) {
        let mut segments: Vec<&Object> = self.objects().filter(|object| object.kind == Kind::Log).collect();
        let begin = |object: &Object| object.previous.map(|previous| previous.index);
        segments.sort_by_key(|object| begin(object));
        let mut rest = segments.into_iter().peekable();
        let (mut at, mut path, mut furthest) = (begin_at, Vec::new(), None::<&Object>);
        loop {
            while let Some(next) = rest.next_if(|object| begin(object) <= Some(at.index.get())) {
                // A piece whose predecessor is another entry of the same index belongs to another history.
                let previous = next.previous.map(LogPosition::from);
                let joins = previous.is_none_or(|previous| previous.index < at.index || previous == at);
                if joins && furthest.is_none_or(|furthest| next.last.index > furthest.last.index) {
                    furthest = Some(next);
                }
            }
            match furthest.take() {
                Some(next) if next.last.index > at.index.get() => {
                    at = next.last.into();
                    path.push(next);
                }
                _ => return (at, path),
            }
        }
    }

    /// The last entry that can be restored; `None` without any snapshot.
    #[must_use]
    pub fn end(&self) -> Option<LogPosition> {
        let newest = self.newest_full()?;
        Some(self.follow(newest.last.into()).0)
    }
}

fn change(objects: &mut BTreeMap<String, Object>, manifest: &Manifest) {
    if let Some(base) = &manifest.base {
        *objects = base.iter().map(|object| (object.name.clone(), object.clone())).collect();
        return;
    }
    for name in &manifest.drops {
        objects.remove(name);
    }
    for object in &manifest.adds {
        objects.insert(object.name.clone(), object.clone());
    }
}

/// Whether the manifest of this number lists all that belongs to the archive.
pub(super) const fn lists_all(seq: u64) -> bool {
    seq.is_multiple_of(BASE_EVERY)
}

/// Those of consecutive numbers from which on manifests can be checked: the first of all, or the oldest that lists all.
pub(super) fn from_beginning(mut seqs: Vec<u64>) -> Vec<u64> {
    if seqs.first() != Some(&1)
        && let Some(begin) = seqs.iter().position(|seq| lists_all(*seq))
    {
        seqs.drain(..begin);
    }
    seqs
}

/// The first of these objects that is not there.
async fn missing(repository: &Repository, names: &[String]) -> Result<Option<String>, StoreError> {
    let looks = names.iter().map(async |name| match repository.head(name).await {
        Ok(_) => Ok(None),
        Err(StoreError::Missing { .. }) => Ok(Some(name.clone())),
        Err(error) => Err(error),
    });
    Ok(try_join_all(looks).await?.into_iter().flatten().next())
}

/// When an object was stored, by the store's clock; `None` if it is not there.
async fn stored_at(repository: &Repository, name: &str) -> Result<Option<WallTime>, StoreError> {
    match repository.head(name).await {
        Ok(found) => Ok(Some(found.stored_at)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The numbers of the manifests there are, ascending: the newest ones, as far back as there is no gap. A reader needs what is
/// behind the newest list alone; a gap in front of that a walk finds ([`hole`]), one behind it whoever reads.
async fn seqs(repository: &Repository, cluster: ClusterId, after: Option<u64>) -> Result<Vec<u64>, CatalogueError> {
    Ok(newest_run(numbers(&stored(repository, cluster, after).await?)))
}

/// All manifests there are, ascending, and when each was stored.
async fn stored(
    repository: &Repository,
    cluster: ClusterId,
    after: Option<u64>,
) -> Result<Vec<(u64, WallTime)>, StoreError> {
    let layout = Layout::new(cluster);
    let behind = after.map(|seq| layout.manifest(seq));
    let listed = repository.list(&layout.chain(), behind.as_deref()).await?;
    Ok(listed.iter().filter_map(|object| Some((layout.manifest_seq(&object.name)?, object.stored_at))).collect())
}

fn numbers(stored: &[(u64, WallTime)]) -> Vec<u64> {
    stored.iter().map(|(seq, _)| *seq).collect()
}

/// The number of a manifest that is missing in front of where a walk begins, though none of those in front of it was removed as
/// superseded: those go first. What a writer left there that had slept, under a number that was free again, came later than
/// what stands behind the gap, and is passed over. `stored` are all manifests, as they were just listed.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn hole(
    repository: &Repository,
    cluster: ClusterId,
    stored: &[(u64, WallTime)],
) -> Result<Option<u64>, StoreError> {
    let run = newest_run(numbers(stored));
    let Some(first) = run.first().copied() else { return Ok(None) };
    let begin = from_beginning(run).first().copied();
    let begun = stored.iter().find(|(seq, _)| Some(*seq) == begin).map(|(_, at)| *at);
    let Some(at) = stored.iter().rposition(|(seq, at)| *seq < first && Some(*at) < begun) else { return Ok(None) };
    let follows = stored[at..].windows(2).take_while(|pair| pair[0].0 + 1 == pair[1].0).count();
    let before = stored[at + follows].0;
    // One that was removed while the others were being listed: it looks as if the next one alone had gone.
    let is_there = stored_at(repository, &Layout::new(cluster).manifest(before)).await?.is_some();
    Ok(is_there.then_some(before + 1))
}

/// The last of ascending numbers, as far back as there is no gap.
pub(super) fn newest_run(mut seqs: Vec<u64>) -> Vec<u64> {
    let gap = seqs.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    seqs.drain(..gap.map_or(0, |gap| gap + 1));
    seqs
}

/// Reads manifests, several at a time, and returns them in the order of `seqs`.
async fn read_all(
    repository: &Repository,
    cluster: ClusterId,
    seqs: Vec<u64>,
) -> Result<Vec<(Manifest, Sha)>, CatalogueError> {
    let read = stream::iter(seqs).map(|seq| async move {
        let bytes = repository.get(&Layout::new(cluster).manifest(seq), MANIFEST_BYTES_MAX).await?;
        let manifest =
            Manifest::decode(&bytes, cluster, seq).map_err(|source| CatalogueError::Manifest { seq, source })?;
        Ok::<_, CatalogueError>((manifest, Sha::of(&bytes)))
    });
    read.buffered(READS_AT_ONCE).try_collect().await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::backup::manifest::Place;

    const CLUSTER: ClusterId = ClusterId::new(7);

    fn repository() -> Repository {
        Repository::new(Arc::new(InMemory::new()), Path::from("some/prefix"), "memory:")
    }

    fn place(index: u64) -> Place {
        Place { term: 1, leader: 1, index }
    }

    fn object(kind: Kind, previous: Option<u64>, last: u64) -> Object {
        Object {
            name: format!("{kind}-{previous:?}-{last}"),
            kind,
            bytes: 1,
            sha256: Sha([0; 32]),
            plain_bytes: 1,
            previous: previous.map(place),
            last: place(last),
            state: None,
            times: None,
        }
    }

    #[tokio::test]
    async fn of_two_that_append_at_the_same_time_one_wins_and_the_other_knows() {
        let repository = repository();
        let (mut one, mut two) = (Catalogue::empty(CLUSTER), Catalogue::empty(CLUSTER));
        one.append(&repository, "n1", vec![object(Kind::Full, None, 3)], vec![]).await.unwrap();
        let lost = two.append(&repository, "n2", vec![object(Kind::Full, None, 4)], vec![]).await;
        assert!(matches!(lost, Err(CatalogueError::Overtaken)));
        assert_eq!(one, two);
        two.append(&repository, "n2", vec![object(Kind::Log, Some(3), 9)], vec![]).await.unwrap();
        assert_eq!(one.refresh(&repository).await.unwrap(), 1);
        assert_eq!(one, two);
        assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), two);
        assert_eq!(two.end().unwrap().index.get(), 9);
    }

    #[tokio::test]
    async fn a_long_chain_is_read_back_to_the_last_manifest_that_lists_all() {
        let repository = repository();
        let mut catalogue = Catalogue::empty(CLUSTER);
        catalogue.append(&repository, "n1", vec![object(Kind::Full, None, 0)], vec![]).await.unwrap();
        for at in 1..BASE_EVERY + 40 {
            let drops = if at > 5 { vec![object(Kind::Log, Some(at - 6), at - 5).name] } else { vec![] };
            catalogue.append(&repository, "n1", vec![object(Kind::Log, Some(at - 1), at)], drops).await.unwrap();
        }
        assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), catalogue);
        // What is older than the list is not needed.
        for seq in 1..BASE_EVERY {
            repository.delete(&Layout::new(CLUSTER).manifest(seq)).await.unwrap();
        }
        assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), catalogue);
        repository.delete(&Layout::new(CLUSTER).manifest(BASE_EVERY)).await.unwrap();
        assert!(matches!(Catalogue::read(&repository, CLUSTER).await, Err(CatalogueError::Gap { .. })));
    }

    #[tokio::test]
    async fn a_manifest_that_is_missing_or_was_replaced_is_noticed() {
        let repository = repository();
        let mut catalogue = Catalogue::empty(CLUSTER);
        for at in 0..5 {
            catalogue.append(&repository, "n1", vec![object(Kind::Full, None, at)], vec![]).await.unwrap();
        }
        let name = Layout::new(CLUSTER).manifest(3);
        let kept = repository.get(&name, 10_000).await.unwrap();
        repository.delete(&name).await.unwrap();
        let error = Catalogue::read(&repository, CLUSTER).await.unwrap_err();
        assert!(matches!(error, CatalogueError::Gap { seq: 3 }), "{error}");
        let other = String::from_utf8(kept.to_vec()).unwrap().replace("n1", "n9");
        repository.create(&name, other.into()).await.unwrap();
        let error = Catalogue::read(&repository, CLUSTER).await.unwrap_err();
        assert!(matches!(error, CatalogueError::Unlinked { seq: 4 }), "{error}");
    }

    #[tokio::test]
    async fn an_archive_that_was_emptied_or_replaced_is_noticed_by_who_knew_it() {
        let repository = repository();
        let mut catalogue = Catalogue::empty(CLUSTER);
        for at in 0..3 {
            catalogue.append(&repository, "n1", vec![object(Kind::Full, None, at)], vec![]).await.unwrap();
        }
        assert_eq!(catalogue.refresh(&repository).await.unwrap(), 0);
        for seq in 1..=3 {
            repository.delete(&Layout::new(CLUSTER).manifest(seq)).await.unwrap();
        }
        let is_replaced = |error: &CatalogueError| matches!(error, CatalogueError::Replaced { .. }) && error.is_loss();
        let error = catalogue.clone().refresh(&repository).await.unwrap_err();
        assert!(is_replaced(&error), "{error}");
        // Another archive in its place, which is longer.
        let mut other = Catalogue::empty(CLUSTER);
        for at in 10..15 {
            other.append(&repository, "n1", vec![object(Kind::Full, None, at)], vec![]).await.unwrap();
        }
        let error = catalogue.clone().refresh(&repository).await.unwrap_err();
        assert!(is_replaced(&error), "{error}");
        let error = catalogue.append(&repository, "n1", vec![object(Kind::Full, None, 4)], vec![]).await.unwrap_err();
        assert!(is_replaced(&error), "{error}");
    }

    #[tokio::test]
    async fn nothing_is_appended_to_an_archive_that_was_emptied() {
        let repository = repository();
        let layout = Layout::new(CLUSTER);
        let mut catalogue = Catalogue::empty(CLUSTER);
        for at in 0..3 {
            catalogue.append(&repository, "n1", vec![object(Kind::Full, None, at)], vec![]).await.unwrap();
        }
        // An object that was there beside the manifests is gone first.
        let beside = ["full".to_owned()];
        repository.create("full", "x".into()).await.unwrap();
        catalogue.append_beside(&repository, "n1", vec![], vec![], &beside).await.unwrap();
        repository.delete("full").await.unwrap();
        let appended = catalogue.clone().append_beside(&repository, "n1", vec![], vec![], &beside).await;
        assert!(matches!(appended, Err(CatalogueError::Replaced { name }) if name == "full"));
        for seq in 1..=5 {
            repository.delete(&layout.manifest(seq)).await.unwrap();
        }
        let appended = catalogue.append(&repository, "n1", vec![], vec![]).await;
        assert!(matches!(appended, Err(CatalogueError::Replaced { name }) if name == layout.manifest(4)));
        assert_eq!(repository.list(&layout.chain(), None).await.unwrap(), [], "it would be the first of nothing");
        // What is begun there then is not taken for what was there.
        let mut other = Catalogue::empty(CLUSTER);
        for at in 0..2 {
            other.append(&repository, "n2", vec![object(Kind::Full, None, at)], vec![]).await.unwrap();
        }
        let appended = catalogue.append(&repository, "n1", vec![], vec![]).await;
        assert!(matches!(appended, Err(CatalogueError::Replaced { .. })));
        assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), other);
    }

    #[tokio::test]
    async fn a_manifest_that_is_missing_in_front_of_a_list_is_found_by_a_walk_and_what_came_there_later_is_passed_over()
    {
        let (repository, layout) = (repository(), Layout::new(CLUSTER));
        let mut catalogue = Catalogue::empty(CLUSTER);
        for _ in 0..2 * BASE_EVERY + 7 {
            catalogue.append(&repository, "n1", vec![], vec![]).await.unwrap();
        }
        let walk =
            async || Catalogue::walk(&repository, CLUSTER, |_, _| ()).await.map(|walked| walked.head.unwrap().seq);
        let end = catalogue.head.unwrap().seq;
        // As it is while superseded ones are removed, or were until somebody was killed.
        for seq in 1..=60 {
            repository.delete(&layout.manifest(seq)).await.unwrap();
        }
        assert_eq!(walk().await.unwrap(), end);
        for missing in [BASE_EVERY - 1, BASE_EVERY, BASE_EVERY + 90, 2 * BASE_EVERY - 1] {
            let kept = repository.get(&layout.manifest(missing), 10_000).await.unwrap();
            repository.delete(&layout.manifest(missing)).await.unwrap();
            assert_eq!(Catalogue::read(&repository, CLUSTER).await.unwrap(), catalogue, "a reader does not need it");
            assert!(matches!(walk().await, Err(CatalogueError::Gap { seq }) if seq == missing));
            repository.create(&layout.manifest(missing), kept).await.unwrap();
            assert_eq!(walk().await.unwrap(), end);
        }
        // What a writer adds that had slept while its number became free.
        repository.create(&layout.manifest(17), "what it wrote".into()).await.unwrap();
        assert_eq!(walk().await.unwrap(), end);
    }

    #[tokio::test]
    async fn when_an_archive_began_is_known_though_its_first_manifests_are_gone() {
        let (repository, layout) = (repository(), Layout::new(CLUSTER));
        let first = object(Kind::Full, None, 3);
        repository.create(&first.name, "x".into()).await.unwrap();
        let began = stored_at(&repository, &first.name).await.unwrap();
        let mut catalogue = Catalogue::empty(CLUSTER);
        assert_eq!(catalogue.began(&repository).await.unwrap(), None);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        catalogue.append(&repository, "n1", vec![first], vec![]).await.unwrap();
        for _ in 1..2 * BASE_EVERY {
            catalogue.append(&repository, "n1", vec![], vec![]).await.unwrap();
        }
        for seq in 1..2 * BASE_EVERY {
            repository.delete(&layout.manifest(seq)).await.unwrap();
        }
        let read = Catalogue::read(&repository, CLUSTER).await.unwrap();
        assert_eq!(read, catalogue);
        assert!(began.is_some() && read.began(&repository).await.unwrap() == began);
    }

    #[tokio::test]
    async fn a_walk_reads_a_bounded_number_of_manifests_from_a_list_on() {
        let repository = repository();
        let mut catalogue = Catalogue::empty(CLUSTER);
        for _ in 0..WALK_MAX + BASE_EVERY + 7 {
            catalogue.append(&repository, "n1", vec![], vec![]).await.unwrap();
        }
        let mut walked = Vec::new();
        Catalogue::walk(&repository, CLUSTER, |_, manifest| walked.push(manifest.seq)).await.unwrap();
        assert_eq!((walked[0], walked.len() as u64), (2 * BASE_EVERY, WALK_MAX - BASE_EVERY + 8));
    }

    #[test]
    fn the_log_is_followed_over_overlaps_and_not_over_gaps_or_other_histories() {
        let mut catalogue = Catalogue::empty(CLUSTER);
        let other = Object { previous: Some(Place { term: 9, ..place(20) }), ..object(Kind::Log, Some(20), 40) };
        for object in [
            object(Kind::Full, None, 5),
            object(Kind::Log, Some(2), 9),
            object(Kind::Log, Some(5), 12),
            object(Kind::Log, Some(10), 20),
            other,
            object(Kind::Log, Some(25), 30),
        ] {
            catalogue.objects.insert(object.name.clone(), object);
        }
        let (end, path) = catalogue.follow(place(5).into());
        assert_eq!(end, place(20).into());
        assert_eq!(path.iter().map(|object| object.last.index).collect::<Vec<_>>(), [12, 20]);
        assert_eq!(catalogue.end(), Some(place(20).into()));
    }
}
