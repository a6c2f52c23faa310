//! What a node gets from the machine it runs on, beside disk and network: wall time, chance, and threads for work that
//! blocks. A simulation puts a machine of its own in this place, for all that runs on its thread.
//!
//! Guarantees: without a simulation these are the operating system's clock, rand's generator and Tokio's blocking pool, at
//! the cost of looking at a thread-local; on a [`SimulatedHost`] all three follow from its seed and from what it is told, and
//! no other thread runs. Leaves out: the monotonic clock (`clock`), which is Tokio's and can be paused by itself.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

use crate::types::WallTime;

thread_local! {
    static SIMULATED: RefCell<Option<SimulatedHost>> = const { RefCell::new(None) };
}

/// A machine that a simulation makes up. Clones are the same one.
#[derive(Debug, Clone)]
pub struct SimulatedHost(Arc<Mutex<Machine>>);

/// What has a thread of its own on a real machine: makes the task that a simulation runs in its place.
pub type Thread = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

#[derive(Default)]
struct Threads(Vec<Thread>);

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} threads to begin", self.0.len())
    }
}

#[derive(Debug)]
struct Machine {
    wall: WallTime,
    random: SmallRng,
    /// The longest pause before blocking work is done.
    pause_max: Duration,
    /// Those that nobody runs yet.
    threads: Threads,
}

/// Puts back what was there before, when dropped. Not sent to other threads.
#[must_use = "dropped at once, it changes nothing"]
pub struct Entered {
    before: Option<SimulatedHost>,
    _here: std::marker::PhantomData<*const ()>,
}

impl SimulatedHost {
    /// A machine whose chance follows from `seed`, whose wall clock stands at the epoch, and which does blocking work at
    /// once.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(Machine {
            wall: WallTime::ZERO,
            random,
            pause_max: Duration::ZERO,
            threads: Threads::default(),
        })))
    }

    /// Sets its wall clock, which moves only so.
    pub fn set_wall(&self, wall: WallTime) {
        self.0.lock().wall = wall;
    }

    /// From now on blocking work begins after a pause, drawn from none to `max`, in whole milliseconds.
    pub fn set_pause(&self, max: Duration) {
        self.0.lock().pause_max = max;
    }

    /// The threads that were begun since the last call. Whoever simulates runs each as a task of its own.
    #[must_use]
    pub fn take_threads(&self) -> Vec<Thread> {
        std::mem::take(&mut self.0.lock().threads.0)
    }

    /// Makes it the machine of what this thread does until the guard is dropped.
    pub fn enter(&self) -> Entered {
        let before = SIMULATED.with(|simulated| simulated.replace(Some(self.clone())));
        Entered { before, _here: std::marker::PhantomData }
    }

    fn draw(&self) -> u64 {
        self.0.lock().random.random()
    }

    fn draw_pause(&self) -> Duration {
        let mut machine = self.0.lock();
        let max = u64::try_from(machine.pause_max.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(if max == 0 { 0 } else { machine.random.random_range(0..=max) })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        SIMULATED.with(|simulated| *simulated.borrow_mut() = self.before.take());
    }
}

fn simulated() -> Option<SimulatedHost> {
    SIMULATED.with(|simulated| simulated.borrow().clone())
}

/// Whether the caller runs on a machine that was made up: then it must start no thread.
#[must_use]
pub fn is_simulated() -> bool {
    SIMULATED.with(|simulated| simulated.borrow().is_some())
}

/// The wall clock of the made-up machine; `None` on a real one.
pub(crate) fn simulated_wall() -> Option<WallTime> {
    simulated().map(|host| host.0.lock().wall)
}

/// A random number.
#[must_use]
pub fn random() -> u64 {
    simulated().map_or_else(rand::random, |host| host.draw())
}

/// Begins a thread of a made-up machine: whoever simulates it runs it as a task. `false` on a real one, where nothing is done.
pub(crate) fn begin_simulated_thread(begin: Thread) -> bool {
    simulated().inspect(|host| host.0.lock().threads.0.push(begin)).is_some()
}

/// Does work that may block, beside the tasks of the runtime; a task among them on a made-up machine.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let Some(host) = simulated() else { return tokio::task::spawn_blocking(work) };
    let pause = host.draw_pause();
    #[expect(clippy::disallowed_methods, reason = "only in a simulation, where it stands for a thread")]
    tokio::spawn(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_numbers_again_and_leaving_brings_the_real_machine_back() {
        let draws = |seed| {
            let _entered = SimulatedHost::new(seed).enter();
            [random(), random(), random()]
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
        assert!(!is_simulated());
        assert_ne!(random(), random());
    }

    #[test]
    fn the_wall_clock_of_a_made_up_machine_moves_only_when_set() {
        let host = SimulatedHost::new(1);
        let entered = host.enter();
        host.set_wall(WallTime::new(1_000));
        assert_eq!(simulated_wall(), Some(WallTime::new(1_000)));
        drop(entered);
        assert_eq!(simulated_wall(), None, "the real one is in its place");
    }

    #[test]
    fn a_thread_of_a_made_up_machine_waits_for_who_simulates_it() {
        let begin = || begin_simulated_thread(Box::new(|| Box::pin(async {})));
        assert!(!begin(), "a real machine begins its threads itself");
        let host = SimulatedHost::new(1);
        let entered = host.enter();
        assert!(begin() && begin());
        drop(entered);
        assert_eq!((host.take_threads().len(), host.take_threads().len()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn blocking_work_stays_on_the_thread_of_a_made_up_machine() {
        let host = SimulatedHost::new(1);
        host.set_pause(Duration::from_millis(50));
        let _entered = host.enter();
        let here = std::thread::current().id();
        for _ in 0..10 {
            assert_eq!(spawn_blocking(|| std::thread::current().id()).await.unwrap(), here);
        }
    }
}
