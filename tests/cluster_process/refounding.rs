//! A quorum that is lost for good: what one node still has becomes a cluster of its own, and all that is old stays out.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use quorate::api::model::NodeRole;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::load::{Load, Told};
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};
use crate::rebuilding::chunk;

/// Snapshots often, so that the survivor has one, with a part of the log behind it.
const SNAPSHOTS: [&str; 2] = ["--snapshot-log-bytes", "64KiB"];

/// `quorate recover` on the directory of a stopped node.
fn recovery(node: &Member, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["recover", "--output", "json", "--data-dir"]).arg(&node.dir).args(flags).stdin(Stdio::null());
    command
}

/// Runs it; what it said on standard output, and its exit code with standard error if it refused.
fn recover(node: &Member, flags: &[&str]) -> Result<Value, (Option<i32>, String)> {
    let output = recovery(node, flags).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    if output.status.code() != Some(0) {
        return Err((output.status.code(), errors));
    }
    assert_eq!(errors, "");
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// Waits until a node has said something.
async fn says(node: &Member, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !node.said().contains(what) {
        assert!(Instant::now() < deadline, "{} never said {what:?}:\n{}", node.name, node.said());
        sleep(POLL).await;
    }
}

/// Term, leader and index of a last entry, which compare in this order.
fn last_log(facts: &Value) -> Vec<u64> {
    facts["last_log"].as_str().unwrap().split('-').map(|number| number.parse().unwrap()).collect()
}

/// Writes to some nodes for a while.
async fn written(nodes: &[&Member], acknowledged: u64) -> Told {
    let mut load = Load::start(&nodes.iter().map(|node| node.url("")).collect::<Vec<_>>(), WRITERS);
    load.acknowledged(acknowledged).await;
    load.stop().await
}

/// Three nodes, of which the third was killed before the others took more writes, which only they have: all that all of
/// them had, and what two of them had. Then these were killed, too, and the first has lost its data.
async fn lost() -> (Cluster, Told, Told) {
    let mut cluster = Cluster::start(&Settings::flags(&SNAPSHOTS)).await;
    let all: Vec<&Member> = cluster.nodes.iter().collect();
    let mut kept = written(&all, 400).await;
    says(&cluster.nodes[2], "snapshot written and verified").await;
    kept.merge(written(&all, 100).await);
    cluster.converged().await;
    cluster.nodes[2].kill();
    let lost = written(&[&cluster.nodes[0], &cluster.nodes[1]], 100).await;
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    fs::remove_dir_all(&cluster.nodes[0].dir).unwrap();
    (cluster, kept, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_serves_all_that_it_had_and_the_old_data_stays_out() {
    let (mut cluster, kept, lost) = lost().await;

    // Looking tells who has more, and changes nothing.
    let (survivor, other) = (&cluster.nodes[2], &cluster.nodes[1]);
    let facts = recover(survivor, &[]).unwrap();
    assert!(last_log(&facts) < last_log(&recover(other, &[]).unwrap()), "{facts}");
    assert_eq!((&facts["name"], &facts["id"], &facts["role"]), (&"n3".into(), &3.into(), &"voter".into()));
    assert!(facts["snapshot_index"].is_u64() && facts["log_writes"].as_u64() > Some(0), "{facts}");
    let names: Vec<_> = facts["cut_off"].as_array().unwrap().iter().map(|member| &member["name"]).collect();
    assert_eq!(names, ["n1", "n2"]);
    let (code, refused) = recover(survivor, &["--as-new-cluster"]).unwrap_err();
    assert!(code == Some(2) && refused.contains("--yes"), "{refused}");
    assert_eq!(recover(survivor, &[]).unwrap(), facts);

    let founded = recover(survivor, &["--as-new-cluster", "--yes"]).unwrap();
    assert_ne!(founded["new_cluster_id"], facts["cluster_id"]);
    let (code, refused) = recover(survivor, &["--as-new-cluster", "--yes"]).unwrap_err();
    assert!(code == Some(1) && refused.contains("only voter"), "{refused}");

    cluster.nodes[2].start();
    cluster.nodes[2].ready().await;
    let node = &cluster.nodes[2];
    kept.check_on(node).await;
    let status = node.status().await.unwrap();
    assert_eq!((status.role, status.cluster_id), (NodeRole::Leader, founded["new_cluster_id"].as_u64().unwrap()));
    // No revision is given twice, not even those of writes that are lost.
    let more = written(&[node], 100).await;
    let (newest, oldest) = (lost.acknowledged.values().max().unwrap(), more.acknowledged.values().min().unwrap());
    assert!(newest < oldest, "revision {oldest} was given before");
    more.check_on(node).await;
    kept.check_on(node).await;

    old_data_stays_out(&mut cluster, status.term).await;
    more.check_on(&cluster.nodes[2]).await;
    kept.check_on(&cluster.nodes[2]).await;
}

/// One node of the old cluster comes back with its data, and one without: neither disturbs the new one, and both are told.
async fn old_data_stays_out(cluster: &mut Cluster, term: u64) {
    let load = Load::start(&[cluster.nodes[2].url("")], WRITERS);
    cluster.nodes[1].start();
    says(&cluster.nodes[1], "a member refuses the messages of this node").await;
    says(&cluster.nodes[2], "a node of another cluster takes this one for a member").await;
    let old = cluster.nodes[1].status().await.unwrap();
    let reason = old.not_ready_reason.unwrap();
    assert!(reason.contains("member 3 refuses this node: the message is of cluster"), "{reason}");
    let readyz = http().get(cluster.nodes[1].url("/readyz")).send().await.unwrap();
    assert_eq!(readyz.status(), 503);
    assert!(readyz.text().await.unwrap().contains("member 3 refuses this node"));

    let (code, refused) = cluster.nodes[0].refusal().await;
    assert!(code == Some(2) && refused.contains("its directory is empty"), "{refused}");

    let told = load.stop().await;
    assert!(told.refused.is_empty() && told.unknown.is_empty(), "{:?} {:?}", told.refused, told.unknown);
    let status = cluster.nodes[2].status().await.unwrap();
    assert_eq!((status.role, status.term), (NodeRole::Leader, term), "it was disturbed");
    cluster.nodes[1].kill();
}

/// Whatever the moment, the node is the old one or the command goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_is_killed_again_and_again_ends_in_one_new_cluster() {
    let (mut cluster, kept, _) = lost().await;
    let survivor = &cluster.nodes[2];
    for _ in 0..12 {
        let mut child = recovery(survivor, &["--as-new-cluster", "--yes"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Not a wait for something: the moment of the kill itself is what is drawn.
        sleep(Duration::from_millis(rand::random_range(10..300))).await;
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
    }
    match recover(survivor, &["--as-new-cluster", "--yes"]) {
        Ok(founded) => assert!(founded["new_cluster_id"].is_u64(), "{founded}"),
        // One of the others had come to its end.
        Err((code, refused)) => assert!(code == Some(1) && refused.contains("only voter"), "{refused}"),
    }
    let names: Vec<_> = fs::read_dir(&survivor.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() == 6 && names.contains(&"before-recovery-1".into()), "{names:?}");
    cluster.nodes[2].start();
    cluster.nodes[2].ready().await;
    kept.check_on(&cluster.nodes[2]).await;
}

/// Drives that lied about what they had written: all logs end before what was acknowledged, each somewhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_lost_the_end_of_their_logs_go_on_from_the_one_that_has_most() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let told = written(&cluster.nodes.iter().collect::<Vec<_>>(), 400).await;
    cluster.converged().await;
    cluster.nodes.iter_mut().for_each(Member::kill);
    for (node, bytes) in cluster.nodes.iter().zip([40_000, 10_000, 70_000]) {
        let file = File::options().write(true).open(chunk(&node.dir)).unwrap();
        file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
    }
    for node in &mut cluster.nodes {
        let (code, said) = node.refusal().await;
        assert_eq!((code, said.lines().count()), (Some(4), 1), "{said}");
        assert!(said.contains("bytes that were on the disk behind it are gone") && said.contains("recover'"), "{said}");
    }

    let facts: Vec<Value> = cluster.nodes.iter().map(|node| recover(node, &[]).unwrap()).collect();
    assert!(facts.iter().all(|facts| facts["lost_end_bytes"].as_u64() > Some(0)), "{facts:?}");
    let most = (0..3).max_by_key(|at| last_log(&facts[*at])).unwrap();
    let survivor = &cluster.nodes[most];
    let (code, refused) = recover(survivor, &["--as-new-cluster", "--yes"]).unwrap_err();
    assert!(code == Some(4) && refused.contains("go on with --accept-lost-end"), "{refused}");
    assert_eq!(last_log(&recover(survivor, &[]).unwrap()), last_log(&facts[most]));
    let founded = recover(survivor, &["--as-new-cluster", "--accept-lost-end", "--yes"]).unwrap();
    let revision = founded["revision_before"].as_u64().unwrap();
    assert!(Some(revision) <= facts[most]["revision_max"].as_u64(), "{founded}");

    // All that it had up to there is there, once the others have joined with nothing and after another start.
    let acknowledged = told.acknowledged.into_iter().filter(|(_, at)| *at <= revision).collect();
    let mut kept = Told { acknowledged, ..Told::default() };
    assert!(kept.acknowledged.len() > 100, "only {} writes are left", kept.acknowledged.len());
    cluster.nodes[most].start();
    cluster.nodes[most].ready().await;
    kept.check_on(&cluster.nodes[most]).await;
    for other in (0..3).filter(|other| *other != most) {
        let mut again = cluster.nodes[other].beside(&format!("again-{other}"));
        again.initial_cluster = None;
        again.settings.flags.extend(["--join".to_owned(), cluster.nodes[most].advertised.clone()]);
        again.start();
        again.ready().await;
        cluster.nodes[other] = again;
    }
    kept.merge(written(&cluster.nodes.iter().collect::<Vec<_>>(), 100).await);
    cluster.nodes[most].terminate().await;
    cluster.nodes[most].start();
    cluster.ready().await;
    cluster.converged().await;
    kept.check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_snapshot_becomes_a_cluster_in_a_new_directory() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let all: Vec<&Member> = cluster.nodes.iter().collect();
    let kept = written(&all, 100).await;
    cluster.converged().await;
    let saved = http().get(cluster.nodes[0].url("/v1/snapshot")).timeout(PATIENCE).send().await.unwrap();
    let file = cluster.dir.path().join("saved.snapshot");
    fs::write(&file, saved.bytes().await.unwrap()).unwrap();
    cluster.nodes.iter_mut().for_each(Member::kill);

    let mut restored = cluster.nodes[0].beside("restored");
    restored.initial_cluster = None;
    let peer_addr = restored.peer_addr.clone();
    let from = ["--from", file.to_str().unwrap(), "--name", "n1", "--peer-addr", &peer_addr];
    let (code, refused) = recover(&cluster.nodes[1], &from).unwrap_err();
    assert!(code == Some(2) && refused.contains("is not empty"), "{refused}");
    let founded = recover(&restored, &[&from[..], &["--as-new-cluster", "--yes"]].concat()).unwrap();
    assert_eq!((&founded["new_id"], &founded["old_data"]), (&1.into(), &Value::Null));
    restored.start();
    restored.ready().await;
    kept.check_on(&restored).await;
    written(&[&restored], 50).await.check_on(&restored).await;
}
