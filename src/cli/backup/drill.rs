//! `backup drill`: a restore in earnest, of a point drawn by chance, into a folder that is thrown away.
//!
//! What was restored is started as a cluster of its own, on loopback, and asked over HTTP like any other: its state hash, how
//! many keys there are, some of them one by one, and a write. Guarantees: nothing of the archive is changed but that the
//! proof is added; the cluster that is started has an id of its own and no address of any member, so it disturbs nobody;
//! the folder is gone at the end, whatever the end. Leaves out: reading every object of the archive (`backup verify`).

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng as _;
use serde_json::json;

use super::check::CheckArgs;
use super::room;
use crate::api::ApiConfig;
use crate::backup::catalogue::Catalogue;
use crate::backup::layout::cluster_name;
use crate::backup::plan::{self, Plan, Target, Window};
use crate::backup::proof::{Proof, ProofKind};
use crate::backup::rebuild::Reached;
use crate::backup::repository::Repository;
use crate::backup::seal::Identities;
use crate::backup::segment::StateMark;
use crate::cli::archive;
use crate::cli::connect::Global;
use crate::cli::facts::{self, Fact};
use crate::cli::failure::Exit;
use crate::cli::restore::{PointArgs, fetch, restore_failure};
use crate::cli::{Failure, recover};
use crate::client::{Client, ListOptions, ReadOptions, WriteOptions};
use crate::clock::{self, Instant};
use crate::node::{
    ArchiveConfig, BuildMemory, DrillOrder, Emptied, MemberPolicy, NodeConfig, Origin, Restorable, Restored,
};
use crate::raft::{Engines, LogConfig, RaftConfig, Raise, Timers};
use crate::server::{Server, ServerConfig};
use crate::state::StateConfig;
use crate::types::{ClusterId, Key, KeyRange, LogIndex, Member, WallTime};

/// Keys that are read one by one at most.
const SAMPLE_MAX: u32 = 1_000;

/// How long the node that was restored may take to serve: it loads a snapshot.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Between two looks whether it does.
const SERVE_PAUSE: Duration = Duration::from_millis(20);

/// How long one look, or one request, may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Who it was, in the proof.
const AUTHOR: &str = "quorate backup drill";

/// The node's name, in a cluster of its own.
const NAME: &str = "drill";

/// Restore a point drawn by chance into a folder that is thrown away, start it, read from it
///
/// What a disaster would need, done now: fetch, decrypt, load, replay, compare the state hash, serve. How long each took is
/// shown, and kept in the repository as a proof, from which the nodes tell how long ago that was.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, on a machine that is no member, every week:\n  \
    quorate backup drill s3://bucket/prefix --identity key.txt --every 7d")]
pub(in crate::cli) struct Drill {
    #[command(flatten)]
    check: CheckArgs,
    #[command(flatten)]
    point: PointArgs,
    /// The node that has started this, and says more on standard input; it gets all the room and all the time that it wants
    #[arg(long, value_name = "NAME", hide = true)]
    by_node: Option<String>,
}

/// What came of it.
struct Drilled {
    told: Vec<Fact>,
    reached: Reached,
}

/// How long the parts took.
struct Times {
    fetch: Duration,
    build: Duration,
    serve: Duration,
    read: Duration,
}

impl Drill {
    pub(super) async fn run(mut self, global: &Global) -> Result<(), Failure> {
        if self.by_node.is_some() {
            let order = DrillOrder::read(std::io::stdin().lock()).map_err(Failure::usage)?;
            room::give_way(order.parent)?;
            self.check.obey(order);
        }
        self.check.run(async || self.once(global).await).await
    }

    async fn once(&self, global: &Global) -> Result<(), Failure> {
        let (repository, cluster) = self.check.open().await?;
        let (begun_at, begun) = (clock::wall(), clock::now());
        let catalogue = match archive::read(&repository, cluster).await {
            Ok(catalogue) => catalogue,
            Err(error) => {
                let proof = self.failed(&error, "reading the manifests", begun_at);
                self.keep(&repository, cluster, proof).await;
                return Err(error);
            }
        };
        let target = match self.point.target() {
            Target::Latest => any_point(&catalogue),
            given => given,
        };
        let plan = plan::plan(&catalogue, target).map_err(|error| archive::plan_failure(&error))?;
        let identities = self.check.keys.for_plan(&plan)?;
        let drilled = self.drill(&repository, &plan, &identities).await;
        let proof = match &drilled {
            Ok(told) => Some(self.proof_of(&plan, told, begun_at)),
            Err(error) => self.failed(error, &format!("restoring {}", plan.target), begun_at),
        };
        let manifest = catalogue.head().map(|head| head.seq);
        self.keep(&repository, cluster, proof.map(|proof| Proof { manifest, ..proof })).await;
        let mut told = drilled?.told;
        told.push(("total_ms", json!(millis(begun.elapsed()))));
        facts::tell(global, told)
    }

    /// Keeps a proof beside the archive, if there is one.
    async fn keep(&self, repository: &Repository, cluster: ClusterId, proof: Option<Proof>) {
        if let Some(proof) = proof {
            self.check.keep(repository, cluster, &proof).await;
        }
    }

    /// Who it was.
    fn author(&self) -> &str {
        self.by_node.as_deref().unwrap_or(AUTHOR)
    }

    /// What is kept of a drill that failed: nothing if it says nothing about the archive, but about this machine or the store.
    fn failed(&self, error: &Failure, doing: &str, begun_at: WallTime) -> Option<Proof> {
        matches!(error, Failure::Line(Exit::Integrity, _)).then(|| Proof {
            findings: vec![format!("{doing}: {error}")],
            ..Proof::new(ProofKind::Drill, self.author(), false, begun_at, clock::wall())
        })
    }

    /// What is kept beside the archive of a drill that went well.
    fn proof_of(&self, plan: &Plan, drilled: &Drilled, begun_at: WallTime) -> Proof {
        let Reached { position, revision, hash, .. } = drilled.reached;
        let figures = drilled.told.iter().filter_map(|(name, value)| Some(((*name).to_owned(), value.as_u64()?)));
        let mut proof = Proof {
            reached: Some(position.into()),
            state: Some(StateMark { revision, hash }.into()),
            figures: figures.collect(),
            ..Proof::new(ProofKind::Drill, self.author(), true, begun_at, clock::wall())
        };
        proof.figures.insert("plain_bytes".to_owned(), plan.plain_bytes());
        proof
    }

    async fn drill(&self, repository: &Repository, plan: &Plan, identities: &Identities) -> Result<Drilled, Failure> {
        let folder = self.check.scratch()?;
        let by_node = self.by_node.is_some();
        room::check(folder.path(), plan, by_node)?;
        let memory = if by_node { BuildMemory::SPARING } else { BuildMemory::AMPLE };
        let data_dir = folder.path().join("data");
        let Restorable::Empty(emptied) = Emptied::open(&data_dir).map_err(recover::failure)? else {
            return Err(Failure::usage("the folder to work in is in use"));
        };
        let begun = clock::now();
        let staged = fetch(repository, plan, identities, &emptied.stage()).await?;
        let fetch = begun.elapsed();
        let member = Member { name: NAME.to_owned(), peer_addr: "127.0.0.1:1".to_owned(), ..Member::default() };
        let raise = Raise::To(plan.revision_unseen(clock::wall()));
        let restored = emptied.restore_within(memory, staged, plan.target, member.clone(), raise, |_| {}).await;
        let restored = restored.map_err(restore_failure)?;
        let build = begun.elapsed() - fetch;
        let server = Server::open(config(data_dir, member, by_node)).await;
        let server =
            server.map_err(|error| Failure::unavailable(format!("what was restored can't be started: {error}")))?;
        let asked = ask(&server, &restored).await;
        server.stop().await;
        let (served_at, read_keys) = asked?;
        let serve = served_at - begun - fetch - build;
        let times = Times { fetch, build, serve, read: served_at.elapsed() };
        Ok(Drilled { told: facts_of(plan, &restored, read_keys, &times), reached: restored.reached })
    }
}

/// A point of the archive, drawn by chance: each entry that can be restored is as likely.
fn any_point(catalogue: &Catalogue) -> Target {
    let windows = plan::windows(catalogue);
    // The numbers of manifests are anybody's, so they need not fit.
    let size = |window: &Window| window.to.index.get().saturating_sub(window.from.index.get()).saturating_add(1);
    let mut drawn = match windows.iter().map(size).fold(0, u64::saturating_add) {
        // Then the plan tells why.
        0 => 0,
        all => rand::rng().random_range(0..all),
    };
    for window in &windows {
        if drawn < size(window) {
            return Target::Index(LogIndex::new(window.from.index.get() + drawn));
        }
        drawn -= size(window);
    }
    Target::Latest
}

/// A member as `serve` would run it, on any free ports of loopback; `sparing` of memory beside a node.
fn config(data_dir: PathBuf, member: Member, sparing: bool) -> ServerConfig {
    const MIB: usize = 1024 * 1024;
    let (engine_cache_bytes, state, log) = match sparing {
        true => {
            (32 * MIB, StateConfig::new(32 * MIB, 8 * MIB), LogConfig { cache_bytes: 8 << 20, ..LogConfig::default() })
        }
        false => (128 * MIB, StateConfig::default(), LogConfig::default()),
    };
    let raft = RaftConfig {
        data_dir: data_dir.clone(),
        timers: Timers::default(),
        log,
        state,
        engine_cache_bytes,
        snapshot_log_bytes: u64::MAX,
        catchup_bytes_per_second: u64::MAX,
        engines: Engines::Sled,
    };
    let (origin, policy, archive) = (Origin::Directory, MemberPolicy::default(), ArchiveConfig::default());
    let node = NodeConfig { data_dir, member, origin, policy, archive, raft };
    let api = ApiConfig { local_hosts_only: true, ..ApiConfig::default() };
    ServerConfig { node, client_addr: "127.0.0.1:0".to_owned(), peer_addr: "127.0.0.1:0".to_owned(), api }
}

/// Starts the node and asks it; tells when it served, and how many keys were read one by one.
async fn ask(server: &Server, restored: &Restored) -> Result<(Instant, usize), Failure> {
    let wrong = |what: String| Failure::integrity(format!("what was restored {what}"));
    // Its state was compared before it got here, so that is the ports, the disk or the pace of this machine.
    let here =
        |what: String| Failure::unavailable(format!("what was restored {what}; that may be due to this machine"));
    server.start().await.map_err(|error| here(format!("can't be started: {error}")))?;
    let deadline = clock::now() + SERVE_TIMEOUT;
    while let Err(why) = server.node().ready(clock::now() + REQUEST_TIMEOUT).await {
        if clock::now() > deadline {
            return Err(here(format!("does not serve: {why}")));
        }
        tokio::time::sleep(SERVE_PAUSE).await;
    }
    let served_at = clock::now();
    let client =
        Client::builder().endpoints([format!("http://{}", server.client_addr())]).timeout(REQUEST_TIMEOUT).build()?;
    let status = client.status().await?.value;
    let expected = format!("{:032x}", restored.reached.hash);
    if status.state_hash != expected {
        return Err(wrong(format!("serves a state of hash {}, not {expected}", status.state_hash)));
    }
    let options = ListOptions { page_records: Some(SAMPLE_MAX), ..ListOptions::default() };
    let page = client.list_page(&KeyRange::all(), None, options).await?.value;
    if page.count != restored.made.keys {
        return Err(wrong(format!("lists {} keys, not {}", page.count, restored.made.keys)));
    }
    for record in &page.items {
        let key = Key::new(record.key.clone()).map_err(|error| wrong(format!("lists an invalid key: {error}")))?;
        let found = client.get(&key, ReadOptions::default()).await?.value;
        if found.is_none_or(|found| (found.value, found.mod_revision) != (record.value.clone(), record.mod_revision)) {
            return Err(wrong(format!("gives another value of {key} than it lists")));
        }
    }
    let probe = Key::new("quorate-drill").expect("it is a valid key");
    let written = client.put(&probe, Bytes::from_static(b"drill"), WriteOptions::default()).await?.value;
    if written.mod_revision <= restored.made.revision.get() {
        return Err(wrong(format!("gives revision {} a second time", written.mod_revision)));
    }
    Ok((served_at, page.items.len()))
}

fn facts_of(plan: &Plan, restored: &Restored, read_keys: usize, times: &Times) -> Vec<Fact> {
    let reached = &restored.reached;
    vec![
        ("cluster", json!(cluster_name(plan.cluster))),
        ("target", json!(plan.target.to_string())),
        ("full", json!(plan.full.name)),
        ("log_objects", json!(plan.segments.len())),
        ("bytes", json!(plan.bytes())),
        ("index", json!(reached.position.index.get())),
        ("revision", json!(reached.revision.get())),
        ("state_hash", json!(format!("{:032x}", reached.hash))),
        ("states_compared", json!(reached.compared)),
        ("keys", json!(restored.made.keys)),
        ("keys_read", json!(read_keys)),
        ("fetch_ms", json!(millis(times.fetch))),
        ("build_ms", json!(millis(times.build))),
        ("serve_ms", json!(millis(times.serve))),
        ("read_ms", json!(millis(times.read))),
    ]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
