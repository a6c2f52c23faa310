//! What was fetched becomes a member that serves; what is not finished is never started, and goes on.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::backup::plan::{self, Plan};
use crate::backup::repository::Repository;
use crate::backup::seal::{Identities, Recipients};
use crate::backup::stage::Stage;
use crate::backup::tests::history::{CLUSTER, Does, History, put, repository};
use crate::clock;
use crate::node::{
    ArchiveConfig, Consistency, MemberPolicy, Node, NodeConfig, Origin, ReadError, ReadOptions, StartError,
};
use crate::raft::{Engines, RaftConfig, Timers};
use crate::state::Txn;
use crate::telemetry::Metrics;
use crate::transport::memory::Network;
use crate::types::{Revision, WallTime};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a member is restored, and from what.
struct Scene {
    repository: Repository,
    history: History,
    plan: Plan,
    dir: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let one = |entry: u8| Does::Commands(vec![(10, Txn { success: vec![put(entry, 7)], ..Txn::default() })]);
        let mut entries: Vec<Does> = (0..9).map(one).collect();
        entries.extend([Does::Membership, Does::Blank, one(9)]);
        let history = History::new(dir.path(), &entries, &[4]);
        let repository = repository();
        let catalogue = history.archive(&repository, &[(1, 6, true), (7, 12, true)], &Recipients::default()).await;
        let plan = plan::plan(&catalogue, Target::Latest).unwrap();
        Self { repository, history, plan, dir }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn emptied(&self) -> Emptied {
        match Emptied::open(&self.data_dir()).unwrap() {
            Restorable::Empty(emptied) => emptied,
            Restorable::Unfinished(_) => panic!("it is to be empty"),
        }
    }

    async fn stage(&self, emptied: &Emptied) -> Staged {
        let stage = Stage::open(&emptied.stage()).unwrap();
        stage.fill(&self.repository, &self.plan, &Identities::default(), |_| ()).await.unwrap()
    }

    async fn restore(&self) -> Restored {
        let emptied = self.emptied();
        let staged = self.stage(&emptied).await;
        let raise = Raise::To(self.plan.revision_unseen(WallTime::ZERO));
        emptied.restore(staged, self.plan.target, member(), raise, |_| ()).await.unwrap()
    }

    fn config(&self) -> NodeConfig {
        NodeConfig {
            data_dir: self.data_dir(),
            member: member(),
            origin: Origin::FirstMembers([("n1".to_owned(), "n1:1".to_owned())].into()),
            policy: MemberPolicy::default(),
            archive: ArchiveConfig::default(),
            raft: RaftConfig {
                data_dir: self.data_dir(),
                timers: Timers::default(),
                log: LogConfig::default(),
                state: StateConfig::default(),
                engine_cache_bytes: 1 << 20,
                snapshot_log_bytes: 1 << 20,
                catchup_bytes_per_second: 50 << 20,
                engines: Engines::default(),
            },
        }
    }

    /// What `serve` says where it must not start; it is asked to form a cluster, which an empty directory would do.
    fn refusal(&self) -> String {
        match Node::open(&self.config(), Arc::new(Network::new().endpoint("n1"))) {
            Err(StartError::Directory(error)) => error.to_string(),
            other => panic!("it was not refused: {:?}", other.map(drop)),
        }
    }

    /// The member starts by itself, and has all and only what was archived.
    async fn serves(&self) {
        let node = Node::open(&self.config(), Arc::new(Network::new().endpoint("n1"))).unwrap();
        node.start(&self.config(), &Metrics::new()).await.unwrap();
        let deadline = clock::now() + PATIENCE;
        while node.ready(clock::now() + PATIENCE).await.is_err() {
            assert!(clock::now() < deadline, "it never served");
        }
        let unseen = self.plan.revision_unseen(WallTime::ZERO);
        assert_eq!(node.revision(), unseen);
        let (_, hash) = self.history.state_at(Target::Latest).unwrap();
        let status = node.status();
        assert_eq!(status.state_hash, format!("{hash:032x}"));
        assert_ne!(status.cluster_id, CLUSTER);
        let read = |at_revision| ReadOptions {
            consistency: Consistency::Linearizable,
            min_revision: None,
            at_revision,
            local_only: false,
            deadline,
        };
        let view = node.read(read(None)).await.unwrap();
        assert_eq!(view.view.count(&crate::types::KeyRange::all()).unwrap(), 10);
        // History below is given up, as clients may have seen other things there.
        let compacted = node.read(read(Some(Revision::new(5)))).await.map(drop).unwrap_err();
        assert!(matches!(compacted, ReadError::Compacted { .. }), "{compacted}");
        node.stop().await;
        let mut names = exchange::names(&self.data_dir()).unwrap();
        names.sort();
        assert_eq!(names, ["LOCK", "identity", "log", "snapshots", "state"]);
        // What was built is what is served from: another one would have another number.
        assert_eq!(exchange::names(&self.data_dir().join("state")).unwrap(), ["1"]);
        let [snapshot] = &exchange::names(&self.data_dir().join("snapshots")).unwrap()[..] else {
            panic!("one snapshot, and nothing that is left of making it")
        };
        assert!(snapshot.ends_with(".snapshot"), "{snapshot}");
    }
}

fn member() -> Member {
    Member { name: "n1".into(), peer_addr: "n1:1".into(), client_url: "http://n1:2".into(), ..Member::default() }
}

#[tokio::test]
async fn what_was_archived_is_served_by_a_new_cluster() {
    let scene = Scene::new().await;
    let restored = scene.restore().await;
    assert_eq!((restored.made.keys, restored.reached.position), (10, scene.history.position(12)));
    assert_eq!(restored.made.position.index.get(), 13);
    assert_ne!(restored.founder.cluster, CLUSTER);
    scene.serves().await;
    // And it is not overwritten.
    let refused = Emptied::open(&scene.data_dir()).map(drop).unwrap_err();
    assert!(matches!(refused, RefoundingError::NotEmpty(_)), "{refused}");
}

/// It is only a checkpoint, as on every node.
#[tokio::test]
async fn without_the_state_that_was_built_the_snapshot_is_enough() {
    let scene = Scene::new().await;
    scene.restore().await;
    fs::remove_dir_all(scene.data_dir().join("state/1")).unwrap();
    // The next one has this number: a start begins an empty one, which the log does not continue.
    fs::create_dir(scene.data_dir().join("state/0")).unwrap();
    scene.serves().await;
}

#[tokio::test]
async fn a_restore_that_stops_anywhere_is_never_started_and_goes_on() {
    // While it was fetching.
    let scene = Scene::new().await;
    let emptied = scene.emptied();
    Stage::open(&emptied.stage()).unwrap();
    fs::write(emptied.stage().join("half.log.part"), "half").unwrap();
    drop(emptied);
    let refused = scene.refusal();
    assert!(
        refused.contains("holds a restore that was not finished; run the same 'quorate restore' again"),
        "{refused}"
    );
    scene.restore().await;
    scene.serves().await;

    // While it was applying.
    let scene = Scene::new().await;
    let emptied = scene.emptied();
    scene.stage(&emptied).await;
    let place = exchange::begin(&scene.data_dir()).unwrap().path();
    fs::create_dir_all(place.join("state/1")).unwrap();
    fs::write(place.join("identity"), "not yet").unwrap();
    drop(emptied);
    assert!(scene.refusal().contains("was not finished"));
    scene.restore().await;
    scene.serves().await;

    // At each step of taking its place.
    for stop in 0.. {
        let scene = Scene::new().await;
        let emptied = scene.emptied();
        let staged = scene.stage(&emptied).await;
        let founder = Founder { cluster: another_cluster(CLUSTER), id: FIRST_ID, member: member() };
        let preparation = exchange::begin(&scene.data_dir()).unwrap();
        let raise = Raise::To(scene.plan.revision_unseen(WallTime::ZERO));
        make(BuildMemory::AMPLE, staged, Target::Latest, &founder, raise, &preparation.path(), |_| ()).await.unwrap();
        let identity = Identity { cluster: founder.cluster, id: FIRST_ID, name: "n1".into(), has_log: true };
        write_identity(&preparation.path(), &identity).unwrap();
        let exchange = preparation.complete().unwrap();
        let mut is_over = false;
        if stop > 0 {
            remove_stage(&scene.data_dir()).unwrap();
            for _ in 1..stop {
                is_over = !exchange.advance().unwrap();
            }
        }
        drop(emptied);
        if is_over {
            break;
        }
        match Emptied::open(&scene.data_dir()) {
            Ok(Restorable::Unfinished(unfinished)) => {
                drop(unfinished);
                assert!(scene.refusal().contains("or the same 'quorate restore'"));
                let Ok(Restorable::Unfinished(unfinished)) = Emptied::open(&scene.data_dir()) else {
                    panic!("it was not changed")
                };
                assert_eq!(unfinished.finish().unwrap().founder.cluster, founder.cluster);
            }
            Ok(Restorable::Empty(_)) => panic!("after step {stop} nobody knows of it"),
            // The last step was done.
            Err(error) => assert!(matches!(error, RefoundingError::NotEmpty(_)), "{error}"),
        }
        scene.serves().await;
    }
}

#[tokio::test]
async fn only_the_same_restore_goes_on_with_what_was_made() {
    for note in [Some(Request::new(CLUSTER, Target::Latest, "n1")), None] {
        let scene = Scene::new().await;
        drop(scene.emptied());
        let preparation = exchange::begin(&scene.data_dir()).unwrap();
        if let Some(note) = &note {
            preparation.write_note(&note.encode()).unwrap();
        }
        preparation.complete().unwrap();
        let Ok(Restorable::Unfinished(unfinished)) = Emptied::open(&scene.data_dir()) else {
            panic!("all that is new was complete")
        };
        assert_eq!(unfinished.is_restore_of(CLUSTER, Target::Latest, "n1").is_ok(), note.is_some());
        // And a recovery does not finish what a restore began.
        match unfinished.is_recovery() {
            Ok(()) => assert!(note.is_none()),
            Err(refused) => {
                let refused = refused.to_string();
                assert!(note.is_some() && refused.contains("as n1 ('quorate restore')"), "{refused}");
            }
        }
        let index = Target::Index(crate::types::LogIndex::new(3));
        let other = ClusterId::new(CLUSTER.get() + 1);
        for (cluster, target, name) in
            [(other, Target::Latest, "n1"), (CLUSTER, index, "n1"), (CLUSTER, Target::Latest, "n2")]
        {
            let refused = unfinished.is_restore_of(cluster, target, name).unwrap_err().to_string();
            let said = if note.is_some() { "to the end of the archive as n1" } else { "a recovery" };
            assert!(refused.contains(said) && refused.contains("--data-dir"), "{refused}");
        }
    }
}

#[tokio::test]
async fn the_root_of_a_new_file_system_is_empty() {
    let scene = Scene::new().await;
    fs::create_dir_all(scene.data_dir().join("lost+found")).unwrap();
    drop(scene.emptied());
    fs::write(scene.data_dir().join("notes.txt"), "mine").unwrap();
    let refused = Emptied::open(&scene.data_dir()).map(drop).unwrap_err();
    assert!(matches!(refused, RefoundingError::NotEmpty(_)), "{refused}");
}

#[tokio::test]
async fn a_restore_that_fails_leaves_nothing_that_could_be_started() {
    let scene = Scene::new().await;
    let emptied = scene.emptied();
    let staged = scene.stage(&emptied).await;
    let log = exchange::names(&emptied.stage()).unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap();
    let path = emptied.stage().join(log);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = emptied.restore(staged, Target::Latest, member(), Raise::By(0), |_| ()).await.unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(scene.refusal().contains("was not finished"));
    // The damaged file is found and fetched again.
    scene.restore().await;
    scene.serves().await;
}

#[tokio::test]
async fn a_directory_that_holds_anything_is_left_alone() {
    let scene = Scene::new().await;
    fs::create_dir(scene.data_dir()).unwrap();
    fs::write(scene.data_dir().join("precious"), "data").unwrap();
    let refused = Emptied::open(&scene.data_dir()).map(drop).unwrap_err();
    assert!(matches!(&refused, RefoundingError::NotEmpty(path) if *path == scene.data_dir()), "{refused}");
    assert_eq!(fs::read_to_string(scene.data_dir().join("precious")).unwrap(), "data");
}
