//! Reads find what the committed log comes to at the revision they name, and that revision is as new as was asked for.
//!
//! A linearizable read is at least at the newest revision that anybody was told of before it was called; a bounded one at
//! least at what was known so long before, and one that names a least revision at that. With writes ordered by revision, and each above what was known when it was asked
//! for, this is linearizability (and strict serializability of transactions and listings), judged without a search.
//! Guarantees: exact, with the revisions as witness. A second judge, which is told nothing of revisions here, is that of
//! `workload::history` on single keys. Leaves out: order among stale reads, which is not promised.

use quorate::node::Consistency;
use quorate::state::{Record, TxnOp};
use quorate::types::Revision;
use quorate::workload::history::{
    self, Action, Answer, Cause, Get, GetAnswer, Operation, Outcome, Put, PutAnswer, Verdict,
};

use super::Violation;
use super::acknowledged::Acknowledged;
use super::reference::Reference;
use crate::clients::{End, Of, Op, PLAIN, What, everything, min_revision};

#[derive(Default)]
pub(super) struct Reads {
    count: u64,
    history: Vec<Operation>,
}

impl Reads {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn ended(
        &mut self,
        op: &Op,
        end: &End,
        reference: &Reference,
        known: &Acknowledged,
    ) -> Result<(), Violation> {
        let (What::Read { consistency, at, of }, End::Found { revision, records }) = (&op.what, end) else {
            return Ok(());
        };
        self.count += 1;
        let least = match (at, consistency) {
            (Some(at), _) => *at,
            (None, Consistency::Linearizable) => op.floor,
            (None, Consistency::Bounded { max_staleness }) => {
                let millis = u64::try_from(max_staleness.as_millis()).unwrap_or(u64::MAX);
                // A step more: what was told within one step has no order.
                known.floor_at(op.called.saturating_sub(millis + 1)).min(op.floor)
            }
            (None, Consistency::Stale) => Revision::ZERO,
        };
        let least = least.max(min_revision(op).unwrap_or(Revision::ZERO));
        if *revision < least {
            let what = format!("{op:?} found revision {revision}; {least} was known when it had to be");
            return Err(Violation::new("no stale read", what));
        }
        if at.is_some_and(|at| *revision != at) {
            return Err(Violation::new("a read at a revision is of that one", format!("{op:?} found {revision}")));
        }
        let Some(view) = reference.at(*revision) else {
            let what = format!("{op:?} found revision {revision}, which is not committed");
            return Err(Violation::new("reads see what is committed", what));
        };
        let expected: Vec<Record> = match of {
            Of::Key(key) => view.get(key).expect("memory does not fail").into_iter().collect(),
            Of::All => view.range(&everything()).expect("memory does not fail").records,
        };
        if *records == expected {
            return Ok(());
        }
        let what = format!("{op:?} found {records:?} at revision {revision}, where {expected:?} is");
        Err(Violation::new("reads see what is committed", what))
    }

    /// Judges what was done to keys that are only put and read.
    pub(super) fn settled(&self) -> Result<(), Violation> {
        let judgement = history::judge(&self.history);
        // Without revisions there may be more orders than can be tried; then the judge above is the only one.
        match judgement.violations.first() {
            Some(violation) if judgement.verdict == Verdict::Violated => {
                Err(Violation::new("linearizable history", violation.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Takes note of an operation on such a key that ended so, or of which nobody will hear.
    pub(super) fn note(&mut self, op: &Op, end: Option<&End>, step: u64) {
        let Some((key, put)) = plain(op) else { return };
        let done = |answer| (Outcome::Done(answer), Some(step));
        let (outcome, returned) = match (&put, end) {
            (Some(_), Some(End::Written(_))) => done(Answer::Put(PutAnswer::default())),
            (Some(_), Some(End::Unknown(code))) => (Outcome::Unknown(Cause { code: code.clone() }), None),
            (Some(_), None) => (Outcome::Unknown(Cause { code: "crashed".to_owned() }), None),
            (None, Some(End::Found { records, .. })) => {
                let found = |found: &Record| history::Record { value: text(&found.value), ..Default::default() };
                done(Answer::Get(GetAnswer { record: records.first().map(found), ..GetAnswer::default() }))
            }
            _ => return,
        };
        let action = match put {
            Some(value) => Action::Put(Put { key, value, ..Put::default() }),
            None => Action::Get(Get { key, ..Get::default() }),
        };
        let node = u32::try_from(op.place).unwrap_or(u32::MAX);
        // Within a step, calls come before answers: what was called in the step of an answer was called before it.
        let (called, returned) = (2 * op.called, returned.map(|step| 2 * step + 1));
        self.history.push(Operation { id: op.id, client: 0, node, called, returned, action, outcome });
    }
}

/// The key of a put or a linearizable read of a key that is only put and read, and the value that is put.
fn plain(op: &Op) -> Option<(String, Option<String>)> {
    let (key, put) = match &op.what {
        What::Write(txn) => match &txn.success[..] {
            [TxnOp::Put { key, value, .. }] => (key, Some(text(value))),
            _ => return None,
        },
        What::Read { consistency: Consistency::Linearizable, at: None, of: Of::Key(key) } => (key, None),
        What::Read { .. } => return None,
    };
    let name = text(key.as_bytes());
    name.starts_with(PLAIN).then_some((name, put))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
