//! Makes log, snapshot and engine of the new cluster's only member.
//!
//! The engine in which the state is built is the one that the member begins with, and the snapshot grows beside it: what is
//! loaded is taken over as it is, and what is applied is added at the end, while the engine takes it, too. Guarantees: on
//! return everything is on disk, the snapshot was read back, and the engine says that it is at the snapshot's last entry
//! (otherwise the member's start would not use it); after an error the folder is of no use.
//! Leaves out: choosing the folder, and bringing it into its place (`node::refounding`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use openraft::EntryPayload;
use openraft::storage::RaftLogStorage as _;

use super::source::{Opened, blocking, unreadable};
use super::{Founder, Raise, RefoundError, Refounded, Survey};
use crate::clock;
use crate::raft::engine_home::EngineHome;
use crate::raft::log_store::{LogConfig, LogStore};
use crate::raft::membership::encode_membership;
use crate::raft::recovery::load_from;
use crate::raft::snapshot_store::file_name;
use crate::raft::types::{Entry, Membership, StoredMembership, Vote};
use crate::state::snapshot::{Draft, SnapshotMeta, SnapshotReader, SnapshotSummary};
use crate::state::{LoadError, PinnedState, StateConfig, StateMachine};
use crate::storage;
use crate::types::limits::JSON_INTEGER_MAX;
use crate::types::{ClusterId, LogPosition, Revision};

/// Where engines live, and snapshots.
const ENGINES: &str = "state";
const SNAPSHOTS: &str = "snapshots";

/// What the snapshot is called while it grows; a start removes a file of such a name.
const DRAFT: &str = "new.snapshot.tmp";

/// Memory for the pages of the state while it is built, in bytes, beside what an engine takes at least.
const ENGINE_CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Makes `log/`, `snapshots/` and `state/` in the folder `into`, which is empty, from what was surveyed. Revisions go on `skipped` higher, and history is given up below there; with 0 both stay.
///
/// Takes as long as the data is large, and blocks on the disk meanwhile.
///
/// # Errors
/// [`RefoundError`]. The source is as it was.
pub async fn refound(
    survey: &Survey,
    founder: &Founder,
    skipped: u64,
    into: &Path,
    config: LogConfig,
) -> Result<Refounded, RefoundError> {
    let source = Opened::open(&survey.source, config.clone()).await?;
    if source.last != survey.last {
        return Err(RefoundError::Changed);
    }
    let (mut machine, draft) = begin(&source, into).await?;
    source.each_entry(|entry| replay(&mut machine, entry)).await?;
    drop(source);
    let position = LogPosition { term: survey.term.next(), leader: founder.id, index: survey.last.index.next() };
    establish(machine, draft, position, founder, Raise::By(skipped), into, config).await
}

/// Where the engine of a member must be built that is made in the folder `into`: in there. The folder around it is made.
///
/// # Errors
/// [`RefoundError::Io`].
pub fn first_engine(into: &Path) -> Result<PathBuf, RefoundError> {
    let folder = into.join(ENGINES);
    fs::create_dir(&folder).map_err(RefoundError::io("create", &folder))?;
    Ok(EngineHome::first_in(&folder))
}

/// Begins the snapshot of a member that is made in the folder `into`: for the records that the state begins with.
///
/// # Errors
/// [`RefoundError::Io`].
pub fn begin_snapshot(into: &Path) -> Result<Draft, RefoundError> {
    let folder = into.join(SNAPSHOTS);
    fs::create_dir(&folder).map_err(RefoundError::io("create", &folder))?;
    let path = folder.join(DRAFT);
    Draft::create(&path).map_err(RefoundError::io("create", &path))
}

/// Makes a member in the folder `into` of a state that was built there, in the engine [`first_engine`]; of its records the
/// oldest are in the snapshot that was begun there ([`begin_snapshot`]), or none. The members in it are replaced by the
/// founder; where revisions are raised, history is given up below.
///
/// Takes as long as the data is large, and blocks on the disk meanwhile. The machine, and with it the last user of its
/// engine, is gone on return.
///
/// # Errors
/// [`RefoundError`].
pub async fn found(
    machine: StateMachine,
    draft: Draft,
    founder: &Founder,
    raise: Raise,
    into: &Path,
    config: LogConfig,
) -> Result<Refounded, RefoundError> {
    let last = machine.applied().position.ok_or(RefoundError::Empty)?;
    let position = LogPosition { term: last.term.next(), leader: founder.id, index: last.index.next() };
    establish(machine, draft, position, founder, raise, into, config).await
}

/// Makes all of the new member but its identity. The entry at `position` sets the membership.
async fn establish(
    mut machine: StateMachine,
    draft: Draft,
    position: LogPosition,
    founder: &Founder,
    raise: Raise,
    into: &Path,
    config: LogConfig,
) -> Result<Refounded, RefoundError> {
    machine.apply_membership(position, encode_membership(&alone(founder, position)?));
    let revision_before = machine.applied().revision;
    let revision = later(revision_before, raise)?;
    machine.skip_to(revision);
    machine.publish();
    let (folder, cluster) = (into.join(SNAPSHOTS), founder.cluster);
    let SnapshotSummary { keys, file_bytes, .. } =
        blocking(move || complete(&machine, draft, &folder, cluster)).await?;
    begin_log(&into.join("log"), position, config).await?;
    sync(&into.join(ENGINES))?;
    sync(into)?;
    Ok(Refounded { position, revision_before, revision, keys, snapshot_bytes: file_bytes })
}

/// Brings a state to disk: into its engine and, beside that, into the snapshot.
fn complete(
    machine: &StateMachine,
    draft: Draft,
    folder: &Path,
    cluster: ClusterId,
) -> Result<SnapshotSummary, RefoundError> {
    let (checkpointer, pinned) = (machine.checkpointer(), machine.pin());
    thread::scope(|scope| {
        let moving = scope.spawn(|| checkpointer.run());
        let counting = scope.spawn(|| pinned.keys());
        let written = write_snapshot(&pinned, draft, folder, cluster, || joined(counting.join()));
        joined(moving.join())?;
        written
    })
}

fn joined<T>(thread: thread::Result<T>) -> T {
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The state that the source begins with, and the snapshot that has its records.
async fn begin(source: &Opened, into: &Path) -> Result<(StateMachine, Draft), RefoundError> {
    let (home, mut draft) = (EngineHome::new(&into.join(ENGINES), ENGINE_CACHE_BYTES), begin_snapshot(into)?);
    let snapshot = source.snapshot.clone();
    let loaded = blocking(move || {
        let config = StateConfig::default();
        let Some(snapshot) = snapshot else {
            let generation = home.open_fresh()?;
            return Ok((StateMachine::open(generation, config)?, draft));
        };
        let mut reader = SnapshotReader::open(snapshot.path()).map_err(LoadError::Records)?;
        reader.copy_to(draft);
        let machine = load_from(&home, &mut reader, &config)?.machine;
        draft = reader.into_draft().expect("what was loaded was read to its end");
        Ok((machine, draft))
    });
    loaded.await
}

/// Applies one entry, as every node does or would have done. Nothing else is to be served meanwhile, so it may block.
fn replay(machine: &mut StateMachine, entry: Entry) -> Result<(), RefoundError> {
    let position = LogPosition::from(entry.log_id);
    if !machine.has_room() {
        // What is applied must be visible before the checkpoint can move it.
        machine.publish();
        machine.checkpointer().run()?;
    }
    match entry.payload {
        EntryPayload::Blank => machine.apply_blank(position),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            machine.apply_membership(position, encode_membership(&stored));
        }
        EntryPayload::Normal(batch) => {
            let commands = batch.decode().map_err(|error| unreadable(entry.log_id.index, &error))?;
            machine.apply(position, &commands)?;
        }
    }
    Ok(())
}

/// The membership of one voter, set by the entry at `position`.
fn alone(founder: &Founder, position: LogPosition) -> Result<StoredMembership, RefoundError> {
    let nodes = BTreeMap::from([(founder.id, founder.member.clone())]);
    let membership = Membership::new(vec![BTreeSet::from([founder.id])], nodes)
        .map_err(|error| unreadable(position.index.get(), &error))?;
    Ok(StoredMembership::new(Some(position.into()), membership))
}

fn later(revision: Revision, raise: Raise) -> Result<Revision, RefoundError> {
    let later = match raise {
        Raise::By(skipped) => revision.get().checked_add(skipped),
        Raise::To(later) => Some(later.max(revision).get()),
    };
    let allowed = later.filter(|later| *later <= JSON_INTEGER_MAX);
    allowed.map(Revision::new).ok_or_else(|| {
        let skipped = later.map_or(u64::MAX, |later| later - revision.get());
        RefoundError::Revision { revision, skipped }
    })
}

/// Completes the snapshot of a state, as one of another cluster.
fn write_snapshot(
    pinned: &PinnedState,
    mut draft: Draft,
    folder: &Path,
    cluster: ClusterId,
    keys: impl FnOnce() -> Result<u64, storage::Error>,
) -> Result<SnapshotSummary, RefoundError> {
    for record in pinned.records_from(draft.next_revision()) {
        draft.push::<storage::Error>(&record?)?;
    }
    let meta = SnapshotMeta::of(cluster, pinned.applied(), clock::wall());
    Ok(draft.finish::<storage::Error>(&folder.join(file_name(&meta)), &meta, keys()?)?)
}

/// Makes a log that begins behind `position`, and in which its leader has voted for itself in that term.
async fn begin_log(dir: &Path, position: LogPosition, config: LogConfig) -> Result<(), RefoundError> {
    let mut log = {
        let dir = dir.to_owned();
        blocking(move || Ok(LogStore::open(&dir, config)?)).await?
    };
    let vote = Vote::new(position.term, position.leader);
    log.save_vote(&vote).await.map_err(RefoundError::io("write the log in", dir))?;
    log.reset_to(position).await?;
    drop(log);
    sync(dir)
}

/// Brings the names in a folder to disk.
fn sync(folder: &Path) -> Result<(), RefoundError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(RefoundError::io("sync", folder))
}
