//! A made-up cluster's history, for tests: its entries, the state behind each of them, and an archive of both.
//!
//! Guarantees: the same number gives the same history. Leaves out: a cluster.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

use crate::backup::catalogue::Catalogue;
use crate::backup::layout::REPOSITORY;
use crate::backup::marker;
use crate::backup::repository::Repository;
use crate::backup::seal::Recipients;
use crate::backup::segment::StateMark;
use crate::backup::transfer::{store_entries, store_snapshot};
use crate::state::snapshot::{self, SnapshotMeta};
use crate::state::{
    Batch, Command, LogContent, LogEntry, Operation, Principal, StateConfig, StateMachine, Targets, Txn, TxnOp,
};
use crate::storage::MemoryEngine;
use crate::types::{ClusterId, Key, KeyRange, LeaseId, LogIndex, LogPosition, NodeId, Selector, Term, WallTime};

pub(crate) const CLUSTER: ClusterId = ClusterId::new(7);

/// When the first command was proposed, in milliseconds since the epoch; each entry is a second later.
pub(crate) const BEGAN: u64 = 1_700_000_000_000;

pub(crate) struct Sample {
    random: StdRng,
    machine: StateMachine,
    pub(crate) entries: Vec<LogEntry>,
    /// Behind each entry.
    pub(crate) marks: Vec<StateMark>,
    pub(crate) folder: TempDir,
}

pub(crate) fn position(index: u64) -> LogPosition {
    LogPosition { term: Term::new(1 + index / 50), leader: NodeId::new(1), index: LogIndex::new(index) }
}

impl Sample {
    /// A history of so many entries.
    pub(crate) fn new(number: u64, entries: u64) -> Self {
        let machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        let mut sample = Self {
            random: StdRng::seed_from_u64(number),
            machine,
            entries: Vec::new(),
            marks: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        };
        sample.grow(entries);
        sample
    }

    /// Makes it longer.
    pub(crate) fn grow(&mut self, entries: u64) {
        for _ in 0..entries {
            let position = position(self.entries.len() as u64);
            let content = self.content(position.index.get());
            match &content {
                LogContent::Blank => self.machine.apply_blank(position),
                LogContent::Membership(bytes) => self.machine.apply_membership(position, bytes.clone()),
                LogContent::Commands(batch) => {
                    self.machine.apply(position, &batch.decode().unwrap()).unwrap();
                }
            }
            self.entries.push(LogEntry { position, content });
            let applied = self.machine.applied();
            self.marks.push(StateMark { revision: applied.revision, hash: applied.hash });
        }
    }

    fn content(&mut self, index: u64) -> LogContent {
        match self.random.random_range(0..10) {
            0 => LogContent::Blank,
            1 => LogContent::Membership(Bytes::from(format!("members at {index}"))),
            _ => {
                let commands: Vec<Command> = (0..self.random.random_range(1..4)).map(|_| self.command(index)).collect();
                LogContent::Commands(Batch::encode(&commands))
            }
        }
    }

    fn command(&mut self, index: u64) -> Command {
        let success = (0..self.random.random_range(1..4)).map(|_| self.operation()).collect();
        Command {
            proposed_at: WallTime::new(BEGAN + index * 1000),
            principal: Principal::Anonymous,
            request: None,
            operation: Operation::Txn(Txn { compares: vec![], success, failure: vec![] }),
        }
    }

    fn operation(&mut self) -> TxnOp {
        let mut key = || Key::new(Bytes::from(format!("key-{:02}", self.random.random_range(0..40)))).unwrap();
        let (one, other) = (key(), key());
        match self.random.random_range(0..8) {
            0 => TxnOp::Delete { selector: Selector::Key(one) },
            1 if one < other => {
                TxnOp::Delete { selector: Selector::Range(KeyRange::new(one, Some(other.into_bytes())).unwrap()) }
            }
            _ => {
                let value: Vec<u8> = (0..self.random.random_range(0..200)).map(|_| self.random.random()).collect();
                TxnOp::Put { key: one, value: value.into(), lease: LeaseId::new(0) }
            }
        }
    }

    /// The last index.
    pub(crate) fn last(&self) -> u64 {
        self.entries.len() as u64 - 1
    }

    /// A snapshot file of the state as it is now.
    pub(crate) fn snapshot(&self) -> (PathBuf, SnapshotMeta) {
        let pinned = self.machine.pin();
        let applied = pinned.applied();
        let meta = SnapshotMeta {
            cluster_id: CLUSTER,
            position: applied.position,
            membership: applied.membership.clone(),
            revision: applied.revision,
            compacted: applied.compacted,
            hash: applied.hash,
            created_at: WallTime::new(BEGAN + self.last() * 1000),
            targets: Targets::default(),
        };
        let path = self.folder.path().join(format!("{}.snapshot", self.last()));
        snapshot::write(&path, &meta, pinned.keys().unwrap(), pinned.records()).unwrap();
        (path, meta)
    }

    /// Entries `range`, as an object that belongs to the archive.
    pub(crate) async fn archive_log(&self, archive: &mut Archive, range: RangeInclusive<u64>) -> String {
        let (first, last) = (*range.start() as usize, *range.end() as usize);
        let previous = first.checked_sub(1).map(|index| self.entries[index].position);
        let (entries, mark) = (self.entries[first..=last].to_vec(), Some(self.marks[last]));
        let object = store_entries(&archive.repository, CLUSTER, previous, entries, mark, &archive.recipients);
        let object = object.await.unwrap();
        let name = object.name.clone();
        archive.catalogue.append(&archive.repository, "n1", vec![object], vec![]).await.unwrap();
        name
    }

    /// The state as it is now, as an object that belongs to the archive.
    pub(crate) async fn archive_full(&self, archive: &mut Archive) -> String {
        let (path, meta) = self.snapshot();
        let object = store_snapshot(&archive.repository, &path, &meta, &archive.recipients, async |_| {});
        let object = object.await.unwrap();
        let name = object.name.clone();
        archive.catalogue.append(&archive.repository, "n1", vec![object], vec![]).await.unwrap();
        name
    }
}

/// An archive that is being filled.
pub(crate) struct Archive {
    pub(crate) repository: Repository,
    pub(crate) catalogue: Catalogue,
    pub(crate) recipients: Recipients,
}

impl Archive {
    pub(crate) async fn new(repository: Repository, recipients: Recipients) -> Self {
        repository.create(REPOSITORY, marker::content()).await.unwrap();
        Self { repository, catalogue: Catalogue::empty(CLUSTER), recipients }
    }

    /// A snapshot, forty entries in pieces of ten, and another snapshot.
    pub(crate) async fn filled(repository: Repository, recipients: Recipients) -> (Self, Sample) {
        let (mut archive, mut sample) = (Self::new(repository, recipients).await, Sample::new(1, 30));
        sample.archive_full(&mut archive).await;
        for _ in 0..4 {
            let first = sample.last() + 1;
            sample.grow(10);
            sample.archive_log(&mut archive, first..=sample.last()).await;
        }
        sample.archive_full(&mut archive).await;
        (archive, sample)
    }
}
