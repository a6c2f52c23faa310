//! What can go wrong with a snapshot.
//!
//! Guarantees: each message says what is wrong, where in the file, and what to do; a file that is merely incomplete
//! ([`SnapshotError::Cut`]) is told apart from a damaged one. Leaves out: the path of a file whose contents are bad;
//! who opened it knows.

use std::io;

use super::format::{BLOCK_BYTES_MAX, HEADER_BYTES_MAX};
use crate::types::{Key, Revision};

/// Why a snapshot can't be read. Offsets are in bytes from the beginning of the file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system, or the stream that is read, refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, as a verb with its object.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another kind of file.
    #[error("not a snapshot: it begins with \"{}\"; check the path", .found.escape_ascii())]
    NotASnapshot {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// Written by a newer program.
    #[error(
        "the snapshot has format version {found}, the newest this program reads is {newest}; it needs a newer program"
    )]
    Newer {
        /// The version that was found.
        found: u8,
        /// The newest that can be read.
        newest: u8,
    },
    /// It holds something that this program does not know and that must not be passed over.
    #[error(
        "the snapshot has an unknown section {section} (flags {flags:#06x}) at byte {at_byte}, which must not be left \
         out; it needs a newer program"
    )]
    NewerSection {
        /// The kind of the section.
        section: u16,
        /// The flags of its block.
        flags: u16,
        /// Where the block begins.
        at_byte: u64,
    },
    /// It ends too early, as after an interrupted copy.
    #[error(
        "the snapshot is incomplete: it ends at byte {at_byte}, before its footer; copy it again or use another one"
    )]
    Cut {
        /// Where it ends.
        at_byte: u64,
    },
    /// It is not what was written.
    #[error("the snapshot is damaged at byte {at_byte}: {what}; use another copy")]
    Damaged {
        /// Where: the beginning of the smallest part whose checksum covers the damage.
        at_byte: u64,
        /// What does not fit.
        what: String,
    },
}

/// Why a snapshot can't be written. Nothing stands under the name that was asked for, and the temporary file is gone
/// as far as it could be removed; a file that stood under the name before is untouched unless `Io` says that it was the
/// last step, syncing the folder, that failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E> {
    /// The records could not be had.
    #[error("the records of the snapshot can't be read: {0}")]
    Records(E),
    /// The operating system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, as a verb with its object.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A record does not follow its predecessor.
    #[error(
        "records must rise by revision and the place in it: {next} at revision {next_revision} came behind {last} at \
         revision {last_revision}"
    )]
    Unsorted {
        /// Key of the record before.
        last: Key,
        /// Revision of the record before.
        last_revision: Revision,
        /// Key of the record that was refused.
        next: Key,
        /// Revision of the record that was refused.
        next_revision: Revision,
    },
    /// A record is larger than a block may be.
    #[error("the record of {key} at revision {revision} takes {bytes} bytes; at most {BLOCK_BYTES_MAX} are allowed")]
    RecordTooLarge {
        /// Its key.
        key: Key,
        /// Its revision.
        revision: Revision,
        /// What it takes.
        bytes: usize,
    },
    /// The membership does not fit the header.
    #[error("the header of the snapshot takes {0} bytes; at most {HEADER_BYTES_MAX} are allowed")]
    HeaderTooLarge(usize),
    /// The records are not those that the header tells of.
    #[error("the records do not fit the header of the snapshot: {0}")]
    Mismatch(String),
    /// What was written could not be read back.
    #[error("the snapshot that was just written can't be read back: {0}")]
    ReadBack(#[source] SnapshotError),
    /// What was read back is another snapshot, although a sound one.
    #[error("the snapshot that was just written reads back differently; is another process writing the same file?")]
    ReadBackDiffers,
}

impl SnapshotError {
    pub(super) fn damaged(at_byte: u64, what: impl Into<String>) -> Self {
        Self::Damaged { at_byte, what: what.into() }
    }
}
