//! Levels 3 and 4: objects are fetched, opened, decoded, and replayed.
//!
//! Guarantees: at level 4 too each object is fetched once; a few at a time are on the local disk, and all are removed. Leaves
//! out: objects that are known to be missing are told twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use backon::{BlockingRetryable as _, ConstantBuilder};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::super::catalogue::Catalogue;
use super::super::layout::{Kind, is_encrypted};
use super::super::manifest::Object;
use super::super::rebuild::{RebuildError, Trial};
use super::super::repository::{Repository, StoreError};
use super::super::seal::OpenError;
use super::super::segment::{SegmentError, SegmentReader, StateMark};
use super::super::transfer::{self, FetchError};
use super::{Finding, Level, Progress, Report, Run, Scope, VerifyError};
use crate::codec::framed::FrameError;
use crate::state::snapshot::{SnapshotError, SnapshotReader};
use crate::state::{BatchError, LogContent, LogEntry};
use crate::types::{ClusterId, LogPosition};

/// So many objects are fetched at a time.
const FETCHES_AT_ONCE: usize = 4;

const DAMAGED: &str = "points that need it can't be restored; take it from a copy of the repository, or make a new snapshot now: \
                       quorate backup run NAME";
const KEY: &str = "name the file of the private key whose public key was configured when it was archived: --identity";
const DIFFERS: &str = "the archive does not lead to the state that the cluster had: keep everything, make a new snapshot now (quorate \
                       backup run NAME), and compare the members' state hashes (quorate doctor)";

/// The pause between two tries to remove a folder in which somebody may still be writing, and how many follow the first.
const REMOVAL_PAUSE: Duration = Duration::from_millis(2);
const REMOVALS_MAX: usize = 50;

/// A folder that is removed with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self, VerifyError> {
        let path = parent.join(format!("verify-{:016x}", rand::random::<u64>()));
        let made = fs::create_dir_all(&path);
        made.map_err(|source| VerifyError::Scratch { path: path.clone(), source })?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread of a transfer that was given up may add a file meanwhile.
        let patience = ConstantBuilder::new().with_delay(REMOVAL_PAUSE).with_max_times(REMOVALS_MAX);
        if let Err(error) = (|| fs::remove_dir_all(&self.0)).retry(patience).sleep(std::thread::sleep).call() {
            tracing::warn!(folder = %self.0.display(), %error, "a folder of a check can't be removed");
        }
    }
}

/// An object on the local disk, removed when it is let go; or why it is not there.
struct Fetched<'a> {
    object: &'a Object,
    file: Result<LocalFile, Finding>,
}

struct LocalFile(PathBuf);

impl Drop for LocalFile {
    fn drop(&mut self) {
        // The folder is removed in the end, whatever happens here.
        let _ = fs::remove_file(&self.0);
    }
}

struct Fetcher<'a> {
    repository: &'a Repository,
    scope: Scope<'a>,
    scratch: &'a Scratch,
    bytes: AtomicU64,
    bytes_total: u64,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
    /// Whether any encrypted object was opened, and whether any was not, for want of the right key.
    opened: AtomicBool,
    shut: AtomicBool,
}

impl Fetcher<'_> {
    async fn fetch<'a>(&self, object: &'a Object) -> Result<Fetched<'a>, VerifyError> {
        let path = self.scratch.0.join(format!("{:016x}", rand::random::<u64>()));
        let seen = |part: usize| {
            let bytes = self.bytes.fetch_add(part as u64, Ordering::Relaxed) + part as u64;
            (self.progress)(Progress { bytes, bytes_total: self.bytes_total });
        };
        let fetched = transfer::fetch(self.repository, object, self.scope.identities, &path, seen).await;
        let file = match fetched {
            Ok(()) => {
                self.opened.fetch_or(is_encrypted(&object.name), Ordering::Relaxed);
                Ok(LocalFile(path))
            }
            Err(FetchError::Store(StoreError::Missing { .. })) => {
                Err(Finding::damage(Some(&object.name), "it can't be fetched: it is missing", DAMAGED))
            }
            Err(FetchError::Store(error)) => return Err(error.into()),
            Err(FetchError::Local { path, source }) => return Err(VerifyError::Scratch { path, source }),
            Err(FetchError::Open { source: OpenError::NoIdentity, .. }) => return Err(VerifyError::NoIdentity),
            Err(FetchError::Open { source: error @ OpenError::WrongIdentity, .. }) => {
                self.shut.store(true, Ordering::Relaxed);
                Err(Finding::damage(Some(&object.name), error.to_string(), KEY))
            }
            Err(FetchError::Open { source, .. }) => {
                Err(Finding::damage(Some(&object.name), source.to_string(), DAMAGED))
            }
            Err(FetchError::Damaged { why, .. }) => Err(Finding::damage(Some(&object.name), why, DAMAGED)),
        };
        Ok(Fetched { object, file })
    }
}

/// Checks the content of every object, and at level 4 replays what can be restored.
pub(super) async fn check(
    repository: &Repository,
    catalogue: &Catalogue,
    scope: Scope<'_>,
    report: &mut Report,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), VerifyError> {
    let scratch = Scratch::new(scope.scratch)?;
    let (bytes, bytes_total) = (AtomicU64::new(0), report.bytes);
    let (opened, shut) = (AtomicBool::new(false), AtomicBool::new(false));
    let fetcher = Fetcher { repository, scope, scratch: &scratch, bytes, bytes_total, progress, opened, shut };
    let mut replayed = BTreeSet::new();
    if scope.level >= Level::Replay {
        for run in report.runs.clone() {
            replay(&fetcher, catalogue, &run, report).await?;
            replayed.extend(std::iter::once(&run.full).chain(&run.segments).map(|object| object.name.clone()));
        }
    }
    let others: Vec<&Object> = catalogue.objects().filter(|object| !replayed.contains(&object.name)).collect();
    let mut fetched = stream::iter(others).map(|object| fetcher.fetch(object)).buffer_unordered(FETCHES_AT_ONCE);
    while let Some(Fetched { object, file }) = fetched.try_next().await? {
        let (what, cluster) = (object.clone(), report.cluster);
        let file = match file {
            Ok(file) => file,
            Err(finding) => {
                report.findings.push(finding);
                continue;
            }
        };
        let decoded = blocking(move || match what.kind {
            Kind::Log => decode_segment(&file.0, &what, cluster, |_| Ok(())).map(|entries| (entries, 0)),
            Kind::Full => decode_full(&file.0, &what, cluster).map(|records| (0, records)),
        });
        match decoded.await? {
            Ok((entries, records)) => {
                report.entries += entries;
                report.records += records;
            }
            Err(broken) => report.findings.push(broken.finding(object)?),
        }
    }
    // A key that opens some of it is told of each object that it does not open; one that opens nothing is a wrong one.
    if fetcher.shut.load(Ordering::Relaxed) && !fetcher.opened.load(Ordering::Relaxed) {
        return Err(VerifyError::WrongIdentity);
    }
    Ok(())
}

/// Runs something on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, VerifyError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| VerifyError::Scratch { path: PathBuf::new(), source: std::io::Error::other(error) })
}

/// Why an object did not do.
enum Broken {
    /// It is not what it should be.
    Content(String),
    /// Only a newer program reads it.
    Newer(String),
    /// Replaying it failed here.
    Replay(RebuildError),
}

impl From<SegmentError> for Broken {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::Frame { source: FrameError::Newer { .. }, .. } => Self::Newer(error.to_string()),
            error => Self::Content(error.to_string()),
        }
    }
}

impl From<SnapshotError> for Broken {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Newer { .. } | SnapshotError::NewerSection { .. } => Self::Newer(error.to_string()),
            error => Self::Content(error.to_string()),
        }
    }
}

impl Broken {
    /// What is told of it, where it says something of the archive.
    fn finding(self, object: &Object) -> Result<Finding, VerifyError> {
        match self {
            Self::Content(why) => Ok(Finding::damage(Some(&object.name), why, DAMAGED)),
            Self::Newer(why) => Err(VerifyError::Newer { name: object.name.clone(), why }),
            Self::Replay(error) => Err(VerifyError::Replay(error)),
        }
    }
}

/// Reads a file of entries to its end, and shows each; gives their number.
fn decode_segment(
    path: &Path,
    object: &Object,
    cluster: ClusterId,
    mut seen: impl FnMut(&LogEntry) -> Result<(), RebuildError>,
) -> Result<u64, Broken> {
    let broken = |error: &dyn std::fmt::Display| Broken::Content(error.to_string());
    let file = File::open(path).map_err(|error| broken(&error))?;
    let mut reader = SegmentReader::new(BufReader::with_capacity(1 << 20, file))?;
    if reader.header().cluster != cluster {
        return Err(broken(&format!("it is of cluster {:016x}", reader.header().cluster.get())));
    }
    if reader.header().previous != object.previous.map(Into::into) {
        return Err(broken(&"it begins elsewhere than the manifest says"));
    }
    while let Some(entry) = reader.next_entry()? {
        if let LogContent::Commands(batch) = &entry.content {
            batch.decode().map_err(|error| {
                let why = format!("entry {}: {error}", entry.position);
                if matches!(error, BatchError::Newer(_)) { Broken::Newer(why) } else { Broken::Content(why) }
            })?;
        }
        seen(&entry).map_err(Broken::Replay)?;
    }
    let end = reader.end().expect("a reader that has read all knows the end");
    if end.last != object.last.into() || end.state != object.state.map(Into::into) {
        return Err(broken(&"it ends elsewhere than the manifest says"));
    }
    Ok(end.entries)
}

/// Reads a snapshot file to its end; gives the number of records.
fn decode_full(path: &Path, object: &Object, cluster: ClusterId) -> Result<u64, Broken> {
    let broken = |error: &dyn std::fmt::Display| Broken::Content(error.to_string());
    let summary = SnapshotReader::open(path).and_then(SnapshotReader::finish)?;
    let meta = &summary.meta;
    let state = StateMark { revision: meta.revision, hash: meta.hash };
    if meta.cluster_id != cluster {
        return Err(broken(&format!("it is of cluster {:016x}", meta.cluster_id.get())));
    }
    if meta.position != Some(object.last.into()) || object.state.map(Into::into) != Some(state) {
        return Err(broken(&"it is of another state than the manifest says"));
    }
    Ok(summary.records)
}

/// What the archive says of the states of a run, by the index of the entry in front of it.
type Marks = BTreeMap<u64, (StateMark, String)>;

/// Replays a run from its snapshot to its end, as far as it goes.
async fn replay(
    fetcher: &Fetcher<'_>,
    catalogue: &Catalogue,
    run: &Run,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let objects = std::iter::once(&run.full).chain(&run.segments);
    let known = catalogue.objects().filter_map(|object| {
        let state = object.state?;
        Some((object.last.index, (state.into(), object.name.clone())))
    });
    let marks: Marks = known.collect();
    let mut fetched = stream::iter(objects).map(|object| fetcher.fetch(object)).buffered(FETCHES_AT_ONCE);
    let mut player = Player { trial: None, marks, compared: 0, reached: None, findings: Vec::new(), stopped: false };
    let (folder, cluster) = (fetcher.scratch.0.join(format!("{:020}-engine", run.full.last.index)), report.cluster);
    while let Some(Fetched { object, file }) = fetched.try_next().await? {
        let file = match file {
            Ok(file) => file,
            Err(finding) => {
                player.findings.push(finding);
                // The log does not go on without it; what is behind is still decoded.
                player.stopped = true;
                continue;
            }
        };
        let (what, folder) = (object.clone(), folder.clone());
        let (back, done) = blocking(move || player.play(&file, &what, cluster, &folder)).await?;
        player = back;
        match done {
            Ok((entries, records)) => {
                report.entries += entries;
                report.records += records;
            }
            Err(broken) => {
                player.findings.push(broken.finding(object)?);
                player.stopped = true;
            }
        }
    }
    report.compared += player.compared;
    report.findings.append(&mut player.findings);
    report.reached = player.reached.or(report.reached);
    drop(player);
    // The next run needs the room.
    let _ = fs::remove_dir_all(folder);
    Ok(())
}

/// A replay, and what came of it.
struct Player {
    trial: Option<Trial>,
    marks: Marks,
    compared: u64,
    /// The last state that was as it should be.
    reached: Option<(LogPosition, StateMark)>,
    findings: Vec<Finding>,
    /// Something is missing or wrong: the rest is only decoded.
    stopped: bool,
}

impl Player {
    /// Loads a snapshot, or applies entries; gives itself back with the numbers of entries and records.
    fn play(
        mut self,
        file: &LocalFile,
        object: &Object,
        cluster: ClusterId,
        folder: &Path,
    ) -> (Self, Result<(u64, u64), Broken>) {
        let done = match object.kind {
            Kind::Full => self.load(file, object, cluster, folder).map(|records| (0, records)),
            Kind::Log => {
                decode_segment(&file.0, object, cluster, |entry| self.apply(entry)).map(|entries| (entries, 0))
            }
        };
        (self, done)
    }

    fn load(&mut self, file: &LocalFile, object: &Object, cluster: ClusterId, folder: &Path) -> Result<u64, Broken> {
        let records = decode_full(&file.0, object, cluster)?;
        match Trial::load(folder, cluster, &file.0) {
            Ok(trial) => {
                self.trial = Some(trial);
                self.compare(object.last.index);
                Ok(records)
            }
            Err(error) if error.is_damage() => Err(Broken::Content(error.to_string())),
            Err(error) => Err(Broken::Replay(error)),
        }
    }

    fn apply(&mut self, entry: &LogEntry) -> Result<(), RebuildError> {
        if self.stopped {
            return Ok(());
        }
        let Some(trial) = &mut self.trial else { return Ok(()) };
        match trial.apply(entry) {
            Ok(true) => self.compare(entry.position.index.get()),
            Ok(false) => {}
            Err(error) if error.is_damage() => {
                self.findings.push(Finding::damage(None, error.to_string(), DIFFERS));
                self.stopped = true;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Compares the state with what was noted of it, if anything was.
    fn compare(&mut self, index: u64) {
        let (Some(trial), Some((expected, name))) = (&mut self.trial, self.marks.get(&index)) else { return };
        self.compared += 1;
        match trial.compare(*expected) {
            Ok(position) => self.reached = Some((position, *expected)),
            Err(error) => {
                self.findings.push(Finding::damage(Some(name), error.to_string(), DIFFERS));
                self.stopped = true;
            }
        }
    }
}
