//! A folder that takes what a plan reads: fetched, unpacked and checked, several objects at a time.
//!
//! Guarantees: a file under its final name was whole when it got it; what an earlier attempt has left is read to its end
//! again before it is used, and fetched again if anything is wrong with it; what the plan does not name is removed; memory
//! holds a few parts of each object under way, whatever their size; too little room is told before anything is fetched.
//! Leaves out: what is done with the files (`rebuild`).

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::manifest::Object;
use super::plan::Plan;
use super::rebuild::Step;
use super::repository::Repository;
use super::seal::Identities;
use super::segment::{SegmentError, SegmentReader};
use super::transfer::{FetchError, fetch};
use crate::codec::framed::FrameError;
use crate::state::snapshot;
use crate::types::{ClusterId, LogPosition};

/// Objects that are fetched at a time.
const FETCHES_AT_ONCE: usize = 8;

/// How often an object is asked for that the store could not serve.
const ATTEMPTS_MAX: usize = 6;

/// The pauses between, which double.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Bytes read from a file at once.
const READ_BUFFER_BYTES: usize = 1024 * 1024;

/// What else is written while a state is built, as a multiple of the snapshot that is begun with: the state, and the
/// snapshot of the new cluster.
const ROOM_FOR_STATES: u64 = 2;

/// Why a plan's objects are not all there.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// An object can't be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The folder can't be used.
    #[error("can't {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is not enough room.
    #[error(
        "{} has room for {}, but about {} are needed: what is read takes {} unpacked, and the state is built beside it; \
         make room, or name a directory elsewhere", .path.display(), size(*.free), size(*.needed), size(*.plain)
    )]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes of what is read.
        plain: u64,
    },
    /// An object of the archive was written by a newer program.
    #[error("{name}: {why}; it needs the program that archived, or a newer one")]
    Newer {
        /// Which.
        name: String,
        /// What is newer.
        why: String,
    },
    /// An object of the archive is not what the manifest says.
    #[error("{name}: {why}")]
    Damaged {
        /// Which.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// What a fetch tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes came from the store.
    Fetched(usize),
    /// A file of this many bytes in the store was there already, and is sound.
    Kept(u64),
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Stage(PathBuf);

/// All that a plan reads, here.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The cluster.
    pub cluster: ClusterId,
    /// The snapshot to begin with.
    pub snapshot: PathBuf,
    /// The last entry in it.
    pub(super) begin: LogPosition,
    pub(super) segments: Vec<(Object, PathBuf)>,
}

impl Stage {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn open(folder: &Path) -> Result<Self, StageError> {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        Ok(Self(folder.to_owned()))
    }

    /// Brings all that a plan reads here. What was fetched before is used if it is sound, so an attempt that was cut short
    /// goes on. Dropped half-way, it leaves whole files and such that are not under their names.
    ///
    /// # Errors
    /// [`StageError`]; what was fetched stays.
    pub async fn fill(
        &self,
        repository: &Repository,
        plan: &Plan,
        identities: &Identities,
        seen: impl Fn(Progress),
    ) -> Result<Staged, StageError> {
        let missing = self.sort_out(plan)?;
        self.look_for_room(plan, &missing)?;
        let (seen, cluster) = (&seen, plan.cluster);
        let bring = |object: Object| async move {
            let path = self.place(&object);
            if path.exists() && kept(&object, &path, cluster).await? {
                seen(Progress::Kept(object.bytes));
                return Ok(());
            }
            let attempt = || async {
                fetch(repository, &object, identities, &path, |bytes| seen(Progress::Fetched(bytes))).await
            };
            let pauses = ExponentialBuilder::default().with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX);
            attempt
                .retry(pauses.with_max_times(ATTEMPTS_MAX - 1))
                .sleep(tokio::time::sleep)
                .when(|error| matches!(error, FetchError::Store(error) if error.is_transient()))
                .notify(|error, pause| {
                    tracing::warn!(object = object.name, %error, pause_ms = pause.as_millis(), "fetching again");
                })
                .await?;
            Ok::<_, StageError>(())
        };
        let objects: Vec<Object> = plan.objects().cloned().collect();
        stream::iter(objects.into_iter().map(bring)).buffer_unordered(FETCHES_AT_ONCE).try_collect::<()>().await?;
        File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(failed("sync", &self.0))?;
        Ok(Staged {
            cluster,
            snapshot: self.place(&plan.full),
            begin: plan.full.last.into(),
            segments: plan.segments.iter().map(|object| (object.clone(), self.place(object))).collect(),
        })
    }

    /// Removes the folder and all that is in it.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn remove(self) -> Result<(), StageError> {
        fs::remove_dir_all(&self.0).map_err(failed("remove", &self.0))
    }

    /// Where an object lies. Names of objects are new for ever, so a file tells by its name what is in it.
    fn place(&self, object: &Object) -> PathBuf {
        let name = object.name.rsplit('/').next().unwrap_or_default();
        let name = name.strip_suffix(".age").unwrap_or(name);
        self.0.join(name.strip_suffix(".zst").unwrap_or(name))
    }

    /// Removes what the plan does not need, and tells what of it is not here.
    fn sort_out(&self, plan: &Plan) -> Result<Vec<Object>, StageError> {
        let wanted: Vec<PathBuf> = plan.objects().map(|object| self.place(object)).collect();
        for entry in fs::read_dir(&self.0).map_err(failed("list", &self.0))? {
            let path = entry.map_err(failed("list", &self.0))?.path();
            if !wanted.contains(&path) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(plan.objects().filter(|object| !self.place(object).exists()).cloned().collect())
    }

    fn look_for_room(&self, plan: &Plan, missing: &[Object]) -> Result<(), StageError> {
        let free = rustix::fs::statvfs(&self.0).map_err(|error| failed("look at", &self.0)(error.into()))?;
        let free = free.f_bavail.saturating_mul(free.f_frsize);
        let needed = plain_bytes(missing).saturating_add(ROOM_FOR_STATES.saturating_mul(plan.full.plain_bytes));
        if free < needed {
            return Err(StageError::NoRoom { path: self.0.clone(), free, needed, plain: plain_bytes(plan.objects()) });
        }
        Ok(())
    }
}

/// Bytes of objects, unpacked. The numbers of manifests are anybody's, so they need not fit.
fn plain_bytes<'a>(objects: impl IntoIterator<Item = &'a Object>) -> u64 {
    objects.into_iter().fold(0, |sum: u64, object| sum.saturating_add(object.plain_bytes))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StageError {
    let path = path.to_owned();
    move |source| StageError::Io { action, path, source }
}

/// Whether a file of an earlier attempt is what it should be. Otherwise it is removed.
async fn kept(object: &Object, path: &Path, cluster: ClusterId) -> Result<bool, StageError> {
    let (object, file) = (object.clone(), path.to_owned());
    let look = tokio::task::spawn_blocking(move || {
        if File::open(&file).and_then(|open| open.metadata()).is_ok_and(|meta| meta.len() != object.plain_bytes) {
            return false;
        }
        match object.kind {
            super::layout::Kind::Full => snapshot::verify(&file)
                .is_ok_and(|found| found.meta.position == Some(object.last.into()) && found.meta.cluster_id == cluster),
            super::layout::Kind::Log => Segment::open(&object, &file, cluster).and_then(Segment::read_out).is_ok(),
        }
    });
    let is_sound = look.await.map_err(|panic| failed("read", path)(panic.into()))?;
    if !is_sound {
        tracing::warn!(file = %path.display(), "a file of an earlier attempt is not whole; fetching it again");
        fs::remove_file(path).map_err(failed("remove", path))?;
    }
    Ok(is_sound)
}

impl Staged {
    /// The entries behind the snapshot, each once and in order, and what the archive tells of the states behind them.
    /// Ends behind an error. Blocks on the disk.
    pub fn steps(&self) -> impl Iterator<Item = Result<Step, StageError>> + Send + use<> {
        Steps { cluster: self.cluster, last: self.begin, left: self.segments.clone().into_iter(), open: None }
    }

    /// Bytes of the pieces of the log, unpacked.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        plain_bytes(self.segments.iter().map(|(object, _)| object))
    }

    /// Bytes of the snapshot.
    #[must_use]
    pub fn snapshot_bytes(&self) -> u64 {
        fs::metadata(&self.snapshot).map_or(0, |meta| meta.len())
    }
}

/// A piece of the log that is read.
struct Segment {
    object: Arc<Object>,
    path: PathBuf,
    reader: SegmentReader<BufReader<File>>,
}

impl Segment {
    fn open(object: &Object, path: &Path, cluster: ClusterId) -> Result<Self, StageError> {
        let object = Arc::new(object.clone());
        let file = File::open(path).map_err(failed("open", path))?;
        let reader = SegmentReader::new(BufReader::with_capacity(READ_BUFFER_BYTES, file));
        let reader = reader.map_err(|error| unreadable(&object, path, error))?;
        let header = reader.header();
        if header.cluster != cluster {
            let why = format!("it is of cluster {}, not {cluster}", header.cluster);
            return Err(StageError::Damaged { name: object.name.clone(), why });
        }
        if header.previous.map(Into::into) != object.previous {
            return Err(StageError::Damaged {
                name: object.name.clone(),
                why: "it begins elsewhere than the manifest says".into(),
            });
        }
        Ok(Self { object, path: path.to_owned(), reader })
    }

    /// The next entry or, behind the last one, what is told of the state there; then `None`.
    fn next(&mut self) -> Result<Option<Step>, StageError> {
        let was_over = self.reader.end().is_some();
        let next = self.reader.next_entry().map_err(|error| unreadable(&self.object, &self.path, error));
        if let Some(entry) = next? {
            return Ok(Some(Step::Entry(entry)));
        }
        let Some(end) = self.reader.end().filter(|_| !was_over) else { return Ok(None) };
        if end.last != self.object.last.into() || end.state.map(Into::into) != self.object.state {
            let why = "it ends elsewhere than the manifest says".to_owned();
            return Err(StageError::Damaged { name: self.object.name.clone(), why });
        }
        Ok(end.state.map(|state| Step::Mark(end.last, state)))
    }

    fn read_out(mut self) -> Result<(), StageError> {
        while self.reader.end().is_none() {
            self.next()?;
        }
        Ok(())
    }
}

/// Why a file can't be read: the disk, or what is in it.
fn unreadable(object: &Object, path: &Path, error: SegmentError) -> StageError {
    match error {
        // These two say that it ends early, or is no such file.
        SegmentError::Io(source)
            if !matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
        {
            failed("read", path)(source)
        }
        error @ SegmentError::Frame { source: FrameError::Newer { .. }, .. } => {
            StageError::Newer { name: object.name.clone(), why: error.to_string() }
        }
        error => StageError::Damaged { name: object.name.clone(), why: error.to_string() },
    }
}

/// One piece behind the other.
struct Steps {
    cluster: ClusterId,
    last: LogPosition,
    left: std::vec::IntoIter<(Object, PathBuf)>,
    open: Option<Segment>,
}

impl Steps {
    fn step(&mut self) -> Result<Option<Step>, StageError> {
        loop {
            let Some(segment) = &mut self.open else {
                let Some((object, path)) = self.left.next() else { return Ok(None) };
                self.open = Some(Segment::open(&object, &path, self.cluster)?);
                continue;
            };
            match segment.next()? {
                // Pieces may overlap.
                Some(Step::Entry(entry)) if entry.position.index <= self.last.index => {
                    if entry.position.index == self.last.index && entry.position != self.last {
                        let why = format!("its entry {} is not {}", entry.position, self.last);
                        return Err(StageError::Damaged { name: segment.object.name.clone(), why });
                    }
                }
                Some(Step::Entry(entry)) => {
                    self.last = entry.position;
                    return Ok(Some(Step::Entry(entry)));
                }
                Some(mark) => return Ok(Some(mark)),
                None => self.open = None,
            }
        }
    }
}

impl Iterator for Steps {
    type Item = Result<Step, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            (self.left, self.open) = (Vec::new().into_iter(), None);
        }
        step.transpose()
    }
}
