//! Judges a history: could one copy of the store, that does one thing at a time, have given these answers?
//!
//! What every answer carries decides most of it: the revision tells where in the one order of all changes an operation took
//! effect. So the order need not be searched, only held against the time ([`order`]: what was told to anybody must be behind
//! all that is sent later) and against itself ([`chain`]: each key, change by change; [`pages`]: listings). What has no such
//! witness, because its outcome is unknown and nobody saw it, or because the history comes from elsewhere, is searched for by
//! key ([`search`]).
//!
//! Guarantees: nothing that one copy could have answered is called a violation; what can't be judged is never called right.
//! Keys with the prefix of the history must be written by its clients alone, and be absent at its start; revisions may be
//! taken by others. Leaves out: that a transaction of unknown outcome which nobody saw changes all of its keys or none; that
//! one of several comparisons did not hold, where a compared key has changes that nobody saw; and that a change which leaves
//! no trace in any answer took place.

mod chain;
mod index;
mod order;
mod pages;
mod search;
mod step;
mod steps;
mod violation;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::{Action, Answer, Operation, Outcome};
use chain::Versions;
use index::{Index, keys_of};
use order::Floors;
use search::Found;
use steps::KeySteps;
pub use violation::{Violation, ViolationKind};

/// The most violations that are told in full: the first ones say the most.
pub const VIOLATIONS_MAX: usize = 20;

/// What a judge makes of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// One copy of the store could have given these answers.
    Right,
    /// It could not.
    Violated,
    /// It can't be told.
    Undecided,
}

/// What a judge found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// All in all.
    pub verdict: Verdict,
    /// What is wrong: at most [`VIOLATIONS_MAX`].
    pub violations: Vec<Violation>,
    /// How many things are wrong.
    pub violations_total: usize,
    /// What was judged.
    pub summary: Summary,
}

/// What was judged, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Operations in all.
    pub operations: usize,
    /// Those that were answered.
    pub done: usize,
    /// Those that surely were not done.
    pub refused: usize,
    /// Those of which nobody was told.
    pub unknown: usize,
    /// Those of unknown outcome that somebody saw to have been done.
    pub unknown_seen: usize,
    /// Operations by what was asked for.
    pub by_kind: BTreeMap<&'static str, usize>,
    /// Clients.
    pub clients: usize,
    /// Keys that were named.
    pub keys: usize,
    /// Keys that were judged by the revisions alone.
    pub keys_by_revision: usize,
    /// Keys for which an order was searched.
    pub keys_by_search: usize,
    /// Situations that the searches tried.
    pub search_tried: usize,
    /// Keys with an acknowledged change and no linearizable read behind the last one: what became of it is not shown.
    pub keys_without_final_read: usize,
    /// From the first call to the last return, in seconds.
    pub span_seconds: f64,
}

impl Judgement {
    /// The first violation, if there is one.
    ///
    /// # Errors
    /// The [`Violation`].
    pub fn into_result(self) -> Result<Summary, Violation> {
        match self.violations.into_iter().next() {
            None => Ok(self.summary),
            Some(violation) => Err(violation),
        }
    }
}

/// Judges a history, its operations in any order.
#[must_use]
pub fn judge(operations: &[Operation]) -> Judgement {
    let mut summary = count(operations);
    if let Some(unfit) = unfit(operations) {
        return conclude(vec![unfit], summary);
    }
    let mut index = Index::new(operations);
    let mut violations = std::mem::take(&mut index.violations);
    // What follows from these is not told again.
    let broken: BTreeSet<String> = violations.iter().filter_map(|violation| violation.key.clone()).collect();
    let floors = Floors::new(&index);
    violations.extend(order::check(&index, &floors));
    violations.extend(operations.iter().filter(|operation| operation.is_malformed()).map(malformed));
    let mut keys = steps::of_all_keys(&index);
    violations.extend(pages::take_apart(&index, &mut keys));
    let mut versions: Vec<Option<Versions<'_>>> = Vec::with_capacity(keys.len());
    for (key, steps) in keys.iter_mut().enumerate() {
        let name = index.name(key);
        let (of_key, found) = judge_key(&index, &floors, name, steps, &mut summary);
        // What nobody saw may have been done all the same, and then something else was there for a while.
        versions.push(of_key.filter(|_| steps.unknown.is_empty()));
        violations.extend(found.filter(|_| !broken.contains(name)));
    }
    violations.extend(chain::compares(&index, &versions));
    let placed = |at: &usize| index.known[*at].place.is_some();
    summary.unknown_seen = (0..operations.len())
        .filter(|at| matches!(operations[*at].outcome, Outcome::Unknown(_)))
        .filter(placed)
        .count();
    summary.keys = index.keys.len();
    conclude(violations, summary)
}

fn conclude(mut violations: Vec<Violation>, summary: Summary) -> Judgement {
    let decided = |violation: &Violation| violation.kind != ViolationKind::Undecided;
    let verdict = match (violations.is_empty(), violations.iter().any(decided)) {
        (true, _) => Verdict::Right,
        (false, true) => Verdict::Violated,
        (false, false) => Verdict::Undecided,
    };
    violations.sort_by_key(|violation| !decided(violation));
    let violations_total = violations.len();
    violations.truncate(VIOLATIONS_MAX);
    Judgement { verdict, violations, violations_total, summary }
}

/// Judges one key: by its places, and where those do not explain it, by a search.
fn judge_key<'a>(
    index: &Index<'a>,
    floors: &Floors,
    name: &str,
    steps: &mut KeySteps<'a>,
    summary: &mut Summary,
) -> (Option<Versions<'a>>, Option<Violation>) {
    chain::sort(&mut steps.placed);
    chain::sort(&mut steps.loose);
    let walked = match steps.loose.is_empty() {
        true => Some(chain::walk(&steps.placed)),
        false => None,
    };
    let by_places = match walked {
        Some(Ok(versions)) => {
            summary.keys_by_revision += 1;
            return (Some(versions), None);
        }
        Some(Err(stuck)) if steps.unknown.is_empty() => {
            summary.keys_by_revision += 1;
            return (None, Some(stuck.violation(index, name, steps)));
        }
        Some(Err(stuck)) => Some(stuck),
        None => None,
    };
    summary.keys_by_search += 1;
    let (found, tried) = search::search(index, floors, steps);
    summary.search_tried += tried;
    let violation = match found {
        Found::Explained => None,
        Found::GivenUp => {
            let message =
                format!("no order of its operations was found among {tried} that were tried; there may be one");
            Some(Violation::new(ViolationKind::Undecided, Some(name), message, []))
        }
        Found::Unexplained(stuck) => stuck.or(by_places).map_or_else(
            || {
                let all = steps.placed.iter().chain(&steps.loose).map(|step| &index.operations[step.operation]);
                let message = "no order of its operations explains the answers";
                Some(Violation::new(ViolationKind::NotLinearizable, Some(name), message, all))
            },
            |stuck| Some(stuck.violation(index, name, steps)),
        ),
    };
    (None, violation)
}

/// Whatever was done, no copy of the store gives such an answer.
fn malformed(operation: &Operation) -> Violation {
    let message =
        format!("{operation} was answered with something that can't be read, or that lacks what it must tell");
    Violation::new(ViolationKind::MalformedAnswer, None, message, [operation])
}

/// What no history may hold. Files are held to it, line by line, when they are read.
fn unfit(operations: &[Operation]) -> Option<Violation> {
    let mut ids = BTreeSet::new();
    operations.iter().find_map(|operation| {
        let why = match operation.validate() {
            Err(why) => why,
            Ok(()) if !ids.insert(operation.id) => "another operation has its id".to_owned(),
            Ok(()) => return None,
        };
        let message = format!("{operation} can't be judged: {why}");
        Some(Violation::new(ViolationKind::Undecided, None, message, [operation]))
    })
}

fn count(operations: &[Operation]) -> Summary {
    let mut summary = Summary { operations: operations.len(), ..Summary::default() };
    let mut clients = BTreeSet::new();
    let (mut first, mut last) = (u64::MAX, 0);
    // By key, when its last acknowledged change returned, and when its last linearizable read was sent.
    let mut ends: HashMap<&str, (u64, u64)> = HashMap::new();
    for operation in operations {
        match &operation.outcome {
            Outcome::Done(_) => summary.done += 1,
            Outcome::Refused(_) => summary.refused += 1,
            Outcome::Unknown(_) => summary.unknown += 1,
        }
        *summary.by_kind.entry(operation.action.kind()).or_default() += 1;
        clients.insert(operation.client);
        first = first.min(operation.called);
        last = last.max(operation.returned.unwrap_or(operation.called));
        match operation.answer() {
            Some(Answer::Put(_) | Answer::Delete(_) | Answer::Txn(_)) if operation.action.writes() => {
                for key in keys_of(operation) {
                    let end = ends.entry(key).or_default();
                    end.0 = end.0.max(operation.returned.unwrap_or_default());
                }
            }
            Some(Answer::Get(_)) if order::is_fresh(operation) => {
                if let Action::Get(get) = &operation.action {
                    let end = ends.entry(&get.key).or_default();
                    end.1 = end.1.max(operation.called);
                }
            }
            _ => {}
        }
    }
    summary.clients = clients.len();
    summary.keys_without_final_read = ends.values().filter(|(changed, read)| changed > read).count();
    summary.span_seconds = last.saturating_sub(first) as f64 / 1e9;
    summary
}

#[cfg(test)]
mod tests;
