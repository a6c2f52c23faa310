//! Objects by name, below one prefix of one store. The only file that speaks to object stores.
//!
//! Guarantees: [`Repository::create`] never replaces an object, and its outcome is known: after an error that leaves it
//! open the object is looked at; errors tell apart what an operator must do about them; what is read is bounded, and so is
//! the time that a store may take: one that hangs, in the middle of a request too, is an error; a large object that was
//! given up, wherever that was, is taken back from the store. Leaves out: which store a URL means (`target`), what the
//! objects are (`layout`, `manifest`, `segment`).

use std::fmt;
use std::io::{self, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{
    GetOptions, GetResult, GetResultPayload, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload,
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::runtime::Handle;
use tokio_util::io::ReaderStream;
use tokio_util::task::TaskTracker;

use super::bandwidth::Bandwidth;
use crate::types::WallTime;

/// Large objects are sent in parts of this size, in bytes: above the least that stores take, and small enough to be held a
/// few times.
pub const PART_BYTES: usize = 8 * 1024 * 1024;

/// Larger objects are read in ranges of this size, in bytes. A request may take minutes at most (`target`), which a large
/// snapshot on a slow line does not keep to.
const RANGE_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 16 * 1024 * 1024 };

/// So many ranges of an object are read at a time.
const RANGES_AHEAD: usize = 2;

/// A file is read in pieces of this size, in bytes. object_store's own are of 8 KiB, and each goes to another thread and back:
/// three quarters of the time that fetching from a folder took.
const FILE_PIECE_BYTES: usize = 1024 * 1024;

/// How long a store may take for an answer, or for the next piece of one, beside the time that bytes sent take: longer than
/// what `target` allows for repeating a request that the store could not serve.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long it may take to put the parts of a large object together, which some stores, and disks, take minutes for, beside
/// the time for its bytes at `JOINING_RATE_MIN`.
pub const JOINING_TIMEOUT: Duration = Duration::from_secs(300);

/// A store that puts parts together more slowly than this, in bytes a second, does not do.
const JOINING_RATE_MIN: u64 = 4 * 1024 * 1024;

/// A line on which bytes are sent more slowly than this, in bytes a second, does not do.
const SENDING_RATE_MIN: u64 = 64 * 1024;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{name} is missing")]
    Missing {
        /// Which.
        name: String,
    },
    /// There is another object of that name.
    #[error("{name} exists already")]
    Exists {
        /// Which.
        name: String,
    },
    /// The credentials are refused.
    #[error("the store does not accept the credentials ({why}); are they set, and not expired?")]
    Unauthenticated {
        /// What the store says.
        why: String,
    },
    /// The credentials don't allow it.
    #[error("the credentials don't allow it ({why}); writing needs put, get and list, pruning also delete")]
    Forbidden {
        /// What the store says.
        why: String,
    },
    /// There is no such bucket.
    #[error("the bucket (or container) does not exist ({why}); make it first, or check the URL")]
    NoBucket {
        /// What the store says.
        why: String,
    },
    /// The bucket lies in another region.
    #[error("the bucket lies in another region ({why}); set the option aws_region, or AWS_REGION")]
    Region {
        /// What the store says.
        why: String,
    },
    /// The clocks of this machine and of the store differ by too much.
    #[error("the clock of this machine differs too much from that of the store ({why}); set it, by NTP for instance")]
    Clock {
        /// What the store says.
        why: String,
    },
    /// There is no room left.
    #[error("the store has no room left ({why}); make room there, or have less kept ([backup.keep])")]
    NoRoom {
        /// What the store says.
        why: String,
    },
    /// An object is longer than what is read of its kind.
    #[error("{name} has {bytes} bytes, more than the {bytes_max} that are read of its kind")]
    TooLarge {
        /// Which.
        name: String,
        /// Its length.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Everything else: the network, the disk, the store.
    #[error("{why}")]
    Failed {
        /// What is known.
        why: String,
    },
}

impl StoreError {
    /// Whether trying again later may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::NoRoom { .. })
    }

    fn silent(after: Duration) -> Self {
        Self::Failed { why: format!("the store has not answered for {} s", after.as_secs()) }
    }

    fn of(name: &str, error: &object_store::Error) -> Self {
        use object_store::Error;
        let told = told(error);
        let why = shortened(&told);
        let says = |codes: &[&str]| codes.iter().any(|code| told.contains(code));
        match error {
            _ if says(&NO_BUCKET) => Self::NoBucket { why },
            _ if says(&OTHER_REGION) => Self::Region { why },
            _ if says(&CLOCK_DIFFERS) => Self::Clock { why },
            _ if says(&BAD_CREDENTIALS) => Self::Unauthenticated { why },
            _ if says(&NO_ROOM) => Self::NoRoom { why },
            // Of a listing that is not allowed the client says only what the store did.
            _ if says(&FORBIDDEN) => Self::Forbidden { why },
            Error::NotFound { .. } => Self::Missing { name: name.to_owned() },
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Self::Exists { name: name.to_owned() },
            Error::PermissionDenied { .. } => Self::Forbidden { why },
            Error::Unauthenticated { .. } => Self::Unauthenticated { why },
            _ => Self::Failed { why },
        }
    }
}

/// How long a store may take for an answer while so many bytes are sent to it.
fn sending(bytes: usize) -> Duration {
    ANSWER_TIMEOUT + Duration::from_secs(bytes as u64 / SENDING_RATE_MIN)
}

/// Waits for what a store is asked for, but not for ever.
async fn answered<T>(
    limit: Duration,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<object_store::Result<T>, StoreError> {
    tokio::time::timeout(limit, request).await.map_err(|_| StoreError::silent(limit))
}

/// As [`answered`], for the pieces of an answer: time counts anew with each.
fn each_in_time<T: Send + 'static>(
    name: &str,
    pieces: BoxStream<'static, object_store::Result<T>>,
) -> BoxStream<'static, Result<T, StoreError>> {
    let next = |(mut pieces, name): (BoxStream<'static, object_store::Result<T>>, String)| async move {
        let piece = match answered(ANSWER_TIMEOUT, async { pieces.next().await.transpose() }).await {
            Ok(piece) => piece.map_err(|error| StoreError::of(&name, &error)),
            Err(silent) => Err(silent),
        };
        Ok::<_, StoreError>(piece?.map(|piece| (piece, (pieces, name))))
    };
    stream::try_unfold((pieces, name.to_owned()), next).boxed()
}

/// The content of an answer, each piece of it in time.
fn content(name: &str, found: GetResult) -> BoxStream<'static, Result<Bytes, StoreError>> {
    let (begin, bytes) = (found.range.start, found.range.end - found.range.start);
    let pieces = match found.payload {
        GetResultPayload::File(file, _) => {
            let mut file = tokio::fs::File::from_std(file);
            let open = async move {
                file.seek(SeekFrom::Start(begin)).await?;
                Ok::<_, io::Error>(ReaderStream::with_capacity(file.take(bytes), FILE_PIECE_BYTES))
            };
            let failed = |error: io::Error| object_store::Error::Generic { store: "file", source: error.into() };
            stream::once(open).try_flatten().map_err(failed).boxed()
        }
        GetResultPayload::Stream(pieces) => pieces,
    };
    each_in_time(name, pieces)
}

/// The error with its causes, on one line, each told once.
fn told(error: &object_store::Error) -> String {
    let mut out = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let text = next.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        cause = next.source();
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What stores say of a bucket that is not there, some with the status of an object that is not.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"];

/// What S3 says of a bucket elsewhere; a redirect without an address is one as well.
const OTHER_REGION: [&str; 4] =
    ["AuthorizationHeaderMalformed", "PermanentRedirect", "incorrectly configured region", "IllegalLocationConstraint"];

/// What S3 says of a request from another time.
const CLOCK_DIFFERS: [&str; 1] = ["RequestTimeTooSkewed"];

/// What stores say of credentials that are unknown, wrong or expired, some with the status of a missing right; and the
/// address where credentials of an instance are looked for if there are no others.
const BAD_CREDENTIALS: [&str; 9] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthenticationFailed",
    "invalid_grant",
    "169.254.169.254",
    "metadata.google.internal",
];

/// What stores say of a right that is missing.
const FORBIDDEN: [&str; 5] = [
    "AccessDenied",
    "AllAccessDisabled",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "status code: 403",
];

/// What systems and stores say when nothing more fits.
const NO_ROOM: [&str; 4] = ["No space left on device", "Disk quota exceeded", "QuotaExceeded", "InsufficientStorage"];

/// The longest text of a store that is shown, in characters.
const WHY_CHARS_MAX: usize = 400;

/// What a store says, without its page of XML around it.
fn shortened(told: &str) -> String {
    let tag = |name: &str| {
        let (_, rest) = told.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
    };
    match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => told.to_owned(),
    }
    .chars()
    .take(WHY_CHARS_MAX)
    .collect()
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, below the prefix.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was stored, by the store's clock.
    pub stored_at: WallTime,
}

/// Objects below a prefix. A cheap handle.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// What people are told; without secrets.
    url: Arc<str>,
    /// Large objects that are being taken back.
    given_up: TaskTracker,
    /// What reading may take of the line.
    reading: Arc<Bandwidth>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Repository").field(&self.url).finish()
    }
}

impl Repository {
    /// Objects of a store below a prefix; `url` is what people are told.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, url: &str) -> Self {
        let reading = Arc::new(Bandwidth::new(None));
        Self { store, prefix, url: url.into(), given_up: TaskTracker::new(), reading }
    }

    /// Lets reading take no more than so many bytes a second, over any time but for what is read in one request.
    #[must_use]
    pub fn limited(self, bytes_per_second: Option<u64>) -> Self {
        Self { reading: Arc::new(Bandwidth::new(bytes_per_second)), ..self }
    }

    /// Keeps track in `given_up` of large objects that are being taken back from the store because they were given up, so
    /// that whoever ends the runtime can wait for that.
    #[must_use]
    pub fn tracked(self, given_up: TaskTracker) -> Self {
        Self { given_up, ..self }
    }

    /// What people are told of where it is; without secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stores a small object under a name that must be new. Done again after an error, by the same bytes, it succeeds if
    /// it had succeeded.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Exists`] if there is another object of that name.
    pub async fn create(&self, name: &str, content: Bytes) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(name);
        let put = self.store.put_opts(&path, PutPayload::from_bytes(content.clone()), options);
        // A store that hangs would not tell what became of it either.
        let error = match answered(sending(content.len()), put).await? {
            Ok(_) => return Ok(()),
            Err(error) => StoreError::of(name, &error),
        };
        // A request that was repeated meets what it has stored itself.
        let settled =
            matches!(error, StoreError::Exists { .. } | StoreError::Failed { .. } | StoreError::NoRoom { .. });
        if settled && self.get(name, content.len()).await.is_ok_and(|found| found == content) {
            return Ok(());
        }
        Err(error)
    }

    /// Begins to store a large object, in parts. Its name must be one that nobody else uses: nothing checks that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn upload(&self, name: &str) -> Result<Upload, StoreError> {
        let path = self.path(name);
        let upload = answered(ANSWER_TIMEOUT, self.store.put_multipart(&path)).await?;
        let upload = upload.map_err(|error| StoreError::of(name, &error))?;
        Ok(Upload { upload: Some(upload), sent: 0, name: name.to_owned(), given_up: self.given_up.clone() })
    }

    /// Reads a small object.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, name: &str, bytes_max: usize) -> Result<Bytes, StoreError> {
        let (bytes, mut stream) = self.stream(name).await?;
        let too_large = |bytes| StoreError::TooLarge { name: name.to_owned(), bytes, bytes_max: bytes_max as u64 };
        if bytes > bytes_max as u64 {
            return Err(too_large(bytes));
        }
        let mut content = BytesMut::new();
        while let Some(part) = stream.try_next().await? {
            if content.len() + part.len() > bytes_max {
                return Err(too_large((content.len() + part.len()) as u64));
            }
            content.extend_from_slice(&part);
        }
        Ok(content.freeze())
    }

    /// Reads an object: its length, and its content in pieces.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stream(&self, name: &str) -> Result<(u64, BoxStream<'static, Result<Bytes, StoreError>>), StoreError> {
        let path = self.path(name);
        // Before the request: its time is bounded, too.
        self.reading.turn(0).await;
        let found = answered(ANSWER_TIMEOUT, self.store.get_opts(&path, GetOptions::default())).await?;
        let found = found.map_err(|error| StoreError::of(name, &error))?;
        let bytes = found.meta.size;
        if bytes <= RANGE_BYTES {
            self.reading.charge(bytes);
            return Ok((bytes, content(name, found)));
        }
        // One request has a bounded time, whatever it asks for, and is begun anew if it breaks.
        drop(found);
        let begins = (0..bytes.div_ceil(RANGE_BYTES)).map(|at| at * RANGE_BYTES);
        let (store, reading, name) = (Arc::clone(&self.store), Arc::clone(&self.reading), name.to_owned());
        let ranges = begins.map(move |begin| {
            let (store, reading, path, name) = (Arc::clone(&store), Arc::clone(&reading), path.clone(), name.clone());
            async move {
                let end = bytes.min(begin + RANGE_BYTES);
                reading.turn(end - begin).await;
                let options = GetOptions { range: Some((begin..end).into()), ..GetOptions::default() };
                let found = answered(ANSWER_TIMEOUT, store.get_opts(&path, options)).await?;
                let found = found.map_err(|error| StoreError::of(&name, &error))?;
                let mut read = BytesMut::new();
                let mut pieces = content(&name, found);
                while let Some(piece) = pieces.try_next().await? {
                    read.extend_from_slice(&piece);
                }
                Ok(read.freeze())
            }
        });
        Ok((bytes, stream::iter(ranges).buffered(RANGES_AHEAD).boxed()))
    }

    /// What a listing would tell of an object.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn head(&self, name: &str) -> Result<Listed, StoreError> {
        let path = self.path(name);
        let meta = answered(ANSWER_TIMEOUT, self.store.head(&path)).await?;
        meta.map(|meta| self.listed(&meta)).map_err(|error| StoreError::of(name, &error))
    }

    /// The objects of a folder, sorted by name; only those behind the name `after`, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, folder: &str, after: Option<&str>) -> Result<Vec<Listed>, StoreError> {
        let path = self.path(folder);
        let stream = match after {
            Some(after) => self.store.list_with_offset(Some(&path), &self.path(after)),
            None => self.store.list(Some(&path)),
        };
        let listed = each_in_time(folder, stream).map_ok(|meta| self.listed(&meta));
        let mut listed: Vec<Listed> = listed.try_collect().await?;
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// The folders right below the prefix.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn folders(&self) -> Result<Vec<String>, StoreError> {
        self.top().await.map(|(folders, _)| folders)
    }

    /// The folders and the objects right below the prefix.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn top(&self) -> Result<(Vec<String>, Vec<String>), StoreError> {
        let listed = answered(ANSWER_TIMEOUT, self.store.list_with_delimiter(Some(&self.prefix))).await?;
        let listed = listed.map_err(|error| StoreError::of("the repository", &error))?;
        let name = |path: &Path| path.filename().map(ToOwned::to_owned);
        let objects = listed.objects.iter().filter_map(|meta| name(&meta.location)).collect();
        Ok((listed.common_prefixes.iter().filter_map(name).collect(), objects))
    }

    fn listed(&self, meta: &ObjectMeta) -> Listed {
        let skip = if self.prefix.as_ref().is_empty() { 0 } else { self.prefix.as_ref().len() + 1 };
        Listed {
            name: meta.location.as_ref().get(skip..).unwrap_or_default().to_owned(),
            bytes: meta.size,
            stored_at: WallTime::new(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0)),
        }
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match answered(ANSWER_TIMEOUT, self.store.delete(&path)).await?.map_err(|error| StoreError::of(name, &error)) {
            Err(StoreError::Missing { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }
}

/// An object that is being stored in parts. Dropped before [`Self::complete`], nothing appears under its name, and the room
/// in the store is freed as soon as there is time for that; [`Self::abort`] waits for it.
pub struct Upload {
    /// Nothing once it is complete, or given up.
    upload: Option<Box<dyn MultipartUpload>>,
    /// Bytes of parts.
    sent: u64,
    name: String,
    given_up: TaskTracker,
}

impl Upload {
    /// Stores the next part: [`PART_BYTES`], the last one less.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn part(&mut self, content: Bytes) -> Result<(), StoreError> {
        let upload = self.upload.as_mut().expect("an upload that has ended takes no parts: its owner is gone");
        let limit = sending(content.len());
        self.sent += content.len() as u64;
        let part = upload.put_part(PutPayload::from_bytes(content));
        answered(limit, part).await?.map_err(|error| StoreError::of(&self.name, &error))
    }

    /// Makes the object appear.
    ///
    /// # Errors
    /// [`StoreError`]; it may have appeared all the same, if the answer was lost.
    pub async fn complete(mut self) -> Result<(), StoreError> {
        let upload = self.upload.as_mut().expect("an upload ends once: its owner is gone");
        let limit = JOINING_TIMEOUT + Duration::from_secs(self.sent / JOINING_RATE_MIN);
        let done = answered(limit, upload.complete()).await?.map_err(|error| StoreError::of(&self.name, &error));
        if done.is_ok() {
            self.upload = None;
        }
        done.map(drop)
    }

    /// Gives the object up.
    pub async fn abort(mut self) {
        if let Some(upload) = self.upload.take() {
            take_back(upload, std::mem::take(&mut self.name)).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Without a runtime nobody is left who could ask the store for anything.
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) {
            self.given_up.spawn_on(take_back(upload, std::mem::take(&mut self.name)), &runtime);
        }
    }
}

async fn take_back(mut upload: Box<dyn MultipartUpload>, object: String) {
    match answered(ANSWER_TIMEOUT, upload.abort()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(object, %error, "an upload that was given up can't be removed"),
        Err(error) => tracing::debug!(object, %error, "an upload that was given up can't be removed"),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::backup::faults::{Fault, Faults};
    use crate::clock;

    fn error(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn what_stores_say_is_told_apart_by_what_to_do_about_it() {
        let of = |text: &str| StoreError::of("x", &error(text));
        assert!(matches!(of("<Code>NoSuchBucket</Code>"), StoreError::NoBucket { .. }));
        assert!(matches!(
            of("Received redirect without LOCATION, this normally indicates an incorrectly configured region"),
            StoreError::Region { .. }
        ));
        assert!(matches!(of("403: <Code>RequestTimeTooSkewed</Code>"), StoreError::Clock { .. }));
        assert!(matches!(of("400: <Code>ExpiredToken</Code>"), StoreError::Unauthenticated { .. }));
        assert!(matches!(of("PUT http://169.254.169.254/latest/api/token"), StoreError::Unauthenticated { .. }));
        let full = std::io::Error::from_raw_os_error(28);
        let full = object_store::Error::Generic { store: "LocalFileSystem", source: full.into() };
        let full = StoreError::of("x", &full);
        assert!(full.is_transient() && full.to_string().contains("make room"), "{full}");
        let away = of("503 Service Unavailable");
        assert!(matches!(&away, StoreError::Failed { .. }) && away.is_transient());
        let page =
            "500: <?xml?><Error><Code>InternalError</Code><Message>We had a problem.</Message><HostId>x</HostId>";
        assert_eq!(of(page).to_string(), "InternalError: We had a problem.");
        assert!(of(&"x".repeat(10_000)).to_string().len() <= WHY_CHARS_MAX);
        let denied = object_store::Error::PermissionDenied { path: "x".into(), source: "AccessDenied".into() };
        assert!(matches!(StoreError::of("x", &denied), StoreError::Forbidden { .. }));
    }

    #[tokio::test]
    async fn an_object_is_created_once_and_a_lost_answer_is_no_second_time() {
        let (repository, faults) = Faults::repository();
        faults.set(Fault::LoseAnswers(1));
        repository.create("a/b", "one".into()).await.unwrap();
        repository.create("a/b", "one".into()).await.unwrap();
        let error = repository.create("a/b", "two".into()).await.unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error}");
        assert_eq!(repository.get("a/b", 3).await.unwrap(), "one");
        let error = repository.get("a/b", 2).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { bytes: 3, bytes_max: 2, .. }), "{error}");
    }

    #[tokio::test]
    async fn names_are_those_below_the_prefix() {
        let (repository, _) = Faults::repository();
        for name in ["b/2", "b/1", "a/x", "top"] {
            repository.create(name, "x".into()).await.unwrap();
        }
        let names = async |after| {
            let listed = repository.list("b", after).await.unwrap();
            listed.into_iter().map(|object| object.name).collect::<Vec<_>>()
        };
        assert_eq!(names(None).await, ["b/1", "b/2"]);
        assert_eq!(names(Some("b/1")).await, ["b/2"]);
        assert_eq!(repository.top().await.unwrap(), (vec!["a".to_owned(), "b".to_owned()], vec!["top".to_owned()]));
        assert_eq!(repository.head("b/1").await.unwrap().name, "b/1");
        repository.delete("b/1").await.unwrap();
        repository.delete("b/1").await.unwrap();
        assert!(matches!(repository.head("b/1").await, Err(StoreError::Missing { .. })));
    }

    #[tokio::test]
    async fn a_large_object_is_read_in_ranges_each_in_a_request_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let stores: [Arc<dyn ObjectStore>; 2] = [
            Arc::new(InMemory::new()),
            Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap()),
        ];
        for store in stores {
            let repository = Repository::new(store, Path::from("p"), "any:///p");
            for length in [1, RANGE_BYTES, RANGE_BYTES + 1, 5 * RANGE_BYTES - 1] {
                let content: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
                let name = format!("object-{length}");
                repository.create(&name, content.clone().into()).await.unwrap();
                let (bytes, stream) = repository.stream(&name).await.unwrap();
                let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
                assert_eq!((bytes, pieces.len() as u64), (length, length.div_ceil(RANGE_BYTES)));
                assert!(pieces.concat() == content);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_an_error_in_time_whatever_it_was_asked_for() {
        let (repository, faults) = Faults::repository();
        let large = Bytes::from(vec![7; usize::try_from(RANGE_BYTES).unwrap() * 3]);
        repository.create("a/large", large.clone()).await.unwrap();
        let silent = |done: Result<(), StoreError>| match done {
            Err(error) if error.is_transient() && error.to_string().contains("not answered for") => {}
            other => panic!("{other:?}"),
        };
        let limit = ANSWER_TIMEOUT + Duration::from_secs(1);
        let begun = clock::now();
        faults.set(Fault::Hang("put"));
        silent(repository.create("a/b", "x".into()).await);
        faults.set(Fault::Hang("get"));
        silent(repository.get("a/large", large.len()).await.map(drop));
        silent(repository.head("a/large").await.map(drop));
        faults.set(Fault::Hang("list"));
        silent(repository.list("a", None).await.map(drop));
        silent(repository.top().await.map(drop));
        faults.set(Fault::Hang("delete"));
        silent(repository.delete("a/large").await);
        faults.set(Fault::Hang("complete"));
        let mut upload = repository.upload("a/c").await.unwrap();
        upload.part("x".into()).await.unwrap();
        assert!(begun.elapsed() < limit * 6, "{:?}", begun.elapsed());
        let begun = clock::now();
        silent(upload.complete().await);
        assert!(begun.elapsed() >= JOINING_TIMEOUT && begun.elapsed() < JOINING_TIMEOUT * 2, "{:?}", begun.elapsed());
        // In the middle of an object.
        faults.clear();
        let (_, mut pieces) = repository.stream("a/large").await.unwrap();
        pieces.try_next().await.unwrap().unwrap();
        faults.set(Fault::Hang("get"));
        let rest = async {
            while pieces.try_next().await?.is_some() {}
            Ok(())
        };
        silent(rest.await);
        // What is sent has the time that it takes on a slow line.
        faults.set(Fault::Hang("part"));
        silent(repository.upload("a/d").await.map(drop));
        faults.clear();
        let mut upload = repository.upload("a/d").await.unwrap();
        faults.set(Fault::Hang("part"));
        let begun = clock::now();
        silent(upload.part(vec![0; PART_BYTES].into()).await);
        assert!(begun.elapsed() > limit && begun.elapsed() < Duration::from_secs(180), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_is_taken_back_and_one_that_is_complete_is_not() {
        let (repository, faults) = Faults::repository();
        let given_up = TaskTracker::new();
        let repository = repository.tracked(given_up.clone());
        let mut upload = repository.upload("a/b").await.unwrap();
        upload.part("x".into()).await.unwrap();
        let sending = async {
            let _held = upload;
            std::future::pending::<()>().await;
        };
        drop(Box::pin(sending));
        let mut other = repository.upload("a/c").await.unwrap();
        other.part("x".into()).await.unwrap();
        other.complete().await.unwrap();
        repository.upload("a/d").await.unwrap().abort().await;
        given_up.close();
        given_up.wait().await;
        assert_eq!(faults.aborted(), 2);
        assert!(repository.head("a/c").await.is_ok());
    }
}
