//! How a member learns that it was taken out of the group.
//!
//! Whoever is missing from a committed membership newer than one it was in is out. A member that hears no leader, or reads in
//! its log that it leaves, asks the others for theirs: one that is taken out is not sent the log any more.
//! That it is missing from an *older* membership means nothing: a new member reads those while it catches up.
//!
//! Guarantees: it is never believed without a committed membership. Leaves out: stopping the process; an operator shall see
//! why first.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::Membership;
use crate::node::group::{self, Account};
use crate::raft::{Leader, Roster};
use crate::types::{NodeId, Wish};

/// Why this node is no member any more, once it knows.
pub(in crate::node) type Removal = Arc<OnceLock<String>>;

/// Finds out whether this node was taken out, until it was or until `shutdown`.
pub(in crate::node) async fn watch_removal(membership: Membership, removal: Removal, shutdown: CancellationToken) {
    let raft = membership.raft().clone();
    let silence = membership.transfers.timers.leader_silence();
    let mut changes = raft.changes();
    loop {
        let told = says_so(&raft.roster(), raft.id());
        let is_led = raft.leader_heard(silence) != Leader::None;
        // Its own log alone is no proof: that may be of an earlier time, which it is catching up with.
        if (told || !is_led) && membership.others_say_so(&raft.committed_roster()).await {
            let cluster = membership.transfers.cluster;
            let why = format!(
                "it was removed from cluster {cluster} and its id {} is not given again; stop it, and to bring the \
                 machine back start it with --join and an empty directory",
                raft.id()
            );
            tracing::error!(why, "this node is no member any more");
            raft.stop_campaigning();
            let _ = removal.set(why);
            return;
        }
        let pause = if told { membership.transfers.timers.heartbeat } else { silence };
        let news = tokio::time::timeout(pause, changes.changed());
        if shutdown.run_until_cancelled(news).await.is_none() {
            return;
        }
    }
}

/// Whether this node's own log says that it leaves: then it is cut off soon.
fn says_so(roster: &Roster, me: NodeId) -> bool {
    let leaves = roster.members.get(&me).is_some_and(|member| member.wish == Wish::Leave);
    leaves && !roster.voters.contains(&me)
}

/// Whether another member's membership shows that this node, which was in `mine`, is out.
fn shows_it(mine: &Roster, me: NodeId, account: &Account) -> bool {
    let newer = account.roster.as_ref().filter(|theirs| mine.position < Some(theirs.position));
    newer.is_some_and(|theirs| !theirs.members.contains(&me))
}

impl Membership {
    /// Whether another member has a newer committed membership than `roster`, and this node is missing there.
    async fn others_say_so(&self, roster: &Roster) -> bool {
        let me = self.raft().id();
        if !roster.members.contains_key(&me) {
            return false;
        }
        let others = roster.members.iter().filter(|(id, _)| **id != me);
        let asked = others.map(|(id, member)| {
            group::ask(
                &*self.transfers.transport,
                self.transfers.cluster,
                self.transfers.timers,
                *id,
                &member.peer_addr,
            )
        });
        let accounts = futures::future::join_all(asked).await;
        accounts.iter().flatten().any(|account| shows_it(roster, me, account))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::node::group::KnownMembers;
    use crate::types::{LogIndex, LogPosition, Member, Term};

    fn at(index: u64) -> LogPosition {
        LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index) }
    }

    fn roster(index: u64, wish: Wish, votes: bool, committed: bool) -> Roster {
        let me = NodeId::new(4);
        let members = BTreeMap::from([(NodeId::new(1), Member::default()), (me, Member { wish, ..Member::default() })]);
        let voters = if votes { BTreeSet::from([NodeId::new(1), me]) } else { BTreeSet::from([NodeId::new(1)]) };
        Roster { position: Some(at(index)), committed, members, voters, leaving_voters: None }
    }

    #[test]
    fn a_member_asks_once_its_own_log_says_that_it_leaves() {
        let me = NodeId::new(4);
        assert!(says_so(&roster(5, Wish::Leave, false, true), me));
        assert!(!says_so(&roster(5, Wish::Leave, true, true), me), "it votes still");
        assert!(!says_so(&roster(5, Wish::Stay, false, true), me));
        assert!(!says_so(&roster(5, Wish::Leave, false, true), NodeId::new(5)), "it is not there yet");
    }

    #[test]
    fn only_a_newer_membership_of_another_member_shows_that_one_is_out() {
        let (me, mine) = (NodeId::new(4), roster(5, Wish::Stay, true, true));
        let account = |index, members: &[u64]| {
            let members = members.iter().copied().map(NodeId::new).collect();
            Account { roster: Some(KnownMembers { position: at(index), members }), ..Account::default() }
        };
        assert!(shows_it(&mine, me, &account(6, &[1, 2])));
        assert!(!shows_it(&mine, me, &account(6, &[1, 4])));
        assert!(!shows_it(&mine, me, &account(4, &[1, 2])), "it was not added yet");
        assert!(!shows_it(&mine, me, &Account::default()));
    }
}
