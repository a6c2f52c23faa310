//! Drills: a point of the archive is restored, started and read from by schedule, where this node can read the content.
//!
//! Each is made by a process of its own: this program's `backup drill`, with low priority, on loopback, in a folder that is
//! thrown away. Guarantees: only the node that archives makes them, one at a time; a drill ends within [`TIME_MAX`], and with
//! the node, or when another one archives; neither the command line nor a file holds a secret; archiving never waits for the
//! end of a process or the removal of a folder. What the drill finds is a proof beside the archive, which
//! whoever archives next finds, too. Leaves out: what a drill does, and room on the disk, which it looks for first (`cli`);
//! what was due while no node ran, which waits for the next time.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::place::{self, Place};
use super::thread::Author;
use crate::backup::layout::cluster_name;
use crate::backup::proof::{self, ProofKind};
use crate::backup::repository::{Repository, StoreError};
use crate::backup::schedule::Schedule;
use crate::backup::settings::TargetSettings;
use crate::backup::target::Options;
use crate::clock;
use crate::types::{ClusterId, WallTime};
use crate::watch;

/// How long a drill may take: a state of a terabyte at 50 MB/s.
const TIME_MAX: Duration = Duration::from_secs(6 * 3_600);

/// How often it is looked whether one is due: clocks are set, and proofs are written elsewhere.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// How often it is looked whether the process has ended.
const WAIT_EVERY: Duration = Duration::from_millis(250);

/// So much of what a process says of its failure is told, in bytes.
const WORDS_BYTES_MAX: u64 = 2_048;

/// What a process is told at its start takes so many bytes at most: less than a pipe holds, so that nobody waits for it.
const ORDER_BYTES_MAX: usize = 60 * 1024;

/// The folder of drills, beside that of verifications.
const FOLDER: &str = "drill";

/// Exit code 4: what was restored is not what it should be. That is a proof, and no trouble of this node.
const EXIT_INTEGRITY: i32 = 4;

/// What a node tells the process of a drill, as JSON on its standard input: neither arguments, which everybody on this machine
/// may read, nor a file.
#[derive(Serialize, Deserialize)]
pub struct DrillOrder {
    /// Settings of the store, credentials among them.
    pub options: Options,
    /// What it may read from the store, in bytes a second; `None`: all that the line gives.
    pub bandwidth: Option<u64>,
    /// The id of the process of the node.
    pub parent: u32,
}

impl DrillOrder {
    fn encode(&self) -> Result<Vec<u8>, String> {
        let bytes = serde_json::to_vec(self).map_err(|_| "the settings of the store can't be told".to_owned())?;
        match bytes.len() <= ORDER_BYTES_MAX {
            true => Ok(bytes),
            false => {
                Err(format!("the settings of the store take {} bytes; {ORDER_BYTES_MAX} are the most", bytes.len()))
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// That it is none, without anything that it may hold.
    pub fn read(input: impl io::Read) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let read = input.take(ORDER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        let order = read.ok().and_then(|_| serde_json::from_slice(&bytes).ok());
        order.ok_or_else(|| "standard input does not hold what a node tells a drill; leave out --by-node".to_owned())
    }
}

/// Makes drills of a place for ever, while this node archives; `turn` is for all places together. Can be dropped at any
/// point: a drill that is under way ends then, and what it leaves behind is removed behind its back.
pub(super) async fn run(
    place: &Place,
    author: &Author,
    mut active: watch::Receiver<bool>,
    turn: &Arc<Semaphore>,
    repository: &Repository,
) {
    let Some(schedule) = &place.settings.drill else { return std::future::pending().await };
    let mut last = clock::wall();
    loop {
        tokio::time::sleep(pause(schedule, last, clock::wall())).await;
        if active.wait_for(|active| *active).await.is_err() {
            return;
        }
        let is_due = |last| schedule.next_after(last).is_some_and(|due| due <= clock::wall());
        if !is_due(last) {
            continue;
        }
        // Made elsewhere, or by whoever archived before, whatever came of it. What others tell may be older than that.
        match drilled(repository, author.cluster).await {
            Ok(drilled) => last = last.max(drilled),
            Err(error) => {
                tracing::debug!(backup = place.settings.name, %error, "it can't be told when the last drill was");
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
        }
        let Ok(turn) = Arc::clone(turn).acquire_owned().await else { return };
        if !is_due(last) || !*active.borrow() {
            continue;
        }
        let now = clock::wall();
        let made = tokio::select! {
            biased;
            made = drill(&place.settings, author, turn) => made,
            // Whoever archives from now on makes it.
            _ = active.wait_for(|active| !*active) => {
                tracing::info!(backup = place.settings.name, "a drill was given up: another node archives now");
                continue;
            }
        };
        last = now;
        match &made {
            Ok(()) => tracing::info!(backup = place.settings.name, "a drill was made; its proof tells what came of it"),
            Err(error) => tracing::warn!(backup = place.settings.name, %error, "a drill could not be made"),
        }
        place.set_drill_trouble(made.err());
    }
}

/// The end of the last drill of an archive, whoever made it and whatever came of it; zero if there was none.
async fn drilled(repository: &Repository, cluster: ClusterId) -> Result<WallTime, StoreError> {
    let told = proof::list(repository, cluster).await?;
    Ok(told.iter().filter(|told| told.kind == ProofKind::Drill).map(|told| told.at).max().unwrap_or_default())
}

/// How long nothing can be due.
fn pause(schedule: &Schedule, last: WallTime, now: WallTime) -> Duration {
    let due =
        schedule.next_after(last).map_or(LOOK_EVERY, |due| Duration::from_millis(due.get().saturating_sub(now.get())));
    due.clamp(WAIT_EVERY, LOOK_EVERY)
}

/// Makes one.
///
/// # Errors
/// Why it says nothing about the archive.
async fn drill(settings: &TargetSettings, author: &Author, turn: OwnedSemaphorePermit) -> Result<(), String> {
    let folder = folder(author);
    let options = place::options(settings).await?;
    std::fs::create_dir_all(&folder).map_err(|error| format!("can't make {}: {error}", folder.display()))?;
    let mut running = Running(Some(Left { child: None, folder: folder.clone(), _turn: turn }));
    let begun = begin(settings, options, author, &folder);
    let ended = match begun {
        Ok((child, words)) => ended(running.holds(child), words).await,
        Err(error) => Err(error),
    };
    running.clear().await;
    ended
}

fn folder(author: &Author) -> PathBuf {
    author.scratch.with_file_name(FOLDER)
}

/// Removes what a drill left behind that was killed with its node.
pub(super) fn clear(author: &Author) {
    if let Err(error) = remove(&folder(author)) {
        tracing::warn!(%error, "what an interrupted drill has left behind can't be removed");
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is there of a drill: a process, and the folder that goes behind it. The next one has its turn once both are gone.
struct Left {
    child: Option<Child>,
    folder: PathBuf,
    _turn: OwnedSemaphorePermit,
}

impl Left {
    /// Blocks for as long as the process, which may hang on a disk, and the removal of a whole state take.
    fn clear(mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "the folder of a drill can't be removed");
        }
    }
}

/// A drill that ends when nobody waits for it any more. Nobody waits for its remains either, but the end of the runtime, for a
/// while: what is left then is removed at the next start.
struct Running(Option<Left>);

impl Running {
    fn holds(&mut self, child: Child) -> &mut Child {
        let left = self.0.as_mut().expect("it is there until it is cleared");
        left.child.insert(child)
    }

    /// Ends it, and returns once nothing is left.
    async fn clear(mut self) {
        if let Some(left) = self.0.take() {
            let _ = tokio::task::spawn_blocking(move || left.clear()).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut left) = self.0.take() else { return };
        if let Some(child) = &mut left.child {
            let _ = child.kill();
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || left.clear())),
            Err(_) => left.clear(),
        }
    }
}

/// Starts the process; gives it, and the file that holds what it says.
fn begin(settings: &TargetSettings, options: Options, author: &Author, folder: &Path) -> Result<(Child, File), String> {
    let order = DrillOrder { options, bandwidth: settings.bandwidth, parent: std::process::id() }.encode()?;
    let file = |name: &str| {
        let path = folder.join(name);
        let open = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        open.map_err(|error| format!("can't write {}: {error}", path.display()))
    };
    let words = file("stderr")?;
    let same = words.try_clone().map_err(|error| error.to_string())?;
    let program = program().map_err(|error| format!("this program is not to be found: {error}"))?;
    let mut command = Command::new(program);
    command.args(["backup", "drill", &settings.url, "--cluster", &cluster_name(author.cluster)]);
    command.args(["--by-node", &author.name, "--output", "json"]).arg("--scratch").arg(folder);
    if let Some(file) = settings.care.identity_file.as_ref().filter(|_| !settings.recipients.is_empty()) {
        command.arg("--identity").arg(file);
    }
    // Settings of this node are none of the other.
    let own = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("QUORATE_"));
    for name in own {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(same);
    let mut child = command.spawn().map_err(|error| format!("the process can't be started: {error}"))?;
    let told = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(&order));
    if let Err(error) = told {
        // Both fail only where it has ended already; it has nothing to do yet.
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("the process takes no settings: {error}"));
    }
    Ok((child, words))
}

/// This program, also where its file was replaced meanwhile.
fn program() -> io::Result<PathBuf> {
    let own = Path::new("/proc/self/exe");
    if own.exists() { Ok(own.to_owned()) } else { std::env::current_exe() }
}

/// Waits for the end, no longer than [`TIME_MAX`].
async fn ended(child: &mut Child, words: File) -> Result<(), String> {
    let deadline = clock::now() + TIME_MAX;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if clock::now() >= deadline => {
                return Err(format!("it was not finished within {}", humantime::format_duration(TIME_MAX)));
            }
            None => tokio::time::sleep(WAIT_EVERY).await,
        }
    };
    match status.code() {
        Some(0 | EXIT_INTEGRITY) => Ok(()),
        _ => Err(last_words(words, status)),
    }
}

fn last_words(mut words: File, status: ExitStatus) -> String {
    let mut text = Vec::new();
    let length = words.metadata().map_or(0, |meta| meta.len());
    let read = words.seek(SeekFrom::Start(length.saturating_sub(WORDS_BYTES_MAX)));
    let _ = read.and_then(|_| words.take(WORDS_BYTES_MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    format!("{} ({status})", last.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::target;

    const MINUTE: u64 = 60_000;

    #[test]
    fn nothing_is_slept_through_that_is_due() {
        let schedule: Schedule = "*/10 * * * *".parse().unwrap();
        let at = |minutes: u64| WallTime::new(minutes * MINUTE);
        assert_eq!(pause(&schedule, at(1), at(2)), LOOK_EVERY, "clocks may be set");
        assert_eq!(pause(&schedule, at(1), WallTime::new(10 * MINUTE - 5_000)), Duration::from_secs(5));
        assert_eq!(pause(&schedule, at(1), at(11)), WAIT_EVERY);
    }

    #[tokio::test]
    async fn what_a_process_says_last_is_told_and_damage_is_no_trouble_of_this_node() {
        let end = async |script: &str| {
            let mut file = tempfile::tempfile().unwrap();
            let words = file.try_clone().unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut child = Command::new("sh").args(["-c", script]).stderr(file).spawn().unwrap();
            ended(&mut child, words).await
        };
        assert_eq!(end("exit 0").await, Ok(()));
        assert_eq!(end("echo 'error: damaged' >&2; exit 4").await, Ok(()));
        let error = end("echo first >&2; echo 'error: no room on the disk' >&2; exit 2").await.unwrap_err();
        assert!(error.starts_with("no room on the disk (") && error.contains('2'), "{error}");
        assert!(end("kill -9 $$").await.unwrap_err().starts_with("it said nothing"));
    }

    /// A drill that has a turn and a folder, and whose process would run for long.
    async fn running(turns: &Arc<Semaphore>, folder: &Path) -> (Running, rustix::process::Pid) {
        let turn = Arc::clone(turns).acquire_owned().await.unwrap();
        std::fs::create_dir(folder).unwrap();
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        (Running(Some(Left { child: Some(child), folder: folder.to_owned(), _turn: turn })), pid)
    }

    #[tokio::test]
    async fn a_drill_ends_when_nobody_waits_for_it_and_the_next_has_its_turn_once_nothing_is_left() {
        let (turns, folder) = (Arc::new(Semaphore::new(1)), tempfile::tempdir().unwrap());
        let folder = folder.path().join("drill");
        let (dropped, pid) = running(&turns, &folder).await;
        drop(dropped);
        let (cleared, next) = running(&turns, &folder).await;
        assert!(rustix::process::test_kill_process(pid).is_err(), "it still runs");
        cleared.clear().await;
        assert!(rustix::process::test_kill_process(next).is_err() && !folder.exists());
    }

    #[test]
    fn an_order_comes_back_whatever_credentials_hold_and_what_is_none_is_not_shown() {
        let options = Options::from([("google_service_account_key".into(), "{\n\"private_key\": \"a'b\"\n}\n".into())]);
        let order = DrillOrder { options: options.clone(), bandwidth: Some(7), parent: 3 };
        let read = DrillOrder::read(&order.encode().unwrap()[..]).unwrap();
        assert_eq!((read.options, read.bandwidth, read.parent), (options, Some(7), 3));
        for none in ["", "{\"options\": \"hunter2\"}", "token='hunter2'\n"] {
            let error = DrillOrder::read(none.as_bytes()).err().unwrap();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let long = Options::from([("token".to_owned(), "x".repeat(ORDER_BYTES_MAX))]);
        let error = DrillOrder { options: long, bandwidth: None, parent: 3 }.encode().unwrap_err();
        assert!(error.contains("are the most") && !error.contains("xx"), "{error}");
    }

    #[tokio::test]
    async fn a_drill_that_failed_counts_as_made_as_one_that_passed_does() {
        let folder = tempfile::tempdir().unwrap();
        let store = target::open(&format!("file://{}", folder.path().display()), &Options::new()).unwrap();
        let cluster = ClusterId::new(7);
        assert_eq!(drilled(&store, cluster).await.unwrap(), WallTime::ZERO);
        for (kind, passed, at) in
            [(ProofKind::Drill, true, 5), (ProofKind::Drill, false, 8), (ProofKind::Verify, true, 9)]
        {
            let at = WallTime::new(at);
            proof::write(&store, cluster, &proof::Proof::new(kind, "n1", passed, at, at)).await.unwrap();
        }
        assert_eq!(drilled(&store, cluster).await.unwrap(), WallTime::new(8));
    }
}
