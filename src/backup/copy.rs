//! An archive, copied from one repository to another: as it is, or encrypted to other keys on the way.
//!
//! Guarantees: what is copied has the SHA-256 of its manifest, or is not named in the copy; a copy that was interrupted, or
//! is done again, goes on with what is missing; both repositories may be in use meanwhile. What only the copy has stays,
//! but for pieces of the log that a merged one replaces: each repository has a retention of its own. Leaves out: proofs,
//! which tell of the repository they lie in, and keeping two repositories alike for ever.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::catalogue::{Catalogue, CatalogueError};
use super::layout::{self, Kind};
use super::manifest::{Object, Sha};
use super::marker::{self, MarkerError};
use super::probe::{self, ProbeError};
use super::prune::NAME_WITHIN;
use super::repository::{PART_BYTES, Repository, StoreError};
use super::seal::{Identities, Recipients};
use super::transfer::{self, FetchError, StoreDataError};
use crate::clock;
use crate::types::{ClusterId, WallTime};

/// A manifest of the copy names so many new objects at most, so that an interruption costs little.
const OBJECTS_A_MANIFEST: usize = 16;

/// And is written after this time at the latest: what was stored long ago may be taken for left over (`prune`).
const NAME_AFTER: Duration = Duration::from_secs(NAME_WITHIN.as_secs() / 4);

/// What an earlier copy has left is named if it is younger than this; older objects are stored once more.
const TAKEN_OVER_MAX: Duration = Duration::from_secs(NAME_WITHIN.as_secs() / 2);

/// So many objects are stored once more before they are named, at most: each of a manifest twice.
const STORED_ANEW_MAX: usize = 2 * OBJECTS_A_MANIFEST;

/// How often the manifest is tried again when others append at the same time.
const APPENDS_MAX: usize = 10;

/// Other keys for a copy.
#[derive(Debug, Clone, Copy)]
pub struct Reseal<'a> {
    /// They open what is there.
    pub identities: &'a Identities,
    /// They will open the copy; none makes it readable by everybody.
    pub recipients: &'a Recipients,
    /// A folder with room for one object, unpacked.
    pub scratch: &'a Path,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Objects that were copied.
    pub objects: u64,
    /// Their bytes, as they were stored.
    pub bytes: u64,
    /// Objects that were there already.
    pub present: u64,
}

/// Why an archive was not copied to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What is to be copied is no repository.
    #[error(transparent)]
    Source(#[from] MarkerError),
    /// The other place can hold no copy.
    #[error(transparent)]
    Target(#[from] ProbeError),
    /// There is no archive of this cluster.
    #[error("{url} holds no archive of cluster {cluster}")]
    NoArchive {
        /// Where.
        url: String,
        /// Which was asked for.
        cluster: String,
    },
    /// The chain of what is to be copied can't be read.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The chain of the copy can't be read or continued.
    #[error(transparent)]
    TargetCatalogue(CatalogueError),
    /// The store to copy from refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store to copy to refused.
    #[error(transparent)]
    TargetStore(StoreError),
    /// An object can't be fetched or opened.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// An object can't be stored.
    #[error(transparent)]
    Put(#[from] StoreDataError),
}

/// Copies the archive of a cluster. `by` stands in the manifests of the copy, `progress` hears of objects and bytes done
/// and to do.
///
/// # Errors
/// [`CopyError`]; what was copied until then stays, and need not be copied again.
pub async fn copy(
    from: &Repository,
    to: &Repository,
    cluster: ClusterId,
    reseal: Option<Reseal<'_>>,
    by: &str,
    progress: impl Fn(Copied, u64),
) -> Result<Copied, CopyError> {
    if !marker::clusters(from).await?.contains(&cluster) {
        let url = from.url().to_owned();
        return Err(CopyError::NoArchive { url, cluster: layout::cluster_name(cluster) });
    }
    probe::probe(to).await?;
    let source = Catalogue::read(from, cluster).await?;
    let mut target = Catalogue::read(to, cluster).await.map_err(CopyError::TargetCatalogue)?;
    let present: BTreeSet<Identity> = target.objects().map(Identity::of).collect();
    let mut missing: Vec<&Object> =
        source.objects().filter(|object| !present.contains(&Identity::of(object))).collect();
    // So that whatever an interruption leaves can be restored: snapshots before the log behind them.
    missing.sort_by_key(|object| (object.last.index, object.kind == Kind::Log));
    let mut done = Copied { present: present.len() as u64, ..Copied::default() };
    // The numbers of manifests are anybody's.
    let bytes_total = missing.iter().fold(0_u64, |sum, object| sum.saturating_add(object.bytes));
    let copier = Copier { from, to, cluster, reseal, by };
    let mut batch: Vec<Stored<'_>> = Vec::new();
    for (left, object) in (0..missing.len()).rev().zip(missing) {
        let is_large = object.bytes > PART_BYTES as u64;
        if is_large && !batch.is_empty() {
            // Nobody knows how long this one will take.
            copier.name(&mut target, &source, std::mem::take(&mut batch)).await?;
        }
        batch.push(copier.store(object, false).await?);
        done.objects += 1;
        done.bytes += object.bytes;
        progress(done, bytes_total);
        let waits_long = batch.first().is_some_and(|first| first.age() >= NAME_AFTER);
        if left == 0 || batch.len() == OBJECTS_A_MANIFEST || is_large || waits_long {
            copier.name(&mut target, &source, std::mem::take(&mut batch)).await?;
        }
    }
    Ok(done)
}

/// An object of the copy that no manifest names yet.
struct Stored<'a> {
    /// What it is a copy of.
    of: &'a Object,
    object: Object,
    /// When it was stored.
    at: WallTime,
}

impl Stored<'_> {
    /// How long ago it was stored, by a clock that goes on where this machine sleeps.
    fn age(&self) -> Duration {
        Duration::from_millis(clock::wall().get().saturating_sub(self.at.get()))
    }
}

/// From where to where.
struct Copier<'a> {
    from: &'a Repository,
    to: &'a Repository,
    cluster: ClusterId,
    reseal: Option<Reseal<'a>>,
    by: &'a str,
}

impl Copier<'_> {
    /// Stores the copy of an object; `anew` takes over nothing that is there.
    async fn store<'a>(&self, object: &'a Object, anew: bool) -> Result<Stored<'a>, CopyError> {
        let &Self { from, to, cluster, reseal, .. } = self;
        let (copy, at) = match reseal {
            Some(reseal) => (resealed(from, to, cluster, object, reseal).await?, clock::wall()),
            None => as_it_is(from, to, cluster, object, clock::wall(), anew).await?,
        };
        Ok(Stored { of: object, object: copy, at })
    }

    /// Names in a manifest what was stored. What was stored so long ago that a prune may have taken it for left over is stored
    /// once more before.
    async fn name(
        &self,
        target: &mut Catalogue,
        source: &Catalogue,
        mut batch: Vec<Stored<'_>>,
    ) -> Result<(), CopyError> {
        for _ in 0..STORED_ANEW_MAX {
            let Some(old) = batch.iter_mut().find(|stored| stored.age() >= TAKEN_OVER_MAX) else {
                let adds = batch.into_iter().map(|stored| stored.object).collect();
                return append(self.to, target, source, adds, self.by).await;
            };
            *old = self.store(old.of, true).await?;
        }
        let minutes = TAKEN_OVER_MAX.as_secs() / 60;
        let why = format!(
            "objects that were stored more than {minutes} minutes ago can't be named, and storing them takes longer"
        );
        Err(CopyError::TargetStore(StoreError::Failed { why }))
    }
}

/// What an object is, whatever its name and whoever can open it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    is_log: bool,
    previous: Option<super::manifest::Place>,
    last: super::manifest::Place,
    plain_bytes: u64,
}

impl Identity {
    fn of(object: &Object) -> Self {
        let is_log = object.kind == Kind::Log;
        Self { is_log, previous: object.previous, last: object.last, plain_bytes: object.plain_bytes }
    }
}

/// Adds to the copy what was stored, and takes out the pieces of the log that the new ones replace.
async fn append(
    to: &Repository,
    target: &mut Catalogue,
    source: &Catalogue,
    adds: Vec<Object>,
    by: &str,
) -> Result<(), CopyError> {
    let still: BTreeSet<Identity> = source.objects().map(Identity::of).collect();
    for _ in 0..APPENDS_MAX {
        let within = |piece: &Object| {
            let begin = |object: &Object| object.previous.map(|previous| previous.index);
            let holds = |new: &&Object| {
                new.kind == Kind::Log && begin(new) <= begin(piece) && piece.last.index <= new.last.index
            };
            adds.iter().find(holds).is_some()
        };
        let replaced =
            |piece: &&Object| piece.kind == Kind::Log && !still.contains(&Identity::of(piece)) && within(piece);
        let drops = target.objects().filter(replaced).map(|piece| piece.name.clone()).collect();
        match target.append(to, by, adds.clone(), drops).await {
            Ok(()) => return Ok(()),
            Err(CatalogueError::Overtaken) => {}
            Err(error) => return Err(CopyError::TargetCatalogue(error)),
        }
    }
    Err(CopyError::TargetCatalogue(CatalogueError::Overtaken))
}

/// Copies an object byte for byte; `now` is by the clock of the other store. Gives when it was stored, too. `anew` takes over
/// nothing that is there.
async fn as_it_is(
    from: &Repository,
    to: &Repository,
    cluster: ClusterId,
    object: &Object,
    now: WallTime,
    anew: bool,
) -> Result<(Object, WallTime), CopyError> {
    let damaged = |why: String| FetchError::Damaged { name: object.name.clone(), why };
    let mut copy = object.clone();
    match to.head(&object.name).await {
        // An earlier copy got no further than this.
        _ if anew => copy.name = another_name(cluster, object),
        Ok(found) if now.get().saturating_sub(found.stored_at.get()) < millis(TAKEN_OVER_MAX) => {
            let sha = sha_of(to, &object.name).await.map_err(CopyError::TargetStore)?;
            if sha == object.sha256 {
                return Ok((copy, found.stored_at));
            }
            return Err(CopyError::TargetStore(StoreError::Exists { name: object.name.clone() }));
        }
        // Or, so long ago that it may be deleted at any time.
        Ok(_) => copy.name = another_name(cluster, object),
        Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(CopyError::TargetStore(error)),
    }
    if object.bytes <= PART_BYTES as u64 {
        let content = from.get(&object.name, PART_BYTES).await?;
        if Sha::of(&content) != object.sha256 {
            return Err(damaged("its SHA-256 is not that of the manifest".into()).into());
        }
        let at = clock::wall();
        to.create(&copy.name, content).await.map_err(CopyError::TargetStore)?;
        return Ok((copy, at));
    }
    let (_, mut stream) = from.stream(&object.name).await?;
    let mut upload = to.upload(&copy.name).await.map_err(CopyError::TargetStore)?;
    let (mut part, mut hash, mut bytes) = (BytesMut::new(), Sha256::new(), 0_u64);
    let copied = async {
        while let Some(piece) = stream.try_next().await? {
            hash.update(&piece);
            bytes += piece.len() as u64;
            part.extend_from_slice(&piece);
            while part.len() >= PART_BYTES {
                upload.part(part.split_to(PART_BYTES).freeze()).await.map_err(CopyError::TargetStore)?;
            }
        }
        if !part.is_empty() {
            upload.part(part.split().freeze()).await.map_err(CopyError::TargetStore)?;
        }
        Ok::<(), CopyError>(())
    };
    let copied = copied.await;
    let whole = Sha(hash.finalize().into()) == object.sha256 && bytes == object.bytes;
    match copied {
        Ok(()) if whole => upload.complete().await.map_err(CopyError::TargetStore)?,
        Ok(()) => {
            upload.abort().await;
            return Err(damaged("its SHA-256 is not that of the manifest".into()).into());
        }
        Err(error) => {
            upload.abort().await;
            return Err(error);
        }
    }
    Ok((copy, clock::wall()))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A new name for what an object holds.
fn another_name(cluster: ClusterId, object: &Object) -> String {
    let (layout, encrypted) = (layout::Layout::new(cluster), layout::is_encrypted(&object.name));
    match object.kind {
        Kind::Full => layout.full(object.last.index, rand::random(), encrypted),
        Kind::Log => {
            let first = object.previous.map_or(0, |previous| previous.index + 1);
            layout.log(first, object.last.index, rand::random(), encrypted)
        }
    }
}

async fn sha_of(repository: &Repository, name: &str) -> Result<Sha, StoreError> {
    let (_, mut stream) = repository.stream(name).await?;
    let mut hash = Sha256::new();
    while let Some(piece) = stream.try_next().await? {
        hash.update(&piece);
    }
    Ok(Sha(hash.finalize().into()))
}

/// A file that is removed when it is let go.
struct LocalFile(PathBuf);

impl Drop for LocalFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(file = %self.0.display(), %error, "a file of a copy can't be removed");
        }
    }
}

/// Copies an object, opened and packed anew.
async fn resealed(
    from: &Repository,
    to: &Repository,
    cluster: ClusterId,
    object: &Object,
    reseal: Reseal<'_>,
) -> Result<Object, CopyError> {
    let file = LocalFile(reseal.scratch.join(format!("copy-{:016x}", rand::random::<u64>())));
    transfer::fetch(from, object, reseal.identities, &file.0, |_| {}).await?;
    Ok(transfer::store_again(to, cluster, object, &file.0, reseal.recipients).await?)
}

#[cfg(test)]
mod tests;
