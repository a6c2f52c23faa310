//! The archive is the log: what is in it is what was committed, and restoring it gives the state that was there.
//!
//! Guarantees: every piece of the log that ever belonged to the archive holds the committed entries, one behind the other,
//! and begins behind the one that it says; each whole state, and each state that is told behind a piece, is that of the
//! reference; there is a gap only where no node could have the entries any more; no object was replaced. At the end points
//! of the archive are restored by the product's own hands, and the archive goes on until it holds all. Leaves out: objects that belong to no manifest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate::backup::catalogue::Catalogue;
use quorate::backup::layout::Kind;
use quorate::backup::manifest::Object;
use quorate::backup::marker;
use quorate::backup::plan::{Target, plan, windows};
use quorate::backup::rebuild;
use quorate::backup::repository::Repository;
use quorate::backup::seal::Identities;
use quorate::backup::segment::{SegmentReader, StateMark};
use quorate::backup::stage::Stage;
use quorate::backup::transfer::fetch;
use quorate::raft::types::Payload;
use quorate::state::{LogContent, LogEntry, StateConfig};
use quorate::storage::MemoryEngine;
use quorate::types::{ClusterId, LogIndex, LogPosition};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::runtime::{Builder, Runtime};

use super::Violation;
use super::chosen::Chosen;
use super::reference::Reference;
use crate::store::Store;

const NAME: &str = "the archive is the log";

/// Points that are restored at the end, beside the last one.
const POINTS: usize = 2;

/// What is known of the archive.
pub(crate) struct Archive {
    store: Store,
    repository: Repository,
    runtime: Runtime,
    scratch: PathBuf,
    known: Option<Catalogue>,
    /// Objects that were read.
    seen: BTreeSet<String>,
    entries: u64,
    restored: u64,
}

fn wrong(what: impl Into<String>) -> Violation {
    Violation::new(NAME, what)
}

impl Archive {
    /// What is fetched lies in `home`.
    pub(crate) fn new(store: &Store, home: &Path) -> Self {
        let repository = Repository::new(store.sound(), object_store::path::Path::default(), "sound:");
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let scratch = home.join("archive");
        std::fs::create_dir_all(&scratch).expect("a folder");
        let (known, seen) = (None, BTreeSet::new());
        Self { store: store.clone(), repository, runtime, scratch, known, seen, entries: 0, restored: 0 }
    }

    /// Objects and entries in them that were read, and points that were restored.
    pub(crate) fn figures(&self) -> (u64, u64, u64) {
        (self.seen.len() as u64, self.entries, self.restored)
    }

    /// Reads what has come to belong to the archive.
    pub(super) fn follow(&mut self, chosen: &Chosen, reference: &Reference) -> Result<(), Violation> {
        if let Some(offence) = self.store.offence() {
            return Err(Violation::new("nothing archived is replaced", offence));
        }
        self.refresh()?;
        let Some(catalogue) = &self.known else { return Ok(()) };
        let new: Vec<Object> = catalogue.objects().filter(|one| !self.seen.contains(&one.name)).cloned().collect();
        let cluster = catalogue.cluster();
        for object in new {
            match object.kind {
                Kind::Full => is_chosen(&object, object.last.into(), chosen)?,
                Kind::Log => self.entries += self.piece(&object, cluster, chosen)?,
            }
            let told = object.state.map(StateMark::from).map(|state| (state.revision, state.hash));
            let expected = reference.behind(object.last.index);
            if told.is_some_and(|told| Some(told) != expected) {
                return Err(wrong(format!(
                    "{} tells of {told:?} behind its last entry, not {expected:?}",
                    object.name
                )));
            }
            self.seen.insert(object.name);
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), Violation> {
        let Self { repository, runtime, known, .. } = self;
        let read = runtime.block_on(async {
            match known {
                Some(known) => known.refresh(repository).await.map(drop).map_err(|error| error.to_string()),
                None => {
                    // Before the first node comes to it there is nothing.
                    let Ok(clusters) = marker::clusters(repository).await else { return Ok(()) };
                    let [cluster] = clusters[..] else { return Ok(()) };
                    *known = Some(Catalogue::read(repository, cluster).await.map_err(|error| error.to_string())?);
                    Ok(())
                }
            }
        });
        read.map_err(wrong)
    }

    /// Reads a piece of the log; returns how many entries it has.
    fn piece(&self, object: &Object, cluster: ClusterId, chosen: &Chosen) -> Result<u64, Violation> {
        let damaged = |error: &dyn std::fmt::Display| wrong(format!("{}: {error}", object.name));
        let file = self.scratch.join("piece");
        let nobody = Identities::default();
        let fetching = fetch(&self.repository, object, &nobody, &file, |_| ());
        self.runtime.block_on(fetching).map_err(|error| damaged(&error))?;
        let bytes = std::fs::read(&file).expect("it was just written");
        let mut reader = SegmentReader::new(&bytes[..]).map_err(|error| damaged(&error))?;
        let previous = reader.header().previous;
        if reader.header().cluster != cluster || previous.map(Into::into) != object.previous {
            return Err(damaged(&"its header says something else than the manifest"));
        }
        if let Some(previous) = previous {
            is_chosen(object, previous, chosen)?;
        }
        let mut next = previous.map_or(0, |previous| previous.index.get() + 1);
        let first = next;
        while let Some(entry) = reader.next_entry().map_err(|error| damaged(&error))? {
            if entry.position.index.get() != next || !is_entry(&entry, chosen) {
                let expected = chosen.get(next).map(|entry| LogPosition::from(entry.log_id));
                return Err(damaged(&format!("{} stands where {expected:?} was committed", entry.position)));
            }
            next += 1;
        }
        if next != object.last.index + 1 {
            return Err(damaged(&format!("it ends before {next}, not with {}", object.last.index)));
        }
        Ok(next - first)
    }

    /// That everything is in the archive that was committed. `purged` is the farthest up to where any node has removed its log:
    /// there is a gap only where the log of some node has one. Until what lies before a whole state is sent as well there may be others.
    pub(super) fn is_complete(&self, chosen: &Chosen, purged: u64) -> Result<(), Violation> {
        let windows = self.known.as_ref().map(windows).unwrap_or_default();
        for pair in windows.windows(2) {
            let (end, begin) = (pair[0].to.index.get(), pair[1].from.index.get());
            if purged <= end {
                let what = format!("nothing is archived between {end} and {begin}, but every node has {}", end + 1);
                return Err(wrong(what));
            }
        }
        let (end, last) = (self.known.as_ref().and_then(Catalogue::end), chosen.last());
        if end == last { Ok(()) } else { Err(wrong(format!("it ends at {end:?}, but {last:?} is committed"))) }
    }

    /// Restores the end of the archive, and some points in it, and compares them with what was there.
    pub(super) fn restores(&mut self, reference: &Reference, random: &mut SmallRng) -> Result<(), Violation> {
        let Some(known) = &self.known else { return Ok(()) };
        let cluster = known.cluster();
        let walked = self.runtime.block_on(Catalogue::walk(&self.repository, cluster, |_, _| ()));
        let catalogue = walked.map_err(|error| wrong(error.to_string()))?;
        let windows = windows(&catalogue);
        let mut targets = vec![Target::Latest];
        for _ in 0..POINTS {
            let Some(window) = windows.get(random.random_range(0..windows.len().max(1))) else { continue };
            let index = random.random_range(window.from.index.get()..=window.to.index.get());
            targets.push(Target::Index(LogIndex::new(index)));
        }
        for target in targets {
            let (index, hash) = self.restore(&catalogue, target).map_err(|why| wrong(format!("{target}: {why}")))?;
            let expected = reference.behind(index).map(|(_, hash)| hash);
            if expected != Some(hash) {
                let what = format!("{target}: restored to entry {index} with hash {hash:032x}, not {expected:032x?}");
                return Err(wrong(what));
            }
            self.restored += 1;
        }
        Ok(())
    }

    /// The index and the hash of a state that was restored.
    fn restore(&self, catalogue: &Catalogue, target: Target) -> Result<(u64, u128), String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let plan = plan(catalogue, target).map_err(|error| told(&error))?;
        let folder = self.scratch.join("stage");
        let stage = Stage::open(&folder).map_err(|error| told(&error))?;
        let nobody = Identities::default();
        let filling = stage.fill(&self.repository, &plan, &nobody, |_| ());
        let staged = self.runtime.block_on(filling).map_err(|error| told(&error))?;
        let config = StateConfig::new(64 << 20, 0);
        let loaded = rebuild::load(Arc::new(MemoryEngine::new()), config, staged.cluster, &staged.snapshot, None);
        let (mut machine, _) = loaded.map_err(|error| told(&error))?;
        let reached = rebuild::replay(&mut machine, staged.steps(), target, |_| ()).map_err(|error| told(&error))?;
        stage.remove().map_err(|error| told(&error))?;
        Ok((reached.position.index.get(), reached.hash))
    }
}

fn is_chosen(object: &Object, position: LogPosition, chosen: &Chosen) -> Result<(), Violation> {
    let found = chosen.get(position.index.get()).map(|entry| LogPosition::from(entry.log_id));
    if found == Some(position) {
        return Ok(());
    }
    Err(wrong(format!("{} is of {position}, where {found:?} was committed", object.name)))
}

/// Whether this is what was committed there.
fn is_entry(entry: &LogEntry, chosen: &Chosen) -> bool {
    let Some(expected) = chosen.get(entry.position.index.get()) else { return false };
    let same = match (&entry.content, &expected.payload) {
        (LogContent::Blank, Payload::Blank) | (LogContent::Membership(_), Payload::Membership(_)) => true,
        (LogContent::Commands(one), Payload::Normal(other)) => one == other,
        _ => false,
    };
    same && entry.position == LogPosition::from(expected.log_id)
}
