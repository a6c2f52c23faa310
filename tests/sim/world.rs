//! One run: machines, wire, clients and faults, step by step, with the invariants after each step.
//!
//! A step is a millisecond for every machine. First the plan's faults have their time (safety phase); then all is mended, and
//! every node must come to the same and serve (liveness phase). Guarantees: a run is a function of its plan; it ends with
//! the first violation. Leaves out: drawing plans (`plan`), and finding the smallest that fails (`shrink`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Once;
use std::time::Duration;

use quorate::node::{NodeStatus, Role};
use quorate::types::NodeId;
use rand::Rng;
use rand::rngs::SmallRng;
use tempfile::TempDir;

use crate::clients::{self, End, Ends, Op};
use crate::faults::Under;
use crate::invariants::{Checks, Events, Violation, check_converged, is_converged};
use crate::machine::{Crash, Machine, WALL_BEGIN};
use crate::plan::{Kind, MACHINES, Plan, random_for};
use crate::store::Store;
use crate::trace::Trace;
use crate::wire::{Load, Place, Wire};

/// How often nodes are asked for their status, in steps.
const LOOK: u64 = 16;

/// How long the cluster may take to come to the same, in steps, where members come and go: a node that joins asks again
/// only after a while.
const CONVERGENCE_OF_MEMBERS: u64 = 60_000;

/// How long it may take otherwise, in longest election timeouts.
const CONVERGENCE_ELECTIONS: u64 = 15;

/// By this step the cluster has formed where nothing hinders it.
const FORMED: u64 = 1_500;

/// How often it is looked what was archived, in steps.
const ARCHIVE_LOOK: u64 = 512;

/// How long it may take until all is archived, once nothing goes wrong any more, in steps: pauses between attempts grow to
/// half a minute.
const ARCHIVED_WITHIN: u64 = 150_000;

/// A client waits so long for an answer, in milliseconds.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// How much longer than it waits an answer may take: a node that works through its queue, on a disk that is slow.
const ANSWER_SLACK: u64 = 1_000;

/// What a run came to.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) steps: u64,
    pub(crate) entries: u64,
    pub(crate) writes: u64,
    pub(crate) reads: u64,
    pub(crate) crashes: u64,
    /// Faults that had something to strike, of all.
    pub(crate) struck: (u64, u64),
    pub(crate) came_about: Events,
    /// Steps until all had come to the same.
    pub(crate) converged_after: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, events, steps, entries, writes, reads, crashes, struck, came_about, converged_after } = self;
        let Events { reigns, memberships, truncations, purges, installations, votes, archived } = came_about;
        let (objects, archived, restored) = archived;
        write!(
            f,
            "trace {trace:016x} of {events} events in {steps} steps: {entries} entries, {writes} writes and {reads} reads \
             judged, {} of {} faults took effect, {crashes} crashes, {reigns} reigns, {memberships} memberships, {truncations} truncations, {purges} purges, \
             {installations} installations, {votes} votes and acceptances, {archived} entries archived in {objects} objects, {restored} points restored, the same everywhere after {converged_after} steps",
            struck.0, struck.1
        )
    }
}

/// A run that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) violation: Violation,
    pub(crate) step: u64,
    pub(crate) lines: Vec<String>,
}

/// How a run is looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Prints what happens.
    pub(crate) loud: bool,
    /// A bug that is put in, to see it found.
    pub(crate) planted: Option<Planted>,
}

/// A bug that the simulation itself can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Now and then a linearizable read is answered by what the node has.
    StaleRead,
    /// All disks say that they have synced, and have not, once the cluster has formed.
    LostWrite,
    /// The same from the beginning.
    LostVote,
    /// The object store loses some of what it says it has stored.
    LostObject,
    /// The network delivers a forwarded command twice.
    DoubleApply,
    /// Linearizable reads are answered by what the node has on a machine whose wall clock has jumped.
    StaleReadBehindJump,
}

pub(crate) struct Client {
    pub(crate) busy: Option<Op>,
    next_at: u64,
}

/// One run.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) machines: Vec<Machine>,
    pub(crate) wire: Wire,
    pub(crate) store: Store,
    pub(crate) trace: Trace,
    pub(crate) checks: Checks,
    pub(crate) random: SmallRng,
    pub(crate) options: Options,
    /// Faults that end later.
    pub(crate) under: Vec<Under>,
    /// How long machines stay down whose process was told to end.
    pub(crate) back_after: Vec<u64>,
    /// A node whose disk was emptied, until another one has taken its place on this machine.
    pub(crate) lost: Option<(Place, NodeId)>,
    /// Set once a disk was damaged: another one must not be.
    pub(crate) was_damaged: bool,
    /// Machines whose node is or was to be a member.
    pub(crate) members: Vec<bool>,
    pub(crate) crashes: u64,
    /// Faults that had something to strike, and all.
    pub(crate) struck: (u64, u64),
    pub(crate) clients: Vec<Client>,
    pub(crate) ends: Ends,
    ops: u64,
    _home: TempDir,
}

thread_local! {
    /// The first panic of a task on this thread.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics of this thread noted: Tokio keeps those of tasks for who waits for them, which may be nobody.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with(|panic| {
                panic.borrow_mut().get_or_insert_with(|| info.to_string());
            });
            before(info);
        }));
    });
    PANIC.with(|panic| panic.borrow_mut().take());
}

/// Where files lie: in memory, if the system has such a place.
fn home() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder for temporary files")
}

/// Runs a plan.
///
/// # Errors
/// The first violation.
pub(crate) fn run(plan: &Plan, options: Options) -> Result<Report, Box<Failure>> {
    note_panics();
    let mut world = World::new(plan.clone(), options);
    let result = world.safety().and_then(|()| world.liveness());
    match result {
        Ok(converged_after) => Ok(world.report(converged_after)),
        Err(violation) => {
            let lines = world.trace.lines().cloned().collect();
            Err(Box::new(Failure { violation, step: world.now, lines }))
        }
    }
}

impl World {
    fn new(plan: Plan, options: Options) -> Self {
        let home = home();
        let store = Store::new(random_for(plan.seed, 4), plan.store);
        let machine = |place| Machine::new(place, home.path(), plan.seed ^ (place as u64) << 48, plan.mood, &store);
        let mut machines: Vec<_> = (0..MACHINES).map(machine).collect();
        machines.iter_mut().for_each(|machine| machine.lies = options.planted == Some(Planted::LostVote));
        store.set_forgets(options.planted == Some(Planted::LostObject));
        let mut wire = Wire::new(random_for(plan.seed, 2), plan.weather);
        wire.set_double_forwards(options.planted == Some(Planted::DoubleApply));
        let clients = (0..plan.clients).map(|_| Client { busy: None, next_at: 600 }).collect();
        let founders = plan.settings.founders;
        Self {
            now: 0,
            machines,
            wire,
            trace: Trace::new(options.loud),
            checks: Checks::new(MACHINES, plan.settings.archive.map(|_| &store), home.path()),
            store,
            random: random_for(plan.seed, 3),
            options,
            under: Vec::new(),
            back_after: vec![0; MACHINES],
            lost: None,
            was_damaged: false,
            members: (0..MACHINES).map(|place| place < founders).collect(),
            crashes: 0,
            struck: (0, 0),
            clients,
            ends: Ends::default(),
            ops: 0,
            _home: home,
            plan,
        }
    }

    fn report(&self, converged_after: u64) -> Report {
        let (writes, reads) = self.checks.judged();
        Report {
            trace: self.trace.hash(),
            events: self.trace.events(),
            steps: self.now,
            entries: self.checks.committed(),
            writes,
            reads,
            crashes: self.crashes,
            struck: self.struck,
            came_about: self.checks.came_about(),
            converged_after,
        }
    }

    /// The faults have their time.
    fn safety(&mut self) -> Result<(), Violation> {
        for place in 0..self.plan.settings.founders {
            self.boot(place)?;
        }
        let actions = std::mem::take(&mut self.plan.actions);
        let mut due = actions.iter().peekable();
        while self.now < self.plan.steps {
            while let Some(action) = due.next_if(|action| action.at <= self.now) {
                self.strike(&action.fault)?;
            }
            self.end_faults();
            self.step(true)?;
        }
        self.plan.actions = actions;
        Ok(())
    }

    /// All is mended, and the nodes come to the same; returns after how many steps.
    fn liveness(&mut self) -> Result<u64, Violation> {
        self.mend()?;
        let from = self.now;
        let election = u64::try_from(self.plan.settings.timers.election_max.as_millis()).unwrap_or(u64::MAX);
        let members = self.plan.kinds.iter().any(|kind| matches!(kind, Kind::Members | Kind::Damage));
        let enough = self.now + if members { CONVERGENCE_OF_MEMBERS } else { CONVERGENCE_ELECTIONS * election };
        while self.now < enough {
            self.step(false)?;
            if self.now.is_multiple_of(LOOK) && self.clients.iter().all(|client| client.busy.is_none()) {
                let nodes = self.statuses();
                if self.lost.is_none()
                    && self.members_all_run(&nodes)
                    && is_converged(&nodes)
                    && self.checks.all_applied(&nodes).is_ok()
                {
                    break;
                }
            }
        }
        let nodes = self.statuses();
        check_converged(&nodes, self.now - from)?;
        self.checks.all_applied(&nodes)?;
        if let Some(op) = self.clients.iter().find_map(|client| client.busy.as_ref()) {
            return Err(Violation::new("every request is answered", format!("{op:?} was not, at the end")));
        }
        if let Some((place, id)) = self.lost {
            let what = format!("node {id} of machine {place} is not replaced");
            return Err(Violation::new("a lost member is replaced", what));
        }
        if !self.members_all_run(&nodes) {
            return Err(Violation::new("convergence", "a member does not run"));
        }
        self.checks.settled()?;
        let converged_after = self.now - from;
        self.archive_all()?;
        Ok(converged_after)
    }

    /// The archive comes to hold all, and gives it back.
    fn archive_all(&mut self) -> Result<(), Violation> {
        let enough = self.now + ARCHIVED_WITHIN;
        while let Err(violation) = self.checks.all_archived() {
            if self.now >= enough {
                return Err(violation);
            }
            self.step(false)?;
        }
        self.checks.restores(&mut self.random)
    }

    fn members_all_run(&self, nodes: &[(Place, NodeStatus)]) -> bool {
        let expected = self.members.iter().filter(|member| **member).count();
        nodes.len() == expected
    }

    /// What the nodes that are members say of themselves.
    fn statuses(&self) -> Vec<(Place, NodeStatus)> {
        let of = |machine: &Machine| machine.within(|node, _| (machine.place, node.status()));
        let told = self.machines.iter().filter(|machine| self.members[machine.place]).filter_map(of);
        told.filter(|(_, status)| status.role != Role::Removed).collect()
    }

    /// A millisecond passes.
    fn step(&mut self, clients_call: bool) -> Result<(), Violation> {
        self.now += 1;
        self.store.set_now(WALL_BEGIN + self.now);
        if self.options.planted == Some(Planted::LostWrite) && self.now == FORMED {
            self.machines.iter_mut().for_each(|machine| machine.lies = true);
        }
        if self.options.loud && self.now.is_multiple_of(500) {
            let entries = self.checks.committed();
            self.trace.tell(self.now, format!("{entries} entries committed, {:?} judged", self.checks.judged()));
        }
        self.come_back()?;
        self.replace_lost()?;
        self.deliver();
        if clients_call {
            self.clients_call();
        }
        for place in 0..self.machines.len() {
            self.machines[place].run(self.now);
            self.look_at_log(place)?;
        }
        if let Some(panic) = PANIC.with(|panic| panic.borrow_mut().take()) {
            return Err(Violation::new("no panic", panic));
        }
        self.hear_clients()?;
        self.look_at_waiting()?;
        self.look_at_processes()?;
        if self.now.is_multiple_of(LOOK) {
            for place in 0..self.machines.len() {
                self.look_at_status(place)?;
            }
        }
        if self.now.is_multiple_of(ARCHIVE_LOOK) {
            self.checks.archived()?;
        }
        Ok(())
    }

    fn deliver(&mut self) {
        self.wire.post(self.now);
        while let Some(parcel) = self.wire.next_due(self.now) {
            let (kind, bytes) = match &parcel.load {
                Load::Request(channel, bytes) => (u64::from(channel.code()), &bytes[..]),
                Load::Answer(bytes) => (100, &bytes[..]),
                Load::NoAnswer(may_be_done) => (101 + u64::from(*may_be_done), &[][..]),
            };
            self.trace.note(&[self.now, parcel.from as u64, parcel.to as u64, kind, bytes.len() as u64], bytes);
            if !matches!(parcel.load, Load::Request(..)) {
                self.wire.hand_over(parcel);
            } else if !self.machines[parcel.to].receive(&parcel, &self.wire.outbox) {
                self.wire.refuse(self.now, &parcel);
            }
        }
    }

    pub(crate) fn look_at_log(&mut self, place: Place) -> Result<(), Violation> {
        let records = self.machines[place].log.take_records();
        records.iter().for_each(|record| self.trace.record(self.now, place as u64, record));
        self.checks.written(place, &records)?;
        for (place, vote) in self.wire.outbox.take_given() {
            self.checks.given(place, vote, &self.machines[place].log)?;
        }
        Ok(())
    }

    fn look_at_status(&mut self, place: Place) -> Result<(), Violation> {
        let Some(status) = self.machines[place].within(|node, _| node.status()) else { return Ok(()) };
        if status.role == Role::Removed && self.members[place] {
            self.checks.removed(place, &status)?;
            self.trace.tell(self.now, format!("machine {place} knows that it was removed"));
            self.members[place] = false;
            self.crash(place, Crash::Kill, None)?;
            self.machines[place].wipe(self.now);
            self.checks.wiped(place);
            return Ok(());
        }
        // Before, Raft's own figures are those of a node that knows nothing.
        let started = matches!(self.machines[place].started(), Some(Ok(())));
        if started { self.checks.status(place, &status) } else { Ok(()) }
    }

    /// Whoever asks hears something in time, from a process that runs.
    fn look_at_waiting(&self) -> Result<(), Violation> {
        let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX) + ANSWER_SLACK;
        for op in self.clients.iter().filter_map(|client| client.busy.as_ref()) {
            let machine = &self.machines[op.place];
            // Who slept has slept through the deadline.
            let asked = op.called.max(machine.paused_until);
            if machine.runs() && self.now > asked + patience {
                let what = format!("{op:?} is not answered after {} ms", self.now - op.called);
                return Err(Violation::new("every request is answered", what));
            }
        }
        Ok(())
    }

    fn clients_call(&mut self) {
        for number in 0..self.clients.len() {
            if self.clients[number].busy.is_some() || self.clients[number].next_at > self.now {
                continue;
            }
            let place = self.random.random_range(0..MACHINES);
            let floor = self.checks.floor();
            self.ops += 1;
            let what = clients::draw(&mut self.random, self.ops, self.plan.keys, floor);
            let op = Op { id: self.ops, place, what, called: self.now, floor };
            let planted = self.options.planted;
            if clients::call(&self.machines[place], &op, PATIENCE, &self.ends, planted) {
                self.clients[number].busy = Some(op);
            } else {
                self.clients[number].next_at = self.now + 5;
            }
        }
    }

    fn hear_clients(&mut self) -> Result<(), Violation> {
        let ends: BTreeMap<u64, End> = std::mem::take(&mut *self.ends.lock()).into_iter().collect();
        for (id, end) in ends {
            let Some(number) =
                self.clients.iter().position(|client| client.busy.as_ref().is_some_and(|op| op.id == id))
            else {
                continue;
            };
            let Some(op) = self.clients[number].busy.take() else { continue };
            self.clients[number].next_at = self.now + self.random.random_range(1..25);
            self.trace.note(&[self.now, id], end.to_string().as_bytes());
            self.checks.ended(&op, &end, self.now, &self.machines)?;
        }
        Ok(())
    }
}
