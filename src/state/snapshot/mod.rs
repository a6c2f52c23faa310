//! The one snapshot file: the whole state of the store at one revision, with its history, in one checksummed file.
//!
//! It rebuilds a node, brings a follower up to date, is the full backup off-site and what an operator saves.
//! The bytes are described in `docs/formats.md`.
//!
//! Guarantees: [`write()`] leaves either a complete, read-back file under the name asked for or that name as it was; a
//! reader hands out the last record only once the end of the file has been verified against everything before it; a
//! flipped bit, a cut file, a foreign file and a newer format are told apart; no length in a file is believed beyond
//! [`BLOCK_BYTES_MAX`] and [`HEADER_BYTES_MAX`]. Leaves out: which files are kept and when one is made (`raft`), how
//! one travels (`raft`, `backup`), and encryption (`backup`). Reading back goes through the operating system: it proves
//! what was handed over and can be found again under the name, not what a lying disk keeps after a power cut.

mod draft;
mod error;
mod format;
mod reader;
mod tally;
mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Applied, Targets};
use crate::types::{ClusterId, LogPosition, Revision, WallTime};

pub use draft::Draft;
pub use error::{SnapshotError, WriteError};
pub use format::{BLOCK_BYTES_MAX, BLOCK_TARGET_BYTES, FORMAT_VERSION, HEADER_BYTES_MAX};
pub use reader::{SnapshotReader, inspect, verify, verify_stream};
pub use writer::write;

/// What a snapshot is of; stands at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// The cluster whose data it is.
    pub cluster_id: ClusterId,
    /// The last log entry whose effects are in it; `None` if nothing was ever applied.
    pub position: Option<LogPosition>,
    /// The membership as of that entry, in the encoding of whoever replicates; opaque here.
    pub membership: Bytes,
    /// The revision of the store. No record is above it.
    pub revision: Revision,
    /// History below this revision was given up; at most `revision`.
    pub compacted: Revision,
    /// The state hash: the wrapping sum of [`VersionedRecord::hash`](super::VersionedRecord::hash) over all records.
    pub hash: u128,
    /// When it was made. For people: nothing is decided by it.
    pub created_at: WallTime,
    /// The places for backups that are declared.
    #[serde(skip)]
    pub targets: Targets,
}

impl SnapshotMeta {
    /// The state that the snapshot is of, as [`load`](super::load()) wants it.
    #[must_use]
    pub fn applied(&self) -> Applied {
        Applied {
            position: self.position,
            revision: self.revision,
            compacted: self.compacted,
            membership: self.membership.clone(),
            hash: self.hash,
            targets: self.targets.clone(),
        }
    }

    /// What a snapshot of this state says at its beginning.
    #[must_use]
    pub fn of(cluster_id: ClusterId, applied: &Applied, created_at: WallTime) -> Self {
        let Applied { position, revision, compacted, membership, hash, targets } = applied.clone();
        Self { cluster_id, position, membership, revision, compacted, hash, created_at, targets }
    }
}

/// What a complete, verified snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// What it is of.
    pub meta: SnapshotMeta,
    /// Versioned records, deletions among them.
    pub records: u64,
    /// Keys that have a value at the snapshot's revision.
    pub keys: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}
