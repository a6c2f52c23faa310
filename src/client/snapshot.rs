//! Downloading a snapshot.
//!
//! Guarantees: the bytes are checked against the `Repr-Digest` of the answer (RFC 9530) before a file carries its final
//! name, and the file is on disk by then. Leaves out: what is in the file (`state::snapshot` checks that).

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::call::{Call, number};
use super::{Client, Error};
use crate::types::Revision;

/// How long a download may stand still.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a download that broke off is begun anew.
const DOWNLOADS_MAX: u32 = 3;

/// How long a node may take to make the snapshot before its first byte.
const BUILD_TIMEOUT: Duration = Duration::from_secs(300);

/// A snapshot on its way.
pub struct SnapshotDownload {
    /// The revision it holds.
    pub revision: Revision,
    /// The SHA-256 that the node announced.
    pub sha256: [u8; 32],
    received: u64,
    hash: Sha256,
    response: reqwest::Response,
}

/// A snapshot that was downloaded, checked, and is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSnapshot {
    /// The revision it holds.
    pub revision: Revision,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

impl fmt::Debug for SnapshotDownload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotDownload").field("revision", &self.revision).field("received", &self.received).finish()
    }
}

impl SnapshotDownload {
    /// The next bytes; `None` at the end, once the digest was found right.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the download breaks off or stands still, [`Error::Integrity`] if the digest differs.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let broken = |why: String| Error::Unavailable { attempts: 1, last: why, problem: None };
        match tokio::time::timeout(CHUNK_TIMEOUT, self.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                self.hash.update(&chunk);
                self.received += chunk.len() as u64;
                Ok(Some(chunk))
            }
            Ok(Ok(None)) => {
                let found: [u8; 32] = self.hash.clone().finalize().into();
                if found != self.sha256 {
                    return Err(Error::Integrity(format!(
                        "the snapshot arrived damaged: its SHA-256 is {}, the node announced {}",
                        Hex(&found),
                        Hex(&self.sha256)
                    )));
                }
                Ok(None)
            }
            Ok(Err(error)) => Err(broken(format!("the download broke off after {} bytes: {error}", self.received))),
            Err(_) => Err(broken(format!("the download stood still after {} bytes", self.received))),
        }
    }
}

impl Client {
    /// Asks for a snapshot of this moment.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Integrity`] if the answer has no digest to check it by.
    pub async fn snapshot(&self) -> Result<SnapshotDownload, Error> {
        let call = Call::read(Method::GET, "/v1/snapshot".to_owned()).timeout(Some(BUILD_TIMEOUT));
        let (headers, response) = self.open(call).await?;
        let sha256 = announced(&headers).ok_or_else(|| {
            Error::Integrity("the snapshot has no Repr-Digest with sha-256 to check it by".to_owned())
        })?;
        let revision = number(&headers, "quorate-snapshot-revision")
            .ok_or_else(|| Error::Integrity("the snapshot does not say which revision it holds".to_owned()))?;
        Ok(SnapshotDownload { revision: Revision::new(revision), sha256, received: 0, hash: Sha256::new(), response })
    }

    /// Downloads a snapshot of this moment into a file, which is replaced if it exists. A download that breaks off is
    /// begun anew, a few times.
    ///
    /// # Errors
    /// [`Error`]; whatever it is, a file that was there is untouched.
    pub async fn save_snapshot(&self, path: &Path) -> Result<SavedSnapshot, Error> {
        let part = part_of(path);
        let mut downloads = 0;
        let saved = loop {
            downloads += 1;
            match self.download(&part).await {
                Err(Error::Unavailable { .. }) if downloads < DOWNLOADS_MAX => {}
                result => break result,
            }
        };
        let saved = match saved {
            Ok(saved) => match replace(&part, path).await {
                Ok(()) => Ok(saved),
                Err(error) => Err(Error::Local { path: path.to_owned(), error }),
            },
            Err(error) => Err(error),
        };
        if saved.is_err() {
            // Only tidying up: the error to tell is the one before.
            let _ = tokio::fs::remove_file(&part).await;
        }
        saved
    }

    async fn download(&self, part: &Path) -> Result<SavedSnapshot, Error> {
        let local = |error| Error::Local { path: part.to_owned(), error };
        let mut file = tokio::fs::File::create(part).await.map_err(local)?;
        let mut download = self.snapshot().await?;
        while let Some(chunk) = download.chunk().await? {
            file.write_all(&chunk).await.map_err(local)?;
        }
        file.flush().await.map_err(local)?;
        file.sync_all().await.map_err(local)?;
        Ok(SavedSnapshot { revision: download.revision, bytes: download.received, sha256: download.sha256 })
    }
}

/// Gives the file its name, and makes the name last.
async fn replace(part: &Path, path: &Path) -> std::io::Result<()> {
    tokio::fs::rename(part, path).await?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tokio::fs::File::open(directory).await?.sync_all().await
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// The SHA-256 in `Repr-Digest`: `sha-256=:<base64>:`, possibly among others.
fn announced(headers: &HeaderMap) -> Option<[u8; 32]> {
    let text = headers.get("repr-digest")?.to_str().ok()?;
    let digest = text.split(',').find_map(|member| member.trim().strip_prefix("sha-256=:")?.strip_suffix(':'))?;
    base64::engine::general_purpose::STANDARD.decode(digest).ok()?.try_into().ok()
}

/// Bytes in hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
