//! Tries everything: every order that the time allows, every operation of unknown outcome done or not, at every revision.
//!
//! Written apart from the judge, straight from what the operations mean. Only for a handful of operations.

use std::collections::BTreeMap;

use super::super::super::*;
use super::super::order::is_fresh;

/// Key to value, mod revision, create revision and version.
type Store = BTreeMap<String, (String, u64, u64, u64)>;

/// Whether there is an order that explains all answers.
pub(super) fn explained(operations: &[Operation]) -> bool {
    let relevant = |operation: &&Operation| match operation.outcome {
        Outcome::Done(_) => true,
        Outcome::Unknown(_) => operation.action.writes(),
        Outcome::Refused(_) => false,
    };
    let left: Vec<&Operation> = operations.iter().filter(relevant).collect();
    let told: Vec<u64> = left.iter().filter_map(|operation| operation.answer()?.revision()).collect();
    let most = told.iter().max().copied().unwrap_or(0);
    let claims_kept = left.iter().all(|operation| keeps_claims(operation));
    claims_kept && goes_on(&left, &Store::new(), 0, most)
}

/// What an answer must keep by itself.
fn keeps_claims(operation: &Operation) -> bool {
    let (Some(freshness), Some(Answer::Get(answer))) = (operation.action.freshness(), operation.answer()) else {
        return true;
    };
    let revision = answer.revision.unwrap();
    freshness.min_revision.is_none_or(|least| revision >= least)
        && freshness.at_revision.is_none_or(|at| revision == at)
}

/// From when on an operation can take place.
fn called(operation: &Operation) -> u64 {
    match operation.action.freshness() {
        _ if is_fresh(operation) => operation.called,
        Some(Freshness { max_staleness_ms: Some(bound), .. }) => operation.called.saturating_sub(bound * 1_000_000),
        _ => 0,
    }
}

fn goes_on(left: &[&Operation], store: &Store, current: u64, most: u64) -> bool {
    if left.iter().all(|operation| operation.returned.is_none()) {
        return true;
    }
    let first_return = left.iter().filter_map(|operation| operation.returned).min().unwrap();
    (0..left.len()).any(|at| {
        let operation = left[at];
        if called(operation) > first_return {
            return false;
        }
        let rest: Vec<&Operation> = left.iter().filter(|other| other.id != operation.id).copied().collect();
        let told = operation.answer().and_then(Answer::revision);
        // Others may take revisions in between.
        let revisions = told.map_or_else(|| current + 1..=most, |told| told..=told);
        revisions.into_iter().any(|revision| {
            let Some((behind, changed)) = applied(operation, store, revision) else { return false };
            let fits = if changed { revision > current } else { revision >= current };
            fits && goes_on(&rest, &behind, revision, most)
        })
    })
}

/// The store behind an operation at a revision, if its answer fits, and whether it changed anything.
fn applied(operation: &Operation, store: &Store, revision: u64) -> Option<(Store, bool)> {
    let mut behind = store.clone();
    let answer = operation.answer();
    let current = |key: &str| store.get(key);
    let at = |key: &str| current(key).map(|record| record.1);
    let done = match (&operation.action, answer) {
        (Action::Put(put), _) => {
            let holds = put.if_revision.is_none_or(|wanted| at(&put.key) == Some(wanted))
                && !(put.if_absent && current(&put.key).is_some());
            match answer {
                Some(Answer::Failed(failed)) => !holds && failed.mod_revision == at(&put.key),
                Some(Answer::Put(told)) => {
                    set(&mut behind, &put.key, &put.value, revision);
                    let (_, _, create, version) = behind[&put.key];
                    holds && (told.create_revision, told.version) == (Some(create), Some(version))
                }
                _ => {
                    set(&mut behind, &put.key, &put.value, revision);
                    holds
                }
            }
        }
        (Action::Delete(delete), _) => {
            let holds = delete.if_revision.is_none_or(|wanted| at(&delete.key) == Some(wanted));
            match answer {
                Some(Answer::Failed(failed)) => !holds && failed.mod_revision == at(&delete.key),
                Some(Answer::Delete(told)) => holds && behind.remove(&delete.key).is_some() == told.deleted,
                // One that deletes nothing is as good as none.
                _ => holds && behind.remove(&delete.key).is_some(),
            }
        }
        (Action::Get(get), Some(Answer::Get(told))) => is(current(&get.key), told.record.as_ref()),
        (Action::Txn(txn), _) => return applied_txn(txn, answer, &behind, revision),
        other => panic!("not made here: {other:?}"),
    };
    let changed = behind != *store;
    done.then_some((behind, changed))
}

fn applied_txn(txn: &Txn, answer: Option<&Answer>, store: &Store, revision: u64) -> Option<(Store, bool)> {
    let mut behind = store.clone();
    let holds = |compare: &Compare| {
        let record = store.get(&compare.key);
        let property = match compare.target {
            Target::ModRevision => record.map_or(0, |record| record.1),
            Target::Version => record.map_or(0, |record| record.3),
            other => panic!("not made here: {other:?}"),
        };
        let Operand::Number(operand) = compare.value else { panic!("not made here") };
        compare.op.holds(property.cmp(&operand))
    };
    let succeeded = txn.compare.iter().all(holds);
    let told = match answer {
        Some(Answer::Txn(told)) => Some(told),
        _ => None,
    };
    if told.is_some_and(|told| told.succeeded != succeeded) {
        return None;
    }
    let branch = if succeeded { &txn.success } else { &txn.failure };
    for (at, op) in branch.iter().enumerate() {
        let response = told.map(|told| &told.responses[at]);
        let fits = match (op, response) {
            (TxnOp::Put { key, value }, response) => {
                set(&mut behind, key, value, revision);
                let (_, _, create, count) = behind[key];
                match response {
                    Some(TxnResponse::Put { create_revision, version }) => {
                        (*create_revision, *version) == (Some(create), Some(count))
                    }
                    _ => true,
                }
            }
            (TxnOp::Delete { key }, Some(TxnResponse::Delete { deleted })) => behind.remove(key).is_some() == *deleted,
            (TxnOp::Delete { key }, _) => {
                behind.remove(key);
                true
            }
            (TxnOp::Get { key }, Some(TxnResponse::Get { record })) => is(behind.get(key), record.as_ref()),
            (TxnOp::Get { .. }, _) => true,
        };
        if !fits {
            return None;
        }
    }
    let changed = behind != *store;
    Some((behind, changed))
}

fn set(store: &mut Store, key: &str, value: &str, revision: u64) {
    let (create, version) = store.get(key).map_or((revision, 1), |record| (record.2, record.3 + 1));
    store.insert(key.to_owned(), (value.to_owned(), revision, create, version));
}

fn is(record: Option<&(String, u64, u64, u64)>, told: Option<&Record>) -> bool {
    match (record, told) {
        (None, None) => true,
        (Some((value, modified, created, version)), Some(told)) => {
            let numbers = (told.mod_revision, told.create_revision, told.version);
            told.value == *value && numbers == (Some(*modified), Some(*created), Some(*version))
        }
        _ => false,
    }
}
