//! Takes operations apart into what they mean for each key.
//!
//! Guarantees: whatever an answer says of a key becomes part of a step of that key. Leaves out: pages of listings, which also
//! say what is not there (`pages`), and failed comparisons of several keys, of which nobody knows which one failed
//! (`chain::compares`).

use super::super::{
    Action, Answer, Delete, DeleteAnswer, FailedAnswer, Operation, Outcome, Put, PutAnswer, Txn, TxnAnswer, TxnOp,
    TxnResponse,
};
use super::index::{Index, done};
use super::order::is_fresh;
use super::step::{Change, Seen, Step, Told};

/// The steps of one key.
#[derive(Debug, Default)]
pub(super) struct KeySteps<'a> {
    /// Of operations whose place is known.
    pub(super) placed: Vec<Step<'a>>,
    /// Of operations that were done nobody knows where.
    pub(super) loose: Vec<Step<'a>>,
    /// Of operations that may have been done or not; they are nowhere to be seen.
    pub(super) unknown: Vec<Step<'a>>,
}

/// The steps of all keys, by their numbers.
pub(super) fn of_all_keys<'a>(index: &Index<'a>) -> Vec<KeySteps<'a>> {
    let mut keys: Vec<KeySteps<'a>> = Vec::new();
    keys.resize_with(index.keys.len(), KeySteps::default);
    for (at, operation) in index.operations.iter().enumerate() {
        if index.known[at].broken {
            continue;
        }
        let unplaced = index.known[at].place.is_none();
        match &operation.outcome {
            Outcome::Refused(_) => {}
            Outcome::Unknown(_) if unplaced => unknown_steps(index, at, &mut keys),
            Outcome::Unknown(_) | Outcome::Done(_) => {
                for (key, step) in known_steps(index, at) {
                    let Some(key) = index.number(key) else { continue };
                    let steps = if unplaced { &mut keys[key].loose } else { &mut keys[key].placed };
                    steps.push(step);
                }
            }
        }
    }
    keys
}

/// A step that does and sees nothing yet.
pub(super) fn empty_step<'a>(index: &Index<'a>, at: usize) -> Step<'a> {
    let operation = &index.operations[at];
    let called = if is_fresh(operation) { operation.called } else { 0 };
    Step {
        operation: at,
        called,
        returned: operation.returned,
        place: index.known[at].place,
        before: Vec::new(),
        change: None,
        after: Vec::new(),
    }
}

/// What an operation means that was done, by its answer or by who saw it.
fn known_steps<'a>(index: &Index<'a>, at: usize) -> Vec<(&'a str, Step<'a>)> {
    let operation: &'a Operation = &index.operations[at];
    let mut step = empty_step(index, at);
    match (&operation.action, operation.answer()) {
        (Action::Put(put), answer) => {
            step.before.extend(condition(put.if_revision, put.if_absent, answer));
            match answer {
                Some(Answer::Failed(_)) => {}
                Some(Answer::Put(PutAnswer { revision: Some(revision), create_revision, version })) => {
                    wrote(&mut step, &put.value, *revision, *create_revision, *version);
                    step.change = Some(Change::Put(&put.value));
                }
                _ => step.change = Some(Change::Put(&put.value)),
            }
            vec![(&put.key, step)]
        }
        (Action::Delete(delete), answer) => {
            step.before.extend(condition(delete.if_revision, false, answer));
            if let Some(Answer::Delete(DeleteAnswer { deleted, .. })) = answer {
                step.before.push(Seen::Exists(*deleted));
                step.change = deleted.then_some(Change::Delete);
            }
            vec![(&delete.key, step)]
        }
        (Action::Get(get), Some(Answer::Get(answer))) => {
            step.before.push(Seen::Is(answer.record.as_ref().map(Into::into)));
            vec![(&get.key, step)]
        }
        (Action::Txn(txn), answer) => {
            let answer = match answer {
                Some(Answer::Txn(answer)) => Some(answer),
                _ => None,
            };
            txn_steps(txn, index.known[at].succeeded, answer, &step)
        }
        // Pages are taken apart where all of a listing is known.
        (Action::Get(_) | Action::List(_), _) => Vec::new(),
    }
}

/// What a put was told of the record that it made says of the one before, too.
fn wrote<'a>(step: &mut Step<'a>, value: &'a str, revision: u64, create_revision: Option<u64>, version: Option<u64>) {
    step.before.push(Seen::Before { create_revision, version });
    step.after.push(Seen::Is(Some(Told { value, mod_revision: Some(revision), create_revision, version })));
}

/// What the condition of a put or delete says of the state before it.
fn condition<'a>(if_revision: Option<u64>, if_absent: bool, answer: Option<&Answer>) -> Vec<Seen<'a>> {
    let Some(Answer::Failed(FailedAnswer { revision, mod_revision })) = answer else {
        let revision = if_revision.filter(|_| !if_absent).map(|revision| Seen::At(Some(revision)));
        return if_absent.then_some(Seen::Exists(false)).into_iter().chain(revision).collect();
    };
    // That it did not hold, and what there was instead.
    let refused = if if_absent { Some(Seen::Exists(true)) } else { if_revision.map(Seen::NotAt) };
    refused.into_iter().chain(revision.map(|_| Seen::At(*mod_revision))).collect()
}

/// What a transaction means whose branch is known; without its answer for one that was seen.
fn txn_steps<'a>(
    txn: &'a Txn,
    succeeded: bool,
    answer: Option<&'a TxnAnswer>,
    empty: &Step<'a>,
) -> Vec<(&'a str, Step<'a>)> {
    let mut steps: Vec<(&'a str, Step<'a>)> = Vec::new();
    let of = |steps: &mut Vec<(&'a str, Step<'a>)>, key: &'a str| {
        let found = steps.iter().position(|(known, _)| *known == key);
        found.unwrap_or_else(|| {
            steps.push((key, empty.clone()));
            steps.len() - 1
        })
    };
    // Of several comparisons that do not all hold nobody knows which one does not.
    if succeeded || txn.compare.len() == 1 {
        for compare in &txn.compare {
            let at = of(&mut steps, &compare.key);
            steps[at].1.before.push(Seen::Compared(compare, succeeded));
        }
    }
    let branch = if succeeded { &txn.success } else { &txn.failure };
    let told = answer.into_iter().flat_map(|answer| done(txn, answer)).map(|(_, response)| Some(response));
    for (op, response) in branch.iter().zip(told.chain(std::iter::repeat(None))) {
        let at = of(&mut steps, op.key());
        let step = &mut steps[at].1;
        match (op, response) {
            (TxnOp::Get { .. }, Some(TxnResponse::Get { record })) => {
                let seen = Seen::Is(record.as_ref().map(Into::into));
                if step.change.is_some() { step.after.push(seen) } else { step.before.push(seen) }
            }
            (TxnOp::Put { value, .. }, response) => {
                if let (Some(TxnResponse::Put { create_revision, version }), Some(revision)) =
                    (response, answer.and_then(|answer| answer.revision))
                {
                    wrote(step, value, revision, *create_revision, *version);
                }
                step.change = Some(Change::Put(value));
            }
            (TxnOp::Delete { .. }, Some(TxnResponse::Delete { deleted })) => {
                step.before.push(Seen::Exists(*deleted));
                step.change = deleted.then_some(Change::Delete);
            }
            // Deletes nothing if there is nothing.
            (TxnOp::Delete { .. }, _) => step.change = Some(Change::Delete),
            (TxnOp::Get { .. }, _) => {}
        }
    }
    steps
}

/// What an operation would do that nobody has seen, if it was done. What it does to one key is judged apart from what it
/// does to others.
fn unknown_steps<'a>(index: &Index<'a>, at: usize, keys: &mut [KeySteps<'a>]) {
    let operation: &'a Operation = &index.operations[at];
    let mut add = |key: &str, step: Step<'a>| {
        if let Some(key) = index.number(key) {
            keys[key].unknown.push(step);
        }
    };
    let empty = empty_step(index, at);
    match &operation.action {
        Action::Put(Put { key, value, if_revision, if_absent }) => {
            let before = condition(*if_revision, *if_absent, None).into_iter().collect();
            add(key, Step { before, change: Some(Change::Put(value)), ..empty });
        }
        Action::Delete(Delete { key, if_revision }) => {
            let before = condition(*if_revision, false, None).into_iter().collect();
            add(key, Step { before, change: Some(Change::Delete), ..empty });
        }
        Action::Txn(txn) => {
            for succeeded in [true, false] {
                let steps = txn_steps(txn, succeeded, None, &empty);
                steps.into_iter().filter(|(_, step)| step.change.is_some()).for_each(|(key, step)| add(key, step));
            }
        }
        Action::Get(_) | Action::List(_) => {}
    }
}
