//! An archived state, brought to life in an engine of its own: a snapshot is loaded, entries are applied, and the state is
//! compared with what the archive says it was.
//!
//! Guarantees: the same code applies entries as on every member; memory is bounded by checkpoints in between. Leaves out:
//! where files come from (`transfer`), and making a member of the result (`raft`, `node`).

use std::path::Path;
use std::sync::Arc;

use super::segment::StateMark;
use crate::state::snapshot::{SnapshotError, SnapshotMeta, SnapshotReader};
use crate::state::{self, Applied, BatchError, LoadError, LogContent, LogEntry, StateConfig, StateMachine};
use crate::storage::{self, Engine, SledConfig, SledEngine};
use crate::types::LogPosition;

/// Memory for what was applied and is not in the engine yet, in bytes.
const OVERLAY_BYTES: usize = 128 * 1024 * 1024;

/// Why a state can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The snapshot can't be loaded.
    #[error("the snapshot can't be loaded: {0}")]
    Load(#[from] LoadError<SnapshotError>),
    /// The local disk failed.
    #[error("the local engine failed: {0}")]
    Engine(#[from] storage::Error),
    /// An entry does not follow what is applied.
    #[error("entry {entry} does not follow {}", .at.map_or_else(|| "the beginning".to_owned(), |at| at.to_string()))]
    Gap {
        /// What came.
        entry: LogPosition,
        /// What is applied.
        at: Option<LogPosition>,
    },
    /// An entry can't be decoded.
    #[error("the commands of entry {entry} can't be decoded: {source}")]
    Commands {
        /// Which.
        entry: LogPosition,
        /// Why.
        #[source]
        source: BatchError,
    },
}

/// Applies an entry of the log; one that is applied already is passed over, and told by `false`. Runs a checkpoint where
/// there is no room, so it may block on the disk for long.
///
/// # Errors
/// [`ReplayError`].
pub fn apply(machine: &mut StateMachine, entry: &LogEntry) -> Result<bool, ReplayError> {
    let (at, position) = (machine.applied().position, entry.position);
    match at {
        Some(at) if position.index <= at.index => {
            let same = position.index < at.index || position == at;
            return if same { Ok(false) } else { Err(ReplayError::Gap { entry: position, at: Some(at) }) };
        }
        Some(at) if position.index != at.index.next() => {
            return Err(ReplayError::Gap { entry: position, at: Some(at) });
        }
        None if position.index.get() != 0 => return Err(ReplayError::Gap { entry: position, at: None }),
        _ => {}
    }
    if !machine.has_room() {
        machine.checkpointer().run()?;
    }
    match &entry.content {
        LogContent::Blank => machine.apply_blank(position),
        LogContent::Membership(members) => machine.apply_membership(position, members.clone()),
        LogContent::Commands(batch) => {
            let commands = batch.decode().map_err(|source| ReplayError::Commands { entry: position, source })?;
            machine.apply(position, &commands)?;
        }
    }
    Ok(true)
}

/// A state in an engine that is thrown away.
pub struct Replay {
    machine: StateMachine,
}

impl Replay {
    /// Loads a snapshot file into a new engine in `folder`, which must be empty or missing; blocks on the disk.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn load(folder: &Path, snapshot: &Path) -> Result<(Self, SnapshotMeta), ReplayError> {
        let reader = SnapshotReader::open(snapshot).map_err(LoadError::Records)?;
        let meta = reader.meta().clone();
        let applied = Applied {
            position: meta.position,
            revision: meta.revision,
            compacted: meta.compacted,
            membership: meta.membership.clone(),
            hash: meta.hash,
        };
        let engine: Arc<dyn Engine> = Arc::new(SledEngine::open(folder, &SledConfig::default())?);
        state::load(&*engine, &applied, reader)?;
        let machine = StateMachine::open(engine, StateConfig::new(OVERLAY_BYTES, 0))?;
        Ok((Self { machine }, meta))
    }

    /// Applies the next entry, or passes over one that is applied already.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn apply(&mut self, entry: &LogEntry) -> Result<bool, ReplayError> {
        apply(&mut self.machine, entry)
    }

    /// The last entry applied.
    #[must_use]
    pub fn position(&self) -> Option<LogPosition> {
        self.machine.applied().position
    }

    /// What the state amounts to.
    #[must_use]
    pub fn mark(&self) -> StateMark {
        let applied = self.machine.applied();
        StateMark { revision: applied.revision, hash: applied.hash }
    }
}
