//! One running member.

mod request;
mod status;

pub use request::{Consistency, ReadError, ReadOptions, ReadView, WriteError};
pub use status::{ClusterStatus, MemberStatus, NodeStatus, Role, Sizes, SnapshotFile};

use crate::clock::Instant;
use crate::state::{Principal, RequestId, Txn, TxnReply};
use crate::types::{Member, NodeId, Revision};

/// One running member of the group: a cheap handle.
#[derive(Clone)]
pub struct Node {}

impl Node {
    /// Proposes a transaction and waits for its outcome, no longer than to `deadline`.
    pub async fn write(
        &self,
        _txn: Txn,
        _principal: Principal,
        _request: Option<RequestId>,
        _deadline: Instant,
    ) -> Result<TxnReply, WriteError> {
        todo!()
    }

    /// A view to read from that is as fresh as asked.
    pub async fn read(&self, _options: ReadOptions) -> Result<ReadView, ReadError> {
        todo!()
    }

    /// This node.
    pub fn status(&self) -> NodeStatus {
        todo!()
    }

    /// The group.
    pub fn cluster(&self) -> ClusterStatus {
        todo!()
    }

    /// Makes a snapshot file of this moment, or takes the newest if nothing was written since.
    pub async fn snapshot(&self, _deadline: Instant) -> Result<SnapshotFile, ReadError> {
        todo!()
    }

    /// Whether linearizable reads can be served, proven now by a read barrier, and if not, why.
    pub async fn ready(&self, _deadline: Instant) -> Result<(), String> {
        todo!()
    }

    /// The newest revision applied here. Cheap.
    pub fn revision(&self) -> Revision {
        todo!()
    }

    /// The leader, where known. Cheap.
    pub fn leader(&self) -> Option<(NodeId, Member)> {
        todo!()
    }
}
