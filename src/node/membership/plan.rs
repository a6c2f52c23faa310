//! What a change of the members comes to: the members and voters afterwards, whether the group survives it, and the figures
//! that tell an operator so. Pure.
//!
//! Guarantees: a plan leaves at least one voter, names and addresses that differ, and unless it is forced a quorum of voters
//! that are reachable now, in the membership it leads to. Leaves out: proposing it, and asking the new member anything
//! (`adding`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::raft::Roster;
use crate::types::{Member, NodeId, Wish};

/// The most members a group may have: each costs the leader a stream, and each voter makes quorums larger.
pub const MEMBERS_MAX: usize = 64;

/// What shall become of the members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Take in a node that runs and waits for it.
    Add(NewMember),
    /// Change what is known of a member, or whether it votes.
    Update(NodeId, MemberPatch),
    /// Take a member out.
    Remove(NodeId),
}

/// A node that shall become a member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Its name; the node must have been started with it.
    pub name: String,
    /// `host:port` of its peer listener.
    pub peer_addr: String,
    /// The URL of its client listener; `None`: as the node says itself.
    pub client_url: Option<String>,
    /// Its data centre; `None`: as the node says itself.
    pub zone: Option<String>,
    /// How much it is preferred as the leader; `None`: not at all.
    pub priority: Option<u8>,
    /// Whether it shall vote once it has caught up.
    pub votes: bool,
    /// The member it takes the place of once it has caught up.
    pub replaces: Option<MemberRef>,
}

/// A member that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRef {
    /// By its id.
    Id(NodeId),
    /// By its name.
    Name(String),
}

/// What shall be different about a member; `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPatch {
    /// Whether it votes.
    pub votes: Option<bool>,
    /// Its name; from its next start on it must be given that one.
    pub name: Option<String>,
    /// `host:port` of its peer listener.
    pub peer_addr: Option<String>,
    /// The URL of its client listener.
    pub client_url: Option<String>,
    /// Its data centre.
    pub zone: Option<String>,
    /// How much it is preferred as the leader.
    pub priority: Option<u8>,
}

/// The members and voters a change leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The next membership.
    pub(super) members: BTreeMap<NodeId, Member>,
    /// Its voters.
    pub(super) voters: BTreeSet<NodeId>,
    /// The voters once all that is wished for was done.
    pub(super) voters_at_last: BTreeSet<NodeId>,
    /// The members that are there then.
    pub(super) members_at_last: BTreeSet<NodeId>,
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no member {id}; the members are {members}")]
    UnknownMember { id: NodeId, members: String },
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    WouldLoseQuorum(String),
}

/// How voters stand: of now, or after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorums {
    /// How many members vote.
    pub voters: u64,
    /// How many of them must agree.
    pub needed: u64,
    /// How many of them are reachable now.
    pub reachable: u64,
    /// By data centre, in the order of their names; an empty name stands for members without one.
    pub zones: Vec<ZoneQuorum>,
}

/// One data centre.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneQuorum {
    /// Its name.
    pub zone: String,
    /// Voters in it.
    pub voters: u64,
    /// Learners in it.
    pub learners: u64,
    /// Whether the voters elsewhere are a quorum without it.
    pub may_fail: bool,
}

/// How many of so many voters must agree.
fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

impl Quorums {
    /// Of a group with these members and voters, of which these are reachable.
    pub(super) fn of(
        members: &BTreeMap<NodeId, Member>,
        voters: &BTreeSet<NodeId>,
        reachable: &BTreeSet<NodeId>,
    ) -> Self {
        let needed = majority(voters.len());
        let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (id, member) in members {
            let (votes, learns) = zones.entry(&member.zone).or_default();
            *if voters.contains(id) { votes } else { learns } += 1;
        }
        let zones = zones.into_iter().map(|(zone, (votes, learners))| ZoneQuorum {
            zone: zone.to_owned(),
            voters: votes as u64,
            learners: learners as u64,
            may_fail: voters.len() - votes >= needed,
        });
        Self {
            voters: voters.len() as u64,
            needed: needed as u64,
            reachable: voters.intersection(reachable).count() as u64,
            zones: zones.collect(),
        }
    }

    /// What is doubtful about it, each in a sentence.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let Self { voters, needed, reachable, zones } = self;
        if voters % 2 == 0 {
            warnings.push(format!(
                "{voters} voters survive no more failures than {} would: an odd number is better",
                voters - 1
            ));
        }
        if reachable <= needed && *voters > 1 {
            let one_more = format!("{reachable} of {voters} voters are reachable and {needed} are needed");
            warnings.push(format!("{one_more}: with one failure more, writes stop"));
        }
        let named = zones.iter().filter(|zone| !zone.zone.is_empty());
        if named.clone().count() > 1 {
            for zone in named.filter(|zone| !zone.may_fail) {
                warnings.push(format!("without {}, the other data centres have no quorum", zone.zone));
            }
        }
        warnings
    }
}

impl Plan {
    /// What a change other than [`Change::Add`] comes to.
    pub(super) fn of(change: &Change, roster: &Roster) -> Result<Self, Refusal> {
        match change {
            Change::Add(_) => Err(Refusal::Conflict("a new member needs an id first".into())),
            Change::Update(id, patch) => update(roster, *id, patch),
            Change::Remove(id) => remove(roster, *id),
        }
    }

    /// What adding `member` under `id` comes to.
    pub(super) fn adding(roster: &Roster, id: NodeId, member: Member) -> Result<Self, Refusal> {
        check_room(roster)?;
        check_unique(roster, id, &member)?;
        if let Wish::Vote { replaces: Some(old) } = member.wish {
            let old = find(roster, old)?;
            if old.wish == Wish::Leave {
                return Err(Refusal::Conflict(format!("{} is leaving already", old.name)));
            }
        }
        let mut members = roster.members.clone();
        members.insert(id, member);
        Ok(Self::with(members, roster.voters.clone()))
    }

    /// What the order to add comes to for one that is a member already: it shall stand as was ordered.
    pub(super) fn as_ordered(roster: &Roster, id: NodeId, new: &NewMember) -> Result<Self, Refusal> {
        let NewMember { client_url, zone, priority, .. } = new.clone();
        let votes = new.votes.then_some(true);
        let plan = update(roster, id, &MemberPatch { votes, client_url, zone, priority, ..MemberPatch::default() })?;
        if find(roster, id)?.wish == Wish::Leave {
            return Err(Refusal::Conflict(format!("{} is being removed; add it anew once it is out", new.name)));
        }
        // One that is gone was replaced already.
        let old = new.replaces.as_ref().filter(|_| new.votes).and_then(|old| resolve(roster, old).ok());
        let Some(old) = old.filter(|old| *old != id) else { return Ok(plan) };
        let (mut members, mut voters) = (plan.members, plan.voters);
        if voters.contains(&id) {
            voters.remove(&old);
            members.entry(old).and_modify(|old| old.wish = Wish::Leave);
        } else {
            members.entry(id).and_modify(|member| member.wish = Wish::Vote { replaces: Some(old) });
        }
        Ok(Self::with(members, voters))
    }

    fn with(members: BTreeMap<NodeId, Member>, voters: BTreeSet<NodeId>) -> Self {
        let (mut voters_at_last, mut members_at_last) =
            (voters.clone(), members.keys().copied().collect::<BTreeSet<_>>());
        for (id, member) in &members {
            match member.wish {
                Wish::Stay => {}
                Wish::Vote { replaces } => {
                    voters_at_last.insert(*id);
                    if let Some(old) = replaces {
                        voters_at_last.remove(&old);
                        members_at_last.remove(&old);
                    }
                }
                Wish::Leave => {
                    voters_at_last.remove(id);
                    members_at_last.remove(id);
                }
            }
        }
        Self { members, voters, voters_at_last, members_at_last }
    }

    /// Whether it leaves everything as it is.
    pub(super) fn changes_nothing(&self, roster: &Roster) -> bool {
        self.members == roster.members && self.voters == roster.voters
    }

    /// How voters stand at last.
    pub(super) fn at_last(&self, reachable: &BTreeSet<NodeId>) -> Quorums {
        let members = self.members.iter().filter(|(id, _)| self.members_at_last.contains(id));
        let members = members.map(|(id, member)| (*id, member.clone())).collect();
        Quorums::of(&members, &self.voters_at_last, reachable)
    }

    /// Refuses a plan after which no quorum would be reachable.
    pub(super) fn check_quorum(&self, roster: &Roster, reachable: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        for voters in [&self.voters, &self.voters_at_last] {
            let (there, needed) = (voters.intersection(reachable).count(), majority(voters.len()));
            if *voters != roster.voters && there < needed {
                let missing = voters.difference(reachable).map(|id| name_of(&self.members, *id));
                return Err(Refusal::WouldLoseQuorum(format!(
                    "{} voters would be left, of which {needed} must agree, but only {there} of them can be reached \
                     (not {}); nothing was changed. Bring those back or remove them first, or force it",
                    voters.len(),
                    missing.collect::<Vec<_>>().join(", ")
                )));
            }
        }
        Ok(())
    }
}

fn update(roster: &Roster, id: NodeId, patch: &MemberPatch) -> Result<Plan, Refusal> {
    let mut member = find(roster, id)?.clone();
    let (mut members, mut voters) = (roster.members.clone(), roster.voters.clone());
    for (field, new) in [
        (&mut member.name, &patch.name),
        (&mut member.peer_addr, &patch.peer_addr),
        (&mut member.client_url, &patch.client_url),
        (&mut member.zone, &patch.zone),
    ] {
        if let Some(new) = new {
            field.clone_from(new);
        }
    }
    member.priority = patch.priority.unwrap_or(member.priority);
    if let Some(votes) = patch.votes {
        if member.wish == Wish::Leave {
            return Err(Refusal::Conflict(format!("{} is being removed; its role can't be changed", member.name)));
        }
        member.wish = match (votes, voters.contains(&id)) {
            (true, true) => Wish::Stay,
            (true, false) => match member.wish {
                wish @ Wish::Vote { .. } => wish,
                _ => Wish::Vote { replaces: None },
            },
            (false, _) => Wish::Stay,
        };
        if !votes {
            voters.remove(&id);
            check_left(&voters, &member)?;
        }
    }
    check_unique(roster, id, &member)?;
    members.insert(id, member);
    Ok(Plan::with(members, voters))
}

fn remove(roster: &Roster, id: NodeId) -> Result<Plan, Refusal> {
    let member = find(roster, id)?;
    let (mut members, mut voters) = (roster.members.clone(), roster.voters.clone());
    voters.remove(&id);
    check_left(&voters, member)?;
    members.insert(id, Member { wish: Wish::Leave, ..member.clone() });
    // Nobody can take its place any more.
    for other in members.values_mut().filter(|other| other.wish == Wish::Vote { replaces: Some(id) }) {
        other.wish = Wish::Vote { replaces: None };
    }
    Ok(Plan::with(members, voters))
}

fn check_left(voters: &BTreeSet<NodeId>, member: &Member) -> Result<(), Refusal> {
    if voters.is_empty() {
        return Err(Refusal::WouldLoseQuorum(format!(
            "{} is the only voter; without it there is no group. Add another voter first",
            member.name
        )));
    }
    Ok(())
}

fn check_room(roster: &Roster) -> Result<(), Refusal> {
    if roster.members.len() >= MEMBERS_MAX {
        let count = roster.members.len();
        return Err(Refusal::Conflict(format!("there are {count} members already; {MEMBERS_MAX} are the most")));
    }
    Ok(())
}

/// Nobody else may have its name or its address.
fn check_unique(roster: &Roster, id: NodeId, member: &Member) -> Result<(), Refusal> {
    for (other, theirs) in roster.members.iter().filter(|(other, _)| **other != id) {
        if theirs.name == member.name {
            let name = &member.name;
            return Err(Refusal::Conflict(format!("{name} is the name of member {other} already; choose another")));
        }
        if theirs.peer_addr == member.peer_addr {
            let (address, name) = (&member.peer_addr, &theirs.name);
            return Err(Refusal::Conflict(format!("{address} is the address of {name} (member {other}) already")));
        }
    }
    Ok(())
}

fn find(roster: &Roster, id: NodeId) -> Result<&Member, Refusal> {
    roster.members.get(&id).ok_or_else(|| {
        let members = roster.members.iter().map(|(id, member)| format!("{id} ({})", member.name));
        Refusal::UnknownMember { id, members: members.collect::<Vec<_>>().join(", ") }
    })
}

/// The id of the member that is meant.
pub(super) fn resolve(roster: &Roster, meant: &MemberRef) -> Result<NodeId, Refusal> {
    match meant {
        MemberRef::Id(id) => find(roster, *id).map(|_| *id),
        MemberRef::Name(name) => {
            let found = roster.members.iter().find(|(_, member)| member.name == *name);
            let names = roster.members.values().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ");
            let none = || Refusal::Conflict(format!("there is no member {name} to replace; the members are {names}"));
            found.map(|(id, _)| *id).ok_or_else(none)
        }
    }
}

/// The member of this name and address.
pub(super) fn find_by<'a>(roster: &'a Roster, name: &str, peer_addr: &str) -> Option<(NodeId, &'a Member)> {
    let mut members = roster.members.iter();
    let found = members.find(|(_, member)| member.name == name && member.peer_addr == peer_addr);
    found.map(|(id, member)| (*id, member))
}

pub(super) fn name_of(members: &BTreeMap<NodeId, Member>, id: NodeId) -> String {
    members.get(&id).map_or_else(|| format!("member {id}"), |member| member.name.clone())
}

#[cfg(test)]
mod tests;
