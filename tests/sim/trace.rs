//! What happened, as one number and, where asked for, as text.
//!
//! Guarantees: two runs with the same hash delivered the same parcels, wrote the same records and gave the same answers at
//! the same steps. Leaves out: what no other node and no client ever hears of.

use std::collections::VecDeque;

use bytes::Bytes;
use quorate::raft::LogRecord;
use quorate::raft::types::Payload;
use quorate::types::LogPosition;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// How many lines are kept for the report of a failure.
const LINES_MAX: usize = 60;

/// A running digest, and the last lines.
pub(crate) struct Trace {
    digest: Xxh3,
    events: u64,
    lines: VecDeque<String>,
    /// Whether all lines are printed as they come.
    loud: bool,
}

impl Trace {
    pub(crate) fn new(loud: bool) -> Self {
        Self { digest: Xxh3::new(), events: 0, lines: VecDeque::new(), loud }
    }

    /// Takes note of an event: its numbers, and bytes of which only the digest counts.
    pub(crate) fn note(&mut self, numbers: &[u64], bytes: &[u8]) {
        self.events += 1;
        for number in numbers {
            self.digest.update(&number.to_le_bytes());
        }
        self.digest.update(&xxh3_64(bytes).to_le_bytes());
    }

    /// Takes note of what a node wrote to its log.
    pub(crate) fn record(&mut self, step: u64, place: u64, record: &LogRecord) {
        let index = |position: &LogPosition| position.index.get();
        match record {
            LogRecord::Vote(vote) => {
                let leader = vote.leader_id;
                self.note(&[step, place, 0, leader.term.get(), leader.node_id.get(), u64::from(vote.committed)], &[]);
            }
            LogRecord::Append(entry) => {
                let (id, bytes) = (
                    entry.log_id,
                    match &entry.payload {
                        Payload::Normal(batch) => batch.as_bytes().clone(),
                        Payload::Blank => Bytes::new(),
                        Payload::Membership(membership) => membership.to_string().into(),
                    },
                );
                let leader = id.leader_id;
                self.note(&[step, place, 1, leader.term.get(), leader.node_id.get(), id.index], &bytes);
            }
            LogRecord::Truncate(keep) => self.note(&[step, place, 2, keep.as_ref().map_or(0, index)], &[]),
            LogRecord::Purge(upto) => self.note(&[step, place, 3, index(upto)], &[]),
            LogRecord::Commit(upto) => self.note(&[step, place, 4, index(upto)], &[]),
        }
    }

    /// Takes note of an event that people want to read of.
    pub(crate) fn tell(&mut self, step: u64, line: String) {
        self.note(&[step], line.as_bytes());
        if self.loud {
            println!("{step:>7} {line}");
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{step:>7} {line}"));
    }

    pub(crate) fn hash(&self) -> u64 {
        self.digest.digest()
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &String> {
        self.lines.iter()
    }
}
