//! The group as it stands now, told by any node.
//!
//! Only the leader knows how far each log reaches. Another node therefore asks all members at once and passes on what the
//! leader says; where none answers as leader, it tells what it found out itself. One round of questions serves everybody
//! who asks meanwhile.
//!
//! ```text
//! 0xF1 | version (1) | postcard of Question or Account
//! ```
//!
//! Guarantees: an answer within [`ASK_TIMEOUT_MIN`] or the shortest election timeout, whatever others do; a member that
//! answers is reachable, and says so itself. Leaves out: the wire form for clients (`api::model`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Node;
use super::status::{ClusterStatus, MemberStatus, Source};
use crate::clock::{self, Instant};
use crate::raft::{RaftNode, Timers};
use crate::transport::{Channel, Transport};
use crate::types::{ClusterId, LogIndex, LogPosition, NodeId, Term};

/// The first byte of these messages.
pub(super) const GROUP: u8 = 0xF1;

/// The newest format of these messages.
const VERSION: u8 = 2;

/// How long members may take to answer where elections are quicker than this.
const ASK_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// What was found out serves everybody who asks within this time.
const FRESH: Duration = Duration::from_millis(100);

/// How do you see the group?
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    cluster: ClusterId,
    to: NodeId,
}

/// What one member knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) term: Term,
    pub(super) leads: bool,
    pub(super) last_log_index: Option<LogIndex>,
    /// Of a leader: how it sees the others.
    pub(super) others: Vec<Other>,
    /// The newest membership that it knows to be committed.
    pub(super) roster: Option<KnownMembers>,
    /// The version of its program.
    pub(super) version: String,
}

/// A committed membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownMembers {
    pub(super) position: LogPosition,
    pub(super) members: Vec<NodeId>,
}

/// Another member, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Other {
    id: NodeId,
    reachable: bool,
    matched: Option<LogIndex>,
    rtt_us: Option<u64>,
}

/// The last view of the group, and when it was taken. The lock is held while members are asked.
pub(super) type LastView = tokio::sync::Mutex<Option<(Instant, ClusterStatus)>>;

/// Answers the questions of other members.
pub(super) struct GroupDesk {
    cluster: ClusterId,
    raft: RaftNode,
    transport: Arc<dyn Transport>,
    silence: Duration,
}

impl GroupDesk {
    pub(super) fn new(cluster: ClusterId, raft: RaftNode, transport: Arc<dyn Transport>, silence: Duration) -> Self {
        Self { cluster, raft, transport, silence }
    }

    /// `None` for what is no question to this member.
    pub(super) fn handle(&self, message: &[u8]) -> Option<Bytes> {
        let asked: Question = decode(message)?;
        let meant = asked == Question { cluster: self.cluster, to: self.raft.id() };
        meant.then(|| encode(&account(&self.raft, &*self.transport, self.silence)))
    }
}

/// What this member knows.
fn account(raft: &RaftNode, transport: &dyn Transport, silence: Duration) -> Account {
    let status = raft.status();
    let leads = raft.leads();
    let other = |(id, member, _): (NodeId, crate::types::Member, bool)| {
        let reachable = status.heard_from(id).is_some_and(|age| age < silence);
        let rtt = transport.rtt(&member.peer_addr).filter(|_| reachable);
        Other {
            id,
            reachable,
            matched: status.matched(id).map(|position| position.index),
            rtt_us: rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        }
    };
    let others = status.members().into_iter().filter(|(id, ..)| leads && *id != raft.id()).map(other).collect();
    let roster = raft.roster();
    let known = |position| KnownMembers { position, members: roster.members.keys().copied().collect() };
    Account {
        term: status.term(),
        leads,
        last_log_index: status.last_log_index().map(LogIndex::new),
        others,
        roster: roster.position.filter(|_| roster.committed).map(known),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

impl Node {
    /// The group: as its leader sees it, or where no leader answers, as far as this node can tell.
    ///
    /// # Errors
    /// Why this node is part of no group yet.
    pub async fn cluster(&self) -> Result<ClusterStatus, String> {
        let raft = self.raft()?;
        let mut last = self.0.group.lock().await;
        if let Some((at, view)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            tracing::trace!(age = ?at.elapsed(), "the last view of the group is fresh");
            return Ok(view.clone());
        }
        let silence = self.0.timers.leader_silence();
        let mut accounts = BTreeMap::from([(raft.id(), account(raft, &*self.0.transport, silence))]);
        let status = raft.status();
        // Also by a leader: what program they run, they say themselves.
        let cluster = self.0.desk.identity().map_or(ClusterId::ZERO, |identity| identity.cluster);
        let members = status.members().into_iter().filter(|(id, ..)| *id != raft.id());
        let asked = members.map(|(id, member, _)| async move {
            Some((id, ask(&*self.0.transport, cluster, self.0.timers, id, &member.peer_addr).await?))
        });
        accounts.extend(join_all(asked).await.into_iter().flatten());
        let view = self.view_of(&accounts, &status.members());
        *last = Some((clock::now(), view.clone()));
        Ok(view)
    }

    fn view_of(
        &self,
        accounts: &BTreeMap<NodeId, Account>,
        members: &[(NodeId, crate::types::Member, bool)],
    ) -> ClusterStatus {
        // Of two that claim to lead, the one of the older term does not know yet.
        let leader = accounts.iter().filter(|(_, account)| account.leads).max_by_key(|(_, account)| account.term);
        let last = accounts.values().filter_map(|account| account.last_log_index).max();
        let member = |(id, member, voter): &(NodeId, crate::types::Member, bool)| {
            let account = accounts.get(id);
            let of_leader = leader.and_then(|(_, leader)| leader.others.iter().find(|other| other.id == *id));
            let own_rtt = self.0.transport.rtt(&member.peer_addr).filter(|_| account.is_some() && leader.is_none());
            let (reachable, matched) = match of_leader {
                Some(other) => (other.reachable, other.matched),
                None => (account.is_some(), account.and_then(|account| account.last_log_index)),
            };
            let rtt_us = of_leader.and_then(|other| other.rtt_us).map(|us| us as f64);
            MemberStatus {
                id: *id,
                voter: *voter,
                reachable,
                matched_index: matched,
                lag_entries: matched.zip(last).map(|(matched, last)| last.get().saturating_sub(matched.get())),
                rtt_ms: rtt_us.or(own_rtt.map(|rtt| rtt.as_micros() as f64)).map(|us| us / 1e3),
                member: member.clone(),
                version: account.map(|account| account.version.clone()),
            }
        };
        ClusterStatus {
            cluster_id: self.0.desk.identity().map_or(ClusterId::ZERO, |identity| identity.cluster),
            term: accounts.values().map(|account| account.term).max().unwrap_or(Term::ZERO),
            leader: leader.map(|(id, _)| *id),
            source: if leader.is_some() { Source::Leader } else { Source::Local },
            members: members.iter().map(member).collect(),
        }
    }
}

/// What another member knows; `None` if it does not answer.
pub(super) async fn ask(
    transport: &dyn Transport,
    cluster: ClusterId,
    timers: Timers,
    id: NodeId,
    peer: &str,
) -> Option<Account> {
    let question = Question { cluster, to: id };
    let deadline = clock::now() + timers.election_min.max(ASK_TIMEOUT_MIN);
    let answer = transport.call(peer, Channel::Control, encode(&question), deadline).await;
    decode(&answer.inspect_err(|error| tracing::debug!(%error, "a member gave no account")).ok()?)
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    let out = postcard::to_extend(value, vec![GROUP, VERSION]);
    Bytes::from(out.expect("plain data into a growing vector can't fail"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes {
        [GROUP, VERSION, body @ ..] => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        let other = Other { id: NodeId::new(2), reachable: true, matched: Some(LogIndex::new(7)), rtt_us: Some(800) };
        let position = LogPosition { term: Term::new(3), leader: NodeId::new(1), index: LogIndex::new(5) };
        Account {
            term: Term::new(3),
            leads: true,
            last_log_index: Some(LogIndex::new(9)),
            others: vec![other],
            roster: Some(KnownMembers { position, members: vec![NodeId::new(1), NodeId::new(2)] }),
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn an_account_comes_back_and_foreign_bytes_are_none() {
        assert_eq!(decode::<Account>(&encode(&account())), Some(account()));
        for foreign in [&b""[..], &[GROUP], &[GROUP, VERSION], &[GROUP, VERSION + 1, 0, 0], &[0xF0, VERSION, 7, 1]] {
            assert_eq!(decode::<Question>(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn the_bytes_of_format_two_stay_readable() {
        let question = Question { cluster: ClusterId::new(7), to: NodeId::new(2) };
        assert_eq!(&encode(&question)[..], b"\xF1\x02\x07\x02");
        let old = b"\xF1\x02\x03\x01\x01\x09\x01\x02\x01\x01\x07\x01\xa0\x06\x01\x03\x01\x05\x02\x01\x02\x050.1.0";
        assert_eq!(decode::<Account>(old), Some(account()));
    }
}
