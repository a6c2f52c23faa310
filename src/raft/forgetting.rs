//! Members that have forgotten what they had acknowledged: their disk lied, or was set back to an earlier copy.
//!
//! A member that finds out itself does not start (`log_store::end_mark`). Of one that can't, the leader learns when it says of
//! an entry that it does not have it, although it had acknowledged it, or one behind it, before it was asked. openraft then
//! sends again what is missing (`allow_log_reversion`) and only whispers; but somebody has to look at that disk.
//!
//! Guarantees: nobody is told of wrongly: only what was acknowledged to this leader in this term, before the question was sent,
//! counts; each is told once. Leaves out: what was acknowledged to earlier leaders, which nobody notes, and acting on it.

use std::collections::BTreeMap;

use openraft::raft::AppendEntriesResponse;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::types::{LogId, TypeConfig, Vote};
use crate::clock;
use crate::types::{LogIndex, NodeId, WallTime};

/// A member that has forgotten something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgetful {
    /// Which member.
    pub id: NodeId,
    /// The last entry that it had acknowledged.
    pub acknowledged: LogIndex,
    /// An entry that it does not have any more.
    pub missing: LogIndex,
    /// When it was noticed first, in this life of this node.
    pub since: WallTime,
}

/// What each member has acknowledged to this leader, and who has forgotten some of it.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    /// To whom, and up to where.
    upto: Mutex<BTreeMap<NodeId, (Vote, LogId)>>,
    forgetful: Mutex<BTreeMap<NodeId, Forgetful>>,
    found: Counter,
}

/// An append that is about to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    to: NodeId,
    vote: Vote,
    prev: Option<LogId>,
    last: Option<LogId>,
    /// Up to where the member had acknowledged before.
    known: Option<LogId>,
}

impl Acknowledged {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let help = "Times that a member was found to have forgotten entries which it had acknowledged to this node";
        registry.register("raft_acknowledged_lost", help, this.found.clone());
        this
    }

    /// To be called before it is sent: `last` is the last entry that it carries, or `prev` if it carries none.
    pub(super) fn ask(&self, to: NodeId, vote: Vote, prev: Option<LogId>, last: Option<LogId>) -> Question {
        let known = self.upto.lock().get(&to).filter(|(of, _)| *of == vote).map(|(_, upto)| *upto);
        Question { to, vote, prev, last, known }
    }

    /// What the member has answered.
    pub(super) fn answered(&self, question: &Question, answer: &AppendEntriesResponse<TypeConfig>) {
        let Question { to, vote, prev, last, known } = *question;
        let has = match answer {
            AppendEntriesResponse::Success => last,
            AppendEntriesResponse::PartialSuccess(upto) => *upto,
            AppendEntriesResponse::Conflict => {
                if let (Some(prev), Some(known)) = (prev, known)
                    && prev.index <= known.index
                {
                    self.has_forgotten(to, vote, prev, known);
                }
                return;
            }
            AppendEntriesResponse::HigherVote(_) => return,
        };
        let Some(has) = has else { return };
        let mut upto = self.upto.lock();
        let known = upto.entry(to).or_insert((vote, has));
        if known.0 != vote || known.1.index < has.index {
            *known = (vote, has);
        }
    }

    fn has_forgotten(&self, id: NodeId, vote: Vote, missing: LogId, known: LogId) {
        {
            // It begins anew: what is searched for now is no news. Only of the first answer, if several were under way.
            let mut upto = self.upto.lock();
            if upto.get(&id) != Some(&(vote, known)) {
                return;
            }
            upto.remove(&id);
        }
        self.found.inc();
        let (acknowledged, missing) = (LogIndex::new(known.index), LogIndex::new(missing.index));
        tracing::error!(
            member = id.get(),
            acknowledged = acknowledged.get(),
            missing = missing.get(),
            "a member has forgotten entries that it had acknowledged: they are sent again, but its disk is not to be trusted; \
             replace the member"
        );
        let mut forgetful = self.forgetful.lock();
        let since = forgetful.get(&id).map_or_else(clock::wall, |before| before.since);
        forgetful.insert(id, Forgetful { id, acknowledged, missing, since });
    }

    /// Those that were noticed in this life of this node.
    pub(super) fn forgetful(&self) -> Vec<Forgetful> {
        self.forgetful.lock().values().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::LeaderId;
    use crate::types::Term;

    const OTHER: NodeId = NodeId::new(2);

    fn id(index: u64) -> Option<LogId> {
        Some(LogId { leader_id: LeaderId { term: Term::new(1), node_id: NodeId::new(1) }, index })
    }

    fn vote(term: u64) -> Vote {
        Vote::new_committed(Term::new(term), NodeId::new(1))
    }

    #[test]
    fn what_was_acknowledged_before_the_question_and_is_gone_is_told_once() {
        let acknowledged = Acknowledged::default();
        let ask = |term, prev, last| acknowledged.ask(OTHER, vote(term), id(prev), id(last));
        let conflict = AppendEntriesResponse::Conflict;
        acknowledged.answered(&ask(1, 9, 9), &conflict);
        assert_eq!(acknowledged.forgetful(), [], "the end of its log is searched for");
        let early = ask(1, 7, 7);
        acknowledged.answered(&ask(1, 5, 8), &AppendEntriesResponse::Success);
        acknowledged.answered(&early, &conflict);
        assert_eq!(acknowledged.forgetful(), [], "it did not have it when this was asked");
        acknowledged.answered(&ask(1, 9, 9), &conflict);
        assert_eq!(acknowledged.forgetful(), [], "behind what it has acknowledged");
        acknowledged.answered(&ask(2, 8, 8), &conflict);
        assert_eq!(acknowledged.forgetful(), [], "another leader may have removed it in between");
        let (first, second) = (ask(1, 8, 8), ask(1, 8, 9));
        acknowledged.answered(&first, &conflict);
        acknowledged.answered(&second, &conflict);
        let told = acknowledged.forgetful();
        assert_eq!((told.len(), told[0].id, told[0].acknowledged.get(), told[0].missing.get()), (1, OTHER, 8, 8));
        assert_eq!(acknowledged.found.get(), 1);
        acknowledged.answered(&ask(1, 3, 3), &conflict);
        assert_eq!(acknowledged.found.get(), 1, "the end of its log is searched for");
    }

    #[test]
    fn part_of_an_append_counts_as_far_as_it_was_taken() {
        let acknowledged = Acknowledged::default();
        let ask = |prev, last| acknowledged.ask(OTHER, vote(1), id(prev), id(last));
        acknowledged.answered(&ask(2, 9), &AppendEntriesResponse::PartialSuccess(id(4)));
        acknowledged.answered(&ask(5, 9), &AppendEntriesResponse::Conflict);
        assert_eq!(acknowledged.found.get(), 0);
        acknowledged.answered(&ask(4, 9), &AppendEntriesResponse::Conflict);
        assert_eq!(acknowledged.found.get(), 1);
    }
}
