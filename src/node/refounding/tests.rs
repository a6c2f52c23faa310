//! A member's directory that becomes that of a new cluster, with a crash behind every step.

use std::fs;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::node::{Node, NodeConfig, StartError};
use crate::raft::RaftConfig;
use crate::raft::fixture::{Left, OLD, leave, lose_end, member, snapshot};
use crate::telemetry::Metrics;
use crate::transport::memory::Network;

/// How long anything may take before a test fails.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// The directory of member `id`, as it stopped.
async fn stopped(id: u64, left: Left) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let name = format!("n{id}");
    directory.write_identity(&Identity { cluster: OLD, id: NodeId::new(id), name, has_log: true }).unwrap();
    leave(dir.path(), left).await;
    fs::create_dir(dir.path().join("state")).unwrap();
    dir
}

async fn survivor(dir: &Path) -> Box<Survivor> {
    match Survivor::open(dir, LogConfig::default()).await.unwrap() {
        Opened::Survivor(survivor) => survivor,
        Opened::Unfinished(_) => panic!("nothing was begun"),
    }
}

async fn unfinished(dir: &Path) -> Unfinished {
    match Survivor::open(dir, LogConfig::default()).await.unwrap() {
        Opened::Survivor(_) => panic!("an exchange was begun"),
        Opened::Unfinished(unfinished) => unfinished,
    }
}

fn founding() -> Founding {
    Founding { skipped_revisions: 1_000, ..Founding::default() }
}

fn config(dir: &Path, name: &str) -> NodeConfig {
    NodeConfig {
        data_dir: dir.to_owned(),
        member: Member { name: name.into(), ..Member::default() },
        origin: crate::node::Origin::Directory,
        policy: crate::node::MemberPolicy::default(),
        raft: RaftConfig::small(dir),
        archive: crate::node::ArchiveConfig::default(),
    }
}

fn open_node(dir: &Path, name: &str) -> Result<Node, StartError> {
    Node::open(&config(dir, name), Arc::new(Network::new().endpoint(name)))
}

/// Starts the node, which must serve by itself with this much.
async fn serves(dir: &Path, name: &str, cluster: ClusterId, revision: u64) {
    let node = open_node(dir, name).unwrap();
    node.start(&config(dir, name), &Metrics::new()).await.unwrap();
    node.ready(Node::deadline_in(PATIENCE)).await.unwrap();
    let status = node.status();
    assert_eq!((status.cluster_id, status.revision.get()), (cluster, revision));
    assert_eq!(node.cluster().await.unwrap().members.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_survivor_becomes_a_cluster_of_its_own_and_keeps_its_name() {
    let dir = stopped(3, Left::default()).await;
    let survivor = survivor(dir.path()).await;
    assert_eq!(survivor.cut_off().map(|(id, ..)| id.get()).collect::<Vec<_>>(), [1, 2]);
    let founded = survivor.refound(&founding()).await.unwrap();
    assert!(Directory::open(dir.path()).is_err(), "it was locked all the time");
    drop(survivor);
    assert_eq!((founded.founder.id, &founded.founder.member), (NodeId::new(3), &member(3)));
    assert!(founded.founder.cluster != OLD);
    assert_eq!(founded.aside.as_deref(), Some(dir.path().join("before-recovery-1").as_path()));

    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["LOCK", "before-recovery-1", "identity", "log", "snapshots", "state"]);
    serves(dir.path(), "n3", founded.founder.cluster, 1_020).await;
    // What was there is whole: it could be started, were its cluster still there.
    let aside = Directory::open(&dir.path().join("before-recovery-1")).unwrap();
    assert_eq!(aside.identity("n3").unwrap().unwrap().cluster, OLD);
}

/// One that was to leave, or to take the place of another, would be refused every change of the new cluster's members.
#[tokio::test]
async fn what_was_wished_for_a_survivor_in_the_old_cluster_is_over() {
    for wish in [Wish::Leave, Wish::Vote { replaces: Some(NodeId::new(1)) }] {
        let dir = stopped(3, Left::default()).await;
        let mut survivor = survivor(dir.path()).await;
        survivor.survey.members.iter_mut().for_each(|(_, member, _)| member.wish = wish);
        let founded = survivor.refound(&founding()).await.unwrap();
        assert_eq!(founded.founder.member, member(3));
    }
}

#[tokio::test]
async fn addresses_are_taken_over_unless_others_are_given() {
    let dir = stopped(2, Left::default()).await;
    let other = Founding { peer_addr: Some("elsewhere:9".into()), ..founding() };
    let founded = survivor(dir.path()).await.refound(&other).await.unwrap();
    assert_eq!(founded.founder.member, Member { peer_addr: "elsewhere:9".into(), ..member(2) });
}

#[tokio::test]
async fn a_crash_behind_any_step_leaves_the_old_member_or_can_be_gone_on_from() {
    let mut stop = 0;
    loop {
        let dir = stopped(3, Left::default()).await;
        let survivor = survivor(dir.path()).await;
        let (founder, _, exchange) = survivor.prepare(&founding()).await.unwrap();
        let mut is_over = false;
        for _ in 0..stop {
            is_over = !exchange.advance().unwrap();
        }
        // The crash.
        drop((survivor, exchange));
        if is_over {
            break;
        }
        if super::exchange::unfinished(dir.path()).unwrap().is_some() {
            let refused = open_node(dir.path(), "n3").map(drop).unwrap_err().to_string();
            assert!(refused.contains("recover --data-dir"), "after step {stop}: {refused}");
            let founded = unfinished(dir.path()).await.finish().unwrap();
            assert_eq!((founded.founder.cluster, founded.founder.id), (founder.cluster, founder.id), "step {stop}");
            assert!(founded.aside.is_some(), "step {stop}");
        }
        serves(dir.path(), "n3", founder.cluster, 1_020).await;
        stop += 1;
    }
    assert!(stop > 8, "only {stop} steps");
}

#[tokio::test]
async fn a_crash_while_the_new_is_made_leaves_the_old_member_as_it_was() {
    let dir = stopped(3, Left::default()).await;
    let survivor_of = survivor(dir.path()).await;
    drop(survivor_of.prepare(&founding()).await.unwrap());
    drop(survivor_of);
    // Not complete: as it is before its last step, and with parts missing.
    let (complete, made) = (dir.path().join("recovery-1"), dir.path().join("recovery-1.tmp"));
    fs::rename(&complete, &made).unwrap();
    fs::remove_file(made.join("identity")).unwrap();
    let node = open_node(dir.path(), "n3").unwrap();
    assert_eq!(node.status().cluster_id, OLD);
    drop(node);
    let founded = survivor(dir.path()).await.refound(&founding()).await.unwrap();
    assert!(!made.exists());
    serves(dir.path(), "n3", founded.founder.cluster, 1_020).await;
}

#[tokio::test]
async fn what_is_no_survivor_is_refused_and_left_alone() {
    let empty = tempfile::tempdir().unwrap();
    let missing = empty.path().join("missing");
    for dir in [empty.path(), &missing] {
        let refused = Survivor::open(dir, LogConfig::default()).await.unwrap_err();
        assert!(matches!(refused, RefoundingError::NoMember(_)), "{refused}");
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);

    let alone = stopped(1, Left { voters: 1, ..Left::default() }).await;
    let refused = survivor(alone.path()).await.refound(&founding()).await.unwrap_err();
    assert!(matches!(refused, RefoundingError::HasQuorum(_)), "{refused}");

    // A member that was removed has data, but nothing says where it is reached.
    let removed = stopped(9, Left::default()).await;
    let refused = survivor(removed.path()).await.refound(&founding()).await.unwrap_err();
    assert!(matches!(refused, RefoundingError::NoAddress(_)), "{refused}");
    let known = Founding { peer_addr: Some("n9:1".into()), ..founding() };
    assert!(survivor(removed.path()).await.refound(&known).await.is_ok());

    let in_use = stopped(3, Left::default()).await;
    let _held = Directory::open(in_use.path()).unwrap();
    let refused = Survivor::open(in_use.path(), LogConfig::default()).await.unwrap_err();
    assert!(matches!(refused, RefoundingError::Directory(DirectoryError::InUse(_))), "{refused}");
}

/// Acknowledged writes may have stood there: somebody has to say that they are given up. Even who votes alone can't start.
#[tokio::test]
async fn a_lost_end_of_the_log_is_given_up_only_where_that_was_asked_for() {
    let accepting = Founding { accept_lost_end: true, ..founding() };
    for (id, voters) in [(3, 3), (1, 1)] {
        let dir = stopped(id, Left { voters, ..Left::default() }).await;
        let lost = lose_end(dir.path(), 20, 30);
        let refused = survivor(dir.path()).await.refound(&founding()).await.unwrap_err();
        assert!(refused.is_damage() && refused.to_string().contains("--accept-lost-end"), "{refused}");
        let RefoundingError::LostEnd { end, last } = refused else { panic!("{refused}") };
        assert_eq!((end.missing_bytes, last.index.get()), (lost, 19));
        assert!(!dir.path().join("recovery-1.tmp").exists() && !dir.path().join("before-recovery-1").exists());

        let founded = survivor(dir.path()).await.refound(&accepting).await.unwrap();
        serves(dir.path(), &format!("n{id}"), founded.founder.cluster, 1_019).await;
        // What was there is kept, and refused as before.
        let aside = survivor(&founded.aside.unwrap()).await;
        assert_eq!(aside.survey().lost_end.as_ref().map(|end| end.missing_bytes), Some(lost));
    }
    // Where nothing is missing there is nothing to give up.
    let whole = stopped(3, Left::default()).await;
    assert!(survivor(whole.path()).await.refound(&accepting).await.is_ok());
}

#[tokio::test]
async fn a_log_with_damage_in_the_middle_is_no_survivor_even_if_its_end_is_lost() {
    let dir = stopped(3, Left::default()).await;
    lose_end(dir.path(), 20, 0);
    let chunks = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let path = chunks.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(path, bytes).unwrap();
    // It does not come to the question what may be given up.
    let refused = Survivor::open(dir.path(), LogConfig::default()).await.unwrap_err();
    assert!(refused.is_damage() && refused.to_string().contains("valid records follow"), "{refused}");
}

#[tokio::test]
async fn a_snapshot_file_becomes_a_cluster_in_an_empty_directory_only() {
    let (files, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = snapshot(files.path(), OLD, 9, 3).path().to_owned();
    let dir = parent.path().join("new");
    let wanted = Founding { name: "n7".into(), peer_addr: Some("n7:1".into()), ..founding() };
    let open = async |dir: &Path| Survivor::open_file(&file, dir, LogConfig::default()).await;
    let Opened::Survivor(survivor) = open(&dir).await.unwrap() else { panic!("nothing was begun") };
    // The crash comes before anything has its place; the second attempt finds it complete.
    let (founder, ..) = survivor.prepare(&wanted).await.unwrap();
    drop(survivor);
    let Opened::Unfinished(unfinished) = open(&dir).await.unwrap() else { panic!("an exchange was begun") };
    let founded = unfinished.finish().unwrap();
    assert_eq!((founded.founder.cluster, founded.founder.id, founded.aside), (founder.cluster, FIRST_ID, None));
    serves(&dir, "n7", founder.cluster, 1_009).await;

    let refused = open(&dir).await.unwrap_err();
    assert!(matches!(refused, RefoundingError::NotEmpty(_)), "{refused}");
}
