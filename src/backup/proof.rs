//! What verifications, drills and prunings found and did, kept beside the archive: small JSON objects.
//!
//! Guarantees: a proof tells who did what, when, with which result; the newest one of a kind is found without reading the
//! others. A proof is not part of the archive: it may be deleted, and nothing is decided by it but ages, alarms, and how
//! long a dropped object is kept. It is not signed: who may write to the repository can write one. Leaves out: the doing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::manifest::{Place, State};
use super::repository::{Listed, Repository, StoreError};
use crate::host;
use crate::types::{ClusterId, WallTime};

/// The newest format, which is the one that is written.
pub const FORMAT_VERSION: u32 = 1;

/// The longest proof that is read, in bytes.
const PROOF_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofKind {
    /// The archive was checked.
    Verify,
    /// A point of it was restored, booted and read from.
    Drill,
    /// Objects were taken out of it.
    Prune,
}

impl ProofKind {
    /// As it stands in names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Drill => "drill",
            Self::Prune => "prune",
        }
    }
}

/// What was done and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// What was done.
    pub kind: ProofKind,
    /// Whether all was well.
    pub passed: bool,
    /// When it ended, by the clock of whoever did it, in milliseconds since the epoch.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The node or command that did it.
    pub by: String,
    /// How deep a verification went: 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// The newest manifest it knew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<u64>,
    /// The last entry it reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Place>,
    /// The state there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// What else was measured, by name; the name ends with the unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, u64>,
    /// What was wrong, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// Prune: the names it took out of the archive; they are deleted later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drops: Vec<String>,
}

impl Proof {
    /// One without particulars, of something that began at `began` and ended at `ended`.
    #[must_use]
    pub fn new(kind: ProofKind, by: &str, passed: bool, began: WallTime, ended: WallTime) -> Self {
        Self {
            format: FORMAT_VERSION,
            kind,
            passed,
            at: ended.get(),
            took_ms: ended.get().saturating_sub(began.get()),
            by: by.to_owned(),
            level: None,
            manifest: None,
            reached: None,
            state: None,
            figures: BTreeMap::new(),
            findings: Vec::new(),
            drops: Vec::new(),
        }
    }
}

/// What the name of a proof tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The object.
    pub name: String,
    /// When it ended.
    pub at: WallTime,
    /// What was done.
    pub kind: ProofKind,
    /// Whether all was well.
    pub passed: bool,
    /// When it was kept, by the store's clock.
    pub stored_at: WallTime,
}

impl Told {
    fn of(object: &Listed) -> Option<Self> {
        let file = object.name.rsplit('/').next()?.strip_suffix(".json")?;
        let mut parts = file.split('-');
        let (at, kind, passed, _random) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let kind = [ProofKind::Verify, ProofKind::Drill, ProofKind::Prune].into_iter().find(|k| k.name() == kind)?;
        let passed = match passed {
            "passed" => true,
            "failed" => false,
            _ => return None,
        };
        let (name, at) = (object.name.clone(), WallTime::new(at.parse().ok()?));
        Some(Self { name, at, kind, passed, stored_at: object.stored_at })
    }
}

/// Keeps a proof; gives its name.
///
/// # Errors
/// [`StoreError`].
pub async fn write(repository: &Repository, cluster: ClusterId, proof: &Proof) -> Result<String, StoreError> {
    let passed = if proof.passed { "passed" } else { "failed" };
    let (folder, kind, random) = (Layout::new(cluster).proofs(), proof.kind.name(), host::random());
    let name = format!("{folder}/{:020}-{kind}-{passed}-{random:016x}.json", proof.at);
    let mut bytes = serde_json::to_vec(proof).expect("plain data into a growing vector can't fail");
    bytes.push(b'\n');
    repository.create(&name, bytes.into()).await?;
    Ok(name)
}

/// The proofs of a cluster, as their names tell, oldest first.
///
/// # Errors
/// [`StoreError`].
pub async fn list(repository: &Repository, cluster: ClusterId) -> Result<Vec<Told>, StoreError> {
    let listed = repository.list(&Layout::new(cluster).proofs(), None).await?;
    Ok(listed.iter().filter_map(Told::of).collect())
}

/// Reads a proof; `None` if it is not one that this program reads.
///
/// # Errors
/// [`StoreError`].
pub async fn read(repository: &Repository, name: &str) -> Result<Option<Proof>, StoreError> {
    let bytes = repository.get(name, PROOF_BYTES_MAX).await?;
    Ok(serde_json::from_slice(&bytes).ok().filter(|proof: &Proof| proof.format <= FORMAT_VERSION))
}

/// The newest proof of a kind; `passed` asks for the newest of those where all was well.
///
/// # Errors
/// [`StoreError`].
pub async fn newest(
    repository: &Repository,
    cluster: ClusterId,
    kind: ProofKind,
    passed: bool,
) -> Result<Option<Proof>, StoreError> {
    let told = list(repository, cluster).await?;
    let Some(newest) = told.iter().rfind(|told| told.kind == kind && (told.passed || !passed)) else { return Ok(None) };
    read(repository, &newest.name).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::faults::Faults;

    const CLUSTER: ClusterId = ClusterId::new(7);

    fn proof(kind: ProofKind, passed: bool, at: u64) -> Proof {
        Proof::new(kind, "n1", passed, WallTime::new(at - 5), WallTime::new(at))
    }

    #[tokio::test]
    async fn the_newest_proof_of_a_kind_is_found_and_the_newest_good_one() {
        let (repository, _) = Faults::repository();
        let newest = async |kind, passed| newest(&repository, CLUSTER, kind, passed).await.unwrap();
        assert_eq!(newest(ProofKind::Verify, false).await, None);
        let all = [
            proof(ProofKind::Verify, true, 10),
            Proof { level: Some(3), ..proof(ProofKind::Verify, true, 20) },
            proof(ProofKind::Drill, true, 25),
            Proof { findings: vec!["x is missing".into()], ..proof(ProofKind::Verify, false, 30) },
        ];
        for proof in &all {
            write(&repository, CLUSTER, proof).await.unwrap();
        }
        repository.create("0000000000000007/proof/notes.txt", "x".into()).await.unwrap();
        assert_eq!(newest(ProofKind::Verify, false).await.as_ref(), Some(&all[3]));
        assert_eq!(newest(ProofKind::Verify, true).await.as_ref(), Some(&all[1]));
        assert_eq!(newest(ProofKind::Drill, true).await.as_ref(), Some(&all[2]));
        assert_eq!(newest(ProofKind::Prune, false).await, None);
        assert_eq!(all[0].took_ms, 5);
    }

    #[test]
    fn the_bytes_of_a_proof_stay_as_they_are() {
        let place = Place { term: 1, leader: 2, index: 3 };
        let state = State { revision: 4, hash: [5; 16] };
        let full = Proof {
            level: Some(4),
            manifest: Some(9),
            reached: Some(place),
            state: Some(state),
            figures: [("fetched_bytes".to_owned(), 12)].into(),
            findings: vec!["a finding".into()],
            drops: vec!["a name".into()],
            ..proof(ProofKind::Verify, false, 30)
        };
        let bytes = serde_json::to_vec(&full).unwrap();
        let stored = crate::codec::golden::check("backup-proof-v1", [("proof", bytes)]);
        assert_eq!(serde_json::from_slice::<Proof>(&stored["proof"]).unwrap(), full);
    }
}
