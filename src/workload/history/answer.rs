//! What clients are told: the answers of a history.
//!
//! Guarantees: an answer fits its action, in form. Leaves out: whether it is right (`judge`).

use serde::{Deserialize, Serialize};

use super::action::{Action, TxnOp};

/// An answer, by the kind of the action; [`Answer::Failed`] is that of a put or delete whose precondition did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a put.
    Put(PutAnswer),
    /// To a delete.
    Delete(DeleteAnswer),
    /// To a put or delete: not done, and what the key was at instead.
    Failed(FailedAnswer),
    /// To a get.
    Get(GetAnswer),
    /// To a list.
    List(ListAnswer),
    /// To a transaction.
    Txn(TxnAnswer),
}

/// What a put was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutAnswer {
    /// The revision at which it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The revision that created the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_revision: Option<u64>,
    /// How many revisions have written the key since, this one included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// What a delete was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteAnswer {
    /// The revision at which it was done; of a delete of what was not there, the newest at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Whether there was such a key.
    pub deleted: bool,
}

/// What a put or delete was told whose precondition did not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedAnswer {
    /// The newest revision at the moment at which the precondition was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The mod revision of the key then; `None` if there was no such key. Says nothing where `revision` is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mod_revision: Option<u64>,
}

/// What a get was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetAnswer {
    /// The revision whose state was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// How old the state was said to be at most, in milliseconds; `None` if nothing was said or proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staleness_ms: Option<u64>,
    /// What was found; `None` if there was no such key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
}

/// A value that was found, and where it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The value.
    pub value: String,
    /// The revision that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mod_revision: Option<u64>,
    /// The revision that created the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_revision: Option<u64>,
    /// How many revisions have written the key since it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// What a list was told: one page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListAnswer {
    /// The revision whose state was read.
    pub revision: u64,
    /// As in [`GetAnswer`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staleness_ms: Option<u64>,
    /// How many keys have the prefix, also beyond the page.
    pub count: u64,
    /// The page, in order.
    pub records: Vec<Listed>,
    /// Whether keys follow behind it.
    pub more: bool,
}

/// A key of a page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The key.
    pub key: String,
    /// As in [`Record`].
    pub value: String,
    /// As in [`Record`].
    pub mod_revision: u64,
    /// As in [`Record`].
    pub create_revision: u64,
    /// As in [`Record`].
    pub version: u64,
}

impl Listed {
    /// Without its key.
    #[must_use]
    pub fn record(&self) -> Record {
        Record {
            value: self.value.clone(),
            mod_revision: Some(self.mod_revision),
            create_revision: Some(self.create_revision),
            version: Some(self.version),
        }
    }
}

/// What a transaction was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnAnswer {
    /// The revision at which it was done; of one that changed nothing, the newest at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The answers to the steps of the branch that was done, in their order.
    pub responses: Vec<TxnResponse>,
}

/// The answer to one step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TxnResponse {
    /// To a put.
    Put {
        /// As in [`PutAnswer`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        create_revision: Option<u64>,
        /// As in [`PutAnswer`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    },
    /// To a get.
    Get {
        /// What was found; `None` if there was no such key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        record: Option<Record>,
    },
    /// To a delete.
    Delete {
        /// Whether there was such a key.
        deleted: bool,
    },
}

impl Answer {
    /// The revision that it names.
    #[must_use]
    pub const fn revision(&self) -> Option<u64> {
        match self {
            Self::Put(answer) => answer.revision,
            Self::Delete(answer) => answer.revision,
            Self::Failed(answer) => answer.revision,
            Self::Get(answer) => answer.revision,
            Self::List(answer) => Some(answer.revision),
            Self::Txn(answer) => answer.revision,
        }
    }

    /// How old the state behind a read was said to be at most, in milliseconds.
    #[must_use]
    pub const fn staleness_ms(&self) -> Option<u64> {
        match self {
            Self::Get(answer) => answer.staleness_ms,
            Self::List(answer) => answer.staleness_ms,
            Self::Put(_) | Self::Delete(_) | Self::Failed(_) | Self::Txn(_) => None,
        }
    }

    /// Whether an answer of this form can be one to this action.
    pub(super) fn fits(&self, action: &Action) -> bool {
        match (self, action) {
            (Self::Put(_), Action::Put(_))
            | (Self::Delete(_), Action::Delete(_))
            | (Self::Get(_), Action::Get(_))
            | (Self::List(_), Action::List(_)) => true,
            (Self::Failed(_), Action::Put(put)) => put.if_absent || put.if_revision.is_some(),
            (Self::Failed(_), Action::Delete(delete)) => delete.if_revision.is_some(),
            (Self::Txn(answer), Action::Txn(txn)) => {
                let branch = if answer.succeeded { &txn.success } else { &txn.failure };
                let fits = |(op, response): (&TxnOp, &TxnResponse)| {
                    matches!(
                        (op, response),
                        (TxnOp::Put { .. }, TxnResponse::Put { .. })
                            | (TxnOp::Get { .. }, TxnResponse::Get { .. })
                            | (TxnOp::Delete { .. }, TxnResponse::Delete { .. })
                    )
                };
                branch.len() == answer.responses.len() && branch.iter().zip(&answer.responses).all(fits)
            }
            _ => false,
        }
    }
}
