//! Records, listings and the answers to single puts and deletes.
//!
//! Guarantees: a record of a `keys_only` listing carries no value at all, which is told apart from an empty one. Leaves
//! out: the raw-body form of a value, which is no JSON.

use std::borrow::Cow;

use bytes::Bytes;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde::{Deserialize, Serialize as DeriveSerialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::bytestring::{self, KEY, VALUE};
use crate::state;
use crate::types::Key;

/// A key with its value and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RecordFields")]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// The value; `None` where only keys were asked for.
    pub value: Option<Bytes>,
    /// The revision that created the key.
    pub create_revision: u64,
    /// The revision that wrote this value; its `ETag`.
    pub mod_revision: u64,
    /// How many revisions have written the key since it was created.
    pub version: u64,
    /// The lease it is attached to; 0 for none.
    pub lease: u64,
}

/// A key with its value and where that comes from.
#[derive(Deserialize, ToSchema)]
struct RecordFields {
    /// The key, where it is UTF-8.
    key: Option<String>,
    /// The key in base64, where it is not UTF-8.
    key_base64: Option<String>,
    /// The value, where it is UTF-8. Neither this nor `value_base64` is there if only keys were asked for.
    value: Option<String>,
    /// The value in base64, where it is not UTF-8.
    value_base64: Option<String>,
    /// The revision that created the key.
    create_revision: u64,
    /// The revision that wrote this value; its `ETag`.
    mod_revision: u64,
    /// How many revisions have written the key since it was created; 1 for the first.
    version: u64,
    /// The lease it is attached to; 0 for none.
    lease: u64,
}

impl TryFrom<RecordFields> for Record {
    type Error = String;

    fn try_from(raw: RecordFields) -> Result<Self, String> {
        Ok(Self {
            key: bytestring::need(KEY, raw.key, raw.key_base64)?,
            value: bytestring::take(VALUE, raw.value, raw.value_base64)?,
            create_revision: raw.create_revision,
            mod_revision: raw.mod_revision,
            version: raw.version,
            lease: raw.lease,
        })
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Record", 6)?;
        bytestring::put(&mut out, KEY, &self.key)?;
        if let Some(value) = &self.value {
            bytestring::put(&mut out, VALUE, value)?;
        }
        out.serialize_field("create_revision", &self.create_revision)?;
        out.serialize_field("mod_revision", &self.mod_revision)?;
        out.serialize_field("version", &self.version)?;
        out.serialize_field("lease", &self.lease)?;
        out.end()
    }
}

impl Record {
    /// The record of the state machine, with or without its value.
    #[must_use]
    pub fn from_state(record: state::Record, keys_only: bool) -> Self {
        Self {
            key: record.key.into_bytes(),
            value: (!keys_only).then_some(record.value),
            create_revision: record.meta.create_revision.get(),
            mod_revision: record.meta.mod_revision.get(),
            version: record.meta.version,
            lease: record.meta.lease.get(),
        }
    }
}

/// What a put answers: the key and what it now carries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PutReplyFields")]
pub struct PutReply {
    /// The key that was written.
    pub key: Bytes,
    /// The revision that created the key; equal to `mod_revision` if this put did.
    pub create_revision: u64,
    /// The revision of this put; its `ETag`.
    pub mod_revision: u64,
    /// How many revisions have written the key since it was created; 1 if this put created it.
    pub version: u64,
    /// The lease it is attached to; 0 for none.
    pub lease: u64,
}

/// What a put answers: the key and what it now carries.
#[derive(Deserialize, ToSchema)]
struct PutReplyFields {
    /// The key, where it is UTF-8.
    key: Option<String>,
    /// The key in base64, where it is not UTF-8.
    key_base64: Option<String>,
    /// The revision that created the key; equal to `mod_revision` if this put did.
    create_revision: u64,
    /// The revision of this put; its `ETag`.
    mod_revision: u64,
    /// How many revisions have written the key since it was created; 1 if this put created it.
    version: u64,
    /// The lease it is attached to; 0 for none.
    lease: u64,
}

impl TryFrom<PutReplyFields> for PutReply {
    type Error = String;

    fn try_from(raw: PutReplyFields) -> Result<Self, String> {
        Ok(Self {
            key: bytestring::need(KEY, raw.key, raw.key_base64)?,
            create_revision: raw.create_revision,
            mod_revision: raw.mod_revision,
            version: raw.version,
            lease: raw.lease,
        })
    }
}

impl Serialize for PutReply {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("PutReply", 5)?;
        bytestring::put(&mut out, KEY, &self.key)?;
        out.serialize_field("create_revision", &self.create_revision)?;
        out.serialize_field("mod_revision", &self.mod_revision)?;
        out.serialize_field("version", &self.version)?;
        out.serialize_field("lease", &self.lease)?;
        out.end()
    }
}

impl PutReply {
    /// What a put of the state machine answered.
    #[must_use]
    pub fn from_state(key: Key, meta: state::RecordMeta) -> Self {
        Self {
            key: key.into_bytes(),
            create_revision: meta.create_revision.get(),
            mod_revision: meta.mod_revision.get(),
            version: meta.version,
            lease: meta.lease.get(),
        }
    }
}

/// What a delete answers.
#[derive(Debug, Clone, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
pub struct DeleteReply {
    /// How many keys were removed.
    pub deleted: u64,
    /// The revision of the store behind the delete.
    pub revision: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, DeriveSerialize, Deserialize, ToSchema)]
pub struct Listing {
    /// The revision every page of this listing is read at.
    pub revision: u64,
    /// How many keys the whole range holds at that revision, also beyond this page.
    pub count: u64,
    /// The records of this page, in order.
    pub items: Vec<Record>,
    /// Continues behind the last record; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Types that are written by hand show the schema of the fields they are read from.
macro_rules! schema_of {
    ($type:ty, $fields:ty, $name:literal) => {
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                <$fields>::schema()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                <$fields>::schemas(schemas);
            }
        }
    };
}
pub(super) use schema_of;

schema_of!(Record, RecordFields, "Record");
schema_of!(PutReply, PutReplyFields, "PutReply");
