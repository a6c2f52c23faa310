//! Places for backups that are declared to a running cluster, and drills that its nodes make of them.
//!
//! Guarantees held here: what is declared through one node is archived to by all, from the moment on and after each start; a
//! cluster that was restored leaves the store of the old one alone until it is told otherwise; a node drills what it can read,
//! and leaves nothing behind. Leaves out: what archives hold (`archive`).

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use quorate::api::model::{AlarmInfo, AlarmsReply, BackupInfo, BackupOrigin, BackupsReply, Problem};
use quorate::backup::layout::cluster_name;
use quorate::types::ClusterId;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::load::Load;
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};

/// A drill is due each minute, and found within another.
const DRILLED_WITHIN: Duration = Duration::from_secs(200);

/// Sends JSON to a node; the status and what came back.
async fn send(node: &Member, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let request = http().request(method.parse().unwrap(), node.url(path)).timeout(PATIENCE);
    let request = if body.is_null() { request } else { request.json(body) };
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// What is refused, with its text.
async fn refused(node: &Member, method: &str, path: &str, body: &Value, status: u16) -> String {
    let (found, answer) = send(node, method, path, body).await;
    assert_eq!(found, status, "{method} {path} {body}: {answer}");
    let problem: Problem = serde_json::from_value(answer).unwrap();
    problem.detail
}

async fn backups(node: &Member) -> Vec<BackupInfo> {
    let asked = http().get(node.url("/v1/backups")).timeout(PATIENCE).send().await.unwrap();
    asked.json::<BackupsReply>().await.unwrap().backups
}

/// How the one place stands, as a node tells it, once it is so.
async fn until(
    node: &Member,
    what: &str,
    patience: Duration,
    mut holds: impl FnMut(&BackupInfo) -> bool,
) -> BackupInfo {
    let deadline = Instant::now() + patience;
    loop {
        let found = backups(node).await;
        if let Some(found) = found.iter().find(|one| holds(one)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}: {found:?}");
        sleep(POLL).await;
    }
}

async fn alarm(node: &Member, name: &str) -> Option<AlarmInfo> {
    let asked = http().get(node.url("/v1/alarms")).timeout(PATIENCE).send().await.unwrap();
    let reply: AlarmsReply = asked.json().await.unwrap();
    reply.alarms.into_iter().find(|alarm| alarm.name == name)
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.dir.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// Entries in a folder by name.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes for a while, and waits until all of it is archived, as each node tells.
async fn written_and_archived(cluster: &Cluster) {
    let mut load = Load::start(&cluster.endpoints(), 3);
    load.acknowledged(100).await;
    load.stop().await;
    let status = cluster.converged().await;
    for node in &cluster.nodes {
        until(node, "all is archived", PATIENCE, |info| info.archived_index >= status.applied_index).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_declared_through_one_node_is_archived_to_by_all_and_after_each_start() {
    let mut cluster = Cluster::start(&Settings::flags(&["--snapshot-log-bytes", "64KiB"])).await;
    let (store, follower) = (folder(&cluster, "store"), cluster.follower().await);
    let block = json!({"name": "main", "url": url(&store), "flush_interval": "100ms"});
    let (status, tried) = send(&cluster.nodes[follower], "POST", "/v1/backups?dry_run=true", &block).await;
    assert_eq!((status, &tried["dry_run"], &tried["store"]["made"]), (200, &true.into(), &true.into()), "{tried}");
    assert!(tried["warnings"].to_string().contains("NOT encrypted"), "{tried}");
    assert_eq!(backups(&cluster.nodes[follower]).await, [], "it was only tried");

    let (status, added) = send(&cluster.nodes[follower], "POST", "/v1/backups", &block).await;
    assert_eq!((status, &added["declared"]), (201, &block), "{added}");
    let here = backups(&cluster.nodes[follower]).await;
    assert_eq!((here.len(), here[0].origin), (1, BackupOrigin::Api), "who asks the same node next sees it");
    let (status, _) = send(&cluster.nodes[0], "POST", "/v1/backups", &block).await;
    assert_eq!(status, 201, "the same again is no error");
    written_and_archived(&cluster).await;
    let safe = http().put(cluster.nodes[1].url("/v1/kv/safe?durability=offsite")).body("value").send().await.unwrap();
    assert_eq!(safe.status(), 201, "it counts like any other");
    let cluster_folder = cluster_name(ClusterId::new(cluster.nodes[0].status().await.unwrap().cluster_id));
    assert_eq!(names(&store), [cluster_folder.clone(), "quorate-repository.json".to_owned()]);

    cluster.nodes.iter_mut().for_each(Member::kill);
    cluster.start_all().await;
    written_and_archived(&cluster).await;

    let (status, changed) = send(&cluster.nodes[1], "PATCH", "/v1/backups/main", &json!({"full": "0 4 * * *"})).await;
    assert_eq!((status, &changed["declared"]["full"]), (200, &"0 4 * * *".into()), "{changed}");
    for node in &cluster.nodes {
        let seen = |info: &BackupInfo| info.declared.as_ref().is_some_and(|block| block["full"] == "0 4 * * *");
        until(node, "the change is seen", PATIENCE, seen).await;
    }
    written_and_archived(&cluster).await;

    let (status, _) = send(&cluster.nodes[2], "DELETE", "/v1/backups/main", &Value::Null).await;
    assert_eq!(status, 200);
    for node in &cluster.nodes {
        let deadline = Instant::now() + PATIENCE;
        while !backups(node).await.is_empty() {
            assert!(Instant::now() < deadline, "it is not forgotten");
            sleep(POLL).await;
        }
    }
    refused(&cluster.nodes[0], "DELETE", "/v1/backups/main", &Value::Null, 404).await;
    assert!(!names(&store.join(&cluster_folder).join("chain")).is_empty(), "what is archived stays");
    let mut load = Load::start(&cluster.endpoints(), 2);
    load.acknowledged(50).await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_places_that_are_declared_at_the_same_time_for_one_store_every_node_archives_to_the_same_one() {
    let cluster = Cluster::start(&Settings::default()).await;
    let store = folder(&cluster, "store");
    let block = |name: &str| json!({"name": name, "url": url(&store), "flush_interval": "100ms"});
    let (first, second) = (block("a"), block("b"));
    let ((one, _), (other, late)) = tokio::join!(
        send(&cluster.nodes[0], "POST", "/v1/backups", &first),
        send(&cluster.nodes[1], "POST", "/v1/backups", &second)
    );
    // Whichever came first, the other was refused, or is told to be for nothing.
    assert!(one == 201 || other == 201, "{one} {other} {late}");
    let counts = if one == 201 { "a" } else { "b" };
    for node in &cluster.nodes {
        until(node, "it is archived to", PATIENCE, |info| info.name == counts && info.archived_index.is_some()).await;
        let idle =
            |info: &BackupInfo| info.name == "b" && info.idle.as_ref().is_some_and(|why| why.contains("place a"));
        if (one, other) == (201, 201) {
            until(node, "the other is idle", PATIENCE, idle).await;
        }
    }
}

/// A node whose disk is lost gets the declaration with the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_later_hears_of_declared_places_from_the_snapshot() {
    let mut cluster = Cluster::start(&Settings::flags(&["--snapshot-log-bytes", "64KiB"])).await;
    let store = folder(&cluster, "store");
    let block = json!({"name": "main", "url": url(&store), "flush_interval": "100ms"});
    let (status, added) = send(&cluster.nodes[0], "POST", "/v1/backups", &block).await;
    assert_eq!(status, 201, "{added}");
    let mut load = Load::start(&cluster.endpoints(), 3);
    let deadline = Instant::now() + PATIENCE;
    while cluster.nodes[0].status().await.is_none_or(|status| status.purged_index <= Some(10)) {
        assert!(Instant::now() < deadline, "the log is not removed");
        load.acknowledged(200).await;
    }
    load.stop().await;
    let mut later = cluster.later("n4", &["--learner"]);
    later.start();
    later.ready().await;
    cluster.nodes.push(later);
    cluster.converged().await;
    let me = cluster.nodes[3].status().await.unwrap().id;
    let info = until(&cluster.nodes[3], "it could archive", PATIENCE, |info| info.candidates.contains(&me)).await;
    assert_eq!((info.origin, info.declared), (BackupOrigin::Api, Some(block)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_declared_is_refused_with_the_reason_and_nothing_is_kept() {
    let mut cluster = Cluster::prepare(&Settings::default()).await;
    let (configured, store) = (folder(&cluster, "configured"), folder(&cluster, "store"));
    let config = cluster.dir.path().join("quorate.toml");
    std::fs::write(&config, format!("[[backup]]\nname = 'main'\nurl = '{}'\n", url(&configured))).unwrap();
    // One node alone has it.
    cluster.nodes[0].settings.flags.extend(["--config".to_owned(), config.display().to_string()]);
    let allowing = cluster.dir.path().join("allowing.toml");
    let allow = "['credentials_file=/no/such/file', 'credentials_env.token=QUORATE_BACKUP_NONE']";
    std::fs::write(&allowing, format!("backup_declare_allow = {allow}\n")).unwrap();
    cluster.nodes[1].settings.flags.extend(["--config".to_owned(), allowing.display().to_string()]);
    cluster.start_all().await;
    until(&cluster.nodes[1], "others know of it", PATIENCE, |info| info.name == "main").await;
    let node = &cluster.nodes[1];
    let with = |name: &str, url: &str, more: Value| {
        let mut block = json!({"name": name, "url": url});
        block.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        block
    };
    let none = || json!({});
    let full = folder(&cluster, "holiday");
    std::fs::write(full.join("beach.jpg"), "").unwrap();
    for (block, status, says) in [
        (with("main", &url(&store), none()), 409, "configuration of a node"),
        (with("other", &url(&configured), none()), 409, "same store"),
        (with("other", &url(&cluster.dir.path().join("nowhere")), none()), 409, "there is no such folder"),
        (with("other", &url(&full), none()), 409, "no repository"),
        (
            with("other", "s3://bucket/x", json!({"options": {"aws_secret_access_key": "hunter2"}})),
            400,
            "credentials_env",
        ),
        (with("other", &url(&store), json!({"full": "daily"})), 400, "five fields"),
        (with("other", &url(&store), json!({"colour": "red"})), 400, "colour"),
        (with("other", &url(&store), json!({"credentials_file": "/no/such/file"})), 409, "/no/such/file"),
        (with("other", &url(&store), json!({"credentials_file": "/etc/hostname"})), 400, "backup_declare_allow"),
        (with("other", &url(&store), json!({"identity_file": "/etc/hostname"})), 400, "backup_declare_allow"),
        (
            with("other", "s3://bucket/x", json!({"options": {"endpoint": "http://127.0.0.1:9"}})),
            400,
            "backup_declare_allow",
        ),
        (
            with("other", &url(&store), json!({"credentials_env": {"token": "QUORATE_BACKUP_NONE"}})),
            409,
            "no variable QUORATE_BACKUP_NONE",
        ),
    ] {
        let text = refused(node, "POST", "/v1/backups", &block, status).await;
        assert!(text.contains(says) && !text.contains("hunter2"), "{block}: {text}");
    }
    // A request may be as long as a declaration, which is a little more.
    let long =
        |bytes: usize| with("other", "s3://bucket/x", json!({"options": {"aws_sse_kms_key_id": "x".repeat(bytes)}}));
    let long = long(16_380 - long(0).to_string().len());
    let text = refused(node, "POST", "/v1/backups?dry_run=true", &long, 413).await;
    assert!(text.contains("16384"), "{text}");
    assert_eq!(names(&store), Vec::<String>::new(), "nothing was tried");
    for (method, body) in [("PATCH", json!({"full": "0 4 * * *"})), ("DELETE", Value::Null)] {
        let text = refused(node, method, "/v1/backups/main", &body, 409).await;
        assert!(text.contains("stands in the configuration"), "{text}");
    }
    refused(node, "PATCH", "/v1/backups/other", &none(), 404).await;
    assert_eq!(backups(node).await.len(), 1);

    // By force it is declared all the same, and archived to once it can be.
    let away = cluster.dir.path().join("later");
    let block = with("later", &url(&away), json!({"flush_interval": "100ms"}));
    let (status, forced) = send(node, "POST", "/v1/backups?force=true", &block).await;
    assert!(status == 201 && forced["store"].is_null(), "{forced}");
    assert!(forced["warnings"].to_string().contains("no such folder"), "{forced}");
    until(node, "it fails", PATIENCE, |info| info.name == "later" && !info.troubles.is_empty()).await;
    std::fs::create_dir(&away).unwrap();
    until(node, "it is archived to", PATIENCE, |info| info.name == "later" && info.archived_index.is_some()).await;
    // Where a configuration comes to name another store so, the configuration counts on that node, which says so.
    let both = format!(
        "[[backup]]\nname = 'main'\nurl = '{}'\n[[backup]]\nname = 'later'\nurl = '{}'\n",
        url(&configured),
        url(&store)
    );
    std::fs::write(&config, both).unwrap();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    let deadline = Instant::now() + PATIENCE;
    while alarm(&cluster.nodes[0], "backup_mismatch").await.is_none_or(|alarm| alarm.subject != "later") {
        assert!(Instant::now() < deadline, "no alarm is raised");
        sleep(POLL).await;
    }
    // A member that is away may not know what this is.
    cluster.nodes[2].kill();
    let text = refused(&cluster.nodes[1], "DELETE", "/v1/backups/later", &Value::Null, 409).await;
    assert!(text.contains("n3 did not answer"), "{text}");
    let (status, _) = send(&cluster.nodes[1], "DELETE", "/v1/backups/later?force=true", &Value::Null).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_leaves_the_store_of_the_old_one_alone_until_it_is_told_otherwise() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let store = folder(&cluster, "store");
    let block = json!({"name": "main", "url": url(&store), "flush_interval": "100ms"});
    let (status, added) = send(&cluster.nodes[0], "POST", "/v1/backups", &block).await;
    assert_eq!(status, 201, "{added}");
    until(&cluster.nodes[0], "a whole state is archived", PATIENCE, |info| info.full.is_some()).await;
    written_and_archived(&cluster).await;
    let old = cluster.nodes[0].status().await.unwrap().cluster_id;
    cluster.nodes.iter_mut().for_each(Member::kill);
    let before = names(&store);

    let mut restored = cluster.nodes[0].beside("restored");
    restored.initial_cluster = None;
    let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["restore", "--output", "json", "--yes", "--from", &url(&store), "--name", "n1", "--peer-addr"]);
    command.arg(&restored.peer_addr).arg("--data-dir").arg(&restored.dir).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    restored.start();
    restored.ready().await;
    let info = until(&restored, "it is known", PATIENCE, |info| info.idle.is_some()).await;
    assert!(info.active.is_none() && info.idle.unwrap().contains(&cluster_name(ClusterId::new(old))));
    let deadline = Instant::now() + PATIENCE;
    let alarm = loop {
        match alarm(&restored, "backup_suspended").await {
            Some(alarm) => break alarm,
            None => assert!(Instant::now() < deadline, "no alarm is raised"),
        }
        sleep(POLL).await;
    };
    assert!(alarm.action.contains("quorate backup set"), "{}", alarm.action);
    let put = http().put(restored.url("/v1/kv/new")).body("value").send().await.unwrap();
    assert_eq!(put.status(), 201);
    // Several of its flush intervals.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(names(&store), before, "nothing of the new cluster is there");

    let mut command = Process::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["backup", "set", "main", "--endpoint", &restored.url("")]).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(&cluster_name(ClusterId::new(old))), "{told}");
    let status = restored.status().await.unwrap();
    until(&restored, "it archives", PATIENCE, |info| info.archived_index >= status.applied_index).await;
    assert!(names(&store).contains(&cluster_name(ClusterId::new(status.cluster_id))));
    assert_eq!(names(&store).len(), before.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_that_archives_makes_drills_and_leaves_nothing_behind() {
    let cluster = Cluster::start(&Settings::default()).await;
    let store = folder(&cluster, "store");
    let block = json!({"name": "main", "url": url(&store), "flush_interval": "100ms", "drill": "* * * * *"});
    let (status, added) = send(&cluster.nodes[0], "POST", "/v1/backups", &block).await;
    assert_eq!(status, 201, "{added}");
    written_and_archived(&cluster).await;
    let drilled = |info: &BackupInfo| info.proofs.as_ref().is_some_and(|proofs| proofs.drilled_unix_ms.is_some());
    let info = until(&cluster.nodes[1], "a drill was made", DRILLED_WITHIN, drilled).await;
    let proofs = info.proofs.unwrap();
    assert!(proofs.drills_here && proofs.drill_error.is_none() && proofs.failed.is_none(), "{proofs:?}");
    let chain = store.join(cluster_name(ClusterId::new(cluster.nodes[0].status().await.unwrap().cluster_id)));
    let proof = names(&chain.join("proof")).into_iter().find(|name| name.contains("-drill-passed-")).unwrap();
    let proof: Value = serde_json::from_slice(&std::fs::read(chain.join("proof").join(proof)).unwrap()).unwrap();
    let active = info.active.unwrap();
    for node in &cluster.nodes {
        if node.status().await.unwrap().id == active {
            assert_eq!(proof["by"], node.name.as_str(), "{proof}");
        }
        let deadline = Instant::now() + PATIENCE;
        while node.dir.join("drill").exists() {
            assert!(Instant::now() < deadline, "{} still holds what was restored", node.name);
            sleep(POLL).await;
        }
    }
}
