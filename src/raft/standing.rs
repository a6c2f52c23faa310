//! Read indexes of followers in one round trip: the follower itself gathers the proof that the leader still leads.
//!
//! A leader that is asked for a read index asks a quorum whether it still leads, so that its answer comes two round trips
//! after the question. But the follower can ask for both at once: the leader how far it has committed, and as many voters as
//! make a quorum whom they follow. Its own word is one of them, so that with three voters the leader alone is asked.
//!
//! Why that is enough (Raft's own reason, Ongaro's thesis §6.4, with the question sent by another): let the read begin at t.
//! Each voter of a quorum has said, from a look at its vote later than t, that it had voted for nobody after this leader.
//! Whoever leads next needs a vote of one of them, which that voter can only have given after its look. So nobody else had
//! won an election by t, and all that was acknowledged by then is in what this leader, at a look later than t, called
//! committed; an entry of its own among it says that it knows the commits of its predecessors. The quorum is counted in the
//! members that the leader goes by at that look, as it would count itself.
//!
//! Guarantees: what can't be proven in this way is left to the leader, never guessed. Leaves out: readers that wait
//! (`read_barrier`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::RaftState;
use openraft::error::Fatal;

use super::messages::{Request, Response, Standing};
use super::network::{PeerError, unexpected};
use super::read_barrier::{BarrierError, ReadIndexSource};
use super::state_store::StateStore;
use super::types::{LeaderId, StoredMembership, TypeConfig};
use crate::clock;
use crate::transport::Channel;
use crate::types::{LogIndex, Member, NodeId};

/// How long the others' answers are waited for, as a multiple of the time that the leader's took or the way to the farthest
/// takes, whichever is more. Then the leader is asked for the proof, or asks everybody.
const OTHERS_PATIENCE: u32 = 2;

/// Who has not answered for so long is asked last. Members ask each other for less than this (`node::neighbours`).
const SILENT_AFTER: Duration = Duration::from_secs(5);

/// Where this node stands, between the call and its return: asked of Raft's own task, because what is published for others
/// to read may be older than the call.
pub(super) async fn standing(
    raft: &openraft::Raft<TypeConfig, StateStore>,
) -> Result<(Standing, Arc<StoredMembership>), Fatal<TypeConfig>> {
    raft.with_raft_state(|state: &RaftState<TypeConfig>| {
        let membership = state.membership_state.effective();
        let standing = Standing {
            vote: *state.vote_ref(),
            leads: state.server_state.is_leader(),
            committed: state.local_committed().copied(),
            membership: *membership.log_id(),
        };
        (standing, membership.clone())
    })
    .await
}

impl ReadIndexSource {
    /// A read index of the leader that a quorum has confirmed to this node; `None` where that can't be had in this way.
    /// Without a member the leader is this node.
    pub(super) async fn witnessed(
        &self,
        leader: NodeId,
        member: Option<&Member>,
    ) -> Result<Option<LogIndex>, BarrierError> {
        let Ok((own, membership)) = standing(&self.raft).await else { return Err(BarrierError::Stopping) };
        let me = self.peers.me;
        let configs = membership.membership().get_joint_config();
        let is_quorum = |confirmed: &BTreeSet<NodeId>| {
            configs.iter().all(|config| config.intersection(confirmed).count() > config.len() / 2)
        };
        let witnesses = self.witnesses(leader, &membership, is_quorum);
        let mut others: FuturesUnordered<_> =
            witnesses.iter().map(|(id, member)| async move { (*id, self.standing_of(*id, member).await) }).collect();
        let began = clock::now();
        let mut heard = vec![(me, own.vote.leader_id)];
        let mut leaders_answer = std::pin::pin!(async {
            match member {
                Some(member) => self.standing_of(leader, member).await,
                None => Ok(own),
            }
        });
        let of_leader = loop {
            tokio::select! {
                biased;
                answer = &mut leaders_answer => break answer,
                Some((id, Ok(standing))) = others.next() => heard.push((id, standing.vote.leader_id)),
            }
        };
        let of_leader = match of_leader {
            Ok(standing) if standing.leads => standing,
            // An older program, perhaps.
            Err(PeerError::Refused(_)) => return Ok(None),
            Ok(_) | Err(_) => return Err(BarrierError::NoLeader),
        };
        let reign: LeaderId = of_leader.vote.leader_id;
        let committed = of_leader.committed.filter(|committed| committed.leader_id == reign);
        let Some(committed) = committed.filter(|_| of_leader.membership == own.membership) else { return Ok(None) };
        let mut confirmed = BTreeSet::from([leader]);
        confirmed.extend(heard.into_iter().filter(|(_, follows)| *follows == reign).map(|(id, _)| id));
        let far_witness =
            witnesses.iter().filter_map(|(_, witness)| self.peers.transport.rtt(&witness.peer_addr)).max();
        let patience = began + began.elapsed().max(far_witness.unwrap_or(self.timers.rtt)) * OTHERS_PATIENCE;
        while !is_quorum(&confirmed) {
            match tokio::time::timeout_at(patience, others.next()).await {
                Ok(Some((id, Ok(standing)))) if standing.vote.leader_id == reign => confirmed.insert(id),
                Ok(Some(_)) => false,
                Ok(None) | Err(_) => return Ok(None),
            };
        }
        Ok(Some(LogIndex::new(committed.index)))
    }

    /// The voters to ask beside the leader: no more than are needed, because a call that is given up costs its connection;
    /// those that answered lately first, the nearest of them first.
    fn witnesses<'a>(
        &self,
        leader: NodeId,
        membership: &'a StoredMembership,
        is_quorum: impl Fn(&BTreeSet<NodeId>) -> bool,
    ) -> Vec<(NodeId, &'a Member)> {
        let mut asked = BTreeSet::from([leader, self.peers.me]);
        if is_quorum(&asked) {
            return Vec::new();
        }
        let (now, transport) = (clock::now(), &self.peers.transport);
        let voters: BTreeSet<NodeId> = membership.membership().voter_ids().collect();
        let others = membership.membership().nodes().filter(|(id, _)| voters.contains(*id) && !asked.contains(*id));
        let mut others: Vec<(NodeId, &Member)> = others.map(|(id, member)| (*id, member)).collect();
        others.sort_by_key(|(_, member)| {
            let heard = transport.last_ok(&member.peer_addr);
            let silent = heard.is_none_or(|at| now.saturating_duration_since(at) > SILENT_AFTER);
            (silent, transport.rtt(&member.peer_addr).unwrap_or(Duration::MAX))
        });
        let enough = others.iter().position(|(id, _)| {
            asked.insert(*id);
            is_quorum(&asked)
        });
        others.truncate(enough.map_or(others.len(), |last| last + 1));
        others
    }

    async fn standing_of(&self, id: NodeId, member: &Member) -> Result<Standing, PeerError> {
        let answer = self.peers.call(id, member, Channel::Heartbeat, &Request::Standing, self.timeout());
        match answer.await? {
            Response::Standing(standing) => Ok(standing),
            other => Err(unexpected(&other)),
        }
    }
}
