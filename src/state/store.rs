//! Where the records are: overlay, cache and engine as one store, read at a revision.
//!
//! A record is written into the active layer, moves with it into the frozen one, and from there into the engine; it never
//! changes. Guarantees: whoever looks into the overlay *before* the engine finds every record that was applied, whatever
//! the checkpointer does meanwhile; what the engine holds from above the revision read at is passed over; no lock is held
//! while the engine is asked. Leaves out: ranges (`scan`), what is written (`txn`), moving (`checkpoint`).

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::cache::{CachedRecord, LatestCache};
use super::chain::Place;
use super::command::RecordMeta;
use super::history;
use super::machine::StateConfig;
use super::overlay::{Layer, Version};
use super::record::{Change, VersionedRecord};
use super::rows::Pointer;
use super::schema::{Applied, StorageKey};
use crate::storage::{Engine, Error};
use crate::types::Revision;

/// Everything that writer, readers and checkpointer share.
pub(super) struct Store {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) config: StateConfig,
    pub(super) cache: LatestCache,
    /// What readers may see.
    pub(super) published: ArcSwap<Applied>,
    /// Held by the writer while it applies an entry, and by the checkpointer while it freezes: so a layer is never frozen
    /// in the middle of an entry. The value is the state behind the last whole entry.
    pub(super) boundary: Mutex<Applied>,
    /// Held while a checkpoint runs. The value is the engine's durable marker.
    pub(super) durable: Mutex<Arc<Applied>>,
    /// Wakes the checkpointer and whoever waits for room. Taken before `layers`, never after.
    pub(super) signal: Mutex<Signal>,
    pub(super) signalled: Condvar,
    layers: RwLock<Layers>,
}

/// What the threads tell each other.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// A checkpoint is wanted whatever the size of the overlay.
    pub(super) requested: bool,
    /// No checkpoint will follow.
    pub(super) closed: bool,
}

/// A layer on its way to the engine, with the state it completes.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) layer: Layer,
    pub(super) applied: Arc<Applied>,
}

/// The overlay.
#[derive(Debug, Default)]
pub(super) struct Layers {
    active: Layer,
    frozen: Option<Arc<Frozen>>,
    /// Counts the layers that have arrived in the engine; see `cache`.
    generation: u64,
}

impl Layers {
    /// The layers, newest first. All versions of a key in one are newer than those in the next, and than the engine's.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.active).chain(self.frozen.as_ref().map(|frozen| &frozen.layer))
    }

    /// The layers, oldest first: their records follow each other without a gap.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = &Layer> {
        self.frozen.as_ref().map(|frozen| &frozen.layer).into_iter().chain(std::iter::once(&self.active))
    }

    /// The place of the oldest record; `None` if there are none. Every applied record from there on is here.
    pub(super) fn first(&self) -> Option<Place> {
        self.oldest_first().find_map(Layer::first)
    }

    fn bytes(&self) -> usize {
        self.newest_first().map(Layer::bytes).sum()
    }
}

/// The value of a key at the revision asked for.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) meta: RecordMeta,
    pub(super) value: Value,
}

/// Where a value is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Here.
    Here(Bytes),
    /// In the engine, as the record that the pointer names: that of `mod_revision` with this `sub`. With a generation it
    /// is worth caching: that of the overlay before the pointer was read.
    Engine { sub: u32, generation: Option<u64> },
}

impl Live {
    /// What a version says: `None` if it is a delete.
    pub(super) fn from_version(revision: Revision, change: &Change) -> Option<Self> {
        match change {
            Change::Put { create_revision, version, lease, value } => {
                let (create_revision, version, lease) = (*create_revision, *version, *lease);
                let meta = RecordMeta { create_revision, mod_revision: revision, version, lease };
                Some(Self { meta, value: Value::Here(value.clone()) })
            }
            Change::Delete => None,
        }
    }
}

impl Store {
    pub(super) fn new(engine: Arc<dyn Engine>, config: StateConfig, applied: &Applied) -> Self {
        let cache = LatestCache::new(config.cache_bytes);
        let shared = Arc::new(applied.clone());
        Self {
            engine,
            config,
            cache,
            published: ArcSwap::new(Arc::clone(&shared)),
            boundary: Mutex::new(applied.clone()),
            durable: Mutex::new(shared),
            signal: Mutex::new(Signal::default()),
            signalled: Condvar::new(),
            layers: RwLock::new(Layers::default()),
        }
    }

    /// The overlay, to read. Hold it briefly: the writer waits.
    pub(super) fn layers(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read()
    }

    /// The state of a key at a revision; `None` if it is absent or deleted there.
    pub(super) fn find(&self, key: &[u8], at: Revision) -> Result<Option<Live>, Error> {
        let generation = {
            let layers = self.layers.read();
            if let Some(version) = layers.newest_first().find_map(|layer| layer.find(key, at)) {
                return Ok(Live::from_version(version.revision, &version.change));
            }
            layers.generation
        };
        if let Some(CachedRecord { meta, value }) = self.cache.get(key)
            && meta.mod_revision <= at
        {
            return Ok(Some(Live { meta, value: Value::Here(value) }));
        }
        match self.engine.get(&StorageKey::Latest { key }.encode())? {
            Some(pointer) => self.resolve(key, Pointer::decode(&pointer)?, at, Some(generation)),
            None => Ok(None),
        }
    }

    /// What the engine's pointer means at a revision. A pointer from above it tells nothing: it was written behind the
    /// back of an older view, or before a crash by a checkpoint whose marker never followed. The history knows.
    pub(super) fn resolve(
        &self,
        key: &[u8],
        pointer: Pointer,
        at: Revision,
        generation: Option<u64>,
    ) -> Result<Option<Live>, Error> {
        if pointer.meta.mod_revision > at {
            let engine = &*self.engine;
            let Some(place) = history::search(engine, key, &pointer.chain, at)? else { return Ok(None) };
            let value = Value::Engine { sub: place.sub, generation: None };
            return Ok(history::meta(engine, key, place)?.map(|meta| Live { meta, value }));
        }
        let value = Value::Engine { sub: pointer.sub, generation };
        Ok((!pointer.deleted).then_some(Live { meta: pointer.meta, value }))
    }

    /// The value itself, from the engine where it is there.
    pub(super) fn value(&self, key: &[u8], live: Live) -> Result<Bytes, Error> {
        let Live { meta, value } = live;
        let (sub, generation) = match value {
            Value::Here(value) => return Ok(value),
            Value::Engine { sub, generation } => (sub, generation),
        };
        if generation.is_none()
            && let Some(cached) = self.cache.get(key)
            && cached.meta.mod_revision == meta.mod_revision
        {
            return Ok(cached.value);
        }
        let place = Place { revision: meta.mod_revision, sub };
        let record = history::record(&*self.engine, key, place)?;
        let Change::Put { value, .. } = record.change else {
            return Err(Error::Damaged(format!("{} has a pointer to a put, but a delete in its place", record.key)));
        };
        if let Some(generation) = generation {
            let layers = self.layers.read();
            // Held until the entry is in: see `cache` for why.
            if layers.generation == generation {
                self.cache.set(record.key.into_bytes(), CachedRecord { meta, value: value.clone() });
            }
        }
        Ok(value)
    }

    /// Takes the records of one command, all at once; tells whether the active layer has just outgrown the soft limit.
    /// Only the writer calls it.
    pub(super) fn insert(&self, records: Vec<VersionedRecord>) -> bool {
        let mut layers = self.layers.write();
        let before = layers.active.bytes();
        for record in records {
            layers.active.insert(record);
        }
        let soft = self.config.overlay_bytes_soft;
        before < soft && layers.active.bytes() >= soft
    }

    /// Bytes of the layer that is being written.
    pub(super) fn active_bytes(&self) -> usize {
        self.layers.read().active.bytes()
    }

    /// Bytes of the whole overlay.
    pub(super) fn overlay_bytes(&self) -> usize {
        self.layers.read().bytes()
    }

    /// Puts the active layer aside, whole entries only, unless one is aside already (an earlier checkpoint failed).
    pub(super) fn freeze(&self) -> Arc<Frozen> {
        let boundary = self.boundary.lock();
        let mut layers = self.layers.write();
        if let Some(frozen) = &layers.frozen {
            return Arc::clone(frozen);
        }
        let layer = std::mem::take(&mut layers.active);
        let frozen = Arc::new(Frozen { layer, applied: Arc::new(boundary.clone()) });
        layers.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// Lets the frozen layer go once the engine has all of it.
    pub(super) fn release(&self, frozen: &Frozen) {
        // From here on nothing that was read from the engine before can enter the cache ...
        self.layers.write().generation += 1;
        // ... so that what is set here stays.
        for (key, versions) in frozen.layer.iter() {
            let Version { revision, change, .. } = versions.newest();
            match Live::from_version(*revision, change) {
                Some(Live { meta, value: Value::Here(value) }) => {
                    self.cache.set(key.clone(), CachedRecord { meta, value });
                }
                Some(_) | None => self.cache.remove(key),
            }
        }
        // Taken out under the lock, but freed behind it: that takes a while.
        let released = self.layers.write().frozen.take();
        drop(released);
    }
}
