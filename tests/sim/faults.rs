//! Doing what a plan says: faults begin, end, and are mended all at once at the end.
//!
//! Guarantees: what begins ends, at the latest when the safety phase does. Leaves out: choosing (`plan`).

use std::time::Duration;

use quorate::node::{Change, ChangeOptions, MemberPatch, Node, Role};

use crate::invariants::Violation;
use crate::machine::{Crash, DiskMood, Machine};
use crate::plan::{Fault, LEADER, MACHINES};
use crate::store::StoreMood;
use crate::wire::{Place, Weather};
use crate::world::World;

/// How long an operator's order may take.
pub(crate) const ORDER: Duration = Duration::from_secs(10);

/// A fault that lasts, and until when.
pub(crate) struct Under {
    until: u64,
    what: Lasting,
}

enum Lasting {
    Cuts(Vec<(Place, Place)>),
    Storm(Weather),
    SlowDisk(Place, DiskMood),
    Store(StoreMood),
    StoreCut(Place),
}

impl World {
    /// A fault begins.
    pub(crate) fn strike(&mut self, fault: &Fault) -> Result<(), Violation> {
        let fault = &self.resolve(fault);
        let strikes = self.takes_effect(fault);
        self.struck.0 += u64::from(strikes);
        self.struck.1 += 1;
        let idle = if strikes { "" } else { ", in vain" };
        self.trace.tell(self.now, format!("{fault:?}{idle}"));
        match fault {
            Fault::Kill { place, back_after } => self.crash(*place, Crash::Kill, Some(self.now + back_after))?,
            Fault::Restart { place, back_after } => {
                self.machines[*place].stop();
                self.back_after[*place] = *back_after;
            }
            Fault::PowerCut { place, kept, back_after } => {
                self.crash(*place, Crash::PowerCut(*kept), Some(self.now + back_after))?;
            }
            Fault::Blackout { kept, back_after } => {
                for place in 0..MACHINES {
                    let back_at = self.now + back_after + 37 * place as u64;
                    self.crash(place, Crash::PowerCut(*kept), Some(back_at))?;
                }
            }
            Fault::Pause { place, steps } => {
                let machine = &mut self.machines[*place];
                if machine.runs() {
                    machine.paused_until = self.now + steps;
                }
            }
            Fault::DiskFailure { place, .. } => self.machines[*place].fail_disk(),
            Fault::Damage { place, what, back_after } if strikes => self.damage(*place, *what, *back_after)?,
            Fault::Damage { .. } => {}
            Fault::Clock { place, by_ms } => self.machines[*place].skew = *by_ms,
            Fault::Transfer { .. } | Fault::Snapshot { .. } | Fault::Remove { .. } | Fault::Vote { .. } => {
                self.order(fault);
            }
            Fault::Join { place } => {
                if !self.machines[*place].runs() && !self.members[*place] {
                    self.boot(*place)?;
                }
            }
            Fault::Partition { .. }
            | Fault::OneWay { .. }
            | Fault::Storm { .. }
            | Fault::SlowDisk { .. }
            | Fault::Store { .. }
            | Fault::StoreCut { .. } => {
                self.begin(fault);
            }
        }
        Ok(())
    }

    /// Whether there is anything for a fault to strike.
    fn takes_effect(&self, fault: &Fault) -> bool {
        let runs = |place: &Place| self.machines[*place].runs();
        match fault {
            Fault::Join { place } => !runs(place) && !self.members[*place],
            Fault::Damage { place, .. } => self.may_lose(*place),
            Fault::Partition { side, .. } => {
                side.iter().any(runs) && (0..MACHINES).any(|place| !side.contains(&place) && runs(&place))
            }
            Fault::Clock { .. } => true,
            others => others.clone().places().into_iter().all(|place| runs(place)),
        }
    }

    /// The same fault, with the machine that leads in the place of [`LEADER`].
    fn resolve(&self, fault: &Fault) -> Fault {
        let leads = |machine: &&Machine| {
            machine.within(|node, _| node.status().role == Role::Leader).is_some_and(|leads| leads)
        };
        let leader = self.machines.iter().find(leads).map_or(0, |machine| machine.place);
        let mut fault = fault.clone();
        fault.places().into_iter().filter(|place| **place == LEADER).for_each(|place| *place = leader);
        match &mut fault {
            Fault::OneWay { from, to, .. } if from == to => *to = (*to + 1) % self.plan.settings.founders,
            // On a machine without a process these do nothing: the next one that has one takes its place.
            Fault::Kill { place, .. }
            | Fault::Restart { place, .. }
            | Fault::PowerCut { place, .. }
            | Fault::Pause { place, .. }
            | Fault::SlowDisk { place, .. }
            | Fault::DiskFailure { place, .. } => {
                let named = *place;
                let mut others = (0..MACHINES).map(|offset| (named + offset) % MACHINES);
                *place = others.find(|other| self.machines[*other].runs()).unwrap_or(named);
            }
            _ => {}
        }
        fault
    }

    /// A fault that ends by itself begins.
    fn begin(&mut self, fault: &Fault) {
        let (steps, what) = match fault {
            Fault::Partition { side, steps } => {
                let others = (0..MACHINES).filter(|place| !side.contains(place));
                let cuts: Vec<_> =
                    others.flat_map(|other| side.iter().flat_map(move |one| [(*one, other), (other, *one)])).collect();
                (*steps, Lasting::Cuts(cuts))
            }
            Fault::OneWay { from, to, steps } => (*steps, Lasting::Cuts(vec![(*from, *to)])),
            Fault::Storm { weather, steps } => {
                self.wire.set_weather(*weather);
                (*steps, Lasting::Storm(*weather))
            }
            Fault::SlowDisk { place, mood, steps } => {
                self.machines[*place].mood = *mood;
                (*steps, Lasting::SlowDisk(*place, *mood))
            }
            Fault::Store { mood, steps } => {
                self.store.set_mood(*mood);
                (*steps, Lasting::Store(*mood))
            }
            Fault::StoreCut { place, steps } => {
                self.store.cut(*place, true);
                (*steps, Lasting::StoreCut(*place))
            }
            _ => return,
        };
        if let Lasting::Cuts(cuts) = &what {
            for (from, to) in cuts {
                self.wire.cut(*from, *to, true);
            }
        }
        self.under.push(Under { until: self.now + steps, what });
    }

    /// Faults whose time is over end.
    pub(crate) fn end_faults(&mut self) {
        let now = self.now;
        let (over, lasting) = std::mem::take(&mut self.under).into_iter().partition(|under: &Under| under.until <= now);
        self.under = lasting;
        over.into_iter().for_each(|under| self.end(under.what));
    }

    fn end(&mut self, what: Lasting) {
        match what {
            Lasting::Cuts(cuts) => cuts.into_iter().for_each(|(from, to)| self.wire.cut(from, to, false)),
            // Where several overlap, the youngest of those that are left goes on.
            Lasting::Storm(_) => {
                let storm = |under: &Under| match under.what {
                    Lasting::Storm(weather) => Some(weather),
                    _ => None,
                };
                self.wire.set_weather(self.under.iter().rev().find_map(storm).unwrap_or(self.plan.weather));
            }
            Lasting::SlowDisk(place, _) => {
                let slow = |under: &Under| match under.what {
                    Lasting::SlowDisk(other, mood) if other == place => Some(mood),
                    _ => None,
                };
                self.machines[place].mood = self.under.iter().rev().find_map(slow).unwrap_or(self.plan.mood);
            }
            Lasting::Store(_) => {
                let away = |under: &Under| match under.what {
                    Lasting::Store(mood) => Some(mood),
                    _ => None,
                };
                self.store.set_mood(self.under.iter().rev().find_map(away).unwrap_or(self.plan.store));
            }
            Lasting::StoreCut(place) => self.store.cut(place, false),
        }
    }

    /// Nothing goes wrong any more.
    pub(crate) fn mend(&mut self) -> Result<(), Violation> {
        self.trace.tell(self.now, "all is mended".into());
        for under in std::mem::take(&mut self.under) {
            self.end(under.what);
        }
        self.store.set_mood(StoreMood { refused: 0, unanswered: 0, ..self.plan.store });
        self.wire.set_weather(Weather { lost: 0, doubled: 0, late: 0, ..self.plan.weather });
        for place in 0..MACHINES {
            let machine = &mut self.machines[place];
            machine.spare_disk();
            machine.paused_until = machine.paused_until.min(self.now + 1);
            if !machine.runs() && self.members[place] {
                self.boot(place)?;
            }
        }
        Ok(())
    }

    /// An operator orders something, from the first machine that runs.
    fn order(&mut self, fault: &Fault) {
        let id_of = |place: Place| {
            let id = self.machines[place].within(|node, _| node.status().id)?;
            (id.get() != 0).then_some(id)
        };
        let (place, change) = match fault {
            Fault::Snapshot { place } => {
                self.machines[*place].within(|node, runtime| {
                    let node = node.clone();
                    runtime.spawn(async move { drop(node.snapshot(Node::deadline_in(ORDER)).await) });
                });
                return;
            }
            Fault::Transfer { to } => (*to, None),
            Fault::Remove { place } => (*place, id_of(*place).map(Change::Remove)),
            Fault::Vote { place, votes } => {
                let patch = MemberPatch { votes: Some(*votes), ..MemberPatch::default() };
                (*place, id_of(*place).map(|id| Change::Update(id, patch)))
            }
            _ => return,
        };
        let Some(id) = id_of(place) else { return };
        let from = (0..MACHINES).map(|offset| (place + 1 + offset) % MACHINES).find(|at| self.machines[*at].runs());
        let Some(from) = from else { return };
        self.machines[from].within(|node, runtime| {
            let node = node.clone();
            runtime.spawn(async move {
                let deadline = Node::deadline_in(ORDER);
                // What becomes of it is seen in the log.
                match change {
                    Some(change) => drop(node.change_members(&change, ChangeOptions::default(), deadline).await),
                    None => drop(node.transfer_leadership(id, deadline).await),
                }
            });
        });
    }
}
