//! Changing the members, from the leader's side.
//!
//! The whole aim is given: who shall be a member and who shall vote. openraft goes there in one entry where no vote changes,
//! and otherwise over a joint membership (Ongaro's thesis §4.3), in which both the old and the new voters must agree. A
//! leader that fails between the two steps leaves a joint membership behind; the same aim given again ends it.
//!
//! Guarantees: a change is made to the membership that the caller has seen, or not at all; "made", "not made" and "not
//! known" are different answers. Leaves out: whether the change is a sensible one (`node::membership`).

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;

use tokio_util::task::TaskTracker;

use super::state_store::StateStore;
use super::types::{LogId, StoredMembership, TypeConfig};
use crate::clock::Instant;
use crate::types::{LogPosition, Member, NodeId};

/// The members at one moment: who they are and who votes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// The log entry that set it; `None` before the first.
    pub position: Option<LogPosition>,
    /// Whether that entry is known to be committed.
    pub committed: bool,
    /// Everybody, voters and learners.
    pub members: BTreeMap<NodeId, Member>,
    /// Those that vote; of a joint membership those that shall.
    pub voters: BTreeSet<NodeId>,
    /// Of a joint membership: those that voted before, and still must agree as well.
    pub leaving_voters: Option<BTreeSet<NodeId>>,
}

impl Roster {
    pub(super) fn of(effective: &StoredMembership, committed: &StoredMembership) -> Self {
        let membership = effective.membership();
        let mut configs = membership.get_joint_config().iter().rev().cloned();
        Self {
            position: effective.log_id().map(Into::into),
            committed: effective.log_id() == committed.log_id(),
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters: configs.next().unwrap_or_default(),
            leaving_voters: configs.next(),
        }
    }

    /// Whether a change is under way that nobody knows the end of yet.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.committed && self.leaving_voters.is_none()
    }
}

/// Why the members were not changed, or are not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead, or gives the leadership away.
    #[error("this node does not lead")]
    NotLeader,
    /// Another change has not ended, or the membership is not the one that was seen.
    #[error("another change is under way")]
    Busy,
    /// It may come about, or not.
    #[error("{0}")]
    Unknown(String),
    /// openraft does not make such a change.
    #[error("{0}")]
    Refused(String),
}

type WriteFailure = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

/// Changes the members of `seen`; returns when the change is committed, no later than at `deadline`.
pub(super) async fn change(
    raft: &openraft::Raft<TypeConfig, StateStore>,
    tasks: &TaskTracker,
    seen: Option<LogPosition>,
    members: BTreeMap<NodeId, Member>,
    voters: BTreeSet<NodeId>,
    deadline: Instant,
) -> Result<(), ChangeError> {
    let goal = (members.clone(), voters.clone());
    let aim =
        ChangeMembers::Batch(vec![ChangeMembers::ReplaceAllNodes(members), ChangeMembers::ReplaceAllVoters(voters)]);
    let as_seen = Precondition::LastMembershipLogId { last_membership_log_id: seen.map(LogId::from) };
    // In a task of its own: dropped at the deadline between two steps it would leave a joint membership behind.
    let changing = raft.clone();
    // Who lost the vote stays as a learner, so that it hears of it.
    let steps = tasks.spawn(async move { changing.change_membership_if(aim, true, [as_seen]).await });
    match tokio::time::timeout_at(deadline, steps).await {
        Ok(Ok(Ok(_))) => Ok(()),
        Ok(Ok(Err(error))) => {
            // Only the error of the last step comes back; the one before it may have been made.
            let now = roster(raft);
            let begun = now.position != seen && (now.members, now.voters) == goal;
            Err(if begun {
                ChangeError::Unknown("it was begun, and the next leader goes on".into())
            } else {
                of_failure(error)
            })
        }
        Ok(Err(_)) => Err(ChangeError::Unknown("this node stopped meanwhile".into())),
        Err(_) => Err(ChangeError::Unknown("it was not committed within the deadline".into())),
    }
}

/// The members, as the newest entry has them that this node has.
fn roster(raft: &openraft::Raft<TypeConfig, StateStore>) -> Roster {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    Roster::of(&metrics.membership_config, &metrics.committed_membership_config)
}

/// Writes an entry without content and returns its index once it is committed: a number that nobody else ever gets.
pub(super) async fn fresh_index(
    raft: &openraft::Raft<TypeConfig, StateStore>,
    deadline: Instant,
) -> Result<u64, ChangeError> {
    match tokio::time::timeout_at(deadline, raft.write_blank()).await {
        Ok(Ok(written)) => Ok(written.log_id.index),
        Ok(Err(error)) => Err(match of_failure(error) {
            // Whether the entry came about is of no interest.
            ChangeError::Unknown(_) => ChangeError::NotLeader,
            error => error,
        }),
        Err(_) => Err(ChangeError::Busy),
    }
}

fn of_failure(error: WriteFailure) -> ChangeError {
    let error = match error {
        RaftError::APIError(error) => error,
        RaftError::Fatal(_) => return ChangeError::Unknown("this node stopped meanwhile".into()),
    };
    match error {
        ClientWriteError::ForwardToLeader(_) => ChangeError::NotLeader,
        error @ ClientWriteError::LogEntryDiscarded(_) => ChangeError::Unknown(error.to_string()),
        ClientWriteError::PreconditionFailed(_)
        | ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
        ) => ChangeError::Busy,
        ClientWriteError::ChangeMembershipError(error) => ChangeError::Refused(error.to_string()),
    }
}
