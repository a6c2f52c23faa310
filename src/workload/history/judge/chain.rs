//! One key by its witness: its steps in the order of their places, each held against the state that those before it leave.
//!
//! Guarantees: exact where every operation of the key has a place; what is of unknown outcome and was seen by nobody is taken
//! to be not done, which explains all that it can. O(n log n). Leaves out: the time (`order`), and keys that this does not
//! explain although operations are left whose place is not known (`search`).

use super::super::{Action, Answer, Operation};
use super::index::Index;
use super::step::{At, Change, Place, Seen, State, Step, Told, Version, compared};
use super::steps::KeySteps;
use super::violation::{Violation, ViolationKind};

/// What is at a key from which place on.
pub(super) type Versions<'a> = Vec<(Place, State<'a>)>;

/// A step that can't be where it is.
#[derive(Debug, Clone)]
pub(super) struct Stuck<'a> {
    pub(super) step: Step<'a>,
    /// What it says that can't be.
    pub(super) seen: Option<Seen<'a>>,
    /// What is there instead.
    pub(super) state: State<'a>,
    /// Who removed the key, if it is not there.
    pub(super) remover: Option<usize>,
}

/// Sorts steps by their places. Those that look at one state stand in the order in which they were sent.
pub(super) fn sort(steps: &mut [Step<'_>]) {
    steps.sort_by_key(|step| (step.place, step.called, step.operation));
}

/// Takes steps, sorted by their places, one after the other.
///
/// # Errors
/// The first that does not find what it says.
pub(super) fn walk<'a>(steps: &[Step<'a>]) -> Result<Versions<'a>, Box<Stuck<'a>>> {
    let mut versions: Versions<'a> = Vec::new();
    let (mut state, mut remover): (State<'a>, Option<usize>) = (None, None);
    // Every revision is known here, so there is nothing left to choose.
    let free = |_: u64| false;
    for step in steps {
        let place = step.place.unwrap_or_default();
        let find =
            |seen: &[Seen<'a>], state: &mut State<'a>| seen.iter().copied().find(|seen| !seen.holds(state, &free));
        let stuck = |seen: Seen<'a>, state: State<'a>, remover: Option<usize>| {
            Box::new(Stuck { step: step.clone(), seen: Some(seen), state, remover })
        };
        if let Some(seen) = find(&step.before, &mut state) {
            return Err(stuck(seen, state, remover));
        }
        if let Some(change) = step.change {
            if change == Change::Delete && state.is_some() {
                remover = Some(step.operation);
            }
            state = change.applied(&state, step.operation, At::Known(place / 2));
            versions.push((place, state));
        }
        if let Some(seen) = find(&step.after, &mut state) {
            return Err(stuck(seen, state, remover));
        }
    }
    Ok(versions)
}

/// What is at a place.
pub(super) fn state_at<'a>(versions: &Versions<'a>, place: Place) -> State<'a> {
    let count = versions.partition_point(|(from, _)| *from <= place);
    versions.get(count.checked_sub(1)?)?.1
}

/// Transactions of which several comparisons were said not to hold together although they do. `versions` are those of the
/// keys that are explained by their places alone, and have no other explanation.
pub(super) fn compares(index: &Index<'_>, versions: &[Option<Versions<'_>>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, operation) in index.operations.iter().enumerate() {
        let (Action::Txn(txn), Some(Answer::Txn(answer))) = (&operation.action, operation.answer()) else { continue };
        let Some(place) = index.known[at].place.filter(|_| !index.known[at].broken) else { continue };
        if answer.succeeded || txn.compare.len() == 1 {
            continue;
        }
        let holds = txn.compare.iter().all(|compare| {
            let versions = index.number(&compare.key).and_then(|key| versions[key].as_ref());
            // A change looks at what is before it.
            let look = if place.is_multiple_of(2) { place.saturating_sub(1) } else { place };
            versions.is_some_and(|versions| compared(compare, &state_at(versions, look), &|_| false) == Some(true))
        });
        if holds {
            let message = format!("{operation} was told that a comparison does not hold, and all of them hold there");
            violations.push(Violation::new(ViolationKind::WrongAnswer, None, message, [operation]));
        }
    }
    violations
}

impl Stuck<'_> {
    /// Tells it. `unknown` are the operations of unknown outcome that could have changed the key and do not explain it.
    pub(super) fn violation(&self, index: &Index<'_>, key: &str, unknown: &KeySteps<'_>) -> Violation {
        let operation = &index.operations[self.step.operation];
        let writer = self.state.map(|state| state.writer).or(self.remover).map(|writer| &index.operations[writer]);
        let found = self.seen.map_or_else(|| "does not fit".to_owned(), |seen| told(&seen));
        let there = match (self.state, writer) {
            (Some(state), Some(writer)) => format!("{} of {writer}", version(&state)),
            (None, Some(remover)) => format!("nothing, as {remover} removed the key"),
            _ => "nothing, as nobody had written the key".to_owned(),
        };
        let mut message = format!("{operation} {found}; allowed was only what is there: {there}");
        let mut others: Vec<u64> = unknown.unknown.iter().map(|step| index.operations[step.operation].id).collect();
        others.sort_unstable();
        others.dedup();
        if !others.is_empty() {
            let some: Vec<String> = others.iter().take(8).map(|id| format!("#{id}")).collect();
            let dots = if others.len() > some.len() { ", …" } else { "" };
            message += &format!("; no order of those of unknown outcome explains it: {}{dots}", some.join(", "));
        }
        Violation::new(self.kind(operation, writer), Some(key), message, std::iter::once(operation).chain(writer))
    }

    fn kind(&self, operation: &Operation, writer: Option<&Operation>) -> ViolationKind {
        if matches!(operation.action, Action::List(_)) {
            return ViolationKind::MixedPage;
        }
        let split = writer.is_some_and(|writer| matches!(&writer.action, Action::Txn(txn) if txn.success.len() > 1));
        match (self.seen, &self.state) {
            (Some(Seen::Is(None)), Some(_)) | (Some(Seen::Is(Some(_))), None) if split => {
                ViolationKind::SplitTransaction
            }
            (Some(Seen::Is(Some(told))), Some(state)) => match (told.mod_revision, state.modified) {
                (Some(seen), At::Known(is)) if seen == is && told.version > Some(state.version) => {
                    ViolationKind::AppliedTwice
                }
                (Some(seen), At::Known(is)) if seen < is && split => ViolationKind::SplitTransaction,
                (Some(seen), At::Known(is)) if seen < is => ViolationKind::StaleRead,
                _ => ViolationKind::WrongAnswer,
            },
            (Some(Seen::Is(Some(_)) | Seen::Exists(true) | Seen::At(Some(_))), None) if self.remover.is_some() => {
                ViolationKind::Resurrected
            }
            (Some(Seen::Is(None) | Seen::Exists(false) | Seen::At(None)), Some(_)) => ViolationKind::LostWrite,
            (Some(Seen::Before { version: Some(told), .. }), state) => {
                let expected = state.map_or(1, |state| state.version + 1);
                match told.cmp(&expected) {
                    std::cmp::Ordering::Greater => ViolationKind::AppliedTwice,
                    std::cmp::Ordering::Less => ViolationKind::LostWrite,
                    std::cmp::Ordering::Equal => ViolationKind::WrongAnswer,
                }
            }
            _ => ViolationKind::WrongAnswer,
        }
    }
}

fn version(state: &Version<'_>) -> String {
    let at = |at: At| match at {
        At::Known(revision) => revision.to_string(),
        At::Above(low) => format!("one above {low}"),
    };
    let Version { value, modified, created, version, .. } = state;
    format!("{value:?} (mod revision {}, create revision {}, version {version})", at(*modified), at(*created))
}

/// What was said, in words.
fn told(seen: &Seen<'_>) -> String {
    match seen {
        Seen::Is(None) => "found nothing".to_owned(),
        Seen::Is(Some(Told { value, mod_revision, create_revision, version })) => {
            let number = |number: &Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
            format!(
                "found {value:?} (mod revision {}, create revision {}, version {})",
                number(mod_revision),
                number(create_revision),
                number(version)
            )
        }
        Seen::Before { version: Some(1), .. } => "was told that it created the key".to_owned(),
        Seen::Before { create_revision, version } => format!(
            "was told that it wrote version {} of the key created by revision {}",
            version.unwrap_or_default(),
            create_revision.unwrap_or_default()
        ),
        Seen::At(None) => "was told that there is no such key".to_owned(),
        Seen::At(Some(revision)) => format!("was told that the key is at mod revision {revision}"),
        Seen::NotAt(revision) => format!("was told that the key is not at mod revision {revision}"),
        Seen::Exists(true) => "was told that there is such a key".to_owned(),
        Seen::Exists(false) => "was told that there is no such key".to_owned(),
        Seen::Compared(compare, holds) => format!(
            "was told that {:?} {:?} {:?} {}",
            compare.target,
            compare.op,
            compare.value,
            if *holds { "holds" } else { "does not hold" }
        ),
    }
}
