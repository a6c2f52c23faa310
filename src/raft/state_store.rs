//! The state machine as openraft sees it.
//!
//! Guarantees: all entries that are ready are applied together and become visible at once, before their writers are
//! answered; a snapshot is pinned between two applies and written while writes go on; an installed snapshot replaces the
//! state by a swap, so that readers keep what they hold. Leaves out: the semantics (`state`), files (`snapshot_store`) and
//! moving the overlay to disk (`checkpoint`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};

use super::background;
use super::checkpoint::CheckpointThread;
use super::engine_home::{EngineHome, Generation};
use super::fatal::Fatal;
use super::membership::{decode_membership, encode_membership};
use super::metrics::StateMetrics;
use super::recovery::{Recovered, load_snapshot};
use super::snapshot_store::{SnapshotHandle, SnapshotStore};
use super::types::{ApplyReply, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::clock;
use crate::state::{Applied, PinnedState, StateConfig, StateMachine, StateReader, Targets};
use crate::types::{LogPosition, Revision};
use crate::watch;

/// Pause before a snapshot is tried again that found no room on the disk. Tests have less time.
const FULL_DISK_PAUSE: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };

/// How far this node has applied the log: news for everybody who waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppliedTo {
    /// The last applied entry.
    pub position: Option<LogPosition>,
    /// The revision of the store behind it.
    pub revision: Revision,
    /// The state hash behind it.
    pub hash: u128,
}

impl From<&Applied> for AppliedTo {
    fn from(applied: &Applied) -> Self {
        Self { position: applied.position, revision: applied.revision, hash: applied.hash }
    }
}

/// What others may use of the state while openraft owns it.
#[derive(Clone)]
pub(super) struct StateAccess {
    reader: Arc<ArcSwap<StateReader>>,
    applied: watch::Receiver<AppliedTo>,
    targets: watch::Receiver<Targets>,
    pub(super) snapshots: Arc<SnapshotStore>,
}

impl StateAccess {
    pub(super) fn reader(&self) -> Arc<StateReader> {
        self.reader.load_full()
    }

    pub(super) fn applied(&self) -> watch::Receiver<AppliedTo> {
        self.applied.clone()
    }

    pub(super) fn targets(&self) -> watch::Receiver<Targets> {
        self.targets.clone()
    }
}

/// The single writer of the state.
pub(super) struct StateStore {
    machine: StateMachine,
    membership: StoredMembership,
    generation: Arc<Generation>,
    checkpoint: CheckpointThread,
    home: EngineHome,
    config: StateConfig,
    reader: Arc<ArcSwap<StateReader>>,
    applied: watch::Sender<AppliedTo>,
    targets: watch::Sender<Targets>,
    snapshots: Arc<SnapshotStore>,
    metrics: StateMetrics,
    fatal: Fatal,
}

impl StateStore {
    pub(super) fn new(
        recovered: Recovered,
        home: EngineHome,
        config: StateConfig,
        snapshots: Arc<SnapshotStore>,
        metrics: StateMetrics,
        fatal: Fatal,
    ) -> io::Result<(Self, StateAccess)> {
        let Recovered { machine, generation } = recovered;
        home.remove_others(&generation);
        let membership = decode_membership(&machine.applied().membership).map_err(io::Error::other)?;
        let checkpoint = checkpoints_of(&machine, &generation, metrics.clone(), fatal.clone())?;
        let reader = Arc::new(ArcSwap::from_pointee(machine.reader()));
        let (applied, applied_rx) = watch::channel(machine.applied().into());
        let (targets, targets_rx) = watch::channel(machine.applied().targets.clone());
        let (reader_too, snapshots_too) = (reader.clone(), snapshots.clone());
        let access =
            StateAccess { reader: reader_too, applied: applied_rx, targets: targets_rx, snapshots: snapshots_too };
        Ok((
            Self {
                machine,
                membership,
                generation,
                checkpoint,
                home,
                config,
                reader,
                applied,
                targets,
                snapshots,
                metrics,
                fatal,
            },
            access,
        ))
    }

    fn apply_entry(&mut self, entry: Entry) -> io::Result<ApplyReply> {
        let position = LogPosition::from(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => self.machine.apply_blank(position),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                self.machine.apply_membership(position, encode_membership(&self.membership));
            }
            EntryPayload::Normal(batch) => {
                let commands = batch.decode().map_err(io::Error::other)?;
                self.metrics.commands_per_entry.observe(commands.len() as f64);
                self.metrics.commands.inc_by(commands.len() as u64);
                let outcomes = self.machine.apply(position, &commands).map_err(io::Error::other)?;
                return Ok(ApplyReply(outcomes));
            }
        }
        Ok(ApplyReply::default())
    }

    async fn apply_all<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let started = clock::now();
        let mut replies = Vec::new();
        let mut count = 0_u32;
        while let Some((entry, responder)) = entries.try_next().await? {
            while !self.machine.has_room() {
                // What is applied must be visible before the checkpoint can move it.
                self.machine.publish();
                self.checkpoint.make_room().await;
                self.fatal.check()?;
            }
            let reply = self.apply_entry(entry)?;
            count += 1;
            if let Some(responder) = responder {
                replies.push((responder, reply));
            }
        }
        let applied = self.machine.publish();
        self.tell(&applied);
        for (responder, reply) in replies {
            responder.send(reply);
        }
        self.metrics.entries_per_apply.observe(f64::from(count));
        self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Tells whoever waits how far the state has come.
    fn tell(&self, applied: &Applied) {
        // Before the mark: who has seen that a change is applied sees it.
        self.targets.send_if_modified(|targets| {
            let changed = *targets != applied.targets;
            if changed {
                targets.clone_from(&applied.targets);
            }
            changed
        });
        self.applied.send_replace(applied.into());
    }

    async fn install(&mut self, snapshot: SnapshotHandle) -> io::Result<()> {
        let (home, config) = (self.home.clone(), self.config.clone());
        let snapshots = self.snapshots.clone();
        let loaded = background::run("snapshot-load", move || {
            snapshots.keep(&snapshot).map_err(io::Error::other)?;
            load_snapshot(&home, &snapshot, &config).map_err(io::Error::other)
        });
        let Recovered { machine, generation } = loaded.await??;
        let membership = decode_membership(&machine.applied().membership).map_err(io::Error::other)?;
        let checkpoint = checkpoints_of(&machine, &generation, self.metrics.clone(), self.fatal.clone())?;
        let replaced = std::mem::replace(&mut self.checkpoint, checkpoint);
        self.machine = machine;
        self.membership = membership;
        self.reader.store(Arc::new(self.machine.reader()));
        self.tell(self.machine.applied());
        // The old engine closes, and its directory goes, once the last reader lets go of it.
        replaced.end().await;
        self.generation.retire();
        self.generation = generation;
        Ok(())
    }

    /// Moves everything applied to the engine.
    #[cfg(test)]
    pub(super) async fn checkpoint_now(&self) {
        self.checkpoint.make_room().await;
    }

    /// Lets go of the engine, so that it can be opened again.
    #[cfg(test)]
    pub(super) async fn close(self) {
        self.checkpoint.end().await;
    }

    /// The newest snapshot that is not known to be damaged; one is made where there was one and it is.
    async fn sound_snapshot(&mut self) -> io::Result<Option<SnapshotHandle>> {
        let newest = self.snapshots.newest();
        if newest.is_some() || !self.snapshots.any_damaged() {
            return Ok(newest);
        }
        let mut builder = self.get_snapshot_builder().await;
        Ok(Some(builder.build_snapshot().await?.snapshot))
    }
}

impl RaftStateMachine<TypeConfig> for StateStore {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.machine.applied().position.map(Into::into), self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let applied = self.apply_all(entries).await;
        applied.inspect_err(|error| {
            if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
                self.generation.condemn(error);
            }
            self.fatal.raise(&format!("applying the log failed: {error}"));
        })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.checkpoint.request();
        SnapshotBuilder {
            pinned: Some(self.machine.pin()),
            snapshots: self.snapshots.clone(),
            metrics: self.metrics.clone(),
        }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotHandle) -> Result<(), io::Error> {
        self.install(snapshot)
            .await
            .inspect_err(|error| self.fatal.raise(&format!("installing a snapshot failed: {error}")))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<SnapshotHandle>>, io::Error> {
        Ok(self.sound_snapshot().await?.map(as_openraft))
    }
}

/// The checkpoints of a state; damage that one meets condemns the engine.
fn checkpoints_of(
    machine: &StateMachine,
    generation: &Arc<Generation>,
    metrics: StateMetrics,
    fatal: Fatal,
) -> io::Result<CheckpointThread> {
    let generation = Arc::clone(generation);
    CheckpointThread::spawn(machine.checkpointer(), metrics, fatal, move |error| generation.condemn(error))
}

fn as_openraft(snapshot: SnapshotHandle) -> Snapshot<SnapshotHandle> {
    Snapshot { meta: snapshot.raft_meta().clone(), snapshot }
}

/// Writes one snapshot of a state that was pinned between two applies.
pub(super) struct SnapshotBuilder {
    pinned: Option<PinnedState>,
    snapshots: Arc<SnapshotStore>,
    metrics: StateMetrics,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<Snapshot<SnapshotHandle>, io::Error> {
        let pinned = self.pinned.take().ok_or_else(|| io::Error::other("a builder builds once"))?;
        let started = clock::now();
        let pinned = Arc::new(pinned);
        let handle = loop {
            let (snapshots, pinned) = (self.snapshots.clone(), pinned.clone());
            match background::run("snapshot", move || snapshots.write(&pinned)).await? {
                Ok(handle) => break handle,
                // openraft takes any error for the end of this node, and nodes reach the size for a snapshot together: a
                // full disk must not end them all. The pinned state stays what it is, so the next try is as good.
                Err(error) if error.is_full() => {
                    tracing::error!(%error, "no room for a snapshot; the log grows until there is: make room");
                    tokio::time::sleep(FULL_DISK_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.metrics.snapshot_seconds.observe(started.elapsed().as_secs_f64());
        tracing::info!(
            file = %handle.path().display(),
            bytes = handle.file_bytes(),
            revision = handle.meta().revision.get(),
            seconds = started.elapsed().as_secs_f64(),
            "snapshot written and verified"
        );
        Ok(as_openraft(handle))
    }
}
