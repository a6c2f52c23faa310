//! What a seed means: the kind of cluster, and all that will go wrong in it, drawn before anything runs.
//!
//! Guarantees: a seed and a number of steps give the same plan for ever, as long as this file does not change; actions can
//! be left out one by one without changing the others, which is how a failure shrinks. Which faults there are at all is
//! drawn, too ("swarm testing"): a run with few kinds of them goes deeper into each. Leaves out: doing it (`world`).

use std::fmt;
use std::time::Duration;

use quorate::raft::Timers;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::machine::{Archiving, Damage, DiskMood, Settings};
use crate::store::StoreMood;
use crate::wire::{Place, Weather};

/// Machines that form the cluster at the beginning.
const FOUNDERS: usize = 3;
/// Machines there are in all.
pub(crate) const MACHINES: usize = 5;

/// Stands for the machine whose node leads when a fault begins.
pub(crate) const LEADER: Place = usize::MAX;

const DAMAGES: [Damage; 6] = [
    Damage::NoSnapshot,
    Damage::ShortSnapshot,
    Damage::FlippedSnapshot,
    Damage::NoState,
    Damage::NeitherStateNorSnapshots,
    Damage::NoLog,
];

/// A store that refuses everything.
const AWAY: StoreMood = StoreMood { delay: (1, 5), refused: 1_000, unanswered: 0 };

/// Something that goes wrong, or that an operator does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed, and started again after so many steps.
    Kill { place: Place, back_after: u64 },
    /// A process is told to end, hands over and stops, and is started again.
    Restart { place: Place, back_after: u64 },
    /// A machine loses power; of what was not synced, so many thousandths are left.
    PowerCut { place: Place, kept: u32, back_after: u64 },
    /// All machines lose power at once.
    Blackout { kept: u32, back_after: u64 },
    /// A process stands still.
    Pause { place: Place, steps: u64 },
    /// Nothing passes between these and the others, in either direction.
    Partition { side: Vec<Place>, steps: u64 },
    /// Nothing passes from one to the other.
    OneWay { from: Place, to: Place, steps: u64 },
    /// The network is like this.
    Storm { weather: Weather, steps: u64 },
    /// A disk is like this.
    SlowDisk { place: Place, mood: DiskMood, steps: u64 },
    /// The next sync of a disk fails, or one of the next batches that the state writes.
    DiskFailure { place: Place, back_after: u64 },
    /// A process is killed, and its disk damaged while it is gone. Once in a run at most.
    Damage { place: Place, what: Damage, back_after: u64 },
    /// A wall clock jumps.
    Clock { place: Place, by_ms: i64 },
    /// The leadership is to move there.
    Transfer { to: Place },
    /// A snapshot is asked for.
    Snapshot { place: Place },
    /// The object store is like this.
    Store { mood: StoreMood, steps: u64 },
    /// A machine can't reach the object store.
    StoreCut { place: Place, steps: u64 },
    /// A machine with an empty disk asks to be taken in.
    Join { place: Place },
    /// A member is taken out, and its disk wiped.
    Remove { place: Place },
    /// A member stops voting, or votes again.
    Vote { place: Place, votes: bool },
}

impl Fault {
    /// The machines that it names.
    pub(crate) fn places(&mut self) -> Vec<&mut Place> {
        match self {
            Self::Kill { place, .. }
            | Self::Restart { place, .. }
            | Self::PowerCut { place, .. }
            | Self::Pause { place, .. }
            | Self::SlowDisk { place, .. }
            | Self::DiskFailure { place, .. }
            | Self::Damage { place, .. }
            | Self::Clock { place, .. }
            | Self::Transfer { to: place }
            | Self::Snapshot { place }
            | Self::StoreCut { place, .. }
            | Self::Join { place }
            | Self::Remove { place }
            | Self::Vote { place, .. } => vec![place],
            Self::OneWay { from, to, .. } => vec![from, to],
            Self::Partition { side, .. } => side.iter_mut().collect(),
            Self::Blackout { .. } | Self::Storm { .. } | Self::Store { .. } => Vec::new(),
        }
    }
}

/// When what happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) at: u64,
    pub(crate) fault: Fault,
}

/// All of a run that is drawn before it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) settings: Settings,
    pub(crate) weather: Weather,
    pub(crate) mood: DiskMood,
    pub(crate) store: StoreMood,
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    /// The kinds of faults there are.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) actions: Vec<Action>,
}

/// A kind of fault, as the swarm draws them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Kill,
    Restart,
    PowerCut,
    Blackout,
    Pause,
    Partition,
    OneWay,
    Storm,
    SlowDisk,
    DiskFailure,
    Clock,
    Transfer,
    Snapshot,
    Members,
    Store,
    Damage,
}

const KINDS: [Kind; 16] = [
    Kind::Kill,
    Kind::Restart,
    Kind::PowerCut,
    Kind::Blackout,
    Kind::Pause,
    Kind::Partition,
    Kind::OneWay,
    Kind::Storm,
    Kind::SlowDisk,
    Kind::DiskFailure,
    Kind::Clock,
    Kind::Transfer,
    Kind::Snapshot,
    Kind::Members,
    Kind::Store,
    Kind::Damage,
];

/// A generator of its own for each use, so that one use more of one does not change the others.
pub(crate) fn random_for(seed: u64, what: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ what.wrapping_mul(0xBF58_476D_1CE4_E5B9))
}

impl Plan {
    /// What a seed means.
    pub(crate) fn draw(seed: u64, steps: u64) -> Self {
        let mut random = random_for(seed, 1);
        let ms = Duration::from_millis;
        // Near, hurried, and so far from each other that appends go through pipes.
        let (timers, near) = match random.random_range(0..3) {
            0 => (Timers::default(), 1),
            1 => (Timers { rtt: ms(10), heartbeat: ms(50), election_min: ms(200), election_max: ms(400) }, 1),
            _ => (Timers::for_rtt(ms(40)), 18),
        };
        let settings = Settings {
            timers,
            snapshot_log_bytes: *[24 << 10, 96 << 10, 1 << 20].choose(&mut random).expect("not empty"),
            overlay_bytes: *[32 << 10, 256 << 10].choose(&mut random).expect("not empty"),
            founders: FOUNDERS,
            archive: random.random_bool(0.5).then(|| archiving(&mut random)),
        };
        let far = near + random.random_range(0..6);
        let weather = Weather { delay: (near, far), lost: 0, doubled: random.random_range(0..10), late: 2 };
        let mood = DiskMood { sync: (0, random.random_range(0..=3)), work: random.random_range(0..=5) };
        let store = StoreMood { delay: (1, random.random_range(1..40)), refused: 1, unanswered: 1 };
        let clients = random.random_range(2..=8);
        let keys = *[3, 8, 40].choose(&mut random).expect("not empty");
        let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|_| random.random_bool(0.4)).collect();
        kinds.retain(|kind| *kind != Kind::Store || settings.archive.is_some());
        if kinds.contains(&Kind::Damage) {
            // Where members are taken out as well, those that are left may be too few for what a disk has lost.
            kinds.retain(|kind| *kind != Kind::Members);
        }
        if kinds.is_empty() {
            kinds.push(Kind::Kill);
        }
        let pace = Pace::draw(&mut random, &timers);
        let actions = actions(&mut random, &kinds, pace, steps);
        Self { seed, steps, settings, weather, mood, store, clients, keys, kinds, actions }
    }

    /// The same with only those actions that are named, by their place in the list.
    pub(crate) fn only(&self, kept: &[usize]) -> Self {
        let actions = kept.iter().filter_map(|number| self.actions.get(*number)).cloned().collect();
        Self { actions, ..self.clone() }
    }
}

fn archiving(random: &mut SmallRng) -> Archiving {
    Archiving {
        flush: random.random_range(100..1_500),
        flush_bytes: *[4 << 10, 64 << 10, 1 << 20].choose(random).expect("not empty"),
        full: ["* * * * *", "0 3 * * *"].choose(random).expect("not empty"),
    }
}

/// How close faults follow each other, and how long each lasts.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// From one to the next, on average, in steps.
    distance: u64,
    /// How long what lasts lasts at most.
    lasts: u64,
    /// How long a process is gone at most.
    gone: u64,
}

impl Pace {
    /// Quiet runs and wild ones, as elections go: where each leader were gone as soon as it is there, nothing would be written.
    fn draw(random: &mut SmallRng, timers: &Timers) -> Self {
        let election = u64::try_from(timers.election_max.as_millis()).unwrap_or(u64::MAX);
        let distance = *[election / 2, election * 3 / 2, election * 4].choose(random).expect("not empty");
        Self { distance, lasts: (distance * 3).min(6_000), gone: (distance * 2).min(5_000) }
    }
}

/// Actions at distances that are drawn, too.
fn actions(random: &mut SmallRng, kinds: &[Kind], pace: Pace, steps: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    // The cluster is given the time to form.
    let mut at = 800;
    loop {
        at += random.random_range(1..=2 * pace.distance);
        if at >= steps {
            return actions;
        }
        let kind = *kinds.choose(random).expect("there is one");
        actions.push(Action { at, fault: fault(random, kind, pace) });
    }
}

fn fault(random: &mut SmallRng, kind: Kind, pace: Pace) -> Fault {
    // Mostly where it hurts: who leads, or one of those that have been there from the beginning.
    let place = match random.random_range(0..20) {
        0..7 => LEADER,
        7..17 => random.random_range(0..FOUNDERS),
        _ => random.random_range(FOUNDERS..MACHINES),
    };
    let member = random.random_range(0..FOUNDERS);
    let steps = random.random_range(50..=pace.lasts);
    let back_after = random.random_range(1..=pace.gone);
    match kind {
        Kind::Kill => Fault::Kill { place, back_after },
        Kind::Restart => Fault::Restart { place, back_after },
        Kind::PowerCut => Fault::PowerCut { place, kept: random.random_range(0..=1_000), back_after },
        Kind::Blackout => Fault::Blackout { kept: random.random_range(0..=1_000), back_after },
        Kind::Pause => Fault::Pause { place, steps },
        Kind::Partition => {
            let mut side: Vec<Place> = (0..MACHINES).filter(|_| random.random_bool(0.25)).collect();
            if side.is_empty() {
                side.push(if random.random_bool(0.7) { LEADER } else { member });
            }
            Fault::Partition { side, steps }
        }
        Kind::OneWay => {
            // To itself nothing passes that could be cut.
            let (one, mut other) = (place, random.random_range(0..FOUNDERS));
            while other == one {
                other = random.random_range(0..FOUNDERS);
            }
            let (from, to) = if random.random_bool(0.5) { (one, other) } else { (other, one) };
            Fault::OneWay { from, to, steps }
        }
        Kind::Storm => {
            let delay = (1, random.random_range(2..60));
            let (lost, doubled) = (random.random_range(0..300), random.random_range(0..100));
            Fault::Storm { weather: Weather { delay, lost, doubled, late: random.random_range(0..100) }, steps }
        }
        Kind::SlowDisk => {
            let slow = random.random_range(10..400);
            let mood = DiskMood { sync: (slow / 4, slow), work: random.random_range(0..300) };
            Fault::SlowDisk { place, mood, steps }
        }
        Kind::DiskFailure => Fault::DiskFailure { place, back_after },
        Kind::Damage => Fault::Damage { place: member, what: *DAMAGES.choose(random).expect("not empty"), back_after },
        Kind::Clock => Fault::Clock { place, by_ms: random.random_range(-100_000_000..100_000_000) },
        Kind::Transfer => Fault::Transfer { to: member },
        Kind::Snapshot => Fault::Snapshot { place },
        Kind::Store if random.random_bool(0.5) => Fault::StoreCut { place, steps },
        Kind::Store => {
            let (refused, unanswered) = (random.random_range(0..400), random.random_range(0..200));
            let mood = StoreMood { delay: (1, random.random_range(2..400)), refused, unanswered };
            Fault::Store { mood: *[mood, AWAY].choose(random).expect("not empty"), steps }
        }
        Kind::Members => match random.random_range(0..4) {
            0 => Fault::Remove { place },
            1 => Fault::Vote { place, votes: random.random_bool(0.6) },
            _ => Fault::Join { place: random.random_range(0..MACHINES) },
        },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timers { election_min, election_max, .. } = self.settings.timers;
        write!(
            f,
            "seed {}: {} steps, {} clients on {} keys, elections {}-{} ms, links {:?}, disks {:?}, {} actions of {:?}{}",
            self.seed,
            self.steps,
            self.clients,
            self.keys,
            election_min.as_millis(),
            election_max.as_millis(),
            self.weather.delay,
            self.mood.sync,
            self.actions.len(),
            self.kinds,
            if self.settings.archive.is_some() { ", archived" } else { "" }
        )
    }
}
