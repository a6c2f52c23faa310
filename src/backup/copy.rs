//! An archive, copied from one repository to another: as it is, or encrypted to other keys on the way.
//!
//! Guarantees: what is copied has the SHA-256 of its manifest, or is not named in the copy; a copy that was interrupted, or
//! is done again, goes on with what is missing; both repositories may be in use meanwhile. What only the copy has stays,
//! but for pieces of the log that a merged one replaces: each repository has a retention of its own. Leaves out: proofs,
//! which tell of the repository they lie in, and keeping two repositories alike for ever.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::catalogue::{Catalogue, CatalogueError};
use super::layout::{self, Kind};
use super::manifest::{Object, Sha};
use super::marker::{self, MarkerError};
use super::probe::{self, ProbeError};
use super::repository::{PART_BYTES, Repository, StoreError};
use super::seal::{Identities, Recipients};
use super::transfer::{self, FetchError, StoreDataError};
use crate::types::ClusterId;

/// A manifest of the copy names so many new objects at most, so that an interruption costs little.
const OBJECTS_A_MANIFEST: usize = 16;

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
    for batch in missing.chunks(OBJECTS_A_MANIFEST) {
        let mut adds = Vec::with_capacity(batch.len());
        for object in batch {
            adds.push(match reseal {
                Some(reseal) => resealed(from, to, cluster, object, reseal).await?,
                None => as_it_is(from, to, object).await?,
            });
            done.objects += 1;
            done.bytes += object.bytes;
            progress(done, bytes_total);
        }
        append(to, &mut target, &source, adds, by).await?;
    }
    Ok(done)
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

/// Copies an object byte for byte.
async fn as_it_is(from: &Repository, to: &Repository, object: &Object) -> Result<Object, CopyError> {
    let damaged = |why: String| FetchError::Damaged { name: object.name.clone(), why };
    if object.bytes <= PART_BYTES as u64 {
        let content = from.get(&object.name, PART_BYTES).await?;
        if Sha::of(&content) != object.sha256 {
            return Err(damaged("its SHA-256 is not that of the manifest".into()).into());
        }
        // The same bytes again are no error: an earlier copy got no further than this.
        to.create(&object.name, content).await.map_err(CopyError::TargetStore)?;
        return Ok(object.clone());
    }
    match to.head(&object.name).await {
        Ok(_) => {
            let sha = sha_of(to, &object.name).await.map_err(CopyError::TargetStore)?;
            if sha == object.sha256 {
                return Ok(object.clone());
            }
            return Err(CopyError::TargetStore(StoreError::Exists { name: object.name.clone() }));
        }
        Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(CopyError::TargetStore(error)),
    }
    let (_, mut stream) = from.stream(&object.name).await?;
    let mut upload = to.upload(&object.name).await.map_err(CopyError::TargetStore)?;
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
    Ok(object.clone())
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
