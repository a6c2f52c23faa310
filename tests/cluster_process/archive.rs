//! Off-site copies: everything that clients were told is in the archive, whatever happens to the nodes and to the store.
//!
//! The archive is a folder. It is read back as a restore would: the oldest whole state, then every entry behind it through
//! the state machine. What comes out must be what the nodes have, hash for hash.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate::api::model::{AlarmsReply, BackupInfo, OutcomeKind, Problem};
use quorate::backup::catalogue::Catalogue;
use quorate::backup::layout::is_encrypted;
use quorate::backup::manifest::Object;
use quorate::backup::repository::Repository;
use quorate::backup::seal::{Identities, OpenReader};
use quorate::backup::segment::{SegmentReader, StateMark};
use quorate::backup::target;
use quorate::state::snapshot::SnapshotReader;
use quorate::state::{LogContent, StateConfig, StateMachine, load};
use quorate::storage::MemoryEngine;
use quorate::types::{ClusterId, Key, LogPosition};
use tokio::time::{Instant, sleep};

use crate::load::{Load, Told};
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};

/// The name of the place in all tests.
const MAIN: &str = "main";

/// A cluster that archives to a folder beside its directories.
pub(crate) struct Archived {
    pub(crate) cluster: Cluster,
    folder: PathBuf,
}

impl Archived {
    /// `more` stands in the block, `flags` go to the nodes.
    pub(crate) async fn start(more: &str, flags: &[&str]) -> Self {
        let mut cluster = Cluster::prepare(&Settings::flags(flags)).await;
        let folder = cluster.dir.path().join("off site");
        std::fs::create_dir(&folder).unwrap();
        let config = cluster.dir.path().join("quorate.toml");
        let url = format!("file://{}", folder.display()).replace(' ', "%20");
        std::fs::write(&config, format!("[[backup]]\nname = '{MAIN}'\nurl = '{url}'\n{more}\n")).unwrap();
        for node in &mut cluster.nodes {
            node.settings.flags.extend(["--config".to_owned(), config.display().to_string()]);
        }
        cluster.start_all().await;
        Self { cluster, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.folder.display()).replace(' ', "%20")
    }

    fn repository(&self) -> Repository {
        target::open(&self.url(), &BTreeMap::new()).unwrap()
    }

    async fn id(&self) -> ClusterId {
        for node in &self.cluster.nodes {
            if let Some(status) = node.status().await {
                return ClusterId::new(status.cluster_id);
            }
        }
        panic!("no node answers");
    }

    async fn catalogue(&self) -> Catalogue {
        Catalogue::read(&self.repository(), self.id().await).await.unwrap()
    }

    /// How the place stands, as some node tells it, once it is so.
    async fn until(&self, what: &str, mut holds: impl FnMut(&BackupInfo) -> bool) -> BackupInfo {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            for node in &self.cluster.nodes {
                let asked = http().get(node.url("/v1/backups/main")).timeout(Duration::from_secs(2)).send().await;
                let Ok(answer) = asked else { continue };
                let Ok(info) = answer.json::<BackupInfo>().await else { continue };
                if holds(&info) {
                    return info;
                }
                last = Some(info);
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {last:?}");
            sleep(POLL).await;
        }
    }

    pub(crate) async fn archived(&self, index: u64) -> BackupInfo {
        self.until("it is archived", |info| info.archived_index >= Some(index)).await
    }

    /// Which node archives.
    async fn active(&self) -> usize {
        let info = self.until("a node archives", |info| info.active.is_some()).await;
        let id = info.active.unwrap();
        for (at, node) in self.cluster.nodes.iter().enumerate() {
            if node.status().await.is_some_and(|status| status.id == id) {
                return at;
            }
        }
        panic!("node {id} does not answer");
    }

    /// Waits until all that the nodes have is archived, and holds the archive against it and what clients were told.
    async fn check(&self, told: &Told, keys: &Identities) {
        let status = self.cluster.converged().await;
        self.archived(status.applied_index.unwrap()).await;
        let machine = self.replayed(keys).await;
        let applied = machine.applied();
        assert_eq!(applied.revision.get(), status.revision);
        assert_eq!(format!("{:032x}", applied.hash), status.state_hash, "the archive gives another state");
        let view = machine.reader().view();
        for (key, revision) in &told.acknowledged {
            let found = view.get(&Key::new(key.clone()).unwrap()).unwrap();
            let found = found.map(|record| record.meta.mod_revision.get());
            assert_eq!(found, Some(*revision), "{key} was acknowledged, and is not in the archive");
        }
        for key in &told.refused {
            assert!(view.get(&Key::new(key.clone()).unwrap()).unwrap().is_none(), "{key} was refused");
        }
    }

    /// The state that the archive gives, from its oldest whole state on.
    async fn replayed(&self, keys: &Identities) -> StateMachine {
        let (repository, chain) = (self.repository(), self.catalogue().await);
        let full = (*chain.fulls().first().expect("a whole state")).clone();
        let (end, path) = chain.follow(LogPosition::from(full.last));
        assert_eq!(chain.end(), Some(end), "there is a gap");
        let mut machine = loaded(&unpacked(&repository, &full, keys).await);
        for object in path {
            let plain = unpacked(&repository, object, keys).await;
            let mut reader = SegmentReader::new(&plain[..]).unwrap();
            while let Some(entry) = reader.next_entry().unwrap() {
                if machine.applied().position >= Some(entry.position) {
                    continue;
                }
                match entry.content {
                    LogContent::Blank => machine.apply_blank(entry.position),
                    LogContent::Membership(members) => machine.apply_membership(entry.position, members),
                    LogContent::Commands(batch) => {
                        machine.apply(entry.position, &batch.decode().unwrap()).unwrap();
                    }
                }
            }
            if let Some(state) = object.state.map(StateMark::from) {
                let applied = machine.applied();
                assert_eq!((applied.revision, applied.hash), (state.revision, state.hash), "{}", object.name);
            }
        }
        assert_eq!(machine.applied().position, Some(end));
        machine.publish();
        machine
    }
}

async fn unpacked(repository: &Repository, object: &Object, keys: &Identities) -> Vec<u8> {
    let sealed = repository.get(&object.name, usize::MAX).await.unwrap();
    let mut plain = Vec::new();
    let mut reader = OpenReader::new(&sealed[..], is_encrypted(&object.name), keys).unwrap();
    reader.read_to_end(&mut plain).unwrap();
    assert_eq!(plain.len() as u64, object.plain_bytes);
    plain
}

fn loaded(snapshot: &[u8]) -> StateMachine {
    let reader = SnapshotReader::from_stream(snapshot).unwrap();
    let applied = reader.meta().applied();
    let engine = Arc::new(MemoryEngine::new());
    load(&*engine, &applied, reader).unwrap();
    StateMachine::open(engine, StateConfig::default()).unwrap()
}

/// What stands in the place of the folder while the store is away.
struct Away<'a> {
    folder: &'a Path,
    aside: PathBuf,
}

impl<'a> Away<'a> {
    fn begin(folder: &'a Path) -> Self {
        let aside = folder.with_extension("aside");
        std::fs::rename(folder, &aside).unwrap();
        std::fs::write(folder, "not a folder").unwrap();
        Self { folder, aside }
    }

    fn end(self) {
        std::fs::remove_file(self.folder).unwrap();
        std::fs::rename(&self.aside, self.folder).unwrap();
    }
}

async fn alarms(node: &Member) -> Vec<String> {
    let asked = http().get(node.url("/v1/alarms")).timeout(PATIENCE).send().await.unwrap();
    let reply: AlarmsReply = asked.json().await.unwrap();
    reply.alarms.into_iter().map(|alarm| alarm.name).collect()
}

/// Writes one key, answered once it is off-site; the status and the body of the answer.
async fn put_offsite(node: &Member, key: &str, timeout: &str) -> (u16, String) {
    let request = http().put(node.url(&format!("/v1/kv/{key}?durability=offsite")));
    let answer = request.header("quorate-timeout", timeout).body("value").send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_in_the_encrypted_archive_and_small_objects_become_few() {
    let (private, public) = Identities::generate();
    let more = format!("recipients = ['{public}']\nmerge_interval = '2s'\nflush_interval = '200ms'");
    let archived = Archived::start(&more, &[]).await;
    let mut load = Load::start(&archived.cluster.endpoints(), 4);
    load.acknowledged(400).await;
    archived.until("objects are merged", |info| info.archived_index > Some(0) && info.objects > 2).await;
    sleep(Duration::from_secs(12)).await;
    let told = load.stop().await;
    archived.check(&told, &private).await;
    let chain = archived.catalogue().await;
    assert!(chain.objects().all(|object| is_encrypted(&object.name)));
    let manifests = chain.head().unwrap().seq;
    assert!((chain.segments().len() as u64) < manifests / 2, "{} objects", chain.segments().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_whoever_archives_under_load_leaves_no_gap() {
    let mut archived = Archived::start("flush_interval = '100ms'", &[]).await;
    let mut load = Load::start(&archived.cluster.endpoints(), 4);
    for _ in 0..3 {
        load.acknowledged(300).await;
        let at = archived.active().await;
        archived.until("something is archived", |info| info.archived_index > Some(0)).await;
        let killed = archived.cluster.nodes[at].status().await.unwrap().id;
        archived.cluster.nodes[at].kill();
        let before = archived.until("another archives", |info| info.active.is_some_and(|id| id != killed)).await;
        archived.until("it goes on", |info| info.archived_index > before.archived_index).await;
        archived.cluster.nodes[at].start();
        archived.cluster.nodes[at].ready().await;
    }
    let told = load.stop().await;
    archived.check(&told, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_goes_on_after_all_nodes_were_killed() {
    let mut archived = Archived::start("flush_interval = '100ms'", &[]).await;
    let mut all = Told::default();
    for _ in 0..3 {
        let mut load = Load::start(&archived.cluster.endpoints(), 3);
        load.acknowledged(200).await;
        archived.cluster.nodes.iter_mut().for_each(Member::kill);
        all.merge(load.stop().await);
        archived.cluster.start_all().await;
    }
    archived.check(&all, &Identities::default()).await;
    assert_eq!(archived.catalogue().await.fulls().len(), 1, "nothing had to be bridged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_asks_for_it_is_answered_only_once_it_is_off_site() {
    let archived = Archived::start("flush_interval = '1h'", &[]).await;
    archived.until("a node archives", |info| info.active.is_some() && info.full.is_some()).await;
    let mut took = Duration::ZERO;
    for number in 0..30 {
        let (node, key) = (&archived.cluster.nodes[number % 3], format!("safe/{number}"));
        let begun = Instant::now();
        let (status, body) = put_offsite(node, &key, "40s").await;
        took += begun.elapsed();
        assert_eq!(status, 201, "{body}");
        let machine = archived.replayed(&Identities::default()).await;
        let found = machine.reader().view().get(&Key::new(key.clone()).unwrap()).unwrap();
        assert!(found.is_some(), "{key} was told to be off-site");
    }
    println!("{:?} each", took / 30);
    // Nobody waits for the others.
    let asked = http().put(archived.cluster.nodes[0].url("/v1/kv/plain")).body("value").send().await.unwrap();
    assert_eq!(asked.status(), 201);
    let wrong =
        http().put(archived.cluster.nodes[0].url("/v1/kv/x?durability=sure")).body("value").send().await.unwrap();
    assert_eq!(wrong.status(), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_writes_go_on_an_alarm_stands_and_the_truth_is_told() {
    let archived = Archived::start("flush_interval = '100ms'", &[]).await;
    archived.until("it is well", |info| info.active.is_some() && info.troubles.is_empty() && info.full.is_some()).await;
    assert_eq!(alarms(&archived.cluster.nodes[0]).await, Vec::<String>::new());
    let away = Away::begin(&archived.folder);
    let mut load = Load::start(&archived.cluster.endpoints(), 2);
    load.acknowledged(300).await;
    let deadline = Instant::now() + PATIENCE;
    while !alarms(&archived.cluster.nodes[1]).await.contains(&"backup_failing".to_owned()) {
        assert!(Instant::now() < deadline, "no alarm is raised");
        sleep(POLL).await;
    }
    let (status, body) = put_offsite(&archived.cluster.nodes[2], "late", "1s").await;
    let problem: Problem = serde_json::from_str(&body).unwrap();
    assert_eq!((status, problem.code.as_str(), problem.retryable), (504, "not_offsite", false));
    assert_eq!(problem.outcome, OutcomeKind::Applied);
    let read = http().get(archived.cluster.nodes[0].url("/v1/kv/late")).send().await.unwrap();
    assert_eq!(read.status(), 200, "it was done");
    load.acknowledged(300).await;
    away.end();
    let (status, body) = put_offsite(&archived.cluster.nodes[2], "again", "40s").await;
    assert_eq!(status, 201, "{body}");
    while !alarms(&archived.cluster.nodes[1]).await.is_empty() {
        assert!(Instant::now() < deadline + PATIENCE, "the alarm stays");
        sleep(POLL).await;
    }
    let told = load.stop().await;
    archived.check(&told, &Identities::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_is_emptied_is_an_alarm_and_counts_for_nothing_until_it_is_begun_anew() {
    let archived = Archived::start("flush_interval = '1h'", &[]).await;
    archived.until("it is well", |info| info.active.is_some() && info.full.is_some()).await;
    let (status, body) = put_offsite(&archived.cluster.nodes[0], "before", "40s").await;
    assert_eq!(status, 201, "{body}");
    // All of it, the marker included, as somebody does who takes it for another folder.
    std::fs::remove_dir_all(&archived.folder).unwrap();
    std::fs::create_dir(&archived.folder).unwrap();
    for number in 0..5 {
        let key = format!("behind/{number}");
        let (status, body) = put_offsite(&archived.cluster.nodes[number % 3], &key, "20s").await;
        if status == 201 {
            let machine = archived.replayed(&Identities::default()).await;
            let found = machine.reader().view().get(&Key::new(key.clone()).unwrap()).unwrap();
            assert!(found.is_some(), "{key} was told to be off-site");
        } else {
            assert!(body.contains("not_offsite"), "{body}");
        }
    }
    let (status, body) = put_offsite(&archived.cluster.nodes[1], "last", "40s").await;
    assert_eq!(status, 201, "{body}");
    let machine = archived.replayed(&Identities::default()).await;
    for key in ["before", "behind/0", "last"] {
        assert!(machine.reader().view().get(&Key::new(key.to_owned()).unwrap()).unwrap().is_some(), "{key}");
    }
    let told = alarms(&archived.cluster.nodes[2]).await;
    assert!(told.contains(&"backup_lost".to_owned()), "it stands though a new archive was begun: {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_removed_before_it_was_archived_is_bridged_and_told() {
    let archived = Archived::start("flush_interval = '100ms'", &["--snapshot-log-bytes", "64KiB"]).await;
    archived.until("it is well", |info| info.active.is_some() && info.full.is_some()).await;
    let before = archived.archived(1).await.archived_index;
    let away = Away::begin(&archived.folder);
    // Far more than is held for the archive on any node.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut behind = true;
        for node in &archived.cluster.nodes {
            behind &= node.status().await.is_some_and(|status| status.purged_index > before.map(|index| index + 2));
        }
        if behind {
            break;
        }
        assert!(Instant::now() < deadline, "the log is not removed");
        // They take room in the log, and none in the snapshot, whose size makes the next one due.
        let put = http().put(archived.cluster.nodes[0].url("/v1/kv/large")).body(vec![b'='; 64 * 1024]);
        assert!(put.send().await.unwrap().status().is_success());
    }
    away.end();
    let status = archived.cluster.converged().await;
    archived.archived(status.applied_index.unwrap()).await;
    assert!(alarms(&archived.cluster.nodes[0]).await.contains(&"backup_gap".to_owned()));
    let chain = archived.catalogue().await;
    assert!(chain.fulls().len() >= 2, "a whole state bridges it");
}
