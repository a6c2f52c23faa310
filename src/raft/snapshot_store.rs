//! The snapshot files of this node: `snapshots/<term>-<index>.snapshot`, the newest two.
//!
//! Guarantees: a file that stands under its final name was complete, fsynced and verified when it got it; the files a
//! [`SnapshotHandle`] holds are not removed. Leaves out: the format (`state::snapshot`), and when one is built.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::membership::{MembershipError, decode_membership};
use super::snapshot_transfer::is_incoming;
use super::types::SnapshotMeta;
use crate::clock;
use crate::state::PinnedState;
use crate::state::snapshot::{self, SnapshotError};
use crate::storage;
use crate::types::{ClusterId, LogPosition};

/// How many files are kept: the newest, and one more in case it turns out damaged.
const FILES_KEPT: usize = 2;

/// What is put behind the name of a file that was found damaged; it is left for a person to look at.
const DAMAGED: &str = ".damaged";

/// What a complete file is called.
pub(super) const EXTENSION: &str = "snapshot";

/// What a file from elsewhere is called until it is taken over; removed at the next start if it never was.
const FOREIGN: &str = "foreign.part";

/// What goes wrong with snapshot files.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotStoreError {
    /// The directory can't be used.
    #[error("can't use the snapshot directory {path}: {source}")]
    Dir {
        /// Which directory.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file can't be read or is damaged.
    #[error(transparent)]
    File(#[from] SnapshotError),
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] snapshot::WriteError<storage::Error>),
    /// The membership in a file can't be decoded.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A file of another cluster.
    #[error("the snapshot is of cluster {found}, this node belongs to cluster {expected}")]
    OtherCluster {
        /// The cluster of this node.
        expected: ClusterId,
        /// The cluster in the file.
        found: ClusterId,
    },
}

impl SnapshotStoreError {
    /// Whether a file could not be written for want of room: nothing is damaged, and room may be made.
    pub(super) fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            Self::Dir { source, .. } | Self::Write(snapshot::WriteError::Io { source, .. }) => {
                matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
            }
            Self::Write(_) | Self::File(_) | Self::Membership(_) | Self::OtherCluster { .. } => false,
        }
    }
}

impl From<SnapshotStoreError> for io::Error {
    fn from(error: SnapshotStoreError) -> Self {
        Self::other(error)
    }
}

/// A complete snapshot file. While it is held, the file stays.
#[derive(Debug, Clone)]
pub struct SnapshotHandle(Arc<SnapshotFile>);

#[derive(Debug)]
struct SnapshotFile {
    path: PathBuf,
    meta: snapshot::SnapshotMeta,
    raft_meta: SnapshotMeta,
    file_bytes: u64,
    sha256: OnceLock<[u8; 32]>,
    damaged: AtomicBool,
}

impl SnapshotHandle {
    /// Opens a file wherever it lies; only its header is read.
    ///
    /// # Errors
    /// It can't be read, does not begin as a snapshot, or is of another cluster.
    pub(super) fn open(path: PathBuf, cluster: ClusterId) -> Result<Self, SnapshotStoreError> {
        let meta = snapshot::inspect(&path)?;
        let file_bytes = path
            .metadata()
            .map_err(|source| SnapshotStoreError::Dir { path: path.display().to_string(), source })?
            .len();
        Self::new(path, meta, file_bytes, None, cluster)
    }

    fn new(
        path: PathBuf,
        meta: snapshot::SnapshotMeta,
        file_bytes: u64,
        sha256: Option<[u8; 32]>,
        cluster: ClusterId,
    ) -> Result<Self, SnapshotStoreError> {
        if meta.cluster_id != cluster {
            return Err(SnapshotStoreError::OtherCluster { expected: cluster, found: meta.cluster_id });
        }
        let last_membership = decode_membership(&meta.membership)?;
        let raft_meta = SnapshotMeta { last_log_id: meta.position.map(Into::into), last_membership };
        let sha256 = sha256.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Self(Arc::new(SnapshotFile { path, meta, raft_meta, file_bytes, sha256, damaged: AtomicBool::new(false) })))
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What it holds.
    #[must_use]
    pub fn meta(&self) -> &snapshot::SnapshotMeta {
        &self.0.meta
    }

    /// What it holds, in openraft's terms.
    pub(super) fn raft_meta(&self) -> &SnapshotMeta {
        &self.0.raft_meta
    }

    /// Its size in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.0.file_bytes
    }

    /// Reads and verifies the whole file again, whatever was found before. If it is damaged or can't be read it is passed
    /// over from now on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn verify_again(&self) -> Result<(), SnapshotError> {
        snapshot::verify(&self.0.path).map(drop).inspect_err(|error| self.mark_damaged(error))
    }

    /// Has it passed over from now on.
    pub(super) fn mark_damaged(&self, error: &dyn std::fmt::Display) {
        tracing::error!(file = %self.0.path.display(), %error, "passing over a damaged snapshot");
        self.0.damaged.store(true, Ordering::Release);
    }

    fn is_damaged(&self) -> bool {
        self.0.damaged.load(Ordering::Acquire)
    }

    /// Its SHA-256. Verifies and reads the whole file the first time, where it was not written by this process.
    ///
    /// # Errors
    /// The file is damaged or can't be read.
    pub fn sha256(&self) -> Result<[u8; 32], SnapshotError> {
        if let Some(digest) = self.0.sha256.get() {
            return Ok(*digest);
        }
        let digest = snapshot::verify(&self.0.path).inspect_err(|error| self.mark_damaged(error))?.sha256;
        Ok(*self.0.sha256.get_or_init(|| digest))
    }
}

/// What the file of a snapshot is called.
pub(super) fn file_name(meta: &snapshot::SnapshotMeta) -> String {
    let (term, index) = meta.position.map_or((0, 0), |position| (position.term.get(), position.index.get()));
    format!("{term}-{index}.{EXTENSION}")
}

/// The directory of snapshot files.
#[derive(Debug)]
pub struct SnapshotStore {
    dir: PathBuf,
    cluster: ClusterId,
    /// Newest first; more than [`FILES_KEPT`] only while older ones are held by others.
    files: Mutex<Vec<SnapshotHandle>>,
}

impl SnapshotStore {
    /// Opens the directory, creating it if need be. Leftovers of interrupted writes are removed; a file that can't be read
    /// is left where it is and passed over.
    ///
    /// # Errors
    /// The directory can't be read or holds a snapshot of another cluster.
    pub fn open(dir: &Path, cluster: ClusterId) -> Result<Self, SnapshotStoreError> {
        let io = |source| SnapshotStoreError::Dir { path: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        if let Some(above) = dir.parent() {
            // A file that the log is purged behind must not be lost with the name of its folder.
            std::fs::File::open(above).and_then(|above| above.sync_all()).map_err(io)?;
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                match SnapshotHandle::open(path, cluster) {
                    Ok(handle) => files.push(handle),
                    Err(error @ SnapshotStoreError::OtherCluster { .. }) => return Err(error),
                    Err(error) => tracing::error!(file = name, %error, "passing over a snapshot that can't be read"),
                }
            } else if !is_incoming(&name) && !name.ends_with(DAMAGED) {
                tracing::warn!(file = name, "removing what an interrupted snapshot left behind");
                std::fs::remove_file(&path).map_err(io)?;
            }
        }
        files.sort_by_key(|file| std::cmp::Reverse(file.meta().position));
        Ok(Self { dir: dir.to_owned(), cluster, files: Mutex::new(files) })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest snapshot that is not known to be damaged.
    #[must_use]
    pub fn newest(&self) -> Option<SnapshotHandle> {
        self.files.lock().iter().find(|file| !file.is_damaged()).cloned()
    }

    /// All that are not known to be damaged, newest first.
    #[must_use]
    pub fn all(&self) -> Vec<SnapshotHandle> {
        self.files.lock().iter().filter(|file| !file.is_damaged()).cloned().collect()
    }

    /// Whether a file turned out damaged in the life of this process and was not replaced yet.
    pub(super) fn any_damaged(&self) -> bool {
        self.files.lock().iter().any(SnapshotHandle::is_damaged)
    }

    /// Passes over the files that end before `position`: the log no longer continues them. They stay on disk.
    pub(super) fn forget_before(&self, position: LogPosition) {
        self.files.lock().retain(|file| file.meta().position >= Some(position));
    }

    /// Bytes all files take.
    #[must_use]
    pub fn size_on_disk(&self) -> u64 {
        self.files.lock().iter().map(SnapshotHandle::file_bytes).sum()
    }

    /// Writes a snapshot of a pinned state, fsynced and read back. Takes as long as the state is large.
    ///
    /// # Errors
    /// The disk or the state engine failed, or what was read back is not what was written.
    pub fn write(&self, pinned: &PinnedState) -> Result<SnapshotHandle, SnapshotStoreError> {
        if let Some(newest) = self.newest()
            && newest.meta().position == pinned.applied().position
        {
            return Ok(newest);
        }
        let meta = snapshot::SnapshotMeta::of(self.cluster, pinned.applied(), clock::wall());
        let path = self.dir.join(file_name(&meta));
        let keys = pinned.keys().map_err(snapshot::WriteError::Records)?;
        let summary = snapshot::write(&path, &meta, keys, pinned.records())?;
        let handle = SnapshotHandle::new(path, meta, summary.file_bytes, Some(summary.sha256), self.cluster)?;
        self.add(handle.clone());
        Ok(handle)
    }

    /// Takes over a file that was received: verifies it and gives it its final name.
    ///
    /// # Errors
    /// The file is damaged, of another cluster, or not the one that was announced by this digest.
    pub fn adopt(&self, incoming: &Path, sha256: [u8; 32]) -> Result<SnapshotHandle, SnapshotStoreError> {
        let summary = snapshot::verify(incoming)?;
        if summary.sha256 != sha256 {
            return Err(SnapshotError::Damaged { at_byte: 0, what: "the file is not the announced one".into() }.into());
        }
        let path = self.dir.join(file_name(&summary.meta));
        // Before the rename: a file of another cluster under a final name would keep this node from starting.
        let handle = SnapshotHandle::new(path.clone(), summary.meta, summary.file_bytes, Some(sha256), self.cluster)?;
        let io = |source| SnapshotStoreError::Dir { path: path.display().to_string(), source };
        std::fs::rename(incoming, &path).map_err(io)?;
        std::fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        self.add(handle.clone());
        Ok(handle)
    }

    /// Makes sure that a snapshot is one of this store's files; one that lies elsewhere is copied and verified.
    pub(super) fn keep(&self, snapshot: &SnapshotHandle) -> Result<(), SnapshotStoreError> {
        if self.files.lock().iter().any(|file| file.path() == snapshot.path()) {
            return Ok(());
        }
        let incoming = self.dir.join(FOREIGN);
        let io = |source| SnapshotStoreError::Dir { path: incoming.display().to_string(), source };
        std::fs::copy(snapshot.path(), &incoming).map_err(io)?;
        std::fs::File::open(&incoming).and_then(|file| file.sync_all()).map_err(io)?;
        self.adopt(&incoming, snapshot.sha256()?).map(drop)
    }

    /// Takes the files that were found damaged out of use; they are left for a person to look at.
    pub(super) fn set_damaged_aside(&self) {
        self.files.lock().retain(|file| {
            if file.is_damaged() {
                let mut aside = file.path().as_os_str().to_owned();
                aside.push(DAMAGED);
                if let Err(error) = std::fs::rename(file.path(), &aside) {
                    tracing::warn!(file = %file.path().display(), %error, "can't rename a damaged snapshot");
                }
            }
            !file.is_damaged()
        });
    }

    /// Adds a file and removes the oldest that nobody holds.
    fn add(&self, handle: SnapshotHandle) {
        let mut files = self.files.lock();
        files.retain(|file| file.path() != handle.path());
        files.push(handle);
        files.sort_by_key(|file| std::cmp::Reverse(file.meta().position));
        let mut rank = 0;
        files.retain(|file| {
            // A damaged one must not push out a sound one.
            rank += usize::from(!file.is_damaged());
            // One holder is this list.
            if rank <= FILES_KEPT || Arc::strong_count(&file.0) > 1 {
                return true;
            }
            if let Err(error) = std::fs::remove_file(file.path()) {
                tracing::warn!(file = %file.path().display(), %error, "can't remove an old snapshot");
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{StateConfig, StateMachine};
    use crate::storage::MemoryEngine;
    use crate::types::{LogIndex, NodeId, Term};

    /// The snapshot of an empty state of a cluster.
    fn snapshot_of(cluster: u64, dir: &Path) -> SnapshotHandle {
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        let position = LogPosition { term: Term::new(3), leader: NodeId::new(1), index: LogIndex::new(9) };
        machine.apply_membership(position, super::super::membership::encode_membership(&Default::default()));
        SnapshotStore::open(dir, ClusterId::new(cluster)).unwrap().write(&machine.pin()).unwrap()
    }

    #[test]
    fn a_received_snapshot_of_another_cluster_never_gets_a_final_name() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = snapshot_of(8, &dir.path().join("elsewhere"));
        let (own, digest) = (dir.path().join("snapshots"), foreign.sha256().unwrap());
        let store = SnapshotStore::open(&own, ClusterId::new(7)).unwrap();
        let incoming = own.join("incoming-00.part");
        std::fs::copy(foreign.path(), &incoming).unwrap();
        let refused = store.adopt(&incoming, digest).unwrap_err();
        assert!(matches!(refused, SnapshotStoreError::OtherCluster { .. }), "{refused}");
        assert!(store.newest().is_none());
        let names: Vec<_> = std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["incoming-00.part"]);
        // Under a final name it would keep this node from starting.
        drop(store);
        assert!(SnapshotStore::open(&own, ClusterId::new(7)).unwrap().newest().is_none());
    }

    #[test]
    fn a_full_disk_is_told_from_a_failing_one() {
        let error = |kind: io::ErrorKind| {
            SnapshotStoreError::Write(snapshot::WriteError::Io { action: "write".into(), source: kind.into() })
        };
        assert!(error(io::ErrorKind::StorageFull).is_full());
        assert!(error(io::ErrorKind::QuotaExceeded).is_full());
        assert!(!error(io::ErrorKind::Other).is_full(), "a failed fsync ends the process");
    }
}
