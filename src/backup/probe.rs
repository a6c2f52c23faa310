//! Whether a store can hold an archive: tried before the first object is sent.
//!
//! Guarantees: a store that replaces objects although it is asked not to is refused, since two writers could destroy each
//! other's manifests there; a right that is missing is named. What is tried leaves nothing behind but the marker of the
//! repository, and does no harm where the store does not do as it is told. Leaves out: how fast the store is.

use bytes::{Bytes, BytesMut};

use super::layout::{self, REPOSITORY};
use super::marker::{self, MarkerError};
use super::repository::{Repository, StoreError};
use crate::clock;
use crate::types::ClusterId;

/// A name that no object has.
const NOTHING: &str = "quorate-probe-of-delete";

/// The clocks of this machine and of a store may differ by so much without a word, in milliseconds.
pub const SKEW_MILLIS_MAX: u64 = 60_000;

/// What is known of a store that can hold an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Whether it became a repository just now.
    pub made: bool,
    /// Whether the credentials allow to delete, which only pruning needs; tried if the repository was made just now.
    pub can_delete: Option<bool>,
    /// The clock of the store less that of this machine, in milliseconds; known if the repository was made just now.
    pub skew_millis: Option<i64>,
    /// The clusters that have an archive there.
    pub clusters: Vec<ClusterId>,
}

/// Why a store can hold no archive.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProbeError {
    /// A right is missing.
    #[error(
        "the credentials don't allow to {right} at {url} ({why}); archiving needs list, get and put below the prefix (S3: \
         s3:ListBucket, s3:GetObject, s3:PutObject), pruning also delete"
    )]
    Right {
        /// What is not allowed: list, get or put.
        right: &'static str,
        /// Where.
        url: String,
        /// What the store says.
        why: String,
    },
    /// The store does not keep what it has.
    #[error(
        "{url} replaces an object although it is asked to create it only: writers could destroy each other's archive there; \
         use a store with conditional writes (for S3: If-None-Match on PutObject)"
    )]
    Replaces {
        /// Where.
        url: String,
    },
    /// It is not a repository, or a newer one.
    #[error(transparent)]
    Marker(MarkerError),
    /// The store does not answer, or refuses for another reason.
    #[error("{url}: {source}")]
    Store {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// Tries a store; an empty place becomes a repository.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe(repository: &Repository) -> Result<Probed, ProbeError> {
    // First: without the right to list, S3 answers "forbidden" to a get of what is not there.
    let (folders, _) = repository.top().await.map_err(|error| refused(repository, "list", error))?;
    let found = marker::read(repository).await.map_err(|error| refused(repository, "get", error))?;
    let made = marker::ensure(repository).await.map_err(|error| match error {
        MarkerError::Store(error) => refused(repository, "put", error),
        error => ProbeError::Marker(error),
    })?;
    let content = match found {
        Some(content) => content,
        None => marker::read(repository).await.map_err(|error| refused(repository, "get", error))?.unwrap_or_default(),
    };
    try_to_replace(repository, &content).await?;
    Ok(Probed {
        made,
        // Not each time: in a bucket with versions it leaves a mark.
        can_delete: if made { Some(try_to_delete(repository).await?) } else { None },
        skew_millis: if made { skew(repository).await } else { None },
        clusters: folders.iter().filter_map(|folder| layout::cluster_of(folder)).collect(),
    })
}

/// Puts another marker over the marker, which must be refused; it means the same if it is not.
async fn try_to_replace(repository: &Repository, content: &Bytes) -> Result<(), ProbeError> {
    let other = match content.strip_suffix(b"\n\n") {
        Some(shorter) => Bytes::copy_from_slice(shorter),
        None => {
            let mut longer = BytesMut::from(content.as_ref());
            longer.extend_from_slice(b"\n");
            longer.freeze()
        }
    };
    match repository.create(REPOSITORY, other).await {
        Err(StoreError::Exists { .. }) => Ok(()),
        Ok(()) => Err(ProbeError::Replaces { url: repository.url().to_owned() }),
        Err(error) => Err(refused(repository, "put", error)),
    }
}

async fn try_to_delete(repository: &Repository) -> Result<bool, ProbeError> {
    match repository.delete(NOTHING).await {
        Ok(()) => Ok(true),
        Err(StoreError::Forbidden { .. }) => Ok(false),
        Err(error) => Err(refused(repository, "delete", error)),
    }
}

/// The store's clock less ours; only right behind the making of the marker.
async fn skew(repository: &Repository) -> Option<i64> {
    let stored_at = repository.head(REPOSITORY).await.ok()?.stored_at;
    i64::try_from(stored_at.get()).ok()?.checked_sub(i64::try_from(clock::wall().get()).ok()?)
}

fn refused(repository: &Repository, right: &'static str, error: StoreError) -> ProbeError {
    let url = repository.url().to_owned();
    match error {
        StoreError::Forbidden { why } => ProbeError::Right { right, url, why },
        source => ProbeError::Store { url, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::faults::{Fault, Faults};

    #[tokio::test]
    async fn a_store_that_keeps_its_promises_passes_again_and_again() {
        let (repository, _) = Faults::repository();
        let first = probe(&repository).await.unwrap();
        assert!(first.made && first.can_delete == Some(true) && first.clusters.is_empty());
        assert!(first.skew_millis.unwrap().unsigned_abs() < SKEW_MILLIS_MAX);
        for _ in 0..3 {
            let again = probe(&repository).await.unwrap();
            assert!(!again.made && again.skew_millis.is_none());
        }
        assert_eq!(repository.top().await.unwrap(), (vec![], vec![REPOSITORY.to_owned()]), "nothing is left behind");
    }

    #[tokio::test]
    async fn a_store_that_replaces_although_it_should_create_is_refused_and_not_harmed() {
        let (repository, faults) = Faults::repository();
        faults.set(Fault::IgnoreCreate);
        for _ in 0..4 {
            let error = probe(&repository).await.unwrap_err();
            assert!(matches!(error, ProbeError::Replaces { .. }), "{error}");
            marker::check(&repository).await.unwrap();
        }
        faults.clear();
        probe(&repository).await.unwrap();
    }

    #[tokio::test]
    async fn each_missing_right_is_named() {
        for right in ["list", "get", "put"] {
            let (repository, faults) = Faults::repository();
            if right == "get" {
                probe(&repository).await.unwrap();
            }
            faults.set(Fault::Forbid(right));
            let error = probe(&repository).await.unwrap_err();
            assert!(matches!(&error, ProbeError::Right { right: named, .. } if *named == right), "{error}");
        }
        let (repository, faults) = Faults::repository();
        faults.set(Fault::Forbid("delete"));
        assert_eq!(probe(&repository).await.unwrap().can_delete, Some(false));
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_no_missing_right() {
        let (repository, faults) = Faults::repository();
        faults.set(Fault::Unavailable);
        let error = probe(&repository).await.unwrap_err();
        assert!(matches!(&error, ProbeError::Store { source, .. } if source.is_transient()), "{error}");
    }
}
