//! docs/operations.md, "All disks are gone": its commands as they stand there, after such a disaster.
//!
//! Method: three nodes archive to a folder and lose everything; the blocks of that section are read out of the document, the
//! names in them are replaced by those of this machine, and they are run one behind the other. In the end a part of the old
//! cluster comes back, against the advice, and goes on writing and archiving. Guarantees: a command that is changed in the
//! document is the one that is tried. Leaves out: stores that are no folder (`scripts/backup-stores`).

use std::fs;
use std::process::{Child, Command, Stdio};

use quorate::api::model::{NodeRole, StatusReply};
use quorate::backup::layout::cluster_name;
use quorate::backup::plan::rfc3339;
use quorate::backup::seal::Identities;
use quorate::clock;
use quorate::types::{ClusterId, WallTime};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::archive::Archived;
use crate::crashes::WRITERS;
use crate::load::Load;
use crate::process::{Member, PATIENCE, POLL, http};

const DOCUMENT: &str = include_str!("../../docs/operations.md");
const SECTION: &str = "### All disks are gone, and there is an off-site archive";

/// The shell blocks of the section, one a string, each command on one line.
fn blocks() -> Vec<String> {
    let section = DOCUMENT.split_once(SECTION).expect("the document has the section").1;
    let section = section.split_once("\n### ").expect("another one follows").0;
    let (mut blocks, mut open) = (Vec::new(), None::<String>);
    for line in section.lines().map(str::trim) {
        match (line, &mut open) {
            ("```sh", None) => open = Some(String::new()),
            ("```", Some(_)) => blocks.extend(open.take()),
            (line, Some(block)) => {
                *block += line.split_once(" #").map_or(line, |(command, _)| command).trim_end();
                match block.strip_suffix('\\') {
                    Some(continued) => *block = continued.to_owned(),
                    None => block.push('\n'),
                }
            }
            _ => {}
        }
    }
    blocks
}

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the names in the document stand for here.
struct Site {
    names: Vec<(&'static str, String)>,
    endpoint: String,
}

impl Site {
    fn filled_in(&self, block: &str) -> String {
        self.names.iter().fold(block.to_owned(), |block, (name, here)| block.replace(name, here))
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-exc", script]).env("QUORATE_ENDPOINT", &self.endpoint).stdin(Stdio::null());
        command
    }

    /// Runs a block to its end; what it said on standard output.
    fn run(&self, block: &str) -> String {
        let script = self.filled_in(block);
        let output = self.shell(&script).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a block that is a server.
    fn serve(&self, block: &str) -> Server {
        let script = format!("exec {}", self.filled_in(block).trim());
        // What it says is shown if the test fails.
        Server(self.shell(&script).env("RUST_LOG", "quorate=warn,openraft=off").stdout(Stdio::null()).spawn().unwrap())
    }
}

/// Where a node of the new cluster is, as the document's commands start it.
fn site(archived: &Archived, key: &str, node: &Member, first: &Member, times: &str) -> Site {
    let config = archived.cluster.dir.path().join("quorate.toml").display().to_string();
    let own = |node: &Member| (node.peer_addr.clone(), format!("http://{}", node.client_addr));
    let ((first_peer, first_url), (second_peer, second_url)) = (own(first), own(node));
    let names = vec![
        ("s3://bucket/prefix", archived.url()),
        ("key.txt", key.to_owned()),
        ("/var/lib/quorate", node.dir.display().to_string()),
        ("/etc/quorate.toml", config),
        ("http://n1.example:7480", first_url.clone()),
        ("n1.example:7481", first_peer),
        ("http://n2.example:7480", second_url),
        ("n2.example:7481", second_peer),
        ("0.0.0.0:7480", node.client_addr.clone()),
        ("0.0.0.0:7481", node.peer_addr.clone()),
        ("--name n2", format!("--name {}", node.name)),
        ("2026-11-20T09:30:00Z", times.to_owned()),
        // Behind the paths that end with it.
        ("quorate ", format!("{} ", env!("CARGO_BIN_EXE_quorate"))),
    ];
    Site { names, endpoint: first_url }
}

/// Waits until a node says something of itself.
async fn until(node: &Member, what: &str, holds: impl Fn(&StatusReply) -> bool) -> StatusReply {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = node.status().await;
        if let Some(status) = status.as_ref().filter(|status| holds(status)) {
            return status.clone();
        }
        assert!(Instant::now() < deadline, "{}: not within {PATIENCE:?}: {what}: {status:?}", node.name);
        sleep(POLL).await;
    }
}

/// What `quorate backup` tells.
fn backup(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let output = command.arg("backup").args(arguments).args(["--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runbook_brings_a_cluster_back_as_it_stands() {
    let key = tempfile::tempdir().unwrap();
    let key = key.path().join("key.txt");
    let public = Identities::generate_into(&key).unwrap();
    let key = key.to_str().unwrap();
    let mut archived = Archived::start(&format!("recipients = ['{public}']\nflush_interval = '200ms'"), &[]).await;
    let mut load = Load::start(&archived.cluster.endpoints(), WRITERS);
    load.acknowledged(200).await;
    // The first whole state is there, so that what follows can be restored.
    let begun =
        until(&archived.cluster.nodes[0], "something is applied", |status| status.applied_index.is_some()).await;
    archived.archived(begun.applied_index.unwrap()).await;
    let middle = rfc3339(WallTime::new(clock::wall().get()));
    for name in ["users/1", "some/prefix/1"] {
        let put =
            http().put(archived.cluster.nodes[0].url(&format!("/v1/kv/{name}"))).body("kept").send().await.unwrap();
        assert!(put.status().is_success(), "{put:?}");
    }
    load.acknowledged(200).await;
    let kept = load.stop().await;
    let before = archived.cluster.converged().await;
    archived.archived(before.applied_index.unwrap()).await;
    let old = ClusterId::new(before.cluster_id);

    // The disaster; but two disks were only thought to be lost.
    let list = archived.cluster.nodes[0].initial_cluster.clone();
    for node in &mut archived.cluster.nodes {
        node.kill();
        node.initial_cluster = None;
    }
    let (first, second, third) =
        (&archived.cluster.nodes[0], archived.cluster.later("n2", &[]), archived.cluster.later("n3", &[]));
    let lost: Vec<Member> =
        archived.cluster.nodes[1..].iter().map(|node| node.beside(&format!("{}-lost", node.name))).collect();
    fs::remove_dir_all(&first.dir).unwrap();
    for (node, aside) in archived.cluster.nodes[1..].iter().zip(&lost) {
        fs::rename(&node.dir, &aside.dir).unwrap();
    }

    let here = site(&archived, key, first, first, &middle);
    let there = [site(&archived, key, &second, first, &middle), site(&archived, key, &third, first, &middle)];
    let blocks = blocks();
    let [look, restore, start, read, join, watch, part] = &blocks[..] else { panic!("other blocks: {blocks:#?}") };
    let told = here.run(&look.replace("00a1f3…", &cluster_name(old)));
    assert!(told.contains(&cluster_name(old)) && told.contains("Reached: the end of the archive"), "{told}");
    assert!(told.contains(&format!("Reached: the last write before {middle}")), "{told}");
    let told = here.run(&restore.replace("--data-dir", "--yes --data-dir"));
    assert!(told.contains(&before.state_hash) && told.contains("is the only member of a new cluster"), "{told}");
    let mut servers = vec![here.serve(start)];
    until(first, "it serves", |status| status.ready).await;
    let told = here.run(read);
    assert!(told.contains("some/prefix/1"), "{told}");
    kept.check_on(first).await;
    servers.extend(there.iter().map(|site| site.serve(join)));
    for node in [&second, &third] {
        until(node, "it votes", |status| status.ready && status.role == NodeRole::Follower).await;
    }
    let leader = until(first, "it leads", |status| status.role == NodeRole::Leader).await;
    let new = ClusterId::new(leader.cluster_id);
    assert_ne!(new, old);

    // A part of the old cluster comes back with its data, and is more than half of it.
    let mut lost = lost;
    for node in &mut lost {
        node.initial_cluster.clone_from(&list);
        node.start();
    }
    let mut old_load = Load::start(&lost.iter().map(|node| node.url("")).collect::<Vec<_>>(), WRITERS);
    old_load.acknowledged(100).await;
    let mut new_load = Load::start(&[first, &second, &third].map(|node| node.url("")), WRITERS);
    new_load.acknowledged(100).await;
    let (old_told, new_told) = (old_load.stop().await, new_load.stop().await);
    assert!(new_told.refused.is_empty() && new_told.unknown.is_empty(), "{new_told:?}");
    let still = first.status().await.unwrap();
    assert_eq!((still.role, still.term), (NodeRole::Leader, leader.term), "it was disturbed");
    for node in [first, &second, &third] {
        new_told.check_on(node).await;
        kept.check_on(node).await;
    }

    // Both archives go on, each by itself, and what each gives is what its cluster had.
    let told = here.run(watch);
    assert!(told.contains("main") && told.contains(&cluster_name(old)) && told.contains(&cluster_name(new)), "{told}");
    for (cluster, node, told) in [(old, &lost[0], &old_told), (new, first, &new_told)] {
        let deadline = Instant::now() + PATIENCE;
        let newest = *told.acknowledged.values().max().unwrap();
        loop {
            let checked = backup(&[
                "verify",
                &archived.url(),
                "--cluster",
                &cluster_name(cluster),
                "--level",
                "4",
                "--identity",
                key,
            ]);
            assert_eq!(checked["passed"], true, "{checked}");
            if checked["revision"].as_u64() >= Some(newest) {
                break;
            }
            assert!(Instant::now() < deadline, "what {} wrote is not archived: {checked}", node.name);
            sleep(POLL).await;
        }
    }
    for node in &mut lost {
        node.kill();
    }

    // A part of the data, from the old archive into the new cluster; this and the old one are named now.
    let gone = http().delete(first.url("/v1/kv/users/1")).send().await.unwrap();
    assert!(gone.status().is_success(), "{gone:?}");
    let whole = part.replace("--to-time 2026-11-20T09:30:00Z", &format!("--cluster {}", cluster_name(old)));
    here.run(&whole.replace("--prefix", "--yes --prefix"));
    let back = http().get(first.url("/v1/kv/users/1")).send().await.unwrap();
    assert_eq!(back.text().await.unwrap(), "kept");
    drop(servers);
}
