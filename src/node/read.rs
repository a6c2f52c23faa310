//! Reads: as fresh as asked, from local data.
//!
//! Guarantees: a linearizable read sees every write acknowledged before it began, on any node; a bounded read is served
//! only where its bound is proven. Leaves out: what is read (`state::StateView`).

use std::time::Duration;

use super::Node;
use super::request::{Consistency, ReadError, ReadOptions, ReadView};
use crate::clock::Instant;
use crate::raft::{AppliedTo, BarrierError, RaftNode};
use crate::state::ViewError;
use crate::types::Revision;

impl Node {
    /// A view to read from that is as fresh as asked.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, options: ReadOptions) -> Result<ReadView, ReadError> {
        let raft = self.raft().map_err(ReadError::NotReady)?;
        // First: a bound that was proven before a wait says nothing about the data behind it.
        if let Some(revision) = options.min_revision {
            wait_for_revision(raft, revision, options.deadline).await?;
        }
        let staleness = match options.consistency {
            Consistency::Linearizable => {
                raft.read_barrier(options.deadline).await.map_err(barrier_error)?;
                Some(Duration::ZERO)
            }
            Consistency::Stale => raft.staleness(),
            Consistency::Bounded { max_staleness } => bounded(raft, max_staleness, &options).await?,
        };
        let reader = raft.reader();
        let view = match options.at_revision {
            None => reader.view(),
            Some(revision) => reader.view_at(revision).map_err(|error| match error {
                ViewError::Compacted { requested, oldest } => ReadError::Compacted { requested, oldest },
                ViewError::Future { requested, newest } => ReadError::FutureRevision { requested, newest },
            })?,
        };
        Ok(ReadView { view, staleness })
    }
}

/// Serves what is proven to be fresh enough; otherwise asks the leader, which is as good as a linearizable read.
async fn bounded(raft: &RaftNode, bound: Duration, options: &ReadOptions) -> Result<Option<Duration>, ReadError> {
    let proven = raft.staleness();
    if proven.is_some_and(|proven| proven <= bound) {
        return Ok(proven);
    }
    let beyond = ReadError::StaleBeyondBound { bound, proven };
    if options.local_only {
        return Err(beyond);
    }
    match raft.read_barrier(options.deadline).await {
        Ok(()) => Ok(Some(Duration::ZERO)),
        Err(BarrierError::Stopping) => Err(barrier_error(BarrierError::Stopping)),
        Err(_) => Err(beyond),
    }
}

async fn wait_for_revision(raft: &RaftNode, revision: Revision, deadline: Instant) -> Result<(), ReadError> {
    let mut applied = raft.applied();
    let reached = |applied: &AppliedTo| applied.revision >= revision;
    let waited = tokio::time::timeout_at(deadline, applied.wait_for(reached)).await.map(|applied| applied.is_ok());
    match waited {
        Ok(true) => Ok(()),
        Ok(false) => Err(ReadError::NotReady("it is stopping".into())),
        Err(_) => {
            let newest = raft.applied().borrow().revision;
            Err(ReadError::NotReady(format!("revision {revision} has not arrived here; the newest is {newest}")))
        }
    }
}

pub(super) fn barrier_error(error: BarrierError) -> ReadError {
    match error {
        BarrierError::NoLeader => ReadError::NoLeader,
        BarrierError::NoQuorum => ReadError::NoQuorum,
        BarrierError::Lagging | BarrierError::Overloaded | BarrierError::Stopping => {
            ReadError::NotReady(error.to_string())
        }
    }
}
