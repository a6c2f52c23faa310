//! A state machine on an engine in memory, with the log that a crash is recovered from.

use std::sync::Arc;

use bytes::Bytes;

use super::super::*;
use crate::storage::{Engine, Error, MemoryEngine};
use crate::types::{Key, LeaseId, LogIndex, LogPosition, NodeId, Revision, Selector, Term, WallTime};

/// One entry of the log.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Commands(Vec<Command>),
    Blank,
    Membership(Bytes),
}

pub(super) fn position(index: usize) -> LogPosition {
    LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index as u64) }
}

pub(super) fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(Bytes::copy_from_slice(bytes.as_ref())).unwrap()
}

pub(super) fn command(txn: Txn) -> Command {
    Command {
        proposed_at: WallTime::ZERO,
        principal: Principal::Anonymous,
        request: None,
        operation: Operation::Txn(txn),
    }
}

pub(super) fn put_op(name: impl AsRef<[u8]>, value: impl Into<Bytes>) -> TxnOp {
    TxnOp::Put { key: key(name), value: value.into(), lease: LeaseId::ZERO }
}

pub(super) fn put(name: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Command {
    command(Txn { success: vec![put_op(name, value)], ..Txn::default() })
}

pub(super) fn delete(name: impl AsRef<[u8]>) -> Command {
    command(Txn { success: vec![TxnOp::Delete { selector: Selector::Key(key(name)) }], ..Txn::default() })
}

pub(super) fn records(pinned: &PinnedState) -> Vec<VersionedRecord> {
    pinned.records().collect::<Result<_, _>>().unwrap()
}

pub(super) fn hash_of(records: &[VersionedRecord]) -> u128 {
    records.iter().fold(0, |sum, record| sum.wrapping_add(record.hash()))
}

/// See the module. `log[i]` has index `i`.
pub(super) struct Harness {
    pub(super) engine: MemoryEngine,
    pub(super) machine: StateMachine,
    pub(super) log: Vec<Entry>,
}

impl Harness {
    pub(super) fn new() -> Self {
        let engine = MemoryEngine::new();
        let machine = Self::open(&engine);
        Self { engine, machine, log: Vec::new() }
    }

    fn open(engine: &MemoryEngine) -> StateMachine {
        // A cache for a handful of records, so that it also evicts.
        let config = StateConfig { cache_bytes: 4096, ..StateConfig::default() };
        StateMachine::open(Arc::new(engine.clone()), config).unwrap()
    }

    /// Logs, applies and publishes an entry.
    pub(super) fn enter(&mut self, entry: Entry) -> Vec<Outcome> {
        self.log.push(entry);
        let outcomes = Self::apply(&mut self.machine, &self.log, self.log.len() - 1);
        self.machine.publish();
        outcomes
    }

    /// Logs and applies one command.
    pub(super) fn run(&mut self, command: Command) -> Outcome {
        self.enter(Entry::Commands(vec![command])).remove(0)
    }

    /// Logs and applies one command that can't be refused.
    pub(super) fn done(&mut self, command: Command) {
        self.run(command).unwrap();
    }

    fn apply(machine: &mut StateMachine, log: &[Entry], index: usize) -> Vec<Outcome> {
        match &log[index] {
            Entry::Commands(commands) => machine.apply(position(index), commands).unwrap(),
            Entry::Blank => {
                machine.apply_blank(position(index));
                Vec::new()
            }
            Entry::Membership(membership) => {
                machine.apply_membership(position(index), membership.clone());
                Vec::new()
            }
        }
    }

    pub(super) fn checkpoint(&self) -> Result<CheckpointReport, Error> {
        self.machine.checkpointer().run()
    }

    /// Cuts the power, with the first `keep` unflushed batches on the disk, and opens again at the marker.
    pub(super) fn crash(&mut self, keep: usize) {
        self.engine.crash(keep);
        self.machine = Self::open(&self.engine);
    }

    /// Applies what the log has beyond the state, entry by entry.
    pub(super) fn replay(&mut self, mut after_each: impl FnMut(&StateMachine)) {
        let next = self.machine.applied().position.map_or(0, |position| position.index.get() as usize + 1);
        for index in next..self.log.len() {
            Self::apply(&mut self.machine, &self.log, index);
            self.machine.publish();
            after_each(&self.machine);
        }
    }

    pub(super) fn crash_and_replay(&mut self, keep: usize) {
        self.crash(keep);
        self.replay(|_| ());
    }

    pub(super) fn view_at(&self, revision: u64) -> StateView {
        self.machine.reader().view_at(Revision::new(revision)).unwrap()
    }

    /// Copies the state into a new engine, and goes on with that.
    pub(super) fn restore(&mut self) {
        let engine = MemoryEngine::new();
        let pinned = self.machine.pin();
        super::super::load(&engine as &dyn Engine, pinned.applied(), pinned.records()).unwrap();
        self.engine = engine;
        self.machine = Self::open(&self.engine);
    }
}
