//! The threads on which this node archives, one for each place.
//!
//! Archiving has runtimes of its own, on threads that give way to those that serve, and so do the threads on which it
//! packs: requests and consensus never wait for it, nor does one place for another, not even where a disk that was mounted
//! over a network hangs and takes thread after thread with it. Guarantees: they end with the node; what was half sent is
//! taken back from the store then, if that answers soon. Leaves out: what is archived (`backup::archiver`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::drilling;
use super::place::{self, Place};
use super::source::RaftSource;
use crate::backup::archiver::{Archiver, PAUSE_MAX};
use crate::backup::care::Caretaker;
use crate::backup::repository::Repository;
use crate::backup::target::{Options, Stores};
use crate::raft::{RaftNode, stand_back};
use crate::types::ClusterId;
use crate::{host, watch};

/// How long a request to a store that does not answer may hold up the end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before a store that can't be set up is tried again.
const SETUP_PAUSE: Duration = Duration::from_secs(2);

/// The places that there are, at any time.
pub(super) type Places = watch::Receiver<Arc<Vec<Arc<Place>>>>;

/// Who archives.
#[derive(Clone)]
pub(super) struct Author {
    pub(super) cluster: ClusterId,
    /// The name of this node.
    pub(super) name: String,
    /// A folder of its own for what is verified.
    pub(super) scratch: PathBuf,
    /// How stores are reached.
    pub(super) stores: Stores,
}

/// Archives to each place for as long as it is in the list, until told to stop. Returns once the threads have ended.
pub(super) async fn run(raft: RaftNode, author: Author, mut places: Places, stopping: CancellationToken) {
    let left = author.clone();
    // It can be a whole state, on a disk that is slow.
    let _ = host::spawn_blocking(move || drilling::clear(&left)).await;
    let drills = Arc::new(Semaphore::new(1));
    let mut running: Vec<(Arc<Place>, CancellationToken)> = Vec::new();
    let mut at_work = FuturesUnordered::new();
    while !stopping.is_cancelled() {
        let wanted = Arc::clone(&places.borrow_and_update());
        running.retain(|(place, stop)| {
            let stays = wanted.iter().any(|other| Arc::ptr_eq(place, other));
            if !stays {
                tracing::info!(backup = place.settings.name, "nothing is archived to this place any more");
                stop.cancel();
            }
            stays
        });
        for place in wanted.iter() {
            if !running.iter().any(|(other, _)| Arc::ptr_eq(place, other)) {
                let stop = stopping.child_token();
                running.push((Arc::clone(place), stop.clone()));
                let work = Work { place: Arc::clone(place), author: author.clone(), drills: Arc::clone(&drills) };
                at_work.extend(work.begin(RaftSource(raft.clone()), stop));
            }
        }
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                changed = places.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => stopping.cancelled().await,
                },
                Some(_) = at_work.next(), if !at_work.is_empty() => {}
            }
        }
    }
    while at_work.next().await.is_some() {}
}

/// What one thread has to do.
struct Work {
    place: Arc<Place>,
    author: Author,
    /// For all places together: one drill at a time.
    drills: Arc<Semaphore>,
}

impl Work {
    /// Begins it, on a thread of its own. What comes back ends with that.
    fn begin(self, source: RaftSource, stop: CancellationToken) -> Option<oneshot::Receiver<()>> {
        let (ended, end) = oneshot::channel::<()>();
        if host::is_simulated() {
            host::begin_simulated_thread(Box::new(move || {
                Box::pin(async move {
                    let _ended = ended;
                    self.until(&Arc::new(source), &stop).await;
                })
            }));
            return Some(end);
        }
        let thread = std::thread::Builder::new().name("archiver".into()).spawn(move || {
            stand_back();
            // Dropped at the end of the thread, whatever ends it.
            let _ended = ended;
            self.on_thread(&Arc::new(source), &stop);
        });
        match thread {
            Ok(_) => Some(end),
            Err(error) => {
                tracing::error!(%error, "nothing is archived: there is no thread to be had");
                None
            }
        }
    }

    fn on_thread(&self, source: &Arc<RaftSource>, stop: &CancellationToken) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "nothing is archived: there is no runtime to be had"),
        };
        runtime.block_on(self.until(source, stop));
        runtime.shutdown_timeout(END_TIMEOUT);
    }

    async fn until(&self, source: &Arc<RaftSource>, stop: &CancellationToken) {
        let given_up = TaskTracker::new();
        let archiving = Box::pin(archive(&self.place, &self.author, source, &self.drills, &given_up));
        stop.run_until_cancelled(archiving).await;
        given_up.close();
        // What is not taken back in time stays in the store, as after a crash.
        let _ = tokio::time::timeout(END_TIMEOUT, given_up.wait()).await;
    }
}

/// Archives to one place.
async fn archive(
    place: &Place,
    author: &Author,
    source: &Arc<RaftSource>,
    drills: &Arc<Semaphore>,
    given_up: &TaskTracker,
) {
    if place.settings.recipients.is_empty() {
        tracing::warn!(
            backup = place.settings.name,
            url = place.url,
            "off-site copies to this place are NOT encrypted: whoever can read the store can read all data; give recipients"
        );
    }
    loop {
        let Ok((repository, options)) = set_up(place, &author.stores).await.inspect_err(|error| {
            tracing::warn!(backup = place.settings.name, error, "a place for backups can't be used; it is tried again");
            place.set_refused(Some(error.clone()));
        }) else {
            tokio::time::sleep(SETUP_PAUSE.min(PAUSE_MAX)).await;
            continue;
        };
        let repository = repository.tracked(given_up.clone());
        place.set_refused(None);
        let (settings, desk) = (place.settings.clone(), Arc::clone(&place.desk));
        let caretaker = Caretaker {
            cluster: author.cluster,
            author: author.name.clone(),
            care: settings.care.clone(),
            repository: repository.clone(),
            scratch: author.scratch.join(&settings.name),
            health: place.health.clone(),
        };
        let archiver =
            Archiver::new(author.cluster, author.name.clone(), settings, repository.clone(), Arc::clone(source), desk);
        let active: watch::Receiver<bool> = place.active.subscribe();
        tokio::select! {
            biased;
            () = archiver.run(active.clone()) => return,
            () = caretaker.run(active.clone()) => return,
            () = drilling::run(place, author, active, drills, &repository) => return,
            () = place::renewed(place, &options) => {
                tracing::info!(backup = place.settings.name, "its credentials were renewed");
            }
        }
    }
}

/// Opens the store with the credentials that are to be had now.
async fn set_up(place: &Place, stores: &Stores) -> Result<(Repository, Options), String> {
    let options = place::options(&place.settings).await?;
    let repository = place::open(stores, &place.settings, options.clone()).await?;
    Ok((repository, options))
}
