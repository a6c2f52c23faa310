//! What the endpoints below `/v1/backups`, and `GET /v1/alarms`, take and answer.
//!
//! Guarantees: what is not known is `null`, never a made-up zero; no secret stands in a URL. Leaves out: how it is found
//! out (`node::archiving`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::node;
use crate::types::{NodeId, WallTime};

/// All places for backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupsReply {
    /// By name.
    pub backups: Vec<BackupInfo>,
}

/// One place for backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupInfo {
    /// Its name.
    pub name: String,
    /// Which store.
    pub url: String,
    /// Whether what is there is encrypted.
    pub encrypted: bool,
    /// Whether it counts for writes with `durability=offsite`.
    pub durable: bool,
    /// The id of the node that archives; `null` if none can.
    pub active: Option<u64>,
    /// The ids of the nodes that could, and were heard from lately.
    pub candidates: Vec<u64>,
    /// Last entry of the log that is archived.
    pub archived_index: Option<u64>,
    /// The revision that is surely archived.
    pub archived_revision: Option<u64>,
    /// What was written in this time may not be archived yet, in milliseconds.
    pub rpo_ms: Option<u64>,
    /// The newest whole state that is archived.
    pub full: Option<FullInfo>,
    /// Whether one is on its way.
    pub full_under_way: bool,
    /// Objects in the archive; what was dropped and is not deleted yet does not count.
    pub objects: u64,
    /// Their length as they are stored, in bytes.
    pub bytes: u64,
    /// Why nodes fail to archive, if some do.
    pub troubles: Vec<TroubleInfo>,
    /// Where it comes from.
    pub origin: BackupOrigin,
    /// What is declared, as `POST /v1/backups` took it; `null` for a place of the configuration.
    #[schema(value_type = Option<BackupDeclaration>)]
    pub declared: Option<Value>,
    /// Why nobody archives there at all, such as that it was declared in the cluster that this one was restored from.
    pub idle: Option<String>,
    /// What the checks of the archive have found; `null` until they were looked at.
    pub proofs: Option<ProofsInfo>,
    /// Tries to archive that failed, on all nodes that told, since each began.
    pub errors: u64,
    /// Entries of the log that are kept until they are archived; `null` where the log is not archived.
    pub held_entries: Option<u64>,
}

/// Where a place for backups comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupOrigin {
    /// It stands in the configuration of nodes, and is changed there.
    Config,
    /// It was declared through this interface.
    Api,
}

/// What the checks of an archive have found. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofsInfo {
    /// The end of the last verification without damage, however deep.
    pub verified_unix_ms: Option<u64>,
    /// The end of the last one that read everything.
    pub read_unix_ms: Option<u64>,
    /// The end of the last drill that passed: a point was restored, started and read from.
    pub drilled_unix_ms: Option<u64>,
    /// What the last check found that did not pass.
    pub failed: Option<FailedInfo>,
    /// Whether the node that archives makes drills; if not, they are made where the private key is.
    pub drills_here: bool,
    /// Why the last drill could not be made there, if it could not.
    pub drill_error: Option<String>,
}

/// A check that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailedInfo {
    /// When it ended, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// What it found first.
    pub finding: String,
}

/// A place for backups: the same as a `[[backup]]` block of the configuration. Credentials are referred to, never given.
/// docs/operations.md tells what each means and what it is where it is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackupDeclaration {
    /// Its name.
    pub name: String,
    /// Which store: `s3://`, `az://`, `gs://` or `file://`.
    pub url: String,
    /// Which way data goes: `out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// What goes there: `log` and `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<String>>,
    /// When whole states go there: five fields as cron has them, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// After which time what was written goes there, such as `1s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_interval: Option<String>,
    /// How much of it goes there earlier, such as `4MiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_bytes: Option<String>,
    /// Within which time objects of the log become one, such as `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge_interval: Option<String>,
    /// Public keys of those who may read; nobody means plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<Vec<String>>,
    /// Settings of the store that are no secret, by the names its cloud gives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
    /// A file of `NAME=VALUE` lines on each node, with more of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<String>,
    /// Settings by the name of the variable in each node's environment that holds them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_env: Option<BTreeMap<String, String>>,
    /// What everything but the newest entries may take of the line, such as `50MiB/s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<String>,
    /// Whether it counts for `durability=offsite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durable: Option<bool>,
    /// When it is verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<String>,
    /// How deep, 1 to 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_level: Option<u8>,
    /// A file of private keys on each node, for that and for drills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<String>,
    /// When a point of it is restored, started and read from, or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<String>,
    /// What is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub keep: Option<Value>,
    /// When the rest is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<String>,
}

/// What came of a change of what is declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupChangeReply {
    /// The place.
    pub name: String,
    /// Whether only the store was tried, and nothing changed.
    pub dry_run: bool,
    /// What is declared now, or would be; `null` if nothing is any more.
    #[schema(value_type = Option<BackupDeclaration>)]
    pub declared: Option<Value>,
    /// What the node that was asked found of the store; `null` if it was not tried, or can't be used.
    pub store: Option<StoreInfo>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// What was found of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreInfo {
    /// Whether an empty place has just become a repository.
    pub made: bool,
    /// Whether the credentials allow to delete, which only pruning needs; `null` if that was not tried.
    pub can_delete: Option<bool>,
    /// The clock of the store less that of the node, in milliseconds; `null` if that is not known.
    pub skew_ms: Option<i64>,
    /// The clusters that have an archive there, as folders are named.
    pub clusters: Vec<String>,
}

impl BackupChangeReply {
    /// What a node tells.
    #[must_use]
    pub fn of(changed: node::BackupChanged, dry_run: bool) -> Self {
        let store = changed.tried.map(|tried| StoreInfo {
            made: tried.made,
            can_delete: tried.can_delete,
            skew_ms: tried.skew_millis,
            clusters: tried.clusters.iter().map(|cluster| format!("{:016x}", cluster.get())).collect(),
        });
        let declared = changed.declared.as_deref().map(declared);
        Self { name: changed.name, dry_run, declared, store, warnings: changed.warnings }
    }
}

/// JSON that this cluster keeps.
fn declared(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_default()
}

/// A whole state in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FullInfo {
    /// Its revision.
    pub revision: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// Its length as it is stored, in bytes.
    pub bytes: u64,
}

/// Why a node fails to archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TroubleInfo {
    /// The id of the node.
    pub node: u64,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// What happened last.
    pub error: String,
}

/// An order to send a whole state was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupRunReply {
    /// The place.
    pub name: String,
    /// The id of the node that will do it.
    pub node: u64,
}

/// What an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlarmsReply {
    /// The alarms of all members that answered.
    pub alarms: Vec<AlarmInfo>,
    /// The names of members that did not answer; theirs are not known.
    pub silent: Vec<String>,
}

/// One thing that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlarmInfo {
    /// What kind it is; stable.
    pub name: String,
    /// What it is about, such as the name of a place for backups.
    pub subject: String,
    /// The name of the node that raised it.
    pub node: String,
    /// The id of that node.
    pub node_id: u64,
    /// Since when, by that node's clock, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// What is the matter.
    pub detail: String,
    /// What to do.
    pub action: String,
}

impl AlarmInfo {
    /// An alarm of a node.
    #[must_use]
    pub fn of(id: NodeId, node: &str, alarm: &node::Alarm) -> Self {
        Self {
            name: alarm.name.clone(),
            subject: alarm.subject.clone(),
            node: node.to_owned(),
            node_id: id.get(),
            since_unix_ms: alarm.since.get(),
            detail: alarm.detail.clone(),
            action: alarm.action.clone(),
        }
    }
}

impl From<node::PlaceStatus> for BackupInfo {
    fn from(place: node::PlaceStatus) -> Self {
        let ids = |ids: &[NodeId]| ids.iter().map(|id| id.get()).collect();
        let trouble = |(node, trouble): (NodeId, node::Trouble)| TroubleInfo {
            node: node.get(),
            since_unix_ms: trouble.since.get(),
            error: trouble.error,
        };
        Self {
            name: place.name,
            url: place.url,
            encrypted: place.encrypted,
            durable: place.durable,
            active: place.active.map(NodeId::get),
            candidates: ids(&place.candidates),
            archived_index: place.archived.map(|archived| archived.position.index.get()),
            archived_revision: place.archived.map(|archived| archived.revision.get()),
            rpo_ms: place.behind.map(|behind| u64::try_from(behind.as_millis()).unwrap_or(u64::MAX)),
            full: place.full.map(|full| FullInfo {
                revision: full.revision.get(),
                time_unix_ms: full.at.get(),
                bytes: full.bytes,
            }),
            full_under_way: place.full_under_way,
            objects: place.objects.0,
            bytes: place.objects.1,
            troubles: place.troubles.into_iter().map(trouble).collect(),
            origin: match place.origin {
                node::BackupOrigin::Config => BackupOrigin::Config,
                node::BackupOrigin::Api => BackupOrigin::Api,
            },
            declared: place.declared.as_deref().map(declared),
            idle: place.idle,
            proofs: place.proofs.map(ProofsInfo::from),
            errors: place.errors,
            held_entries: place.held_entries,
        }
    }
}

impl From<node::Proofs> for ProofsInfo {
    fn from(proofs: node::Proofs) -> Self {
        let ms = |at: Option<WallTime>| at.map(WallTime::get);
        Self {
            verified_unix_ms: ms(proofs.verified),
            read_unix_ms: ms(proofs.read),
            drilled_unix_ms: ms(proofs.drilled),
            failed: proofs.failed.map(|(at, finding)| FailedInfo { time_unix_ms: at.get(), finding }),
            drills_here: proofs.drills_here,
            drill_error: proofs.drill_trouble.map(|trouble| trouble.error),
        }
    }
}
