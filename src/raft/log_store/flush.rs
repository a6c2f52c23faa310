//! What happens when the writer of the log is done with a piece: who waits is told, or the node is told that its disk has
//! failed.
//!
//! Guarantees: each [`Flushed`] tells its waiter exactly once, also if the writer stopped and dropped it unseen; the first
//! failure is kept for [`Fatal`] and never replaced. Leaves out: ending the process, which is up to who watches.

use std::io;
use std::sync::Arc;

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::end_mark::EndMark;
use super::metrics::LogMetrics;
use crate::clock::{self, Instant};
use crate::raft::types::TypeConfig;
use crate::watch;

/// Why the log can no longer be written; `None` while it can. Once set it stays, and the process must end: after a
/// failed fsync the page cache can't be believed (D16).
pub(in crate::raft) type Fatal = watch::Receiver<Option<Arc<str>>>;

/// What the pieces on their way to the disk have in common.
#[derive(Debug)]
pub(super) struct FlushContext {
    pub(super) metrics: LogMetrics,
    pub(super) fatal: watch::Sender<Option<Arc<str>>>,
    /// `None` for a log in memory, or where the mark can't be written.
    pub(super) mark: Option<EndMark>,
}

impl FlushContext {
    /// Keeps the first failure.
    pub(super) fn fail(&self, error: &io::Error) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                tracing::error!(%error, "the Raft log can no longer be written");
                *fatal = Some(format!("the Raft log can no longer be written: {error}").into());
            }
            first
        });
    }
}

/// Who is told.
pub(super) enum Waiter {
    /// openraft, about appended entries.
    Entries(IOFlushed<TypeConfig>),
    /// A task.
    Task(oneshot::Sender<io::Result<()>>),
    /// Nobody, if all goes well.
    Nobody,
}

/// Told by raft-log's writer when everything up to here is on the disk, or could not be brought there.
pub(super) struct Flushed {
    waiter: Option<Waiter>,
    started: Instant,
    /// Up to where the log is on the disk then, if this is told without an error; 0 where that is not known.
    end: u64,
    context: Arc<FlushContext>,
}

impl Flushed {
    pub(super) fn new(waiter: Waiter, context: Arc<FlushContext>) -> Self {
        Self { waiter: Some(waiter), started: clock::now(), end: 0, context }
    }

    /// Behind a sync of everything up to `end`.
    pub(super) fn synced_up_to(mut self, end: u64) -> Self {
        self.end = end;
        self
    }

    /// Tells that the piece was refused before the writer saw it.
    pub(super) fn refuse(mut self, error: &io::Error) {
        self.tell(Err(io::Error::new(error.kind(), error.to_string())));
    }

    fn tell(&mut self, result: io::Result<()>) {
        let Some(waiter) = self.waiter.take() else { return };
        match (&result, &self.context.mark) {
            // Before anything is acknowledged that hangs on it. Of pieces that one sync has served each moves the mark: which
            // one is the last, and how far the sync went, raft-log does not tell.
            (Ok(()), Some(mark)) => mark.advance(self.end),
            (Ok(()), None) => {}
            // Before the waiter hears of it, so that nobody sees the error without its cause.
            (Err(error), _) => self.context.fail(error),
        }
        match waiter {
            Waiter::Entries(flushed) => {
                if result.is_ok() {
                    let waited = clock::now().saturating_duration_since(self.started);
                    self.context.metrics.flush_seconds.observe(waited.as_secs_f64());
                    self.context.metrics.flush_time.note(waited);
                }
                flushed.io_completed(result);
            }
            // A task that no longer waits needs no answer.
            Waiter::Task(task) => drop(task.send(result)),
            Waiter::Nobody => {}
        }
    }
}

impl raft_log::Callback for Flushed {
    fn send(mut self, result: io::Result<()>) {
        self.tell(result);
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        // A writer that failed drops what is still in its queue without a word.
        self.tell(Err(io::Error::other("the writer of the log has stopped")));
    }
}
