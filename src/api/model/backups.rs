//! What `GET /v1/backups`, `POST /v1/backups/{name}/run` and `GET /v1/alarms` answer.
//!
//! Guarantees: what is not known is `null`, never a made-up zero; no secret stands in a URL. Leaves out: how it is found
//! out (`node::archiving`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::node;
use crate::types::NodeId;

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
        }
    }
}
