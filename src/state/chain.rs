//! How the versions of one key hang together, so that an older one is found in a logarithmic number of steps.
//!
//! Records lie by revision, far from the other versions of their key, and never change. So each carries [`Links`] to
//! older ones: to the version before it, and a jump further back. The pointer of the key carries the [`Chain`], which
//! is what the next version's links are made of. Versions form trees in the way of skew-binary numbers (Myers, "An
//! applicative random-access stack", 1983): a tree is a version with two trees of equal height before it, or a version
//! alone. Its root jumps over the whole of it. The chain holds the roots, at most one more than there are heights.
//!
//! Guarantees: links and chain only ever name older versions of the same key; a chain that was begun anew in the middle
//! of a history stays right, and is only slower to search beyond its beginning. Leaves out: where records are (`store`).

use serde::{Deserialize, Serialize};

use crate::types::Revision;

/// Where a record stands: no two records share a place, whatever their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    /// The revision that made it.
    pub(super) revision: Revision,
    /// Its place among the records of that revision, from 0.
    pub(super) sub: u32,
}

impl Place {
    /// Before every record of a revision but its first, which it names.
    pub(super) fn first_of(revision: Revision) -> Self {
        Self { revision, sub: 0 }
    }

    /// The first that may come behind it.
    pub(super) fn next(self) -> Self {
        match self.sub.checked_add(1) {
            Some(sub) => Self { sub, ..self },
            None => Self::first_of(self.revision.next()),
        }
    }
}

/// What a record knows of older versions of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Links {
    /// The version before it; `None` for the first.
    pub(super) previous: Option<Place>,
    /// A version further back, or the one before; `None` if no version is left out by going on with `previous`.
    pub(super) jump: Option<Place>,
}

impl Links {
    /// Where to look next for the newest version at or below a revision, coming from one above it.
    pub(super) fn towards(&self, at: Revision) -> Option<Place> {
        self.jump.filter(|jump| jump.revision > at).or(self.previous)
    }
}

/// The root of a tree of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    place: Place,
    /// 1 for a version alone. The tree has `2^height - 1` versions.
    height: u8,
}

/// The versions that the newest one of a key leads to by jumps. Empty for a key without a version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Chain {
    /// Oldest first; the last one is the newest version. Heights fall strictly, but that the last two may be equal.
    roots: Vec<Root>,
}

impl Chain {
    /// The chain of a key whose newest version is known, but not how it hangs together with older ones.
    pub(super) fn begun_at(newest: Place) -> Self {
        Self { roots: vec![Root { place: newest, height: 1 }] }
    }

    /// The newest version.
    pub(super) fn newest(&self) -> Option<Place> {
        self.roots.last().map(|root| root.place)
    }

    /// Adds a version, newer than all there are; returns its links.
    pub(super) fn append(&mut self, place: Place) -> Links {
        let previous = self.newest();
        let height = match self.roots[..] {
            // Two equal trees become one under the new version.
            [.., older, newer] if older.height == newer.height => {
                self.roots.truncate(self.roots.len() - 2);
                newer.height.saturating_add(1)
            }
            _ => 1,
        };
        let jump = self.newest();
        self.roots.push(Root { place, height });
        Links { previous, jump }
    }

    /// Where the search for the newest version at or below a revision begins: the oldest root above it, or the
    /// newest one if that is not above. `None` without a version.
    pub(super) fn towards(&self, at: Revision) -> Option<Place> {
        let above = self.roots.partition_point(|root| root.place.revision <= at);
        self.roots.get(above).map(|root| root.place).or_else(|| self.newest())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn place(revision: u64) -> Place {
        Place { revision: Revision::new(revision), sub: 7 }
    }

    /// Finds by links alone; tells how many records it looked at.
    fn find(chain: &Chain, links: &BTreeMap<Place, Links>, at: u64) -> (Option<u64>, usize) {
        let (at, mut steps) = (Revision::new(at), 0);
        let mut next = chain.towards(at);
        while let Some(place) = next {
            steps += 1;
            if place.revision <= at {
                return (Some(place.revision.get()), steps);
            }
            next = links[&place].towards(at);
        }
        (None, steps)
    }

    /// Versions at the even revisions from 2 on.
    fn history(versions: u64, begun_anew_behind: Option<u64>) -> (Chain, BTreeMap<Place, Links>) {
        let (mut chain, mut links) = (Chain::default(), BTreeMap::new());
        for version in 1..=versions {
            let place = place(2 * version);
            links.insert(place, chain.append(place));
            if begun_anew_behind == Some(version) {
                chain = Chain::begun_at(place);
            }
        }
        (chain, links)
    }

    #[test]
    fn every_version_of_every_length_is_found() {
        for versions in 0..70 {
            let (chain, links) = history(versions, None);
            assert_eq!(chain.roots.iter().map(|root| (1 << root.height) - 1).sum::<u64>(), versions);
            for at in 0..=2 * versions + 3 {
                let expected = (at / 2).min(versions);
                assert_eq!(find(&chain, &links, at).0, (expected > 0).then_some(2 * expected), "{at} of {versions}");
            }
        }
    }

    #[test]
    fn a_chain_that_was_begun_anew_still_finds_every_version() {
        for begun in 1..20 {
            let (chain, links) = history(40, Some(begun));
            for at in 0..=83 {
                let expected = (at / 2).min(40);
                assert_eq!(find(&chain, &links, at).0, (expected > 0).then_some(2 * expected), "{at}, anew at {begun}");
            }
        }
    }

    #[test]
    fn an_old_version_among_many_is_found_in_few_steps() {
        let versions = 100_000;
        let (chain, links) = history(versions, None);
        let most = (0..=2 * versions).step_by(37).map(|at| find(&chain, &links, at).1).max().unwrap();
        assert!(most <= 2 * versions.ilog2() as usize, "{most} steps");
        assert!(chain.roots.len() <= 1 + versions.ilog2() as usize, "{} roots", chain.roots.len());
    }

    #[test]
    fn the_newest_version_is_found_without_a_step_back() {
        let (chain, links) = history(1_000, None);
        assert_eq!(find(&chain, &links, 5_000), (Some(2_000), 1));
    }
}
