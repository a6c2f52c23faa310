//! Keeps this node's identity file in step with what the group calls it.
//!
//! Guarantees: a new name is in the identity file soon after it is committed; the next start must give it, and says so
//! otherwise. Leaves out: addresses, which are given anew at each start.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::host;
use crate::node::forming::FormingDesk;
use crate::raft::RaftNode;

/// Follows this node's own entry in the membership until `shutdown`.
pub(in crate::node) async fn follow_own_entry(raft: RaftNode, desk: Arc<FormingDesk>, shutdown: CancellationToken) {
    let mut changes = raft.changes();
    loop {
        let roster = raft.roster();
        let name = roster.members.get(&raft.id()).filter(|_| roster.committed).map(|member| member.name.clone());
        if let Some(name) = name {
            let (renaming, told) = (desk.clone(), name.clone());
            // A small file is written and synced.
            match host::spawn_blocking(move || renaming.rename(&name)).await {
                Ok(Ok(true)) => {
                    tracing::warn!(name = told, "this node was renamed; start it with --name {told} from now on");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "this node was renamed, but its identity file can't be written");
                }
                Err(_) => return,
            }
        }
        if shutdown.run_until_cancelled(changes.changed()).await.is_none() {
            return;
        }
    }
}
