//! The start-up path of the state machine: use the engine where it can be trusted, rebuild it where not.
//!
//! The engine is a checkpoint, never the truth (truth is the log and the verified snapshots). It is used only if it opens,
//! its marker decodes, and the entry it names lies between the purge mark and the end of the log, with the log agreeing
//! about that entry. Otherwise the next generation is filled from the newest snapshot that is whole, and the log is
//! replayed on top.
//!
//! openraft applies a committed entry on a follower before that follower has flushed it. So after a power cut the engine's
//! marker, or a snapshot, may be ahead of the log. Neither waits for the log while all is well; here such a marker is not
//! trusted, and such a snapshot (verified, and of committed entries only) is what the log then begins behind. Nothing is
//! lost by either: what this node had not flushed it had not acknowledged, so a quorum without it holds it.
//!
//! Guarantees: a state that is served was derived from log and snapshots, and the log continues it without a gap or a
//! conflict. Leaves out: replaying (openraft does that when it starts) and fetching a snapshot from another member.

use std::sync::Arc;
use std::time::Duration;

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;

use super::engine_home::{EngineHome, Generation};
use super::log_store::LogStore;
use super::snapshot_store::{SnapshotHandle, SnapshotStore};
use super::types::LogId;
use crate::host;
use crate::state::snapshot::{SnapshotError, SnapshotReader};
use crate::state::{self, Applied, LoadError, StateConfig, StateMachine};
use crate::storage;
use crate::types::LogPosition;

/// Opening the engine may take this long; beyond it, rebuilding is the better bet.
const ENGINE_OPEN_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Why there is no state to start from.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log can't be read.
    #[error("can't read the log: {0}")]
    Log(#[source] std::io::Error),
    /// A fresh engine can't be made or filled.
    #[error("can't rebuild the state: {0}")]
    Storage(#[from] storage::Error),
    /// This machine lacks what it takes to open the engine; nothing was changed.
    #[error("can't open the state: {0}; nothing was changed: make room, or raise the limit, and start again")]
    Shortage(#[source] storage::Error),
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
    pub(super) generation: Arc<Generation>,
}

/// Where the log begins and ends.
#[derive(Clone, Copy)]
struct LogExtent {
    purged: Option<LogId>,
    last: Option<LogId>,
}

/// Opens the state, or rebuilds it, and makes the log continue it.
pub(super) async fn recover(
    home: EngineHome,
    snapshots: &SnapshotStore,
    log: &mut LogStore,
    config: StateConfig,
) -> Result<Recovered, RecoveryError> {
    let state = log.get_log_state().await.map_err(RecoveryError::Log)?;
    let extent = LogExtent { purged: state.last_purged_log_id, last: state.last_log_id };
    let recovered = match open_trusted(&home, &extent, log, &config).await? {
        Ok(recovered) => with_newer_snapshot(recovered, &home, snapshots, &config).await?,
        Err(reason) => {
            tracing::warn!(reason, "the state engine can't be trusted; rebuilding it from snapshot and log");
            let candidates = snapshots.all();
            host::spawn_blocking(move || rebuild(&home, candidates, &extent, &config))
                .await
                .map_err(|panic| RecoveryError::Log(panic.into()))??
        }
    };
    snapshots.set_damaged_aside();
    if let Some(purged) = extent.purged {
        snapshots.forget_before(purged.into());
    }
    if let Some(position) = recovered.machine.applied().position {
        continue_from(position, &extent, log).await?;
    }
    Ok(recovered)
}

/// The state of the newest generation, or why it can't be trusted.
async fn open_trusted(
    home: &EngineHome,
    extent: &LogExtent,
    log: &mut LogStore,
    config: &StateConfig,
) -> Result<Result<Recovered, String>, RecoveryError> {
    let opening = {
        let (home, config) = (home.clone(), config.clone());
        host::spawn_blocking(move || open_newest(&home, config))
    };
    Ok(match tokio::time::timeout(ENGINE_OPEN_TIMEOUT, opening).await {
        Ok(Ok(Ok(recovered))) => match distrust(recovered.machine.applied(), extent, log).await? {
            None => Ok(recovered),
            Some(reason) => Err(reason),
        },
        // A state that is rebuilt for that would be lost for nothing, and need more of what is lacking.
        Ok(Ok(Err(error))) if error.is_shortage() => return Err(RecoveryError::Shortage(error)),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(panic)) => Err(format!("opening it panicked: {panic}")),
        Err(_) => Err(format!("opening it took longer than {} s", ENGINE_OPEN_TIMEOUT.as_secs())),
    })
}

/// Loads a snapshot that is ahead of the state, which a crash between a snapshot and its checkpoint leaves. openraft would
/// do so, too, but could not go on with a damaged one; here the state and the log serve then.
async fn with_newer_snapshot(
    recovered: Recovered,
    home: &EngineHome,
    snapshots: &SnapshotStore,
    config: &StateConfig,
) -> Result<Recovered, RecoveryError> {
    for snapshot in snapshots.all() {
        if snapshot.meta().position <= recovered.machine.applied().position {
            break;
        }
        let (home, config) = (home.clone(), config.clone());
        let loading = host::spawn_blocking(move || {
            load_snapshot(&home, &snapshot, &config).inspect_err(|error| pass_over(&snapshot, error))
        });
        match loading.await.map_err(|panic| RecoveryError::Log(panic.into()))? {
            Ok(newer) => return Ok(newer),
            Err(LoadError::Engine(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
    Ok(recovered)
}

/// Makes the log continue the state at `position`, which is committed. Where the log ends before it (a power cut took
/// entries that were applied but not flushed) it begins anew behind it. Where it holds another entry there, that one and
/// all behind it were never committed: their removal was what the power cut took.
async fn continue_from(position: LogPosition, extent: &LogExtent, log: &mut LogStore) -> Result<(), RecoveryError> {
    let applied = LogId::from(position);
    let last = extent.last.map(|last| last.index);
    if extent.purged.is_some_and(|purged| purged.index >= applied.index) {
        return Ok(());
    }
    let logged = match last {
        Some(last) if last >= applied.index => {
            let entries = log.try_get_log_entries(applied.index..=applied.index).await.map_err(RecoveryError::Log)?;
            entries.first().map(|entry| entry.log_id)
        }
        _ => None,
    };
    if logged == Some(applied) {
        return Ok(());
    }
    tracing::warn!(state = %applied, log = show(extent.last), "the log does not continue the state; it begins behind it now");
    // A log gives nothing up that it knows to be committed; that lies before the state, and goes with what is purged.
    let committed = log.read_committed().await.map_err(RecoveryError::Log)?;
    log.truncate_after(extent.purged.max(committed)).await.map_err(RecoveryError::Log)?;
    log.reset_to(position).await.map_err(|error| RecoveryError::Log(std::io::Error::other(error)))
}

/// Has a snapshot that could not be loaded passed over from now on, if the file itself is bad, rather than unreadable at
/// the moment or from a newer program.
fn pass_over(snapshot: &SnapshotHandle, error: &LoadError<SnapshotError>) {
    tracing::error!(file = %snapshot.path().display(), %error, "can't load a snapshot");
    use SnapshotError::{Cut, Damaged, NotASnapshot};
    if matches!(error, LoadError::Records(Damaged { .. } | Cut { .. } | NotASnapshot { .. })) {
        snapshot.mark_damaged(error);
    }
}

fn open_newest(home: &EngineHome, config: StateConfig) -> Result<Recovered, storage::Error> {
    let generation = home.open_newest()?;
    // A load that was interrupted, or the beginning of a first checkpoint. In which format it is, only the marker would tell.
    if Applied::of(&*generation)?.is_none() && !generation.is_empty()? {
        return Err(storage::Error::Damaged(
            "the store has records, but nothing says up to where they are whole".into(),
        ));
    }
    Ok(Recovered { machine: StateMachine::open(generation.clone(), config)?, generation })
}

/// Why the state at this marker can't be continued with this log; `None` if it can.
async fn distrust(applied: &Applied, extent: &LogExtent, log: &mut LogStore) -> Result<Option<String>, RecoveryError> {
    let marker: Option<LogId> = applied.position.map(Into::into);
    if marker < extent.purged {
        return Ok(Some(format!("it ends at {}, but the log begins behind {}", show(marker), show(extent.purged))));
    }
    let Some(marker) = marker else { return Ok(None) };
    if Some(marker) == extent.purged {
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
    candidates: Vec<SnapshotHandle>,
    extent: &LogExtent,
    config: &StateConfig,
) -> Result<Recovered, RecoveryError> {
    for snapshot in candidates {
        if snapshot.raft_meta().last_log_id < extent.purged {
            break;
        }
        match load_snapshot(home, &snapshot, config) {
            Ok(recovered) => return Ok(recovered),
            Err(LoadError::Engine(error)) => return Err(error.into()),
            Err(error) => pass_over(&snapshot, &error),
        }
    }
    if let Some(purged) = extent.purged {
        return Err(RecoveryError::Unrecoverable { purged: purged.index });
    }
    let generation = home.open_fresh()?;
    Ok(Recovered { machine: StateMachine::open(generation.clone(), config.clone())?, generation })
}

/// Loads a snapshot into the next generation.
pub(super) fn load_snapshot(
    home: &EngineHome,
    snapshot: &SnapshotHandle,
    config: &StateConfig,
) -> Result<Recovered, LoadError<SnapshotError>> {
    let mut reader = SnapshotReader::open(snapshot.path()).map_err(LoadError::Records)?;
    load_from(home, &mut reader, config)
}

/// As [`load_snapshot`], from a file that is open.
pub(super) fn load_from(
    home: &EngineHome,
    reader: &mut SnapshotReader,
    config: &StateConfig,
) -> Result<Recovered, LoadError<SnapshotError>> {
    let applied = reader.meta().applied();
    let generation = home.open_fresh().map_err(LoadError::Engine)?;
    state::load(&*generation, &applied, reader)?;
    let machine = StateMachine::open(generation.clone(), config.clone()).map_err(LoadError::Engine)?;
    Ok(Recovered { machine, generation })
}

#[cfg(test)]
mod tests;
