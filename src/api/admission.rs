//! How much is worked on at a time.
//!
//! Guarantees: what is over a limit is refused at once, never queued; a place is given back when its guard is dropped,
//! also by a cancelled request. Leaves out: connections (`server`) and the node's own queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::ApiConfig;
use super::problem::EdgeError;

/// A count with an upper bound.
#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<Count>);

#[derive(Debug)]
struct Count {
    taken: AtomicUsize,
    limit: usize,
    what: &'static str,
}

/// A share of a [`Gate`], given back on drop.
#[derive(Debug)]
pub(super) struct Pass {
    count: Arc<Count>,
    share: usize,
}

impl Count {
    fn take(&self, share: usize) -> Result<(), EdgeError> {
        let fits = |taken: usize| taken.checked_add(share).filter(|sum| *sum <= self.limit);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(_) => Err(EdgeError::Busy { what: self.what }),
        }
    }
}

impl Gate {
    pub(super) fn new(limit: usize, what: &'static str) -> Self {
        Self(Arc::new(Count { taken: AtomicUsize::new(0), limit, what }))
    }

    /// Takes a share of the limit, or says that there is none.
    pub(super) fn enter(&self, share: usize) -> Result<Pass, EdgeError> {
        self.0.take(share)?;
        Ok(Pass { count: Arc::clone(&self.0), share })
    }
}

impl Pass {
    /// How much is held.
    pub(super) fn size(&self) -> usize {
        self.share
    }

    /// Takes more; on refusal what was held stays held.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), EdgeError> {
        self.count.take(more)?;
        self.share += more;
        Ok(())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.count.taken.fetch_sub(self.share, Ordering::Relaxed);
    }
}

/// The limits of one edge.
#[derive(Debug)]
pub(super) struct Admission {
    /// Requests at work.
    pub(super) requests: Gate,
    /// Bytes of bodies.
    pub(super) bytes: Gate,
    /// Answers that are streamed.
    pub(super) streams: Gate,
    scans: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(config: &ApiConfig) -> Self {
        Self {
            requests: Gate::new(config.in_flight_max, "requests"),
            bytes: Gate::new(config.in_flight_bytes_max, "bytes of request bodies"),
            streams: Gate::new(config.streams_max, "streamed answers"),
            scans: Arc::new(Semaphore::new(config.scans_max)),
        }
    }

    /// Waits for a place among those that read ranges; requests at work are bounded, so this queue is too.
    pub(super) async fn scan(&self) -> Result<OwnedSemaphorePermit, EdgeError> {
        Arc::clone(&self.scans).acquire_owned().await.map_err(|_| EdgeError::Busy { what: "listings" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_takes_up_to_its_limit_and_forgets_nothing() {
        let gate = Gate::new(10, "things");
        let first = gate.enter(7).unwrap();
        assert!(gate.enter(4).is_err());
        let mut second = gate.enter(1).unwrap();
        assert!(second.grow(3).is_err() && second.grow(2).is_ok());
        drop(first);
        assert!(gate.enter(8).is_err());
        drop(second);
        assert!(gate.enter(10).is_ok() && gate.enter(usize::MAX).is_err());
    }
}
