//! Damage to a disk, and what an operator does about it: a node that refuses to serve is taken out, and another one with an
//! empty disk takes its place.
//!
//! Guarantees: one disk is damaged in a run at most, and only while the members can do without it. Leaves out: damage that a
//! log or an engine in files would have to notice by itself (`raft::log_store`, `storage`).

use quorate::node::{Change, ChangeOptions, Node};
use rand::Rng;

use crate::faults::ORDER;
use crate::invariants::Violation;
use crate::machine::{Crash, Damage};
use crate::wire::Place;
use crate::world::World;

/// How often an operator tries to take out a node whose disk was lost, in steps.
const TRY_EVERY: u64 = 1_024;

/// As few voters as there must be for one of them to be lost.
const VOTERS_MIN: usize = 3;

impl World {
    /// Whether the members can do without what is on the disk of a machine.
    pub(crate) fn may_lose(&self, place: Place) -> bool {
        let Some(members) = self.checks.members() else { return false };
        let [voters] = &members.get_joint_config()[..] else { return false };
        let is_voter = self.checks.id_of(place).is_some_and(|id| voters.contains(&id));
        !self.was_damaged && self.machines[place].runs() && is_voter && voters.len() >= VOTERS_MIN
    }

    /// A process is killed, and its disk damaged.
    pub(crate) fn damage(&mut self, place: Place, what: Damage, back_after: u64) -> Result<(), Violation> {
        self.crash(place, Crash::Kill, Some(self.now + back_after))?;
        if !self.machines[place].damage(what, self.now) {
            return Ok(());
        }
        self.was_damaged = true;
        self.checks.snapshots_damaged(place);
        Ok(())
    }

    /// A node refuses to serve with what is on its disk: it is emptied, and an operator will see to another one.
    pub(crate) fn empty(&mut self, place: Place) -> Result<(), Violation> {
        self.crash(place, Crash::Kill, None)?;
        let machine = &mut self.machines[place];
        machine.wipe(self.now);
        (machine.back_at, machine.is_damaged) = (None, false);
        self.lost = self.checks.id_of(place).map(|id| (place, id));
        self.checks.wiped(place);
        self.members[place] = false;
        Ok(())
    }

    /// Has a node whose disk was lost taken out, and starts another one in its place.
    pub(crate) fn replace_lost(&mut self) -> Result<(), Violation> {
        let Some((place, id)) = self.lost else { return Ok(()) };
        if !self.now.is_multiple_of(TRY_EVERY) {
            return Ok(());
        }
        if self.checks.members().is_some_and(|members| members.get_node(&id).is_none()) {
            self.lost = None;
            return self.boot(place);
        }
        let running: Vec<Place> = (0..self.machines.len()).filter(|other| self.machines[*other].runs()).collect();
        if running.is_empty() {
            return Ok(());
        }
        let from = running[self.random.random_range(0..running.len())];
        self.machines[from].within(|node, runtime| {
            let node = node.clone();
            runtime.spawn(async move {
                let deadline = Node::deadline_in(ORDER);
                // What becomes of it is seen in the log.
                drop(node.change_members(&Change::Remove(id), ChangeOptions::default(), deadline).await);
            });
        });
        Ok(())
    }
}
