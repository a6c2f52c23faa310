//! What a stopped member has left, and the cluster that is founded from it: counted, opened, read and written.

pub(crate) mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use self::fixture::{Left, OLD, TERM, VOTED, leave, log_id, lose_end, member, put, snapshot};
use super::*;
use crate::clock;
use crate::raft::{Fatal, LogConfig, OpenError, RaftConfig, RaftIdentity, RaftNode};
use crate::telemetry::Metrics;
use crate::transport::memory::Network;
use crate::types::Key;

const NEW: ClusterId = ClusterId::new(8);

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

fn founder() -> Founder {
    Founder { cluster: NEW, id: NodeId::new(3), member: member(3) }
}

async fn left(left: Left) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    leave(dir.path(), left).await;
    dir
}

async fn look(dir: &Path) -> Result<Survey, RefoundError> {
    survey(DataSource::Member { dir: dir.to_owned(), cluster: OLD }, LogConfig::default()).await
}

/// Founds the new cluster in a folder of its own.
async fn found(survey: &Survey, skipped: u64) -> (TempDir, Refounded) {
    let into = tempfile::tempdir().unwrap();
    let made = refound(survey, &founder(), skipped, into.path(), LogConfig::default()).await.unwrap();
    (into, made)
}

async fn open(dir: &Path, cluster: ClusterId) -> Result<RaftNode, OpenError> {
    let transport = Arc::new(Network::new().endpoint("n3"));
    let identity = RaftIdentity { cluster, me: NodeId::new(3), zone: String::new(), transport };
    RaftNode::open(&RaftConfig::small(dir), identity, &Metrics::new(), Fatal::default()).await
}

/// The node serves by itself, has every key up to `last`, and takes writes.
async fn serves(dir: &Path, made: &Refounded, last: u64) {
    let node = open(dir, NEW).await.unwrap();
    let deadline = clock::now() + PATIENCE;
    node.read_barrier(deadline).await.unwrap();
    let view = node.reader().view();
    assert_eq!(view.revision(), made.revision);
    for index in 0..=last + 1 {
        let found = view.get(&Key::new(format!("key-{index}")).unwrap()).unwrap();
        assert_eq!(found.is_some(), (1..=last).contains(&index), "key-{index}");
        assert!(found.is_none_or(|record| record.meta.mod_revision.get() == index));
    }
    let outcome = node.propose(put(last + 1, WallTime::ZERO), deadline).await.unwrap();
    assert!(outcome.is_ok());
    assert_eq!(node.reader().applied().revision, made.revision.next());
    let status = node.status();
    assert_eq!(status.members(), [(NodeId::new(3), member(3), true)]);
    // The first entry of its own stands right behind the one that founded it, in a later term.
    assert_eq!(status.last_log_index(), Some(made.position.index.get() + 2));
    assert!(status.term() > made.position.term);
    node.stop().await;
    // It began with the state that was built: another one would have another number.
    assert_eq!(
        fs::read_dir(dir.join("state")).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(),
        ["1"]
    );
}

fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 0x40;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_survey_tells_in_numbers_what_there_is() {
    let dir = left(Left::default()).await;
    let found = look(dir.path()).await.unwrap();
    assert_eq!(found.cluster, OLD);
    let snapshot = found.snapshot.as_ref().unwrap();
    assert_eq!((snapshot.position, snapshot.revision.get()), (log_id(10).into(), 10));
    assert_eq!((found.committed, found.last), (Some(log_id(17).into()), log_id(20).into()));
    assert_eq!(found.term, VOTED);
    assert_eq!(found.logged, Counted { entries: 10, commands: 10 });
    assert_eq!(found.doubtful, Counted { entries: 3, commands: 3 });
    assert_eq!(found.last_command_at, Some(WallTime::new(20_000)));
    assert_eq!(found.members, (1..=3).map(|id| (NodeId::new(id), member(id), true)).collect::<Vec<_>>());
}

#[tokio::test]
async fn looking_and_founding_leave_the_source_as_it_is() {
    let dir = left(Left::default()).await;
    let before = files(dir.path());
    let found_there = look(dir.path()).await.unwrap();
    found(&found_there, 1_000).await;
    let after = files(dir.path());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a file was changed");
}

#[tokio::test]
async fn all_that_a_member_has_is_in_the_new_cluster_and_writes_go_on() {
    for (name, left_behind) in [
        ("snapshot and log", Left::default()),
        ("log alone", Left { snapshots: &[], purged: None, ..Left::default() }),
        ("snapshot at the end of the log", Left { snapshots: &[20], purged: Some(20), ..Left::default() }),
        ("snapshot at the purge mark", Left { snapshots: &[10], purged: Some(10), ..Left::default() }),
        ("nothing marked as committed", Left { snapshots: &[], purged: None, committed: 0, ..Left::default() }),
    ] {
        let dir = left(left_behind).await;
        let survey = look(dir.path()).await.unwrap();
        let (into, made) = found(&survey, 1_000).await;
        assert_eq!(made.position.term, VOTED.next(), "{name}");
        assert_eq!((made.position.leader, made.position.index.get()), (NodeId::new(3), 21), "{name}");
        assert_eq!((made.revision_before.get(), made.revision.get(), made.keys), (20, 1_020, 20), "{name}");
        serves(into.path(), &made, 20).await;
    }
}

#[tokio::test]
async fn history_is_given_up_where_revisions_are_left_out_and_only_there() {
    let dir = left(Left::default()).await;
    let survey = look(dir.path()).await.unwrap();
    for (skipped, readable) in [(0, true), (7, false)] {
        let (into, made) = found(&survey, skipped).await;
        let node = open(into.path(), NEW).await.unwrap();
        let reader = node.reader();
        assert_eq!(reader.view_at(Revision::new(12)).is_ok(), readable);
        assert!(reader.view_at(made.revision).is_ok());
        node.stop().await;
    }
    let most = crate::types::limits::JSON_INTEGER_MAX;
    let into = tempfile::tempdir().unwrap();
    let refused = refound(&survey, &founder(), most, into.path(), LogConfig::default()).await.unwrap_err();
    assert!(matches!(refused, RefoundError::Revision { skipped, .. } if skipped == most), "{refused}");
}

#[tokio::test]
async fn a_snapshot_file_alone_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let file = snapshot(dir.path(), OLD, 9, 3).path().to_owned();
    let found_there = survey(DataSource::File(file.clone()), LogConfig::default()).await.unwrap();
    assert_eq!((found_there.cluster, found_there.last, found_there.term), (OLD, log_id(9).into(), TERM));
    assert_eq!((found_there.logged, found_there.last_command_at), (Counted::default(), None));
    let (into, made) = found(&found_there, 1_000).await;
    assert_eq!((made.position.term, made.position.index.get()), (TERM.next(), 10));
    serves(into.path(), &made, 9).await;

    // Another file in its place is noticed, and so is damage, before anything is made.
    snapshot(dir.path(), OLD, 11, 3);
    fs::rename(dir.path().join("2-11.snapshot"), &file).unwrap();
    let into = tempfile::tempdir().unwrap();
    let changed = refound(&found_there, &founder(), 0, into.path(), LogConfig::default()).await.unwrap_err();
    assert!(matches!(changed, RefoundError::Changed), "{changed}");
    damage(&file);
    let refused = survey(DataSource::File(file), LogConfig::default()).await.unwrap_err();
    assert!(refused.is_damage(), "{refused}");
    assert_eq!(files(into.path()).len(), 0);
}

#[tokio::test]
async fn a_damaged_snapshot_is_passed_over_while_the_log_reaches_back() {
    let dir = left(Left::default()).await;
    damage(&dir.path().join("snapshots/2-10.snapshot"));
    let survey = look(dir.path()).await.unwrap();
    assert_eq!(survey.snapshot.as_ref().unwrap().position, log_id(8).into());
    assert_eq!(survey.logged.entries, 12);
    let (into, made) = found(&survey, 0).await;
    serves(into.path(), &made, 20).await;

    damage(&dir.path().join("snapshots/2-8.snapshot"));
    let refused = look(dir.path()).await.unwrap_err();
    assert!(matches!(refused, RefoundError::Unrecoverable { purged: 5 }) && refused.is_damage(), "{refused}");
}

/// Who looks may lack the right to, or have an older program: that is no reason to give a survivor up.
#[tokio::test]
async fn a_snapshot_that_can_not_be_read_here_is_not_called_damaged() {
    let dir = left(Left { snapshots: &[8], ..Left::default() }).await;
    let file = dir.path().join("snapshots/2-8.snapshot");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let refused = look(dir.path()).await.unwrap_err();
    assert!(matches!(refused, RefoundError::Io { .. }) && !refused.is_damage(), "{refused}");
    // Where the log reaches back to its first entry, no snapshot is needed.
    let dir = left(Left { snapshots: &[], purged: None, ..Left::default() }).await;
    fs::create_dir_all(dir.path().join("snapshots/2-8.snapshot")).unwrap();
    assert_eq!(look(dir.path()).await.unwrap().last.index.get(), 20);
}

#[tokio::test]
async fn a_snapshot_ahead_of_the_log_is_what_counts() {
    // As a power cut leaves it that took the end of the log.
    let dir = left(Left { last: 12, committed: 12, ..Left::default() }).await;
    snapshot(&dir.path().join("snapshots"), OLD, 15, 3);
    let survey = look(dir.path()).await.unwrap();
    assert_eq!((survey.last, survey.logged), (log_id(15).into(), Counted::default()));
    let (into, made) = found(&survey, 0).await;
    assert_eq!(made.position.index.get(), 16);
    serves(into.path(), &made, 15).await;
}

#[tokio::test]
async fn a_damaged_log_and_a_snapshot_of_another_cluster_are_refused() {
    let dir = left(Left { purged: None, snapshots: &[], ..Left::default() }).await;
    let log = files(&dir.path().join("log")).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut bytes = log.1;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&log.0, bytes).unwrap();
    let refused = look(dir.path()).await.unwrap_err();
    assert!(refused.is_damage(), "{refused}");

    let dir = left(Left { snapshots: &[], ..Left::default() }).await;
    snapshot(&dir.path().join("snapshots"), NEW, 10, 3);
    let refused = look(dir.path()).await.unwrap_err();
    assert!(matches!(refused, RefoundError::Unrecoverable { .. }), "{refused}");
}

/// The member itself is refused with it for ever: only what is left of the log is read.
#[tokio::test]
async fn a_log_that_lost_its_end_is_taken_up_to_there_and_tells_what_is_missing() {
    for behind in [0, 30] {
        let dir = left(Left::default()).await;
        assert_eq!(look(dir.path()).await.unwrap().lost_end, None);
        let lost = lose_end(dir.path(), 20, behind);
        let survey = look(dir.path()).await.unwrap();
        assert_eq!(survey.lost_end.as_ref().map(|end| end.missing_bytes), Some(lost));
        assert_eq!((survey.last, survey.revision_max().get()), (log_id(19).into(), 19));
        assert_eq!(look(dir.path()).await.unwrap(), survey, "cut {behind} bytes behind the record");
        let (into, made) = found(&survey, 1_000).await;
        // The last vote stood behind the entry that is gone.
        assert_eq!((made.position.term, made.position.index.get()), (TERM.next(), 20));
        assert_eq!((made.revision_before.get(), made.keys), (19, 19));
        serves(into.path(), &made, 19).await;
        let refused = open(dir.path(), OLD).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("are gone") && refused.contains("'quorate recover'"), "{refused}");
    }
}

#[tokio::test]
async fn the_old_cluster_can_not_be_opened_with_the_new_data_or_the_other_way_round() {
    let dir = left(Left::default()).await;
    let survey = look(dir.path()).await.unwrap();
    let (into, _) = found(&survey, 0).await;
    for (data, cluster) in [(into.path(), OLD), (dir.path(), NEW)] {
        let refused = open(data, cluster).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("the snapshot is of cluster"), "{refused}");
    }
}
