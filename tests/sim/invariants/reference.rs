//! What the committed log comes to: the product's state machine, fed with it entry by entry, by one hand and without faults.
//!
//! Guarantees: outcome, revision and hash behind every committed entry, and the state at every revision. No write is applied
//! twice: a request id stands in the committed log once at most. Leaves out: whether the state machine itself is right,
//! which its golden scripts and its model test hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate::raft::types::Payload;
use quorate::state::{Reply, StateConfig, StateMachine, StateView, TxnReply};
use quorate::storage::MemoryEngine;
use quorate::types::{LogPosition, Revision};

use super::Violation;
use super::chosen::Chosen;

/// A write in the committed log.
pub(crate) struct Applied {
    pub(crate) index: u64,
    /// `None` if the state machine refused it.
    pub(crate) reply: Option<TxnReply>,
}

/// The state that all nodes should have.
pub(crate) struct Reference {
    machine: StateMachine,
    /// By request.
    writes: BTreeMap<u64, Applied>,
    /// Revision and hash behind each entry.
    behind: Vec<(Revision, u128)>,
}

impl Reference {
    pub(super) fn new() -> Self {
        let config = StateConfig::new(64 << 20, 0);
        let machine = StateMachine::open(Arc::new(MemoryEngine::new()), config).expect("an empty engine opens");
        Self { machine, writes: BTreeMap::new(), behind: Vec::new() }
    }

    /// Applies what was committed since.
    pub(super) fn follow(&mut self, chosen: &Chosen) -> Result<(), Violation> {
        while let Some(entry) = chosen.get(self.behind.len() as u64) {
            let position = LogPosition::from(entry.log_id);
            match &entry.payload {
                Payload::Blank => self.machine.apply_blank(position),
                Payload::Membership(_) => self.machine.apply_membership(position, Bytes::new()),
                Payload::Normal(batch) => {
                    let commands = batch.decode().map_err(|error| Violation::new("log", error.to_string()))?;
                    let outcomes = self.machine.apply(position, &commands).expect("memory does not fail");
                    for (command, outcome) in commands.iter().zip(outcomes) {
                        let Some(id) = command.request.as_ref().and_then(|request| request.key.parse().ok()) else {
                            continue;
                        };
                        let reply = outcome.ok().and_then(|reply| match reply {
                            Reply::Txn(reply) => Some(reply),
                            Reply::Target => None,
                        });
                        let applied = Applied { index: position.index.get(), reply };
                        if let Some(before) = self.writes.insert(id, applied) {
                            let what = format!("write {id} is applied at {} and again at {position}", before.index);
                            return Err(Violation::new("no write applied twice", what));
                        }
                    }
                }
            }
            let applied = self.machine.publish();
            self.behind.push((applied.revision, applied.hash));
            if !self.machine.has_room() {
                self.machine.checkpointer().run().expect("memory does not fail");
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, id: u64) -> Option<&Applied> {
        self.writes.get(&id)
    }

    /// Revision and hash behind an entry; `None` if it is not committed.
    pub(crate) fn behind(&self, index: u64) -> Option<(Revision, u128)> {
        self.behind.get(usize::try_from(index).ok()?).copied()
    }

    /// Entries that were applied.
    pub(crate) fn len(&self) -> u64 {
        self.behind.len() as u64
    }

    /// The state at a revision; `None` if there is none yet.
    pub(crate) fn at(&self, revision: Revision) -> Option<StateView> {
        self.machine.reader().view_at(revision).ok()
    }
}
