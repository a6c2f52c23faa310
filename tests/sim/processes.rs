//! Processes: they start, end by themselves, are ended, and come back.
//!
//! Guarantees: one that ends by itself is a violation, unless its disk has failed or is damaged. Leaves out: why they are ended
//! (`faults`), and what becomes of a node that refuses a damaged disk (`repair`).

use rand::Rng;

use crate::invariants::Violation;
use crate::machine::Crash;
use crate::wire::Place;
use crate::world::World;

impl World {
    /// A process may end by itself only where its disk has failed.
    pub(crate) fn look_at_processes(&mut self) -> Result<(), Violation> {
        for place in 0..self.machines.len() {
            let machine = &self.machines[place];
            if machine.has_ended() {
                let back_at = self.now + self.back_after[place];
                self.crash(place, Crash::Kill, Some(back_at))?;
                continue;
            }
            let reason = machine.node().and_then(|node| node.fatal().reason());
            let refused = machine.started().and_then(Result::err);
            let Some(reason) = reason.or(refused) else { continue };
            self.trace.tell(self.now, format!("machine {place} ends: {reason}"));
            if machine.is_damaged && !machine.may_end(&reason) {
                self.empty(place)?;
                continue;
            }
            if !machine.may_end(&reason) {
                return Err(Violation::new("no node ends by itself", format!("machine {place}: {reason}")));
            }
            let back = self.now + self.random.random_range(1..1_000);
            self.crash(place, Crash::PowerCut(500), Some(back))?;
        }
        Ok(())
    }

    /// Starts a process on a machine.
    pub(crate) fn boot(&mut self, place: Place) -> Result<(), Violation> {
        self.trace.tell(self.now, format!("machine {place} starts"));
        self.members[place] = true;
        let booted = self.machines[place].boot(self.now, &self.plan.settings, &self.wire.outbox);
        match booted {
            Err(reason) if self.machines[place].is_damaged => {
                self.trace.tell(self.now, format!("machine {place} does not start: {reason}"));
                self.empty(place)
            }
            Err(reason) => Err(Violation::new("a node starts again", format!("machine {place}: {reason}"))),
            Ok(()) => Ok(()),
        }
    }

    pub(crate) fn come_back(&mut self) -> Result<(), Violation> {
        for place in 0..self.machines.len() {
            if self.machines[place].back_at.is_some_and(|back| back <= self.now) && !self.machines[place].runs() {
                self.boot(place)?;
            }
        }
        Ok(())
    }

    /// Ends a process, and has it start again at a moment.
    pub(crate) fn crash(&mut self, place: Place, how: Crash, back_at: Option<u64>) -> Result<(), Violation> {
        if self.machines[place].runs() {
            self.crashes += 1;
            self.machines[place].crash(how);
            self.look_at_log(place)?;
            let image = self.machines[place].log.image().map_err(|error| Violation::new("log", error.to_string()))?;
            self.checks.crashed(place, &image);
            let says_so = how == Crash::Kill || self.random.random_bool(0.5);
            self.wire.gone(self.now, place, says_so);
            for client in &mut self.clients {
                if let Some(op) = client.busy.take_if(|op| op.place == place) {
                    self.checks.lost(&op);
                }
            }
            // What ended before counts as unheard.
            let running: Vec<u64> = self.clients.iter().flat_map(|client| &client.busy).map(|op| op.id).collect();
            self.ends.lock().retain(|(id, _)| running.contains(id));
            self.machines[place].back_at = back_at;
        }
        Ok(())
    }
}
