//! A node never goes back behind whom it has voted for or followed, not even across a crash: what it answers with stands on
//! its disk before it answers, and it answers with nothing that it never wrote there.
//!
//! With the log refusing votes that go back (`MemoryLog`), this is what keeps a node from voting for two candidates in one
//! term. A term here is a pair of number and node, of which the greater one wins (`raft::types`): a node may vote for 5/n2
//! and then for 5/n3, as for two terms, but never the other way. Guarantees: judged by the answers on the wire, whether
//! they arrive or not. Leaves out: snapshots that a node takes from a leader, which are not answered with a vote.

use quorate::raft::types::Vote;
use quorate::raft::{LogRecord, MemoryLog};

use super::Violation;
use crate::wire::Place;

const NAME: &str = "a vote is on disk before it counts";

/// What each disk was ever given of votes.
pub(super) struct Votes {
    written: Vec<Vec<Vote>>,
    answers: u64,
}

impl Votes {
    pub(super) fn new(machines: usize) -> Self {
        Self { written: vec![Vec::new(); machines], answers: 0 }
    }

    /// Answers that were judged.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    pub(super) fn wrote(&mut self, place: Place, record: &LogRecord) {
        if let LogRecord::Vote(vote) = record
            && !self.written[place].contains(vote)
        {
            self.written[place].push(*vote);
        }
    }

    pub(super) fn wiped(&mut self, place: Place) {
        self.written[place].clear();
    }

    /// A node answers that it has voted so, or follows so.
    pub(super) fn given(&mut self, place: Place, vote: Vote, log: &MemoryLog) -> Result<(), Violation> {
        self.answers += 1;
        let durable = log.durable_vote();
        if durable < Some(vote) {
            let what = format!("machine {place} answers with {vote}, but a power cut would leave {durable:?}");
            return Err(Violation::new(NAME, what));
        }
        if !self.written[place].contains(&vote) {
            let what = format!("machine {place} answers with {vote}, which it never wrote; it has {durable:?}");
            return Err(Violation::new(NAME, what));
        }
        Ok(())
    }
}
