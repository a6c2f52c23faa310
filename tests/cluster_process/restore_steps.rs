//! A restore that ends anywhere: killed behind any of its steps, for want of room, or by a signal. What is left is never
//! started, and the same command goes on.
//!
//! Method: a library between the command and its disk counts what it does (`disk`), once to its end, and then ends it at
//! chosen counts. Leaves out: which step that is; threads of a restore take turns as they like.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::disk::{Disk, Fault};
use crate::process::{Member, PATIENCE, POLL};
use crate::restore::{ENTRIES, Left, lost, value};
use crate::trace::Done;

/// SIGKILL's number.
const KILLED: i32 = 9;

/// More bytes than two runs of one restore differ by.
const SPREAD: u64 = 64;

/// A place to restore into, with a library under it.
fn place(left: &Left, name: &str) -> (Member, Disk) {
    let mut node = left.first(name);
    // The library sees files by their real paths.
    node.dir = left.cluster.dir.path().canonicalize().unwrap().join(name);
    let disk = Disk::of(&node.dir);
    (node, disk)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map_or_else(|_| Vec::new(), Iterator::collect);
    let mut names: Vec<String> =
        entries.into_iter().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whatever was made there is complete and has its identity, or `serve` refuses it, even where an empty directory would
/// form a cluster. Tells whether it is complete.
async fn complete_or_refused(node: &mut Member) -> bool {
    let found = names(&node.dir);
    let is_unfinished =
        |name: &String| name == "restore-stage" || name.starts_with("recovery-") && !name.ends_with(".tmp");
    if found.iter().any(is_unfinished) {
        node.initial_cluster = Some(format!("n1={}", node.peer_addr));
        let (code, refused) = node.refusal().await;
        assert!(code == Some(2) && refused.contains("was not finished"), "{found:?}: {refused}");
        node.initial_cluster = None;
        return false;
    }
    if found.iter().any(|name| name == "identity") {
        return true;
    }
    // Nothing has begun.
    assert!(found.iter().all(|name| name == "LOCK"), "{found:?}");
    false
}

async fn serves(left: &Left, mut node: Member) {
    node.start();
    node.ready().await;
    left.kept.check_on(&node).await;
    assert!(value(&node, ENTRIES, "second").await.is_some());
    // What was built is what is served from.
    assert_eq!(names(&node.dir.join("state")), ["1"]);
    node.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_behind_any_step_is_never_started_and_goes_on() {
    let left = lost().await;
    let (node, disk) = place(&left, "whole");
    let done = left.command(&node, &[]).envs(disk.env()).stdout(Stdio::null()).status().unwrap();
    assert!(done.success());
    let steps = disk.trace().events.len() as u64;
    // The last ones give everything its place.
    let counts = [1, 2, 3].into_iter().chain((1..8).map(|eighth| steps * eighth / 8)).chain(steps - 12..steps);
    let mut killed = 0;
    for count in counts {
        let (mut node, disk) = place(&left, &format!("at-{count}"));
        disk.set(Fault::EndsBehind(count));
        let mut command = left.command(&node, &[]);
        let ended = command.envs(disk.env()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        // With other threads' luck it may have done less.
        assert!(ended.signal() == Some(KILLED) || ended.success(), "{ended:?}");
        killed += u64::from(!ended.success());
        let complete = complete_or_refused(&mut node).await;
        match left.restore(&node, &[]) {
            Ok(told) => assert!(!complete && told["new_cluster_id"].is_u64(), "{told}"),
            Err((code, refused)) => {
                assert!(complete && code == Some(2) && refused.contains("is not empty"), "step {count}: {refused}");
            }
        }
        serves(&left, node).await;
    }
    assert!(killed >= 15, "only {killed} were killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_finds_the_disk_full_says_so_and_goes_on_when_there_is_room() {
    let left = lost().await;
    let (node, disk) = place(&left, "whole");
    assert!(left.command(&node, &[]).envs(disk.env()).stdout(Stdio::null()).status().unwrap().success());
    let trace = disk.trace();
    let writes: Vec<_> = trace.events.iter().filter(|event| event.done == Done::Write).collect();
    let needed: u64 = writes.iter().map(|event| event.bytes).sum();
    assert!(needed > 50_000, "{needed} bytes");
    // One write of each part of the work finds no room, by the order of this run.
    let mut rooms = BTreeSet::from([0]);
    for part in ["restore-stage", "snapshots", "state", "/log/", "identity", "note.json"] {
        let at = writes.iter().position(|event| event.path.to_string_lossy().contains(part));
        let at = at.unwrap_or_else(|| panic!("nothing is written into {part}"));
        rooms.insert(writes[..at].iter().map(|event| event.bytes).sum());
    }
    // Runs differ by a few bytes in all (times are written as numbers of varying length), so the last write that finds no room
    // is told by its own length.
    let last =
        writes.iter().rfind(|event| event.bytes > SPREAD).expect("a write that is longer than what runs differ by");
    rooms.extend([needed / 2, needed * 3 / 4, needed - last.bytes / 2]);
    for room in rooms {
        let (mut node, disk) = place(&left, &format!("room-{room}"));
        disk.set(Fault::Room(room));
        let output = left.command(&node, &[]).envs(disk.env()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "room for {room} of {needed} bytes: {errors}");
        assert!(errors.contains("No space left on device"), "room for {room} bytes: {errors}");
        assert!(!complete_or_refused(&mut node).await);
        disk.clear(Fault::Room(room));
        let output = left.command(&node, &[]).envs(disk.env()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serves(&left, node).await;
    }
}

/// What the system says of this process.
fn self_told(file: &str) -> String {
    fs::read_to_string(format!("/proc/self/{file}")).unwrap()
}

/// A command with its scratch folder.
struct Drill {
    child: Child,
    scratch: PathBuf,
}

impl Drill {
    fn start(left: &Left, name: &str) -> Self {
        let scratch = left.cluster.dir.path().join(name);
        fs::create_dir(&scratch).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["backup", "drill", &left.url, "--no-proof", "--identity"]).arg(&left.key);
        command.arg("--scratch").arg(&scratch).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), scratch }
    }

    /// As a node starts one: this process stands for the node.
    fn by_node(left: &Left, name: &str, bytes_per_second: u64) -> Self {
        let scratch = left.cluster.dir.path().join(name);
        fs::create_dir(&scratch).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["backup", "drill", &left.url, "--by-node", "n1", "--identity"]).arg(&left.key);
        command.arg("--scratch").arg(&scratch).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let order = json!({"options": {}, "bandwidth": bytes_per_second, "parent": std::process::id()});
        child.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
        Self { child, scratch }
    }

    /// Waits until a file or folder of what it restores is there.
    async fn until_there(&mut self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        let there = |scratch: &Path| {
            let folder = names(scratch).pop();
            folder.is_some_and(|folder| scratch.join(folder).join(part).exists())
        };
        while !there(&self.scratch) {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended before {part} was there");
            assert!(Instant::now() < deadline, "{part} never came");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What the system says of its process.
    fn told(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_a_node_has_started_stands_back_behind_it() {
    let left = lost().await;
    let (mut slow, mut quick) = (Drill::by_node(&left, "slow", 1), Drill::by_node(&left, "quick", 1 << 30));
    let deadline = Instant::now() + PATIENCE;
    // The nineteenth field; the second one, the name, may hold blanks.
    let nice =
        |stat: &str| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap();
    // The first to go where memory is short, and behind all others where processors are.
    while slow.told("oom_score_adj").trim() != "1000" || nice(&slow.told("stat")) <= nice(&self_told("stat")) {
        assert!(slow.child.try_wait().unwrap().is_none(), "it ended");
        assert!(Instant::now() < deadline, "{} {}", slow.told("oom_score_adj"), slow.told("stat"));
        sleep(POLL).await;
    }
    while quick.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        sleep(POLL).await;
    }
    assert!(quick.child.wait().unwrap().success());
    assert_eq!(names(&quick.scratch), [""; 0]);
    // For a byte a second the manifests alone are too long.
    assert!(slow.child.try_wait().unwrap().is_none(), "it has not kept to its share of the line");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_is_interrupted_leaves_nothing_behind() {
    let left = lost().await;
    // What the folder holds when the signal comes: nothing yet, what was fetched, and what was built or is served.
    for (number, (signal, part)) in
        [("TERM", ""), ("INT", "data/restore-stage"), ("TERM", "data/recovery-1.tmp/state/1"), ("INT", "data/identity")]
            .into_iter()
            .enumerate()
    {
        let mut drill = Drill::start(&left, &format!("drill-{number}"));
        let deadline = Instant::now() + PATIENCE;
        drill.until_there(part).await;
        let pid = drill.child.id().to_string();
        let sent = std::process::Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", signal, &pid]).status().unwrap();
        assert!(sent.success());
        while drill.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "SIG{signal} does not end it");
            sleep(POLL).await;
        }
        let status = drill.child.wait().unwrap();
        let errors = std::io::read_to_string(drill.child.stderr.take().unwrap()).unwrap();
        assert!(status.code() == Some(3) && errors.contains("interrupted"), "{part}: {errors}");
        assert_eq!(names(&drill.scratch), [""; 0], "with {part}");
    }
}
