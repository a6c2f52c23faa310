//! What the leader does next about the members: pure decisions on what it knows.
//!
//! Guarantees: at most one step at a time, and none while a change is under way; a step that takes or gives a vote leaves a
//! quorum of voters that are reachable. Leaves out: doing it (`keeper`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::keeper::MemberPolicy;
use super::plan::{Change, Plan, Refusal};
use crate::node::leader_transfer::LAG_ENTRIES_MAX;
use crate::raft::Roster;
use crate::types::{LogPosition, Member, NodeId, Wish};

/// What the leader knows of the others.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Its own id.
    pub(super) me: NodeId,
    /// Index of its last entry.
    pub(super) last: u64,
    /// The others.
    pub(super) others: BTreeMap<NodeId, Seen>,
    /// Who is silent for so long is away.
    pub(super) silence: Duration,
}

/// A member that is there, but does not get so far in its log that it hears that it leaves, goes after so many silences.
const LEAVING_SILENCES_MAX: u32 = 15;

/// What the leader knows of another member.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Whether it was heard from lately.
    pub(super) reachable: bool,
    /// How long it has been silent, as far as this leader can tell.
    pub(super) silent: Duration,
    /// How far its log is known to reach.
    pub(super) matched: Option<LogPosition>,
    /// For how long this leader has known that it leaves.
    pub(super) leaving: Duration,
}

impl Facts {
    fn reachable(&self) -> BTreeSet<NodeId> {
        let others = self.others.iter().filter(|(_, seen)| seen.reachable).map(|(id, _)| *id);
        others.chain([self.me]).collect()
    }

    fn seen(&self, id: NodeId) -> Seen {
        self.others.get(&id).copied().unwrap_or_default()
    }

    /// Whether a member answers and lacks next to nothing of the log.
    fn is_up_to_date(&self, id: NodeId) -> bool {
        let seen = self.seen(id);
        let matched = seen.matched.map_or(0, |position| position.index.get());
        id == self.me || (seen.reachable && self.last.saturating_sub(matched) <= LAG_ENTRIES_MAX)
    }
}

/// The next membership, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) voters: BTreeSet<NodeId>,
    pub(super) why: String,
}

/// What is to be done next, if anything.
pub(super) fn next_step(roster: &Roster, facts: &Facts, policy: &MemberPolicy) -> Option<Step> {
    if !roster.committed {
        return None;
    }
    // A leader before this one has not come to the end of its change.
    if roster.leaving_voters.is_some() {
        let why = "ending the change that an earlier leader began".to_owned();
        return Some(Step { members: roster.members.clone(), voters: roster.voters.clone(), why });
    }
    take_out(roster, facts).or_else(|| promote(roster, facts)).or_else(|| clean_up(roster, facts, policy))
}

/// A member without a vote that is to leave goes once it has heard so, or can't.
fn take_out(roster: &Roster, facts: &Facts) -> Option<Step> {
    let leaves = |(id, member): &(&NodeId, &Member)| member.wish == Wish::Leave && !roster.voters.contains(id);
    let may_go = |(id, _): &(&NodeId, &Member)| {
        let seen = facts.seen(**id);
        let heard = seen.reachable && seen.matched >= roster.position;
        let away = !seen.reachable && seen.silent >= facts.silence;
        heard || away || seen.leaving >= facts.silence * LEAVING_SILENCES_MAX
    };
    let (id, member) = roster.members.iter().filter(leaves).find(may_go)?;
    let mut members = roster.members.clone();
    members.remove(id);
    Some(Step { members, voters: roster.voters.clone(), why: format!("{} (member {id}) leaves", member.name) })
}

/// A learner that is to vote does once it has caught up; the one whose place it takes leaves in the same change.
fn promote(roster: &Roster, facts: &Facts) -> Option<Step> {
    let ready = roster.members.iter().filter(|(id, member)| {
        matches!(member.wish, Wish::Vote { .. }) && !roster.voters.contains(id) && facts.is_up_to_date(**id)
    });
    for (id, member) in ready {
        let Wish::Vote { replaces } = member.wish else { continue };
        // The leader can't take its own vote; it hands over first (`keeper`).
        if replaces == Some(facts.me) {
            continue;
        }
        let (mut members, mut voters) = (roster.members.clone(), roster.voters.clone());
        voters.insert(*id);
        members.insert(*id, Member { wish: Wish::Stay, ..member.clone() });
        let mut why = format!("{} (member {id}) has caught up and votes", member.name);
        if let Some((old, leaving)) = replaces.and_then(|old| roster.members.get_key_value(&old)) {
            voters.remove(old);
            members.insert(*old, Member { wish: Wish::Leave, ..leaving.clone() });
            why = format!("{why} in place of {} (member {old})", leaving.name);
        }
        if is_quorum(&voters, &facts.reachable()) {
            return Some(Step { members, voters, why });
        }
    }
    None
}

/// The leader whose place a member that has caught up shall take.
pub(super) fn replaces_leader(roster: &Roster, facts: &Facts) -> bool {
    let wish = Wish::Vote { replaces: Some(facts.me) };
    roster.is_settled() && roster.members.iter().any(|(id, member)| member.wish == wish && facts.is_up_to_date(*id))
}

/// One member that has been silent for too long leaves, if enough others stay.
fn clean_up(roster: &Roster, facts: &Facts, policy: &MemberPolicy) -> Option<Step> {
    let limit = policy.remove_silent_after?;
    if roster.members.values().any(|member| member.wish == Wish::Leave) {
        return None;
    }
    let silent = |id: &&NodeId| **id != facts.me && !facts.seen(**id).reachable && facts.seen(**id).silent >= limit;
    roster.members.keys().filter(silent).find_map(|id| {
        let plan: Result<Plan, Refusal> = Plan::of(&Change::Remove(*id), roster);
        let plan = plan.ok().filter(|plan| plan.check_quorum(roster, &facts.reachable()).is_ok())?;
        if roster.voters.contains(id) && plan.voters.len() < policy.voters_min {
            return None;
        }
        let name = &roster.members[id].name;
        let why = format!("{name} (member {id}) was silent for {} s", facts.seen(*id).silent.as_secs());
        Some(Step { members: plan.members, voters: plan.voters, why })
    })
}

fn is_quorum(voters: &BTreeSet<NodeId>, reachable: &BTreeSet<NodeId>) -> bool {
    voters.intersection(reachable).count() > voters.len() / 2
}

/// The voter that shall lead rather than this one: of a greater priority than its own, there, and with the whole log.
pub(super) fn preferred_leader(roster: &Roster, facts: &Facts) -> Option<NodeId> {
    if !roster.is_settled() {
        return None;
    }
    let priority = |id: &NodeId| roster.members.get(id).map_or(0, |member| member.priority);
    let mine = if roster.voters.contains(&facts.me) { Some(priority(&facts.me)) } else { None };
    let replaced = |id: NodeId| roster.members.values().any(|other| other.wish == Wish::Vote { replaces: Some(id) });
    let others = roster.voters.iter().filter(|id| **id != facts.me && facts.is_up_to_date(**id) && !replaced(**id));
    let best = others.max_by_key(|id| (priority(id), std::cmp::Reverse(**id)))?;
    (Some(priority(best)) > mine).then_some(*best)
}

#[cfg(test)]
mod tests;
