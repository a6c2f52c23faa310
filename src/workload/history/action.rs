//! What clients ask for: the actions of a history.
//!
//! Guarantees: what [`Operation::validate`](super::Operation::validate) says of actions, which is what the types allow and no
//! history may hold. Leaves out: what comes of them (`answer`, `operation`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Write a value.
    Put(Put),
    /// Remove a key.
    Delete(Delete),
    /// Read a key.
    Get(Get),
    /// Read a page of the keys with a prefix.
    List(List),
    /// Several at once.
    Txn(Txn),
}

/// A write of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// The key.
    pub key: String,
    /// A value that is written to this key once in the whole history.
    pub value: String,
    /// Only if the key is at this mod revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Only if there is no such key.
    #[serde(default, skip_serializing_if = "is_false")]
    pub if_absent: bool,
}

/// A removal of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// The key.
    pub key: String,
    /// Only if the key is at this mod revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
}

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Sees all that was acknowledged before it was sent.
    #[default]
    Linearizable,
    /// Sees all that was acknowledged longer ago than `max_staleness_ms` when it was sent.
    Bounded,
    /// Sees some state that once was the newest.
    Stale,
}

/// A read of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// The key.
    pub key: String,
    /// How fresh the answer has to be.
    #[serde(default, skip_serializing_if = "is_default")]
    pub consistency: Consistency,
    /// With [`Consistency::Bounded`], and only there: the bound, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_staleness_ms: Option<u64>,
    /// The answer must not be from before this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_revision: Option<u64>,
    /// The state at this revision is asked for, and no newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_revision: Option<u64>,
}

/// A read of one page of the keys with a prefix, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// What the keys begin with.
    pub prefix: String,
    /// The most records of the page.
    pub limit: u64,
    /// The operation that read the page before; `None` for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<u64>,
    /// As in [`Get`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub consistency: Consistency,
    /// As in [`Get`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_staleness_ms: Option<u64>,
    /// As in [`Get`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_revision: Option<u64>,
    /// As in [`Get`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_revision: Option<u64>,
}

/// Comparisons, and what is done if all of them hold, or else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Txn {
    /// What must hold for `success`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compare: Vec<Compare>,
    /// Done if all comparisons hold. A key is written in it once at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub success: Vec<TxnOp>,
    /// Done if one of them does not. A key is written in it once at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failure: Vec<TxnOp>,
}

/// A comparison: the property of a key on the left, the operand on the right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The key. One that is absent has 0 in every number, and no value that any comparison with a value holds for.
    pub key: String,
    /// Which property.
    pub target: Target,
    /// How it is compared.
    pub op: Comparison,
    /// With what: a text for [`Target::Value`], a number for the others.
    pub value: Operand,
}

/// A property of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Its value.
    Value,
    /// How many revisions have written it since it was created.
    Version,
    /// The revision that created it.
    CreateRevision,
    /// The revision that wrote it last.
    ModRevision,
}

/// How two things are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Comparison {
    /// Equal.
    #[serde(rename = "==")]
    Equal,
    /// Not equal.
    #[serde(rename = "!=")]
    NotEqual,
    /// Less.
    #[serde(rename = "<")]
    Less,
    /// Greater.
    #[serde(rename = ">")]
    Greater,
    /// Less or equal.
    #[serde(rename = "<=")]
    LessOrEqual,
    /// Greater or equal.
    #[serde(rename = ">=")]
    GreaterOrEqual,
}

impl Comparison {
    /// Whether it holds for two things that are ordered like this.
    #[must_use]
    pub fn holds(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::Greater => ordering.is_gt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// What a property is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Operand {
    /// A version or revision.
    Number(u64),
    /// A value.
    Text(String),
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TxnOp {
    /// Write a value that is written to this key once in the whole history.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Read a key; sees what the steps before it have done.
    Get {
        /// The key.
        key: String,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: String,
    },
}

impl TxnOp {
    /// The key it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Get { key } | Self::Delete { key } => key,
        }
    }
}

/// How fresh a read had to be, of whichever kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freshness {
    /// The consistency.
    pub consistency: Consistency,
    /// The bound of a bounded read, in milliseconds.
    pub max_staleness_ms: Option<u64>,
    /// The least revision.
    pub min_revision: Option<u64>,
    /// The very revision.
    pub at_revision: Option<u64>,
}

impl Action {
    /// Its name in files and reports.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Put(Put { if_revision: None, if_absent: false, .. }) => "put",
            Self::Put(_) => "conditional put",
            Self::Delete(Delete { if_revision: None, .. }) => "delete",
            Self::Delete(_) => "conditional delete",
            Self::Get(Get { at_revision: Some(_), .. }) => "get of the past",
            Self::Get(Get { consistency: Consistency::Linearizable, .. }) => "get",
            Self::Get(Get { consistency: Consistency::Bounded, .. }) => "bounded get",
            Self::Get(Get { consistency: Consistency::Stale, .. }) => "stale get",
            Self::List(_) => "list",
            Self::Txn(_) => "transaction",
        }
    }

    /// Whether it can change anything.
    #[must_use]
    pub fn writes(&self) -> bool {
        let writes = |ops: &[TxnOp]| ops.iter().any(|op| !matches!(op, TxnOp::Get { .. }));
        match self {
            Self::Put(_) | Self::Delete(_) => true,
            Self::Get(_) | Self::List(_) => false,
            Self::Txn(txn) => writes(&txn.success) || writes(&txn.failure),
        }
    }

    /// How fresh the answer must be, if it is a get or a list.
    #[must_use]
    pub fn freshness(&self) -> Option<Freshness> {
        match self {
            Self::Get(Get { consistency, max_staleness_ms, min_revision, at_revision, .. })
            | Self::List(List { consistency, max_staleness_ms, min_revision, at_revision, .. }) => Some(Freshness {
                consistency: *consistency,
                max_staleness_ms: *max_staleness_ms,
                min_revision: *min_revision,
                at_revision: *at_revision,
            }),
            Self::Put(_) | Self::Delete(_) | Self::Txn(_) => None,
        }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if let Some(freshness) = self.freshness() {
            let bounded = freshness.consistency == Consistency::Bounded;
            if bounded != freshness.max_staleness_ms.is_some() {
                return Err("max_staleness_ms goes with a bounded read, and a bounded read with it".to_owned());
            }
        }
        match self {
            Self::Put(put) if put.if_absent && put.if_revision.is_some() => {
                Err("a put is either if_absent or if_revision, not both".to_owned())
            }
            Self::List(list) if list.limit == 0 => Err("a page has at least one record; limit is 0".to_owned()),
            Self::Txn(txn) => txn.validate(),
            Self::Put(_) | Self::Delete(_) | Self::Get(_) | Self::List(_) => Ok(()),
        }
    }
}

impl Txn {
    fn validate(&self) -> Result<(), String> {
        for branch in [&self.success, &self.failure] {
            let mut written = BTreeSet::new();
            for op in branch.iter().filter(|op| !matches!(op, TxnOp::Get { .. })) {
                if !written.insert(op.key()) {
                    return Err(format!("the key {} is written twice in one branch of a transaction", op.key()));
                }
            }
        }
        for compare in &self.compare {
            if (compare.target == Target::Value) != matches!(compare.value, Operand::Text(_)) {
                return Err("a value is compared with a text, everything else with a number".to_owned());
            }
        }
        Ok(())
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_default(value: &Consistency) -> bool {
    *value == Consistency::default()
}
