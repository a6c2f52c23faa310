//! The leader's housekeeping of the group: it fulfils what is wished for in the membership, ends changes that an earlier
//! leader began, takes out members that have been silent for too long if it is told to, and gives the leadership to a voter
//! that is preferred.
//!
//! Every node runs this; only the one that leads acts. Whatever it does goes by the membership it has seen, so that two that
//! believe to lead can't both succeed.
//!
//! Guarantees: nothing is kept but in the membership, so that any later leader goes on; the leadership is moved only after a
//! preferred voter was able to lead for [`PREFERENCE_ELECTIONS`] election timeouts, and after a failure only much later.
//! Leaves out: what the next step is (`steps`).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Membership;
use super::steps::{Facts, Seen, next_step, preferred_leader, replaces_leader};
use crate::clock::{self, Instant};
use crate::raft::{ChangeError, Leader, Roster};
use crate::types::{NodeId, Wish};

/// Voters that dead-server clean-up leaves at least, where nothing else is said.
pub const VOTERS_MIN_DEFAULT: usize = 3;

/// How long one step may take: an fsync and a round trip or two, on a bad day.
const STEP_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// A voter of greater priority leads once it could for so many longest election timeouts.
const PREFERENCE_ELECTIONS: u32 = 5;

/// The longest election timeouts that pass after an attempt to move the leadership before the next.
const PREFERENCE_PAUSE_ELECTIONS: u32 = 60;

/// What a group does about its members by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPolicy {
    /// A member that the leader has not heard from for so long is taken out; `None`: never.
    pub remove_silent_after: Option<Duration>,
    /// Voters that this leaves at least.
    pub voters_min: usize,
}

impl Default for MemberPolicy {
    fn default() -> Self {
        Self { remove_silent_after: None, voters_min: VOTERS_MIN_DEFAULT }
    }
}

/// What one leadership remembers.
#[derive(Default)]
struct Memory {
    /// When each member was last heard from, or first missed.
    heard: BTreeMap<NodeId, Instant>,
    /// Since when each member that leaves has been known to.
    leaving: BTreeMap<NodeId, Instant>,
    /// Who shall lead, and since when that is so.
    preferred: Option<(NodeId, Instant)>,
}

/// Keeps the members in order while this node leads, until `shutdown`.
pub(in crate::node) async fn keep(membership: Membership, policy: MemberPolicy, shutdown: CancellationToken) {
    let mut changes = membership.raft().changes();
    let mut memory = None;
    // Not forgotten with the leadership: it may come back at once.
    let mut moved: Option<Instant> = None;
    loop {
        if membership.raft().leads() {
            membership.leads_for();
            // A change that was begun goes on by itself.
            let look = membership.look(&policy, memory.get_or_insert_default(), &mut moved);
            if shutdown.run_until_cancelled(look).await.is_none() {
                return;
            }
        } else {
            memory = None;
        }
        // What is known of the others changes without notice.
        let pause = membership.transfers.timers.heartbeat;
        let news = tokio::time::timeout(pause, changes.changed());
        if shutdown.run_until_cancelled(news).await.is_none() {
            return;
        }
    }
}

impl Membership {
    async fn look(&self, policy: &MemberPolicy, memory: &mut Memory, moved: &mut Option<Instant>) {
        let roster = self.raft().roster();
        let facts = self.facts(&roster, memory);
        if let Some(step) = next_step(&roster, &facts, policy) {
            let Ok(_turn) = self.turn.try_lock() else { return };
            let deadline = clock::now() + (self.transfers.timers.election_max * 2).max(STEP_TIMEOUT_MIN);
            match self.raft().change_members(roster.position, step.members, step.voters, deadline).await {
                Ok(()) => tracing::info!(why = step.why, "the members were changed"),
                Err(ChangeError::Busy | ChangeError::NotLeader) => {}
                Err(error) => tracing::warn!(%error, why = step.why, "the members were not changed"),
            }
            return;
        }
        self.prefer(&roster, &facts, memory, moved).await;
    }

    fn facts(&self, roster: &Roster, memory: &mut Memory) -> Facts {
        let (me, status, now) = (self.raft().id(), self.raft().status(), clock::now());
        let silence = self.transfers.timers.leader_silence();
        memory.heard.retain(|id, _| roster.members.contains_key(id));
        let leaves = |id: &NodeId| roster.members.get(id).is_some_and(|member| member.wish == Wish::Leave);
        memory.leaving.retain(|id, _| leaves(id));
        let mut seen = |id: NodeId| {
            let last = memory.heard.entry(id).or_insert(now);
            if let Some(age) = status.heard_from(id) {
                *last = (*last).max(now.checked_sub(age).unwrap_or(*last));
            }
            let silent = now.saturating_duration_since(*last);
            let reachable = status.heard_from(id).is_some_and(|age| age < silence);
            let leaving = if leaves(&id) { memory.leaving.entry(id).or_insert(now).elapsed() } else { Duration::ZERO };
            Seen { reachable, silent, matched: status.matched(id), leaving }
        };
        let others = roster.members.keys().filter(|id| **id != me).map(|id| (*id, seen(*id))).collect();
        Facts { me, last: status.last_log_index().unwrap_or(0), others, silence }
    }

    /// Has a voter lead that shall rather than this node, once it was able to for a while.
    async fn prefer(&self, roster: &Roster, facts: &Facts, memory: &mut Memory, moved: &mut Option<Instant>) {
        let election = self.transfers.timers.election_max;
        let urgent = replaces_leader(roster, facts);
        let wanted = if urgent { self.transfers.heir_of_all().await } else { preferred_leader(roster, facts) };
        let Some(wanted) = wanted else {
            memory.preferred = None;
            return;
        };
        let since = match memory.preferred {
            Some((id, since)) if id == wanted => since,
            _ => memory.preferred.insert((wanted, clock::now())).1,
        };
        let pause = election * if urgent { PREFERENCE_ELECTIONS } else { PREFERENCE_PAUSE_ELECTIONS };
        let paused = moved.is_some_and(|at| at.elapsed() < pause);
        if paused || (!urgent && since.elapsed() < election * PREFERENCE_ELECTIONS) {
            return;
        }
        let Ok(_turn) = self.turn.try_lock() else { return };
        *moved = Some(clock::now());
        if self.raft().leader() != Leader::Me {
            return;
        }
        tracing::info!(to = wanted.get(), urgent, "another voter shall lead");
        let deadline = clock::now() + (election * 2).max(STEP_TIMEOUT_MIN);
        if let Err(error) = self.raft().transfer_leadership(wanted, deadline).await {
            tracing::warn!(%error, "the leadership was not handed over");
        }
    }
}
