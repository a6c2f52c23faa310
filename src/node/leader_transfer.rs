//! Moving the leadership on request, through whichever node is asked.
//!
//! A node that does not lead passes the order on to the leader, one hop. The leader asks the target how far its log reaches
//! before it lets go: openraft does not take a transfer back, and without an heir nobody writes for an election timeout.
//!
//! ```text
//! 0xF2 | version (1) | postcard of Order, or of Result<Moved, TransferError>
//! ```
//!
//! Guarantees: "moved", "not moved, and why" and "not known" are different cases; nothing is begun for a target that does
//! not answer, lags, or has no vote. Leaves out: choosing a target (`hand_over`), and the wire form for clients
//! (`api::model`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Node;
use super::group;
use crate::clock::{self, Instant};
use crate::raft::{Leader, MoveError, RaftNode, RaftStatus, Timers};
use crate::transport::{CallError, Channel, Transport};
use crate::types::{ClusterId, Member, NodeId, Term};

/// The first byte of these messages.
pub(super) const TRANSFER: u8 = 0xF2;

/// The newest format of these messages.
const VERSION: u8 = 1;

/// A target may lack this many entries of the leader's log: those on their way to it under load, and a few more.
pub(super) const LAG_ENTRIES_MAX: u64 = 64;

/// Pause before another look for a leader.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What a node that passes an order on keeps of its caller's time for the way back, as a part of what is left ...
const RETURN_PART: u32 = 8;

/// ... and at most.
const RETURN_TIME_MAX: Duration = Duration::from_secs(1);

/// A caller that asks for longer is given this long.
const ORDER_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// The leadership is where it was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Who leads.
    pub leader: NodeId,
    /// The term.
    pub term: Term,
    /// Whether anything was done; `false` where the member led already.
    pub moved: bool,
}

/// Why the leadership is not where it was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TransferError {
    /// This node is not ready.
    #[error("this node is not ready: {0}; the leadership was not moved")]
    NotReady(String),
    /// No leader was known within the deadline.
    #[error("there is no leader at present that could hand over")]
    NoLeader,
    /// The leader has lost its quorum, so that none could be elected.
    #[error("the leader can't reach a quorum; the leadership was not moved")]
    NoQuorum,
    /// Nobody has this id.
    #[error("there is no member {id}; the voters are {voters}")]
    UnknownMember {
        /// What was asked for.
        id: NodeId,
        /// Who could lead, as `id (name)`.
        voters: String,
    },
    /// The member has no vote.
    #[error("{name} is a learner and can't lead; the voters are {voters}")]
    Learner {
        /// Its name.
        name: String,
        /// Who could lead, as `id (name)`.
        voters: String,
    },
    /// The leader got no answer from the member.
    #[error("the leader can't reach {name}; the leadership was not moved. Bring it back, or name another voter")]
    Unreachable {
        /// Its name.
        name: String,
    },
    /// The member's log is too far behind.
    #[error(
        "{name} lacks {entries} entries of the log, and may lack {LAG_ENTRIES_MAX}; the leadership was not moved. \
         Wait until it has caught up"
    )]
    Behind {
        /// Its name.
        name: String,
        /// How many.
        entries: u64,
    },
    /// Another transfer has not ended.
    #[error("another transfer of the leadership is under way; wait for it to end")]
    Busy,
    /// The voters elected another one.
    #[error("{wanted} was told to take over, but {leader} was elected")]
    Missed {
        /// Who was meant.
        wanted: String,
        /// Who leads.
        leader: String,
    },
    /// Nobody knows yet whether it was moved.
    #[error("whether the leadership was moved is not known: {0}; look with GET /v1/cluster")]
    Unknown(String),
    /// The node that was asked to move it does not lead.
    #[error("the node that was asked does not lead")]
    NotLeader,
}

/// Move the leadership to this member.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    cluster: ClusterId,
    to: NodeId,
    target: NodeId,
    timeout_ms: u64,
}

/// What it takes to move the leadership, on the node that leads. Cheap to clone.
#[derive(Clone)]
pub(super) struct Transfers {
    pub(super) cluster: ClusterId,
    pub(super) raft: RaftNode,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) timers: Timers,
}

impl Transfers {
    /// Answers an order of another member; `None` for what is none to this one.
    pub(super) async fn handle(&self, message: &[u8]) -> Option<Bytes> {
        let order: Order = decode(message)?;
        if (order.cluster, order.to) != (self.cluster, self.raft.id()) {
            return None;
        }
        let deadline = clock::now() + Duration::from_millis(order.timeout_ms).min(ORDER_TIMEOUT_MAX);
        Some(encode(&self.as_leader(order.target, deadline).await))
    }

    /// Moves the leadership away from this node, if it leads.
    async fn as_leader(&self, target: NodeId, deadline: Instant) -> Result<Moved, TransferError> {
        if self.raft.leader() != Leader::Me {
            return Err(TransferError::NotLeader);
        }
        let status = self.raft.status();
        let member = eligible(&status.members(), target)?;
        if target == self.raft.id() {
            return Ok(Moved { leader: target, term: self.raft.term(), moved: false });
        }
        if !self.raft.leads() {
            return Err(TransferError::NoQuorum);
        }
        let name = member.name;
        let Some(account) = group::ask(&*self.transport, self.cluster, self.timers, target, &member.peer_addr).await
        else {
            return Err(TransferError::Unreachable { name });
        };
        let lag = lag(&self.raft.status(), account.last_log_index.map_or(0, |index| index.get()));
        if lag > LAG_ENTRIES_MAX {
            return Err(TransferError::Behind { name, entries: lag });
        }
        let leader = self.raft.transfer_leadership(target, deadline).await.map_err(move_error)?;
        let term = self.raft.term();
        if leader != target {
            return Err(TransferError::Missed { wanted: name, leader: name_of(&status, leader) });
        }
        tracing::info!(to = name, id = target.get(), term = term.get(), "the leadership was handed over");
        Ok(Moved { leader, term, moved: true })
    }
}

/// How many entries a log that ends there lacks of this node's.
pub(super) fn lag(status: &RaftStatus, last: u64) -> u64 {
    status.last_log_index().unwrap_or(0).saturating_sub(last)
}

pub(super) fn name_of(status: &RaftStatus, id: NodeId) -> String {
    let found = status.members().into_iter().find(|(member, ..)| *member == id);
    found.map_or_else(|| format!("member {}", id.get()), |(_, member, _)| member.name)
}

/// The member, if it may lead.
fn eligible(members: &[(NodeId, Member, bool)], target: NodeId) -> Result<Member, TransferError> {
    let voters = || {
        let voters = members.iter().filter(|(.., voter)| *voter);
        voters.map(|(id, member, _)| format!("{} ({})", id.get(), member.name)).collect::<Vec<_>>().join(", ")
    };
    match members.iter().find(|(id, ..)| *id == target) {
        None => Err(TransferError::UnknownMember { id: target, voters: voters() }),
        Some((_, member, false)) => Err(TransferError::Learner { name: member.name.clone(), voters: voters() }),
        Some((_, member, true)) => Ok(member.clone()),
    }
}

fn move_error(error: MoveError) -> TransferError {
    match error {
        MoveError::NotLeader(_) => TransferError::NotLeader,
        MoveError::Busy => TransferError::Busy,
        MoveError::Stopping => TransferError::NotReady("it is stopping".into()),
        MoveError::Unknown => TransferError::Unknown(error.to_string()),
    }
}

impl Node {
    /// Moves the leadership to a voter and waits until it was elected, no longer than to `deadline`.
    ///
    /// # Errors
    /// [`TransferError`]; only [`TransferError::Unknown`] leaves open who leads.
    pub async fn transfer_leadership(&self, target: NodeId, deadline: Instant) -> Result<Moved, TransferError> {
        let transfers = self.transfers().map_err(TransferError::NotReady)?;
        let silence = self.0.timers.leader_silence();
        loop {
            let leader = match transfers.raft.leader() {
                Leader::Me => Leader::Me,
                _ => transfers.raft.leader_heard(silence),
            };
            let result = match leader {
                Leader::Me => transfers.as_leader(target, deadline).await,
                Leader::Other(id, leader) => self.order(&transfers, id, &leader, target, deadline).await,
                Leader::None => Err(TransferError::NotLeader),
            };
            match result {
                // It has changed meanwhile, or there is none yet.
                Err(TransferError::NotLeader) if clock::now() + RETRY_PAUSE < deadline => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(TransferError::NotLeader) => return Err(TransferError::NoLeader),
                result => return result,
            }
        }
    }

    /// Passes the order on to the leader.
    async fn order(
        &self,
        transfers: &Transfers,
        leader: NodeId,
        member: &Member,
        target: NodeId,
        deadline: Instant,
    ) -> Result<Moved, TransferError> {
        let left = deadline.saturating_duration_since(clock::now());
        let leaders_time = left - (left / RETURN_PART).min(RETURN_TIME_MAX);
        let timeout_ms = u64::try_from(leaders_time.as_millis()).unwrap_or(u64::MAX);
        let order = Order { cluster: transfers.cluster, to: leader, target, timeout_ms };
        // Not where votes travel: they may be asked for while this waits for its answer.
        let call = transfers.transport.call(&member.peer_addr, Channel::Forward, encode(&order), deadline);
        match call.await {
            Ok(answer) => decode(&answer).unwrap_or_else(|| {
                let why = format!("{} gave an answer that is not known here; is it of another version?", member.name);
                Err(TransferError::Unknown(why))
            }),
            Err(error @ CallError::NoAnswer { .. }) => Err(TransferError::Unknown(error.to_string())),
            // Nothing was sent.
            Err(CallError::Unreachable { .. } | CallError::TooLarge { .. }) => Err(TransferError::NotLeader),
        }
    }

    /// The desk for transfers, once Raft runs; otherwise why not.
    pub(super) fn transfers(&self) -> Result<Transfers, String> {
        let raft = self.raft()?.clone();
        let identity = self.0.desk.identity().ok_or("it has no identity")?;
        Ok(Transfers { cluster: identity.cluster, raft, transport: self.0.transport.clone(), timers: self.0.timers })
    }
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    let out = postcard::to_extend(value, vec![TRANSFER, VERSION]);
    Bytes::from(out.expect("plain data into a growing vector can't fail"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes {
        [TRANSFER, VERSION, body @ ..] => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden;

    type Answer = Result<Moved, TransferError>;

    fn order() -> Order {
        Order { cluster: ClusterId::new(7), to: NodeId::new(1), target: NodeId::new(2), timeout_ms: 300 }
    }

    fn answers() -> Vec<(&'static str, Answer)> {
        let (name, voters) = ("n2".to_owned(), "1 (n1)".to_owned());
        let moved = Moved { leader: NodeId::new(2), term: Term::new(300), moved: true };
        vec![
            ("moved", Ok(moved)),
            ("not_ready", Err(TransferError::NotReady("why".into()))),
            ("no_leader", Err(TransferError::NoLeader)),
            ("no_quorum", Err(TransferError::NoQuorum)),
            ("unknown_member", Err(TransferError::UnknownMember { id: NodeId::new(9), voters: voters.clone() })),
            ("learner", Err(TransferError::Learner { name: name.clone(), voters })),
            ("unreachable", Err(TransferError::Unreachable { name: name.clone() })),
            ("behind", Err(TransferError::Behind { name: name.clone(), entries: 300 })),
            ("busy", Err(TransferError::Busy)),
            ("missed", Err(TransferError::Missed { wanted: name, leader: "n3".into() })),
            ("unknown", Err(TransferError::Unknown("why".into()))),
            ("not_leader", Err(TransferError::NotLeader)),
        ]
    }

    #[test]
    fn the_bytes_of_format_one_stay_readable() {
        let answers = answers();
        let written = answers.iter().map(|(name, answer)| (*name, encode(answer).to_vec()));
        let stored = golden::check("transfer-messages-v1", written.chain([("order", encode(&order()).to_vec())]));
        assert_eq!(decode::<Order>(&stored["order"]), Some(order()));
        for (name, answer) in answers {
            assert_eq!(decode::<Answer>(&stored[name]), Some(answer), "{name}");
        }
    }

    #[test]
    fn only_a_voter_may_lead_and_a_refusal_names_them() {
        let member =
            |id, name: &str, voter| (NodeId::new(id), Member { name: name.into(), ..Member::default() }, voter);
        let members = [member(1, "n1", true), member(2, "n2", true), member(3, "n3", false)];
        assert_eq!(eligible(&members, NodeId::new(2)).unwrap().name, "n2");
        let refusal = |id| eligible(&members, NodeId::new(id)).unwrap_err().to_string();
        assert_eq!(refusal(3), "n3 is a learner and can't lead; the voters are 1 (n1), 2 (n2)");
        assert_eq!(refusal(9), "there is no member 9; the voters are 1 (n1), 2 (n2)");
    }

    #[test]
    fn foreign_bytes_are_no_order() {
        for foreign in
            [&b""[..], &[TRANSFER], &[TRANSFER, VERSION], &[TRANSFER, VERSION + 1, 7, 1, 2, 1], &[0xF1, 1, 7, 1]]
        {
            assert_eq!(decode::<Order>(foreign), None, "{foreign:?}");
        }
    }
}
