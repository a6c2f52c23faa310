//! No acknowledged write is lost, none is answered wrongly, and none that was refused is done.
//!
//! An acknowledged write is committed, its answer is what the committed log comes to, its revision is above all that anybody
//! knew of when it was asked for, and a majority has it on disk. Guarantees: judged when the answer comes; what was refused, once
//! more when nothing moves any more. That what was committed is there at the end is `Checks::all_applied`. Leaves out: writes of which nobody knows the outcome; they may be done or not, but once
//! (`reference`).

use std::collections::BTreeMap;

use quorate::types::{LogPosition, Revision};

use super::Violation;
use super::chosen::Chosen;
use super::reference::Reference;
use crate::clients::{End, Op, What};
use crate::machine::Machine;

#[derive(Default)]
pub(super) struct Acknowledged {
    /// Writes that were answered.
    written: u64,
    /// Writes that were refused, and in which words.
    refused: BTreeMap<u64, String>,
    floor: Revision,
    /// The floor behind each step at which it rose.
    floors: BTreeMap<u64, Revision>,
}

impl Acknowledged {
    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn count(&self) -> u64 {
        self.written
    }

    /// The newest revision that anybody was told of up to a step.
    pub(super) fn floor_at(&self, step: u64) -> Revision {
        self.floors.range(..=step).next_back().map_or(Revision::ZERO, |(_, floor)| *floor)
    }

    pub(super) fn ended(
        &mut self,
        op: &Op,
        end: &End,
        reference: &Reference,
        chosen: &Chosen,
        machines: &[Machine],
    ) -> Result<(), Violation> {
        let What::Write(_) = op.what else { return Ok(()) };
        let reply = match end {
            End::Written(reply) => reply,
            End::Refused(why) => {
                self.refused.insert(op.id, why.clone());
                return Ok(());
            }
            _ => return Ok(()),
        };
        let Some(applied) = reference.write(op.id) else {
            let what = format!("write {} was answered with {reply:?}, but is not committed", op.id);
            return Err(Violation::new("no acknowledged write lost", what));
        };
        if applied.reply.as_ref() != Some(reply) {
            let what = format!("write {} was answered with {reply:?}, not {:?}", op.id, applied.reply);
            return Err(Violation::new("the answer is what was done", what));
        }
        if reply.revision < op.floor {
            let what = format!("write {} has revision {}, but {} was known before", op.id, reply.revision, op.floor);
            return Err(Violation::new("linearizable writes", what));
        }
        self.written += 1;
        on_a_majority(op, applied.index, chosen, machines)
    }

    /// From now on everybody may know of what was told.
    pub(super) fn told(&mut self, step: u64, end: &End) {
        let revision = match end {
            End::Written(reply) => reply.revision,
            End::Found { revision, .. } => *revision,
            _ => return,
        };
        if revision > self.floor {
            self.floor = revision;
            self.floors.insert(step, revision);
        }
    }

    pub(super) fn settled(&self, reference: &Reference) -> Result<(), Violation> {
        for (id, why) in &self.refused {
            if let Some(applied) = reference.write(*id) {
                let what = format!("write {id} was refused ({why}), but stands in entry {}", applied.index);
                return Err(Violation::new("what was refused is not done", what));
            }
        }
        Ok(())
    }
}

/// What was answered must be on the disks of a majority of those who vote.
fn on_a_majority(op: &Op, index: u64, chosen: &Chosen, machines: &[Machine]) -> Result<(), Violation> {
    let Some(entry) = chosen.get(index) else { return Ok(()) };
    let position = LogPosition::from(entry.log_id);
    let holders = machines.iter().filter(|machine| machine.log.durably_holds(position)).count();
    // Machines are not told from each other: a learner counts too, so this is a lower bound for what must be.
    let needed = chosen.membership_at(index).map_or(1, |membership| {
        let sizes = membership.get_joint_config().iter().map(|voters| voters.len() / 2 + 1);
        sizes.min().unwrap_or(1)
    });
    // What was on a disk that has lost it since the write was asked for counts as well.
    let harmed = machines.iter().filter(|machine| machine.harmed_at >= Some(op.called)).count();
    let needed = needed.saturating_sub(harmed);
    if holders >= needed {
        return Ok(());
    }
    let what = format!("write {} was answered, but {position} is on {holders} disks, of {needed} it needs", op.id);
    Err(Violation::new("on the disks of a majority", what))
}
