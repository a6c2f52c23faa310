//! Nodes that come back with less than they left with: a log that others have left behind, or damaged files.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::load::{Load, Told};
use crate::process::{Cluster, PATIENCE, POLL, Settings, files, http};

/// Snapshots as often as can be, and little log kept behind them.
const SNAPSHOTS: [&str; 2] = ["--snapshot-log-bytes", "64KiB"];

/// Writes until a node's log begins behind `index`.
async fn purged_beyond(cluster: &Cluster, at: usize, index: u64) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.nodes[at].status().await.is_none_or(|status| status.purged_index <= Some(index)) {
        assert!(Instant::now() < deadline, "the log is not purged: {:?}", cluster.nodes[at].status().await);
        sleep(POLL).await;
    }
}

/// Waits until a node has written so many snapshots more.
async fn snapshots(cluster: &Cluster, at: usize, more: usize) {
    let deadline = Instant::now() + PATIENCE;
    let written = || cluster.nodes[at].said().matches("snapshot written and verified").count();
    let wanted = written() + more;
    while written() < wanted {
        assert!(Instant::now() < deadline, "no snapshots are written: {}", cluster.nodes[at].said());
        sleep(POLL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_too_long_is_sent_a_snapshot() {
    let mut cluster = Cluster::start(&Settings::flags(&SNAPSHOTS)).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(100).await;
    let (leader, away) = (cluster.leader().await, cluster.follower().await);
    let had = cluster.nodes[away].status().await.unwrap().last_log_index.unwrap();
    cluster.nodes[away].kill();
    purged_beyond(&cluster, leader, had + 1).await;
    cluster.nodes[away].start();
    cluster.nodes[away].ready().await;
    load.acknowledged(200).await;
    let told = load.stop().await;
    cluster.converged().await;
    told.check(&cluster).await;
    let said = cluster.nodes[away].said();
    assert!(said.contains("installing a snapshot from the leader"), "{said}");
    assert!(cluster.nodes[away].status().await.unwrap().purged_index > Some(had), "its old log is still there");

    // What was installed holds over a restart.
    cluster.nodes[away].kill();
    cluster.nodes[away].start();
    cluster.ready().await;
    cluster.converged().await;
    told.check(&cluster).await;
}

/// Overwrites some bytes in the middle of a file.
fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    if length == 0 {
        return;
    }
    let (at, mut bytes) = (length / 2, vec![0; usize::try_from(length - length / 2).unwrap().min(16)]);
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5A);
    file.write_all_at(&bytes, at).unwrap();
}

fn halve(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

fn garble(path: &Path) {
    let length = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
    fs::write(path, [0xA5, 0x00, 0xFF, 0x13].iter().cycle().take(length).copied().collect::<Vec<u8>>()).unwrap();
}

/// One way to spoil the state directory of a stopped node.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 5] = [
    ("deleted", |state| fs::remove_dir_all(state).unwrap()),
    ("bits flipped", |state| files(state).iter().for_each(|file| flip(file))),
    ("cut in half", |state| files(state).iter().for_each(|file| halve(file))),
    ("garbage", |state| files(state).iter().for_each(|file| garble(file))),
    ("every second file gone", |state| files(state).iter().step_by(2).for_each(|file| fs::remove_file(file).unwrap())),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_deleted_or_damaged_is_rebuilt() {
    let mut cluster = Cluster::start(&Settings::flags(&SNAPSHOTS)).await;
    let mut told = Told::default();
    for (number, (damage, spoil)) in DAMAGES.iter().enumerate() {
        let mut load = Load::start(&cluster.endpoints(), WRITERS);
        let at = cluster.follower().await;
        snapshots(&cluster, at, 1).await;
        // A clean stop leaves a state that is up to date, a kill one that lags behind the log.
        if number % 2 == 0 {
            cluster.nodes[at].terminate().await;
        } else {
            cluster.nodes[at].kill();
        }
        spoil(&cluster.nodes[at].dir.join("state"));
        load.acknowledged(50).await;
        told.merge(load.stop().await);
        cluster.nodes[at].start();
        cluster.ready().await;
        println!("{damage}: ready");
        cluster.converged().await;
        told.check(&cluster).await;
    }
}

/// The snapshot files of a node, oldest first.
fn snapshot_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = files(&dir.join("snapshots"));
    // What was found damaged is kept under another name.
    files.retain(|file| file.extension().is_some_and(|extension| extension == "snapshot"));
    files.sort_by_key(|file| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        name.split_once('-').unwrap().1.parse::<u64>().unwrap()
    });
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_passed_over() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut told = Told::default();
    let cases: [(&str, usize, bool); 4] = [
        ("the newest, with a state", 1, false),
        ("the newest, without a state", 1, true),
        ("both, with a state", 2, false),
        ("both, without a state", 2, true),
    ];
    for (case, damaged, without_state) in cases {
        let mut load = Load::start(&cluster.endpoints(), WRITERS);
        let at = cluster.follower().await;
        for _ in 0..2 {
            load.acknowledged(50).await;
            // Asked for by a client: so the log stays whole.
            let asked = http().get(cluster.nodes[at].url("/v1/snapshot")).send().await.unwrap();
            assert_eq!(asked.status(), 200);
        }
        load.acknowledged(50).await;
        told.merge(load.stop().await);
        cluster.nodes[at].kill();
        let files = snapshot_files(&cluster.nodes[at].dir);
        assert_eq!(files.len(), 2, "{files:?}");
        files.iter().rev().take(damaged).for_each(|file| flip(file));
        if without_state {
            fs::remove_dir_all(cluster.nodes[at].dir.join("state")).unwrap();
        }
        cluster.nodes[at].start();
        cluster.ready().await;
        println!("{case}: ready");
        cluster.converged().await;
        told.check(&cluster).await;
    }
}

/// With neither a state, nor a snapshot, nor the beginning of the log, there is nothing to start from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_can_not_be_rebuilt_says_so() {
    let mut cluster = Cluster::start(&Settings::flags(&SNAPSHOTS)).await;
    let load = Load::start(&cluster.endpoints(), WRITERS);
    let at = cluster.follower().await;
    let oldest = files(&cluster.nodes[at].dir.join("log")).into_iter().find(|file| holds_log(file)).unwrap();
    purged_beyond(&cluster, at, 0).await;
    // It knows of the purge before its disk does; what was purged is gone once the disk does.
    let deadline = Instant::now() + PATIENCE;
    while oldest.exists() {
        assert!(Instant::now() < deadline, "{} is not removed", oldest.display());
        sleep(POLL).await;
    }
    cluster.nodes[at].kill();
    load.stop().await;
    snapshot_files(&cluster.nodes[at].dir).iter().for_each(|file| flip(file));
    fs::remove_dir_all(cluster.nodes[at].dir.join("state")).unwrap();
    let (code, said) = cluster.nodes[at].refusal().await;
    assert_eq!((code, said.lines().count()), (Some(4), 1), "{said}");
    assert!(said.starts_with("quorate: the state can't be rebuilt"), "{said}");
}

/// The newest chunk of a node's log.
pub(crate) fn chunk(dir: &Path) -> PathBuf {
    files(&dir.join("log")).into_iter().rfind(|file| holds_log(file)).unwrap()
}

fn holds_log(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "wal")
        && fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_of_the_log_is_mended_and_a_damaged_middle_is_refused() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(200).await;
    let mut told = load.stop().await;
    let at = cluster.follower().await;

    // What a crash leaves behind the last record: the head of another one, or zeros.
    for zeros in [false, true] {
        cluster.nodes[at].kill();
        let mut file = File::options().read(true).append(true).open(chunk(&cluster.nodes[at].dir)).unwrap();
        let mut tail = vec![0; if zeros { 512 } else { 12 }];
        if !zeros {
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_exact(&mut tail).unwrap();
        }
        file.write_all(&tail).unwrap();
        cluster.nodes[at].start();
        cluster.ready().await;
        cluster.converged().await;
        told.check(&cluster).await;
    }

    cluster.nodes[at].kill();
    let chunk = chunk(&cluster.nodes[at].dir);
    let whole = fs::read(&chunk).unwrap();
    flip(&chunk);
    let damaged = fs::read(&chunk).unwrap();
    let (code, said) = cluster.nodes[at].refusal().await;
    assert_eq!((code, said.lines().count()), (Some(4), 1), "{said}");
    assert!(said.starts_with("quorate: the log is damaged at byte"), "{said}");
    assert_eq!(fs::read(&chunk).unwrap(), damaged, "a refused start has changed the log");

    // The others go on without it; with its log back, so does this one.
    let others: Vec<_> = (0..3).filter(|other| *other != at).map(|other| cluster.nodes[other].url("")).collect();
    let mut load = Load::start(&others, WRITERS);
    load.acknowledged(50).await;
    told.merge(load.stop().await);
    fs::write(&chunk, whole).unwrap();
    cluster.nodes[at].start();
    cluster.ready().await;
    cluster.converged().await;
    told.check(&cluster).await;
}

/// A leader that finds its snapshot damaged when it must send it makes a new one; it does not end for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_damaged_snapshots_still_brings_a_follower_up() {
    let mut cluster = Cluster::start(&Settings::flags(&SNAPSHOTS)).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(100).await;
    let away = cluster.follower().await;
    let had = cluster.nodes[away].status().await.unwrap().last_log_index.unwrap();
    cluster.nodes[away].kill();
    let others: Vec<_> = (0..3).filter(|other| *other != away).collect();
    for other in &others {
        purged_beyond(&cluster, *other, had + 1).await;
    }
    let told = load.stop().await;
    // A clean stop leaves a state beyond the snapshots, so that nothing needs them at the start.
    for other in &others {
        assert_eq!(cluster.nodes[*other].terminate().await.code(), Some(0));
        snapshot_files(&cluster.nodes[*other].dir).iter().for_each(|file| flip(file));
        // None but the damaged ones, until one is needed.
        cluster.nodes[*other].settings = Settings::default();
    }
    cluster.start_all().await;
    cluster.converged().await;
    told.check(&cluster).await;
    assert!(cluster.nodes[away].said().contains("installing a snapshot from the leader"));
    assert!(others.iter().any(|other| cluster.nodes[*other].said().contains("passing over a damaged snapshot")));
}
