//! The state at a point of the archive: a snapshot loaded, and the entries behind it applied, as every member has applied them.
//!
//! Guarantees: no clock, no network and no cluster; wherever the archive tells what the state of the cluster amounted to, the
//! state here is the same, hash for hash, or an error; an entry of several commands is applied up to the point and no
//! further; a point that is not reached is an error. Members and their changes are passed over: they are of a cluster that
//! this one is not. Leaves out: where the files come from (`stage`), and what is made of the state.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use super::plan::Target;
use super::segment::StateMark;
use super::stage::StageError;
use crate::state::snapshot::{Draft, SnapshotError, SnapshotReader};
use crate::state::{
    self, BatchError, Checkpointer, Command, LoadError, LogContent, LogEntry, StateConfig, StateMachine,
};
use crate::storage::{self, Engine, SledConfig, SledEngine};
use crate::types::{ClusterId, LogPosition, Revision, WallTime};

/// Steps that were read and wait to be applied; each is at most as large as an entry of the log.
const STEPS_WAITING: usize = 8;

/// Memory of a [`Trial`] for what was applied and is not in its engine yet, in bytes.
const TRIAL_OVERLAY_BYTES: usize = 128 * 1024 * 1024;

/// What is read behind the snapshot, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The next entry.
    Entry(LogEntry),
    /// What the state of the cluster amounted to behind an entry.
    Mark(LogPosition, StateMark),
}

/// How far it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    /// The last entry that was applied, if only in part; of the snapshot if there was none.
    pub position: LogPosition,
    /// The revision of the store.
    pub revision: Revision,
    /// The state hash.
    pub hash: u128,
    /// Entries applied behind the snapshot.
    pub entries: u64,
    /// Commands applied behind the snapshot.
    pub commands: u64,
    /// Commands of the last entry that were left out, because they are behind the point.
    pub left_out: u64,
    /// When the last command was proposed; `None` if there was none behind the snapshot.
    pub last_command_at: Option<WallTime>,
    /// How often the state was compared with that of the cluster, the snapshot's included.
    pub compared: u64,
}

/// Why there is no such state.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The snapshot can't be loaded.
    #[error("can't load the snapshot {}: {source}", .path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<LoadError<SnapshotError>>,
    },
    /// The snapshot is of another cluster.
    #[error("the snapshot {} is of cluster {found}, not {expected}", .path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The cluster that is wanted.
        expected: ClusterId,
        /// The cluster in the file.
        found: ClusterId,
    },
    /// The entries can't be read.
    #[error("{0}")]
    Entries(#[source] Box<StageError>),
    /// Commands can't be read.
    #[error("the commands of entry {index}: {source}")]
    Commands {
        /// The entry.
        index: u64,
        /// What is wrong with them.
        #[source]
        source: BatchError,
    },
    /// An entry is missing, or does not belong to this history.
    #[error("entry {found} does not follow entry {last}: the archive does not hold one history")]
    Unrelated {
        /// The last entry applied.
        last: LogPosition,
        /// What came.
        found: LogPosition,
    },
    /// The state is not that of the cluster.
    #[error(
        "behind entry {position} the state hash is {found:032x} at revision {found_revision}, but was {expected:032x} at \
         revision {expected_revision} in the cluster: the archive does not give the state that it was made from; take an \
         earlier or later point, or another copy, and keep this one to be looked into"
    )]
    Mismatch {
        /// Where.
        position: LogPosition,
        /// The hash here.
        found: u128,
        /// The revision here.
        found_revision: Revision,
        /// The hash that the cluster had.
        expected: u128,
        /// The revision that the cluster had.
        expected_revision: Revision,
    },
    /// The archive ends before the point.
    #[error("{target} is not reached: what is archived without a gap ends at revision {revision}, index {index}")]
    Short {
        /// What was wanted.
        target: Target,
        /// The revision that was reached.
        revision: Revision,
        /// The index that was reached.
        index: u64,
    },
    /// The state can't be kept while it is built.
    #[error("can't build the state: {0}")]
    Storage(#[from] storage::Error),
}

impl RebuildError {
    /// Whether the data is damaged, rather than the machine or the request being at fault.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Snapshot { source, .. } => match &**source {
                LoadError::Engine(_) => false,
                LoadError::Records(error) => !matches!(
                    error,
                    SnapshotError::Io { .. } | SnapshotError::Newer { .. } | SnapshotError::NewerSection { .. }
                ),
                LoadError::NotEmpty | LoadError::OutOfOrder(_) | LoadError::Mismatch { .. } => true,
            },
            Self::Entries(error) => matches!(**error, StageError::Damaged { .. }),
            Self::Commands { source, .. } => !matches!(source, BatchError::Newer(_)),
            Self::Unrelated { .. } | Self::Mismatch { .. } => true,
            Self::OtherCluster { .. } | Self::Short { .. } | Self::Storage(_) => false,
        }
    }
}

/// Loads a snapshot file of this cluster into an empty engine; what it has then only [`replay`] brings to disk for sure
/// (see [`state::fill`]). A file that is begun takes its records over, and is given back.
///
/// # Errors
/// [`RebuildError`].
pub fn load(
    engine: Arc<dyn Engine>,
    config: StateConfig,
    cluster: ClusterId,
    snapshot: &Path,
    copy: Option<Draft>,
) -> Result<(StateMachine, Option<Draft>), RebuildError> {
    let path = || snapshot.to_owned();
    let failed = |source| RebuildError::Snapshot { path: path(), source: Box::new(source) };
    let mut reader = SnapshotReader::open(snapshot).map_err(|error| failed(LoadError::Records(error)))?;
    let meta = reader.meta();
    if meta.cluster_id != cluster {
        return Err(RebuildError::OtherCluster { path: path(), expected: cluster, found: meta.cluster_id });
    }
    let applied = meta.applied();
    if let Some(draft) = copy {
        reader.copy_to(draft);
    }
    state::fill(&*engine, &applied, &mut reader).map_err(failed)?;
    Ok((StateMachine::open(engine, config)?, reader.into_draft()))
}

/// Applies entries up to a point. `seen` hears of each entry, with the bytes of its commands. Blocks, on three threads: one
/// reads, this one applies, one brings to disk what the engine has, and moves what was applied to it.
///
/// # Errors
/// [`RebuildError`]; the machine is of no use then.
pub fn replay(
    machine: &mut StateMachine,
    steps: impl Iterator<Item = Result<Step, StageError>> + Send,
    target: Target,
    mut seen: impl FnMut(usize),
) -> Result<Reached, RebuildError> {
    let checkpointer = machine.checkpointer();
    let (ready, waiting) = mpsc::sync_channel(STEPS_WAITING);
    thread::scope(|scope| {
        scope.spawn(move || {
            for step in steps {
                let step = step.map_err(|error| RebuildError::Entries(Box::new(error))).and_then(decoded);
                // Whoever applies has come to the point, or to an error.
                if ready.send(step).is_err() {
                    break;
                }
            }
        });
        let moving = {
            let closing = Closing(checkpointer.clone());
            scope.spawn(move || {
                closing.0.flush()?;
                while closing.0.wait() {
                    closing.0.run()?;
                }
                Ok::<_, storage::Error>(())
            })
        };
        let closing = Closing(checkpointer);
        let mut replay = Replay::new(target);
        let applied = waiting.iter().try_for_each(|step| match replay.take(machine, step?, &mut seen)? {
            Flow::On => Ok(()),
            Flow::Over => Err(Stopped::There),
        });
        drop(waiting);
        drop(closing);
        // A failure of the disk explains whatever else has failed.
        moving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        match applied {
            Ok(()) | Err(Stopped::There) => replay.finish(machine),
            Err(Stopped::Failed(error)) => Err(error),
        }
    })
}

/// Ends the moving to the engine, and the wait for room there, however the thread ends that has it: by a panic, too.
struct Closing(Checkpointer);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Why no more is applied.
enum Stopped {
    There,
    Failed(RebuildError),
}

impl<E: Into<RebuildError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

enum Flow {
    On,
    Over,
}

/// A step whose commands are decoded.
enum Decoded {
    Entry(LogPosition, Vec<Command>, usize),
    Mark(LogPosition, StateMark),
}

fn decoded(step: Step) -> Result<Decoded, RebuildError> {
    let entry = match step {
        Step::Mark(position, mark) => return Ok(Decoded::Mark(position, mark)),
        Step::Entry(entry) => entry,
    };
    let (commands, bytes) = match &entry.content {
        LogContent::Blank | LogContent::Membership(_) => (Vec::new(), 0),
        LogContent::Commands(batch) => {
            let index = entry.position.index.get();
            (batch.decode().map_err(|source| RebuildError::Commands { index, source })?, batch.len())
        }
    };
    Ok(Decoded::Entry(entry.position, commands, bytes))
}

/// Applies one step after the other.
struct Replay {
    target: Target,
    reached: Reached,
}

impl Replay {
    fn new(target: Target) -> Self {
        // The snapshot's own hash was compared when it was loaded.
        Self { target, reached: Reached { compared: 1, ..Reached::default() } }
    }

    fn take(
        &mut self,
        machine: &mut StateMachine,
        step: Decoded,
        seen: &mut impl FnMut(usize),
    ) -> Result<Flow, RebuildError> {
        match step {
            Decoded::Mark(position, mark) => self.compare(machine, position, mark).map(|()| Flow::On),
            Decoded::Entry(position, commands, bytes) => {
                let last = machine.applied().position.unwrap_or_default();
                if position.index != last.index.next() || position < last {
                    return Err(RebuildError::Unrelated { last, found: position });
                }
                if self.is_over(machine, position) {
                    return Ok(Flow::Over);
                }
                seen(bytes);
                self.apply(machine, position, &commands)
            }
        }
    }

    /// Whether the point lies before this entry.
    fn is_over(&self, machine: &StateMachine, next: LogPosition) -> bool {
        match self.target {
            Target::Latest | Target::Time(_) => false,
            Target::Index(index) => next.index > index,
            Target::Revision(revision) => machine.applied().revision >= revision,
        }
    }

    fn apply(
        &mut self,
        machine: &mut StateMachine,
        position: LogPosition,
        commands: &[Command],
    ) -> Result<Flow, RebuildError> {
        if !machine.wait_for_room() {
            // Why, the thread that makes room tells.
            return Ok(Flow::Over);
        }
        let wanted = match self.target {
            Target::Time(time) => {
                let later = commands.iter().position(|command| command.proposed_at > time);
                later.unwrap_or(commands.len())
            }
            Target::Latest | Target::Index(_) | Target::Revision(_) => commands.len(),
        };
        if wanted == 0 && !commands.is_empty() {
            return Ok(Flow::Over);
        }
        let done = self.apply_commands(machine, position, &commands[..wanted])?;
        self.reached.entries += 1;
        self.reached.commands += done as u64;
        self.reached.left_out = (commands.len() - done) as u64;
        if let Some(last) = commands[..done].last() {
            self.reached.last_command_at = Some(last.proposed_at);
        }
        Ok(if self.reached.left_out > 0 { Flow::Over } else { Flow::On })
    }

    /// Applies commands of one entry, up to the revision if that is what is wanted; tells how many.
    fn apply_commands(
        &self,
        machine: &mut StateMachine,
        position: LogPosition,
        commands: &[Command],
    ) -> Result<usize, RebuildError> {
        if commands.is_empty() {
            machine.apply_blank(position);
            return Ok(0);
        }
        let room = match self.target {
            Target::Revision(wanted) => wanted.get() - machine.applied().revision.get(),
            Target::Latest | Target::Time(_) | Target::Index(_) => u64::MAX,
        };
        // A command makes one revision at most.
        if room >= commands.len() as u64 {
            machine.apply(position, commands)?;
            return Ok(commands.len());
        }
        for (done, command) in commands.iter().enumerate() {
            if self.is_over(machine, position) {
                return Ok(done);
            }
            machine.apply(position, std::slice::from_ref(command))?;
        }
        Ok(commands.len())
    }

    fn compare(&mut self, machine: &StateMachine, position: LogPosition, mark: StateMark) -> Result<(), RebuildError> {
        let applied = machine.applied();
        if applied.position != Some(position) {
            return Ok(());
        }
        self.reached.compared += 1;
        if (applied.revision, applied.hash) == (mark.revision, mark.hash) {
            return Ok(());
        }
        Err(RebuildError::Mismatch {
            position,
            found: applied.hash,
            found_revision: applied.revision,
            expected: mark.hash,
            expected_revision: mark.revision,
        })
    }

    /// Looks whether the point was reached.
    fn finish(mut self, machine: &mut StateMachine) -> Result<Reached, RebuildError> {
        let applied = machine.applied();
        let (position, revision) = (applied.position.unwrap_or_default(), applied.revision);
        let is_there = match self.target {
            Target::Latest | Target::Time(_) => true,
            Target::Index(index) => position.index == index,
            Target::Revision(wanted) => revision == wanted,
        };
        if !is_there {
            return Err(RebuildError::Short { target: self.target, revision, index: position.index.get() });
        }
        (self.reached.position, self.reached.revision, self.reached.hash) = (position, revision, applied.hash);
        machine.publish();
        Ok(self.reached)
    }
}

/// A state that is built to be looked at and thrown away, entry by entry.
pub struct Trial {
    machine: StateMachine,
    replay: Replay,
}

impl Trial {
    /// Loads a snapshot file of this cluster into a new engine in `folder`, which must be empty or missing; blocks on the disk.
    ///
    /// # Errors
    /// [`RebuildError`].
    pub fn load(folder: &Path, cluster: ClusterId, snapshot: &Path) -> Result<Self, RebuildError> {
        let engine = Arc::new(SledEngine::open(folder, &SledConfig::default())?);
        let (machine, _) = load(engine, StateConfig::new(TRIAL_OVERLAY_BYTES, 0), cluster, snapshot, None)?;
        Ok(Self { machine, replay: Replay::new(Target::Latest) })
    }

    /// Applies the next entry; tells by `false` that it was applied already. Runs a checkpoint where there is no room, so it
    /// may block on the disk for long.
    ///
    /// # Errors
    /// [`RebuildError`]; it is of no use then.
    pub fn apply(&mut self, entry: &LogEntry) -> Result<bool, RebuildError> {
        let (last, position) = (self.machine.applied().position.unwrap_or_default(), entry.position);
        if position == last || position.index < last.index {
            return Ok(false);
        }
        if !self.machine.has_room() {
            self.machine.checkpointer().run()?;
        }
        let step = decoded(Step::Entry(entry.clone()))?;
        self.replay.take(&mut self.machine, step, &mut |_| ())?;
        Ok(true)
    }

    /// Compares the state with what the cluster has told of it behind the last entry that was applied; gives that entry.
    ///
    /// # Errors
    /// [`RebuildError::Mismatch`].
    pub fn compare(&mut self, mark: StateMark) -> Result<LogPosition, RebuildError> {
        let position = self.machine.applied().position.unwrap_or_default();
        self.replay.compare(&self.machine, position, mark)?;
        Ok(position)
    }
}

#[cfg(test)]
mod tests;
