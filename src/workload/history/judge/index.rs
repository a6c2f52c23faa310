//! Where each operation took effect, as far as the answers say: the revision witness.
//!
//! A done operation names its revision. One of unknown outcome gets its place from whoever saw its value, because a record
//! names the revision that wrote it. Guarantees: no revision has two changes, no operation two places; whatever contradicts
//! that is a violation, and who caused it is left out of what follows. Leaves out: whether the places go with the time
//! (`order`) and with each other (`chain`, `search`).

use std::collections::{HashMap, HashSet};

use super::super::{Action, Answer, DeleteAnswer, Operation, Outcome, Put, Txn, TxnAnswer, TxnOp, TxnResponse};
use super::step::{Place, Told, change_at, state_at};
use super::violation::{Violation, ViolationKind};

/// What is known of an operation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// Its place in the order of the store.
    pub(super) place: Option<Place>,
    /// The branch of a transaction that was done there.
    pub(super) succeeded: bool,
    /// It contradicts another one by its place alone, and is not looked at any further.
    pub(super) broken: bool,
}

/// Whether a value can be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It was written.
    Surely,
    /// It may have been.
    Maybe,
    /// It was refused.
    Never,
}

#[derive(Debug, Clone, Copy)]
struct Writer {
    operation: usize,
    succeeded: bool,
    written: Written,
    /// Another operation writes the same value.
    doubled: bool,
}

/// All operations with their places.
pub(super) struct Index<'a> {
    pub(super) operations: &'a [Operation],
    /// All keys, in order.
    pub(super) keys: Vec<&'a str>,
    numbers: HashMap<&'a str, usize>,
    pub(super) known: Vec<Known>,
    /// Revisions of which the change is known, with it.
    pub(super) changes: HashMap<u64, usize>,
    writers: HashMap<(usize, &'a str), Writer>,
    pub(super) violations: Vec<Violation>,
}

impl<'a> Index<'a> {
    pub(super) fn new(operations: &'a [Operation]) -> Self {
        let keys: HashSet<&str> = operations.iter().flat_map(keys_of).collect();
        let mut keys: Vec<&str> = keys.into_iter().collect();
        keys.sort_unstable();
        let numbers = keys.iter().enumerate().map(|(number, key)| (*key, number)).collect();
        let mut index = Self {
            operations,
            keys,
            numbers,
            known: vec![Known::default(); operations.len()],
            changes: HashMap::new(),
            writers: HashMap::new(),
            violations: Vec::new(),
        };
        for at in 0..operations.len() {
            index.place_by_answer(at);
            index.note_values(at);
        }
        for at in 0..operations.len() {
            index.place_by_records(at);
        }
        index
    }

    pub(super) fn number(&self, key: &str) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    /// Whether nobody is known to have this revision.
    pub(super) fn is_free(&self, revision: u64) -> bool {
        !self.changes.contains_key(&revision)
    }

    pub(super) fn name(&self, key: usize) -> &'a str {
        self.keys.get(key).copied().unwrap_or_default()
    }

    fn place_by_answer(&mut self, at: usize) {
        let operation = &self.operations[at];
        let Some(answer) = operation.answer() else { return };
        self.known[at].succeeded = matches!(answer, Answer::Txn(TxnAnswer { succeeded: true, .. }));
        let Some(revision) = answer.revision() else { return };
        if !changed(answer) {
            self.known[at].place = Some(state_at(revision));
            return;
        }
        if let Some(other) = self.changes.insert(revision, at) {
            self.changes.insert(revision, other);
            self.known[at].broken = true;
            let other = &self.operations[other];
            let message = format!(
                "{operation} and {other} were both told that they made revision {revision}; each change makes one of its \
                 own, so one of the two is lost"
            );
            let key = keys_of(operation).next();
            self.violations.push(Violation::new(ViolationKind::RevisionTwice, key, message, [operation, other]));
        } else {
            self.known[at].place = Some(change_at(revision));
        }
    }

    /// Takes note of who writes which value.
    fn note_values(&mut self, at: usize) {
        let operation = &self.operations[at];
        let executed = |succeeded: bool| match &operation.outcome {
            Outcome::Done(Answer::Failed(_)) | Outcome::Refused(_) => Written::Never,
            Outcome::Done(Answer::Txn(answer)) if answer.succeeded != succeeded => Written::Never,
            Outcome::Done(_) => Written::Surely,
            Outcome::Unknown(_) => Written::Maybe,
        };
        match &operation.action {
            Action::Put(Put { key, value, .. }) => self.note_value(at, key, value, true, executed(true)),
            Action::Txn(txn) => {
                for (succeeded, branch) in [(true, &txn.success), (false, &txn.failure)] {
                    for op in branch {
                        if let TxnOp::Put { key, value } = op {
                            self.note_value(at, key, value, succeeded, executed(succeeded));
                        }
                    }
                }
            }
            Action::Delete(_) | Action::Get(_) | Action::List(_) => {}
        }
    }

    fn note_value(&mut self, operation: usize, key: &'a str, value: &'a str, succeeded: bool, written: Written) {
        let Some(key) = self.number(key) else { return };
        let new = Writer { operation, succeeded, written, doubled: false };
        self.writers.entry((key, value)).and_modify(|writer| writer.doubled = true).or_insert(new);
    }

    /// Places what the answer of an operation shows to have been done.
    fn place_by_records(&mut self, at: usize) {
        let operation = &self.operations[at];
        match (&operation.action, operation.answer()) {
            (Action::Get(get), Some(Answer::Get(answer))) => {
                if let Some(record) = &answer.record {
                    self.place_by_record(at, &get.key, record.into());
                }
            }
            (Action::List(_), Some(Answer::List(answer))) => {
                answer.records.iter().for_each(|listed| self.place_by_record(at, &listed.key, listed.into()));
            }
            (Action::Txn(txn), Some(Answer::Txn(answer))) => {
                for (op, response) in done(txn, answer) {
                    if let TxnResponse::Get { record: Some(record) } = response {
                        self.place_by_record(at, op.key(), record.into());
                    }
                }
            }
            _ => {}
        }
    }

    fn place_by_record(&mut self, at: usize, key: &'a str, told: Told<'a>) {
        let (Some(number), Some(revision)) = (self.number(key), told.mod_revision) else { return };
        if let Some(writer) = self.changes.get(&revision) {
            if !writes(&self.operations[*writer], self.known[*writer].succeeded, key, told.value) {
                let (reader, other) = (&self.operations[at], &self.operations[*writer]);
                let message = format!(
                    "{reader} found {:?} of revision {revision}, but that revision was made by {other}, which did not write \
                     it",
                    told.value
                );
                self.broken(ViolationKind::Phantom, at, key, message, *writer);
            }
            return;
        }
        let reader = &self.operations[at];
        let found = format!("{reader} found {:?} of revision {revision}", told.value);
        let Some(writer) = self.writers.get(&(number, told.value)).copied() else {
            self.broken(ViolationKind::Phantom, at, key, format!("{found}, which nobody wrote"), at);
            return;
        };
        let other = &self.operations[writer.operation];
        let known = self.known[writer.operation];
        match (writer.written, known.place) {
            _ if writer.doubled => {
                let message = format!("{found}, and more than one operation writes that value, like {other}");
                self.broken(ViolationKind::Undecided, at, key, message, writer.operation);
            }
            (Written::Never, _) => {
                let message = format!("{found}, but its writer {other} was refused, so it must never be there");
                self.broken(ViolationKind::Phantom, at, key, message, writer.operation);
            }
            (Written::Surely | Written::Maybe, Some(place)) => {
                let message = format!(
                    "{found}, but its writer {other} was done at revision {}; it is allowed to be done once",
                    place / 2
                );
                self.broken(ViolationKind::AppliedTwice, at, key, message, writer.operation);
            }
            (Written::Surely | Written::Maybe, None) => {
                self.changes.insert(revision, writer.operation);
                self.known[writer.operation].place = Some(change_at(revision));
                self.known[writer.operation].succeeded = writer.succeeded;
            }
        }
    }

    /// An operation whose answer can't be, by itself or by one other; it is left out of what follows.
    fn broken(&mut self, kind: ViolationKind, at: usize, key: &str, message: String, other: usize) {
        self.known[at].broken = true;
        let involved = [&self.operations[at], &self.operations[other]];
        self.violations.push(Violation::new(kind, Some(key), message, involved));
    }
}

/// Whether an answer says that something was changed.
fn changed(answer: &Answer) -> bool {
    match answer {
        Answer::Put(_) => true,
        Answer::Delete(DeleteAnswer { deleted, .. }) => *deleted,
        Answer::Txn(answer) => answer.responses.iter().any(|response| match response {
            TxnResponse::Put { .. } => true,
            TxnResponse::Delete { deleted } => *deleted,
            TxnResponse::Get { .. } => false,
        }),
        Answer::Failed(_) | Answer::Get(_) | Answer::List(_) => false,
    }
}

/// The steps of a transaction that were done, with what they were told.
pub(super) fn done<'a>(
    txn: &'a Txn,
    answer: &'a TxnAnswer,
) -> impl Iterator<Item = (&'a TxnOp, &'a TxnResponse)> + use<'a> {
    let branch = if answer.succeeded { &txn.success } else { &txn.failure };
    branch.iter().zip(&answer.responses)
}

/// Whether an operation writes this value to this key.
fn writes(operation: &Operation, succeeded: bool, key: &str, value: &str) -> bool {
    match &operation.action {
        Action::Put(put) => put.key == key && put.value == value,
        Action::Txn(txn) => {
            let branch = if succeeded { &txn.success } else { &txn.failure };
            let writes = |op: &TxnOp| matches!(op, TxnOp::Put { key: k, value: v } if k == key && v == value);
            branch.iter().any(writes)
        }
        Action::Delete(_) | Action::Get(_) | Action::List(_) => false,
    }
}

/// The keys that an operation names, and those that it was told.
pub(super) fn keys_of(operation: &Operation) -> Box<dyn Iterator<Item = &str> + '_> {
    match &operation.action {
        Action::Put(put) => Box::new(std::iter::once(put.key.as_str())),
        Action::Delete(delete) => Box::new(std::iter::once(delete.key.as_str())),
        Action::Get(get) => Box::new(std::iter::once(get.key.as_str())),
        Action::List(_) => match operation.answer() {
            Some(Answer::List(answer)) => Box::new(answer.records.iter().map(|record| record.key.as_str())),
            _ => Box::new(std::iter::empty()),
        },
        Action::Txn(txn) => {
            let compared = txn.compare.iter().map(|compare| compare.key.as_str());
            let ops = txn.success.iter().chain(&txn.failure);
            Box::new(compared.chain(ops.map(TxnOp::key)))
        }
    }
}
