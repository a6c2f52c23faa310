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
    pub(super) generation: Arc<Generation>,
}

/// Where the log begins and ends, and what it says about one entry.
struct LogExtent {
    purged: Option<LogId>,
    last: Option<LogId>,
}

/// Opens the state, or rebuilds it.
pub(super) async fn recover(
    home: EngineHome,
    snapshots: &SnapshotStore,
    log: &mut LogStore,
    config: StateConfig,
) -> Result<Recovered, RecoveryError> {
    let state = log.get_log_state().await.map_err(RecoveryError::Log)?;
    let extent = LogExtent { purged: state.last_purged_log_id, last: state.last_log_id };
    let newest = snapshots.newest();

    let opening = {
        let (home, config) = (home.clone(), config.clone());
        tokio::task::spawn_blocking(move || open_newest(&home, config)).await
    };
    let distrust = match opening {
        Ok(Ok(recovered)) => match distrust(recovered.machine.applied(), &extent, newest.as_ref(), log).await? {
            None => {
                set_aside_damaged(snapshots, recovered.machine.applied()).await;
                return Ok(recovered);
            }
            Some(reason) => reason,
        },
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("opening it panicked: {panic}"),
    };
    tracing::warn!(reason = distrust, "the state engine can't be trusted; rebuilding it from snapshot and log");
    let candidates = snapshots.all();
    let rebuilding = tokio::task::spawn_blocking(move || rebuild(&home, candidates, &extent, &config));
    let (result, damaged) = rebuilding.await.map_err(|panic| RecoveryError::Log(panic.into()))?;
    damaged.iter().for_each(|snapshot| snapshots.set_aside(snapshot));
    result
}

/// openraft installs the newest snapshot at its start if that is ahead of the state, and does not start if it can't. What
/// is damaged must not stand in the way of a state that the log continues.
async fn set_aside_damaged(snapshots: &SnapshotStore, applied: &Applied) {
    while let Some(newest) = snapshots.newest().filter(|newest| newest.meta().position > applied.position) {
        let file = newest.clone();
        match tokio::task::spawn_blocking(move || file.sha256()).await {
            Ok(Err(error)) if is_damage(&error) => {
                tracing::error!(file = %newest.path().display(), %error, "setting a damaged snapshot aside");
                snapshots.set_aside(&newest);
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// Whether the file itself is bad, rather than unreadable at the moment or from a newer program.
fn is_damage(error: &SnapshotError) -> bool {
    matches!(error, SnapshotError::Damaged { .. } | SnapshotError::Cut { .. } | SnapshotError::NotASnapshot { .. })
}

fn open_newest(home: &EngineHome, config: StateConfig) -> Result<Recovered, storage::Error> {
    let generation = home.open_newest()?;
    Ok(Recovered { machine: StateMachine::open(generation.clone(), config)?, generation })
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

/// Fills a fresh generation from the newest whole snapshot that the log continues; also gives those found damaged.
fn rebuild(
    home: &EngineHome,
    candidates: Vec<SnapshotHandle>,
    extent: &LogExtent,
    config: &StateConfig,
) -> (Result<Recovered, RecoveryError>, Vec<SnapshotHandle>) {
    let mut damaged = Vec::new();
    (rebuild_from(home, candidates, extent, config, &mut damaged), damaged)
}

fn rebuild_from(
    home: &EngineHome,
    candidates: Vec<SnapshotHandle>,
    extent: &LogExtent,
    config: &StateConfig,
    damaged: &mut Vec<SnapshotHandle>,
) -> Result<Recovered, RecoveryError> {
    for snapshot in candidates {
        if snapshot.raft_meta().last_log_id < extent.purged {
            break;
        }
        match load_snapshot(home, &snapshot, config) {
            Ok(recovered) => return Ok(recovered),
            Err(LoadError::Engine(error)) => return Err(error.into()),
            Err(error) => {
                tracing::error!(file = %snapshot.path().display(), %error, "passing over a damaged snapshot");
                if matches!(&error, LoadError::Records(error) if is_damage(error)) {
                    damaged.push(snapshot);
                }
            }
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
    let reader = SnapshotReader::open(snapshot.path()).map_err(LoadError::Records)?;
    let meta = reader.meta();
    let applied = Applied {
        position: meta.position,
        revision: meta.revision,
        compacted: meta.compacted,
        membership: meta.membership.clone(),
        hash: meta.hash,
    };
    let generation = home.open_fresh().map_err(LoadError::Engine)?;
    state::load(&*generation, &applied, reader)?;
    let machine = StateMachine::open(generation.clone(), config.clone()).map_err(LoadError::Engine)?;
    Ok(Recovered { machine, generation })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::raft::LogConfig;
    use crate::state::{Command, Operation, Principal, Txn, TxnOp};
    use crate::storage::MemoryEngine;
    use crate::types::{ClusterId, Key, LeaseId, LogIndex, LogPosition, NodeId, Revision, Term, WallTime};

    const CLUSTER: ClusterId = ClusterId::new(7);

    /// Writes a snapshot of as many puts as `index` says.
    fn snapshot_at(snapshots: &SnapshotStore, index: u64) {
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), StateConfig::default()).unwrap();
        for index in 1..=index {
            let value = vec![b'v'; 500].into();
            let put = TxnOp::Put { key: Key::new("k").unwrap(), value, lease: LeaseId::ZERO };
            let operation = Operation::Txn(Txn { success: vec![put], ..Txn::default() });
            let (proposed_at, principal) = (WallTime::ZERO, Principal::Anonymous);
            let command = Command { proposed_at, principal, request: None, operation };
            let position = LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index) };
            machine.apply(position, &[command]).unwrap();
        }
        snapshots.write(&machine.pin()).unwrap();
    }

    async fn recover_in(dir: &Path) -> (Revision, Option<u64>) {
        let snapshots = SnapshotStore::open(&dir.join("snapshots"), CLUSTER).unwrap();
        let mut log = LogStore::open(&dir.join("log"), LogConfig::default()).unwrap();
        let home = EngineHome::new(&dir.join("state"), 1 << 20);
        let recovered = recover(home, &snapshots, &mut log, StateConfig::default()).await.unwrap();
        let newest = snapshots.newest().and_then(|newest| newest.meta().position).map(|at| at.index.get());
        (recovered.machine.applied().revision, newest)
    }

    fn flip(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() - 70;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[tokio::test]
    async fn a_damaged_newest_snapshot_is_not_left_for_openraft_to_install() {
        for engine_is_lost in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let snapshots = SnapshotStore::open(&dir.path().join("snapshots"), CLUSTER).unwrap();
            snapshot_at(&snapshots, 3);
            snapshot_at(&snapshots, 5);
            flip(snapshots.newest().unwrap().path());
            if engine_is_lost {
                std::fs::create_dir_all(dir.path().join("state")).unwrap();
                std::fs::write(dir.path().join("state/1"), "not a directory").unwrap();
            }
            let (revision, newest) = recover_in(dir.path()).await;
            // What is trusted as it is, is brought up to the newest whole snapshot by openraft.
            assert_eq!((revision.get(), newest), (if engine_is_lost { 3 } else { 0 }, Some(3)));
            assert!(dir.path().join("snapshots/1-5.snapshot.damaged").exists());
            assert_eq!(recover_in(dir.path()).await.1, Some(3));
            assert!(dir.path().join("snapshots/1-5.snapshot.damaged").exists(), "kept to be looked at");
        }
    }
}
