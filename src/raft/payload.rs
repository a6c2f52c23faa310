//! How large commands and their answers are, so that entries and messages stay bounded.
//!
//! Guarantees: nothing is counted for less than it takes, but for answers still to come, which can only be guessed; what they
//! really come to is bounded by [`carried_back`]. Leaves out: what is done with the numbers (`proposer`, `server`).

use crate::state::{
    Command, Compare, CompareTarget, OpReply, Operation, Outcome, Principal, REPLY_OVERHEAD_BYTES, Record, Rejection,
    Reply, TXN_REPLY_BYTES_MAX, TxnOp,
};
use crate::types::Selector;

/// The most that a command, an operation or a comparison takes beside its keys, values and names, in bytes: tags and
/// numbers, each of at most ten bytes.
const PART_OVERHEAD_BYTES: usize = 64;

/// What a get of one value is expected to answer, in bytes: well above most values. What larger ones come to is only known
/// later, and bounded by [`carried_back`].
const GET_REPLY_BYTES: usize = 256 * 1024;

/// What a range counts for, in bytes: its answer, and the time it keeps the state machine busy, for a delete too.
const RANGE_REPLY_BYTES: usize = 2 * 1024 * 1024;

/// What a command counts for in an entry: no less than its encoded form takes. Everything a client chooses the length of
/// is counted, or a few commands would make an entry too large for a message or for the log.
pub(super) fn payload_bytes(command: &Command) -> usize {
    let txn = match &command.operation {
        Operation::Txn(txn) => txn,
        Operation::Target(change) => return change.payload_len() + PART_OVERHEAD_BYTES,
    };
    let selector_bytes = |selector: &Selector| match selector {
        Selector::Key(key) => key.as_bytes().len(),
        Selector::Range(range) => range.start().len() + range.end().map_or(0, |end| end.len()),
    };
    let op_bytes = |op: &TxnOp| match op {
        TxnOp::Put { key, value, .. } => key.as_bytes().len() + value.len(),
        TxnOp::Get { selector, .. } | TxnOp::Delete { selector } => selector_bytes(selector),
    };
    let compare_bytes = |compare: &Compare| match &compare.target {
        CompareTarget::Value(value) => compare.key.as_bytes().len() + value.len(),
        CompareTarget::Version(_)
        | CompareTarget::CreateRevision(_)
        | CompareTarget::ModRevision(_)
        | CompareTarget::Lease(_) => compare.key.as_bytes().len(),
    };
    let principal = if let Principal::User(name) = &command.principal { name.len() } else { 0 };
    let request = command.request.as_ref().map_or(0, |request| request.key.len());
    let parts = txn.compares.len() + txn.success.len() + txn.failure.len();
    txn.success.iter().chain(&txn.failure).map(op_bytes).sum::<usize>()
        + txn.compares.iter().map(compare_bytes).sum::<usize>()
        + principal
        + request
        + PART_OVERHEAD_BYTES * (1 + parts)
}

/// What the answer of a command counts for: what it is expected to take at most, in bytes, of which branch ever. A client
/// that reads large values, or whole ranges, so fills an entry sooner.
pub(super) fn reply_weight(command: &Command) -> usize {
    let txn = match &command.operation {
        Operation::Txn(txn) => txn,
        Operation::Target(_) => return REPLY_OVERHEAD_BYTES,
    };
    let op_bytes = |op: &TxnOp| match op {
        TxnOp::Get { selector: Selector::Range(_), .. } | TxnOp::Delete { selector: Selector::Range(_) } => {
            RANGE_REPLY_BYTES
        }
        TxnOp::Get { keys_only: false, .. } => GET_REPLY_BYTES,
        TxnOp::Put { key, .. } | TxnOp::Get { selector: Selector::Key(key), .. } => {
            key.as_bytes().len() + REPLY_OVERHEAD_BYTES
        }
        TxnOp::Delete { .. } => REPLY_OVERHEAD_BYTES,
    };
    let branch = |ops: &[TxnOp]| ops.iter().map(op_bytes).sum::<usize>();
    (REPLY_OVERHEAD_BYTES + branch(&txn.success).max(branch(&txn.failure))).min(TXN_REPLY_BYTES_MAX)
}

/// What of the outcomes goes back to a follower, in order: as many as one message carries, in `bytes_max` bytes. Those of
/// the largest answers stay behind, so that they cost as few others as possible their answer.
pub(super) fn carried_back(outcomes: Vec<Outcome>, bytes_max: usize) -> Vec<Option<Outcome>> {
    let sizes: Vec<usize> = outcomes.iter().map(outcome_bytes).collect();
    let mut total: usize = sizes.iter().sum();
    let mut outcomes: Vec<Option<Outcome>> = outcomes.into_iter().map(Some).collect();
    if total > bytes_max {
        let mut by_size: Vec<usize> = (0..sizes.len()).collect();
        by_size.sort_by_key(|&at| std::cmp::Reverse(sizes[at]));
        for at in by_size {
            if total <= bytes_max {
                break;
            }
            // What is left of it is its tag.
            total -= sizes[at] - 1;
            outcomes[at] = None;
        }
    }
    outcomes
}

/// No less than an outcome takes in a message, in bytes.
fn outcome_bytes(outcome: &Outcome) -> usize {
    let op_bytes = |reply: &OpReply| match reply {
        OpReply::Put { key, .. } => key.as_bytes().len(),
        OpReply::Get { records, .. } => {
            let record = |record: &Record| record.key.as_bytes().len() + record.value.len() + REPLY_OVERHEAD_BYTES;
            records.iter().map(record).sum()
        }
        OpReply::Delete { .. } => 0,
    };
    REPLY_OVERHEAD_BYTES
        + match outcome {
            Ok(Reply::Target) => 0,
            Ok(Reply::Txn(reply)) => reply.responses.iter().map(|reply| op_bytes(reply) + REPLY_OVERHEAD_BYTES).sum(),
            Err(Rejection::Malformed(reason)) => reason.len(),
            Err(
                Rejection::TargetExists { name } | Rejection::NoSuchTarget { name } | Rejection::TargetChanged { name },
            ) => name.len(),
            Err(
                Rejection::ReplyTooLarge { .. }
                | Rejection::TooManyKeys { .. }
                | Rejection::TooManyTargets { .. }
                | Rejection::TargetTooLarge { .. },
            ) => 0,
        }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::state::{Batch, CompareOperator, RecordMeta, Txn, TxnReply};
    use crate::types::{Key, KeyRange, LeaseId, Revision, WallTime};

    fn command(txn: Txn) -> Command {
        let (principal, request) = (Principal::User("u".repeat(100)), None);
        Command { proposed_at: WallTime::ZERO, principal, request, operation: Operation::Txn(txn) }
    }

    #[test]
    fn a_command_counts_for_no_less_than_it_takes_in_an_entry() {
        let key = || Key::new(vec![b'k'; 4_000]).unwrap();
        let big = Bytes::from(vec![1; 3_000_000]);
        let range = || Selector::Range(KeyRange::new(vec![1; 4_000], Some(Bytes::from(vec![2; 4_000]))).unwrap());
        let compare = |target| Compare { key: key(), target, operator: CompareOperator::Equal };
        let txns = [
            Txn::default(),
            Txn { compares: vec![compare(CompareTarget::Value(big.clone()))], ..Txn::default() },
            Txn { compares: vec![compare(CompareTarget::ModRevision(Revision::new(u64::MAX))); 9], ..Txn::default() },
            Txn { success: vec![TxnOp::Put { key: key(), value: big, lease: LeaseId::ZERO }], ..Txn::default() },
            Txn {
                failure: vec![TxnOp::Get { selector: range(), limit: 10_000, keys_only: false }; 9],
                ..Txn::default()
            },
            Txn { success: vec![TxnOp::Delete { selector: range() }; 9], ..Txn::default() },
        ];
        for command in txns.map(command) {
            let (counted, taken) = (payload_bytes(&command), Batch::encode(std::slice::from_ref(&command)).len());
            assert!(counted >= taken && counted < taken + 2_000, "{counted} for {taken}");
        }
    }

    #[test]
    fn what_may_answer_much_leaves_room_for_few_others_in_an_entry() {
        let key = || Selector::Key(Key::new("k").unwrap());
        let get = |selector, keys_only| TxnOp::Get { selector, limit: 1, keys_only };
        let weight = |success, failure| reply_weight(&command(Txn { success, failure, ..Txn::default() }));
        let (small, value) = (weight(vec![], vec![get(key(), true)]), weight(vec![get(key(), false)], vec![]));
        let range = weight(vec![get(Selector::Range(KeyRange::all()), true)], vec![]);
        let emptying = weight(vec![TxnOp::Delete { selector: Selector::Range(KeyRange::all()) }], vec![]);
        assert!(small < 200 && value > 1_000 * small && range > value, "{small}, {value}, {range}");
        assert_eq!(emptying, range);
        assert_eq!(weight(vec![get(key(), false)], vec![get(key(), false)]), value, "only one branch is taken");
        assert_eq!(weight(vec![get(key(), false); 1_000], vec![]), TXN_REPLY_BYTES_MAX);
    }

    #[test]
    fn answers_too_large_for_one_message_stay_behind_alone() {
        let answer = |bytes: usize| -> Outcome {
            let meta = RecordMeta { version: u64::MAX, ..RecordMeta::default() };
            let record = Record { key: Key::new("k").unwrap(), value: vec![1; bytes].into(), meta };
            let responses = vec![OpReply::Get { records: vec![record], count: u64::MAX, keys_only: false }];
            Ok(Reply::Txn(TxnReply { succeeded: true, revision: Revision::new(u64::MAX), responses }))
        };
        let outcomes =
            vec![answer(10), answer(5_000), answer(20), answer(9_000), Err(Rejection::Malformed("x".repeat(50)))];
        for (bytes_max, kept) in [(20_000, [0, 1, 2, 3, 4].as_slice()), (10_000, &[0, 1, 2, 4]), (2_000, &[0, 2, 4])] {
            let carried = carried_back(outcomes.clone(), bytes_max);
            assert_eq!(carried.len(), outcomes.len());
            for (at, (carried, outcome)) in carried.iter().zip(&outcomes).enumerate() {
                assert_eq!(carried.as_ref(), kept.contains(&at).then_some(outcome), "{at} in {bytes_max}");
            }
            assert!(postcard::to_stdvec(&carried).unwrap().len() <= bytes_max);
        }
    }
}
