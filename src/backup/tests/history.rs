//! Histories of a cluster for tests: what was applied, what the state amounted to at each point, and an archive of it.
//!
//! Guarantees: the states are those of a live state machine that applied the entries one by one. Leaves out: Raft.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use proptest::prelude::*;

use crate::backup::catalogue::Catalogue;
use crate::backup::manifest::Object;
use crate::backup::plan::Target;
use crate::backup::repository::Repository;
use crate::backup::seal::Recipients;
use crate::backup::segment::StateMark;
use crate::backup::transfer::{store_entries, store_snapshot};
use crate::state::snapshot::{self, SnapshotMeta};
use crate::state::{
    Batch, Command, Compare, CompareOperator, CompareTarget, LogContent, LogEntry, Operation, Principal, StateConfig,
    StateMachine, Targets, Txn, TxnOp,
};
use crate::storage::MemoryEngine;
use crate::types::{
    ClusterId, Key, KeyRange, LeaseId, LogIndex, LogPosition, NodeId, Revision, Selector, Term, WallTime,
};

pub(crate) const CLUSTER: ClusterId = ClusterId::new(0xAB);

/// A repository in memory.
pub(crate) fn repository() -> Repository {
    Repository::new(Arc::new(InMemory::new()), object_store::path::Path::from("p"), "memory:///p")
}

/// What one entry does.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// A new leader begins its term.
    Blank,
    /// The members change.
    Membership,
    /// Commands, each with how much later than the one before it was proposed: clocks of leaders may go back.
    Commands(Vec<(i64, Txn)>),
}

pub(crate) fn key(name: u8) -> Key {
    Key::new(vec![b'k', name]).unwrap()
}

pub(crate) fn put(name: u8, value: u8) -> TxnOp {
    TxnOp::Put { key: key(name), value: Bytes::from(vec![value; usize::from(value % 40)]), lease: LeaseId::ZERO }
}

fn op() -> impl Strategy<Value = TxnOp> {
    let name = 0..10_u8;
    let range = (name.clone(), name.clone()).prop_filter_map("empty", |(start, end)| {
        KeyRange::new(vec![b'k', start], Some(Bytes::from(vec![b'k', end]))).ok()
    });
    prop_oneof![
        5 => (name.clone(), any::<u8>()).prop_map(|(name, value)| put(name, value)),
        1 => name.clone().prop_map(|name| TxnOp::Delete { selector: Selector::Key(key(name)) }),
        1 => range.prop_map(|range| TxnOp::Delete { selector: Selector::Range(range) }),
        1 => name.prop_map(|name| TxnOp::Get { selector: Selector::Key(key(name)), limit: 1, keys_only: false }),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let compare = (0..10_u8, 0..3_u64).prop_map(|(name, version)| Compare {
        key: key(name),
        target: CompareTarget::Version(version),
        operator: CompareOperator::Equal,
    });
    let ops = || prop::collection::vec(op(), 0..4);
    (prop::collection::vec(compare, 0..2), ops(), ops()).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    })
}

/// What entries do, the first members apart.
pub(crate) fn entries(most: usize) -> impl Strategy<Value = Vec<Does>> {
    let commands = prop::collection::vec((-40..200_i64, txn()), 1..5).prop_map(Does::Commands);
    let does = prop_oneof![1 => Just(Does::Blank), 1 => Just(Does::Membership), 8 => commands];
    prop::collection::vec(does, 1..most)
}

/// What the state amounted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) index: u64,
    pub(crate) revision: Revision,
    pub(crate) hash: u128,
}

/// What happened in a cluster.
pub(crate) struct History {
    pub(crate) entries: Vec<LogEntry>,
    /// Behind each entry.
    pub(crate) behind: Vec<Point>,
    /// Behind each command, with when it was proposed.
    pub(crate) commands: Vec<(WallTime, Point)>,
    /// Snapshot files by the last entry in them.
    pub(crate) fulls: Vec<(u64, PathBuf, SnapshotMeta)>,
}

impl History {
    /// Lets it happen; snapshots are written into `dir` behind the entries of these indexes.
    pub(crate) fn new(dir: &Path, entries: &[Does], fulls: &[u64]) -> Self {
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        let mut history = Self { entries: Vec::new(), behind: Vec::new(), commands: Vec::new(), fulls: Vec::new() };
        let (mut term, mut now) = (1, 1_000_000_i64);
        let all = std::iter::once(&Does::Membership).chain(entries);
        for (index, does) in (0..).zip(all) {
            term += u64::from(matches!(does, Does::Blank));
            let leader = NodeId::new(term % 3 + 1);
            let position = LogPosition { term: Term::new(term), leader, index: LogIndex::new(index) };
            let content = match does {
                Does::Blank => LogContent::Blank,
                Does::Membership => LogContent::Membership(Bytes::from(vec![9, 9, 9])),
                Does::Commands(commands) => {
                    let stamped: Vec<Command> = commands
                        .iter()
                        .map(|(step, txn)| {
                            now += step;
                            let proposed_at = WallTime::new(now.try_into().unwrap());
                            let operation = Operation::Txn(txn.clone());
                            Command { proposed_at, principal: Principal::Anonymous, request: None, operation }
                        })
                        .collect();
                    for command in &stamped {
                        machine.apply(position, std::slice::from_ref(command)).unwrap();
                        history.commands.push((command.proposed_at, point(&machine, index)));
                    }
                    LogContent::Commands(Batch::encode(&stamped))
                }
            };
            match &content {
                LogContent::Blank => machine.apply_blank(position),
                LogContent::Membership(bytes) => machine.apply_membership(position, bytes.clone()),
                LogContent::Commands(_) => {}
            }
            history.entries.push(LogEntry { position, content });
            history.behind.push(point(&machine, index));
            if fulls.contains(&index) {
                history.fulls.push(full(dir, &machine, index, now));
            }
        }
        history
    }

    pub(crate) fn position(&self, index: u64) -> LogPosition {
        self.entries[usize::try_from(index).unwrap()].position
    }

    pub(crate) fn last(&self) -> u64 {
        self.entries.len() as u64 - 1
    }

    /// What the state behind an entry amounted to, as the archive tells it.
    pub(crate) fn mark(&self, index: u64) -> StateMark {
        let point = self.behind[usize::try_from(index).unwrap()];
        StateMark { revision: point.revision, hash: point.hash }
    }

    /// Stores entries `first` to `last`, with or without the state behind them.
    pub(crate) async fn segment(
        &self,
        repository: &Repository,
        (first, last): (u64, u64),
        marked: bool,
        recipients: &Recipients,
    ) -> Object {
        let previous = first.checked_sub(1).map(|index| self.position(index));
        let range = usize::try_from(first).unwrap()..=usize::try_from(last).unwrap();
        let (entries, state) = (self.entries[range].to_vec(), marked.then(|| self.mark(last)));
        store_entries(repository, CLUSTER, previous, entries, state, recipients).await.unwrap()
    }

    /// Stores the snapshot behind an entry.
    pub(crate) async fn full(&self, repository: &Repository, index: u64, recipients: &Recipients) -> Object {
        let (_, path, meta) = self.fulls.iter().find(|(at, ..)| *at == index).unwrap();
        store_snapshot(repository, path, meta, recipients, async |_| ()).await.unwrap()
    }

    /// Archives the snapshots and these pieces of the log.
    pub(crate) async fn archive(
        &self,
        repository: &Repository,
        pieces: &[(u64, u64, bool)],
        recipients: &Recipients,
    ) -> Catalogue {
        let mut catalogue = Catalogue::empty(CLUSTER);
        let mut adds = Vec::new();
        for (index, ..) in &self.fulls {
            adds.push(self.full(repository, *index, recipients).await);
        }
        for (first, last, marked) in pieces {
            adds.push(self.segment(repository, (*first, *last), *marked, recipients).await);
        }
        for object in adds {
            catalogue.append(repository, "n1", vec![object], vec![]).await.unwrap();
        }
        catalogue
    }

    /// The state that a restore must give; `None` where no entry behind the snapshot at `begin` is needed to tell that it
    /// can't.
    pub(crate) fn state_at(&self, target: Target) -> Option<(Revision, u128)> {
        let state = |point: &Point| (point.revision, point.hash);
        match target {
            Target::Latest => self.behind.last().map(state),
            Target::Index(index) => self.behind.get(usize::try_from(index.get()).unwrap()).map(state),
            Target::Revision(revision) => {
                let all = self.behind.first().into_iter().chain(self.commands.iter().map(|(_, point)| point));
                all.map(state).find(|(at, _)| *at == revision)
            }
            Target::Time(time) => {
                let before = self.commands.iter().take_while(|(at, _)| *at <= time).last();
                before.map(|(_, point)| point).or(self.behind.first()).map(state)
            }
        }
    }
}

fn point(machine: &StateMachine, index: u64) -> Point {
    let applied = machine.applied();
    Point { index, revision: applied.revision, hash: applied.hash }
}

/// Writes a snapshot, by a clock that agrees with that of the leader.
fn full(dir: &Path, machine: &StateMachine, index: u64, now: i64) -> (u64, PathBuf, SnapshotMeta) {
    let pinned = machine.pin();
    let applied = pinned.applied();
    let meta = SnapshotMeta {
        cluster_id: CLUSTER,
        position: applied.position,
        membership: applied.membership.clone(),
        revision: applied.revision,
        compacted: applied.compacted,
        hash: applied.hash,
        created_at: WallTime::new(now.try_into().unwrap()),
        targets: Targets::default(),
    };
    let path = dir.join(format!("{index}.snapshot"));
    snapshot::write(&path, &meta, pinned.keys().unwrap(), pinned.records()).unwrap();
    (index, path, meta)
}
