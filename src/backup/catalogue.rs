//! What belongs to the archive of a cluster, read from its chain of manifests, and adding to it.
//!
//! Guarantees: a manifest that is missing or does not name the one before it is an error, never passed over; of two that
//! append at the same time one wins, and the other knows what the first one wrote before it may try again; adding what is
//! archived already does no harm. Leaves out: whether the objects are there and whole (`verify`).

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::layout::{self, Kind, Layout};
use super::manifest::{FORMAT_VERSION, Manifest, ManifestError, Object, Sha};
use super::repository::{Repository, StoreError};
use crate::clock;
use crate::types::{ClusterId, LogPosition};

/// The longest manifest that is read, in bytes: one that lists some hundred thousand objects.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024 * 1024;

/// So many manifests are read at a time.
const READS_AT_ONCE: usize = 32;

/// Each manifest whose number divides by this lists all that belongs to the archive.
pub const BASE_EVERY: u64 = 256;

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

impl Catalogue {
    /// Of a cluster of which nothing is archived.
    #[must_use]
    pub fn empty(cluster: ClusterId) -> Self {
        Self { cluster, head: None, objects: BTreeMap::new() }
    }

    /// One that lists these objects, of no chain.
    #[cfg(test)]
    pub(super) fn of(cluster: ClusterId, objects: impl IntoIterator<Item = Object>) -> Self {
        let objects = objects.into_iter().map(|object| (object.name.clone(), object)).collect();
        Self { cluster, head: None, objects }
    }

    /// Reads the chain of a cluster, back to the newest manifest that lists all.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub async fn read(repository: &Repository, cluster: ClusterId) -> Result<Self, CatalogueError> {
        let seqs = seqs(repository, cluster, None).await?;
        let mut found: Vec<(Manifest, Sha)> = Vec::new();
        for batch in seqs.rchunks(READS_AT_ONCE) {
            let mut read = read_all(repository, cluster, batch.to_vec()).await?;
            read.reverse();
            let base = read.iter().position(|(manifest, _)| manifest.base.is_some());
            found.extend(read.into_iter().take(base.map_or(usize::MAX, |at| at + 1)));
            if base.is_some() {
                break;
            }
        }
        let mut catalogue = Self::empty(cluster);
        for (manifest, sha) in found.into_iter().rev() {
            catalogue.link(manifest, sha)?;
        }
        Ok(catalogue)
    }

    /// Reads what was appended meanwhile; tells how many manifests that were. The last manifest that was known is read
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
        let mut read = read_all(repository, self.cluster, seqs).await?.into_iter();
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

    /// Reads every manifest that is there, oldest first, and shows each to `seen` with what belonged to the archive before
    /// it. Unlike [`Self::read`] this checks each against the one before it, and those that list all against the others.
    ///
    /// # Errors
    /// [`CatalogueError`]
    pub async fn walk(
        repository: &Repository,
        cluster: ClusterId,
        mut seen: impl FnMut(&Self, &Manifest),
    ) -> Result<Self, CatalogueError> {
        let mut catalogue = Self::empty(cluster);
        for batch in seqs(repository, cluster, None).await?.chunks(READS_AT_ONCE) {
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
    /// changed, and whoever asked must look again whether what it wanted still is to be done.
    pub async fn append(
        &mut self,
        repository: &Repository,
        author: &str,
        adds: Vec<Object>,
        drops: Vec<String>,
    ) -> Result<(), CatalogueError> {
        let seq = self.head.map_or(0, |head| head.seq) + 1;
        let mut manifest = Manifest {
            format: FORMAT_VERSION,
            cluster: layout::cluster_name(self.cluster),
            seq,
            previous: self.head.map(|head| head.sha256),
            written_at: clock::wall().get(),
            written_by: author.to_owned(),
            adds,
            drops,
            base: None,
        };
        if seq.is_multiple_of(BASE_EVERY) {
            let mut behind = self.objects.clone();
            change(&mut behind, &manifest);
            manifest.base = Some(behind.into_values().collect());
        }
        let bytes = manifest.encode();
        let sha = Sha::of(&bytes);
        match repository.create(&Layout::new(self.cluster).manifest(seq), Bytes::from(bytes)).await {
            Ok(()) => self.link(manifest, sha),
            Err(StoreError::Exists { .. }) => {
                self.refresh(repository).await?;
                Err(CatalogueError::Overtaken)
            }
            Err(error) => Err(error.into()),
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
        let newest = *self.fulls().last()?;
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

/// The numbers of the manifests there are, ascending: the newest ones, as far back as there is no gap. What is older than a
/// gap is about to be pruned; if not, the first behind the gap lists not all, which whoever reads it notices.
async fn seqs(repository: &Repository, cluster: ClusterId, after: Option<u64>) -> Result<Vec<u64>, CatalogueError> {
    let layout = Layout::new(cluster);
    let behind = after.map(|seq| layout.manifest(seq));
    let listed = repository.list(&layout.chain(), behind.as_deref()).await?;
    let seqs: Vec<u64> = listed.iter().filter_map(|object| layout.manifest_seq(&object.name)).collect();
    let gap = seqs.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    Ok(seqs[gap.map_or(0, |gap| gap + 1)..].to_vec())
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
