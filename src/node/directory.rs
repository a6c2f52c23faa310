//! A node's directory: held by one process at a time, and with an identity that never changes.
//!
//! ```text
//! identity   who this is: framed (magic "QIDN"), checksummed, fsynced
//! LOCK       held by the running process
//! log/ state/ snapshots/   raft's
//! recovery-*/ before-recovery-*/   see `exchange`
//! restore-stage/   see `restoring`
//! ```
//!
//! Guarantees: two processes never share a directory; a directory that belongs to another name or was emptied of its log is
//! refused. Leaves out: what lies in the other folders (`raft`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backon::{BlockingRetryable as _, ConstantBuilder};
use serde::{Deserialize, Serialize};

use super::exchange;
use crate::codec::framed::{self, FrameError};
use crate::raft::LOG_CHUNK_EXTENSION;
use crate::types::{ClusterId, NodeId};

const MAGIC: [u8; 4] = *b"QIDN";
const VERSION: u8 = 1;

/// The folder that takes what a restore reads. It goes once the new member is whole.
pub(super) const RESTORE_STAGE: &str = "restore-stage";

/// Between two tries for a lock that somebody holds, and how many tries there are behind the first: a second in all.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const LOCK_TRIES: usize = 50;

/// Who a directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster; data of another one is refused.
    pub cluster: ClusterId,
    /// The member; never reused.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Whether the log was ever created. From then on its absence means that votes and entries were lost.
    pub has_log: bool,
}

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The operating system refused.
    #[error("can't {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another process holds it.
    #[error("{0} is in use by another process; stop that one, or name another directory with --data-dir")]
    InUse(PathBuf),
    /// The identity file is damaged or from a newer program.
    #[error("{path}: {source}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// It belongs to a node of another name.
    #[error("{path} belongs to node {found}, not {expected}; give --name {found}, or another --data-dir")]
    OtherName {
        /// The directory.
        path: PathBuf,
        /// The name that was given.
        expected: String,
        /// The name in the identity.
        found: String,
    },
    /// There is an identity, but the log it tells of is gone.
    #[error(
        "{path} has lost its log, and with it the node's votes: node {id} may not run again under its old id; \
         remove this member and add it anew with an empty directory"
    )]
    LogGone {
        /// The directory.
        path: PathBuf,
        /// The node.
        id: NodeId,
    },
    /// There is a log or state, but no identity.
    #[error(
        "{0} holds data but no identity file; restore the file from a backup of the directory, or use an empty one"
    )]
    NoIdentity(PathBuf),
    /// `quorate recover` or `quorate restore` was interrupted while it exchanged the contents.
    #[error(
        "{path} is to become that of a new cluster, and the recovery was not finished; run 'quorate recover --data-dir {path} \
         --as-new-cluster' again, or the same 'quorate restore'"
    )]
    Exchanging {
        /// The directory.
        path: PathBuf,
    },
    /// `quorate restore` was interrupted before it had made anything that could be started.
    #[error(
        "{path} holds a restore that was not finished; run the same 'quorate restore' again, which goes on where it was, or \
         remove the directory"
    )]
    Restoring {
        /// The directory.
        path: PathBuf,
    },
}

impl DirectoryError {
    /// Whether the data is damaged, rather than the way it is used being wrong.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Identity { source, .. } => !matches!(source, FrameError::Newer { .. }),
            Self::LogGone { .. } | Self::NoIdentity(_) => true,
            Self::Io { .. }
            | Self::InUse(_)
            | Self::OtherName { .. }
            | Self::Exchanging { .. }
            | Self::Restoring { .. } => false,
        }
    }
}

/// An open directory. The lock is held until it is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be, readable for this user alone, and locks it.
    ///
    /// # Errors
    /// [`DirectoryError::InUse`], if it is still locked after a second, or [`DirectoryError::Io`].
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let io = |action| move |source| DirectoryError::Io { action, path: path.to_owned(), source };
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let missing: Vec<_> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        builder.recursive(true).create(path).map_err(io("create"))?;
        for folder in missing {
            sync_name(folder).map_err(io("sync the name of"))?;
        }
        let lock_path = path.join("LOCK");
        let lock = File::options().create(true).write(true).truncate(false).open(lock_path).map_err(io("lock"))?;
        // A process that was killed holds it until the kernel is done with it, and one that was just forked to run another
        // program until that begins.
        let patience = ConstantBuilder::new().with_delay(LOCK_PAUSE).with_max_times(LOCK_TRIES);
        let held = |error: &fs::TryLockError| matches!(error, fs::TryLockError::WouldBlock);
        match (|| lock.try_lock()).retry(patience).sleep(std::thread::sleep).when(held).call() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(DirectoryError::InUse(path.to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(io("lock")(source)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the identity and checks it against the name and the other contents; `None` for an empty directory.
    ///
    /// # Errors
    /// [`DirectoryError`], all but `InUse`.
    pub fn identity(&self, name: &str) -> Result<Option<Identity>, DirectoryError> {
        if exchange::unfinished(&self.path)?.is_some() {
            return Err(DirectoryError::Exchanging { path: self.path.clone() });
        }
        if self.path.join(RESTORE_STAGE).exists() {
            return Err(DirectoryError::Restoring { path: self.path.clone() });
        }
        match self.stored_identity()? {
            Some(identity) if identity.name != name => {
                let (expected, found) = (name.to_owned(), identity.name);
                Err(DirectoryError::OtherName { path: self.path.clone(), expected, found })
            }
            Some(identity) => self.with_log(identity).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the identity, of whatever name; `None` for an empty directory.
    pub(super) fn stored_identity(&self) -> Result<Option<Identity>, DirectoryError> {
        let path = self.path.join("identity");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let holds_data = ["log", "state", "snapshots"].iter().any(|room| self.path.join(room).exists());
                return if holds_data { Err(DirectoryError::NoIdentity(self.path.clone())) } else { Ok(None) };
            }
            Err(source) => return Err(DirectoryError::Io { action: "read", path, source }),
        };
        let malformed = |source| DirectoryError::Identity { path: path.clone(), source };
        let (_, body) = framed::open(MAGIC, VERSION, &bytes).map_err(malformed)?;
        postcard::from_bytes(body).map(Some).map_err(|_| malformed(FrameError::Body))
    }

    /// Gives the identity back, unless it tells of a log that is gone.
    pub(super) fn with_log(&self, identity: Identity) -> Result<Identity, DirectoryError> {
        let log = self.path.join("log");
        // Chunks alone: what else lies there holds no vote.
        let is_chunk = |entry: &fs::DirEntry| {
            let chunk = entry.path().extension().is_some_and(|extension| extension == LOG_CHUNK_EXTENSION);
            chunk && entry.metadata().is_ok_and(|meta| meta.len() > 0)
        };
        let log_empty = fs::read_dir(&log)
            .map_or(true, |mut entries| !entries.any(|entry| entry.is_ok_and(|entry| is_chunk(&entry))));
        if identity.has_log && log_empty {
            return Err(DirectoryError::LogGone { path: self.path.clone(), id: identity.id });
        }
        Ok(identity)
    }

    /// Writes the identity; on return it is on disk.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn write_identity(&self, identity: &Identity) -> Result<(), DirectoryError> {
        write_identity(&self.path, identity)?;
        // Again, for a process that was killed between making the directory and syncing its name.
        let failed = |source| DirectoryError::Io { action: "write", path: self.path.join("identity"), source };
        sync_name(&self.path).map_err(failed)
    }
}

/// Writes the identity into a folder; on return it is on disk.
pub(super) fn write_identity(folder: &Path, identity: &Identity) -> Result<(), DirectoryError> {
    let (path, tmp) = (folder.join("identity"), folder.join("identity.tmp"));
    let body = postcard::to_stdvec(identity).expect("plain data into a growing vector can't fail");
    let write = || -> io::Result<()> {
        let mut file = File::create(&tmp)?;
        file.write_all(&framed::seal(MAGIC, VERSION, &body))?;
        file.sync_all()?;
        fs::rename(&tmp, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| DirectoryError::Io { action: "write", path: path.clone(), source })
}

/// Syncs the folder that a directory lies in, so that all of it is not lost with its name. One that may be entered but not
/// read is passed over: it was somebody else who made the directory there.
fn sync_name(path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        Some(_) => Path::new("."),
        None => return Ok(()),
    };
    match File::open(above) {
        Ok(above) => above.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { cluster: ClusterId::new(7), id: NodeId::new(2), name: "n2".into(), has_log: false }
    }

    #[test]
    fn an_identity_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        assert_eq!(directory.identity("n2").unwrap(), None);
        directory.write_identity(&identity()).unwrap();
        assert_eq!(directory.identity("n2").unwrap(), Some(identity()));
    }

    #[test]
    fn a_directory_serves_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::InUse(_))));
        drop(held);
        assert!(Directory::open(dir.path()).is_ok());
    }

    #[test]
    fn a_lock_that_a_dying_process_still_holds_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        let path = dir.path().to_owned();
        let (began, begun) = std::sync::mpsc::sync_channel(0);
        let waiting = std::thread::spawn(move || {
            began.send(()).unwrap();
            Directory::open(&path)
        });
        begun.recv().unwrap();
        drop(held);
        assert!(waiting.join().unwrap().is_ok());
    }

    #[test]
    fn another_name_a_lost_log_and_a_lost_identity_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        directory.write_identity(&Identity { has_log: true, ..identity() }).unwrap();
        assert!(matches!(directory.identity("n3"), Err(DirectoryError::OtherName { .. })));
        assert!(matches!(directory.identity("n2"), Err(DirectoryError::LogGone { .. })));
        fs::create_dir(dir.path().join("log")).unwrap();
        assert!(matches!(directory.identity("n2"), Err(DirectoryError::LogGone { .. })));
        fs::write(dir.path().join("log/end"), "a mark holds no vote").unwrap();
        assert!(matches!(directory.identity("n2"), Err(DirectoryError::LogGone { .. })));
        fs::write(dir.path().join("log/r-0.wal"), "x").unwrap();
        assert!(directory.identity("n2").is_ok());
        fs::remove_file(dir.path().join("identity")).unwrap();
        assert!(matches!(directory.identity("n2"), Err(DirectoryError::NoIdentity(_))));
    }

    #[test]
    fn a_damaged_and_a_newer_identity_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let path = dir.path().join("identity");
        fs::write(&path, b"QIDN?").unwrap();
        assert!(directory.identity("n2").unwrap_err().is_damage());
        fs::write(&path, framed::seal(MAGIC, VERSION + 1, b"")).unwrap();
        let newer = directory.identity("n2").unwrap_err();
        assert!(!newer.is_damage());
        assert!(newer.to_string().contains("format version 2 is newer"), "{newer}");
    }

    #[test]
    fn the_bytes_of_format_one_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let old = framed::seal(MAGIC, 1, b"\x07\x02\x02n2\x00");
        fs::write(dir.path().join("identity"), old).unwrap();
        assert_eq!(directory.identity("n2").unwrap(), Some(identity()));
    }
}
