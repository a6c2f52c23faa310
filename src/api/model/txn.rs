//! Transactions: request, answer, and the way from the one to the terms of the state machine and back to the other.
//!
//! Guarantees: a request that converts is valid in every limit of the contract. Leaves out: what a transaction does
//! (`state::apply`).

use std::borrow::Cow;

use bytes::Bytes;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde::{Deserialize, Serialize as DeriveSerialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::bytestring::{self, END, KEY, PREFIX, START, VALUE, number, number_if_any};
use super::kv::schema_of;
use super::problem::Invalid;
use super::{PutReply, Record};
use crate::state;
use crate::types::limits::{
    JSON_INTEGER_MAX, PAGE_RECORDS_DEFAULT, PAGE_RECORDS_MAX, TXN_BYTES_MAX, TXN_OPERATIONS_MAX,
};
use crate::types::{self, KeyRange, LeaseId, Revision};

/// Comparisons, and what is done if all of them hold or not.
#[derive(Debug, Clone, Default, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnRequest {
    /// All must hold for `success`. At most 1,024.
    #[serde(default)]
    pub compare: Vec<Compare>,
    /// Done in order if all comparisons hold (as they do if there are none). At most 1,024.
    #[serde(default)]
    pub success: Vec<TxnOp>,
    /// Done in order otherwise. At most 1,024.
    #[serde(default)]
    pub failure: Vec<TxnOp>,
}

/// One comparison: the key's property stands left of the operator, the operand right of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CompareFields")]
pub struct Compare {
    /// Whose property.
    pub key: Bytes,
    /// Which property, with the operand.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOperator,
}

/// A property and the operand it is compared to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// The value, bytewise; never holds on an absent key.
    Value(Bytes),
    /// The number of changes since the key was created; 0 if it is absent.
    Version(u64),
    /// The revision that created the key; 0 if it is absent.
    CreateRevision(u64),
    /// The revision that last changed the key; 0 if it is absent.
    ModRevision(u64),
    /// The lease the key is attached to; 0 for none.
    Lease(u64),
}

/// An operator of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
pub enum CompareOperator {
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

/// The names of the targets.
#[derive(Clone, Copy, DeriveSerialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TargetName {
    Value,
    Version,
    CreateRevision,
    ModRevision,
    Lease,
}

/// One comparison: the key's property stands left of the operator, the operand right of it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CompareFields {
    /// The key, where it is UTF-8.
    key: Option<String>,
    /// The key in base64, where it is not UTF-8.
    key_base64: Option<String>,
    /// Which property of the key; an absent key has version 0.
    #[schema(inline)]
    target: TargetName,
    /// How it is compared.
    #[schema(inline)]
    op: CompareOperator,
    /// The operand: a string where the target is `value`, a number otherwise.
    value: Option<serde_json::Value>,
    /// The operand in base64, where the target is `value` and it is not UTF-8.
    value_base64: Option<String>,
}

impl TryFrom<CompareFields> for Compare {
    type Error = String;

    fn try_from(raw: CompareFields) -> Result<Self, String> {
        let key = bytestring::need(KEY, raw.key, raw.key_base64)?;
        if let TargetName::Value = raw.target {
            let plain = match raw.value {
                None => None,
                Some(serde_json::Value::String(text)) => Some(text),
                Some(_) => return Err("`value` must be a string where the target is `value`".to_owned()),
            };
            let value = bytestring::need(VALUE, plain, raw.value_base64)?;
            return Ok(Self { key, target: CompareTarget::Value(value), op: raw.op });
        }
        if raw.value_base64.is_some() {
            return Err("`value_base64` is allowed only where the target is `value`".to_owned());
        }
        let operand = raw.value.as_ref().and_then(serde_json::Value::as_u64).filter(|value| *value <= JSON_INTEGER_MAX);
        let operand = operand.ok_or_else(|| {
            format!("`value` must be a whole number from 0 to {JSON_INTEGER_MAX} where the target is not `value`")
        })?;
        let target = match raw.target {
            TargetName::Version => CompareTarget::Version(operand),
            TargetName::CreateRevision => CompareTarget::CreateRevision(operand),
            TargetName::ModRevision => CompareTarget::ModRevision(operand),
            TargetName::Lease | TargetName::Value => CompareTarget::Lease(operand),
        };
        Ok(Self { key, target, op: raw.op })
    }
}

impl Serialize for Compare {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Compare", 4)?;
        bytestring::put(&mut out, KEY, &self.key)?;
        let (name, operand) = match &self.target {
            CompareTarget::Value(value) => {
                bytestring::put(&mut out, VALUE, value)?;
                (TargetName::Value, None)
            }
            CompareTarget::Version(value) => (TargetName::Version, Some(*value)),
            CompareTarget::CreateRevision(value) => (TargetName::CreateRevision, Some(*value)),
            CompareTarget::ModRevision(value) => (TargetName::ModRevision, Some(*value)),
            CompareTarget::Lease(value) => (TargetName::Lease, Some(*value)),
        };
        out.serialize_field("target", &name)?;
        out.serialize_field("op", &self.op)?;
        if let Some(operand) = operand {
            out.serialize_field("value", &operand)?;
        }
        out.end()
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TxnOp {
    /// Set a value.
    Put(TxnPut),
    /// Read; sees what earlier operations of the transaction did.
    Get(TxnGet),
    /// Remove; a key that is absent is no error.
    Delete(TxnDelete),
}

/// A put inside a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TxnPutFields")]
pub struct TxnPut {
    /// The key.
    pub key: Bytes,
    /// Its new value.
    pub value: Bytes,
    /// The lease it is attached to; 0 for none, the only choice in this version.
    pub lease: u64,
}

/// A put inside a transaction.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TxnPutFields {
    /// The key, where it is UTF-8.
    key: Option<String>,
    /// The key in base64, where it is not UTF-8.
    key_base64: Option<String>,
    /// The value, where it is UTF-8.
    value: Option<String>,
    /// The value in base64, where it is not UTF-8.
    value_base64: Option<String>,
    /// Must be 0 or absent: leases are not available in this version.
    #[serde(default, deserialize_with = "number")]
    #[schema(required = false)]
    lease: u64,
}

impl TryFrom<TxnPutFields> for TxnPut {
    type Error = String;

    fn try_from(raw: TxnPutFields) -> Result<Self, String> {
        Ok(Self {
            key: bytestring::need(KEY, raw.key, raw.key_base64)?,
            value: bytestring::need(VALUE, raw.value, raw.value_base64)?,
            lease: raw.lease,
        })
    }
}

impl Serialize for TxnPut {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("TxnPut", 3)?;
        bytestring::put(&mut out, KEY, &self.key)?;
        bytestring::put(&mut out, VALUE, &self.value)?;
        if self.lease != 0 {
            out.serialize_field("lease", &self.lease)?;
        }
        out.end()
    }
}

/// What a read or a delete is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// One key.
    Key(Bytes),
    /// Every key with this prefix; the empty one is that of every key.
    Prefix(Bytes),
    /// Every key from `start` (empty: the first) up to, not including, `end` (`None` or empty: no upper bound).
    Range {
        /// The inclusive lower bound.
        start: Bytes,
        /// The exclusive upper bound.
        end: Option<Bytes>,
    },
}

/// A read inside a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TxnGetFields")]
pub struct TxnGet {
    /// Which keys.
    pub selector: Selector,
    /// The most records, 1 to 10,000; 1,000 if left out.
    pub limit: Option<u64>,
    /// Leave values out.
    pub keys_only: bool,
}

/// A read inside a transaction: `key`, `prefix`, or `start` and/or `end`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TxnGetFields {
    /// One key, where it is UTF-8.
    key: Option<String>,
    /// One key in base64.
    key_base64: Option<String>,
    /// Every key with this prefix.
    prefix: Option<String>,
    /// The prefix in base64.
    prefix_base64: Option<String>,
    /// The inclusive lower bound of a range.
    start: Option<String>,
    /// The lower bound in base64.
    start_base64: Option<String>,
    /// The exclusive upper bound of a range; empty for none.
    end: Option<String>,
    /// The upper bound in base64.
    end_base64: Option<String>,
    /// The most records, 1 to 10,000; 1,000 if left out.
    #[serde(default, deserialize_with = "number_if_any")]
    limit: Option<u64>,
    /// Leave values out.
    #[serde(default)]
    #[schema(required = false)]
    keys_only: bool,
}

/// A delete inside a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TxnDeleteFields")]
pub struct TxnDelete {
    /// Which keys.
    pub selector: Selector,
}

/// A delete inside a transaction: `key`, `prefix`, or `start` and `end`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TxnDeleteFields {
    /// One key, where it is UTF-8.
    key: Option<String>,
    /// One key in base64.
    key_base64: Option<String>,
    /// Every key with this prefix.
    prefix: Option<String>,
    /// The prefix in base64.
    prefix_base64: Option<String>,
    /// The inclusive lower bound of a range.
    start: Option<String>,
    /// The lower bound in base64.
    start_base64: Option<String>,
    /// The exclusive upper bound of a range; empty for none.
    end: Option<String>,
    /// The upper bound in base64.
    end_base64: Option<String>,
}

impl Selector {
    /// Puts together what was given under the four names. A delete must name both bounds of a range, so that a
    /// forgotten one does not empty the store.
    ///
    /// # Errors
    /// What was missing or too much, in words.
    pub(crate) fn of_parts(
        key: Option<Bytes>,
        prefix: Option<Bytes>,
        start: Option<Bytes>,
        end: Option<Bytes>,
        both_bounds: bool,
    ) -> Result<Option<Self>, String> {
        match (key, prefix, start, end) {
            (None, None, None, None) => Ok(None),
            (Some(key), None, None, None) => Ok(Some(Self::Key(key))),
            (None, Some(prefix), None, None) => Ok(Some(Self::Prefix(prefix))),
            (None, None, Some(start), None) if !both_bounds => Ok(Some(Self::Range { start, end: None })),
            (None, None, None, Some(end)) if !both_bounds => {
                Ok(Some(Self::Range { start: Bytes::new(), end: Some(end) }))
            }
            (None, None, Some(start), Some(end)) => Ok(Some(Self::Range { start, end: Some(end) })),
            (None, None, ..) => {
                Err("a range delete needs both `start` and `end`; an empty one is the end of the key space".to_owned())
            }
            _ => Err("give either `key`, or `prefix`, or `start` and `end`, not several of them".to_owned()),
        }
    }

    /// The range of keys, or the key, in the terms of the state machine.
    ///
    /// # Errors
    /// `invalid_key` or `invalid_range`.
    pub fn into_state(self) -> Result<types::Selector, Invalid> {
        Ok(match self {
            Self::Key(key) => types::Selector::Key(types::Key::new(key).map_err(Invalid::key)?),
            Self::Prefix(prefix) => types::Selector::Range(KeyRange::prefix(prefix).map_err(Invalid::range)?),
            Self::Range { start, end } => {
                let end = end.filter(|end| !end.is_empty());
                types::Selector::Range(KeyRange::new(start, end).map_err(Invalid::range)?)
            }
        })
    }

    fn put<S: SerializeStruct>(&self, out: &mut S) -> Result<(), S::Error> {
        match self {
            Self::Key(key) => bytestring::put(out, KEY, key),
            Self::Prefix(prefix) => bytestring::put(out, PREFIX, prefix),
            Self::Range { start, end } => {
                bytestring::put(out, START, start)?;
                bytestring::put(out, END, end.as_deref().unwrap_or_default())
            }
        }
    }
}

impl TryFrom<TxnGetFields> for TxnGet {
    type Error = String;

    fn try_from(raw: TxnGetFields) -> Result<Self, String> {
        let key = bytestring::take(KEY, raw.key, raw.key_base64)?;
        let prefix = bytestring::take(PREFIX, raw.prefix, raw.prefix_base64)?;
        let start = bytestring::take(START, raw.start, raw.start_base64)?;
        let end = bytestring::take(END, raw.end, raw.end_base64)?;
        let selector = Selector::of_parts(key, prefix, start, end, false)?;
        let selector = selector.ok_or("a get needs `key`, `prefix`, or `start` and `end`")?;
        Ok(Self { selector, limit: raw.limit, keys_only: raw.keys_only })
    }
}

impl TryFrom<TxnDeleteFields> for TxnDelete {
    type Error = String;

    fn try_from(raw: TxnDeleteFields) -> Result<Self, String> {
        let key = bytestring::take(KEY, raw.key, raw.key_base64)?;
        let prefix = bytestring::take(PREFIX, raw.prefix, raw.prefix_base64)?;
        let start = bytestring::take(START, raw.start, raw.start_base64)?;
        let end = bytestring::take(END, raw.end, raw.end_base64)?;
        let selector = Selector::of_parts(key, prefix, start, end, true)?;
        let selector = selector.ok_or("a delete needs `key`, `prefix`, or `start` and `end`")?;
        Ok(Self { selector })
    }
}

impl Serialize for TxnGet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("TxnGet", 3)?;
        self.selector.put(&mut out)?;
        if let Some(limit) = self.limit {
            out.serialize_field("limit", &limit)?;
        }
        if self.keys_only {
            out.serialize_field("keys_only", &true)?;
        }
        out.end()
    }
}

impl Serialize for TxnDelete {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("TxnDelete", 2)?;
        self.selector.put(&mut out)?;
        out.end()
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
pub struct TxnReply {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The revision of the store behind the transaction: its own, if it changed anything.
    pub revision: u64,
    /// One answer per operation of the branch that was taken, in order.
    pub responses: Vec<TxnOpReply>,
}

/// The answer to one operation.
#[derive(Debug, Clone, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TxnOpReply {
    /// To a put: what the key now carries.
    Put(PutReply),
    /// To a get: what was found.
    Get(GetReply),
    /// To a delete: how much was removed.
    Delete(DeletedReply),
}

/// What a get inside a transaction found.
#[derive(Debug, Clone, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
pub struct GetReply {
    /// How many keys match, also beyond the limit.
    pub count: u64,
    /// The records in key order, at most as many as asked for.
    pub items: Vec<Record>,
}

/// What a delete inside a transaction removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
pub struct DeletedReply {
    /// How many keys were removed.
    pub deleted: u64,
}

schema_of!(Compare, CompareFields, "Compare");
schema_of!(TxnPut, TxnPutFields, "TxnPut");
schema_of!(TxnGet, TxnGetFields, "TxnGet");
schema_of!(TxnDelete, TxnDeleteFields, "TxnDelete");

impl TxnRequest {
    /// The transaction in the terms of the state machine, every limit checked. `value_bytes_max` is the largest value
    /// the node takes, in bytes.
    ///
    /// # Errors
    /// [`Invalid`] with what was wrong and where.
    pub fn into_txn(self, value_bytes_max: usize) -> Result<state::Txn, Invalid> {
        let counts =
            [("compare", self.compare.len()), ("success", self.success.len()), ("failure", self.failure.len())];
        for (name, count) in counts {
            if count > TXN_OPERATIONS_MAX {
                let detail = format!("`{name}` has {count} entries; at most {TXN_OPERATIONS_MAX} are allowed");
                return Err(Invalid::request(detail));
            }
        }
        let txn = state::Txn {
            compares: convert("compare", self.compare, Compare::into_state)?,
            success: convert("success", self.success, |op| op.into_state(value_bytes_max))?,
            failure: convert("failure", self.failure, |op| op.into_state(value_bytes_max))?,
        };
        let bytes = txn_bytes(&txn);
        if bytes > TXN_BYTES_MAX {
            let detail =
                format!("the transaction holds {bytes} bytes of keys and values; at most {TXN_BYTES_MAX} are allowed");
            return Err(Invalid::too_large(detail));
        }
        Ok(txn)
    }
}

/// Converts a list; what is wrong is told with the place where it stands.
fn convert<T, U>(name: &str, list: Vec<T>, one: impl Fn(T) -> Result<U, Invalid>) -> Result<Vec<U>, Invalid> {
    let at = |(place, item)| {
        one(item).map_err(|invalid| Invalid { detail: format!("{name}[{place}]: {}", invalid.detail), ..invalid })
    };
    list.into_iter().enumerate().map(at).collect()
}

/// Bytes of keys and values in a transaction.
fn txn_bytes(txn: &state::Txn) -> usize {
    let selector = |selector: &types::Selector| match selector {
        types::Selector::Key(key) => key.as_bytes().len(),
        types::Selector::Range(range) => range.start().len() + range.end().map_or(0, Bytes::len),
    };
    let op = |op: &state::TxnOp| match op {
        state::TxnOp::Put { key, value, .. } => key.as_bytes().len() + value.len(),
        state::TxnOp::Get { selector: which, .. } | state::TxnOp::Delete { selector: which } => selector(which),
    };
    let compare = |compare: &state::Compare| match &compare.target {
        state::CompareTarget::Value(value) => compare.key.as_bytes().len() + value.len(),
        _ => compare.key.as_bytes().len(),
    };
    txn.compares.iter().map(compare).chain(txn.success.iter().chain(&txn.failure).map(op)).sum()
}

impl Compare {
    fn into_state(self) -> Result<state::Compare, Invalid> {
        let target = match self.target {
            CompareTarget::Value(value) => state::CompareTarget::Value(value),
            CompareTarget::Version(version) => state::CompareTarget::Version(version),
            CompareTarget::CreateRevision(revision) => state::CompareTarget::CreateRevision(Revision::new(revision)),
            CompareTarget::ModRevision(revision) => state::CompareTarget::ModRevision(Revision::new(revision)),
            CompareTarget::Lease(lease) => state::CompareTarget::Lease(LeaseId::new(lease)),
        };
        let operator = match self.op {
            CompareOperator::Equal => state::CompareOperator::Equal,
            CompareOperator::NotEqual => state::CompareOperator::NotEqual,
            CompareOperator::Less => state::CompareOperator::Less,
            CompareOperator::Greater => state::CompareOperator::Greater,
            CompareOperator::LessOrEqual => state::CompareOperator::LessOrEqual,
            CompareOperator::GreaterOrEqual => state::CompareOperator::GreaterOrEqual,
        };
        Ok(state::Compare { key: types::Key::new(self.key).map_err(Invalid::key)?, target, operator })
    }
}

impl TxnOp {
    fn into_state(self, value_bytes_max: usize) -> Result<state::TxnOp, Invalid> {
        match self {
            Self::Put(put) => {
                if put.lease != 0 {
                    return Err(Invalid::request("leases are not available in this version; leave `lease` out"));
                }
                if put.value.len() > value_bytes_max {
                    let detail =
                        format!("the value has {} bytes; at most {value_bytes_max} are allowed", put.value.len());
                    return Err(Invalid::too_large(detail));
                }
                let key = types::Key::new(put.key).map_err(Invalid::key)?;
                Ok(state::TxnOp::Put { key, value: put.value, lease: LeaseId::ZERO })
            }
            Self::Get(get) => {
                let limit = get.limit.unwrap_or(PAGE_RECORDS_DEFAULT as u64);
                let allowed =
                    (1..=PAGE_RECORDS_MAX as u64).contains(&limit).then(|| u32::try_from(limit).ok()).flatten();
                let limit = allowed.ok_or_else(|| {
                    Invalid::request(format!("`limit` is {limit}; 1 to {PAGE_RECORDS_MAX} are allowed"))
                })?;
                Ok(state::TxnOp::Get { selector: get.selector.into_state()?, limit, keys_only: get.keys_only })
            }
            Self::Delete(delete) => Ok(state::TxnOp::Delete { selector: delete.selector.into_state()? }),
        }
    }
}

impl From<state::TxnReply> for TxnReply {
    fn from(reply: state::TxnReply) -> Self {
        Self {
            succeeded: reply.succeeded,
            revision: reply.revision.get(),
            responses: reply.responses.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<state::OpReply> for TxnOpReply {
    fn from(reply: state::OpReply) -> Self {
        match reply {
            state::OpReply::Put { key, meta } => Self::Put(PutReply::from_state(key, meta)),
            state::OpReply::Get { records, count, keys_only } => {
                let items = records.into_iter().map(|record| Record::from_state(record, keys_only)).collect();
                Self::Get(GetReply { count, items })
            }
            state::OpReply::Delete { deleted } => Self::Delete(DeletedReply { deleted }),
        }
    }
}
