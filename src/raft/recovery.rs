//! The start-up path of the state machine: use the engine where it can be trusted, rebuild it where not.
//!
//! The engine is a checkpoint, never the truth (truth is the log and the verified snapshots). It is used only if it opens,
//! its marker decodes, and the entry it names lies between the newest snapshot's purge mark and the end of the log, with
//! the log agreeing about that entry. Otherwise the next generation is filled from the newest snapshot that is whole, and
//! the log is replayed on top. Guarantees: a state that is served was derived from log and snapshots. Leaves out: replaying
//! (openraft does that when it starts) and fetching a snapshot from another member.

use std::sync::Arc;

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;

use super::engine_home::{EngineHome, Generation};
use super::log_store::LogStore;
use super::snapshot_store::{SnapshotHandle, SnapshotStore};
use super::types::LogId;
use crate::state::snapshot::{SnapshotError, SnapshotReader};
use crate::state::{self, Applied, LoadError, StateConfig, StateMachine};
use crate::storage;
use crate::types::LogPosition;

/// Why there is no state to start from.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log can't be read.
    #[error("can't read the log: {0}")]
    Log(#[source] std::io::Error),
    /// A fresh engine can't be made or filled.
    #[error("can't rebuild the state: {0}")]
    Storage(#[from] storage::Error),
    /// Entries are gone from the log and no whole snapshot covers them.
    #[error(
        "the state can't be rebuilt: the log begins behind entry {purged}, and no whole snapshot reaches that far; \
         remove this member and add it again with an empty directory"
    )]
    Unrecoverable {
        /// The last entry that is gone.
        purged: u64,
    },
}

/// A state machine that is ready to replay the rest of the log.
pub(super) struct Recovered {
    pub(super) machine: StateMachine,
    pub(super) generation: u64,
}

/// Where the log begins and ends, and what it says about one entry.
struct LogExtent {
    purged: Option<LogId>,
    last: Option<LogId>,
}

/// Opens the state, or rebuilds it.
pub(super) async fn recover(
    home: EngineHome,
    snapshots: &Arc<SnapshotStore>,
    log: &mut LogStore,
    config: StateConfig,
) -> Result<Recovered, RecoveryError> {
    let state = log.get_log_state().await.map_err(RecoveryError::Log)?;
    let extent = LogExtent { purged: state.last_purged_log_id, last: state.last_log_id };
    let purged = extent.purged.map(LogPosition::from);

    let opening = {
        let (home, config) = (home.clone(), config.clone());
        tokio::task::spawn_blocking(move || open_newest(&home, config)).await
    };
    let distrust = match opening {
        Ok(Ok(recovered)) => {
            let applied = recovered.machine.applied();
            match distrust(applied, &extent, snapshots.newest().as_ref(), log).await? {
                None => {
                    settle_snapshots(snapshots, applied.position, purged).await?;
                    return Ok(recovered);
                }
                Some(reason) => reason,
            }
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("opening it panicked: {panic}"),
    };
    tracing::warn!(reason = distrust, "the state engine can't be trusted; rebuilding it from snapshot and log");
    let candidates = Arc::clone(snapshots);
    let rebuilding = tokio::task::spawn_blocking(move || rebuild(&home, &candidates, &extent, &config)).await;
    let recovered = rebuilding.map_err(|panic| RecoveryError::Log(panic.into()))??;
    settle_snapshots(snapshots, recovered.machine.applied().position, purged).await?;
    Ok(recovered)
}

/// Sees to it that openraft finds only snapshots it can use: it installs one that is ahead of the state without another
/// look, so that must be whole; and it does not expect one that ends before the log begins. Without any, it makes a new
/// one of the state.
async fn settle_snapshots(
    snapshots: &Arc<SnapshotStore>,
    applied: Option<LogPosition>,
    purged: Option<LogPosition>,
) -> Result<(), RecoveryError> {
    let store = Arc::clone(snapshots);
    let settling = tokio::task::spawn_blocking(move || {
        store.newest_whole_beyond(applied);
        store.pass_over_before(purged);
    });
    settling.await.map_err(|panic| RecoveryError::Log(panic.into()))
}

fn open_newest(home: &EngineHome, config: StateConfig) -> Result<Recovered, storage::Error> {
    let Generation { number, engine } = home.open_newest()?;
    Ok(Recovered { machine: StateMachine::open(engine, config)?, generation: number })
}

/// Why the state at this marker can't be continued with this log; `None` if it can.
async fn distrust(
    applied: &Applied,
    extent: &LogExtent,
    newest: Option<&SnapshotHandle>,
    log: &mut LogStore,
) -> Result<Option<String>, RecoveryError> {
    let marker: Option<LogId> = applied.position.map(Into::into);
    let snapshot = newest.and_then(|snapshot| snapshot.raft_meta().last_log_id);
    if marker < extent.purged {
        return Ok(Some(format!("it ends at {}, but the log begins behind {}", show(marker), show(extent.purged))));
    }
    let Some(marker) = marker else { return Ok(None) };
    if Some(marker) == extent.purged || Some(marker) == snapshot {
        return Ok(None);
    }
    if Some(marker.index) > extent.last.map(|last| last.index) {
        return Ok(Some(format!(
            "it ends at {}, behind the end of the log at {}",
            show(Some(marker)),
            show(extent.last)
        )));
    }
    let entries = log.try_get_log_entries(marker.index..=marker.index).await.map_err(RecoveryError::Log)?;
    let logged = entries.first().map(|entry| entry.log_id);
    if logged != Some(marker) {
        return Ok(Some(format!("it ends at {}, where the log has {}", show(Some(marker)), show(logged))));
    }
    Ok(None)
}

fn show(id: Option<LogId>) -> String {
    id.map_or_else(|| "the beginning".into(), |id| id.to_string())
}

/// Fills a fresh generation from the newest whole snapshot that the log continues.
fn rebuild(
    home: &EngineHome,
    snapshots: &SnapshotStore,
    extent: &LogExtent,
    config: &StateConfig,
) -> Result<Recovered, RecoveryError> {
    while let Some(snapshot) = snapshots.newest().filter(|newest| newest.raft_meta().last_log_id >= extent.purged) {
        match load_snapshot(home, &snapshot, config) {
            Ok(recovered) => return Ok(recovered),
            Err(LoadError::Engine(error)) => return Err(error.into()),
            Err(error) => snapshot.pass_over(&error),
        }
    }
    if let Some(purged) = extent.purged {
        return Err(RecoveryError::Unrecoverable { purged: purged.index });
    }
    let Generation { number, engine } = home.open_fresh()?;
    Ok(Recovered { machine: StateMachine::open(engine, config.clone())?, generation: number })
}

/// Loads a snapshot into the next generation.
pub(super) fn load_snapshot(
    home: &EngineHome,
    snapshot: &SnapshotHandle,
    config: &StateConfig,
) -> Result<Recovered, LoadError<SnapshotError>> {
    let reader = SnapshotReader::open(snapshot.path()).map_err(LoadError::Records)?;
    let meta = reader.meta();
    let applied = Applied {
        position: meta.position,
        revision: meta.revision,
        compacted: meta.compacted,
        membership: meta.membership.clone(),
        hash: meta.hash,
    };
    let Generation { number, engine } = home.open_fresh().map_err(LoadError::Engine)?;
    state::load(&*engine, &applied, reader)?;
    let machine = StateMachine::open(engine, config.clone()).map_err(LoadError::Engine)?;
    Ok(Recovered { machine, generation: number })
}
