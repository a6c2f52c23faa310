//! Directories as stopped members leave them, for tests here and in `node`.
//!
//! Guarantees: made by the same stores that a node writes with. Leaves out: the identity.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;

use crate::raft::log_store::{LogConfig, LogStore};
use crate::raft::membership::encode_membership;
use crate::raft::snapshot_store::{SnapshotHandle, SnapshotStore};
use crate::raft::types::{Entry, LeaderId, LogId, Membership, Payload, StoredMembership, TypeConfig, Vote};
use crate::state::{Batch, Command, Operation, Principal, StateConfig, StateMachine, Txn, TxnOp};
use crate::storage::MemoryEngine;
use crate::types::{ClusterId, Key, LeaseId, LogPosition, Member, NodeId, Term, WallTime};

/// The cluster that has lost its quorum.
pub(crate) const OLD: ClusterId = ClusterId::new(7);

/// The term of every entry, and the one that the member has voted in since then.
pub(crate) const TERM: Term = Term::new(2);
pub(crate) const VOTED: Term = Term::new(5);

/// What a member has when it stops. Entry 0 sets the membership, entry `i` puts `key-i` and makes revision `i`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    /// How many vote; their ids are 1 and on.
    pub(crate) voters: u64,
    /// The entries that snapshots end with.
    pub(crate) snapshots: &'static [u64],
    /// The last entry that was removed from the log.
    pub(crate) purged: Option<u64>,
    /// The last entry that is marked as committed.
    pub(crate) committed: u64,
    /// The last entry.
    pub(crate) last: u64,
}

impl Default for Left {
    fn default() -> Self {
        Self { voters: 3, snapshots: &[8, 10], purged: Some(5), committed: 17, last: 20 }
    }
}

pub(crate) fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: TERM, node_id: NodeId::new(1) }, index }
}

pub(crate) fn member(id: u64) -> Member {
    let (name, peer_addr) = (format!("n{id}"), format!("n{id}:1"));
    Member { name, peer_addr, client_url: format!("http://n{id}:2"), ..Member::default() }
}

fn membership(voters: u64) -> Membership {
    Membership::from((1..=voters).map(|id| (NodeId::new(id), member(id))).collect::<BTreeMap<_, _>>())
}

pub(crate) fn put(index: u64, proposed_at: WallTime) -> Command {
    let key = Key::new(Bytes::from(format!("key-{index}"))).unwrap();
    let put = TxnOp::Put { key, value: Bytes::from(format!("value {index}")), lease: LeaseId::ZERO };
    let operation = Operation::Txn(Txn { success: vec![put], ..Txn::default() });
    Command { proposed_at, principal: Principal::Anonymous, request: None, operation }
}

/// One entry of the old cluster's log; it is proposed at second `index`.
pub(crate) fn entry(index: u64, voters: u64) -> Entry {
    let payload = match index {
        0 => Payload::Membership(membership(voters)),
        _ => Payload::Normal(Batch::encode(&[put(index, WallTime::new(1_000 * index))])),
    };
    Entry { log_id: log_id(index), payload }
}

/// Writes what a member has left.
pub(crate) async fn leave(dir: &Path, left: Left) {
    let mut log = LogStore::open(&dir.join("log"), LogConfig::default()).unwrap();
    let (flushed, done) = TypeConfig::oneshot();
    let entries: Vec<Entry> = (0..=left.last).map(|index| entry(index, left.voters)).collect();
    log.append(entries, IOFlushed::signal(flushed)).await.unwrap();
    done.await.unwrap().unwrap();
    log.save_vote(&Vote::new(VOTED, NodeId::new(2))).await.unwrap();
    log.save_committed(Some(log_id(left.committed))).await.unwrap();
    if let Some(purged) = left.purged {
        log.purge(log_id(purged)).await.unwrap();
    }
    log.sync().await.unwrap();
    for last in left.snapshots {
        snapshot(&dir.join("snapshots"), OLD, *last, left.voters);
    }
}

/// Cuts the log so many bytes behind where the record of an entry begins, as if what comes then had been lost; how many
/// bytes the mark at its end says to be missing from the record on.
pub(crate) fn lose_end(dir: &Path, index: u64, behind: usize) -> u64 {
    let chunks = std::fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let path = chunks.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let id = [TERM.get(), 1, index].map(u64::to_be_bytes).concat();
    let at = bytes.windows(24).position(|window| window == id).unwrap() - 4;
    let mark = std::fs::read(dir.join("log/end")).unwrap();
    let lost = u64::from_le_bytes(mark[5..13].try_into().unwrap()) - at as u64;
    bytes.truncate(at + behind);
    std::fs::write(path, bytes).unwrap();
    lost
}

/// Writes a snapshot of the state behind an entry.
pub(crate) fn snapshot(dir: &Path, cluster: ClusterId, last: u64, voters: u64) -> SnapshotHandle {
    let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
    for index in 0..=last {
        let position = LogPosition::from(log_id(index));
        if index == 0 {
            let stored = StoredMembership::new(Some(log_id(0)), membership(voters));
            machine.apply_membership(position, encode_membership(&stored));
        } else {
            let outcomes = machine.apply(position, &[put(index, WallTime::ZERO)]).unwrap();
            assert!(outcomes[0].is_ok());
        }
    }
    SnapshotStore::open(dir, cluster).unwrap().write(&machine.pin()).unwrap()
}
