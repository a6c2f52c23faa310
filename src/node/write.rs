//! Writes: admit, propose, and say what became of them.
//!
//! Guarantees: every answer is "done", "refused, nothing changed" or "unknown". Leaves out: merging, forwarding and
//! stamping (`raft`'s proposer), and limits on sizes (`api`, which checks before anything reaches this room).

use std::time::Duration;

use super::Node;
use super::request::WriteError;
use crate::clock::Instant;
use crate::raft::ProposeError;
use crate::state::{Command, Operation, Principal, Reply, RequestId, TargetChange, Txn, TxnReply};
use crate::types::WallTime;

/// When a writer that was turned away may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// How much of what is applied waits for the disk, in percent of the most; there, writes stop until it is done. 0 while
    /// the node starts.
    #[must_use]
    pub fn apply_backlog_percent(&self) -> usize {
        self.raft().map_or(0, |raft| raft.reader().overlay_percent())
    }

    /// Proposes a transaction and waits for its outcome, no longer than to `deadline`.
    ///
    /// # Errors
    /// [`WriteError`]; only [`WriteError::OutcomeUnknown`] leaves open whether it was or will be done.
    pub async fn write(
        &self,
        txn: Txn,
        principal: Principal,
        request: Option<RequestId>,
        deadline: Instant,
    ) -> Result<TxnReply, WriteError> {
        // The leader stamps the time when it proposes.
        let command = Command { proposed_at: WallTime::ZERO, principal, request, operation: Operation::Txn(txn) };
        match self.propose(command, deadline).await? {
            Reply::Txn(reply) => Ok(reply),
            Reply::Target => Err(WriteError::OutcomeUnknown("the answer is that to another command".into())),
        }
    }

    /// Changes which places for backups are declared.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) async fn change_targets(&self, change: TargetChange, deadline: Instant) -> Result<(), WriteError> {
        let (principal, operation) = (Principal::Anonymous, Operation::Target(change));
        let command = Command { proposed_at: WallTime::ZERO, principal, request: None, operation };
        self.propose(command, deadline).await.map(drop)
    }

    async fn propose(&self, command: Command, deadline: Instant) -> Result<Reply, WriteError> {
        let raft = self.raft().map_err(WriteError::NotReady)?;
        let outcome = raft.propose(command, deadline).await.map_err(|error| match error {
            ProposeError::NoLeader | ProposeError::NotLeader(_) => WriteError::NoLeader,
            ProposeError::NoQuorum => WriteError::NoQuorum,
            ProposeError::Overloaded => WriteError::Overloaded { retry_after: RETRY_AFTER },
            ProposeError::Stopping => WriteError::NotReady("it is stopping".into()),
            ProposeError::Unknown(reason) => WriteError::OutcomeUnknown(reason),
        })?;
        Ok(outcome?)
    }
}
