//! Changing the members on request, through whichever node is asked.
//!
//! A node that does not lead passes the order on to the leader, one hop. A new member is a learner first: the leader dials
//! it, looks whether it may come, gives it an id and only then proposes anything (`adding`). What takes time is written
//! into the membership as a wish ([`crate::types::Wish`]), and whoever leads then fulfils it (`keeper`): a learner that has
//! caught up votes, a member that leaves is taken out once it has heard of it.
//!
//! ```text
//! 0xF3 | version (1) | postcard of Order, or of Result<Changed, MemberError>
//! ```
//!
//! Guarantees: one change at a time; a change that is refused has changed nothing in the group; an order to add or to update
//! may be given again, and comes to the same. Leaves out: the wire form for clients (`api::model`).

mod adding;
mod joining;
mod keeper;
mod own_entry;
mod plan;
mod removal;
mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::joining::Join;
pub(super) use self::joining::join;
pub(super) use self::keeper::keep;
pub use self::keeper::{MemberPolicy, VOTERS_MIN_DEFAULT};
pub(super) use self::own_entry::follow_own_entry;
pub use self::plan::{Change, MEMBERS_MAX, MemberPatch, MemberRef, NewMember, Quorums, ZoneQuorum};
use self::plan::{Plan, Refusal};
pub(super) use self::removal::{Removal, watch_removal};
use super::Node;
use super::leader_transfer::Transfers;
use crate::clock::{self, Instant};
use crate::raft::{ChangeError, Leader, RaftNode, Roster};
use crate::transport::{CallError, Channel};
use crate::types::{ClusterId, LogPosition, Member, NodeId, Term, Wish};

/// The first byte of these messages.
pub(super) const MEMBERSHIP: u8 = 0xF3;

/// The newest format of these messages.
const VERSION: u8 = 1;

/// Pause before another look for a leader, or for what was wished for.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What a node that passes an order on keeps of its caller's time for the way back, as a part of what is left ...
const RETURN_PART: u32 = 8;

/// ... and at most.
const RETURN_TIME_MAX: Duration = Duration::from_secs(1);

/// A caller that asks for longer is given this long.
const ORDER_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// How a change is to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeOptions {
    /// Only tell what would happen.
    pub dry_run: bool,
    /// Make it even if no quorum is known to be reachable then.
    pub force: bool,
}

/// A change that was made, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The member; `None` for one that would be added.
    pub id: Option<NodeId>,
    /// Whether all is done; otherwise the leader goes on when it can.
    pub done: bool,
    /// How voters stood before.
    pub before: Quorums,
    /// How they stand once all is done.
    pub after: Quorums,
    /// What is doubtful about that, each in a sentence.
    pub warnings: Vec<String>,
    /// The entry of the membership that this tells of.
    pub position: Option<LogPosition>,
}

/// Why the members were not changed, or are not known to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MemberError {
    /// This node is not ready.
    #[error("this node is not ready: {0}; nothing was changed")]
    NotReady(String),
    /// No leader was known within the deadline.
    #[error("there is no leader at present; nothing was changed")]
    NoLeader,
    /// The leader has lost its quorum.
    #[error("the leader can't reach a quorum; nothing was changed")]
    NoQuorum,
    /// Nobody has this id.
    #[error("there is no member {id}; the members are {members}")]
    UnknownMember {
        /// What was asked for.
        id: NodeId,
        /// Who there is, as `id (name)`.
        members: String,
    },
    /// The change does not go with how things stand.
    #[error("{0}")]
    Conflict(String),
    /// A node that would be added, or the new address of a member, can't be reached.
    #[error("{0}")]
    Unreachable(String),
    /// No quorum would be reachable.
    #[error("{0}")]
    WouldLoseQuorum(String),
    /// Another change has not ended.
    #[error("another change of the members is under way; nothing was changed, try again when it has ended")]
    Busy,
    /// Nobody knows yet whether it comes about.
    #[error("whether the members were changed is not known: {0}; look with GET /v1/cluster, or give the order again")]
    Unknown(String),
    /// The node that was asked does not lead.
    #[error("the node that was asked does not lead")]
    NotLeader,
}

impl From<Refusal> for MemberError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownMember { id, members } => Self::UnknownMember { id, members },
            Refusal::Conflict(why) => Self::Conflict(why),
            Refusal::WouldLoseQuorum(why) => Self::WouldLoseQuorum(why),
        }
    }
}

impl From<ChangeError> for MemberError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotLeader => Self::NotLeader,
            ChangeError::Busy => Self::Busy,
            ChangeError::Unknown(why) => Self::Unknown(why),
            ChangeError::Refused(why) => Self::Conflict(why),
        }
    }
}

/// Change the members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    /// `None` from a node that belongs to no cluster yet.
    cluster: Option<ClusterId>,
    /// Set where another member passes the order on: then it goes no further.
    to: Option<NodeId>,
    change: Change,
    options: ChangeOptions,
    timeout_ms: u64,
}

/// What it takes to change the members. Cheap to clone.
#[derive(Clone)]
pub(super) struct Membership {
    pub(super) transfers: Transfers,
    /// Held while a change is proposed here.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The last term in which this node led, and since when that was known.
    since: Arc<parking_lot::Mutex<Option<(Term, Instant)>>>,
}

impl Membership {
    pub(super) fn new(transfers: Transfers) -> Self {
        Self { transfers, turn: Arc::default(), since: Arc::default() }
    }

    fn raft(&self) -> &RaftNode {
        &self.transfers.raft
    }

    /// Answers an order of another member, or of a node that wants to be one; `None` for what is none to this one.
    pub(super) async fn handle(&self, message: &[u8]) -> Option<Bytes> {
        let order: Order = match decode(message) {
            Ok(order) => order,
            Err(why) => return Some(encode(&Err::<Changed, _>(MemberError::Conflict(why)))),
        };
        if order.cluster.is_some_and(|cluster| cluster != self.transfers.cluster) {
            let (theirs, ours) = (order.cluster.unwrap_or_default(), self.transfers.cluster);
            let why = format!("the order is for cluster {theirs}, this is cluster {ours}; nothing was changed");
            return Some(encode(&Err::<Changed, _>(MemberError::Conflict(why))));
        }
        let deadline = clock::now() + Duration::from_millis(order.timeout_ms).min(ORDER_TIMEOUT_MAX);
        let result = match order.to {
            Some(to) if to != self.raft().id() => return None,
            Some(_) => self.as_leader(&order.change, order.options, deadline).await,
            None => self.carry_out(&order.change, order.options, deadline).await,
        };
        Some(encode(&result))
    }

    /// Makes a change, here or on the leader.
    async fn carry_out(
        &self,
        change: &Change,
        options: ChangeOptions,
        deadline: Instant,
    ) -> Result<Changed, MemberError> {
        let silence = self.transfers.timers.leader_silence();
        loop {
            let result = match self.raft().leader_heard(silence) {
                Leader::Other(id, leader) => self.pass_on(id, &leader, change, options, deadline).await,
                // One that has lost its quorum says so itself.
                Leader::Me => self.as_leader(change, options, deadline).await,
                Leader::None if self.raft().leader() == Leader::Me => Err(MemberError::NoQuorum),
                Leader::None => Err(MemberError::NotLeader),
            };
            match result {
                // It has changed meanwhile, or there is none yet.
                Err(MemberError::NotLeader) if clock::now() + RETRY_PAUSE < deadline => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(MemberError::NotLeader) => return Err(MemberError::NoLeader),
                result => return result,
            }
        }
    }

    async fn pass_on(
        &self,
        leader: NodeId,
        member: &Member,
        change: &Change,
        options: ChangeOptions,
        deadline: Instant,
    ) -> Result<Changed, MemberError> {
        let left = deadline.saturating_duration_since(clock::now());
        let leaders_time = left - (left / RETURN_PART).min(RETURN_TIME_MAX);
        let timeout_ms = u64::try_from(leaders_time.as_millis()).unwrap_or(u64::MAX);
        let cluster = Some(self.transfers.cluster);
        let order = Order { cluster, to: Some(leader), change: change.clone(), options, timeout_ms };
        // Not where votes travel: they may be asked for while this waits for its answer.
        let call = self.transfers.transport.call(&member.peer_addr, Channel::Forward, encode(&order), deadline);
        match call.await {
            Ok(answer) => decode(&answer).unwrap_or_else(|why| Err(MemberError::Unknown(why))),
            Err(error @ CallError::NoAnswer { .. }) => Err(MemberError::Unknown(error.to_string())),
            // Nothing was sent.
            Err(CallError::Unreachable { .. } | CallError::TooLarge { .. }) => Err(MemberError::NotLeader),
        }
    }

    /// Makes a change, if this node leads.
    async fn as_leader(
        &self,
        change: &Change,
        options: ChangeOptions,
        deadline: Instant,
    ) -> Result<Changed, MemberError> {
        if self.raft().leader() != Leader::Me {
            return Err(MemberError::NotLeader);
        }
        if !self.raft().leads() {
            return Err(MemberError::NoQuorum);
        }
        let Ok(_turn) = self.turn.try_lock() else { return Err(MemberError::Busy) };
        let roster = self.settled()?;
        let (id, plan) = match change {
            Change::Add(new) => match self.adding(&roster, new, options, deadline).await? {
                adding::Adding::Already(id, plan) => (Some(id), plan),
                adding::Adding::New(id, plan) => (id, plan),
            },
            Change::Update(id, patch) => {
                self.check_new_address(&roster, *id, patch).await?;
                (Some(*id), Plan::of(change, &roster)?)
            }
            Change::Remove(id) => (Some(*id), Plan::of(change, &roster)?),
        };
        let reachable = self.check_quorum(&roster, &plan, options)?;
        let mut changed = told(&roster, &plan, id, &reachable);
        let me = self.raft().id();
        let loses_own_vote = roster.voters.contains(&me) && !plan.voters.contains(&me);
        let heir = if loses_own_vote { Some(self.heir().await?) } else { None };
        if options.dry_run || plan.changes_nothing(&roster) {
            return Ok(changed);
        }
        if let Some(heir) = heir {
            self.give_away(heir, deadline).await;
            return Err(MemberError::NotLeader);
        }
        self.raft().change_members(roster.position, plan.members.clone(), plan.voters.clone(), deadline).await?;
        changed.position = self.raft().roster().position;
        tracing::info!(?change, id = id.map(NodeId::get), "the members were changed");
        Ok(changed)
    }

    /// The members, unless a change is under way.
    fn settled(&self) -> Result<Roster, MemberError> {
        let roster = self.raft().roster();
        if roster.is_settled() { Ok(roster) } else { Err(MemberError::Busy) }
    }

    /// Who is heard from. One that is being added has answered just now.
    fn reachable(&self, roster: &Roster, plan: &Plan) -> BTreeSet<NodeId> {
        let (me, status) = (self.raft().id(), self.raft().status());
        let silence = self.transfers.timers.leader_silence();
        let heard = |id: &NodeId| {
            *id == me || !roster.members.contains_key(id) || status.heard_from(*id).is_some_and(|age| age < silence)
        };
        plan.members.keys().copied().filter(heard).collect()
    }

    /// Refuses a plan after which no quorum would be reachable, unless it is forced; returns who is reachable.
    fn check_quorum(
        &self,
        roster: &Roster,
        plan: &Plan,
        options: ChangeOptions,
    ) -> Result<BTreeSet<NodeId>, MemberError> {
        let reachable = self.reachable(roster, plan);
        match plan.check_quorum(roster, &reachable) {
            Err(_) if options.force => Ok(reachable),
            // It has just been elected, and can't have heard from everybody.
            Err(_) if self.leads_for() < self.transfers.timers.leader_silence() => Err(MemberError::NotLeader),
            Err(refusal) => Err(refusal.into()),
            Ok(()) => Ok(reachable),
        }
    }

    /// For how long this node has been known to lead in this term.
    fn leads_for(&self) -> Duration {
        let term = self.raft().term();
        let mut since = self.since.lock();
        if since.is_none_or(|(of, _)| of != term) {
            *since = Some((term, clock::now()));
        }
        since.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Who shall lead instead of this node, which is to lose its vote.
    async fn heir(&self) -> Result<NodeId, MemberError> {
        self.transfers.heir_of_all().await.ok_or_else(|| {
            MemberError::Conflict(
                "this member leads, and no other voter answers and has the log; nothing was changed".into(),
            )
        })
    }

    /// Has another voter lead, because this node is to lose its vote: the next leader makes the change.
    async fn give_away(&self, heir: NodeId, deadline: Instant) {
        if let Err(error) = self.raft().transfer_leadership(heir, deadline).await {
            tracing::warn!(%error, "the leadership was not handed over");
        }
    }
}

/// What is told of a plan.
fn told(roster: &Roster, plan: &Plan, id: Option<NodeId>, reachable: &BTreeSet<NodeId>) -> Changed {
    let after = plan.at_last(reachable);
    let done = plan.members.values().all(|member| member.wish == Wish::Stay);
    Changed {
        id,
        done,
        before: Quorums::of(&roster.members, &roster.voters, reachable),
        warnings: after.warnings(),
        after,
        position: roster.position,
    }
}

impl Node {
    /// Changes the members. A change that takes time is begun when this returns; the leader goes on with it by itself. One
    /// that is only told ([`ChangeOptions::dry_run`]) changes nothing.
    ///
    /// # Errors
    /// [`MemberError`]; only [`MemberError::Unknown`] leaves open whether it comes about.
    pub async fn change_members(
        &self,
        change: &Change,
        options: ChangeOptions,
        deadline: Instant,
    ) -> Result<Changed, MemberError> {
        let membership = self.membership().map_err(MemberError::NotReady)?;
        let mut changed = membership.carry_out(change, options, deadline).await?;
        if !options.dry_run {
            changed.done = self.await_wish(change, &changed, deadline).await;
        }
        Ok(changed)
    }

    /// Waits a little for what is wished for a member to be done, as far as this node hears of it.
    async fn await_wish(&self, change: &Change, changed: &Changed, deadline: Instant) -> bool {
        let (Ok(raft), Some(id)) = (self.raft(), changed.id) else { return false };
        let until = deadline.min(clock::now() + self.0.timers.election_max);
        let mut changes = raft.changes();
        loop {
            let roster = raft.roster();
            let wish = roster.members.get(&id).map(|member| member.wish);
            let is_so = match change {
                Change::Remove(_) => wish.is_none(),
                Change::Add(_) | Change::Update(..) => wish == Some(Wish::Stay),
            };
            if roster.position >= changed.position && roster.is_settled() && is_so {
                return true;
            }
            if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                return false;
            }
        }
    }

    pub(super) fn membership(&self) -> Result<&Membership, String> {
        self.raft()?;
        self.0.membership.get().ok_or_else(|| "it is starting".into())
    }
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    let out = postcard::to_extend(value, vec![MEMBERSHIP, VERSION]);
    Bytes::from(out.expect("plain data into a growing vector can't fail"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes {
        [MEMBERSHIP, VERSION, body @ ..] => postcard::from_bytes(body).map_err(|error| error.to_string()),
        [MEMBERSHIP, version, ..] => Err(format!(
            "format {version} of membership messages is not known here (newest: {VERSION}); run the same version on all members"
        )),
        _ => Err("not a membership message".into()),
    }
}

#[cfg(test)]
mod tests;
