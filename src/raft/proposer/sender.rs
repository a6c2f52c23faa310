//! Sends one round: as an entry into this node's log, or as one call to the leader.
//!
//! Guarantees: every group of a round is answered, or handed back because it surely was not proposed. Leaves out: when
//! rounds begin, and what becomes of what is handed back (`rounds`).

use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};

use super::{Group, ProposeError};
use crate::clock;
use crate::raft::messages::{ForwardRefusal, Request, Response};
use crate::raft::metrics::ProposerMetrics;
use crate::raft::network::{Peers, unexpected};
use crate::raft::state_store::StateStore;
use crate::raft::types::TypeConfig;
use crate::state::{Batch, Command, Outcome};
use crate::transport::Channel;
use crate::types::{Member, NodeId};

/// What a forwarding node keeps of its callers' time for the way back, as a part of what is left ...
const RETURN_PART: u32 = 8;

/// ... and at most. Without it the leader's "not proposed" would come too late to be told.
const RETURN_TIME_MAX: Duration = Duration::from_secs(1);

/// Sends one round.
#[derive(Clone)]
pub(super) struct RoundSender {
    pub(super) raft: openraft::Raft<TypeConfig, StateStore>,
    pub(super) peers: Peers,
    pub(super) metrics: ProposerMetrics,
}

impl RoundSender {
    /// Writes one entry; returns the groups that surely were not proposed.
    pub(super) async fn propose(self, groups: Vec<Group>) -> Vec<Group> {
        let mut groups: Vec<Group> = groups.into_iter().filter(|group| group.stage.propose()).collect();
        let stamp = clock::wall();
        let mut commands = Vec::with_capacity(groups.len());
        for group in &mut groups {
            for command in &mut group.commands {
                command.proposed_at = stamp;
            }
            commands.extend_from_slice(&group.commands);
        }
        let Some(deadline) = groups.iter().map(|group| group.deadline).max() else { return Vec::new() };
        let started = clock::now();
        self.metrics.commands_per_round.observe(commands.len() as f64);
        // Without a quorum the answer may never come; from the last deadline on nobody waits for it.
        let batch = Batch::encode_sized(&commands, bytes_of(&groups));
        let write = self.raft.client_write(batch);
        let Ok(result) = tokio::time::timeout_at(deadline, write).await else { return Vec::new() };
        self.metrics.round_seconds.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(response) => {
                answer(groups, response.data.0.into_iter().map(Some));
                Vec::new()
            }
            // Not appended: this node no longer leads, or has lost its quorum.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => requeue(groups),
            Err(error) => {
                refuse(groups, |_| true, &ProposeError::Unknown(error.to_string()));
                Vec::new()
            }
        }
    }

    /// Sends the groups to the leader; returns those that surely were not proposed there.
    pub(super) async fn forward(self, leader: NodeId, member: Member, groups: Vec<Group>) -> Vec<Group> {
        let groups: Vec<Group> = groups.into_iter().filter(|group| group.stage.propose()).collect();
        let Some(deadline) = groups.iter().map(|group| group.deadline).max() else { return Vec::new() };
        let commands: Vec<Command> = groups.iter().flat_map(|group| group.commands.iter().cloned()).collect();
        let timeout = deadline.saturating_duration_since(clock::now());
        let leaders_time = timeout - (timeout / RETURN_PART).min(RETURN_TIME_MAX);
        let request = Request::Forward {
            commands: Batch::encode_sized(&commands, bytes_of(&groups)).as_bytes().clone(),
            timeout_ms: u64::try_from(leaders_time.as_millis()).unwrap_or(u64::MAX),
        };
        let started = clock::now();
        self.metrics.commands_per_round.observe(commands.len() as f64);
        let result = self.peers.call(leader, &member, Channel::Forward, &request, timeout).await;
        self.metrics.round_seconds.observe(started.elapsed().as_secs_f64());
        let unknown = match result {
            Ok(Response::Forward(Ok(outcomes))) if outcomes.len() == commands.len() => {
                answer(groups, outcomes);
                return Vec::new();
            }
            Ok(Response::Forward(Err(ForwardRefusal::NotLeader(_) | ForwardRefusal::NotProposed(_)))) => {
                return requeue(groups);
            }
            Ok(Response::Forward(Err(ForwardRefusal::Unknown(reason)))) => reason,
            Ok(other) => unexpected(&other).to_string(),
            Err(error) if error.may_have_arrived() => error.to_string(),
            Err(_) => return requeue(groups),
        };
        refuse(groups, |_| true, &ProposeError::Unknown(unknown));
        Vec::new()
    }
}

/// Has the groups tried again: they surely were not proposed.
fn requeue(groups: Vec<Group>) -> Vec<Group> {
    groups.iter().for_each(|group| group.stage.requeue());
    groups
}

/// Refuses what was forwarded to this node already, which does not lead.
pub(super) fn refuse_forwarded(groups: Vec<Group>, leader: Option<NodeId>) -> Vec<Group> {
    refuse(groups, |group| !group.may_forward, &ProposeError::NotLeader(leader))
}

/// No less than the commands of these groups take when encoded.
fn bytes_of(groups: &[Group]) -> usize {
    groups.iter().map(|group| group.size.bytes).sum()
}

/// Gives each group its share of the outcomes. A group that one is missing for is told so; the others get theirs.
fn answer(groups: Vec<Group>, outcomes: impl IntoIterator<Item = Option<Outcome>>) {
    let mut outcomes = outcomes.into_iter();
    for group in groups {
        let share: Vec<Outcome> = outcomes.by_ref().take(group.commands.len()).flatten().collect();
        let whole = share.len() == group.commands.len();
        let missing = || ProposeError::Unknown("it was applied, but its answer had no room on the way back".into());
        let result = if whole { Ok(share) } else { Err(missing()) };
        // A caller that has stopped waiting has been told "unknown".
        let _ = group.reply.send(result);
    }
}

/// Answers the groups that match with an error; returns the others.
pub(super) fn refuse(groups: Vec<Group>, matches: impl Fn(&Group) -> bool, error: &ProposeError) -> Vec<Group> {
    let (refused, kept): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(matches);
    for group in refused {
        let _ = group.reply.send(Err(error.clone()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::raft::proposer::WaitingBytes;
    use crate::state::{Operation, Principal, Rejection, Txn};
    use crate::types::WallTime;

    fn command(txn: Txn) -> Command {
        let (principal, request) = (Principal::User("u".repeat(100)), None);
        Command { proposed_at: WallTime::ZERO, principal, request, operation: Operation::Txn(txn) }
    }

    #[test]
    fn a_group_without_all_its_outcomes_leaves_the_others_theirs() {
        let all = Arc::default();
        let (groups, mut answers): (Vec<Group>, Vec<_>) = (0..3)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                let group = Group {
                    commands: vec![command(Txn::default()); 2],
                    size: WaitingBytes::take(1, &all).unwrap(),
                    reply_bytes: 0,
                    may_forward: true,
                    deadline: clock::now(),
                    stage: Arc::default(),
                    reply,
                };
                (group, answer)
            })
            .unzip();
        let outcome = |limit| Err(Rejection::TooManyKeys { limit });
        let outcomes = [Some(1), Some(2), None, Some(4), Some(5), Some(6)].map(|limit| limit.map(outcome));
        answer(groups, outcomes);
        let mut next = || answers.remove(0).try_recv().unwrap();
        assert_eq!(next(), Ok(vec![outcome(1), outcome(2)]));
        assert!(matches!(next(), Err(ProposeError::Unknown(_))));
        assert_eq!(next(), Ok(vec![outcome(5), outcome(6)]));
    }
}
