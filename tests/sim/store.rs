//! The simulated object store: one for all machines, with a line to each.
//!
//! Every request takes the time that is drawn for it, and may be refused, or done without an answer. Guarantees: what it does
//! follows from the seed; times of objects are by the true clock of the simulation; whoever replaces or changes an object is
//! noted, for nobody may. Leaves out: objects that rot, and listings that lag behind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::wire::Place;

/// Of so many pieces of the log one is lost if that bug is planted.
const FORGETS_EACH: u64 = 4;

/// How the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreMood {
    /// A request takes from the first to the second, in steps, each way.
    pub(crate) delay: (u64, u64),
    /// Requests in a thousand that are refused.
    pub(crate) refused: u32,
    /// Requests in a thousand that are done, and not answered.
    pub(crate) unanswered: u32,
}

struct Inside {
    mood: StoreMood,
    random: SmallRng,
    /// The true time, in milliseconds since the epoch.
    now: u64,
    /// When each object was stored.
    stored: BTreeMap<Path, u64>,
    /// Lines that are cut, with how many cuts lie over each.
    cuts: BTreeMap<Place, u32>,
    /// A planted bug: every so many pieces of the log are not kept.
    forgets: bool,
    puts: u64,
    /// What must not be asked of the store, and was.
    offences: Vec<String>,
}

/// The store. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Store {
    objects: Arc<InMemory>,
    inside: Arc<Mutex<Inside>>,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Refused,
    Unanswered,
}

impl Store {
    pub(crate) fn new(random: SmallRng, mood: StoreMood) -> Self {
        let inside = Inside {
            mood,
            random,
            now: 0,
            stored: BTreeMap::new(),
            cuts: BTreeMap::new(),
            forgets: false,
            puts: 0,
            offences: Vec::new(),
        };
        Self { objects: Arc::default(), inside: Arc::new(Mutex::new(inside)) }
    }

    /// The store as a machine reaches it.
    pub(crate) fn line(&self, from: Place) -> Arc<dyn ObjectStore> {
        Arc::new(Line { store: self.clone(), from })
    }

    /// The objects, without any trouble.
    pub(crate) fn sound(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects) as Arc<dyn ObjectStore>
    }

    pub(crate) fn set_now(&self, now: u64) {
        self.inside.lock().now = now;
    }

    pub(crate) fn set_forgets(&self, on: bool) {
        self.inside.lock().forgets = on;
    }

    /// Whether an object that was just stored is lost again, which it never is but for a planted bug.
    fn forgets(&self, location: &Path) -> bool {
        let mut inside = self.inside.lock();
        if !inside.forgets || !location.as_ref().ends_with(".zst") {
            return false;
        }
        inside.puts += 1;
        inside.puts.is_multiple_of(FORGETS_EACH)
    }

    pub(crate) fn set_mood(&self, mood: StoreMood) {
        self.inside.lock().mood = mood;
    }

    /// Lays a cut over a line, or takes one away.
    pub(crate) fn cut(&self, place: Place, on: bool) {
        let mut inside = self.inside.lock();
        let cuts = inside.cuts.entry(place).or_default();
        *cuts = if on { *cuts + 1 } else { cuts.saturating_sub(1) };
    }

    /// What must not have been asked of it, the first time.
    pub(crate) fn offence(&self) -> Option<String> {
        self.inside.lock().offences.pop()
    }

    fn draw(&self, from: Place) -> (Fate, Duration, Duration) {
        let mut inside = self.inside.lock();
        let StoreMood { delay, refused, unanswered } = inside.mood;
        let drawn = inside.random.random_range(0..1_000);
        let mut one_way = || Duration::from_millis(inside.random.random_range(delay.0..=delay.1));
        let (there, back) = (one_way(), one_way());
        let is_cut = inside.cuts.get(&from).is_some_and(|cuts| *cuts > 0);
        let fate = match drawn {
            _ if is_cut => Fate::Refused,
            drawn if drawn < refused => Fate::Refused,
            drawn if drawn < refused + unanswered => Fate::Unanswered,
            _ => Fate::Done,
        };
        (fate, there, back)
    }

    /// Carries out a request from a machine.
    async fn ask<T>(&self, from: Place, request: impl Future<Output = Result<T>>) -> Result<T> {
        let (fate, there, back) = self.draw(from);
        tokio::time::sleep(there).await;
        if fate == Fate::Refused {
            return Err(failed("503 slow down"));
        }
        let done = request.await;
        tokio::time::sleep(back).await;
        if fate == Fate::Unanswered { Err(failed("connection reset")) } else { done }
    }

    fn note_stored(&self, location: &Path) {
        let mut inside = self.inside.lock();
        let now = inside.now;
        inside.stored.insert(location.clone(), now);
    }

    fn offend(&self, what: String) {
        self.inside.lock().offences.insert(0, what);
    }

    /// With the time of the simulation in the place of the real one.
    fn timed(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let stored = self.inside.lock().stored.get(&meta.location).copied().unwrap_or_default();
        let stored = i64::try_from(stored).unwrap_or(i64::MAX);
        meta.last_modified = chrono::DateTime::from_timestamp_millis(stored).unwrap_or(meta.last_modified);
        meta
    }
}

fn failed(why: &'static str) -> Error {
    Error::Generic { store: "simulated", source: why.into() }
}

/// The store as one machine reaches it.
struct Line {
    store: Store,
    from: Place,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("from", &self.from).finish_non_exhaustive()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the simulated store, from machine {}", self.from)
    }
}

#[async_trait]
impl ObjectStore for Line {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let putting = async {
            if opts.mode != PutMode::Create {
                self.store.offend(format!("machine {} puts {location} without asking that it be new", self.from));
            }
            let done = self.store.objects.put_opts(location, payload, opts).await?;
            self.store.note_stored(location);
            if self.store.forgets(location) {
                self.store.objects.delete(location).await?;
            }
            Ok(done)
        };
        self.store.ask(self.from, putting).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.store.ask(self.from, self.store.objects.put_multipart_opts(location, opts)).await?;
        let (store, location) = (self.store.clone(), location.clone());
        Ok(Box::new(LineUpload { upload, store, from: self.from, location }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut found = self.store.ask(self.from, self.store.objects.get_opts(location, options)).await?;
        found.meta = self.store.timed(found.meta);
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (store, from) = (self.store.clone(), self.from);
        let deleting = move |location: Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                let one = stream::once(std::future::ready(Ok(location.clone()))).boxed();
                let done = store.ask(from, store.objects.delete_stream(one).try_collect::<Vec<_>>()).await;
                done.map(|_| location)
            }
        };
        locations.then(deleting).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, from, prefix) = (self.store.clone(), self.from, prefix.cloned());
        let listing = async move {
            let listed = store.objects.list(prefix.as_ref()).map_ok(|meta| store.timed(meta)).try_collect::<Vec<_>>();
            store.ask(from, listed).await
        };
        stream::once(listing).map_ok(|listed| stream::iter(listed.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.ask(self.from, self.store.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, _from: &Path, to: &Path, _options: CopyOptions) -> Result<()> {
        self.store.offend(format!("machine {} copies to {to}", self.from));
        Err(failed("it copies nothing"))
    }
}

struct LineUpload {
    upload: Box<dyn MultipartUpload>,
    store: Store,
    from: Place,
    location: Path,
}

impl fmt::Debug for LineUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineUpload").field("location", &self.location).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for LineUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, store, from) = (self.upload.put_part(data), self.store.clone(), self.from);
        Box::pin(async move { store.ask(from, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let Self { upload, store, from, location } = self;
        let (store, location) = (&*store, &*location);
        let completing = async {
            if store.objects.head(location).await.is_ok() {
                store.offend(format!("machine {from} replaces {location}"));
            }
            let done = upload.complete().await?;
            store.note_stored(location);
            Ok(done)
        };
        store.ask(*from, completing).await
    }

    async fn abort(&mut self) -> Result<()> {
        let aborting = self.upload.abort();
        self.store.ask(self.from, aborting).await
    }
}
