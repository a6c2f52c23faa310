//! The thread that moves applied records from memory to the state engine.
//!
//! Guarantees: one thread per state machine, ended when its owner lets go of it ([`CheckpointThread::end`] waits until it
//! has); a failed flush or a panic ends the process; whoever waits for room is woken after each checkpoint. Leaves out:
//! what a checkpoint does (`state::Checkpointer`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task;

use super::background::stand_back;
use super::fatal::Fatal;
use super::metrics::StateMetrics;
use crate::clock;
use crate::host;
use crate::state::Checkpointer;
use crate::storage;

/// How often a simulation, which has no threads, looks whether a checkpoint is wanted.
const SIMULATED_LOOK: Duration = Duration::from_millis(5);

/// A running checkpoint thread; dropping it ends the thread after the checkpoint it is at.
pub(super) struct CheckpointThread {
    handle: Checkpointer,
    thread: Running,
    done: Arc<Notify>,
    fatal: Fatal,
}

/// What makes the checkpoints.
enum Running {
    Thread(thread::JoinHandle<()>),
    /// In a simulation.
    Task(task::JoinHandle<()>),
    Ended,
}

/// What it needs for one.
struct Maker<C> {
    checkpointer: Checkpointer,
    metrics: StateMetrics,
    fatal: Fatal,
    done: Arc<Notify>,
    condemn: C,
}

impl<C: Fn(&storage::Error)> Maker<C> {
    /// Makes one; whether there may be more.
    fn make(&self) -> bool {
        let started = clock::now();
        // Without this thread the overlay fills up, and whoever waits for room waits for ever.
        match catch_unwind(AssertUnwindSafe(|| self.checkpointer.run())) {
            Ok(Ok(report)) => {
                self.metrics.checkpoint_seconds.observe(started.elapsed().as_secs_f64());
                self.metrics.checkpoint_records.inc_by(report.records as u64);
                tracing::debug!(records = report.records, bytes = report.bytes, "checkpoint");
            }
            Ok(Err(error)) => {
                (self.condemn)(&error);
                self.fatal.raise(&format!("writing a checkpoint of the state failed: {error}"));
            }
            Err(_) => self.fatal.raise("writing a checkpoint of the state panicked; its message stands above"),
        }
        self.done.notify_waiters();
        self.fatal.reason().is_none()
    }
}

impl CheckpointThread {
    /// Starts it. `condemn` hears of the failure that ends the process.
    pub(super) fn spawn(
        checkpointer: Checkpointer,
        metrics: StateMetrics,
        fatal: Fatal,
        condemn: impl Fn(&storage::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let done = Arc::new(Notify::new());
        let handle = checkpointer.clone();
        let maker = Maker { checkpointer, metrics, fatal: fatal.clone(), done: done.clone(), condemn };
        let thread = if host::is_simulated() {
            #[expect(clippy::disallowed_methods, reason = "awaited by `end`; only in a simulation")]
            Running::Task(tokio::spawn(make_without_a_thread(maker)))
        } else {
            let work = move || {
                stand_back();
                while maker.checkpointer.wait() && maker.make() {}
            };
            Running::Thread(thread::Builder::new().name("checkpoint".into()).spawn(work)?)
        };
        Ok(Self { handle, thread, done, fatal })
    }

    /// Ends the thread and waits until it has: its engine's directory may be removed then, which a checkpoint that is
    /// still at work would take for a failing disk.
    pub(super) async fn end(mut self) {
        self.handle.close();
        // A panic in it was told on the thread itself.
        match std::mem::replace(&mut self.thread, Running::Ended) {
            Running::Thread(thread) => drop(tokio::task::spawn_blocking(move || thread.join()).await),
            Running::Task(task) => drop(task.await),
            Running::Ended => {}
        }
    }

    /// Asks for a checkpoint soon.
    pub(super) fn request(&self) {
        self.handle.request();
    }

    /// Waits for the next checkpoint to end, or for the failure after which there will be none.
    pub(super) async fn make_room(&self) {
        let done = self.done.notified();
        tokio::pin!(done);
        // Registered before the request, so that a quick checkpoint is not missed.
        done.as_mut().enable();
        self.handle.request();
        tokio::select! {
            biased;
            () = done => {}
            _ = self.fatal.raised() => {}
        }
    }
}

/// What the thread does, as a task that never waits for a lock.
async fn make_without_a_thread(maker: Maker<impl Fn(&storage::Error)>) {
    while let Some(wanted) = maker.checkpointer.wanted() {
        if wanted && !maker.make() {
            return;
        }
        tokio::time::sleep(SIMULATED_LOOK).await;
    }
}

impl Drop for CheckpointThread {
    fn drop(&mut self) {
        self.handle.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::state::{StateConfig, StateMachine};
    use crate::storage::{Batch, Engine, Error, MemoryEngine, Scan};
    use crate::types::{LogIndex, LogPosition, NodeId, Term};

    /// An engine with a bug.
    struct Panics(MemoryEngine);

    impl Engine for Panics {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
            self.0.get(key)
        }

        fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, Error> {
            self.0.scan(scan)
        }

        fn commit(&self, _batch: Batch) -> Result<(), Error> {
            panic!("on purpose");
        }

        fn flush(&self) -> Result<(), Error> {
            self.0.flush()
        }

        fn size_on_disk(&self) -> Result<u64, Error> {
            self.0.size_on_disk()
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_checkpoint_thread_ends_the_process_with_a_reason() {
        let engine = Arc::new(Panics(MemoryEngine::new()));
        let mut machine = StateMachine::open(engine, StateConfig::default()).unwrap();
        machine.apply_blank(LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(1) });
        machine.publish();
        let (metrics, fatal) = (StateMetrics::register(&mut Registry::default()), Fatal::default());
        let thread = CheckpointThread::spawn(machine.checkpointer(), metrics, fatal.clone(), |_| ()).unwrap();
        // Whoever waits for room is woken, rather than left to wait for a thread that is gone.
        tokio::time::timeout(Duration::from_secs(30), thread.make_room()).await.unwrap();
        let reason = tokio::time::timeout(Duration::from_secs(30), fatal.raised()).await.unwrap();
        assert!(reason.contains("checkpoint") && reason.contains("panicked"), "{reason}");
        assert!(fatal.check().is_err(), "nothing more is applied");
        tokio::time::timeout(Duration::from_secs(30), thread.end()).await.unwrap();
    }
}
