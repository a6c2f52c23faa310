//! Where the members are, as the newest membership has it.
//!
//! openraft makes a client for each member once and keeps it when the member's address changes.
//!
//! Guarantees: an address is in force as soon as the entry that sets it is in this node's log. Leaves out: connections
//! (`transport`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::leadership::Leadership;
use crate::types::NodeId;

/// Peer addresses by member. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct AddressBook(Arc<RwLock<BTreeMap<NodeId, String>>>);

impl AddressBook {
    /// Where a member is; `None` for one that is not known.
    pub(super) fn address(&self, id: NodeId) -> Option<String> {
        self.0.read().get(&id).cloned()
    }

    /// Keeps the book as the membership is, until `shutdown`.
    pub(super) async fn follow(self, leadership: Leadership, shutdown: CancellationToken) {
        let mut changes = leadership.subscribe();
        loop {
            let members = leadership.roster().members;
            let new: BTreeMap<_, _> = members.into_iter().map(|(id, member)| (id, member.peer_addr)).collect();
            if *self.0.read() != new {
                *self.0.write() = new;
            }
            if shutdown.run_until_cancelled(changes.changed()).await.is_none() {
                return;
            }
        }
    }
}
