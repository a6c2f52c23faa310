//! Making an empty directory the only member of a new cluster, out of what was fetched from an off-site archive.
//!
//! What is read lies in `restore-stage/` meanwhile. Everything new is made beside it and then takes its place as in a
//! recovery, the identity last. Guarantees: a directory that holds anything else is refused and left as it is; as long as a
//! restore is unfinished no node starts in its directory; one that was interrupted goes on with what it had fetched. Leaves
//! out: what is fetched and applied (`backup`), and what a log and a snapshot are (`raft`).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, DirectoryError, Identity, RESTORE_STAGE, write_identity};
use super::exchange::{self, Exchange};
use super::refounding::{FIRST_ID, RefoundingError, Unfinished, another_cluster};
use crate::backup::plan::Target;
use crate::backup::rebuild::{self, Reached, RebuildError};
use crate::backup::stage::Staged;
use crate::raft::{self, Founder, LogConfig, Raise, RefoundError, Refounded};
use crate::state::snapshot::Draft;
use crate::state::{StateConfig, StateMachine};
use crate::storage::{self, SledConfig, SledEngine};
use crate::types::{ClusterId, Member};

/// Memory for building a state, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct BuildMemory {
    /// For pages of the state: those that were read.
    read: usize,
    /// Those that were written.
    written: u64,
    /// For what was applied and is not in the state on disk yet.
    overlay: usize,
    /// For newest values.
    values: usize,
}

impl BuildMemory {
    /// Where nothing else matters.
    pub const AMPLE: Self = Self { read: 64 << 20, written: 512 << 20, overlay: 512 << 20, values: 64 << 20 };

    /// Beside a node that serves.
    pub const SPARING: Self = Self { read: 16 << 20, written: 64 << 20, overlay: 64 << 20, values: 8 << 20 };
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The archive does not give a state.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// No member can be made of the state.
    #[error(transparent)]
    Found(#[from] RefoundError),
    /// The state can't be kept while it is built.
    #[error("can't build the state: {0}")]
    Storage(#[from] storage::Error),
}

impl RestoreError {
    /// Whether the data is damaged, rather than the machine or the request being at fault.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Directory(error) => error.is_damage(),
            Self::Rebuild(error) => error.is_damage(),
            Self::Found(error) => error.is_damage(),
            Self::Storage(_) => false,
        }
    }
}

/// What a directory turned out to be.
#[derive(Debug)]
pub enum Restorable {
    /// It is empty, but for what an earlier attempt may have fetched.
    Empty(Emptied),
    /// An earlier attempt has made all that is new, and was interrupted while it took its place.
    Unfinished(Unfinished),
}

/// A directory without a member. It stays locked.
#[derive(Debug)]
pub struct Emptied(Directory);

/// A cluster that was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its only member.
    pub founder: Founder,
    /// What it has.
    pub made: Refounded,
    /// The point of the archive that it goes on from.
    pub reached: Reached,
}

impl Emptied {
    /// Takes a directory that is empty, or not there yet, or holds a restore that was not finished.
    ///
    /// # Errors
    /// [`RefoundingError`]; nothing is changed but that the directory may have been made.
    pub fn open(data_dir: &Path) -> Result<Restorable, RefoundingError> {
        let directory = Directory::open(data_dir)?;
        if let Some(exchange) = exchange::unfinished(data_dir)? {
            return Ok(Restorable::Unfinished(Unfinished { directory, exchange }));
        }
        let known = |name: &String| name == RESTORE_STAGE || exchange::means_nothing(name);
        if exchange::names(data_dir)?.iter().all(known) {
            return Ok(Restorable::Empty(Self(directory)));
        }
        Err(RefoundingError::NotEmpty(data_dir.to_owned()))
    }

    /// Where to put what is read.
    #[must_use]
    pub fn stage(&self) -> PathBuf {
        self.0.path().join(RESTORE_STAGE)
    }

    /// Founds the cluster. Its member is known to others as `member`; `seen` hears of the bytes of the log that were applied.
    /// Takes as long as the data is large.
    ///
    /// # Errors
    /// [`RestoreError`]; what was fetched stays. With [`RestoreError::Directory`] the new member may be complete; opening the
    /// directory again tells.
    pub async fn restore(
        self,
        staged: Staged,
        target: Target,
        member: Member,
        raise: Raise,
        seen: impl Fn(usize) + Send + 'static,
    ) -> Result<Restored, RestoreError> {
        self.restore_within(BuildMemory::AMPLE, staged, target, member, raise, seen).await
    }

    /// As [`Self::restore`], with so much memory.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn restore_within(
        self,
        memory: BuildMemory,
        staged: Staged,
        target: Target,
        member: Member,
        raise: Raise,
        seen: impl Fn(usize) + Send + 'static,
    ) -> Result<Restored, RestoreError> {
        let note = Request::new(staged.cluster, target, &member.name).encode();
        let founder = Founder { cluster: another_cluster(staged.cluster), id: FIRST_ID, member };
        let preparation = exchange::begin(self.0.path())?;
        let place = preparation.path();
        let made = make(memory, staged, target, &founder, raise, &place, seen).await.inspect_err(|_| {
            // Only to free the space: the next attempt does it, too.
            let _ = fs::remove_dir_all(&place);
        });
        let (made, reached) = made?;
        let Founder { cluster, id, member: Member { name, .. } } = founder.clone();
        write_identity(&place, &Identity { cluster, id, name, has_log: true })?;
        preparation.write_note(&note)?;
        self.take_place(&preparation.complete()?)?;
        Ok(Restored { founder, made, reached })
    }

    /// From here on only the way forward is left: what was fetched may go, and must before there is an identity.
    fn take_place(&self, exchange: &Exchange) -> Result<(), RestoreError> {
        remove_stage(self.0.path())?;
        Ok(exchange.finish()?)
    }
}

/// What a restore was asked for; kept beside what it made until that has taken its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    /// The cluster that was archived.
    cluster: u64,
    /// The point, for people.
    target: String,
    /// The new member.
    name: String,
}

impl Request {
    fn new(cluster: ClusterId, target: Target, name: &str) -> Self {
        Self { cluster: cluster.get(), target: target.to_string(), name: name.to_owned() }
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts can always be written")
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, target, name } = self;
        write!(f, "a restore of cluster {cluster} to {target} as {name} ('quorate restore')")
    }
}

impl Unfinished {
    /// Whether it comes from a recovery, or the restore of a file, which is one.
    ///
    /// # Errors
    /// [`RefoundingError::OtherExchange`] if it comes from a restore of an archive: only that command knows to which point.
    pub fn is_recovery(&self) -> Result<(), RefoundingError> {
        let made: Option<Request> = self.exchange.note()?.and_then(|note| serde_json::from_slice(&note).ok());
        match made {
            None => Ok(()),
            Some(made) => Err(self.is_of_another(made.to_string())),
        }
    }

    fn is_of_another(&self, what: String) -> RefoundingError {
        RefoundingError::OtherExchange { path: self.directory.path().to_owned(), what }
    }

    /// Whether it comes from a restore of this cluster to this point as a member of this name.
    ///
    /// # Errors
    /// [`RefoundingError::OtherExchange`] if not, and if it comes from a recovery.
    pub fn is_restore_of(&self, cluster: ClusterId, target: Target, name: &str) -> Result<(), RefoundingError> {
        let made: Option<Request> = self.exchange.note()?.and_then(|note| serde_json::from_slice(&note).ok());
        let what = match made {
            Some(made) if made == Request::new(cluster, target, name) => return Ok(()),
            Some(made) => made.to_string(),
            None => "a recovery ('quorate recover', or 'quorate restore' of a file)".to_owned(),
        };
        Err(self.is_of_another(what))
    }
}

/// Removes what was fetched, if there is anything.
pub(super) fn remove_stage(data_dir: &Path) -> Result<(), DirectoryError> {
    let path = data_dir.join(RESTORE_STAGE);
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(DirectoryError::Io { action: "remove", path, source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Builds the state where the new member will have it, and makes the rest of the member.
async fn make(
    memory: BuildMemory,
    staged: Staged,
    target: Target,
    founder: &Founder,
    raise: Raise,
    place: &Path,
    seen: impl Fn(usize) + Send + 'static,
) -> Result<(Refounded, Reached), RestoreError> {
    let (engine, draft) = (raft::first_engine(place)?, raft::begin_snapshot(place)?);
    let building = tokio::task::spawn_blocking(move || build(memory, &staged, target, &engine, Some(draft), seen));
    let built = building.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let (machine, draft, reached) = built;
    let draft = draft.expect("it was given, and all was read");
    let made = raft::found(machine, draft, founder, raise, place, LogConfig::default()).await?;
    Ok((made, reached))
}

/// The state at a point of the archive, in a store of its own below `folder`. `seen` hears of the bytes of the log that were
/// applied. Blocks on the disk for as long as the data is large.
///
/// # Errors
/// [`RestoreError`].
pub fn state_at(
    staged: &Staged,
    target: Target,
    folder: &Path,
    seen: impl Fn(usize),
) -> Result<(StateMachine, Reached), RestoreError> {
    build(BuildMemory::AMPLE, staged, target, folder, None, seen).map(|(machine, _, reached)| (machine, reached))
}

/// As [`state_at`]; a snapshot file that is begun takes over what the state begins with, and is given back.
fn build(
    memory: BuildMemory,
    staged: &Staged,
    target: Target,
    folder: &Path,
    draft: Option<Draft>,
    seen: impl Fn(usize),
) -> Result<(StateMachine, Option<Draft>, Reached), RestoreError> {
    let config = SledConfig { cache_bytes: memory.read, pinned_bytes: memory.written, ..SledConfig::default() };
    let engine = Arc::new(SledEngine::open(folder, &config)?);
    let state = StateConfig::new(memory.overlay, memory.values);
    let (mut machine, draft) = rebuild::load(engine, state, staged.cluster, &staged.snapshot, draft)?;
    let reached = rebuild::replay(&mut machine, staged.steps(), target, seen)?;
    Ok((machine, draft, reached))
}

#[cfg(test)]
mod tests;
