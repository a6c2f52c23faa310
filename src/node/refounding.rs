//! Making a stopped member, or a snapshot file, the only member of a new cluster.
//!
//! For the day on which the quorum of the old cluster is lost for good. [`Survivor::open`] takes the directory and looks;
//! [`Survivor::refound`] makes the new log, snapshot and identity beside the old ones and then exchanges them. Guarantees:
//! until everything new is complete and on disk nothing old is touched, and what was there is never removed; after a
//! crash either the old member is as it was, or [`Opened::Unfinished`] goes on to the end. Leaves out: asking the operator
//! (`cli`), and what a log and a snapshot are (`raft`).

use std::path::{Path, PathBuf};

use super::directory::{Directory, DirectoryError, Identity, write_identity};
use super::exchange::{self, Exchange};
use super::forming::random_cluster_id;
use crate::raft::{self, DataSource, Founder, LogConfig, LostEnd, RefoundError, Refounded, Survey};
use crate::types::{ClusterId, LogPosition, Member, NodeId, Wish};

/// The id of a member that is made from a snapshot file: that of the first member of any cluster. Later members get ids
/// that follow from the index of a log entry, so they can't meet it.
pub(super) const FIRST_ID: NodeId = NodeId::new(1);

/// Why a cluster can't be founded anew.
#[derive(Debug, thiserror::Error)]
pub enum RefoundingError {
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is no member in the directory.
    #[error("{0} is not the directory of a member: it has no identity; check the path")]
    NoMember(PathBuf),
    /// The member has never had a log.
    #[error("{0} belongs to a member that never was part of a formed cluster: there is nothing to recover")]
    NeverFormed(PathBuf),
    /// There is something in the directory where a new member is to be.
    #[error("{0} is not empty; name a new or an empty directory with --data-dir")]
    NotEmpty(PathBuf),
    /// Something else than what is wanted now was confirmed and made there, and has not taken its place yet.
    #[error(
        "{path} holds {what} that was not finished; give that command again to finish it, or name another directory with \
         --data-dir"
    )]
    OtherExchange {
        /// The directory.
        path: PathBuf,
        /// What was made there, for people.
        what: String,
    },
    /// The member needs nobody else.
    #[error("{0} is the only voter of its cluster: its quorum is not lost; start it as it is")]
    HasQuorum(String),
    /// What is lost may have been acknowledged, and nobody has said that it may be.
    #[error(
        "the log has lost its end: at byte {} of {} {}; it is whole up to {last}, and writes that were acknowledged may have \
         stood behind that. Better than to give them up: a majority of whole nodes, which this one joins again empty; \
         another node whose last_log is greater; an off-site archive that reaches further ('quorate restore'). Only if \
         there is none of these, go on with --accept-lost-end",
        .end.offset, .end.file.display(), .end.reason
    )]
    LostEnd {
        /// What is missing.
        end: LostEnd,
        /// The last entry that is left.
        last: LogPosition,
    },
    /// Nothing says where the member is reached.
    #[error("{0} is not among the members of its cluster, so nothing says where it is reached; give --peer-addr")]
    NoAddress(String),
    /// The data can't be used.
    #[error(transparent)]
    Data(#[from] RefoundError),
}

impl RefoundingError {
    /// Whether the data is damaged, rather than the way it is used being wrong.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Directory(error) => error.is_damage(),
            Self::Data(error) => error.is_damage(),
            Self::LostEnd { .. } => true,
            Self::NoMember(_)
            | Self::NeverFormed(_)
            | Self::NotEmpty(_)
            | Self::OtherExchange { .. }
            | Self::HasQuorum(_)
            | Self::NoAddress(_) => false,
        }
    }
}

/// What a directory turned out to be.
#[derive(Debug)]
pub enum Opened {
    /// Something to found a cluster anew from.
    Survivor(Box<Survivor>),
    /// An earlier attempt has made all that is new, and was interrupted while it took its place.
    Unfinished(Unfinished),
}

/// A refounding that was confirmed and made, and only has to take its place.
#[derive(Debug)]
pub struct Unfinished {
    pub(super) directory: Directory,
    pub(super) exchange: Exchange,
}

/// Something to found a cluster anew from. Its directory stays locked.
#[derive(Debug)]
pub struct Survivor {
    directory: Directory,
    /// `None` for a snapshot file.
    identity: Option<Identity>,
    survey: Survey,
    log: LogConfig,
}

/// What is decided about the new cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Founding {
    /// Name of its member; taken for a snapshot file only, a survivor keeps its own.
    pub name: String,
    /// Where members reach it; a survivor's own if not given.
    pub peer_addr: Option<String>,
    /// Where clients reach it; a survivor's own if not given.
    pub client_url: Option<String>,
    /// How many revisions are left out.
    pub skipped_revisions: u64,
    /// Whether what the log has lost at its end may be given up.
    pub accept_lost_end: bool,
}

/// A cluster that was founded anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCluster {
    /// Its only member.
    pub founder: Founder,
    /// What it has; `None` where an earlier attempt made it.
    pub made: Option<Refounded>,
    /// Where the old data lies now, if there was any.
    pub aside: Option<PathBuf>,
}

impl Survivor {
    /// Takes the directory of a stopped member and looks what is there. Blocks on the disk for a while.
    ///
    /// # Errors
    /// [`RefoundingError`]; nothing is changed.
    pub async fn open(data_dir: &Path, log: LogConfig) -> Result<Opened, RefoundingError> {
        // Opening makes what is not there.
        let has_identity = data_dir.join("identity").is_file();
        if !data_dir.is_dir() || !(has_identity || exchange::unfinished(data_dir)?.is_some()) {
            return Err(RefoundingError::NoMember(data_dir.to_owned()));
        }
        let directory = Directory::open(data_dir)?;
        if let Some(exchange) = exchange::unfinished(data_dir)? {
            return Ok(Opened::Unfinished(Unfinished { directory, exchange }));
        }
        let identity = directory.stored_identity()?.ok_or_else(|| RefoundingError::NoMember(data_dir.to_owned()))?;
        if !identity.has_log {
            return Err(RefoundingError::NeverFormed(data_dir.to_owned()));
        }
        let identity = directory.with_log(identity)?;
        let source = DataSource::Member { dir: data_dir.to_owned(), cluster: identity.cluster };
        let survey = raft::survey(source, log.clone()).await?;
        Ok(Opened::Survivor(Box::new(Self { directory, identity: Some(identity), survey, log })))
    }

    /// Reads a snapshot file to its end; what is made of it goes into a directory that is empty or not there yet.
    ///
    /// # Errors
    /// [`RefoundingError`]; nothing is changed but that the directory may have been made.
    pub async fn open_file(file: &Path, data_dir: &Path, log: LogConfig) -> Result<Opened, RefoundingError> {
        let survey = raft::survey(DataSource::File(file.to_owned()), log.clone()).await?;
        let directory = Directory::open(data_dir)?;
        if let Some(exchange) = exchange::unfinished(data_dir)? {
            return Ok(Opened::Unfinished(Unfinished { directory, exchange }));
        }
        let names = exchange::names(data_dir)?;
        if names.iter().any(|name| !exchange::means_nothing(name)) {
            return Err(RefoundingError::NotEmpty(data_dir.to_owned()));
        }
        Ok(Opened::Survivor(Box::new(Self { directory, identity: None, survey, log })))
    }

    /// What there is.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Which member it is, what the others know of it, and whether it votes; `None` for a snapshot file, and for a survivor
    /// that is no member of its cluster any more.
    #[must_use]
    pub fn member(&self) -> Option<&(NodeId, Member, bool)> {
        let id = self.identity.as_ref()?.id;
        self.survey.members.iter().find(|(member, ..)| *member == id)
    }

    /// Whose directory it is; `None` for a snapshot file.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Who is not part of the new cluster.
    pub fn cut_off(&self) -> impl Iterator<Item = &(NodeId, Member, bool)> {
        let me = self.identity.as_ref().map(|identity| identity.id);
        self.survey.members.iter().filter(move |(id, ..)| Some(*id) != me)
    }

    /// Whether its quorum can't be lost, because it needs nobody else's vote and has a log to vote with.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        let votes = self.member().is_some_and(|(.., voter)| *voter);
        votes && self.survey.lost_end.is_none() && !self.cut_off().any(|(.., voter)| *voter)
    }

    /// Tells before anything is made whether it may be, as far as that can be known.
    ///
    /// # Errors
    /// [`RefoundingError::HasQuorum`], [`RefoundingError::LostEnd`].
    pub fn permits(&self, founding: &Founding) -> Result<(), RefoundingError> {
        if self.has_quorum() {
            return Err(RefoundingError::HasQuorum(self.name(founding).to_owned()));
        }
        match &self.survey.lost_end {
            Some(end) if !founding.accept_lost_end => {
                Err(RefoundingError::LostEnd { end: end.clone(), last: self.survey.last })
            }
            _ => Ok(()),
        }
    }

    /// Founds the new cluster. Takes as long as the data is large.
    ///
    /// # Errors
    /// [`RefoundingError`]. With [`RefoundingError::Directory`] the exchange may have begun; opening the directory again
    /// tells.
    pub async fn refound(&self, founding: &Founding) -> Result<NewCluster, RefoundingError> {
        let (founder, made, exchange) = self.prepare(founding).await?;
        exchange.finish()?;
        Ok(NewCluster { founder, made: Some(made), aside: put_aside(&exchange) })
    }

    /// Makes all that is new, without touching what is there.
    async fn prepare(&self, founding: &Founding) -> Result<(Founder, Refounded, Exchange), RefoundingError> {
        self.permits(founding)?;
        let founder = self.founder(founding)?;
        let preparation = exchange::begin(self.directory.path())?;
        let place = preparation.path();
        let made = raft::refound(&self.survey, &founder, founding.skipped_revisions, &place, self.log.clone());
        let made = made.await.inspect_err(|_| {
            // Only to free the space: the next attempt does it, too.
            let _ = std::fs::remove_dir_all(&place);
        })?;
        let (cluster, id, name) = (founder.cluster, founder.id, founder.member.name.clone());
        write_identity(&place, &Identity { cluster, id, name, has_log: true })?;
        Ok((founder, made, preparation.complete()?))
    }

    fn name<'a>(&'a self, founding: &'a Founding) -> &'a str {
        self.identity.as_ref().map_or(&founding.name, |identity| &identity.name)
    }

    /// The new cluster's only member: what was known of it before, with what was decided anew.
    fn founder(&self, founding: &Founding) -> Result<Founder, RefoundingError> {
        let name = self.name(founding).to_owned();
        let id = self.identity.as_ref().map_or(FIRST_ID, |identity| identity.id);
        let known = self.member().map(|(_, member, _)| member.clone()).unwrap_or_default();
        let peer_addr = founding.peer_addr.clone().unwrap_or_else(|| known.peer_addr.clone());
        if peer_addr.is_empty() {
            return Err(RefoundingError::NoAddress(name));
        }
        let client_url = founding.client_url.clone().unwrap_or_else(|| known.client_url.clone());
        // What was to become of it in the old cluster is over.
        let member = Member { name, peer_addr, client_url, wish: Wish::Stay, ..known };
        Ok(Founder { cluster: another_cluster(self.survey.cluster), id, member })
    }
}

impl Unfinished {
    /// Goes on to the end.
    ///
    /// # Errors
    /// [`RefoundingError::Directory`]; it can be tried again.
    pub fn finish(self) -> Result<NewCluster, RefoundingError> {
        super::restoring::remove_stage(self.directory.path())?;
        self.exchange.finish()?;
        let path = self.directory.path();
        let identity = self.directory.stored_identity()?.ok_or_else(|| RefoundingError::NoMember(path.to_owned()))?;
        let member = Member { name: identity.name, ..Member::default() };
        let founder = Founder { cluster: identity.cluster, id: identity.id, member };
        Ok(NewCluster { founder, made: None, aside: put_aside(&self.exchange) })
    }
}

fn put_aside(exchange: &Exchange) -> Option<PathBuf> {
    Some(exchange.aside()).filter(|aside| aside.exists())
}

/// A cluster id as a forming draws one, but not `old`.
pub(super) fn another_cluster(old: ClusterId) -> ClusterId {
    loop {
        let drawn = random_cluster_id();
        if drawn != old {
            return drawn;
        }
    }
}

#[cfg(test)]
mod tests;
