//! What a history is made of: operations of clients, with what each was told and when.
//!
//! Guarantees: the same types stand in memory and, as JSON, in history files (docs/formats.md), where a field or variant that
//! is not known is refused; [`Operation::validate`] holds what the types allow and no history may hold. Leaves out: whether
//! the answers are right (`judge`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::answer::Answer;

/// Nanoseconds since the start of a recording, on one clock that all its clients share.
pub type Nanos = u64;

/// One operation of one client, sent once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its own within the history.
    pub id: u64,
    /// Who sent it. A client has one operation at a time.
    pub client: u32,
    /// The node it was sent to: a place in the list of the history's head.
    pub node: u32,
    /// When it was sent.
    pub called: Nanos,
    /// When its whole answer was there; `None` for one whose outcome is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<Nanos>,
    /// What was asked for.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// It was done, and answered.
    Done(Answer),
    /// It was surely not done and never will be.
    Refused(Cause),
    /// It may be done once, at any later time, or never.
    Unknown(Cause),
}

/// The code of an operation that was answered with something that makes no sense: a value that nobody can have written, or an
/// answer without what it must tell. Whether it was done is not known, but a store that is right does not answer so.
pub const MALFORMED_ANSWER: &str = "malformed_answer";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// The code of the problem, or how the connection failed.
    pub code: String,
}

impl Operation {
    /// Its answer, if it was done.
    #[must_use]
    pub const fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Done(answer) => Some(answer),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Whether it was answered with something that makes no sense: [`MALFORMED_ANSWER`].
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        matches!(&self.outcome, Outcome::Unknown(cause) if cause.code == MALFORMED_ANSWER)
    }

    /// Whether it may stand in a history as it is.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn validate(&self) -> Result<(), String> {
        match (self.returned, &self.outcome) {
            (Some(returned), _) if returned < self.called => {
                return Err(format!("it returned at {returned} ns, before it was called at {} ns", self.called));
            }
            (Some(_), Outcome::Unknown(_)) => {
                return Err("its outcome is unknown, so it must not have returned".to_owned());
            }
            (None, Outcome::Done(_) | Outcome::Refused(_)) => {
                return Err("it was done or refused, so `returned` must say when".to_owned());
            }
            _ => {}
        }
        self.action.validate()?;
        match self.answer() {
            Some(answer) if !answer.fits(&self.action) => {
                Err(format!("its answer is not one to a {}", self.action.kind()))
            }
            _ => Ok(()),
        }
    }
}

/// What it was, who sent it and when: for messages.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} ({} by client {} at node {}, ", self.id, self.action.kind(), self.client, self.node)?;
        match (self.returned, self.answer().and_then(Answer::revision)) {
            (None, _) => write!(f, "{} s, outcome unknown)", seconds(self.called)),
            (Some(returned), None) => write!(f, "{} to {} s)", seconds(self.called), seconds(returned)),
            (Some(returned), Some(revision)) => {
                write!(f, "{} to {} s, revision {revision})", seconds(self.called), seconds(returned))
            }
        }
    }
}

/// A moment for people: seconds with six decimals.
pub(super) fn seconds(at: Nanos) -> String {
    format!("{}.{:06}", at / 1_000_000_000, at % 1_000_000_000 / 1_000)
}
