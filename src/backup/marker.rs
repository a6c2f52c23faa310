//! What tells a repository from any other folder of a store, and which program can read it.
//!
//! Guarantees: a folder that holds something else is never made a repository and never read as one; one that was written
//! by a newer program is refused by name. Two that make a repository at the same time make the same one. Leaves out:
//! whether the store keeps its promises (`probe`), and what is in the repository (`catalogue`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::layout::{self, REPOSITORY};
use super::repository::{Repository, StoreError};
use crate::types::ClusterId;

/// The newest form of a repository, which is the one that is made.
pub const FORMAT_VERSION: u32 = 1;

/// The longest marker that is read, in bytes.
const MARKER_BYTES_MAX: usize = 64 * 1024;

/// Names of strangers that are told of at most.
const STRANGERS_TOLD_MAX: usize = 5;

/// For people who look into the bucket.
const ABOUT: &str = "An archive of Quorate clusters. Nothing here is changed once it was written. To read it: quorate backup list, \
                     quorate restore; or zstd, and age with one of the private keys.";

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// The form of the repository.
    format: u32,
    /// The oldest form that a program must know to read it.
    min_reader: u32,
    about: String,
}

/// Why a place can't be used as a repository.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MarkerError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing at all is there.
    #[error("{url} is empty: nothing was ever archived there; check bucket and prefix")]
    Empty {
        /// Where.
        url: String,
    },
    /// Something else is there.
    #[error(
        "{url} is no repository of Quorate: it has no {REPOSITORY}, but {}; name the folder that holds it, or an empty one \
         to begin a new repository",
        .found.join(", ")
    )]
    Foreign {
        /// Where.
        url: String,
        /// Some of what is there.
        found: Vec<String>,
    },
    /// Written by a newer program.
    #[error(
        "the repository {url} has format {found}, the newest this program reads is {FORMAT_VERSION}: use a newer program"
    )]
    Newer {
        /// Where.
        url: String,
        /// The least that a reader must know.
        found: u32,
    },
    /// The marker can't be read.
    #[error("{REPOSITORY} of {url} is damaged ({why}); the archive itself may be whole: put back {}", marker_text().trim_end())]
    Damaged {
        /// Where.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The bytes of a marker; always the same.
#[must_use]
pub fn content() -> Bytes {
    Bytes::from(marker_text())
}

fn marker_text() -> String {
    let marker = Marker { format: FORMAT_VERSION, min_reader: FORMAT_VERSION, about: ABOUT.to_owned() };
    let mut text = serde_json::to_string(&marker).expect("plain data into a growing text can't fail");
    text.push('\n');
    text
}

/// Reads the marker as it stands.
pub(super) async fn read(repository: &Repository) -> Result<Option<Bytes>, StoreError> {
    match repository.get(REPOSITORY, MARKER_BYTES_MAX).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes sure that this is a repository this program reads.
///
/// # Errors
/// [`MarkerError`].
pub async fn check(repository: &Repository) -> Result<(), MarkerError> {
    let url = repository.url().to_owned();
    let bytes = match read(repository).await? {
        Some(bytes) => bytes,
        None => {
            let found = strangers(repository).await?;
            // Another node may have made it a repository between the two looks.
            match read(repository).await? {
                Some(bytes) => bytes,
                None if found.is_empty() => return Err(MarkerError::Empty { url }),
                None => return Err(MarkerError::Foreign { url, found }),
            }
        }
    };
    let marker: Marker = serde_json::from_slice(&bytes)
        .map_err(|error| MarkerError::Damaged { url: url.clone(), why: error.to_string() })?;
    if marker.min_reader > FORMAT_VERSION {
        return Err(MarkerError::Newer { url, found: marker.min_reader });
    }
    Ok(())
}

/// As [`check`], but an empty place becomes a repository; tells whether it did.
///
/// # Errors
/// [`MarkerError`], but [`MarkerError::Empty`].
pub async fn ensure(repository: &Repository) -> Result<bool, MarkerError> {
    match check(repository).await {
        Err(MarkerError::Empty { .. }) => {}
        other => return other.map(|()| false),
    }
    match repository.create(REPOSITORY, content()).await {
        Ok(()) => Ok(true),
        // Another node was first.
        Err(StoreError::Exists { .. }) => check(repository).await.map(|()| false),
        Err(error) => Err(error.into()),
    }
}

/// The clusters that have an archive in a repository, by id.
///
/// # Errors
/// [`MarkerError`].
pub async fn clusters(repository: &Repository) -> Result<Vec<ClusterId>, MarkerError> {
    check(repository).await?;
    let mut clusters: Vec<ClusterId> =
        repository.folders().await?.iter().filter_map(|folder| layout::cluster_of(folder)).collect();
    clusters.sort_unstable();
    Ok(clusters)
}

/// Some of what is there.
async fn strangers(repository: &Repository) -> Result<Vec<String>, StoreError> {
    let (folders, objects) = repository.top().await?;
    let folders = folders.into_iter().map(|folder| format!("{folder}/"));
    Ok(folders.chain(objects).take(STRANGERS_TOLD_MAX).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::backup::faults::{Fault, Faults};

    fn repository() -> Repository {
        Repository::new(Arc::new(InMemory::new()), Path::from("some/prefix"), "memory:")
    }

    #[tokio::test]
    async fn an_empty_place_is_told_by_readers_and_made_a_repository_by_writers() {
        let repository = repository();
        assert!(matches!(clusters(&repository).await, Err(MarkerError::Empty { .. })));
        assert!(ensure(&repository).await.unwrap());
        assert!(!ensure(&repository).await.unwrap());
        assert_eq!(clusters(&repository).await.unwrap(), []);
        for name in ["00000000000000ac/chain/x", "00000000000000ab/chain/x", "other/x"] {
            repository.create(name, Bytes::new()).await.unwrap();
        }
        assert_eq!(clusters(&repository).await.unwrap(), [ClusterId::new(0xAB), ClusterId::new(0xAC)]);
    }

    #[tokio::test]
    async fn a_folder_of_something_else_is_neither_read_nor_written_to() {
        let repository = repository();
        repository.create("holiday.jpg", Bytes::new()).await.unwrap();
        for error in [check(&repository).await.unwrap_err(), ensure(&repository).await.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("holiday.jpg") && text.contains("no repository"), "{text}");
        }
        assert_eq!(repository.top().await.unwrap(), (vec![], vec!["holiday.jpg".to_owned()]));
    }

    #[tokio::test]
    async fn a_repository_that_another_node_makes_meanwhile_is_no_foreign_folder() {
        let (repository, faults) = Faults::repository();
        assert!(ensure(&repository).await.unwrap());
        // Not there at the first look, and there when it is looked what else there is.
        faults.set(Fault::NotYet(1, REPOSITORY));
        assert!(!ensure(&repository).await.unwrap());
        faults.set(Fault::NotYet(2, REPOSITORY));
        assert!(
            matches!(ensure(&repository).await, Err(MarkerError::Foreign { .. })),
            "it is listed, and is not there"
        );
    }

    #[tokio::test]
    async fn a_newer_repository_and_a_damaged_marker_are_refused() {
        for (content, says) in
            [(r#"{"format":9,"min_reader":2,"about":"","more":1}"#, "newer program"), ("{", "put back")]
        {
            let repository = repository();
            repository.create(REPOSITORY, Bytes::from_static(content.as_bytes())).await.unwrap();
            let text = ensure(&repository).await.unwrap_err().to_string();
            assert!(text.contains(says), "{text}");
        }
        let repository = repository();
        let newer = r#"{"format":2,"min_reader":1,"about":"","more":1}"#;
        repository.create(REPOSITORY, Bytes::from_static(newer.as_bytes())).await.unwrap();
        check(&repository).await.unwrap();
    }
}
