//! One key without a full witness: a search for an order of its steps that explains all of them.
//!
//! The method is that of Wing and Gong as improved by Lowe ("Testing for linearizability", 2017): take any step that may come
//! next (nothing that has not been taken returned before it was sent), go on from the state it leaves, and never try a set of
//! taken steps with a state twice, nor one with more steps of unknown outcome where fewer led nowhere. Steps whose place is
//! known come in the order of their places, so that only the others are chosen among. A step of unknown outcome may come at
//! any time after it was sent, or never; where places are known, it takes a revision that nobody else has, above all that had
//! been told before it was sent.
//!
//! Guarantees: what is called explained is, but for what is left out, and what can be explained is never called unexplained;
//! work is bounded by [`TRIED_MAX`], and what is given up is told as such. Leaves out: that a transaction of unknown outcome
//! which nobody saw changes all of its keys or none, that two keys may need the same revision, and some of what answers tell
//! of the revisions of several changes in a row that nobody saw.

use std::collections::{HashMap, HashSet};

use super::super::{Compare, Comparison, Nanos, Operand};
use super::chain::Stuck;
use super::index::Index;
use super::order::{Floors, least_revision};
use super::step::{At, Change, Seen, State, Step, Told, Version, change_at};
use super::steps::KeySteps;

/// The most situations that are tried for one key. Tests meet the bound sooner.
pub(super) const TRIED_MAX: usize = if cfg!(test) { 50_000 } else { 1_000_000 };

/// The most steps that are looked at for one key, for each situation that may be tried.
const LOOKED_AT_MAX: usize = 64;

/// The most lists of steps among which those that are alike are looked for.
const LISTS_MAX: usize = 64;

/// The most situations, of those that have come as far and to the same state, with which further ones are compared.
const FIRST_MAX: usize = 64;

/// What a search comes to.
pub(super) enum Found<'a> {
    /// There is such an order.
    Explained,
    /// There is none; the step at which the longest attempt ended, if any did.
    Unexplained(Option<Box<Stuck<'a>>>),
    /// It was given up.
    GivenUp,
}

/// A situation: what was taken, and what is there.
#[derive(Debug, Clone)]
struct Node<'a> {
    /// How many of those with a place were taken.
    placed: usize,
    /// Which of the loose and then of the unknown ones were taken.
    taken: Box<[u64]>,
    /// How many of the loose ones were taken.
    loose: usize,
    /// So many loose ones, in the order of their calls, were all taken.
    begun: usize,
    /// So many loose ones, in the order of their returns, were all taken.
    settled: usize,
    state: State<'a>,
    /// The last revision that is used up.
    revision: u64,
    remover: Option<usize>,
}

/// How many of those with a place and of the loose ones were taken, and what is there.
type Reached<'a> = (usize, usize, State<'a>);

/// Which ones were taken, and the last revision that is used up.
type Used = (Box<[u64]>, u64);

/// The situations that were tried.
#[derive(Debug, Default)]
struct Tried<'a> {
    all: HashSet<(Reached<'a>, Used)>,
    /// The first ones of each kind, which have used least as a rule.
    first: HashMap<Reached<'a>, Vec<Used>>,
}

impl<'a> Tried<'a> {
    /// Takes note of a situation, unless it can go on in no way in which one that was tried could not: one that had come as
    /// far, to the same state, with no step and no revision more.
    fn insert(&mut self, node: &Node<'a>) -> bool {
        let reached = (node.placed, node.loose, node.state);
        if !self.all.insert((reached, (node.taken.clone(), node.revision))) {
            return false;
        }
        let first = self.first.entry(reached).or_default();
        // As many loose ones, and none that this one has not: the same.
        let within = |taken: &[u64]| taken.iter().zip(&node.taken).all(|(taken, all)| taken & !all == 0);
        if first.iter().any(|(taken, revision)| *revision <= node.revision && within(taken)) {
            return false;
        }
        if first.len() < FIRST_MAX {
            first.push((node.taken.clone(), node.revision));
        }
        true
    }
}

impl<'a> Node<'a> {
    fn has(&self, bit: usize) -> bool {
        self.taken[bit / 64] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, bit: usize) {
        self.taken[bit / 64] |= 1 << (bit % 64);
    }
}

struct Search<'s, 'a> {
    index: &'s Index<'a>,
    placed: &'s [Step<'a>],
    loose: &'s [Step<'a>],
    unknown: &'s [Step<'a>],
    /// For each of those with a place, the first return of it and all behind it.
    first_returns: Vec<Nanos>,
    /// Loose steps in the order of their returns.
    loose_returns: Vec<usize>,
    /// The least revision that each unknown step can have.
    least: Vec<u64>,
    /// The unknown step that belongs to the other branch of the same transaction: only one of the two was done.
    others: Vec<Option<usize>>,
    /// Unknown steps that are as good as each other, in the order of their calls: of each list only the first is tried.
    alike: Vec<Vec<usize>>,
}

/// Searches. The steps must be sorted.
pub(super) fn search<'a>(index: &Index<'a>, floors: &Floors, steps: &KeySteps<'a>) -> (Found<'a>, usize) {
    let KeySteps { placed, loose, unknown } = steps;
    let mut first_returns = vec![Nanos::MAX; placed.len() + 1];
    for (at, step) in placed.iter().enumerate().rev() {
        first_returns[at] = first_returns[at + 1].min(step.returned.unwrap_or(Nanos::MAX));
    }
    let mut loose_returns: Vec<usize> = (0..loose.len()).collect();
    loose_returns.sort_by_key(|at| loose[*at].returned);
    let least = unknown.iter().map(|step| least_revision(floors, step.called)).collect();
    let others: Vec<Option<usize>> = (0..unknown.len()).map(|at| other_branch(unknown, at)).collect();
    let alike = alike(steps, &others);
    let search = Search { index, placed, loose, unknown, first_returns, loose_returns, least, others, alike };
    search.run()
}

/// The step of the other branch of a transaction, if that changes the key as well. The two stand next to each other.
fn other_branch(unknown: &[Step<'_>], at: usize) -> Option<usize> {
    let is_other = |other: &usize| unknown.get(*other).is_some_and(|step| step.operation == unknown[at].operation);
    [at.checked_sub(1), Some(at + 1)].into_iter().flatten().find(is_other)
}

/// Puts unknown steps together that can stand in for each other. Whatever may come at some time may come later as well, so of
/// deletes with the same condition it only counts how many were taken; and of puts, too, if their values look the same to all
/// who see a value without telling who wrote it. What excludes something else counts alone.
fn alike(steps: &KeySteps<'_>, others: &[Option<usize>]) -> Vec<Vec<usize>> {
    let KeySteps { placed, loose, unknown } = steps;
    let seen = placed.iter().chain(loose).chain(unknown).flat_map(|step| &step.before);
    let by_value = seen.filter_map(|seen| match seen {
        Seen::Compared(Compare { op, value: Operand::Text(operand), .. }, _) => Some((*op, operand.as_str())),
        Seen::Is(Some(Told { value, mod_revision: None, .. })) => Some((Comparison::Equal, *value)),
        _ => None,
    });
    let by_value: HashSet<(Comparison, &str)> = by_value.collect();
    let look = |value: &str| -> Vec<bool> { by_value.iter().map(|(op, with)| op.holds(value.cmp(with))).collect() };
    // What a step counts as; `None` if it counts alone.
    let kind = |at: usize| match unknown[at].change {
        _ if others[at].is_some() => None,
        Some(Change::Put(value)) => Some(Some(look(value))),
        Some(Change::Delete) | None => Some(None),
    };
    let mut lists: Vec<(_, Vec<usize>)> = Vec::new();
    for (at, step) in unknown.iter().enumerate() {
        let kind = kind(at);
        let is_alike = |(other, list): &&mut (_, Vec<usize>)| {
            kind.is_some() && *other == kind && step.before == unknown[list[0]].before
        };
        match lists.iter_mut().take(LISTS_MAX).find(is_alike) {
            Some((_, list)) => list.push(at),
            None => lists.push((kind, vec![at])),
        }
    }
    let mut lists: Vec<Vec<usize>> = lists.into_iter().map(|(_, list)| list).collect();
    lists.iter_mut().for_each(|list| list.sort_by_key(|at| unknown[*at].called));
    lists
}

impl<'a> Search<'_, 'a> {
    fn run(&self) -> (Found<'a>, usize) {
        let words = (self.loose.len() + self.unknown.len()).div_ceil(64);
        let taken = vec![0; words].into_boxed_slice();
        let start = Node { placed: 0, taken, loose: 0, begun: 0, settled: 0, state: None, revision: 0, remover: None };
        let mut open = vec![start];
        let mut tried = Tried::default();
        let mut looked_at = 0;
        let mut furthest: (usize, Option<Box<Stuck<'a>>>) = (0, None);
        while let Some(node) = open.pop() {
            if node.placed == self.placed.len() && node.loose == self.loose.len() {
                return (Found::Explained, tried.all.len());
            }
            if tried.all.len() == TRIED_MAX || looked_at > TRIED_MAX * LOOKED_AT_MAX {
                return (Found::GivenUp, tried.all.len());
            }
            if !tried.insert(&node) {
                continue;
            }
            let depth = node.placed + node.loose;
            if (depth > furthest.0 || furthest.1.is_none())
                && let Some(stuck) = self.stuck(&node)
            {
                furthest = (depth, Some(Box::new(stuck)));
            }
            looked_at += self.alike.len() + self.expand(&node, &mut open);
        }
        (Found::Unexplained(furthest.1), tried.all.len())
    }

    /// The situations behind this one, the most likely last. How many loose steps it took to look at.
    fn expand(&self, node: &Node<'a>, open: &mut Vec<Node<'a>>) -> usize {
        let first_return = self.first_return(node);
        let known = self.placed.get(node.placed).filter(|step| step.called <= first_return);
        let by_place = known.and_then(|step| self.take_placed(node, step).ok());
        // Not so for a step that says nothing of the key, as one of a transaction that nobody was told the answer of: it
        // fits everywhere, and would use up the revisions before it.
        let at_once = |step: &Step<'a>, behind: &Node<'a>| {
            step.change.is_none() && step.before.iter().any(Seen::is_exact) && behind.state == node.state
        };
        if let (Some(step), Some(behind)) = (known, &by_place)
            && at_once(step, behind)
        {
            open.extend(by_place);
            return 1;
        }
        let (start, mut looked_at) = (open.len(), 1);
        for (bit, step) in self.loose.iter().enumerate().skip(node.begun) {
            looked_at += 1;
            if step.called > first_return {
                break;
            }
            if node.has(bit) {
                continue;
            }
            let mut behind = self.with_loose(node, bit);
            if self.take(&mut behind, step, At::Above(node.revision)).is_err() {
                continue;
            }
            if at_once(step, &behind) {
                open.truncate(start);
                open.push(behind);
                return looked_at;
            }
            open.push(behind);
        }
        for list in &self.alike {
            let Some(at) = list.iter().copied().find(|at| !node.has(self.loose.len() + at)) else { continue };
            let (bit, step) = (self.loose.len() + at, &self.unknown[at]);
            if step.called > first_return || self.is_idle(node, step) {
                continue;
            }
            let mut behind = node.clone();
            behind.set(bit);
            if let Some(other) = self.others[at] {
                behind.set(self.loose.len() + other);
            }
            // Where no place is known, revisions say nothing.
            let revision = match self.placed.is_empty() {
                true => 0,
                false => self.next_free(self.least[at].max(node.revision + 1)),
            };
            if self.take(&mut behind, step, At::Above(revision.saturating_sub(1))).is_ok() {
                behind.revision = revision;
                open.push(behind);
            }
        }
        // What was pushed first is tried last: unknown ones before loose ones before the one with a place, so turned round.
        open[start..].reverse();
        open.extend(by_place);
        looked_at
    }

    /// The situation with one more loose step taken.
    fn with_loose(&self, node: &Node<'a>, bit: usize) -> Node<'a> {
        let mut behind = node.clone();
        behind.set(bit);
        behind.loose += 1;
        while behind.begun < self.loose.len() && behind.has(behind.begun) {
            behind.begun += 1;
        }
        while self.loose_returns.get(behind.settled).is_some_and(|bit| behind.has(*bit)) {
            behind.settled += 1;
        }
        behind
    }

    /// A delete of what is not there is as good as none.
    fn is_idle(&self, node: &Node<'a>, step: &Step<'a>) -> bool {
        step.change == Some(Change::Delete) && node.state.is_none()
    }

    fn first_return(&self, node: &Node<'a>) -> Nanos {
        let loose = self.loose_returns.get(node.settled);
        let loose = loose.and_then(|bit| self.loose[*bit].returned).unwrap_or(Nanos::MAX);
        self.first_returns[node.placed].min(loose)
    }

    fn next_free(&self, from: u64) -> u64 {
        (from..).find(|revision| self.index.is_free(*revision)).unwrap_or(u64::MAX)
    }

    /// Takes the next step that has a place.
    fn take_placed(&self, node: &Node<'a>, step: &Step<'a>) -> Result<Node<'a>, Option<Seen<'a>>> {
        let place = step.place.unwrap_or_default();
        // What is used up must be before it.
        if node.revision.saturating_mul(2) > place {
            return Err(None);
        }
        let mut behind = node.clone();
        behind.placed += 1;
        self.take(&mut behind, step, At::Known(place / 2)).map_err(Some)?;
        behind.revision = place / 2;
        Ok(behind)
    }

    /// Holds a step against the state and changes that.
    fn take(&self, node: &mut Node<'a>, step: &Step<'a>, at: At) -> Result<(), Seen<'a>> {
        let free = |revision: u64| self.index.is_free(revision);
        for seen in &step.before {
            if !seen.holds(&mut node.state, &free) {
                return Err(*seen);
            }
        }
        // A revision that was only now learned must be one from before.
        if let (Some(place), Some(Version { modified: At::Known(revision), .. })) = (step.place, node.state)
            && change_at(revision) > place
            && let Some(seen) = step.before.first()
        {
            return Err(*seen);
        }
        if let Some(change) = step.change {
            node.remover =
                (change == Change::Delete && node.state.is_some()).then_some(step.operation).or(node.remover);
            node.state = change.applied(&node.state, step.operation, at);
        }
        for seen in &step.after {
            if !seen.holds(&mut node.state, &free) {
                return Err(*seen);
            }
        }
        Ok(())
    }

    /// What keeps this situation from going on with what has to come next.
    fn stuck(&self, node: &Node<'a>) -> Option<Stuck<'a>> {
        let first_return = self.first_return(node);
        if let Some(step) = self.placed.get(node.placed) {
            let seen = self.take_placed(node, step).err()?;
            return Some(Stuck { step: step.clone(), seen, state: node.state, remover: node.remover });
        }
        // Of the loose ones the one that returned first has to come at some time.
        let bit = self.loose_returns.get(node.settled).copied()?;
        let step = self.loose.get(bit).filter(|step| step.called <= first_return)?;
        let seen = self.take(&mut node.clone(), step, At::Above(node.revision)).err()?;
        Some(Stuck { step: step.clone(), seen: Some(seen), state: node.state, remover: node.remover })
    }
}
