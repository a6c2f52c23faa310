//! [`MemoryEngine`]: the engine contract in memory, as a model of what a disk may do to us.
//!
//! It keeps two states: what readers see, and what would still be there after a power cut. [`MemoryEngine::crash`] moves
//! from the first to the second, with as many of the unflushed batches as the caller wishes, in the order of their commit.
//! Commits, flushes and reads can be made to fail at a chosen call. Clones share one state: a test or a simulation keeps
//! one as "the disk" while the node under test comes and goes with another. Leaves out: anything that outlives the
//! process, and torn batches, which the contract rules out.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::engine::{self, Batch, Engine, Error, Order, Scan, Write};

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultPoint {
    /// [`Engine::get`] and [`Engine::scan`], counted together. A failed read leaves the engine usable.
    Read,
    /// [`Engine::commit`]: nothing of the batch is applied, and the engine is unusable until [`MemoryEngine::crash`].
    Commit,
    /// [`Engine::flush`]: nothing becomes durable, and the engine is unusable until [`MemoryEngine::crash`].
    Flush,
}

/// The calls left until a point fails; `None` is never.
#[derive(Debug, Default)]
struct Faults {
    read: Option<u64>,
    commit: Option<u64>,
    flush: Option<u64>,
}

impl Faults {
    fn slot(&mut self, point: FaultPoint) -> &mut Option<u64> {
        match point {
            FaultPoint::Read => &mut self.read,
            FaultPoint::Commit => &mut self.commit,
            FaultPoint::Flush => &mut self.flush,
        }
    }

    /// Counts one call at `point`; whether this is the one that fails.
    fn strikes(&mut self, point: FaultPoint) -> bool {
        let slot = self.slot(point);
        match slot {
            None => false,
            Some(0 | 1) => {
                *slot = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }
}

type Map = BTreeMap<Bytes, Bytes>;

/// What the engine holds. `visible` is always `durable` with `unflushed` applied.
#[derive(Debug, Default)]
struct State {
    visible: Map,
    durable: Map,
    unflushed: Vec<Batch>,
    faults: Faults,
    broken: Option<&'static str>,
}

/// An engine in memory with a model of durability. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct MemoryEngine {
    state: Arc<RwLock<State>>,
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The batches a crash may lose.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.state.read().unflushed.len()
    }

    /// What a power cut leaves: the last flushed state and the first `keep` batches committed after it (all of them if
    /// there are fewer), since batches become durable whole and in order. Clears faults and a failure. Returns how many
    /// unflushed batches survived.
    pub fn crash(&self, keep: usize) -> usize {
        let mut state = self.state.write();
        let mut unflushed = std::mem::take(&mut state.unflushed);
        unflushed.truncate(keep);
        let kept = unflushed.len();
        for batch in unflushed {
            apply(&mut state.durable, batch);
        }
        state.visible = state.durable.clone();
        state.faults = Faults::default();
        state.broken = None;
        kept
    }

    /// Makes the `nth` call from now at `point` fail; 0 and 1 are both the next. Replaces an earlier fault at this point.
    pub fn fail(&self, point: FaultPoint, nth: u64) {
        *self.state.write().faults.slot(point) = Some(nth);
    }

    /// Counts a read; only the rare armed fault takes the write lock.
    fn count_read(&self) -> Result<(), Error> {
        let armed = {
            let state = self.state.read();
            state.usable()?;
            state.faults.read.is_some()
        };
        if armed && self.state.write().faults.strikes(FaultPoint::Read) {
            return Err(injected("read"));
        }
        Ok(())
    }
}

/// Engines in memory by the path at which files would lie: what a simulation has in the place of a disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryEngines(Arc<Mutex<BTreeMap<PathBuf, MemoryEngine>>>);

impl MemoryEngines {
    /// The engine at a path; an empty one if there is none.
    #[must_use]
    pub fn open(&self, path: &Path) -> MemoryEngine {
        self.0.lock().entry(path.to_owned()).or_default().clone()
    }

    /// There is none at this path any more.
    pub fn remove(&self, path: &Path) {
        self.0.lock().remove(path);
    }

    /// All of them, by path.
    #[must_use]
    pub fn all(&self) -> Vec<MemoryEngine> {
        self.0.lock().values().cloned().collect()
    }
}

impl State {
    fn usable(&self) -> Result<(), Error> {
        match self.broken {
            None => Ok(()),
            Some(action) => Err(Error::Io {
                action: format!("use the engine after a failed {action}"),
                source: io::Error::other("injected fault"),
            }),
        }
    }

    /// Counts a write-side call; a struck one breaks the engine.
    fn strike(&mut self, point: FaultPoint, action: &'static str) -> Result<(), Error> {
        self.usable()?;
        if self.faults.strikes(point) {
            self.broken = Some(action);
            return Err(injected(action));
        }
        Ok(())
    }
}

fn injected(action: &str) -> Error {
    Error::Io { action: action.to_owned(), source: io::Error::other("injected fault") }
}

fn apply(map: &mut Map, batch: Batch) {
    for write in batch {
        match write {
            Write::Put(key, value) => {
                map.insert(key, value);
            }
            Write::Delete(key) => {
                map.remove(&key);
            }
        }
    }
}

fn take<'a>(pairs: impl Iterator<Item = (&'a Bytes, &'a Bytes)>, scan: &Scan<'_>) -> Vec<(Bytes, Bytes)> {
    let mut page = Vec::new();
    let mut bytes = 0_usize;
    for (key, value) in pairs.take(scan.limit) {
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
        page.push((key.clone(), value.clone()));
        if bytes > scan.bytes_max {
            break;
        }
    }
    page
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.count_read()?;
        Ok(self.state.read().visible.get(key).cloned())
    }

    fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, Error> {
        self.count_read()?;
        if engine::is_empty_range(scan.start, scan.end) {
            return Ok(Vec::new());
        }
        let state = self.state.read();
        let range = state.visible.range::<[u8], (Bound<&[u8]>, Bound<&[u8]>)>((scan.start, scan.end));
        Ok(match scan.order {
            Order::Ascending => take(range, &scan),
            Order::Descending => take(range.rev(), &scan),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), Error> {
        engine::check_batch(&batch)?;
        let mut state = self.state.write();
        state.strike(FaultPoint::Commit, "commit")?;
        apply(&mut state.visible, batch.clone());
        state.unflushed.push(batch);
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        let mut state = self.state.write();
        state.strike(FaultPoint::Flush, "flush")?;
        let unflushed = std::mem::take(&mut state.unflushed);
        for batch in unflushed {
            apply(&mut state.durable, batch);
        }
        Ok(())
    }

    /// The bytes of the durable keys and values.
    fn size_on_disk(&self) -> Result<u64, Error> {
        let state = self.state.read();
        state.usable()?;
        let bytes: usize = state.durable.iter().map(|(key, value)| key.len() + value.len()).sum();
        Ok(bytes as u64)
    }
}
