//! Where state engines live: `state/<generation>/`, one directory per fresh start of the state machine.
//!
//! A snapshot is never loaded over living data: it is loaded into the next generation, which is used once it is complete,
//! and the older one is removed then. Guarantees: a generation without a durable marker (a load that was interrupted) is
//! never served from: it reads as an empty state, and recovery compares it with log and snapshots. Leaves out: what is in
//! them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::{self, Engine, SledConfig, SledEngine};

/// The directory of generations.
#[derive(Debug, Clone)]
pub(super) struct EngineHome {
    dir: PathBuf,
    cache_bytes: usize,
}

/// An engine with its generation number.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) engine: Arc<dyn Engine>,
}

impl EngineHome {
    pub(super) fn new(dir: &Path, cache_bytes: usize) -> Self {
        Self { dir: dir.to_owned(), cache_bytes }
    }

    /// Generation numbers, newest first. Names that are none are not ours to touch.
    fn numbers(&self) -> Result<Vec<u64>, storage::Error> {
        std::fs::create_dir_all(&self.dir).map_err(|source| self.error("create", source))?;
        let entries = std::fs::read_dir(&self.dir).map_err(|source| self.error("list", source))?;
        let mut numbers: Vec<u64> = Vec::new();
        for entry in entries {
            let name = entry.map_err(|source| self.error("list", source))?.file_name();
            if let Some(number) = name.to_str().and_then(|name| name.parse().ok()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        Ok(numbers)
    }

    /// Opens the newest generation; the first one if there is none.
    pub(super) fn open_newest(&self) -> Result<Generation, storage::Error> {
        self.open(self.numbers()?.first().copied().unwrap_or(1))
    }

    /// Creates the next generation, empty.
    pub(super) fn open_fresh(&self) -> Result<Generation, storage::Error> {
        self.open(self.numbers()?.first().map_or(1, |newest| newest + 1))
    }

    fn open(&self, number: u64) -> Result<Generation, storage::Error> {
        let path = self.dir.join(number.to_string());
        let config = SledConfig { cache_bytes: self.cache_bytes, ..SledConfig::default() };
        Ok(Generation { number, engine: Arc::new(SledEngine::open(&path, &config)?) })
    }

    /// Removes every generation but this one. What can't be removed is told and left: it only takes space.
    pub(super) fn retire_others(&self, keep: u64) {
        let Ok(numbers) = self.numbers() else { return };
        for number in numbers.into_iter().filter(|number| *number != keep) {
            let path = self.dir.join(number.to_string());
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "can't remove an old state generation");
            }
        }
    }

    fn error(&self, action: &str, source: io::Error) -> storage::Error {
        storage::Error::Io { action: format!("{action} {}", self.dir.display()), source }
    }
}
