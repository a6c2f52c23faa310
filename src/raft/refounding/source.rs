//! What a cluster is founded anew from: opened, checked and counted.
//!
//! Guarantees: the snapshot that is begun with was read to its end; the entries behind it continue it without a gap or a
//! conflict, as they must when a node starts. Leaves out: applying them (`build`).

use std::ops::Range;
use std::path::{Path, PathBuf};

use openraft::EntryPayload;

use super::{Counted, DataSource, RefoundError, Survey, SurveyedSnapshot};
use crate::raft::log_store::{LogConfig, LogStore, LostEnd, READ_BYTES_MAX};
use crate::raft::snapshot_store::{EXTENSION, SnapshotHandle, SnapshotStoreError};
use crate::raft::types::{Entry, Membership};
use crate::state::snapshot::{self, SnapshotError};
use crate::types::{ClusterId, LogIndex, LogPosition, Member, NodeId, WallTime};

/// A source that is open.
pub(super) struct Opened {
    /// What is begun with.
    pub(super) snapshot: Option<SnapshotHandle>,
    pub(super) log: Option<LogStore>,
    /// What the log has lost at its end.
    lost_end: Option<LostEnd>,
    /// The entries that continue the snapshot.
    pub(super) replay: Range<u64>,
    /// The last entry of all.
    pub(super) last: LogPosition,
}

/// Reads a source to its end and counts what is there.
///
/// # Errors
/// [`RefoundError`].
pub async fn survey(source: DataSource, config: LogConfig) -> Result<Survey, RefoundError> {
    let opened = Opened::open(&source, config).await?;
    let mut committed = opened.snapshot.as_ref().and_then(|file| file.meta().position);
    let mut term = opened.last.term;
    if let Some(log) = &opened.log {
        committed = committed.max(log.committed());
        term = term.max(log.voted_in().unwrap_or_default());
    }
    let mut tally = Tally { committed, ..Tally::default() };
    opened.each_entry(|entry| tally.add(&entry)).await?;
    let in_snapshot = opened.snapshot.as_ref().map(|file| file.raft_meta().last_membership.membership().clone());
    let members = tally.membership.or(in_snapshot);
    let cluster = match (&source, &opened.snapshot) {
        (DataSource::Member { cluster, .. }, _) => *cluster,
        (DataSource::File(_), file) => file.as_ref().map_or(ClusterId::ZERO, |file| file.meta().cluster_id),
    };
    Ok(Survey {
        cluster,
        snapshot: opened.snapshot.as_ref().and_then(surveyed),
        committed,
        last: opened.last,
        lost_end: opened.lost_end,
        term,
        logged: tally.logged,
        doubtful: tally.doubtful,
        last_command_at: tally.last_command_at,
        members: members.as_ref().map(listed).unwrap_or_default(),
        source,
    })
}

fn unusable(path: &Path, error: SnapshotStoreError) -> RefoundError {
    match error {
        SnapshotStoreError::File(SnapshotError::Io { source, .. }) => RefoundError::io("read", path)(source),
        source => RefoundError::Snapshot { path: path.to_owned(), source },
    }
}

fn surveyed(file: &SnapshotHandle) -> Option<SurveyedSnapshot> {
    let meta = file.meta();
    Some(SurveyedSnapshot {
        path: file.path().to_owned(),
        position: meta.position?,
        revision: meta.revision,
        created_at: meta.created_at,
    })
}

fn listed(membership: &Membership) -> Vec<(NodeId, Member, bool)> {
    let voters: Vec<NodeId> = membership.voter_ids().collect();
    membership.nodes().map(|(id, member)| (*id, member.clone(), voters.contains(id))).collect()
}

/// Counts entries as they pass.
#[derive(Default)]
struct Tally {
    committed: Option<LogPosition>,
    logged: Counted,
    doubtful: Counted,
    last_command_at: Option<WallTime>,
    membership: Option<Membership>,
}

impl Tally {
    fn add(&mut self, entry: &Entry) -> Result<(), RefoundError> {
        let position = LogPosition::from(entry.log_id);
        let mut commands = 0;
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => self.membership = Some(membership.clone()),
            EntryPayload::Normal(batch) => {
                let decoded = batch.decode().map_err(|error| unreadable(entry.log_id.index, &error))?;
                commands = decoded.len() as u64;
                self.last_command_at = decoded.last().map(|command| command.proposed_at).or(self.last_command_at);
            }
        }
        let one = Counted { entries: 1, commands };
        self.logged.add(one);
        if Some(position) > self.committed {
            self.doubtful.add(one);
        }
        Ok(())
    }
}

impl Counted {
    fn add(&mut self, more: Self) {
        self.entries += more.entries;
        self.commands += more.commands;
    }
}

pub(super) fn unreadable(index: u64, error: &dyn std::fmt::Display) -> RefoundError {
    RefoundError::Entry { index, reason: format!("can't be read: {error}") }
}

impl Opened {
    pub(super) async fn open(source: &DataSource, config: LogConfig) -> Result<Self, RefoundError> {
        match source.clone() {
            DataSource::File(path) => {
                let file = blocking(move || {
                    let open = || -> Result<SnapshotHandle, SnapshotStoreError> {
                        let cluster = snapshot::inspect(&path)?.cluster_id;
                        let file = SnapshotHandle::open(path.clone(), cluster)?;
                        file.verify_again()?;
                        Ok(file)
                    };
                    open().map_err(|error| unusable(&path, error))
                });
                let file = file.await?;
                let last = file.meta().position.ok_or(RefoundError::Empty)?;
                Ok(Self { snapshot: Some(file), log: None, lost_end: None, replay: 0..0, last })
            }
            DataSource::Member { dir, cluster } => {
                let opening = move || {
                    let (log, lost_end) = LogStore::open_rest(&dir.join("log"), config)?;
                    let snapshot = snapshot_for(&dir, cluster, &log)?;
                    Ok((log, lost_end, snapshot))
                };
                let (mut log, lost_end, snapshot) = blocking(opening).await?;
                let begun = snapshot.as_ref().and_then(|file| file.meta().position);
                let replay = continuing(begun, &mut log).await?;
                let last = if replay.is_empty() { begun } else { log.last() };
                let last = last.ok_or(RefoundError::Empty)?;
                Ok(Self { snapshot, log: Some(log), lost_end, replay, last })
            }
        }
    }

    /// Shows each entry that continues the snapshot, in order.
    pub(super) async fn each_entry(
        &self,
        mut show: impl FnMut(Entry) -> Result<(), RefoundError>,
    ) -> Result<(), RefoundError> {
        let Some(log) = &self.log else { return Ok(()) };
        let missing = |index| RefoundError::Entry { index, reason: "is missing".into() };
        let (mut next, end) = (self.replay.start, self.replay.end);
        while next < end {
            let entries = log.read(LogIndex::new(next), LogIndex::new(end), READ_BYTES_MAX).await?;
            if entries.is_empty() {
                return Err(missing(next));
            }
            for entry in entries {
                if entry.log_id.index != next {
                    return Err(missing(next));
                }
                show(entry)?;
                next += 1;
            }
        }
        Ok(())
    }
}

/// Finds the newest whole snapshot of a member that its log continues.
fn snapshot_for(dir: &Path, cluster: ClusterId, log: &LogStore) -> Result<Option<SnapshotHandle>, RefoundError> {
    let purged = log.purged();
    let (mut candidates, mut passed_over) = (Vec::new(), None::<RefoundError>);
    let mut pass_over = |error| passed_over = passed_over.take().filter(|other| !other.is_damage()).or(Some(error));
    for path in snapshot_files(&dir.join("snapshots"))? {
        match SnapshotHandle::open(path.clone(), cluster) {
            Ok(file) if file.meta().position.is_some() && file.meta().position >= purged => candidates.push(file),
            // Too old, or none of this member's.
            Ok(_) | Err(SnapshotStoreError::OtherCluster { .. }) => {}
            // What can't be read may have another one beside it that can.
            Err(error) => pass_over(unusable(&path, error)),
        }
    }
    candidates.sort_by_key(|file| std::cmp::Reverse(file.meta().position));
    for file in candidates {
        match file.verify_again() {
            Ok(()) => return Ok(Some(file)),
            Err(error) => pass_over(unusable(file.path(), error.into())),
        }
    }
    match (purged, passed_over) {
        (None, _) => Ok(None),
        // Whole, perhaps, and only not to be read by this program or user: nothing to give this member up for.
        (Some(_), Some(error)) if !error.is_damage() => Err(error),
        (Some(purged), _) => Err(RefoundError::Unrecoverable { purged: purged.index.get() }),
    }
}

/// The complete snapshot files of a folder, which may be missing.
fn snapshot_files(dir: &Path) -> Result<Vec<PathBuf>, RefoundError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RefoundError::io("list", dir)(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(RefoundError::io("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(path);
        }
    }
    Ok(files)
}

/// The entries that continue a snapshot. Where the log holds another entry at the snapshot's place, that one and all
/// behind it were never committed, as a start finds, too (`recovery`).
async fn continuing(begun: Option<LogPosition>, log: &mut LogStore) -> Result<Range<u64>, RefoundError> {
    let end = log.last().map_or(0, |last| last.index.get() + 1);
    let Some(begun) = begun else { return Ok(0..end) };
    let at = begun.index.get();
    if end <= at + 1 {
        return Ok(0..0);
    }
    if log.purged().is_some_and(|purged| purged == begun) {
        return Ok(at + 1..end);
    }
    let there = log.read(begun.index, begun.index.next(), READ_BYTES_MAX).await?;
    let continues = there.first().is_some_and(|entry| LogPosition::from(entry.log_id) == begun);
    Ok(if continues { at + 1..end } else { 0..0 })
}

/// Runs work that waits for a disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RefoundError> + Send + 'static,
) -> Result<T, RefoundError> {
    let panicked = |error: tokio::task::JoinError| RefoundError::io("work on", Path::new("the disk"))(error.into());
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}
