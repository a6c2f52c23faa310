//! The thread that moves applied records from memory to the state engine.
//!
//! Guarantees: one thread per state machine, ended when its owner lets go of it ([`CheckpointThread::end`] waits until it
//! has); a failed flush or a panic ends the process; whoever waits for room is woken after each checkpoint. Leaves out:
//! what a checkpoint does (`state::Checkpointer`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::background::stand_back;
use super::fatal::Fatal;
use super::metrics::StateMetrics;
use crate::clock;
use crate::state::Checkpointer;
use crate::storage;

/// A running checkpoint thread; dropping it ends the thread after the checkpoint it is at.
pub(super) struct CheckpointThread {
    handle: Checkpointer,
    thread: Option<JoinHandle<()>>,
    done: Arc<Notify>,
    fatal: Fatal,
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
        let notify = done.clone();
        let raise = fatal.clone();
        let work = move || {
            stand_back();
            while checkpointer.wait() {
                let started = clock::now();
                // Without this thread the overlay fills up, and whoever waits for room waits for ever.
                match catch_unwind(AssertUnwindSafe(|| checkpointer.run())) {
                    Ok(Ok(report)) => {
                        metrics.checkpoint_seconds.observe(started.elapsed().as_secs_f64());
                        metrics.checkpoint_records.inc_by(report.records as u64);
                        tracing::debug!(records = report.records, bytes = report.bytes, "checkpoint");
                    }
                    Ok(Err(error)) => {
                        condemn(&error);
                        raise.raise(&format!("writing a checkpoint of the state failed: {error}"));
                    }
                    Err(_) => raise.raise("writing a checkpoint of the state panicked; its message stands above"),
                }
                notify.notify_waiters();
                if raise.reason().is_some() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(work)?;
        Ok(Self { handle, thread: Some(thread), done, fatal })
    }

    /// Ends the thread and waits until it has: its engine's directory may be removed then, which a checkpoint that is
    /// still at work would take for a failing disk.
    pub(super) async fn end(mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // A panic in it was told on the thread itself.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
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
            () = done => {}
            _ = self.fatal.raised() => {}
        }
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
