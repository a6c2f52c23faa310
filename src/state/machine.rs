//! The single writer: applies log entries in order.
//!
//! Guarantees: the same entries give the same outcomes, revision and hash on every replica and after every crash, whatever
//! was checkpointed when; nothing here reads a clock, a random number or the environment. What was applied is seen by
//! readers from [`StateMachine::publish`] on. Leaves out: the order of entries, which is `raft/`'s.

use std::sync::Arc;

use bytes::Bytes;

use super::checkpoint::Checkpointer;
use super::command::{Command, Operation, Outcome, Reply};
use super::pinned::PinnedState;
use super::reader::StateReader;
use super::schema::Applied;
use super::store::Store;
use super::txn;
use crate::storage::{Engine, Error};
use crate::types::{LogPosition, Revision};

/// How much memory the state takes. None of it changes what is answered.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// A checkpoint is wanted once what was applied since the last one takes this much, in bytes.
    pub overlay_bytes_soft: usize,
    /// Nothing more should be applied once the overlay takes this much, in bytes. At least the soft limit.
    pub overlay_bytes_hard: usize,
    /// The cache of newest values, in bytes; 0 for none.
    pub cache_bytes: usize,
}

/// The part of the overlay's memory at which a checkpoint begins. A larger one would write less in all, since a checkpoint
/// writes every page that holds the pointer of a changed key; but what comes in meanwhile must have room.
const CHECKPOINT_PART: usize = 4;

impl StateConfig {
    /// With so many bytes for the overlay and for the cache of newest values.
    #[must_use]
    pub fn new(overlay_bytes: usize, cache_bytes: usize) -> Self {
        Self { overlay_bytes_soft: overlay_bytes / CHECKPOINT_PART, overlay_bytes_hard: overlay_bytes, cache_bytes }
    }
}

impl Default for StateConfig {
    /// 256 MiB for the overlay, 64 MiB for newest values.
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self::new(256 * MIB, 64 * MIB)
    }
}

/// The replicated state machine.
pub struct StateMachine {
    store: Arc<Store>,
    applied: Applied,
}

impl StateMachine {
    /// The state as of the engine's durable marker; the empty state if there is none. What the engine holds from above
    /// the marker (a checkpoint was interrupted) stays out of sight until it is applied again.
    ///
    /// # Errors
    /// The disk failed, or the marker is damaged or from an older or newer program.
    pub fn open(engine: Arc<dyn Engine>, mut config: StateConfig) -> Result<Self, Error> {
        let applied = Applied::of(&*engine)?.unwrap_or_default();
        // Below the soft limit no checkpoint would ever make room.
        config.overlay_bytes_hard = config.overlay_bytes_hard.max(config.overlay_bytes_soft);
        Ok(Self { store: Arc::new(Store::new(engine, config, &applied)), applied })
    }

    /// The state behind the last entry applied.
    #[must_use]
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Applies one entry of commands, in order; each that changes something takes the next revision.
    ///
    /// # Errors
    /// The local disk failed. The machine is of no use then: drop it, and open the engine again.
    pub fn apply(&mut self, position: LogPosition, commands: &[Command]) -> Result<Vec<Outcome>, Error> {
        let mut outgrown = false;
        let mut outcomes = Vec::with_capacity(commands.len());
        let mut boundary = self.store.boundary.lock();
        for command in commands {
            let outcome = match &command.operation {
                Operation::Txn(txn) => txn::execute(&self.store, txn, self.applied.revision)?,
                Operation::Target(change) => {
                    outcomes.push(self.applied.targets.apply(change).map(|()| Reply::Target));
                    continue;
                }
            };
            outcomes.push(outcome.map(|done| {
                self.applied.revision = done.reply.revision;
                for record in &done.records {
                    self.applied.hash = self.applied.hash.wrapping_add(record.hash());
                }
                if !done.records.is_empty() {
                    outgrown |= self.store.insert(done.records);
                }
                Reply::Txn(done.reply)
            }));
        }
        self.applied.position = Some(position);
        boundary.clone_from(&self.applied);
        drop(boundary);
        if outgrown {
            // Empty, but needed: the checkpointer looks at the size and goes to sleep under this lock.
            drop(self.store.signal.lock());
            self.store.signalled.notify_all();
        }
        Ok(outcomes)
    }

    /// Applies an entry that changes nothing.
    pub fn apply_blank(&mut self, position: LogPosition) {
        self.applied.position = Some(position);
        self.store.boundary.lock().clone_from(&self.applied);
    }

    /// Applies a change of membership.
    pub fn apply_membership(&mut self, position: LogPosition, membership: Bytes) {
        self.applied.position = Some(position);
        self.applied.membership = membership;
        self.store.boundary.lock().clone_from(&self.applied);
    }

    /// Goes on counting from a later revision, and gives up history below it: for the state of another cluster, so that no
    /// revision means two things. Nothing changes if it is not later.
    pub fn skip_to(&mut self, revision: Revision) {
        if revision > self.applied.revision {
            (self.applied.revision, self.applied.compacted) = (revision, revision);
            self.store.boundary.lock().clone_from(&self.applied);
        }
    }

    /// Makes everything applied so far visible to readers, at once.
    pub fn publish(&mut self) -> Arc<Applied> {
        let applied = Arc::new(self.applied.clone());
        self.store.published.store(Arc::clone(&applied));
        applied
    }

    /// Whether the overlay is below its hard limit. If not, apply nothing before a checkpoint has made room
    /// ([`Self::wait_for_room`]).
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.store.overlay_bytes() < self.store.config.overlay_bytes_hard
    }

    /// Blocks until there is room; `false` if no checkpoint will follow, because the checkpointer was closed.
    #[must_use]
    pub fn wait_for_room(&self) -> bool {
        let mut signal = self.store.signal.lock();
        while !self.has_room() {
            if signal.closed {
                return false;
            }
            self.store.signalled.wait(&mut signal);
        }
        true
    }

    /// A door for readers.
    #[must_use]
    pub fn reader(&self) -> StateReader {
        StateReader::new(Arc::clone(&self.store))
    }

    /// What moves the overlay to the engine; wants a thread of its own.
    #[must_use]
    pub fn checkpointer(&self) -> Checkpointer {
        Checkpointer::new(Arc::clone(&self.store))
    }

    /// The state as of [`Self::applied`] now. It stays exact while writes go on and across checkpoints.
    #[must_use]
    pub fn pin(&self) -> PinnedState {
        PinnedState::new(Arc::clone(&self.store), self.applied.clone())
    }
}
