//! What a judge finds wrong, in words that an engineer can act on.
//!
//! Guarantees: a violation names the operations that contradict each other and nothing beside, and what would have been
//! allowed. Leaves out: finding them.

use std::fmt;

use serde::Serialize;

use super::super::Operation;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// A read was answered from before something that had been told already.
    StaleRead,
    /// What was acknowledged is not there.
    LostWrite,
    /// A write was done more than once.
    AppliedTwice,
    /// Something is there that nobody wrote, or whose write was refused.
    Phantom,
    /// A key is there again that was deleted.
    Resurrected,
    /// One part of a transaction was seen without another.
    SplitTransaction,
    /// The pages of a listing, or the records of one page, are not of one revision.
    MixedPage,
    /// A bounded read was answered from further back than its bound, or than the answer itself says.
    BeyondBound,
    /// A write was there before it was sent.
    SeenTooEarly,
    /// A read went behind the revision that it had asked for at least.
    WentBack,
    /// Two writes were told the same revision.
    RevisionTwice,
    /// An answer contradicts the state at its revision in another way.
    WrongAnswer,
    /// An answer could not be read: a value that is no text, or something missing that it must tell.
    MalformedAnswer,
    /// No order of the operations explains the answers.
    NotLinearizable,
    /// It can't be judged: the search was given up, or the history does not say enough.
    Undecided,
}

impl ViolationKind {
    /// Its name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StaleRead => "stale_read",
            Self::LostWrite => "lost_write",
            Self::AppliedTwice => "applied_twice",
            Self::Phantom => "phantom",
            Self::Resurrected => "resurrected",
            Self::SplitTransaction => "split_transaction",
            Self::MixedPage => "mixed_page",
            Self::BeyondBound => "beyond_bound",
            Self::SeenTooEarly => "seen_too_early",
            Self::WentBack => "went_back",
            Self::RevisionTwice => "revision_twice",
            Self::WrongAnswer => "wrong_answer",
            Self::MalformedAnswer => "malformed_answer",
            Self::NotLinearizable => "not_linearizable",
            Self::Undecided => "undecided",
        }
    }
}

/// Something that is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}", self.line())]
pub struct Violation {
    /// What kind of thing.
    pub kind: ViolationKind,
    /// The key, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What was seen, and what would have been allowed.
    pub message: String,
    /// The ids of the operations that it takes to see it.
    pub operations: Vec<u64>,
}

impl Violation {
    pub(super) fn new<'a>(
        kind: ViolationKind,
        key: Option<&str>,
        message: impl fmt::Display,
        operations: impl IntoIterator<Item = &'a Operation>,
    ) -> Self {
        let mut ids: Vec<u64> = operations.into_iter().map(|operation| operation.id).collect();
        ids.sort_unstable();
        ids.dedup();
        Self { kind, key: key.map(ToOwned::to_owned), message: message.to_string(), operations: ids }
    }

    fn line(&self) -> String {
        let key = self.key.as_ref().map_or_else(String::new, |key| format!("key {key}: "));
        format!("{}: {key}{}", self.kind.as_str(), self.message)
    }
}
