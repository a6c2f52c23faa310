//! Where state engines live: `state/<generation>/`, one directory per fresh start of the state machine.
//!
//! A snapshot is never loaded over living data: it is loaded into the next generation, which is used once it is complete,
//! and the older one is removed once its last user has let go of it. Guarantees: a generation without a durable marker (a
//! load that was interrupted) is never served from; one that was found damaged while it was used, or never came back from a
//! call, is not opened again; a directory is only removed after its engine was closed. Leaves out: what is in them.

use std::io::{self, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::storage::{self, Batch, Engine, MemoryEngines, Order, Scan, SledConfig, SledEngine};

/// The part of an engine's memory that is for pages which were only read; the rest is for freshly written ones, and a
/// checkpoint that finds more of those closes the engine and opens it again, which takes 0.1 to 0.2 s.
const READ_PART: usize = 5;

/// What freshly written pages may take at least, in bytes: with less, every checkpoint would reopen the engine.
const WRITTEN_MIN: u64 = 64 * 1024 * 1024;

/// Behind the number of a generation: the name of a file that says why it may not be opened again.
const CONDEMNED: &str = ".condemned";

/// The exit code of damaged data, which is part of the contract of the command line.
const EXIT_DAMAGED: i32 = 4;

/// What state engines are made of.
#[derive(Debug, Clone, Default)]
pub enum Engines {
    /// Sled, in files.
    #[default]
    Sled,
    /// Memory, in a simulation; the directories stay empty.
    Memory(MemoryEngines),
}

/// The directory of generations.
#[derive(Debug, Clone)]
pub(super) struct EngineHome {
    dir: PathBuf,
    /// Memory for an engine's pages, in bytes.
    cache_bytes: usize,
    engines: Engines,
}

/// An engine with its place. The state machine holds its engine, so the last reader of a state closes it.
pub(super) struct Generation {
    path: PathBuf,
    number: u64,
    retired: AtomicBool,
    /// Whether it was found damaged.
    condemned: AtomicBool,
    /// Taken when this is dropped, and not before.
    engine: Option<Box<dyn Engine>>,
    engines: Engines,
}

impl EngineHome {
    pub(super) fn new(dir: &Path, cache_bytes: usize) -> Self {
        Self { dir: dir.to_owned(), cache_bytes, engines: Engines::Sled }
    }

    /// Has its engines made of something else.
    pub(super) fn with(self, engines: Engines) -> Self {
        Self { engines, ..self }
    }

    /// Where the first generation lives in such a directory.
    pub(super) fn first_in(dir: &Path) -> PathBuf {
        dir.join("1")
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
    pub(super) fn open_newest(&self) -> Result<Arc<Generation>, storage::Error> {
        self.open(self.numbers()?.first().copied().unwrap_or(1))
    }

    /// Creates the next generation, empty.
    pub(super) fn open_fresh(&self) -> Result<Arc<Generation>, storage::Error> {
        self.open(self.numbers()?.first().map_or(1, |newest| newest + 1))
    }

    fn open(&self, number: u64) -> Result<Arc<Generation>, storage::Error> {
        let path = self.dir.join(number.to_string());
        match std::fs::read_to_string(condemned(&path)) {
            Ok(reason) => return Err(storage::Error::Damaged(format!("found when it was used last: {reason}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.error("look for what is condemned in", error)),
        }
        let engine = Some(self.engine_at(&path)?);
        Ok(Arc::new(Generation {
            path,
            number,
            retired: AtomicBool::default(),
            condemned: AtomicBool::default(),
            engine,
            engines: self.engines.clone(),
        }))
    }

    fn engine_at(&self, path: &Path) -> Result<Box<dyn Engine>, storage::Error> {
        match &self.engines {
            Engines::Sled => {
                let read = self.cache_bytes / READ_PART;
                let pinned_bytes = ((self.cache_bytes - read) as u64).max(WRITTEN_MIN);
                let config =
                    SledConfig { cache_bytes: read, pinned_bytes, on_endless: end_process, ..SledConfig::default() };
                Ok(Box::new(SledEngine::open(path, &config)?))
            }
            Engines::Memory(engines) => {
                std::fs::create_dir_all(path).map_err(|source| self.error("create", source))?;
                Ok(Box::new(engines.open(path)))
            }
        }
    }

    /// Removes every other generation that nobody has open: what earlier lives of this process left behind.
    pub(super) fn remove_others(&self, keep: &Generation) {
        let Ok(numbers) = self.numbers() else { return };
        for number in numbers.into_iter().filter(|number| *number != keep.number) {
            remove(&self.dir.join(number.to_string()), &self.engines);
        }
    }

    fn error(&self, action: &str, source: io::Error) -> storage::Error {
        storage::Error::Io { action: format!("{action} {}", self.dir.display()), source }
    }
}

/// What can't be removed is told and left: it only takes space. The reason to condemn it goes last, or a removal that is cut
/// short would leave something that looks sound.
fn remove(path: &Path, engines: &Engines) {
    if let Engines::Memory(engines) = engines {
        engines.remove(path);
    }
    let removed = std::fs::remove_dir_all(path).and_then(|()| match std::fs::remove_file(condemned(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    });
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "can't remove an old state generation");
    }
}

fn condemned(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(CONDEMNED);
    PathBuf::from(name)
}

/// Has the next start rebuild it; told where that is not possible.
fn write_condemned(path: &Path, reason: &storage::Error) {
    let path = condemned(path);
    if let Err(error) = std::fs::write(&path, reason.to_string()) {
        tracing::error!(path = %path.display(), %error, "can't condemn a damaged state; remove state/ before the next start");
    }
}

/// Ends the process at once, its state condemned. The thread that never comes back may be the one that runs everything
/// else, and may hold locks that an orderly end would wait for. The log has all that matters, as for a kill.
#[expect(clippy::exit, reason = "see above")]
fn end_process(path: &Path, reason: &storage::Error) {
    write_condemned(path, reason);
    tracing::error!(%reason, "fatal local failure");
    // As the command line ends. Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "quorate: ending after a local failure: {reason}");
    std::process::exit(EXIT_DAMAGED);
}

impl Generation {
    /// Its directory is removed once the last user has let go of it.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Has this generation rebuilt at the next start, if the error says that it is damaged: it would be met again. For
    /// what the engine itself finds, whoever asks it, this is done already.
    pub(super) fn condemn(&self, error: &storage::Error) {
        if !matches!(error, storage::Error::Damaged(_)) || self.condemned.swap(true, Ordering::AcqRel) {
            return;
        }
        write_condemned(&self.path, error);
    }

    /// Whether nothing was ever written into it.
    pub(super) fn is_empty(&self) -> Result<bool, storage::Error> {
        let (start, end, order) = (Bound::Unbounded, Bound::Unbounded, Order::Ascending);
        Ok(self.engine().scan(Scan { start, end, order, limit: 1, bytes_max: 1 })?.is_empty())
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn engine(&self) -> &dyn Engine {
        self.engine.as_deref().expect("taken only when dropped")
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let (engine, retired, path) = (self.engine.take(), self.retired.load(Ordering::Acquire), self.path.clone());
        if !retired {
            return;
        }
        // Closing flushes, and the last user may be a request. Closing an engine whose files are gone would abort the
        // process, so the files go last.
        let engines = self.engines.clone();
        let close = move || {
            drop(engine);
            remove(&path, &engines);
        };
        if matches!(self.engines, Engines::Memory(_)) {
            // Nothing in it takes long, and a simulation has no threads.
            return close();
        }
        if let Err(error) = std::thread::Builder::new().name("retire".into()).spawn(close) {
            tracing::warn!(%error, "an old state generation is left to the next start");
        }
    }
}

impl Engine for Generation {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, storage::Error> {
        self.engine().get(key).inspect_err(|error| self.condemn(error))
    }

    fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Bytes, Bytes)>, storage::Error> {
        self.engine().scan(scan).inspect_err(|error| self.condemn(error))
    }

    fn commit(&self, batch: Batch) -> Result<(), storage::Error> {
        self.engine().commit(batch).inspect_err(|error| self.condemn(error))
    }

    fn flush(&self) -> Result<(), storage::Error> {
        self.engine().flush().inspect_err(|error| self.condemn(error))
    }

    fn size_on_disk(&self) -> Result<u64, storage::Error> {
        self.engine().size_on_disk()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Write;

    #[test]
    fn a_retired_generation_serves_its_last_user_and_then_goes() {
        let dir = tempfile::tempdir().unwrap();
        let home = EngineHome::new(dir.path(), 1024 * 1024);
        let old = home.open_newest().unwrap();
        old.commit(vec![Write::Put(Bytes::from("k"), Bytes::from("v"))]).unwrap();
        let new = home.open_fresh().unwrap();
        old.retire();
        assert_eq!(old.get(b"k").unwrap().as_deref(), Some(&b"v"[..]), "still open");
        old.flush().unwrap();
        drop(old);
        let deadline = crate::clock::now() + std::time::Duration::from_secs(30);
        while dir.path().join("1").exists() {
            assert!(crate::clock::now() < deadline, "the directory stays");
            std::thread::yield_now();
        }
        assert_eq!(new.get(b"k").unwrap(), None);
        assert_eq!(home.numbers().unwrap(), [2]);
    }

    #[test]
    fn a_generation_that_was_found_damaged_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let home = EngineHome::new(dir.path(), 1024 * 1024);
        let full = storage::Error::Io { action: "write".into(), source: io::ErrorKind::StorageFull.into() };
        home.open_newest().unwrap().condemn(&full);
        let generation = home.open_newest().unwrap();
        generation.condemn(&storage::Error::Damaged("rot".into()));
        drop(generation);
        let refused = home.open_newest().map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "damaged data: found when it was used last: damaged data: rot");
        let next = home.open_fresh().unwrap();
        home.remove_others(&next);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the reason goes with the directory");
    }

    /// Tells the test below that it is the process that is to end, and in which store.
    const ENDLESS_VARIABLE: &str = "QUORATE_ENGINE_HOME_ENDLESS";

    #[test]
    fn a_call_that_never_comes_back_condemns_the_state_and_ends_the_process() {
        if let Some(path) = std::env::var_os(ENDLESS_VARIABLE) {
            end_process(Path::new(&path), &storage::Error::Damaged("endless".into()));
        }
        let dir = tempfile::tempdir().unwrap();
        let home = EngineHome::new(dir.path(), 1024 * 1024);
        drop(home.open_newest().unwrap());
        let own = "raft::engine_home::tests::a_call_that_never_comes_back_condemns_the_state_and_ends_the_process";
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", own, "--nocapture"])
            .env(ENDLESS_VARIABLE, dir.path().join("1"))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(EXIT_DAMAGED), "{told}");
        assert!(told.ends_with("quorate: ending after a local failure: damaged data: endless\n"), "{told}");
        let refused = home.open_newest().map(drop).unwrap_err();
        assert!(matches!(refused, storage::Error::Damaged(_)), "{refused}");
    }

    #[test]
    fn what_an_earlier_life_left_is_removed_and_foreign_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["3", "7", "notes"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let home = EngineHome::new(dir.path(), 1024 * 1024);
        let newest = home.open_newest().unwrap();
        home.remove_others(&newest);
        assert_eq!(home.numbers().unwrap(), [7]);
        assert!(dir.path().join("notes").exists());
    }
}
