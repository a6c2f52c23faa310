//! A leader that is told to stop hands over first, so that a planned restart costs no failed write.
//!
//! Writes under way are in the log of the one that takes over; those that come meanwhile wait and go to it. This node is
//! then a follower like any other until it stops. It goes on answering members until those that answer have heard of the
//! election, since what they had sent to a node that is gone would be of unknown outcome.
//!
//! Guarantees: bounded by [`HAND_OVER_TIME_MIN`] or two longest election timeouts; stopping goes on whatever comes of it.
//! Leaves out: stopping.

use std::cmp::Reverse;
use std::time::Duration;

use futures::future::join_all;

use super::Node;
use super::group;
use super::leader_transfer::{LAG_ENTRIES_MAX, Transfers, lag, name_of};
use crate::clock::{self, Instant};
use crate::raft::{Leader, MoveError};
use crate::types::{Member, NodeId, Term};

/// How long a hand-over may take where elections are quicker than this.
const HAND_OVER_TIME_MIN: Duration = Duration::from_secs(2);

/// Pause before the others are asked again whether they know of the election.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// A voter that answered when it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heir {
    id: NodeId,
    /// How much it is preferred.
    priority: u8,
    /// Entries of the leader's log that it lacks.
    lag: u64,
}

/// The voter of the greatest priority, among equals the one that lacks least, then the one with the lowest id; `None` if all
/// lack too much.
fn choose(heirs: impl IntoIterator<Item = Heir>) -> Option<NodeId> {
    let able = heirs.into_iter().filter(|heir| heir.lag <= LAG_ENTRIES_MAX);
    able.min_by_key(|heir| (Reverse(heir.priority), heir.lag, heir.id)).map(|heir| heir.id)
}

impl Node {
    /// If this node leads others, gives the leadership to one of them and waits until they know. To be called before
    /// [`Self::stop`], while clients and members are served.
    pub async fn hand_over(&self) {
        let Ok(transfers) = self.transfers() else { return };
        if transfers.raft.leader() != Leader::Me {
            return;
        }
        let deadline = clock::now() + (self.0.timers.election_max * 2).max(HAND_OVER_TIME_MIN);
        // What is asked on the way has limits of its own, which a slow link may make longer than this.
        let _ = tokio::time::timeout_at(deadline, transfers.hand_over(deadline)).await;
    }
}

impl Transfers {
    async fn hand_over(&self, deadline: Instant) {
        let me = self.raft.id();
        let others: Vec<_> = self.raft.status().members().into_iter().filter(|(id, ..)| *id != me).collect();
        if !others.iter().any(|(.., voter)| *voter) {
            return;
        }
        let Some(heir) = self.heir(&others).await else {
            tracing::warn!("no other voter answers and has the log; stopping without a hand-over");
            return;
        };
        match self.raft.transfer_leadership(heir, deadline).await {
            Ok(leader) if leader != me => {
                let (to, term) = (name_of(&self.raft.status(), leader), self.raft.term());
                tracing::info!(to, term = term.get(), "the leadership was handed over");
                self.await_others(&others, term).await;
            }
            // Somebody else's transfer will do as well.
            Err(MoveError::Busy | MoveError::NotLeader(_)) => {
                while self.raft.leader() == Leader::Me {
                    tokio::time::sleep(ASK_PAUSE).await;
                }
                self.await_others(&others, self.raft.term()).await;
            }
            Ok(_) => tracing::warn!("the hand-over failed: this node was elected again"),
            Err(error) => tracing::warn!(%error, "the hand-over failed"),
        }
    }

    /// The voter that is best to lead instead of this node; `None` if there is none that could.
    pub(super) async fn heir_of_all(&self) -> Option<NodeId> {
        let me = self.raft.id();
        let others: Vec<_> = self.raft.status().members().into_iter().filter(|(id, ..)| *id != me).collect();
        self.heir(&others).await
    }

    /// Asks the voters how far they are, and chooses.
    async fn heir(&self, others: &[(NodeId, Member, bool)]) -> Option<NodeId> {
        let asked = others.iter().filter(|(.., voter)| *voter).map(|(id, member, _)| async move {
            let account = group::ask(&*self.transport, self.cluster, self.timers, *id, &member.peer_addr).await?;
            let lag = lag(&self.raft.status(), account.last_log_index.map_or(0, |index| index.get()));
            Some(Heir { id: *id, priority: member.priority, lag })
        });
        choose(join_all(asked).await.into_iter().flatten())
    }

    /// Returns once every other member that answers is of this term or a later one, and what they had sent before is done.
    async fn await_others(&self, others: &[(NodeId, Member, bool)], term: Term) {
        let knows = others.iter().map(|(id, member, _)| async move {
            let ask = || group::ask(&*self.transport, self.cluster, self.timers, *id, &member.peer_addr);
            while ask().await.is_some_and(|account| account.term < term) {
                tokio::time::sleep(ASK_PAUSE).await;
            }
        });
        join_all(knows).await;
        self.raft.forwarded_done().await;
        // Messages that were sent before their senders knew may still be on their way: a heartbeat interval spans
        // several round trips.
        tokio::time::sleep(self.timers.heartbeat).await;
        self.raft.forwarded_done().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heir_is_the_one_that_is_preferred_and_then_the_one_that_lacks_least() {
        let preferred = |id, lag, priority| Heir { id: NodeId::new(id), priority, lag };
        let heir = |id, lag| preferred(id, lag, 0);
        for (heirs, expected) in [
            (vec![], None),
            (vec![heir(2, 3), heir(3, 1)], Some(3)),
            (vec![heir(3, 1), heir(2, 1)], Some(2)),
            (vec![heir(2, LAG_ENTRIES_MAX), heir(3, LAG_ENTRIES_MAX + 1)], Some(2)),
            (vec![heir(3, LAG_ENTRIES_MAX + 1)], None),
            (vec![heir(2, 1), preferred(3, 9, 5)], Some(3)),
            (vec![heir(2, 1), preferred(3, LAG_ENTRIES_MAX + 1, 5)], Some(2)),
        ] {
            assert_eq!(choose(heirs.clone()), expected.map(NodeId::new), "{heirs:?}");
        }
    }
}
