//! A bounded cache of what the engine holds as the newest version of a key, so that a hot key costs no engine look-up.
//!
//! An entry is the engine's pointer of a key together with the value. Who may insert, and when an entry may be used:
//!
//! 1. The checkpointer, once it has written a frozen layer's pointers, moves the [generation](super::store) on and *then*
//!    brings the entry of every key of the layer up to date, and only then lets the layer go.
//! 2. A reader that went to the engine offers what it found together with the generation it saw *before* it read there.
//!    The offer is taken under the same lock that guards the generation, and only if that has not moved on. So an
//!    outdated offer is either refused or comes before the step 1 that replaces it.
//! 3. A reader looks into the overlay first. If that has no version at or below the reader's revision R, then every
//!    version up to R had left the overlay, and by step 1 the entry knows it: an entry with `mod_revision <= R` is the
//!    newest as of R. An entry above R says nothing and is passed over.
//!
//! Guarantees: never more than the configured weight. Leaves out: absent keys.

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::command::RecordMeta;

/// What an entry costs beside key and value, in bytes: the table's slot, the entry, reference counts.
const ENTRY_OVERHEAD_BYTES: u64 = 192;

/// The size of an entry that the table is laid out for at first, in bytes; only its first allocation depends on it.
const ENTRY_EXPECTED_BYTES: usize = 1024;

/// The newest version of a key.
#[derive(Debug, Clone)]
pub(super) struct CachedRecord {
    pub(super) meta: RecordMeta,
    pub(super) value: Bytes,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Bytes, CachedRecord> for ByBytes {
    fn weight(&self, key: &Bytes, record: &CachedRecord) -> u64 {
        (key.len() + record.value.len()) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct LatestCache {
    // The table's hashing is random; nothing ever iterates over it, so no order can leak.
    cache: Cache<Bytes, CachedRecord, ByBytes>,
}

impl LatestCache {
    /// A cache of at most so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let items = (bytes / ENTRY_EXPECTED_BYTES).max(1);
        Self { cache: Cache::with_weighter(items, bytes as u64, ByBytes) }
    }

    /// The newest version that the engine holds, if it is known.
    pub(super) fn get(&self, key: &[u8]) -> Option<CachedRecord> {
        self.cache.get(key)
    }

    /// Sets the entry of a key. Whatever stood there is gone afterwards, also if the new one is too large to be kept.
    pub(super) fn set(&self, key: Bytes, record: CachedRecord) {
        self.cache.insert(key, record);
    }

    /// Forgets a key.
    pub(super) fn remove(&self, key: &[u8]) {
        self.cache.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_too_large_to_keep_still_replaces_the_old_one() {
        let cache = LatestCache::new(4096);
        let record = |len| CachedRecord { meta: RecordMeta::default(), value: Bytes::from(vec![0; len]) };
        cache.set(Bytes::from_static(b"k"), record(1));
        assert!(cache.get(b"k").is_some());
        cache.set(Bytes::from_static(b"k"), record(1 << 20));
        assert!(cache.get(b"k").is_none());
    }

    #[test]
    fn a_cache_of_no_bytes_keeps_nothing() {
        let cache = LatestCache::new(0);
        cache.set(Bytes::from_static(b"k"), CachedRecord { meta: RecordMeta::default(), value: Bytes::new() });
        assert!(cache.get(b"k").is_none());
    }
}
