//! How a call can end without what was asked for.
//!
//! Guarantees: "refused", "unavailable" (nothing was changed, for sure), "done, but not all that was asked for" and "outcome
//! unknown" are different cases. Leaves
//! out: exit codes; those are the command line's.

use std::io;

use crate::api::model::{Code, Problem};

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no sense; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// The cluster said no, and would again: nothing was changed.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// Nobody could serve it within the time; nothing was changed.
    #[error("no endpoint could serve the request ({attempts} attempted): {last}")]
    Unavailable {
        /// How many requests were tried.
        attempts: u32,
        /// What the last one met.
        last: String,
        /// The last problem document that came back, if any.
        problem: Option<Box<Problem>>,
    },
    /// The write was applied; what else was asked for (to be off-site) was not had in time. Don't write again.
    #[error("{}", .0.detail)]
    Incomplete(Box<Problem>),
    /// The write may have been applied, now or later, or not at all. Read before writing again.
    #[error("the outcome of the write is not known: {why}; read before you write again")]
    OutcomeUnknown {
        /// What happened.
        why: String,
        /// The problem document, if one came back.
        problem: Option<Box<Problem>>,
    },
    /// What arrived is not what was sent.
    #[error("{0}")]
    Integrity(String),
    /// A file of this machine can't be written.
    #[error("can't write {}: {error}", .path.display())]
    Local {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl Error {
    /// The stable code of the problem behind this error, where the cluster sent one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(problem) | Self::Incomplete(problem) => Some(problem.code),
            Self::Unavailable { problem, .. } | Self::OutcomeUnknown { problem, .. } => {
                problem.as_ref().map(|problem| problem.code)
            }
            Self::Usage(_) | Self::Integrity(_) | Self::Local { .. } => None,
        }
    }
}
