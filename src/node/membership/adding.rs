//! Taking in a new member, on the leader: dial it, see who answers, give it an identity, then propose it as a learner.
//!
//! Whoever answers must have an empty directory and the name that is expected. One that this cluster gave an id before, but
//! that never became a member because somebody failed half way, keeps its id. Ids come from the log ([`id_of`]), so that
//! none is given twice.
//!
//! Guarantees: nothing is proposed for a node that does not answer, belongs elsewhere, or has lost a directory that was a
//! member's. Leaves out: whether the group can bear it (`plan`).

use super::plan::{Plan, find_by, resolve};
use super::{ChangeOptions, MemberError, MemberPatch, Membership, NewMember};
use crate::clock::Instant;
use crate::node::directory::Identity;
use crate::node::forming::{self, Request, Response};
use crate::raft::Roster;
use crate::types::{Member, NodeId, Wish};

/// First members have the ids from 1 up, at most this many; later ones get ids above.
const FIRST_IDS: u64 = 1_000;

/// Stands for the id that would be given, where nothing is.
const NO_ID: NodeId = NodeId::new(u64::MAX);

/// The id that belongs to an entry of the log: no two entries that were ever committed have one index.
const fn id_of(index: u64) -> NodeId {
    NodeId::new(FIRST_IDS + index)
}

/// What adding comes to.
pub(super) enum Adding {
    /// It is a member already; this makes it stand as was ordered.
    Already(NodeId, Plan),
    /// It can be one, under this id; `None` where none was given because nothing shall be done.
    New(Option<NodeId>, Plan),
}

/// Who answered at the address of a new member.
enum Answered {
    /// A node without identity.
    Empty(Member),
    /// A node that has an id of this cluster, and never was a member.
    Known(Member, NodeId),
    /// The member of this id.
    Itself(NodeId),
}

impl Membership {
    pub(super) async fn adding(
        &self,
        roster: &Roster,
        new: &NewMember,
        options: ChangeOptions,
        deadline: Instant,
    ) -> Result<Adding, MemberError> {
        let answered = self.dial_back(roster, new).await?;
        let (theirs, known) = match answered {
            Answered::Itself(id) => return Ok(Adding::Already(id, Plan::as_ordered(roster, id, new)?)),
            Answered::Empty(theirs) => (theirs, None),
            Answered::Known(theirs, id) => (theirs, Some(id)),
        };
        let replaces = new.replaces.as_ref().map(|meant| resolve(roster, meant)).transpose()?;
        let wish = if new.votes { Wish::Vote { replaces } } else { Wish::Stay };
        let member = Member {
            name: new.name.clone(),
            peer_addr: new.peer_addr.clone(),
            client_url: new.client_url.clone().unwrap_or(theirs.client_url),
            zone: new.zone.clone().unwrap_or(theirs.zone),
            priority: new.priority.unwrap_or(0),
            wish,
        };
        // Refused before anything is given to it.
        let plan = Plan::adding(roster, known.unwrap_or(NO_ID), member.clone())?;
        self.check_quorum(roster, &plan, options)?;
        if options.dry_run {
            return Ok(Adding::New(known, plan));
        }
        let id = match known {
            Some(id) => id,
            None => self.give_identity(new, deadline).await?,
        };
        Ok(Adding::New(Some(id), Plan::adding(roster, id, member)?))
    }

    /// Asks the node who it is.
    async fn dial_back(&self, roster: &Roster, new: &NewMember) -> Result<Answered, MemberError> {
        let NewMember { name, peer_addr, .. } = new;
        let cluster = self.transfers.cluster;
        let conflict = |why: String| Err(MemberError::Conflict(format!("{why}; nothing was changed")));
        let answer = match forming::ask(&*self.transfers.transport, peer_addr, &Request::Probe).await {
            Ok(answer) => answer,
            Err(why) => {
                return Err(MemberError::Unreachable(format!(
                    "the leader can't reach {name} at {peer_addr}: {why}; nothing was changed. Start the node there with \
                     --join first, and see that this address can be reached from every member"
                )));
            }
        };
        let member = match &answer {
            Response::Pristine { member, .. } | Response::Identified { member, .. } => member.clone(),
            Response::Refused(why) => return conflict(format!("{name} at {peer_addr} refused: {why}")),
        };
        if member.name != *name {
            return conflict(format!("the node at {peer_addr} is {}, not {name}", member.name));
        }
        match answer {
            Response::Pristine { first_members, .. } if !first_members.is_empty() => conflict(format!(
                "{name} was started with --initial-cluster, to form a cluster of its own; start it with --join"
            )),
            Response::Pristine { member, .. } => match find_by(roster, name, peer_addr) {
                Some((id, _)) => conflict(format!(
                    "{name} is member {id} already, but its directory is empty: its votes and log are lost, so it may not \
                     run under its old id. Remove member {id} first, or give the node another name and address and \
                     let it replace {id}"
                )),
                None => Ok(Answered::Empty(member)),
            },
            Response::Identified { identity, .. } if identity.cluster != cluster => conflict(format!(
                "the directory of {name} belongs to cluster {}, this is cluster {cluster}; give it an empty one",
                identity.cluster
            )),
            Response::Identified { identity, .. } if roster.members.contains_key(&identity.id) => {
                Ok(Answered::Itself(identity.id))
            }
            Response::Identified { identity, initialized: true, .. } => conflict(format!(
                "{name} has been in this cluster as member {} and is no member; ids are never given again, so give it an \
                 empty directory",
                identity.id
            )),
            Response::Identified { member, identity, .. } => Ok(Answered::Known(member, identity.id)),
            Response::Refused(why) => conflict(why),
        }
    }

    async fn give_identity(&self, new: &NewMember, deadline: Instant) -> Result<NodeId, MemberError> {
        let id = id_of(self.raft().fresh_index(deadline).await?);
        let identity = Identity { cluster: self.transfers.cluster, id, name: new.name.clone(), has_log: false };
        let answer = forming::ask(&*self.transfers.transport, &new.peer_addr, &Request::Adopt(identity)).await;
        match answer {
            Ok(Response::Identified { identity, .. }) if identity.id == id => Ok(id),
            Ok(Response::Identified { .. } | Response::Pristine { .. }) => {
                Err(MemberError::Conflict(format!("{} has another id meanwhile; it was not added", new.name)))
            }
            Ok(Response::Refused(why)) | Err(why) => {
                Err(MemberError::Unreachable(format!("{} did not take its id: {why}; it was not added", new.name)))
            }
        }
    }

    /// A member may only move to an address where it answers itself: another node there would vote in its name.
    pub(super) async fn check_new_address(
        &self,
        roster: &Roster,
        id: NodeId,
        patch: &MemberPatch,
    ) -> Result<(), MemberError> {
        let Some(new) = &patch.peer_addr else { return Ok(()) };
        if roster.members.get(&id).is_none_or(|member| member.peer_addr == *new) {
            return Ok(());
        }
        let found = match forming::ask(&*self.transfers.transport, new, &Request::Probe).await {
            Ok(Response::Identified { identity, .. }) => {
                if (identity.cluster, identity.id) == (self.transfers.cluster, id) {
                    return Ok(());
                }
                format!("{} of cluster {} answers there", identity.name, identity.cluster)
            }
            Ok(Response::Pristine { member, .. }) => format!("{} with an empty directory answers there", member.name),
            Ok(Response::Refused(why)) | Err(why) => why,
        };
        Err(MemberError::Conflict(format!(
            "member {id} does not answer at {new}: {found}; nothing was changed. Start it there first"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_later_members_are_above_those_of_first_members() {
        assert!(id_of(0).get() >= FIRST_IDS);
        assert!(FIRST_IDS > crate::node::membership::MEMBERS_MAX as u64);
        assert_ne!(id_of(7), id_of(8));
    }
}
