//! Makes log and snapshot of the new cluster's only member.
//!
//! Guarantees: on return everything is on disk, and the snapshot was read back; after an error the folder is of no use.
//! Leaves out: choosing the folder, and bringing it into its place (`node::refounding`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use openraft::EntryPayload;
use openraft::storage::RaftLogStorage as _;

use super::source::{Opened, blocking, unreadable};
use super::{Founder, Raise, RefoundError, Refounded, Survey};
use crate::clock;
use crate::raft::engine_home::EngineHome;
use crate::raft::log_store::{LogConfig, LogStore};
use crate::raft::membership::encode_membership;
use crate::raft::recovery::{Recovered, load_snapshot};
use crate::raft::snapshot_store::EXTENSION;
use crate::raft::types::{Entry, Membership, StoredMembership, Vote};
use crate::state::snapshot::{self, SnapshotMeta, SnapshotSummary};
use crate::state::{StateConfig, StateMachine};
use crate::types::limits::JSON_INTEGER_MAX;
use crate::types::{ClusterId, LogPosition, Revision};

/// Where the state is built; removed at the end.
const WORKSHOP: &str = "workshop";

/// Memory for the pages of the state while it is built, in bytes, beside what an engine takes at least.
const ENGINE_CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Makes `log/`, `snapshots/` and an empty `state/` in the folder `into`, which is empty, from what was surveyed. Revisions
/// go on `skipped` higher, and history is given up below there; with 0 both stay.
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
    let workshop = into.join(WORKSHOP);
    let mut machine = begin(&source, &workshop).await?;
    source.each_entry(|entry| replay(&mut machine, entry)).await?;
    drop(source);
    let position = LogPosition { term: survey.term.next(), leader: founder.id, index: survey.last.index.next() };
    let made = establish(machine, position, founder, Raise::By(skipped), into, config).await?;
    // The last user of the engine has gone with the machine, so its files may go, too.
    fs::remove_dir_all(&workshop).map_err(RefoundError::io("remove", &workshop))?;
    Ok(made)
}

/// Makes `log/`, `snapshots/` and an empty `state/` in the folder `into` from a state that was built elsewhere. The members
/// in it are replaced by the founder; where revisions are raised, history is given up below.
///
/// Takes as long as the data is large, and blocks on the disk meanwhile. The machine, and with it the last user of its
/// engine, is gone on return.
///
/// # Errors
/// [`RefoundError`].
pub async fn found(
    machine: StateMachine,
    founder: &Founder,
    raise: Raise,
    into: &Path,
    config: LogConfig,
) -> Result<Refounded, RefoundError> {
    let last = machine.applied().position.ok_or(RefoundError::Empty)?;
    let position = LogPosition { term: last.term.next(), leader: founder.id, index: last.index.next() };
    establish(machine, position, founder, raise, into, config).await
}

/// Makes all of the new member but its identity. The entry at `position` sets the membership.
async fn establish(
    mut machine: StateMachine,
    position: LogPosition,
    founder: &Founder,
    raise: Raise,
    into: &Path,
    config: LogConfig,
) -> Result<Refounded, RefoundError> {
    machine.apply_membership(position, encode_membership(&alone(founder, position)?));
    machine.publish();
    let revision_before = machine.applied().revision;
    let revision = later(revision_before, raise)?;
    let (folder, cluster) = (into.join("snapshots"), founder.cluster);
    let write = move || write_snapshot(&machine, &folder, cluster, revision);
    let SnapshotSummary { keys, file_bytes, .. } = blocking(write).await?;
    begin_log(&into.join("log"), position, config).await?;
    let state = into.join("state");
    fs::create_dir(&state).map_err(RefoundError::io("create", &state))?;
    sync(into)?;
    Ok(Refounded { position, revision_before, revision, keys, snapshot_bytes: file_bytes })
}

/// The state that the source begins with.
async fn begin(source: &Opened, workshop: &Path) -> Result<StateMachine, RefoundError> {
    let (home, snapshot) = (EngineHome::new(workshop, ENGINE_CACHE_BYTES), source.snapshot.clone());
    let loaded = blocking(move || {
        let config = StateConfig::default();
        match snapshot {
            Some(snapshot) => Ok(load_snapshot(&home, &snapshot, &config)?),
            None => {
                let generation = home.open_fresh()?;
                Ok(Recovered { machine: StateMachine::open(generation.clone(), config)?, generation })
            }
        }
    });
    Ok(loaded.await?.machine)
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

/// Writes the state as a snapshot of another cluster that is at `revision`.
fn write_snapshot(
    machine: &StateMachine,
    folder: &Path,
    cluster_id: ClusterId,
    revision: Revision,
) -> Result<SnapshotSummary, RefoundError> {
    let pinned = machine.pin();
    let applied = pinned.applied();
    let (term, index) = applied.position.map_or((0, 0), |position| (position.term.get(), position.index.get()));
    let meta = SnapshotMeta {
        cluster_id,
        position: applied.position,
        membership: applied.membership.clone(),
        revision,
        compacted: if revision > applied.revision { revision } else { applied.compacted },
        hash: applied.hash,
        created_at: clock::wall(),
    };
    fs::create_dir(folder).map_err(RefoundError::io("create", folder))?;
    let path = folder.join(format!("{term}-{index}.{EXTENSION}"));
    Ok(snapshot::write(&path, &meta, pinned.keys()?, pinned.records())?)
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
