//! Listings: every page says of each key in its part of the range what it is, and that there is no other.
//!
//! Guarantees: pages that continue each other are of one revision, overlap nowhere and leave nothing out; what a page says
//! becomes a step of every key that the history knows in its part, also of those that it does not name. Leaves out: what is
//! at those keys (`chain`, `search`).

use std::collections::HashMap;

use super::super::{Action, Answer, List, ListAnswer, Operation};
use super::index::Index;
use super::step::Seen;
use super::steps::{KeySteps, empty_step};
use super::violation::{Violation, ViolationKind};

/// The most pages of one listing.
const PAGES_MAX: usize = 1_000;

/// Where a listing stands behind one of its pages.
struct Standing<'a> {
    /// The last key that was passed; `None` before the first page.
    last: Option<&'a str>,
    /// Records so far.
    records: u64,
    revision: Option<u64>,
}

/// Takes all pages apart, and tells those that contradict themselves or the page before.
pub(super) fn take_apart<'a>(index: &Index<'a>, keys: &mut [KeySteps<'a>]) -> Vec<Violation> {
    let by_id: HashMap<u64, usize> =
        index.operations.iter().enumerate().map(|(at, operation)| (operation.id, at)).collect();
    let mut violations = Vec::new();
    for (at, operation) in index.operations.iter().enumerate() {
        let (Action::List(list), Some(Answer::List(page))) = (&operation.action, operation.answer()) else { continue };
        if index.known[at].broken {
            continue;
        }
        let before = match standing(index, &by_id, list) {
            Ok(before) => before,
            Err(why) => {
                let message = format!("{operation} can't be judged: {why}");
                violations.push(Violation::new(ViolationKind::Undecided, Some(&list.prefix), message, [operation]));
                continue;
            }
        };
        let other = list.continues.and_then(|id| by_id.get(&id)).map(|at| &index.operations[*at]);
        match contradiction(list, page, &before) {
            Some(why) => {
                let message = format!("{operation} {why}");
                let involved = std::iter::once(operation).chain(other);
                violations.push(Violation::new(ViolationKind::MixedPage, Some(&list.prefix), message, involved));
            }
            None => say(index, at, list, page, before.last, keys),
        }
    }
    violations
}

/// Where the pages before leave a listing.
fn standing<'a>(index: &Index<'a>, by_id: &HashMap<u64, usize>, list: &List) -> Result<Standing<'a>, &'static str> {
    let mut standing = Standing { last: None, records: 0, revision: None };
    let (mut next, mut steps) = (list.continues, 0);
    while let Some(id) = next {
        let operation: Option<&'a Operation> = by_id.get(&id).map(|at| &index.operations[*at]);
        let Some((Action::List(before), Some(Answer::List(page)))) =
            operation.map(|operation| (&operation.action, operation.answer()))
        else {
            return Err("it continues something that is no page that was read");
        };
        if before.prefix != list.prefix {
            return Err("it continues a listing of another prefix");
        }
        if steps == 0 {
            if !page.more {
                return Err("it continues the last page of a listing");
            }
            standing.last = page.records.last().map(|record| record.key.as_str());
            standing.revision = Some(page.revision);
        }
        standing.records += page.records.len() as u64;
        next = before.continues;
        steps += 1;
        if steps > PAGES_MAX {
            return Err("it is behind too many pages, or they continue each other in a circle");
        }
    }
    Ok(standing)
}

/// What in a page can't be, whatever the store holds.
fn contradiction(list: &List, page: &ListAnswer, before: &Standing<'_>) -> Option<String> {
    if let Some(revision) = before.revision.filter(|revision| *revision != page.revision) {
        return Some(format!(
            "is of revision {}, and the page before it of revision {revision}; all pages must be of the same",
            page.revision
        ));
    }
    let mut last = before.last;
    for record in &page.records {
        if last.is_some_and(|last| last >= record.key.as_str()) {
            return Some(format!("tells the key {} behind {}", record.key, last.unwrap_or_default()));
        }
        if !record.key.starts_with(&list.prefix) {
            return Some(format!("tells the key {}, which does not begin with {}", record.key, list.prefix));
        }
        last = Some(&record.key);
    }
    let records = page.records.len() as u64;
    if records > list.limit {
        return Some(format!("has {records} records, and {} were asked for at most", list.limit));
    }
    if page.more && records == 0 {
        return Some("is empty, and says that more follows".to_owned());
    }
    let so_far = before.records + records;
    let fits = if page.more { so_far < page.count } else { so_far == page.count };
    let all = if page.more { "and more follow" } else { "and those are all" };
    (!fits).then(|| format!("says that {} keys have the prefix, but {so_far} were told so far, {all}", page.count))
}

/// What a page says of each key of its part.
fn say<'a>(
    index: &Index<'a>,
    at: usize,
    list: &'a List,
    page: &'a ListAnswer,
    from: Option<&str>,
    keys: &mut [KeySteps<'a>],
) {
    let first = match from {
        Some(from) => index.keys.partition_point(|key| *key <= from),
        None => index.keys.partition_point(|key| *key < list.prefix.as_str()),
    };
    let last = page.records.last().filter(|_| page.more).map(|record| record.key.as_str());
    let mut records = page.records.iter().peekable();
    for (key, name) in index.keys.iter().enumerate().skip(first) {
        if !name.starts_with(&list.prefix) || last.is_some_and(|last| *name > last) {
            break;
        }
        let record = records.next_if(|record| record.key == **name);
        let mut step = empty_step(index, at);
        step.before.push(Seen::Is(record.map(Into::into)));
        keys[key].placed.push(step);
    }
}
