//! Where the members are, as the newest membership has it.
//!
//! openraft makes a client for each member once and keeps it when the member's address or data centre changes.
//!
//! Guarantees: an address or a data centre is in force as soon as the entry that sets it is in this node's log. Leaves out:
//! connections (`transport`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::leadership::Leadership;
use crate::types::NodeId;

/// Peer addresses and data centres by member. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct AddressBook(Arc<RwLock<BTreeMap<NodeId, Place>>>);

/// Where a member is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) peer_addr: String,
    /// Empty if none was named.
    pub(super) zone: String,
}

impl AddressBook {
    /// Where a member is reached; `None` for one that is not known.
    pub(super) fn address(&self, id: NodeId) -> Option<String> {
        self.0.read().get(&id).map(|place| place.peer_addr.clone())
    }

    /// Whether two members stand in data centres that are named, and not the same. With each stands what is taken for its
    /// data centre as long as it is not known here.
    pub(super) fn are_apart(&self, (one, one_zone): (NodeId, &str), (other, other_zone): (NodeId, &str)) -> bool {
        let places = self.0.read();
        let zone = |id, otherwise| places.get(&id).map_or(otherwise, |place: &Place| place.zone.as_str());
        let (one, other) = (zone(one, one_zone), zone(other, other_zone));
        !one.is_empty() && !other.is_empty() && one != other
    }

    /// Keeps the book as the membership is, until `shutdown`.
    pub(super) async fn follow(self, leadership: Leadership, shutdown: CancellationToken) {
        let mut changes = leadership.subscribe();
        loop {
            let members = leadership.roster().members.into_iter();
            self.set(
                members.map(|(id, member)| (id, Place { peer_addr: member.peer_addr, zone: member.zone })).collect(),
            );
            if shutdown.run_until_cancelled(changes.changed()).await.is_none() {
                return;
            }
        }
    }

    pub(super) fn set(&self, new: BTreeMap<NodeId, Place>) {
        if *self.0.read() != new {
            *self.0.write() = new;
        }
    }
}
