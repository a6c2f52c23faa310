//! What must hold after every step, one file each, and what they look at together.
//!
//! Guarantees: each check sees every record that any node wrote to its log, in the order in which it was written, and every
//! answer that a client got. Leaves out: how a run comes about (`world`).

mod acknowledged;
mod archive;
mod chosen;
mod converged;
mod election;
mod log_matching;
mod order;
mod reads;
mod reference;
mod state_hash;
mod votes;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use quorate::node::NodeStatus;
use quorate::raft::types::{Entry, Membership, Vote};
use quorate::raft::{LogRecord, MemoryLog};
use quorate::types::{LogPosition, NodeId, Revision};
use rand::rngs::SmallRng;

use self::acknowledged::Acknowledged;
use self::archive::Archive;
use self::chosen::Chosen;
pub(crate) use self::converged::{check_converged, is_converged};
use self::election::Election;
use self::log_matching::LogMatching;
use self::order::Order;
use self::reads::Reads;
use self::reference::Reference;
use self::votes::Votes;
use crate::clients::{End, Op};
use crate::machine::Machine;
use crate::store::Store;
use crate::wire::Place;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which invariant.
    pub(crate) of: &'static str,
    /// What was seen.
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn new(of: &'static str, what: impl Into<String>) -> Self {
        Self { of, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.of, self.what)
    }
}

/// A node's log, as its records make it.
#[derive(Default)]
pub(crate) struct NodeLog {
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) purged: Option<LogPosition>,
    pub(crate) committed: Option<LogPosition>,
}

impl NodeLog {
    fn last(&self) -> Option<LogPosition> {
        self.entries.values().next_back().map(|entry| entry.log_id.into()).max(self.purged)
    }

    fn apply(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Vote(_) => {}
            LogRecord::Append(entry) => drop(self.entries.insert(entry.log_id.index, entry.clone())),
            LogRecord::Truncate(keep) => drop(self.entries.split_off(&next(*keep))),
            LogRecord::Purge(upto) => {
                self.entries = self.entries.split_off(&next(Some(*upto)));
                self.purged = self.purged.max(Some(*upto));
            }
            LogRecord::Commit(upto) => self.committed = Some(*upto),
        }
    }
}

/// The index behind a position.
pub(crate) fn next(position: Option<LogPosition>) -> u64 {
    position.map_or(0, |position| position.index.get() + 1)
}

/// What came about in a run, as a measure of how far it went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Events {
    pub(crate) reigns: usize,
    pub(crate) memberships: usize,
    pub(crate) truncations: u64,
    pub(crate) purges: u64,
    /// Purges of entries that the node never had: it was given a snapshot.
    pub(crate) installations: u64,
    /// Answers by which nodes voted or followed.
    pub(crate) votes: u64,
    /// Objects of the archive that were read, entries in them, and points that were restored.
    pub(crate) archived: (u64, u64, u64),
}

/// All invariants, with what they remember.
pub(crate) struct Checks {
    logs: Vec<NodeLog>,
    /// The id of the node on a machine, once it is known.
    ids: Vec<Option<NodeId>>,
    matching: LogMatching,
    election: Election,
    chosen: Chosen,
    reference: Reference,
    acknowledged: Acknowledged,
    reads: Reads,
    order: Order,
    votes: Votes,
    archive: Option<Archive>,
    /// The farthest up to where a node has removed its log.
    purged: u64,
    events: Events,
}

impl Checks {
    /// `store` is where nodes archive, if they do; `home` is a folder.
    pub(crate) fn new(machines: usize, store: Option<&Store>, home: &Path) -> Self {
        Self {
            logs: (0..machines).map(|_| NodeLog::default()).collect(),
            ids: vec![None; machines],
            matching: LogMatching::default(),
            election: Election::default(),
            chosen: Chosen::default(),
            reference: Reference::new(),
            acknowledged: Acknowledged::default(),
            reads: Reads::default(),
            order: Order::new(machines),
            votes: Votes::new(machines),
            archive: store.map(|store| Archive::new(store, home)),
            purged: 0,
            events: Events::default(),
        }
    }

    /// The newest revision that any client was told of.
    pub(crate) fn floor(&self) -> Revision {
        self.acknowledged.floor()
    }

    /// Entries that are known to be committed.
    pub(crate) fn committed(&self) -> u64 {
        self.chosen.len()
    }

    /// What came about: reigns of leaders, changes of members, logs cut behind and in front, and snapshots that nodes got.
    pub(crate) fn came_about(&self) -> Events {
        let (reigns, memberships) = (self.election.reigns(), self.chosen.memberships());
        let archived = self.archive.as_ref().map(Archive::figures).unwrap_or_default();
        Events { reigns, memberships, votes: self.votes.answers(), archived, ..self.events }
    }

    /// The node on a machine, if that is known.
    pub(crate) fn id_of(&self, place: Place) -> Option<NodeId> {
        self.ids[place]
    }

    /// The members by the last change that was committed.
    pub(crate) fn members(&self) -> Option<&Membership> {
        self.chosen.membership_at(self.chosen.len().checked_sub(1)?)
    }

    /// The snapshots of a node, which is gone, are damaged.
    pub(crate) fn snapshots_damaged(&mut self, place: Place) {
        self.order.snapshots_damaged(place);
    }

    /// Answers that were judged.
    pub(crate) fn judged(&self) -> (u64, u64) {
        (self.acknowledged.count(), self.reads.count())
    }

    /// The records that a node wrote since the last step.
    pub(crate) fn written(&mut self, place: Place, records: &[LogRecord]) -> Result<(), Violation> {
        for record in records {
            let log = &mut self.logs[place];
            if let LogRecord::Append(entry) = record {
                self.matching.appended(log.last(), entry)?;
                self.election.appended(place, self.ids[place], log, entry, &self.chosen)?;
            }
            if let LogRecord::Truncate(keep) = record {
                self.chosen.truncated(place, log, *keep)?;
            }
            self.votes.wrote(place, record);
            if let LogRecord::Purge(upto) = record {
                self.purged = self.purged.max(upto.index.get());
            }
            match record {
                LogRecord::Truncate(_) => self.events.truncations += 1,
                LogRecord::Purge(upto) if log.last() < Some(*upto) => self.events.installations += 1,
                LogRecord::Purge(_) => self.events.purges += 1,
                LogRecord::Vote(_) | LogRecord::Append(_) | LogRecord::Commit(_) => {}
            }
            log.apply(record);
            if let LogRecord::Commit(upto) = record {
                self.chosen.committed(place, &self.logs, *upto)?;
            }
        }
        self.reference.follow(&self.chosen)
    }

    /// A node answers that it has voted so, or follows so.
    pub(crate) fn given(&mut self, place: Place, vote: Vote, log: &MemoryLog) -> Result<(), Violation> {
        self.votes.given(place, vote, log)
    }

    /// What has come to be archived is looked at.
    pub(crate) fn archived(&mut self) -> Result<(), Violation> {
        let Self { archive, chosen, reference, .. } = self;
        archive.as_mut().map_or(Ok(()), |archive| archive.follow(chosen, reference))
    }

    /// That everything is archived, where anything is.
    pub(crate) fn all_archived(&self) -> Result<(), Violation> {
        self.archive.as_ref().map_or(Ok(()), |archive| archive.is_complete(&self.chosen, self.purged))
    }

    /// Restores the archive.
    pub(crate) fn restores(&mut self, random: &mut SmallRng) -> Result<(), Violation> {
        let Self { archive, reference, .. } = self;
        archive.as_mut().map_or(Ok(()), |archive| archive.restores(reference, random))
    }

    /// A node is gone, and its disk holds this now.
    pub(crate) fn crashed(&mut self, place: Place, image: &[LogRecord]) {
        let log = &mut self.logs[place];
        *log = NodeLog::default();
        image.iter().for_each(|record| log.apply(record));
        self.order.crashed(place);
    }

    /// A disk was wiped: what stands on it next is another node.
    pub(crate) fn wiped(&mut self, place: Place) {
        self.crashed(place, &[]);
        self.votes.wiped(place);
        self.order.wiped(place);
        self.ids[place] = None;
    }

    /// What a node says of itself.
    pub(crate) fn status(&mut self, place: Place, status: &NodeStatus) -> Result<(), Violation> {
        if status.id.get() != 0 {
            self.ids[place] = Some(status.id);
        }
        self.order.check(place, status, &self.logs[place])?;
        state_hash::check(place, status, &self.reference)
    }

    /// What a client was told.
    pub(crate) fn ended(&mut self, op: &Op, end: &End, step: u64, machines: &[Machine]) -> Result<(), Violation> {
        self.acknowledged.ended(op, end, &self.reference, &self.chosen, machines)?;
        self.reads.ended(op, end, &self.reference, &self.acknowledged)?;
        self.acknowledged.told(step, end);
        self.reads.note(op, Some(end), step);
        Ok(())
    }

    /// An operation of which nobody will hear anything.
    pub(crate) fn lost(&mut self, op: &Op) {
        self.reads.note(op, None, 0);
    }

    /// A node says that it was taken out.
    pub(crate) fn removed(&self, place: Place, status: &NodeStatus) -> Result<(), Violation> {
        match self.members() {
            Some(membership) if membership.get_node(&status.id).is_some() => {
                let what =
                    format!("machine {place} says that node {} was, but it is a member: {membership}", status.id);
                Err(Violation::new("only who was removed says so", what))
            }
            _ => Ok(()),
        }
    }

    /// That these nodes have applied all that was ever committed, by whichever node.
    pub(crate) fn all_applied(&self, nodes: &[(Place, NodeStatus)]) -> Result<(), Violation> {
        let end = self.chosen.last().map(|last| last.index);
        match nodes.iter().find(|(_, status)| status.applied_index != end) {
            Some((place, status)) => {
                let what = format!("machine {place} has applied {:?} at the end, of {end:?}", status.applied_index);
                Err(Violation::new("what was committed stays", what))
            }
            None => Ok(()),
        }
    }

    /// What can be judged only when nothing moves any more.
    pub(crate) fn settled(&self) -> Result<(), Violation> {
        self.acknowledged.settled(&self.reference)?;
        self.reads.settled()
    }
}
