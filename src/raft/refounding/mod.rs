//! Founding a cluster anew out of what one member has, once the quorum of the old one is lost for good.
//!
//! It works on the truth alone: the log and the snapshot files of a stopped member, or one snapshot file. The state engine
//! is a checkpoint of these and is not looked at. [`survey`] reads and counts; [`refound`] makes log, snapshot and engine of
//! the new cluster's only member, in a folder of its own:
//!
//! * **Every entry of the log is applied**, also those behind the committed mark: the mark lags, and an entry that is on
//!   this disk may have been acknowledged. So writes may come to be whose callers were never told that they were done;
//!   none that this member has goes missing.
//! * **One entry more**, which stands in no log, sets the membership: the new member alone. Its term is above all that this
//!   member has voted in, its index right behind the last one, so that indexes never go back. The snapshot ends with it and
//!   the log begins behind it; the vote is the member's own of that term, not granted by anybody.
//! * **Revisions are left out**: those that the lost entries may have had, so that no revision means two things. Watches
//!   and compare-and-set of clients that have seen more than this member can't be fooled then. As history must not have a
//!   hole, it is given up below the new revision (etcd's `--bump-revision --mark-compacted`).
//! * **The cluster id is another one.** Messages, snapshots and identities of the old cluster are refused by it.
//!
//! A state that was rebuilt from the off-site archive is made into a cluster in the same way ([`found`]).
//!
//! The log may have lost its end: it is read up to there, and the survey tells.
//!
//! Guarantees: the source stays as it is, but for what every start does to a log (a tail that a crash left unfinished is
//! cut off; of a log whose end is lost it is put into a file beside it); what was made is complete, read back and synced on return. Leaves out: the identity and the exchange of the
//! old for the new (`node::refounding`), and whether it is wise (`cli`).

mod build;
mod source;
#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::path::{Path, PathBuf};

use super::log_store::{LogError, LostEnd};
use super::membership::MembershipError;
use super::snapshot_store::SnapshotStoreError;
use crate::state::LoadError;
use crate::state::snapshot::{SnapshotError, WriteError};
use crate::storage;
use crate::types::{ClusterId, LogPosition, Member, NodeId, Revision, Term, WallTime};

pub use build::{begin_snapshot, first_engine, found, refound};
pub use source::survey;

/// Where the data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// The log and the snapshots of a stopped member, whose directory the caller holds.
    Member {
        /// The member's directory.
        dir: PathBuf,
        /// The cluster in its identity.
        cluster: ClusterId,
    },
    /// A snapshot file.
    File(PathBuf),
}

/// What there is to found a cluster anew from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Where it lies.
    pub source: DataSource,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The snapshot that is begun with; `None` if the log reaches back to its first entry.
    pub snapshot: Option<SurveyedSnapshot>,
    /// The last entry that is marked as committed. The mark lags.
    pub committed: Option<LogPosition>,
    /// The last entry. Of two survivors the one whose last entry is greater has more: by term, then leader, then index.
    pub last: LogPosition,
    /// What the log has lost behind the last entry; writes that were acknowledged may have been there. What it had said there
    /// to drop, entries that another leader had replaced, is found again.
    pub lost_end: Option<LostEnd>,
    /// The greatest term that was seen here.
    pub term: Term,
    /// What the log holds behind the snapshot.
    pub logged: Counted,
    /// What of that is behind the committed mark.
    pub doubtful: Counted,
    /// When the last command in the log was proposed, on the clock of the leader of that time; `None` if there is none
    /// behind the snapshot.
    pub last_command_at: Option<WallTime>,
    /// The members as of the last entry: id, what is known of it, whether it votes.
    pub members: Vec<(NodeId, Member, bool)>,
}

impl Survey {
    /// The revision of the store behind the last entry is not above this one: a command makes one at most.
    #[must_use]
    pub fn revision_max(&self) -> Revision {
        let begun = self.snapshot.as_ref().map_or(0, |file| file.revision.get());
        Revision::new(begun + self.logged.commands)
    }
}

/// A snapshot file that was read to its end and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyedSnapshot {
    /// Where it lies.
    pub path: PathBuf,
    /// The last entry in it.
    pub position: LogPosition,
    /// The revision of the store in it.
    pub revision: Revision,
    /// When it was written.
    pub created_at: WallTime,
}

/// How much of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Entries, those without commands among them.
    pub entries: u64,
    /// Commands of clients.
    pub commands: u64,
}

/// The only member of the new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    /// The new cluster; never the old one.
    pub cluster: ClusterId,
    /// Its id.
    pub id: NodeId,
    /// Its name and where it is reached.
    pub member: Member,
}

/// From which revision on the new cluster counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raise {
    /// So many above what the data has; with 0 history stays.
    By(u64),
    /// From this one, if the data has not passed it.
    To(Revision),
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refounded {
    /// The last entry of the new snapshot, which set the membership.
    pub position: LogPosition,
    /// The revision of the store before some were left out.
    pub revision_before: Revision,
    /// The revision from which on the new cluster counts.
    pub revision: Revision,
    /// Keys that have a value.
    pub keys: u64,
    /// Size of the snapshot file in bytes.
    pub snapshot_bytes: u64,
}

/// Why there is nothing to found a cluster from, or it can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RefoundError {
    /// The log can't be opened or read, or the new one not be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A snapshot file can't be read.
    #[error("{}: {source}", .path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SnapshotStoreError,
    },
    /// Entries are gone from the log and no whole snapshot covers them.
    #[error(
        "the log begins behind entry {purged}, and no whole snapshot file reaches that far; take another survivor, or a \
         saved snapshot with --from"
    )]
    Unrecoverable {
        /// The last entry that is gone.
        purged: u64,
    },
    /// There is neither an entry nor a snapshot.
    #[error("there is no data: neither an entry in the log nor a snapshot")]
    Empty,
    /// An entry of the log is missing or can't be understood.
    #[error("entry {index} of the log {reason}")]
    Entry {
        /// Which.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not what was looked at.
    #[error("the data has changed since it was looked at; is something else at work on it? Run the command again")]
    Changed,
    /// A membership can't be decoded.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The snapshot can't be loaded.
    #[error("can't load the snapshot: {0}")]
    Load(#[from] LoadError<SnapshotError>),
    /// The state can't be kept while it is built.
    #[error("can't build the state: {0}")]
    Storage(#[from] storage::Error),
    /// The new snapshot can't be written.
    #[error("can't write the snapshot: {0}")]
    Write(#[from] WriteError<storage::Error>),
    /// So many revisions can't be left out.
    #[error("the revision would be {revision} with {skipped} left out; it must stay below 2^53: leave out fewer")]
    Revision {
        /// The revision of the data.
        revision: Revision,
        /// How many were to be left out.
        skipped: u64,
    },
    /// The operating system refused.
    #[error("can't {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl RefoundError {
    /// Whether the data is damaged, rather than the machine or the request being at fault.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Log(error) => error.is_damage(),
            Self::Snapshot { source, .. } => match source {
                SnapshotStoreError::File(error) => {
                    use SnapshotError::{Cut, Damaged, NotASnapshot};
                    matches!(error, Damaged { .. } | Cut { .. } | NotASnapshot { .. })
                }
                SnapshotStoreError::Membership(MembershipError::Malformed(_)) => true,
                _ => false,
            },
            Self::Membership(error) => matches!(error, MembershipError::Malformed(_)),
            Self::Unrecoverable { .. } | Self::Entry { .. } => true,
            Self::Load(error) => !matches!(error, LoadError::Engine(_)),
            Self::Empty
            | Self::Changed
            | Self::Storage(_)
            | Self::Write(_)
            | Self::Revision { .. }
            | Self::Io { .. } => false,
        }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
