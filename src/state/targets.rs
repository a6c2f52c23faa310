//! The places for backups that were declared to the cluster, as opposed to those in the configuration of its nodes.
//!
//! Guarantees: what was declared is the same on every member, and changes only by commands, which are decided here: of two
//! that were given at the same time the second sees what the first one did. It takes part in no revision and in no state
//! hash, as the membership does not. Bounded in number and size. Leaves out: what stands in a declaration, which only
//! `node/` and above read; here it is bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::Rejection;

/// The most places that can be declared.
pub const TARGETS_MAX: usize = 16;

/// The longest declaration, in bytes.
pub const TARGET_BYTES_MAX: usize = 16 * 1024;

/// The longest name, in bytes.
const TARGET_NAME_BYTES_MAX: usize = 256;

/// The longest form of a length, in bytes.
const LENGTH_BYTES_MAX: usize = 5;

/// What all that can be declared takes in a header, in bytes.
pub(super) const ENCODED_BYTES_MAX: usize =
    LENGTH_BYTES_MAX + TARGETS_MAX * (2 * LENGTH_BYTES_MAX + TARGET_NAME_BYTES_MAX + TARGET_BYTES_MAX);

/// A change of what is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetChange {
    /// Declares a place. Where the same stands already, nothing is to be done.
    Add {
        /// Its name.
        name: String,
        /// What is declared.
        declaration: Bytes,
    },
    /// Declares a place anew, if nobody else did so meanwhile.
    Replace {
        /// Its name.
        name: String,
        /// What stands there, as whoever asks has seen it.
        was: Bytes,
        /// What shall stand there.
        declaration: Bytes,
    },
    /// Forgets a place.
    Remove {
        /// Its name.
        name: String,
    },
}

impl TargetChange {
    /// The place it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Add { name, .. } | Self::Replace { name, .. } | Self::Remove { name } => name,
        }
    }

    /// Bytes of names and declarations.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Add { name, declaration } => name.len() + declaration.len(),
            Self::Replace { name, was, declaration } => name.len() + was.len() + declaration.len(),
            Self::Remove { name } => name.len(),
        }
    }
}

/// What is declared, by name. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets(Arc<BTreeMap<String, Bytes>>);

impl Targets {
    /// Whether nothing is declared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is declared under a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.get(name)
    }

    /// All names with what is declared, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, declaration)| (name.as_str(), declaration))
    }

    /// Whether a change would be carried out, as things stand.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn check(&self, change: &TargetChange) -> Result<(), Rejection> {
        self.clone().apply(change)
    }

    /// Carries out a change, or refuses it and changes nothing.
    pub(super) fn apply(&mut self, change: &TargetChange) -> Result<(), Rejection> {
        let name = change.name();
        let known = self.0.get(name);
        let no_such = || Rejection::NoSuchTarget { name: name.to_owned() };
        let declaration = match change {
            TargetChange::Add { declaration, .. } | TargetChange::Replace { declaration, .. }
                if known == Some(declaration) =>
            {
                return Ok(());
            }
            TargetChange::Add { .. } if known.is_some() => {
                return Err(Rejection::TargetExists { name: name.to_owned() });
            }
            TargetChange::Add { .. } if self.0.len() >= TARGETS_MAX => {
                return Err(Rejection::TooManyTargets { limit: TARGETS_MAX as u64 });
            }
            TargetChange::Replace { was, .. } if known.ok_or_else(no_such)? != was => {
                return Err(Rejection::TargetChanged { name: name.to_owned() });
            }
            TargetChange::Add { declaration, .. } | TargetChange::Replace { declaration, .. } => Some(declaration),
            TargetChange::Remove { .. } => {
                known.ok_or_else(no_such)?;
                None
            }
        };
        let limit_bytes = TARGET_BYTES_MAX as u64;
        if name.is_empty() || name.len() > TARGET_NAME_BYTES_MAX {
            return Err(Rejection::TargetTooLarge { limit_bytes });
        }
        let all = Arc::make_mut(&mut self.0);
        match declaration {
            Some(declaration) if declaration.len() > TARGET_BYTES_MAX => {
                return Err(Rejection::TargetTooLarge { limit_bytes });
            }
            Some(declaration) => all.insert(name.to_owned(), declaration.clone()),
            None => all.remove(name),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Command, Operation, Principal, Reply, StateConfig, StateMachine, Txn, TxnOp, load};
    use crate::storage::MemoryEngine;
    use crate::types::{Key, LeaseId, LogIndex, LogPosition, NodeId, Term, WallTime};

    fn add(name: &str, declaration: &'static str) -> TargetChange {
        TargetChange::Add { name: name.to_owned(), declaration: declaration.into() }
    }

    fn replace(was: &'static str, declaration: &'static str) -> TargetChange {
        TargetChange::Replace { name: "a".to_owned(), was: was.into(), declaration: declaration.into() }
    }

    fn remove(name: &str) -> TargetChange {
        TargetChange::Remove { name: name.to_owned() }
    }

    #[test]
    fn a_place_is_declared_once_changed_as_it_was_seen_and_forgotten() {
        let mut targets = Targets::default();
        assert_eq!(targets.apply(&replace("1", "2")), Err(Rejection::NoSuchTarget { name: "a".into() }));
        targets.apply(&add("a", "1")).unwrap();
        targets.apply(&add("a", "1")).expect("an order whose outcome was not known may be given again");
        assert_eq!(targets.apply(&add("a", "2")), Err(Rejection::TargetExists { name: "a".into() }));
        assert_eq!(targets.apply(&replace("0", "2")), Err(Rejection::TargetChanged { name: "a".into() }));
        targets.apply(&replace("1", "2")).unwrap();
        targets.apply(&replace("1", "2")).expect("the same again");
        assert_eq!(targets.get("a").map(|found| &found[..]), Some(&b"2"[..]));
        let before = targets.clone();
        targets.apply(&remove("a")).unwrap();
        assert!(targets.is_empty() && !before.is_empty(), "who holds the old list keeps it");
        assert_eq!(targets.apply(&remove("a")), Err(Rejection::NoSuchTarget { name: "a".into() }));
    }

    #[test]
    fn what_is_declared_is_in_checkpoints_and_copies_and_changes_neither_revision_nor_hash() {
        let command = |operation| Command {
            proposed_at: WallTime::ZERO,
            principal: Principal::Anonymous,
            request: None,
            operation,
        };
        let put = TxnOp::Put { key: Key::new("k").unwrap(), value: "v".into(), lease: LeaseId::ZERO };
        let txn = Operation::Txn(Txn { success: vec![put], ..Txn::default() });
        let position = |index| LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index) };
        let engine = Arc::new(MemoryEngine::new());
        let mut machine = StateMachine::open(engine.clone(), StateConfig::default()).unwrap();
        machine.apply(position(1), &[command(txn)]).unwrap();
        let before = machine.applied().clone();
        let orders = [add("a", "1"), add("a", "2"), remove("b"), add("b", "3")];
        let outcomes = machine.apply(position(2), &orders.map(|order| command(Operation::Target(order)))).unwrap();
        let done = outcomes.iter().map(Result::is_ok).collect::<Vec<_>>();
        assert_eq!((done, &outcomes[0]), (vec![true, false, false, true], &Ok(Reply::Target)));
        let after = machine.applied().clone();
        assert_eq!((after.revision, after.hash), (before.revision, before.hash));
        assert_eq!(after.targets.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
        let (pinned, copy) = (machine.pin(), Arc::new(MemoryEngine::new()));
        load(&*copy, pinned.applied(), pinned.records()).unwrap();
        assert_eq!(StateMachine::open(copy, StateConfig::default()).unwrap().applied(), &after);
        machine.publish();
        machine.checkpointer().run().unwrap();
        drop(machine);
        assert_eq!(StateMachine::open(engine, StateConfig::default()).unwrap().applied(), &after);
    }

    #[test]
    fn number_and_size_are_bounded() {
        let mut targets = Targets::default();
        for number in 0..TARGETS_MAX {
            targets.apply(&add(&format!("t{number}"), "x")).unwrap();
        }
        assert_eq!(targets.check(&add("more", "x")), Err(Rejection::TooManyTargets { limit: 16 }));
        targets.check(&add("t3", "x")).unwrap();
        assert_eq!(targets.apply(&add("more", "x")), Err(Rejection::TooManyTargets { limit: 16 }));
        targets.apply(&remove("t3")).unwrap();
        let before = targets.clone();
        let large = Bytes::from(vec![b'x'; TARGET_BYTES_MAX + 1]);
        for (name, declaration) in [("", Bytes::new()), ("t3", large), (&"n".repeat(300)[..], Bytes::new())] {
            let refused = targets.apply(&TargetChange::Add { name: name.to_owned(), declaration });
            assert!(matches!(refused, Err(Rejection::TargetTooLarge { .. })), "{refused:?}");
        }
        assert_eq!(targets, before);
    }
}
