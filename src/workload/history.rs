//! Judges a history of puts and gets: could one copy of each key, that does one thing at a time, have given these answers?
//!
//! That is linearizability. It is local, so each key is judged by itself. Values must be unique within a key; then the put of
//! a value and the gets that found it are known, and no order has to be searched (Gibbons and Korach, "Testing shared
//! memories", 1997): the value must be that of the key from the first return among them to the last call, if that comes
//! later. No two values can be so at the same time; and a value whose operations all overlap each other needs one moment
//! between them at which no other value must be there.
//!
//! A write with an unknown outcome is harmless: if nobody has seen its value, it is left out, because it changes nothing
//! whether it was done after all; if somebody has, it was done before that get returned.
//!
//! Guarantees: exact, in a time that grows with the number of operations and no more. Leaves out: deletes, transactions,
//! and reads that ask for less than the newest.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Wrote this value, which nobody else writes to the key.
    Put(String),
    /// Read this value; `None` if there was no such key.
    Get(Option<String>),
}

/// One operation of a client. Those that were refused are not part of a history; nor are gets without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The key.
    pub key: String,
    /// What was done.
    pub action: Action,
    /// When it was sent, on a clock that all clients share.
    pub called: Duration,
    /// When its answer came; `None` for a put of which nobody knows whether it was or will be done.
    pub returned: Option<Duration>,
}

/// Why a history is not one of a single copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No order explains it.
    #[error("key {key}: {why}")]
    NotLinearizable {
        /// The key.
        key: String,
        /// What can't be explained.
        why: String,
    },
    /// The history can't be judged: two puts of one value, or a get that never returned.
    #[error("key {key} can't be judged: {why}")]
    Unfit {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Judges a history, its operations in any order. Moments that are equal count as concurrent.
///
/// # Errors
/// The first [`Violation`], by key.
pub fn check(history: &[Operation]) -> Result<(), Violation> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys.into_iter().try_for_each(|(key, operations)| check_key(key, &operations))
}

/// A moment; before all operations, -1.
type Nanos = i128;

const BEFORE_ALL: Nanos = -1;

/// A value, `None` for "no such key", and the operations that put or found it.
#[derive(Debug, Clone, Copy)]
struct Cluster<'a> {
    value: Option<&'a str>,
    put_called: Nanos,
    /// The first return of any of them: from then on the value is there. `None` if none returned.
    first_return: Option<Nanos>,
    /// The last call of any of them.
    last_call: Nanos,
}

impl Cluster<'_> {
    fn returned(&mut self, at: Nanos) {
        self.first_return = Some(self.first_return.map_or(at, |first| first.min(at)));
    }

    fn name(&self) -> String {
        self.value.map_or_else(|| "nothing".to_owned(), |value| format!("\"{value}\""))
    }
}

fn check_key(key: &str, operations: &[&Operation]) -> Result<(), Violation> {
    let wrong = |why: String| Violation::NotLinearizable { key: key.to_owned(), why };
    let mut spans = Vec::new();
    for cluster in clusters(key, operations)? {
        // Neither done for sure nor seen.
        let Some(first_return) = cluster.first_return else { continue };
        if first_return < cluster.put_called {
            let why = format!("a get found {} at {}, before it was put", cluster.name(), millis(first_return));
            return Err(wrong(why));
        }
        spans.push((first_return, cluster));
    }
    spans.sort_by_key(|(first_return, _)| *first_return);
    let (held, brief): (Vec<_>, Vec<_>) =
        spans.into_iter().partition(|(first_return, cluster)| *first_return < cluster.last_call);
    for pair in held.windows(2) {
        let [(_, one), (second, other)] = pair else { continue };
        if *second < one.last_call {
            return Err(wrong(format!("{} and {}", must_be(one), must_be(other))));
        }
    }
    for (end, cluster) in brief {
        // The last value that must be there before all of these have ended.
        let before = held.partition_point(|(from, _)| *from < cluster.last_call);
        if let Some((_, other)) = before.checked_sub(1).and_then(|at| held.get(at))
            && end < other.last_call
        {
            let (name, from) = (cluster.name(), millis(cluster.last_call));
            return Err(wrong(format!("{name} was there between {from} and {}, but {}", millis(end), must_be(other))));
        }
    }
    Ok(())
}

/// Which operations belong to each value.
fn clusters<'a>(key: &str, operations: &[&'a Operation]) -> Result<Vec<Cluster<'a>>, Violation> {
    let unfit = |why: String| Violation::Unfit { key: key.to_owned(), why };
    let nanos = |at: Duration| Nanos::try_from(at.as_nanos()).unwrap_or(Nanos::MAX);
    let nothing =
        Cluster { value: None, put_called: BEFORE_ALL, first_return: Some(BEFORE_ALL), last_call: BEFORE_ALL };
    let mut clusters: BTreeMap<Option<&str>, Cluster<'a>> = BTreeMap::from([(None, nothing)]);
    for operation in operations {
        if let Action::Put(value) = &operation.action {
            let (value, called) = (Some(value.as_str()), nanos(operation.called));
            let first_return = operation.returned.map(nanos);
            let cluster = Cluster { value, put_called: called, first_return, last_call: called };
            if clusters.insert(value, cluster).is_some() {
                return Err(unfit(format!("{} was put twice", cluster.name())));
            }
        }
    }
    for operation in operations {
        if let Action::Get(found) = &operation.action {
            let returned = operation.returned.ok_or_else(|| unfit("a get never returned".to_owned()))?;
            let cluster = clusters.get_mut(&found.as_deref()).ok_or_else(|| Violation::NotLinearizable {
                key: key.to_owned(),
                why: format!("a get found {found:?}, which nobody put, or whose put was refused"),
            })?;
            cluster.returned(nanos(returned));
            cluster.last_call = cluster.last_call.max(nanos(operation.called));
        }
    }
    Ok(clusters.into_values().collect())
}

fn must_be(cluster: &Cluster<'_>) -> String {
    let from = cluster.first_return.unwrap_or(BEFORE_ALL);
    let from = if from == BEFORE_ALL { "the beginning".to_owned() } else { millis(from) };
    format!("{} must have been there from {from} to {}", cluster.name(), millis(cluster.last_call))
}

fn millis(at: Nanos) -> String {
    format!("{:.3} ms", at as f64 / 1e6)
}

#[cfg(test)]
mod tests;
