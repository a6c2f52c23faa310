//! A store in memory that misbehaves on request, for tests.
//!
//! Guarantees: without a fault it is object_store's own store in memory; a fault applies to every request until it is
//! cleared, or to so many as it says. Leaves out: delays; nothing here waits, but for what hangs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::backup::repository::Repository;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Every request fails, as with a storm of 503.
    Unavailable,
    /// Puts succeed, and are told as failed, so many times: the answer was lost.
    LoseAnswers(usize),
    /// list, get, put or delete is forbidden.
    Forbid(&'static str),
    /// Objects are replaced though they should be created only.
    IgnoreCreate,
    /// Reading what ends in this gives one byte changed.
    Flip(&'static str),
    /// Reading what ends in this breaks off in the middle with an error.
    Break(&'static str),
    /// Reading what ends in this gives less, and says so.
    Cut(&'static str),
    /// What ends in this is not there, though it is listed.
    Missing(&'static str),
    /// What ends in this is not there when it is read, so many times, though it is listed: it came in between.
    NotYet(usize, &'static str),
    /// Parts of large objects fail from this one on.
    FailParts(usize),
    /// list, get, put, part, complete or delete never ends.
    Hang(&'static str),
    /// So many more changes are made, and then nothing at all is answered with success: whoever asked was killed there.
    KilledAfter(usize),
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    inner: Arc<InMemory>,
    fault: Arc<Mutex<Option<Fault>>>,
    /// Uploads in parts that were given up in good order.
    aborted: Arc<AtomicUsize>,
    /// How far the clock of the store is ahead of ours, in milliseconds.
    ahead: AtomicI64,
    /// How far it was when an object was stored.
    stored_ahead: Mutex<BTreeMap<Path, i64>>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store with faults")
    }
}

fn failed(why: &'static str) -> Error {
    Error::Generic { store: "faults", source: why.into() }
}

impl Faults {
    /// A new store, and a repository in it.
    pub(crate) fn repository() -> (Repository, Arc<Self>) {
        let faults = Arc::new(Self::default());
        (Repository::new(Arc::clone(&faults) as Arc<dyn ObjectStore>, Path::from("some/prefix"), "faults:"), faults)
    }

    /// The same objects, as one sees them who has no trouble.
    pub(crate) fn sound(&self) -> Repository {
        Repository::new(Arc::clone(&self.inner) as Arc<dyn ObjectStore>, Path::from("some/prefix"), "sound:")
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock() = Some(fault);
    }

    pub(crate) fn clear(&self) {
        *self.fault.lock() = None;
    }

    /// The bytes of an object, by the end of its name, whatever fault there is.
    pub(crate) async fn put_raw(&self, name: &str, content: Bytes) {
        self.inner.put(&Path::from(format!("some/prefix/{name}")), content.into()).await.unwrap();
    }

    /// What is stored from now on is so much younger by the store's clock than by ours.
    pub(crate) fn set_ahead(&self, ahead: Duration) {
        self.ahead.store(i64::try_from(ahead.as_millis()).unwrap(), Ordering::Relaxed);
    }

    fn note_time(&self, location: &Path) {
        self.stored_ahead.lock().insert(location.clone(), self.ahead.load(Ordering::Relaxed));
    }

    /// When an object was stored, by the store's clock.
    fn timed(stored_ahead: &BTreeMap<Path, i64>, mut meta: ObjectMeta) -> ObjectMeta {
        let ahead = stored_ahead.get(&meta.location).copied().unwrap_or_default();
        let millis = meta.last_modified.timestamp_millis() + ahead;
        meta.last_modified = chrono::DateTime::from_timestamp_millis(millis).unwrap();
        meta
    }

    fn now(&self) -> Option<Fault> {
        self.fault.lock().clone()
    }

    /// How many uploads in parts were given up in good order.
    pub(crate) fn aborted(&self) -> usize {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Whether a request of this kind goes through at all.
    fn admit(&self, right: &'static str, path: &Path) -> Result<()> {
        admit(&self.fault, right, path)
    }

    /// Whether an upload in parts may begin, which asks for the right to put.
    fn admit_upload(&self, path: &Path) -> Result<()> {
        match self.now() {
            Some(Fault::Forbid("put")) => self.admit("put", path),
            _ => Ok(()),
        }
    }

    /// As [`Self::admit`]; never ends where the store hangs.
    async fn pass(&self, right: &'static str, path: &Path) -> Result<()> {
        hang(&self.fault, right).await;
        self.admit(right, path)
    }
}

async fn hang(fault: &Mutex<Option<Fault>>, right: &'static str) {
    let hangs = *fault.lock() == Some(Fault::Hang(right));
    if hangs {
        std::future::pending::<()>().await;
    }
}

fn admit(fault: &Mutex<Option<Fault>>, right: &'static str, path: &Path) -> Result<()> {
    let changes = matches!(right, "put" | "complete" | "delete");
    match &mut *fault.lock() {
        Some(Fault::Unavailable) => Err(failed("503 slow down")),
        Some(Fault::Forbid(forbidden)) if *forbidden == right => {
            Err(Error::PermissionDenied { path: path.to_string(), source: "AccessDenied".into() })
        }
        Some(Fault::KilledAfter(0)) => Err(failed("killed")),
        Some(Fault::KilledAfter(left)) if changes => {
            *left -= 1;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl ObjectStore for Faults {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        self.pass("put", location).await?;
        if self.now() == Some(Fault::IgnoreCreate) {
            opts.mode = PutMode::Overwrite;
        }
        let done = self.inner.put_opts(location, payload, opts).await?;
        self.note_time(location);
        if let Some(Fault::LoseAnswers(left @ 1..)) = &mut *self.fault.lock() {
            *left -= 1;
            return Err(failed("connection reset"));
        }
        Ok(done)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        // Nothing appears by this alone.
        self.pass("part", location).await?;
        self.admit_upload(location)?;
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        let (fault, aborted) = (Arc::clone(&self.fault), Arc::clone(&self.aborted));
        Ok(Box::new(FaultyUpload { upload, fault, aborted, parts: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass("get", location).await?;
        let hit = |end: &str| location.as_ref().ends_with(end);
        let fault = self.now();
        let mut gone = matches!(&fault, Some(Fault::Missing(end)) if hit(end));
        if let Some(Fault::NotYet(left @ 1.., end)) = &mut *self.fault.lock()
            && hit(end)
        {
            *left -= 1;
            gone = true;
        }
        if gone {
            return Err(Error::NotFound { path: location.to_string(), source: "gone".into() });
        }
        let mut found = self.inner.get_opts(location, options.clone()).await?;
        found.meta = Self::timed(&self.stored_ahead.lock(), found.meta);
        if options.head {
            return Ok(found);
        }
        let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let parts: Vec<Result<Bytes>> = match fault {
            Some(Fault::Flip(end)) if hit(end) => {
                let mut bytes = found.bytes().await?.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                vec![Ok(bytes.into())]
            }
            Some(Fault::Break(end)) if hit(end) => {
                let bytes = found.bytes().await?;
                vec![Ok(bytes.slice(..bytes.len() / 2)), Err(failed("connection reset"))]
            }
            Some(Fault::Cut(end)) if hit(end) => {
                let bytes = found.bytes().await?;
                vec![Ok(bytes.slice(..bytes.len() / 2))]
            }
            _ => return Ok(found),
        };
        found = self.inner.get_opts(location, options).await?;
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter(parts).boxed()),
            meta,
            range,
            attributes,
            ..found
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.now() == Some(Fault::Hang("delete")) {
            return stream::pending().boxed();
        }
        match self.admit("delete", &Path::default()) {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.now() == Some(Fault::Hang("list")) {
            return stream::pending().boxed();
        }
        match self.admit("list", &Path::default()) {
            Ok(()) => {
                let times = self.stored_ahead.lock().clone();
                self.inner.list(prefix).map_ok(move |meta| Self::timed(&times, meta)).boxed()
            }
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pass("list", &Path::default()).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    fault: Arc<Mutex<Option<Fault>>>,
    aborted: Arc<AtomicUsize>,
    parts: usize,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> object_store::UploadPart {
        let part = self.upload.put_part(data);
        self.parts += 1;
        match *self.fault.lock() {
            Some(Fault::FailParts(from)) if self.parts >= from => Box::pin(async { Err(failed("connection reset")) }),
            Some(Fault::Unavailable | Fault::KilledAfter(0)) => Box::pin(async { Err(failed("503 slow down")) }),
            Some(Fault::Hang("part")) => Box::pin(std::future::pending()),
            _ => part,
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        hang(&self.fault, "complete").await;
        admit(&self.fault, "complete", &Path::default())?;
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.aborted.fetch_add(1, Ordering::Relaxed);
        self.upload.abort().await
    }
}
