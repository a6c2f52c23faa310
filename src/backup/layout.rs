//! The names of objects in a repository.
//!
//! ```text
//! <prefix>/quorate-repository.json                          what this is, for people and for a probe
//! <prefix>/<cluster>/chain/<seq>.json                       manifests: what belongs to the archive, in order
//! <prefix>/<cluster>/log/<first>-<last>-<random>.log.zst[.age]      entries of the log
//! <prefix>/<cluster>/full/<last>-<random>.snapshot.zst[.age]        whole states
//! <prefix>/<cluster>/proof/<time>-<kind>-<passed|failed>-<random>.json      what verify, drill and prune found and did
//! ```
//!
//! A cluster is 16 hexadecimal digits, numbers have 20 decimal ones, so that names sort as what they name. Each restore and
//! each recovery from a lost quorum makes a new cluster, so a cluster's id is its timeline. Guarantees: only names of this
//! form are ever deleted; a name tells whether the object is encrypted. Leaves out: what is in the objects.

use std::fmt;

use crate::types::ClusterId;

/// Marks a repository.
pub const REPOSITORY: &str = "quorate-repository.json";

/// The end of the name of an encrypted object.
const AGE: &str = ".age";

/// Where one cluster's objects lie, below the prefix of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout(ClusterId);

/// What kind of data an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Entries of the log.
    Log,
    /// A snapshot file.
    Full,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Log => "log",
            Self::Full => "full",
        })
    }
}

impl Layout {
    /// Of this cluster.
    #[must_use]
    pub const fn new(cluster: ClusterId) -> Self {
        Self(cluster)
    }

    /// The folder of the cluster.
    #[must_use]
    pub fn folder(&self) -> String {
        cluster_name(self.0)
    }

    /// The folder of the manifests.
    #[must_use]
    pub fn chain(&self) -> String {
        format!("{}/chain", self.folder())
    }

    /// The name of a manifest.
    #[must_use]
    pub fn manifest(&self, seq: u64) -> String {
        format!("{}/{seq:020}.json", self.chain())
    }

    /// The folder of what verifications and drills found.
    #[must_use]
    pub fn proofs(&self) -> String {
        format!("{}/proof", self.folder())
    }

    /// The folder of a kind of data.
    #[must_use]
    pub fn data(&self, kind: Kind) -> String {
        format!("{}/{kind}", self.folder())
    }

    /// A new name for entries of the log; `random` keeps two writers apart.
    #[must_use]
    pub fn log(&self, first: u64, last: u64, random: u64, encrypted: bool) -> String {
        format!("{}/{first:020}-{last:020}-{random:016x}.log.zst{}", self.data(Kind::Log), age(encrypted))
    }

    /// A new name for a snapshot whose last entry is `last`.
    #[must_use]
    pub fn full(&self, last: u64, random: u64, encrypted: bool) -> String {
        format!("{}/{last:020}-{random:016x}.snapshot.zst{}", self.data(Kind::Full), age(encrypted))
    }

    /// The number of a manifest, from its name below the prefix; `None` for other names.
    #[must_use]
    pub fn manifest_seq(&self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(&self.chain())?.strip_prefix('/')?.strip_suffix(".json")?;
        (digits.len() == 20).then(|| digits.parse().ok())?
    }

    /// The first and the last entry in a piece of the log, from its name below the prefix; `None` for other names.
    #[must_use]
    pub fn log_range(&self, name: &str) -> Option<(u64, u64)> {
        let rest = name.strip_prefix(&self.data(Kind::Log))?.strip_prefix('/')?;
        let (first, rest) = rest.split_once('-')?;
        let (last, _) = rest.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }

    /// Whether a name below the prefix is that of data of this cluster, which alone may be deleted.
    #[must_use]
    pub fn is_data(&self, name: &str) -> bool {
        let ends = |kind: Kind, end: &str| {
            let rest = name.strip_prefix(&self.data(kind)).and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| !rest.contains('/') && rest.strip_suffix(AGE).unwrap_or(rest).ends_with(end))
        };
        ends(Kind::Log, ".log.zst") || ends(Kind::Full, ".snapshot.zst")
    }
}

/// Whether the object of this name is encrypted.
#[must_use]
pub fn is_encrypted(name: &str) -> bool {
    name.ends_with(AGE)
}

/// The folder name of a cluster.
#[must_use]
pub fn cluster_name(cluster: ClusterId) -> String {
    format!("{:016x}", cluster.get())
}

/// The cluster that a folder name stands for.
#[must_use]
pub fn cluster_of(folder: &str) -> Option<ClusterId> {
    let valid = folder.len() == 16 && folder.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| u64::from_str_radix(folder, 16).ok().map(ClusterId::new))?
}

fn age(encrypted: bool) -> &'static str {
    if encrypted { AGE } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout::new(ClusterId::new(0xAB));

    #[test]
    fn names_sort_as_what_they_name_and_tell_what_they_are() {
        assert_eq!(LAYOUT.manifest(7), "00000000000000ab/chain/00000000000000000007.json");
        assert_eq!(
            LAYOUT.log(5, 12, 0xF, true),
            "00000000000000ab/log/00000000000000000005-00000000000000000012-000000000000000f.log.zst.age"
        );
        assert_eq!(
            LAYOUT.full(5, 1, false),
            "00000000000000ab/full/00000000000000000005-0000000000000001.snapshot.zst"
        );
        assert!(is_encrypted(&LAYOUT.log(5, 12, 0, true)) && !is_encrypted(&LAYOUT.full(5, 0, false)));
        assert_eq!(LAYOUT.manifest_seq(&LAYOUT.manifest(u64::MAX)), Some(u64::MAX));
        assert_eq!(cluster_of(&LAYOUT.folder()), Some(ClusterId::new(0xAB)));
        assert_eq!(LAYOUT.log_range(&LAYOUT.log(5, u64::MAX, 0xF, true)), Some((5, u64::MAX)));
        assert_eq!(LAYOUT.log_range(&LAYOUT.full(5, 1, false)), None);
        for other in ["00000000000000ab/chain/7.json", "00000000000000ab/log/00000000000000000007.json", "x"] {
            assert_eq!(LAYOUT.manifest_seq(other), None);
        }
        for other in ["ab", "00000000000000AB", "+0000000000000ab"] {
            assert_eq!(cluster_of(other), None);
        }
    }

    #[test]
    fn only_data_of_the_cluster_may_be_deleted() {
        for name in [LAYOUT.log(1, 2, 3, true), LAYOUT.log(1, 2, 3, false), LAYOUT.full(1, 2, true)] {
            assert!(LAYOUT.is_data(&name), "{name}");
        }
        let other = Layout::new(ClusterId::new(0xAC));
        for name in [LAYOUT.manifest(1), other.full(1, 2, true), "00000000000000ab/log/../x.log.zst".into()] {
            assert!(!LAYOUT.is_data(&name), "{name}");
        }
    }
}
