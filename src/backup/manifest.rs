//! The chain of manifests: what belongs to the archive of a cluster, and in which order it came to belong to it.
//!
//! A manifest is a small JSON object under the next number. Storing it under a name that must not exist yet is what decides
//! between two writers: who comes second reads what the first one wrote and begins again. Each names the SHA-256 of the one
//! before it, so that a manifest that is missing or was changed is noticed. From time to time one lists all that belongs to
//! the archive (`base`), so that older ones need not be read, and can be deleted. They are not encrypted: they hold sizes,
//! positions and hashes, but no key and no value. Guarantees: the same manifest has the same bytes; fields that a reader
//! does not know are passed over, a newer `format` is refused. Leaves out: storing (`archive`) and reading (`catalogue`).

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::layout::Kind;
use super::segment::StateMark;
use crate::types::{ClusterId, LogIndex, LogPosition, NodeId, Revision, Term, WallTime};

/// The newest format, which is the one that is written.
pub const FORMAT_VERSION: u32 = 1;

/// SHA-256 of something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sha(#[serde(with = "hex::serde")] pub [u8; 32]);

impl Sha {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A place in the log, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Term of the leader that made the entry.
    pub term: u64,
    /// That leader.
    pub leader: u64,
    /// Index of the entry.
    pub index: u64,
}

impl From<LogPosition> for Place {
    fn from(position: LogPosition) -> Self {
        Self { term: position.term.get(), leader: position.leader.get(), index: position.index.get() }
    }
}

impl From<Place> for LogPosition {
    fn from(place: Place) -> Self {
        Self { term: Term::new(place.term), leader: NodeId::new(place.leader), index: LogIndex::new(place.index) }
    }
}

/// What the state amounts to behind an entry, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The revision of the store.
    pub revision: u64,
    /// The state hash: 32 hexadecimal digits, most significant first.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 16],
}

impl From<StateMark> for State {
    fn from(mark: StateMark) -> Self {
        Self { revision: mark.revision.get(), hash: mark.hash.to_be_bytes() }
    }
}

impl From<State> for StateMark {
    fn from(state: State) -> Self {
        Self { revision: Revision::new(state.revision), hash: u128::from_be_bytes(state.hash) }
    }
}

/// One object of data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its name, below the prefix of the repository.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Its length, in bytes.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Sha,
    /// The length of its content, unpacked, in bytes.
    pub plain_bytes: u64,
    /// Log: the entry right before its first one, if that is not the first of all. Full: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Place>,
    /// Its last entry; of a full the last whose effects are in it.
    pub last: Place,
    /// The state behind the last entry; always there for a full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// When the first and the last command in it were proposed, by the clocks of their leaders, in milliseconds since the
    /// epoch; of a full when it was written, twice. Without commands nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<(u64, u64)>,
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The cluster, as its folder is named.
    pub cluster: String,
    /// Its number; the first is 1.
    pub seq: u64,
    /// The SHA-256 of the manifest before it; nothing in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Sha>,
    /// When it was written, by the writer's clock, in milliseconds since the epoch. For people.
    pub written_at: u64,
    /// The name of the node that wrote it, or of a command.
    pub written_by: String,
    /// When the first object of the archive was stored, by the store's clock, in milliseconds since the epoch: what no manifest
    /// names and is older is not of this archive. In the first manifest, and in those with a `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
    /// What belongs to the archive from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adds: Vec<Object>,
    /// Names of what does not any more, and may be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drops: Vec<String>,
    /// All that belongs to the archive behind this manifest; not in each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Vec<Object>>,
}

/// Why a manifest can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by a newer program.
    #[error("its format {0} is newer than the newest this program reads ({FORMAT_VERSION}); use a newer program")]
    Newer(u32),
    /// Not a manifest.
    #[error("damaged: {0}")]
    Damaged(String),
    /// It is not the one that was looked for.
    #[error("it says that it is manifest {found_seq} of cluster {found}, not {seq} of {cluster}")]
    Misplaced {
        /// The number that was looked for.
        seq: u64,
        /// The cluster that was looked for.
        cluster: String,
        /// The number it has.
        found_seq: u64,
        /// The cluster it names.
        found: String,
    },
}

impl Manifest {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("plain data into a growing vector can't fail");
        bytes.push(b'\n');
        bytes
    }

    /// Reads manifest `seq` of a cluster.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn decode(bytes: &[u8], cluster: ClusterId, seq: u64) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| ManifestError::Damaged(error.to_string());
        // First alone: what a newer format means by the rest is not known.
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format > FORMAT_VERSION {
            return Err(ManifestError::Newer(format));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        let cluster = super::layout::cluster_name(cluster);
        if manifest.seq != seq || manifest.cluster != cluster {
            let (found_seq, found) = (manifest.seq, manifest.cluster);
            return Err(ManifestError::Misplaced { seq, cluster, found_seq, found });
        }
        Ok(manifest)
    }

    /// When it was written.
    #[must_use]
    pub fn written(&self) -> WallTime {
        WallTime::new(self.written_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str) -> Object {
        Object {
            name: name.into(),
            kind: Kind::Log,
            bytes: 10,
            sha256: Sha([1; 32]),
            plain_bytes: 20,
            previous: Some(Place { term: 1, leader: 2, index: 3 }),
            last: Place { term: 1, leader: 2, index: 9 },
            state: Some(StateMark { revision: Revision::new(5), hash: 6 }.into()),
            times: Some((7, 8)),
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT_VERSION,
            cluster: "00000000000000ab".into(),
            seq: 2,
            previous: Some(Sha::of(b"first")),
            written_at: 1_700_000_000_000,
            written_by: "n1".into(),
            began: None,
            adds: vec![object("a")],
            drops: vec!["b".into()],
            base: None,
        }
    }

    #[test]
    fn a_manifest_comes_back_and_its_bytes_stay_as_they_are() {
        let bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes, ClusterId::new(0xAB), 2), Ok(manifest()));
        let stored = crate::codec::golden::check("backup-manifest-v1", [("manifest", bytes)]);
        assert_eq!(Manifest::decode(&stored["manifest"], ClusterId::new(0xAB), 2), Ok(manifest()));
    }

    #[test]
    fn a_newer_format_damage_and_another_place_are_told_apart() {
        let decode = |bytes: &[u8]| Manifest::decode(bytes, ClusterId::new(0xAB), 2).unwrap_err();
        assert_eq!(decode(br#"{"format":2,"seq":"?"}"#), ManifestError::Newer(2));
        assert!(matches!(decode(b"{"), ManifestError::Damaged(_)));
        for other in [Manifest { seq: 3, ..manifest() }, Manifest { cluster: "x".into(), ..manifest() }] {
            assert!(matches!(decode(&other.encode()), ManifestError::Misplaced { .. }));
        }
    }
}
