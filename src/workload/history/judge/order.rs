//! Whether the places of operations go with the time: what was told to anybody must be behind all that is sent later.
//!
//! One pass over what has returned, in its order, gives for each moment the newest place that had been told by then; each
//! operation is held against that of the moment at which it was sent, a bounded read against that of as much earlier as its
//! bound allows. Guarantees: exact for operations whose place is known; O(n log n). Moments that are equal count as
//! concurrent. Leaves out: what is at the places (`chain`, `search`).

use super::super::operation::seconds;
use super::super::{Action, Answer, Consistency, List, Nanos, Operation, Outcome};
use super::index::{Index, keys_of};
use super::step::{Place, change_at, state_at};
use super::violation::{Violation, ViolationKind};

const NANOS_PER_MILLI: u64 = 1_000_000;

/// What had been told by when.
pub(super) struct Floors {
    /// Moments of answers in order, with the newest place told until then and the operation that was told it.
    told: Vec<(Nanos, Place, usize)>,
}

impl Floors {
    pub(super) fn new(index: &Index<'_>) -> Self {
        let mut told: Vec<(Nanos, Place, usize)> = Vec::with_capacity(index.operations.len());
        for (at, operation) in index.operations.iter().enumerate() {
            if let (Some(place), Some(returned), false) =
                (index.known[at].place, operation.returned, index.known[at].broken)
            {
                told.push((returned, place, at));
            }
        }
        told.sort_unstable();
        let (mut newest, mut by) = (0, 0);
        for (_, place, at) in &mut told {
            if *place > newest {
                (newest, by) = (*place, *at);
            }
            (*place, *at) = (newest, by);
        }
        Self { told }
    }

    /// The newest place that had been told before a moment, and who was.
    pub(super) fn before(&self, moment: Nanos) -> Option<(Place, usize)> {
        let count = self.told.partition_point(|(returned, _, _)| *returned < moment);
        let (_, place, at) = self.told.get(count.checked_sub(1)?)?;
        Some((*place, *at))
    }
}

/// Whether an operation must see all that was told before it was sent.
pub(super) fn is_fresh(operation: &Operation) -> bool {
    match &operation.action {
        Action::Put(_) | Action::Delete(_) | Action::Txn(_) => true,
        // The first page settles the revision of all.
        Action::List(List { continues: Some(_), .. }) => false,
        Action::Get(_) | Action::List(_) => operation.action.freshness().is_some_and(|freshness| {
            freshness.consistency == Consistency::Linearizable && freshness.at_revision.is_none()
        }),
    }
}

/// Holds every place against the time.
pub(super) fn check(index: &Index<'_>, floors: &Floors) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, operation) in index.operations.iter().enumerate() {
        let known = index.known[at];
        let Some(place) = known.place.filter(|_| !known.broken) else { continue };
        violations.extend(check_one(index, floors, operation, place));
    }
    violations
}

fn check_one(index: &Index<'_>, floors: &Floors, operation: &Operation, place: Place) -> Option<Violation> {
    let key = keys_of(operation).next();
    let changes = place.is_multiple_of(2);
    if is_fresh(operation)
        && let Some((told, by)) = floors.before(operation.called).filter(|(told, _)| *told > place)
    {
        let by = &index.operations[by];
        let (kind, message) = if changes {
            let message = format!(
                "{} made revision {}, but before it was sent {by} had been told of revision {}; only a revision above that \
                 was allowed",
                named(operation),
                place / 2,
                told / 2
            );
            (ViolationKind::SeenTooEarly, message)
        } else {
            let message = format!(
                "{operation} was answered from revision {}, but before it was sent {by} had been told of revision {}; a \
                 state from before that was not allowed",
                place / 2,
                told / 2
            );
            (ViolationKind::StaleRead, message)
        };
        return Some(Violation::new(kind, key, message, [operation, by]));
    }
    check_bounds(index, floors, operation, place)
}

/// What a read asked for beside the newest, and what its answer promised.
fn check_bounds(index: &Index<'_>, floors: &Floors, operation: &Operation, place: Place) -> Option<Violation> {
    let freshness = operation.action.freshness()?;
    let continues = matches!(operation.action, Action::List(List { continues: Some(_), .. }));
    let key = keys_of(operation).next();
    let revision = place / 2;
    if let Some(least) = freshness.min_revision.filter(|least| state_at(*least) > place) {
        let message = format!("{operation} was answered from revision {revision}, but asked for {least} at least");
        return Some(Violation::new(ViolationKind::WentBack, key, message, [operation]));
    }
    if let Some(wanted) = freshness.at_revision {
        let message = format!("{operation} was answered from revision {revision}, but asked for {wanted}");
        return (state_at(wanted) != place)
            .then(|| Violation::new(ViolationKind::WrongAnswer, key, message, [operation]));
    }
    let said = operation.answer().and_then(Answer::staleness_ms).filter(|_| !continues);
    for (bound, whose) in [(freshness.max_staleness_ms, "it allowed"), (said, "its answer says")] {
        let Some(bound) = bound else { continue };
        let since = operation.called.saturating_sub(bound.saturating_mul(NANOS_PER_MILLI));
        if let Some((told, by)) = floors.before(since).filter(|(told, _)| *told > place) {
            let by = &index.operations[by];
            let message = format!(
                "{operation} was answered from revision {revision}, but {by} had been told of revision {} more than \
                 {bound} ms before it was sent, which is as old as {whose}; a state from before {} s was not allowed",
                told / 2,
                seconds(since)
            );
            return Some(Violation::new(ViolationKind::BeyondBound, key, message, [operation, by]));
        }
    }
    None
}

/// An operation, and if nobody told it so, how its place is known.
fn named(operation: &Operation) -> String {
    match operation.outcome {
        Outcome::Unknown(_) => format!("{operation}, whose value was seen later,"),
        Outcome::Done(_) | Outcome::Refused(_) => operation.to_string(),
    }
}

/// The least revision that a change can make that was sent at this moment.
pub(super) fn least_revision(floors: &Floors, called: Nanos) -> u64 {
    let told = floors.before(called).map_or(0, |(place, _)| place);
    debug_assert!(change_at(told / 2 + 1) > told, "the change behind a place is behind it");
    told / 2 + 1
}
