//! A store in memory that misbehaves on request, for tests.
//!
//! Guarantees: without a fault it is object_store's own store in memory; a fault applies to every request until it is
//! cleared, or to so many as it says. Leaves out: delays; nothing here waits.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
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
    /// Parts of large objects fail from this one on.
    FailParts(usize),
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    inner: InMemory,
    fault: Arc<Mutex<Option<Fault>>>,
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

    fn now(&self) -> Option<Fault> {
        self.fault.lock().clone()
    }

    /// Whether a request of this kind goes through at all.
    fn admit(&self, right: &'static str, path: &Path) -> Result<()> {
        match &*self.fault.lock() {
            Some(Fault::Unavailable) => Err(failed("503 slow down")),
            Some(Fault::Forbid(forbidden)) if *forbidden == right => {
                Err(Error::PermissionDenied { path: path.to_string(), source: "AccessDenied".into() })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for Faults {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        self.admit("put", location)?;
        if self.now() == Some(Fault::IgnoreCreate) {
            opts.mode = PutMode::Overwrite;
        }
        let done = self.inner.put_opts(location, payload, opts).await?;
        if let Some(Fault::LoseAnswers(left @ 1..)) = &mut *self.fault.lock() {
            *left -= 1;
            return Err(failed("connection reset"));
        }
        Ok(done)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.admit("put", location)?;
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultyUpload { upload, fault: Arc::clone(&self.fault), parts: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.admit("get", location)?;
        let hit = |end: &str| location.as_ref().ends_with(end);
        let fault = self.now();
        if matches!(&fault, Some(Fault::Missing(end)) if hit(end)) {
            return Err(Error::NotFound { path: location.to_string(), source: "gone".into() });
        }
        let mut found = self.inner.get_opts(location, options.clone()).await?;
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
        match self.admit("delete", &Path::default()) {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.admit("list", &Path::default()) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.admit("list", &Path::default())?;
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
    parts: usize,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> object_store::UploadPart {
        let part = self.upload.put_part(data);
        self.parts += 1;
        match *self.fault.lock() {
            Some(Fault::FailParts(from)) if self.parts >= from => Box::pin(async { Err(failed("connection reset")) }),
            Some(Fault::Unavailable) => Box::pin(async { Err(failed("503 slow down")) }),
            _ => part,
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        if *self.fault.lock() == Some(Fault::Unavailable) {
            return Err(failed("503 slow down"));
        }
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
