//! What an operation means for one key: what it saw there, and what it changed.
//!
//! Guarantees: one meaning of every action and answer, for all that judge. Places in the order of the store are numbers: the
//! change that makes revision R is at 2R, what looks at the state of R at 2R + 1. Leaves out: in which order steps are taken.

use std::cmp::Ordering;

use super::super::{Compare, Comparison, Listed, Nanos, Operand, Record, Target};

/// A place in the order of the store.
pub(super) type Place = u64;

/// The place of the change that makes a revision.
pub(super) const fn change_at(revision: u64) -> Place {
    revision.saturating_mul(2)
}

/// The place of what looks at the state of a revision.
pub(super) const fn state_at(revision: u64) -> Place {
    revision.saturating_mul(2).saturating_add(1)
}

/// The part of an operation that is about one key.
#[derive(Debug, Clone)]
pub(super) struct Step<'a> {
    /// Which operation, by its place among all.
    pub(super) operation: usize,
    /// From when on it can have been done: 0 for reads that may be of the past.
    pub(super) called: Nanos,
    /// Until when; `None` for ever.
    pub(super) returned: Option<Nanos>,
    /// Where, if that is known.
    pub(super) place: Option<Place>,
    /// What it found.
    pub(super) before: Vec<Seen<'a>>,
    /// What it did then.
    pub(super) change: Option<Change<'a>>,
    /// What it found behind its own change.
    pub(super) after: Vec<Seen<'a>>,
}

/// A change of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    Put(&'a str),
    Delete,
}

/// A record that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told<'a> {
    pub(super) value: &'a str,
    pub(super) mod_revision: Option<u64>,
    pub(super) create_revision: Option<u64>,
    pub(super) version: Option<u64>,
}

impl<'a> From<&'a Record> for Told<'a> {
    fn from(record: &'a Record) -> Self {
        let Record { value, mod_revision, create_revision, version } = record;
        Self { value, mod_revision: *mod_revision, create_revision: *create_revision, version: *version }
    }
}

impl<'a> From<&'a Listed> for Told<'a> {
    fn from(listed: &'a Listed) -> Self {
        Self {
            value: &listed.value,
            mod_revision: Some(listed.mod_revision),
            create_revision: Some(listed.create_revision),
            version: Some(listed.version),
        }
    }
}

/// What was found at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    /// This record, or no such key.
    Is(Option<Told<'a>>),
    /// Before a put: what the put told of the record that it made.
    Before { create_revision: Option<u64>, version: Option<u64> },
    /// This mod revision, or no such key.
    At(Option<u64>),
    /// Any mod revision but this, or no such key.
    NotAt(u64),
    /// That there is such a key, or not.
    Exists(bool),
    /// That a comparison holds, or not.
    Compared(&'a Compare, bool),
}

/// A revision that may not be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum At {
    Known(u64),
    /// Any above this one that nobody else has.
    Above(u64),
}

impl At {
    /// Whether it can be this revision; from then on it is.
    fn is(&mut self, revision: u64, free: &impl Fn(u64) -> bool) -> bool {
        match *self {
            Self::Known(known) => known == revision,
            Self::Above(low) => {
                let can_be = revision > low && free(revision);
                if can_be {
                    *self = Self::Known(revision);
                }
                can_be
            }
        }
    }
}

/// What is at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Version<'a> {
    pub(super) value: &'a str,
    /// Which operation wrote it.
    pub(super) writer: usize,
    pub(super) modified: At,
    pub(super) created: At,
    pub(super) version: u64,
}

impl Version<'_> {
    fn is_modified_at(&mut self, revision: u64, free: &impl Fn(u64) -> bool) -> bool {
        let fits = self.modified.is(revision, free) && self.version_fits();
        fits && (self.version > 1 || self.created.is(revision, &|_| true))
    }

    fn is_created_at(&mut self, revision: u64, free: &impl Fn(u64) -> bool) -> bool {
        let fits = self.created.is(revision, free) && self.version_fits();
        fits && (self.version > 1 || self.modified.is(revision, &|_| true))
    }

    /// The first version is the one that was created, and a later one is of a later revision.
    fn version_fits(&self) -> bool {
        match (self.created, self.modified) {
            (At::Known(created), At::Known(modified)) if self.version > 1 => created < modified,
            _ => true,
        }
    }
}

/// What is at a key; `None` if there is no such key.
pub(super) type State<'a> = Option<Version<'a>>;

impl<'a> Seen<'a> {
    /// Whether it can be seen in this state. Where a revision is not known, it is afterwards, if this tells it; `free` says
    /// which ones it can be.
    pub(super) fn holds(&self, state: &mut State<'a>, free: &impl Fn(u64) -> bool) -> bool {
        match (*self, state) {
            (Self::Is(None) | Self::At(None) | Self::Exists(false), state) => state.is_none(),
            (Self::Exists(true), state) => state.is_some(),
            (Self::Is(Some(_)) | Self::At(Some(_)), None) => false,
            (Self::Is(Some(told)), Some(state)) => {
                state.value == told.value
                    && told.version.is_none_or(|version| version == state.version)
                    && told.mod_revision.is_none_or(|revision| state.is_modified_at(revision, free))
                    && told.create_revision.is_none_or(|revision| state.is_created_at(revision, free))
            }
            (Self::Before { version, .. }, None) => version.is_none_or(|version| version == 1),
            (Self::Before { create_revision, version }, Some(state)) => {
                version.is_none_or(|version| version == state.version + 1)
                    && create_revision.is_none_or(|revision| state.is_created_at(revision, free))
            }
            (Self::At(Some(revision)), Some(state)) => state.is_modified_at(revision, free),
            (Self::NotAt(_), None) => true,
            (Self::NotAt(revision), Some(state)) => state.modified != At::Known(revision),
            // If it holds, it tells the revision.
            (
                Self::Compared(
                    Compare {
                        op: Comparison::Equal,
                        target: Target::ModRevision,
                        value: Operand::Number(revision),
                        ..
                    },
                    true,
                ),
                Some(state),
            ) => state.is_modified_at(*revision, free),
            (Self::Compared(compare, expected), state) => match compared(compare, state, free) {
                Some(holds) => holds == expected,
                // Not known well enough to contradict it.
                None => true,
            },
        }
    }

    /// Whether a state that it can be seen in is the only one: what does not change anything and sees this can be taken at
    /// once.
    pub(super) const fn is_exact(&self) -> bool {
        match self {
            Self::Is(_) | Self::At(_) | Self::Exists(false) => true,
            Self::Before { .. } | Self::NotAt(_) | Self::Exists(true) | Self::Compared(..) => false,
        }
    }
}

/// Whether a comparison holds; `None` where that is not known.
pub(super) fn compared(compare: &Compare, state: &State<'_>, free: &impl Fn(u64) -> bool) -> Option<bool> {
    let by = |ordering: Ordering| Some(compare.op.holds(ordering));
    match (&compare.value, compare.target) {
        (Operand::Text(operand), _) => {
            let Some(state) = state else { return Some(false) };
            by(state.value.cmp(operand))
        }
        (Operand::Number(operand), Target::Version | Target::Value) => {
            by(state.map_or(0, |state| state.version).cmp(operand))
        }
        (Operand::Number(operand), target) => {
            let Some(state) = state else { return by(0.cmp(operand)) };
            match if target == Target::CreateRevision { state.created } else { state.modified } {
                At::Known(revision) => by(revision.cmp(operand)),
                At::Above(low) if compare.op == Comparison::Equal && (*operand <= low || !free(*operand)) => {
                    Some(false)
                }
                At::Above(_) => None,
            }
        }
    }
}

impl<'a> Change<'a> {
    /// What is there behind it; `at` is its revision.
    pub(super) fn applied(self, state: &State<'a>, writer: usize, at: At) -> State<'a> {
        match self {
            Self::Delete => None,
            Self::Put(value) => Some(match state {
                Some(before) => Version { value, writer, modified: at, version: before.version + 1, ..*before },
                None => Version { value, writer, modified: at, created: at, version: 1 },
            }),
        }
    }
}
