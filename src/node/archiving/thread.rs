//! The thread on which this node archives.
//!
//! Archiving has a runtime of its own, on a thread that gives way to those that serve, and so do the threads on which it
//! packs: requests and consensus never wait for it. Guarantees: it ends with the node. Leaves out: what is archived
//! (`backup::archiver`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::source::RaftSource;
use crate::backup::archiver::{Archiver, PAUSE_MAX};
use crate::backup::care::Caretaker;
use crate::backup::repository::Repository;
use crate::backup::target::{self, TargetError};
use crate::raft::{RaftNode, stand_back};
use crate::types::ClusterId;

/// How long a request to a store that does not answer may hold up the end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before a store that can't be set up is tried again.
const SETUP_PAUSE: Duration = Duration::from_secs(2);

/// Who archives.
#[derive(Clone)]
pub(super) struct Author {
    pub(super) cluster: ClusterId,
    /// The name of this node.
    pub(super) name: String,
    /// A folder of its own for what is verified.
    pub(super) scratch: PathBuf,
}

/// Archives to all places until told to stop. Returns once the thread has ended.
pub(super) async fn run(raft: RaftNode, author: Author, places: Vec<Arc<Place>>, stopping: CancellationToken) {
    let (ended, end) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("archiver".into()).spawn(move || {
        stand_back();
        // Dropped at the end of the thread, whatever ends it.
        let _ended = ended;
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "nothing is archived: there is no runtime to be had"),
        };
        let source = Arc::new(RaftSource(raft));
        let all = places.iter().map(|place| archive(place, &author, &source));
        runtime.block_on(stopping.run_until_cancelled(join_all(all)));
        runtime.shutdown_timeout(END_TIMEOUT);
    });
    match thread {
        Ok(_) => drop(end.await),
        Err(error) => tracing::error!(%error, "nothing is archived: there is no thread to be had"),
    }
}

/// Archives to one place.
async fn archive(place: &Place, author: &Author, source: &Arc<RaftSource>) {
    let repository = loop {
        match set_up(place).await {
            Ok(repository) => break repository,
            Err(error) => {
                tracing::warn!(backup = place.settings.name, %error, "a place for backups can't be used; it is tried again");
                place.set_refused(Some(error));
            }
        }
        tokio::time::sleep(SETUP_PAUSE.min(PAUSE_MAX)).await;
    };
    place.set_refused(None);
    let caretaker = Caretaker {
        cluster: author.cluster,
        author: author.name.clone(),
        care: place.settings.care.clone(),
        repository: repository.clone(),
        scratch: author.scratch.join(&place.settings.name),
        health: place.health.clone(),
    };
    let (settings, desk) = (place.settings.clone(), Arc::clone(&place.desk));
    let archiver = Archiver::new(author.cluster, author.name.clone(), settings, repository, Arc::clone(source), desk);
    let active: watch::Receiver<bool> = place.active.subscribe();
    tokio::select! {
        () = archiver.run(active.clone()) => {}
        () = caretaker.run(active) => {}
    }
}

async fn set_up(place: &Place) -> Result<Repository, String> {
    let (url, options) = (place.settings.url.clone(), place.settings.options.clone());
    // The folder of a file:// URL may lie on a disk that is slow.
    let opening = tokio::task::spawn_blocking(move || target::open_existing(&url, &options));
    let opened = opening.await.map_err(|error| error.to_string())?;
    opened.map_err(|error: TargetError| error.to_string())
}
