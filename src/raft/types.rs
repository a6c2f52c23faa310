//! What openraft is told about our types, and short names for the room.
//!
//! Guarantees: a [`LogPosition`] and a [`LogId`] are the same three numbers, so that converting one into the other and back
//! loses nothing. That is why the leader id is openraft's default, "adv" (term *and* node stand in every log id): the
//! standard one keeps only the term of a committed leader, and a position could not name its leader. Its price is that a
//! term may see more than one elected leader, which openraft orders by (term, node): safe, and elections split less often.
//! Leaves out: behaviour.

use std::fmt;

use openraft::vote::{RaftTerm, leader_id_adv};
use serde::{Deserialize, Serialize};

use crate::state;
use crate::types::{LogIndex, LogPosition, Member, NodeId, Term};

openraft::declare_raft_types!(
    /// The types Quorate runs Raft with; everything that is not named is openraft's default.
    pub TypeConfig:
        D = state::Batch,
        R = ApplyReply,
        NodeId = NodeId,
        Node = Member,
        Term = Term,
        AsyncRuntime = super::runtime::HouseRuntime,
);

/// A leader: its term and its node.
pub type LeaderId = leader_id_adv::LeaderId<Term, NodeId>;
/// Identifies one log entry for ever; the same as a [`LogPosition`].
pub type LogId = openraft::LogId<LeaderId>;
/// Who was voted for, and whether a quorum has.
pub type Vote = openraft::Vote<LeaderId>;
/// What an entry carries: nothing, a batch of commands, or a membership.
pub type Payload = openraft::EntryPayload<state::Batch, NodeId, Member>;
/// One log entry.
pub type Entry = openraft::Entry<LeaderId, Payload>;
/// Voters and learners.
pub type Membership = openraft::Membership<NodeId, Member>;
/// A membership with the entry that set it.
pub type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, Member>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, Member>;
/// A snapshot: what it covers, and the data.
pub type Snapshot<D> = openraft::Snapshot<LeaderId, NodeId, Member, D>;
/// Where the log begins and ends.
pub type LogState = openraft::LogState<TypeConfig>;

/// What applying one entry answers: one outcome a command of its batch, none for blank and membership entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyReply(pub Vec<state::Outcome>);

impl fmt::Display for ApplyReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outcomes", self.0.len())
    }
}

impl RaftTerm for Term {
    fn next(&self) -> Self {
        Self::next(*self)
    }

    fn as_u64(&self) -> Option<u64> {
        Some(self.get())
    }
}

impl From<LogId> for LogPosition {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id, index: LogIndex::new(id.index) }
    }
}

impl From<LogPosition> for LogId {
    fn from(position: LogPosition) -> Self {
        let leader_id = LeaderId { term: position.term, node_id: position.leader };
        Self { leader_id, index: position.index.get() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position((term, leader, index): (u64, u64, u64)) -> LogPosition {
        LogPosition { term: Term::new(term), leader: NodeId::new(leader), index: LogIndex::new(index) }
    }

    proptest! {
        #[test]
        fn a_position_is_the_same_as_a_log_id_and_sorts_alike(
            a in any::<(u64, u64, u64)>().prop_map(position),
            b in (0..3u64, 0..3u64, 0..3u64).prop_map(position),
            c in (0..3u64, 0..3u64, 0..3u64).prop_map(position),
        ) {
            prop_assert_eq!(LogPosition::from(LogId::from(a)), a);
            prop_assert_eq!(LogId::from(b).cmp(&LogId::from(c)), b.cmp(&c));
        }
    }
}
