//! Moving a snapshot file to a member that is too far behind for the log: announced, sent in checksummed parts, verified as
//! a whole, installed.
//!
//! Guarantees: a transfer that was cut goes on behind the last byte that arrived, so that a cut costs less than one part; one
//! that was begun goes to its end with the file it began with, also if newer ones are made meanwhile, as long as the log
//! continues that file; all transfers of a node together keep to one limit; parts travel on a channel of their own and are
//! read, summed and written on threads that no request waits for; a file is only installed after its SHA-256, its own
//! checksums and its state hash were verified. Leaves out: when a snapshot is needed (openraft).
//!
//! Parts are not compressed once more: the file is made of zstd frames already (`state::snapshot`), and a second pass finds
//! nothing (`a_part_does_not_shrink_by_compressing_it_once_more` holds that).

mod holds;
mod metrics;
mod pace;
mod receiver;
mod sender;

pub(super) use holds::LogHolds;
pub(super) use metrics::TransferMetrics;
pub(super) use receiver::{Receiver, is_incoming};
pub(super) use sender::send;

use pace::Pace;

/// The smallest part, in bytes: below it the calls cost more than what they carry.
const PART_BYTES_MIN: usize = 64 * 1024;

/// The largest part, in bytes. Each is held in memory a few times over on both sides.
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What all transfers that leave this node share.
#[derive(Debug)]
pub(super) struct Outgoing {
    pace: Pace,
    holds: LogHolds,
    metrics: TransferMetrics,
}

impl Outgoing {
    /// Transfers that together send so many bytes a second, keep the log they need with `holds`, and count in `metrics`.
    pub(super) fn new(bytes_per_second: u64, holds: LogHolds, metrics: TransferMetrics) -> Self {
        Self { pace: Pace::new(bytes_per_second), holds, metrics }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::raft::membership::encode_membership;
    use crate::raft::snapshot_store::SnapshotStore;
    use crate::state::{Command, Operation, Principal, StateConfig, StateMachine, Txn, TxnOp};
    use crate::storage::MemoryEngine;
    use crate::types::{ClusterId, Key, LeaseId, LogIndex, LogPosition, NodeId, Term, WallTime};

    fn position(index: u64) -> LogPosition {
        LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index) }
    }

    /// A record as many programs keep it: text, much of it the same from one to the next.
    fn put(number: u64) -> Command {
        let id = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value = format!(
            "{{\"id\":{id},\"name\":\"customer {number}\",\"status\":\"active\",\"city\":\"town {}\"}}",
            id >> 50
        );
        let key = Key::new(format!("customers/{id:020}")).unwrap();
        let op = TxnOp::Put { key, value: value.into(), lease: LeaseId::ZERO };
        let operation = Operation::Txn(Txn { success: vec![op], ..Txn::default() });
        Command { proposed_at: WallTime::ZERO, principal: Principal::Anonymous, request: None, operation }
    }

    #[test]
    fn a_part_does_not_shrink_by_compressing_it_once_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        machine.apply_membership(position(1), encode_membership(&Default::default()));
        let commands: Vec<Command> = (0..20_000).map(put).collect();
        let plain: usize = commands.iter().map(|command| format!("{command:?}").len()).sum();
        machine.apply(position(2), &commands).unwrap();
        machine.publish();
        let file = SnapshotStore::open(dir.path(), ClusterId::new(7)).unwrap().write(&machine.pin()).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(bytes.len() * 2 < plain, "the file itself is compressed: {} bytes of {plain}", bytes.len());
        for part in bytes.chunks(PART_BYTES_MIN) {
            let again = zstd::bulk::compress(part, 3).unwrap().len();
            assert!(again * 100 >= part.len() * 98, "{again} bytes of {}", part.len());
        }
    }
}
