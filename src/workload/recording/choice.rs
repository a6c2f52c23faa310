//! What a client does next.
//!
//! Guarantees: no value is written twice, by nobody; conditions and reads of the past name revisions that the client was told
//! of, so that many of them hold and many do not. Leaves out: sending (`client`).

use std::collections::VecDeque;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Mix;
use super::keys::{KeySpace, Place};
use crate::workload::history::{
    Action, Answer, Compare, Comparison, Consistency, Delete, Get, List, Operand, Put, Target, Txn, TxnOp, TxnResponse,
};

/// How many records and revisions a client keeps in mind.
const REMEMBERED_MAX: usize = 16;

/// Records of a page: fewer than a group has keys, so that most listings take several.
const PAGE_RECORDS: u64 = 3;

/// The bounds of bounded reads, in milliseconds.
const BOUNDS_MS: [u64; 3] = [100, 500, 2_000];

/// What a client does, and how often, in parts of the sum.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Put,
    PutIfRevision,
    PutIfAbsent,
    Delete,
    DeleteIfRevision,
    Txn,
    Get,
    Bounded,
    Stale,
    Past,
    List,
}

const DEFAULT: &[(Kind, u32)] = &[
    (Kind::Put, 22),
    (Kind::PutIfRevision, 8),
    (Kind::PutIfAbsent, 4),
    (Kind::Delete, 6),
    (Kind::DeleteIfRevision, 2),
    (Kind::Txn, 12),
    (Kind::Get, 24),
    (Kind::Bounded, 6),
    (Kind::Stale, 8),
    (Kind::Past, 3),
    (Kind::List, 5),
];

const REGISTERS: &[(Kind, u32)] = &[(Kind::Put, 1), (Kind::Get, 1)];

/// What one client has been told.
#[derive(Debug, Default)]
pub(super) struct Memory {
    client: u32,
    /// Values written so far: each gets a number of its own.
    values: u64,
    /// Keys with a mod revision they had.
    records: VecDeque<(String, u64)>,
    revisions: VecDeque<u64>,
    /// The newest revision of all that it was told.
    newest: u64,
}

impl Memory {
    pub(super) fn new(client: u32) -> Self {
        Self { client, ..Self::default() }
    }

    /// The next action.
    pub(super) fn choose(&mut self, mix: Mix, keys: &KeySpace, value_size: usize, random: &mut impl Rng) -> Action {
        let table = match mix {
            Mix::Default => DEFAULT,
            Mix::Registers => REGISTERS,
        };
        let place = keys.choose(random);
        let kind = table.choose_weighted(random, |(_, weight)| *weight).map_or(Kind::Get, |(kind, _)| *kind);
        let get = |key| Get { key, ..Get::default() };
        match kind {
            Kind::Put => Action::Put(Put { key: place.one(random), value: self.value(value_size), ..Put::default() }),
            Kind::PutIfAbsent => {
                let value = self.value(value_size);
                Action::Put(Put { key: place.one(random), value, if_absent: true, if_revision: None })
            }
            Kind::PutIfRevision => {
                let (key, at) = self.remembered(&place, random);
                let value = self.value(value_size);
                Action::Put(Put { key, value, if_absent: false, if_revision: Some(at) })
            }
            Kind::Delete => Action::Delete(Delete { key: place.one(random), if_revision: None }),
            Kind::DeleteIfRevision => {
                let (key, at) = self.remembered(&place, random);
                Action::Delete(Delete { key, if_revision: Some(at) })
            }
            Kind::Txn => Action::Txn(self.txn(&place, value_size, random)),
            Kind::Get => Action::Get(get(place.one(random))),
            Kind::Bounded => {
                let max_staleness_ms = BOUNDS_MS.choose(random).copied();
                Action::Get(Get { consistency: Consistency::Bounded, max_staleness_ms, ..get(place.one(random)) })
            }
            Kind::Stale => {
                // The promise that is worth most with a stale read: never to go back.
                let min_revision = random.random_bool(0.5).then_some(self.newest);
                Action::Get(Get { consistency: Consistency::Stale, min_revision, ..get(place.one(random)) })
            }
            Kind::Past => {
                let at =
                    self.revisions.iter().copied().nth(random.random_range(0..REMEMBERED_MAX)).filter(|at| *at > 0);
                Action::Get(Get { at_revision: at, min_revision: at, ..get(place.one(random)) })
            }
            Kind::List => {
                let consistency = if random.random_bool(0.5) { Consistency::Stale } else { Consistency::Linearizable };
                Action::List(List { prefix: place.prefix, limit: PAGE_RECORDS, consistency, ..List::default() })
            }
        }
    }

    fn txn(&mut self, place: &Place, value_size: usize, random: &mut impl Rng) -> Txn {
        let keys = place.several(3, random);
        let put = |key: &String, value| TxnOp::Put { key: key.clone(), value };
        let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::Get { key: key.clone() }).collect();
        let (first, last) = (&keys[0], &keys[keys.len() - 1]);
        let compare = |key: &String, target, value| {
            vec![Compare { key: key.clone(), target, op: Comparison::Equal, value: Operand::Number(value) }]
        };
        match random.random_range(0..5) {
            // Two keys that change together, or not.
            0 => {
                let (key, at) = self.remembered(place, random);
                let success = keys.iter().map(|key| put(key, self.value(value_size))).collect();
                Txn { compare: compare(&key, Target::ModRevision, at), success, failure: gets }
            }
            1 => {
                let success = keys.iter().map(|key| put(key, self.value(value_size))).collect();
                Txn { compare: compare(first, Target::Version, 0), success, failure: gets }
            }
            2 if keys.len() > 1 => {
                let mut success = vec![put(first, self.value(value_size)), TxnOp::Delete { key: last.clone() }];
                success.extend(gets);
                Txn { success, ..Txn::default() }
            }
            3 => Txn { success: gets, ..Txn::default() },
            _ => {
                let mut success = gets;
                success.extend(keys.iter().map(|key| put(key, self.value(value_size))));
                Txn { success, ..Txn::default() }
            }
        }
    }

    /// A value that nobody else writes, of at least this size.
    fn value(&mut self, size: usize) -> String {
        self.values += 1;
        format!("{:.<size$}", format!("{}.{}", self.client, self.values))
    }

    /// A key with a revision that it had, of this group if possible.
    fn remembered(&self, place: &Place, random: &mut impl Rng) -> (String, u64) {
        let of_group = |record: &&(String, u64)| record.0.starts_with(&place.prefix);
        self.records.iter().rev().find(of_group).cloned().unwrap_or_else(|| (place.one(random), self.newest.max(1)))
    }

    /// Takes note of what an operation was told.
    pub(super) fn learn(&mut self, action: &Action, answer: &Answer) {
        let Some(revision) = answer.revision() else { return };
        self.newest = self.newest.max(revision);
        remember(&mut self.revisions, revision);
        let mut know = |key: &str, at: Option<u64>| {
            if let Some(at) = at {
                remember(&mut self.records, (key.to_owned(), at));
            }
        };
        match (action, answer) {
            (Action::Put(put), Answer::Put(_)) => know(&put.key, Some(revision)),
            (Action::Put(Put { key, .. }) | Action::Delete(Delete { key, .. }), Answer::Failed(failed)) => {
                know(key, failed.mod_revision);
            }
            (Action::Get(get), Answer::Get(found)) if get.at_revision.is_none() => {
                know(&get.key, found.record.as_ref().and_then(|record| record.mod_revision));
            }
            (Action::List(_), Answer::List(page)) => {
                page.records.iter().for_each(|record| know(&record.key, Some(record.mod_revision)));
            }
            (Action::Txn(txn), Answer::Txn(done)) => {
                let branch = if done.succeeded { &txn.success } else { &txn.failure };
                for (op, response) in branch.iter().zip(&done.responses) {
                    match response {
                        TxnResponse::Put { .. } => know(op.key(), Some(revision)),
                        TxnResponse::Get { record: Some(record) } => know(op.key(), record.mod_revision),
                        TxnResponse::Get { record: None } | TxnResponse::Delete { .. } => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn remember<T>(memory: &mut VecDeque<T>, new: T) {
    if memory.len() == REMEMBERED_MAX {
        memory.pop_front();
    }
    memory.push_back(new);
}
