//! One running member: its directory and identity, the forming of the cluster, writes, reads and status.
//!
//! The door is [`Node`]. Guarantees: it can be asked from the first moment on, and says "not ready" until it is; a directory
//! that is not this node's, or has lost its log, is refused. Leaves out: HTTP (`api`) and processes (`cli`).

mod archiving;
mod directory;
mod exchange;
mod forming;
mod group;
mod hand_over;
mod leader_transfer;
mod membership;
mod neighbours;
mod peer_desk;
mod read;
mod refounding;
mod request;
mod restoring;
mod start;
mod status;
mod write;

use std::sync::{Arc, OnceLock};

pub use archiving::{
    Alarm, ArchiveConfig, Archived, BackupChange, BackupChangeOptions, BackupChanged, BackupError, BackupOrigin,
    Declare, DrillOrder, Full, OffsiteRule, PlaceStatus, Proofs, Tried, Trouble,
};
pub use directory::{Directory, DirectoryError, Identity};
pub use forming::{FirstMembers, FormingError};
pub use leader_transfer::{Moved, TransferError};
pub use membership::{
    Change, ChangeOptions, Changed, Join, MEMBERS_MAX, MemberError, MemberPatch, MemberPolicy, MemberRef, NewMember,
    Quorums, VOTERS_MIN_DEFAULT, ZoneQuorum,
};
pub use neighbours::{Neighbour, advised_rtt};
pub use refounding::{Founding, NewCluster, Opened, RefoundingError, Survivor, Unfinished};
pub use request::{Consistency, ReadError, ReadOptions, ReadView, WriteError};
pub use restoring::{BuildMemory, Emptied, Restorable, RestoreError, Restored, state_at};
pub use start::{NodeConfig, Origin, StartError};
pub use status::{ClusterStatus, MemberStatus, NodeStatus, Role, Sizes, SnapshotFile, Source};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::forming::FormingDesk;
use self::peer_desk::PeerDesk;
use crate::clock::{self, Instant};
use crate::host;
use crate::raft::{Fatal, Leader, RaftNode, SnapshotHandle, Timers};
use crate::transport::{PeerHandler, Transport};
use crate::types::{Member, NodeId, Revision};

/// One running member of the group: a cheap handle.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    member: Member,
    timers: Timers,
    desk: Arc<FormingDesk>,
    peer_desk: Arc<PeerDesk>,
    transport: Arc<dyn Transport>,
    fatal: Fatal,
    raft: OnceLock<RaftNode>,
    membership: OnceLock<membership::Membership>,
    archiving: OnceLock<archiving::Archiving>,
    removal: membership::Removal,
    background: TaskTracker,
    /// Ends what runs in `background`.
    stopping: CancellationToken,
    syncs: neighbours::Syncs,
    group: group::LastView,
}

impl Node {
    /// Raft, once it runs and as long as this is a member; otherwise why not.
    fn raft(&self) -> Result<&RaftNode, String> {
        if let Some(why) = self.0.removal.get() {
            return Err(why.clone());
        }
        self.0.raft.get().ok_or_else(|| match self.0.desk.identity() {
            Some(_) => "it is starting".into(),
            None => "the cluster is not formed yet".into(),
        })
    }

    /// Answers the calls of other members, from the first moment on.
    #[must_use]
    pub fn peer_handler(&self) -> Arc<dyn PeerHandler> {
        self.0.peer_desk.clone()
    }

    /// Whether linearizable reads can be served, proven now by a read barrier.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self, deadline: Instant) -> Result<(), String> {
        let raft = self.raft()?;
        if let Some(reason) = self.0.fatal.reason() {
            return Err(reason);
        }
        raft.read_barrier(deadline).await.map_err(|error| self.with_refusal(error.to_string()))
    }

    /// The newest revision applied here. Cheap.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.0.raft.get().map_or(Revision::ZERO, |raft| raft.applied().borrow().revision)
    }

    /// The leader, where known and heard from lately. Cheap.
    #[must_use]
    pub fn leader(&self) -> Option<(NodeId, Member)> {
        let raft = self.0.raft.get()?;
        match raft.leader_heard(self.0.timers.leader_silence()) {
            Leader::Me => Some((raft.id(), self.member(raft.id()))),
            Leader::Other(id, member) => Some((id, member)),
            Leader::None => None,
        }
    }

    /// What the group knows of a member; nothing but its id as a name where it knows none.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Member {
        let members = self.0.raft.get().map(|raft| raft.status().members()).unwrap_or_default();
        let found = members.into_iter().find(|(member, ..)| *member == id).map(|(_, member, _)| member);
        found.unwrap_or_else(|| Member { name: id.get().to_string(), ..Member::default() })
    }

    /// A snapshot file that holds at least everything applied before the call.
    ///
    /// # Errors
    /// It was not built by `deadline`, or this node is not ready.
    pub async fn snapshot(&self, deadline: Instant) -> Result<SnapshotFile, ReadError> {
        let raft = self.raft().map_err(ReadError::NotReady)?;
        let handle = raft.snapshot(deadline).await.map_err(|error| match error {
            crate::raft::BarrierError::Lagging => {
                ReadError::NotReady("the snapshot was not finished within the deadline; allow more time".into())
            }
            error => read::barrier_error(error),
        })?;
        // A file of an earlier life of the process is read whole for its digest.
        let file = host::spawn_blocking(move || snapshot_file(handle)).await;
        file.map_err(|error| ReadError::NotReady(error.to_string()))?
    }

    /// The failure after which this process must end.
    #[must_use]
    pub fn fatal(&self) -> &Fatal {
        &self.0.fatal
    }

    /// Stops. What was acknowledged is on disk already.
    pub async fn stop(&self) {
        self.0.stopping.cancel();
        if let Some(raft) = self.0.raft.get() {
            raft.stop().await;
        }
        self.0.background.close();
        self.0.background.wait().await;
    }

    /// Now plus a duration, for callers that think in timeouts.
    #[must_use]
    pub fn deadline_in(timeout: std::time::Duration) -> Instant {
        clock::now() + timeout
    }
}

fn snapshot_file(handle: SnapshotHandle) -> Result<SnapshotFile, ReadError> {
    let sha256 = handle.sha256().map_err(|error| ReadError::NotReady(error.to_string()))?;
    Ok(SnapshotFile {
        path: handle.path().to_owned(),
        size: handle.file_bytes(),
        revision: handle.meta().revision,
        sha256,
        _held: handle,
    })
}
