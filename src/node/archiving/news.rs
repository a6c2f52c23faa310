//! What nodes tell each other of archives: how each stands with a place for backups, and what it wants.
//!
//! ```text
//! 0xF4 | version (2) | postcard of Message or Answer
//! ```
//!
//! Guarantees: one message each way tells both sides everything; what is told as archived is in the archive. Leaves out:
//! what follows from it (`choice`, `offsite`), and when it is told (`gossip`).

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, LogIndex, LogPosition, NodeId, Revision, WallTime};

/// The first byte of these messages.
pub(in crate::node) const ARCHIVE: u8 = 0xF4;

/// The newest format of these messages.
const VERSION: u8 = 2;

/// From one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) cluster: ClusterId,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    /// How the sender stands; the answer is how the receiver does.
    News(News),
    /// Send a whole state to the place of this name, which the receiver archives to.
    SendFull(String),
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    News(News),
    /// Whether it will be done, and if not, why.
    SendFull(Result<(), String>),
}

/// How a node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct News {
    /// Whether it leads.
    pub(super) leads: bool,
    /// The last entry it has applied.
    pub(super) applied: u64,
    /// Somebody there waits for this revision to be off-site.
    pub(super) wanted: Revision,
    /// The places that are in its configuration.
    pub(super) places: Vec<PlaceNews>,
    /// Its alarms.
    pub(super) alarms: Vec<Alarm>,
}

/// How a node stands with one place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlaceNews {
    pub(super) name: String,
    /// Stands for the URL: two nodes that mean different ones by a name must not count on each other.
    pub(super) url_hash: u64,
    /// The URL for people, without secrets.
    pub(super) url: String,
    pub(super) durable: bool,
    pub(super) encrypted: bool,
    pub(super) healthy: bool,
    pub(super) active: bool,
    /// Whether its log reaches back to the end of the log that is archived.
    pub(super) continues: bool,
    pub(super) archived: Option<Archived>,
    /// Everything that was applied there so long ago is archived, in milliseconds.
    pub(super) behind_ms: Option<u64>,
    pub(super) full: Option<Full>,
    pub(super) full_under_way: bool,
    pub(super) objects: u64,
    pub(super) object_bytes: u64,
    pub(super) trouble: Option<Trouble>,
    /// The last entry that is archived as part of the log, or bridged: what is behind it is still wanted, also where a
    /// whole state reaches farther.
    pub(super) shipped: Option<LogIndex>,
    /// Tries to archive that failed.
    pub(super) errors: u64,
    /// Entries of its log that are not archived yet; `None` where the log is not archived.
    pub(super) held_entries: Option<u64>,
    /// What the proofs beside the archive tell; `None` until they were read.
    pub(super) proofs: Option<Proofs>,
}

/// What the proofs beside an archive tell, and how drills are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs {
    /// The end of the last verification without damage, however deep.
    pub verified: Option<WallTime>,
    /// The end of the last one that read everything.
    pub read: Option<WallTime>,
    /// The end of the last drill that passed.
    pub drilled: Option<WallTime>,
    /// What the last check found that did not pass, and when.
    pub failed: Option<(WallTime, String)>,
    /// Whether the node that archives makes drills; otherwise they are made where the key is.
    pub drills_here: bool,
    /// Why the last drill here said nothing about the archive.
    pub drill_trouble: Option<Trouble>,
}

impl Proofs {
    /// When the newest of them was made.
    pub(super) fn newest(&self) -> WallTime {
        let failed = self.failed.as_ref().map(|(at, _)| *at);
        [self.verified, self.read, self.drilled, failed].into_iter().flatten().max().unwrap_or_default()
    }
}

/// Up to where everything is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// The last entry.
    pub position: LogPosition,
    /// The revision that is surely archived.
    pub revision: Revision,
}

/// A whole state in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Full {
    /// Its revision.
    pub revision: Revision,
    /// When it was made.
    pub at: WallTime,
    /// Its length as it is stored, in bytes.
    pub bytes: u64,
}

/// Why archiving fails at present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Since when, by the clock of the node that has it.
    pub since: WallTime,
    /// What happened last.
    pub error: String,
}

/// Something that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What kind it is: a stable name in `snake_case`.
    pub name: String,
    /// What it is about: the name of a place for backups, or of a member.
    pub subject: String,
    /// Since when, by the clock of the node that raised it.
    pub since: WallTime,
    /// What is the matter.
    pub detail: String,
    /// What to do.
    pub action: String,
}

pub(super) fn encode<T: Serialize>(value: &T) -> Bytes {
    let out = postcard::to_extend(value, vec![ARCHIVE, VERSION]);
    Bytes::from(out.expect("plain data into a growing vector can't fail"))
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes {
        [ARCHIVE, VERSION, body @ ..] => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let what = What::SendFull("main".into());
        Message { cluster: ClusterId::new(7), from: NodeId::new(1), to: NodeId::new(2), what }
    }

    #[test]
    fn messages_come_back_and_foreign_bytes_are_none() {
        assert_eq!(decode::<Message>(&encode(&message())), Some(message()));
        let places = vec![PlaceNews {
            name: "main".into(),
            behind_ms: Some(7),
            shipped: Some(LogIndex::new(9)),
            held_entries: Some(3),
            proofs: Some(Proofs { drilled: Some(WallTime::new(5)), drills_here: true, ..Proofs::default() }),
            ..PlaceNews::default()
        }];
        let news = Answer::News(News { leads: true, places, ..News::default() });
        assert_eq!(decode::<Answer>(&encode(&news)), Some(news));
        for foreign in [&b""[..], &[ARCHIVE], &[ARCHIVE, VERSION], &[ARCHIVE, VERSION + 1, 0], &[0xF0, VERSION, 7, 1]] {
            assert_eq!(decode::<Message>(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn the_bytes_of_format_two_stay_readable() {
        assert_eq!(&encode(&message())[..], b"\xF4\x02\x07\x01\x02\x01\x04main");
    }
}
