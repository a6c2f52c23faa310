//! The keys of a recording: in groups that are written and listed together, each given up for new ones after a while.
//!
//! Guarantees: how many operations choose a key is bounded, so that what a search has to try is as well; the keys of one
//! group and generation share a prefix that no other key has. Leaves out: what is done with them (`choice`).

use std::sync::atomic::{AtomicU64, Ordering};

use rand::Rng;
use rand::seq::index::sample;

/// Keys in a group: the most that one listing passes.
const GROUP_KEYS: u64 = 8;

/// Operations on a group, for each of its keys, before its keys are given up for new ones.
const OPERATIONS_PER_KEY: u64 = 250;

/// All keys that a recording uses at a time.
#[derive(Debug)]
pub(super) struct KeySpace {
    prefix: String,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    keys: u64,
    /// Operations so far.
    chosen: AtomicU64,
}

/// A group as it is at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// What its keys begin with.
    pub(super) prefix: String,
    keys: u64,
}

impl KeySpace {
    /// So many keys at a time, at least one.
    pub(super) fn new(prefix: String, keys: u64) -> Self {
        let groups = (0..keys.div_ceil(GROUP_KEYS)).map(|group| {
            let keys = (keys - group * GROUP_KEYS).min(GROUP_KEYS);
            Group { keys, chosen: AtomicU64::new(0) }
        });
        Self { prefix, groups: groups.collect() }
    }

    /// What all keys begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A group for the next operation.
    pub(super) fn choose(&self, random: &mut impl Rng) -> Place {
        let number = random.random_range(0..self.groups.len());
        let group = &self.groups[number];
        let chosen = group.chosen.fetch_add(1, Ordering::Relaxed);
        self.place(number, chosen / (group.keys * OPERATIONS_PER_KEY))
    }

    /// Every key that may have been used.
    pub(super) fn used(&self) -> Vec<String> {
        let mut used = Vec::new();
        for (number, group) in self.groups.iter().enumerate() {
            let chosen = group.chosen.load(Ordering::Relaxed);
            for generation in 0..chosen.div_ceil(group.keys * OPERATIONS_PER_KEY) {
                let place = self.place(number, generation);
                used.extend((0..group.keys).map(|key| place.key(key)));
            }
        }
        used
    }

    fn place(&self, number: usize, generation: u64) -> Place {
        let keys = self.groups[number].keys;
        Place { prefix: format!("{}{number:03}.{generation:05}/", self.prefix), keys }
    }
}

impl Place {
    fn key(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    /// One of its keys.
    pub(super) fn one(&self, random: &mut impl Rng) -> String {
        self.key(random.random_range(0..self.keys))
    }

    /// Different ones of its keys, as many as asked for or as there are.
    pub(super) fn several(&self, wanted: usize, random: &mut impl Rng) -> Vec<String> {
        let keys = usize::try_from(self.keys).unwrap_or(usize::MAX);
        let chosen = sample(random, keys, wanted.min(keys));
        chosen.iter().map(|number| self.key(number as u64)).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn keys_are_given_up_for_new_ones_and_none_is_forgotten() {
        let space = KeySpace::new("p/".to_owned(), 10);
        let mut random = SmallRng::seed_from_u64(1);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..20_000 {
            let place = space.choose(&mut random);
            *seen.entry(place.one(&mut random)).or_insert(0_u64) += 1;
            let several = place.several(3, &mut random);
            assert!(several.iter().all(|key| key.starts_with(&place.prefix)), "{several:?}");
            assert!((2..=3).contains(&several.len()) && several[0] != several[1], "{several:?}");
        }
        assert!(seen.len() > 20, "{}", seen.len());
        assert!(seen.values().all(|count| *count < OPERATIONS_PER_KEY * 2), "{seen:?}");
        let used = space.used();
        assert!(seen.keys().all(|key| used.contains(key)));
        assert!(used.iter().all(|key| key.starts_with("p/")));
    }
}
