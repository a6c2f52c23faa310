//! [`RaftNode`]: what the rest of the house sees of consensus.
//!
//! Guarantees: opening follows the start-up path (log, snapshots, state, replay) and fails with a reason rather than serving
//! anything doubtful; every call is bounded by a deadline; stopping ends every task it started. Leaves out: clients,
//! identity and the forming of a cluster (`node`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{InitializeError, RaftError};
use openraft::{Instant as _, RaftMetrics, ServerState};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address_book::AddressBook;
use super::config::{RaftConfig, Timers};
use super::engine_home::EngineHome;
use super::fatal::Fatal;
use super::forgetting::{Acknowledged, Forgetful};
use super::leader_transfer::{LeaderMover, MoveError, TransferMetrics};
use super::leadership::{Leader, Leadership, LeadershipChanges};
use super::log_store::{LogError, LogStore};
use super::maintenance::Maintenance;
use super::membership_change::{self, ChangeError, Roster};
use super::metrics::{ProposerMetrics, RaftCollector, StateMetrics};
use super::network::{NetworkFactory, Peers, Quorum};
use super::packing::{Packer, PackingMetrics, Unpacker};
use super::proposer::{ProposeError, Proposer};
use super::read_barrier::{BarrierError, ReadBarrier, ReadIndexSource};
use super::recovery::{RecoveryError, recover};
use super::server::PeerServer;
use super::snapshot_store::{SnapshotHandle, SnapshotStore, SnapshotStoreError};
use super::snapshot_transfer::{LogHolds, Outgoing, Receiver, TransferMetrics as SnapshotTransferMetrics};
use super::state_store::{AppliedTo, StateAccess, StateStore};
use super::types::TypeConfig;
use crate::clock::{self, Instant};
use crate::host;
use crate::state::{Command, Outcome, StateReader, Targets};
use crate::telemetry::Metrics;
use crate::transport::{PeerHandler, Transport};
use crate::types::{ClusterId, LogPosition, Member, NodeId, Term};
use crate::watch;

/// Why consensus can't start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log can't be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshot directory can't be opened.
    #[error(transparent)]
    Snapshots(#[from] SnapshotStoreError),
    /// The state can't be opened or rebuilt.
    #[error(transparent)]
    State(#[from] RecoveryError),
    /// Something else of the operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// openraft refused what it found.
    #[error("consensus can't start: {0}")]
    Raft(String),
}

/// Who this node is and how it reaches others.
pub struct RaftIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub me: NodeId,
    /// The data centre it stands in, until the membership tells; empty if none was named.
    pub zone: String,
    /// The way to other members.
    pub transport: Arc<dyn Transport>,
}

/// Raft's state at one moment.
#[derive(Debug, Clone)]
pub struct RaftStatus {
    /// openraft's own figures.
    metrics: RaftMetrics<TypeConfig>,
}

/// Consensus and the replicated state on this node. A cheap handle.
#[derive(Clone)]
pub struct RaftNode(Arc<Inner>);

struct Inner {
    raft: openraft::Raft<TypeConfig, StateStore>,
    me: NodeId,
    log: LogStore,
    state: StateAccess,
    proposer: Proposer,
    barrier: ReadBarrier,
    leadership: Leadership,
    mover: LeaderMover,
    server: Arc<PeerServer>,
    acknowledged: Arc<Acknowledged>,
    fatal: Fatal,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl RaftNode {
    /// Opens log, snapshots and state, replays what is committed, and starts. The log must have been created before
    /// ([`LogStore::open`]): one that is not there held votes that are lost.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        config: &RaftConfig,
        identity: RaftIdentity,
        metrics: &Metrics,
        fatal: Fatal,
    ) -> Result<Self, OpenError> {
        let (cluster, me) = (identity.cluster, identity.me);
        let mut log = open_log(config, metrics).await?;
        let (store, state) = open_state(config, cluster, &mut log, metrics, &fatal).await?;

        let (holds, moved) = (LogHolds::default(), metrics.register(SnapshotTransferMetrics::register));
        let network = network(config, identity, &holds, &moved, metrics);
        let (peers, book, refusals) = (network.peers.clone(), network.peers.book.clone(), network.refusals.clone());
        let acknowledged = network.acknowledged.clone();
        let raft = start_openraft(config, network, log.clone(), store).await?;

        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let leadership = Leadership::new(me, raft.server_metrics());
        let proposer_metrics = metrics.register(ProposerMetrics::register);
        let (timers, pace) = (config.timers, (config.timers, log.metrics().flush_time.clone()));
        let (proposer, proposer_loop) =
            Proposer::new(raft.clone(), peers.clone(), leadership.clone(), pace, proposer_metrics, shutdown.clone());
        let source = ReadIndexSource { raft: raft.clone(), peers, leadership: leadership.clone(), timers };
        let (barrier, barrier_loop) = ReadBarrier::new(source.clone(), state.applied(), shutdown.clone());
        let server = Arc::new(PeerServer {
            cluster,
            me,
            raft: raft.clone(),
            proposer: proposer.clone(),
            read_index: source,
            state: state.clone(),
            receiver: receiver(&state, &log, moved),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            leadership: leadership.clone(),
            forwarded: forwarded(),
            refusals,
            unpacker: Unpacker::default(),
        });
        collect_figures(&raft, &state, &log, metrics);
        let maintenance = Maintenance {
            raft: raft.clone(),
            log: log.clone(),
            state: state.clone(),
            barrier: barrier.clone(),
            me,
            snapshot_log_bytes: config.snapshot_log_bytes,
            holds,
            receiver: server.receiver.clone(),
            fatal: fatal.clone(),
        };
        tasks.spawn(proposer_loop.run());
        tasks.spawn(barrier_loop.run());
        maintenance.spawn(&tasks, &shutdown);
        watch_leadership(&leadership, &raft, timers, &book, &tasks, &shutdown);
        tasks.close();
        Ok(Self(Arc::new(Inner {
            mover: LeaderMover::new(raft.clone(), leadership.clone(), metrics.register(TransferMetrics::register)),
            raft,
            me,
            log,
            state,
            proposer,
            barrier,
            leadership,
            server,
            acknowledged,
            fatal,
            shutdown,
            tasks,
        })))
    }

    /// Answers other members' calls.
    #[must_use]
    pub fn handler(&self) -> Arc<dyn PeerHandler> {
        self.0.server.clone()
    }

    /// Whether this node has ever been part of a formed cluster: its log or its vote is not empty.
    ///
    /// # Errors
    /// Raft has stopped.
    pub async fn is_initialized(&self) -> Result<bool, OpenError> {
        self.0.raft.is_initialized().await.map_err(|error| OpenError::Raft(error.to_string()))
    }

    /// Waits until [`Self::is_initialized`] holds, or Raft has stopped.
    pub async fn wait_initialized(&self) {
        let mut metrics = self.0.raft.metrics();
        // Looked up in the metrics, as openraft decides it: to ask openraft would have it send new metrics, and so on without
        // end.
        let is_so = |metrics: &RaftMetrics<TypeConfig>| {
            let touched = metrics.last_log_index.is_some() || metrics.vote.leader_id.term != Term::default();
            touched || metrics.running_state.is_err()
        };
        while !is_so(&metrics.borrow_and_update()) && metrics.changed().await.is_ok() {}
    }

    /// Writes the first membership of a new cluster. Done before, it changes nothing.
    ///
    /// # Errors
    /// Raft has stopped, or this node is not among the members.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Result<(), OpenError> {
        match self.0.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(OpenError::Raft(error.to_string())),
        }
    }

    /// Proposes one command and waits for its outcome, no longer than to `deadline`. A follower forwards it, one hop.
    ///
    /// # Errors
    /// [`ProposeError`]; only [`ProposeError::Unknown`] leaves open whether it was or will be applied.
    pub async fn propose(&self, command: Command, deadline: Instant) -> Result<Outcome, ProposeError> {
        let mut outcomes = self.0.proposer.submit(vec![command], true, deadline).await?;
        outcomes.pop().ok_or_else(|| ProposeError::Unknown("the outcome is missing".into()))
    }

    /// Returns once everything acknowledged anywhere before the call is applied here.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), BarrierError> {
        self.0.barrier.wait(deadline).await
    }

    /// The local data is no older than this, proven on this node's clock alone; `None` if nothing is proven yet.
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        self.0.barrier.freshness().staleness()
    }

    /// Reads of the local state.
    #[must_use]
    pub fn reader(&self) -> Arc<StateReader> {
        self.0.state.reader()
    }

    /// News of what is applied here.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedTo> {
        self.0.state.applied()
    }

    /// News of the places for backups that are declared, as of what is applied here.
    #[must_use]
    pub fn targets(&self) -> watch::Receiver<Targets> {
        self.0.state.targets()
    }

    /// Who leads, as this node knows it.
    #[must_use]
    pub fn leader(&self) -> Leader {
        self.0.leadership.leader()
    }

    /// As [`Self::leader`], but this node counts as none if it has lost its quorum, and so does another member that was
    /// silent for longer than `silence`.
    #[must_use]
    pub fn leader_heard(&self, silence: Duration) -> Leader {
        self.0.leadership.leader_heard(silence)
    }

    /// The current term, no older than what [`Self::leader`] tells; that of [`Self::status`] may be, for a moment.
    #[must_use]
    pub fn term(&self) -> Term {
        self.0.leadership.term()
    }

    /// Whether this node leads, and has a quorum as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.0.leadership.leads()
    }

    /// Has the voter `to` take over from this node, which leads, and waits until a leader is elected, no longer than to
    /// `deadline`. Returns who it is: another one, if `to` could not win. Meanwhile nothing is written, so find out
    /// before that `to` is there and has the log.
    ///
    /// # Errors
    /// [`MoveError`]; only [`MoveError::Unknown`] leaves open who leads.
    pub async fn transfer_leadership(&self, to: NodeId, deadline: Instant) -> Result<NodeId, MoveError> {
        self.0.mover.transfer(to, deadline).await
    }

    /// The members, as the newest entry has them that this node has.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.0.leadership.roster()
    }

    /// The members, as the newest entry has them that this node knows to be committed.
    #[must_use]
    pub fn committed_roster(&self) -> Roster {
        self.0.leadership.committed_roster()
    }

    /// Awaits changes of the leadership and of [`Self::roster`] from now on.
    #[must_use]
    pub fn changes(&self) -> LeadershipChanges {
        self.0.leadership.subscribe()
    }

    /// Makes `members` the members and `voters` the voters, if this node leads and the members still are those of the
    /// entry at `seen`. Returns when that is committed, no later than at `deadline`.
    ///
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::Unknown`] leaves open whether it comes about.
    pub async fn change_members(
        &self,
        seen: Option<LogPosition>,
        members: BTreeMap<NodeId, Member>,
        voters: BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        membership_change::change(&self.0.raft, &self.0.tasks, seen, members, voters, deadline).await
    }

    /// Writes an entry without content and returns its index once it is committed: a number that nobody else in this
    /// cluster ever gets.
    ///
    /// # Errors
    /// [`ChangeError`], all but `Unknown`.
    pub async fn fresh_index(&self, deadline: Instant) -> Result<u64, ChangeError> {
        membership_change::fresh_index(&self.0.raft, deadline).await
    }

    /// From now on this node does not ask for votes any more.
    pub fn stop_campaigning(&self) {
        self.0.raft.runtime_config().elect(false);
    }

    /// Returns once no command that another member has forwarded is worked on here.
    pub async fn forwarded_done(&self) {
        self.0.server.forwarded.wait().await;
    }

    /// That another member refuses this node's messages, which one, and why; `None` if none did of late.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.0.server.refusals.lately()
    }

    /// Members that were found to have forgotten what they had acknowledged to this node as leader, since it was started. Those
    /// that are no members any more are left out.
    #[must_use]
    pub fn forgetful(&self) -> Vec<Forgetful> {
        let forgetful = self.0.acknowledged.forgetful();
        if forgetful.is_empty() {
            return forgetful;
        }
        let members = self.roster().members;
        forgetful.into_iter().filter(|one| members.contains_key(&one.id)).collect()
    }

    /// Raft's state at this moment.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        RaftStatus { metrics: self.0.raft.metrics().borrow_watched().clone() }
    }

    /// Bytes of the Raft log on disk.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.0.log.size_on_disk()
    }

    /// How many times the log was brought to disk in this life, and how long that took together.
    #[must_use]
    pub fn syncs(&self) -> (u64, Duration) {
        self.0.log.syncs()
    }

    /// Bytes of the snapshot files on disk.
    #[must_use]
    pub fn snapshot_bytes(&self) -> u64 {
        self.0.state.snapshots.size_on_disk()
    }

    /// A snapshot that holds at least everything applied before the call.
    ///
    /// # Errors
    /// It was not built by `deadline`, or this node stops.
    pub async fn snapshot(&self, deadline: Instant) -> Result<SnapshotHandle, BarrierError> {
        let wanted = self.0.state.applied().borrow().position;
        self.snapshot_of(wanted, deadline).await
    }

    /// A snapshot that reaches this position at least.
    async fn snapshot_of(
        &self,
        wanted: Option<LogPosition>,
        deadline: Instant,
    ) -> Result<SnapshotHandle, BarrierError> {
        let covers = |file: &SnapshotHandle| file.meta().position >= wanted;
        let mut metrics = self.0.raft.metrics();
        let mut asked_at: Option<Instant> = None;
        loop {
            metrics.borrow_and_update();
            if let Some(newest) = self.0.state.snapshots.newest().filter(covers) {
                return Ok(newest);
            }
            // Asking again while one is being built changes nothing; one that was begun earlier may not reach far enough.
            // Not at every news: the question is news by itself, and would be asked again at once.
            if asked_at.is_none_or(|asked| asked + SNAPSHOT_POLL <= clock::now()) {
                self.0.raft.trigger().snapshot().await.map_err(|_| BarrierError::Stopping)?;
                asked_at = Some(clock::now());
            }
            match tokio::time::timeout_at(deadline.min(clock::now() + SNAPSHOT_POLL), metrics.changed()).await {
                Ok(Err(_)) => return Err(BarrierError::Stopping),
                Ok(Ok(())) | Err(_) if clock::now() >= deadline => return Err(BarrierError::Lagging),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }

    /// The failure after which this process must end.
    #[must_use]
    pub fn fatal(&self) -> &Fatal {
        &self.0.fatal
    }

    /// Stops Raft and every task of it. What was acknowledged is on disk already.
    pub async fn stop(&self) {
        self.0.shutdown.cancel();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        self.0.tasks.wait().await;
        // Only the committed mark may wait for the disk still; without it the next start replays less by itself.
        if let Err(error) = self.0.log.sync().await {
            tracing::warn!(%error, "the log was not synced at the end");
        }
    }

    /// The log store.
    #[cfg(test)]
    pub(super) fn log(&self) -> &LogStore {
        &self.0.log
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.0.me
    }
}

/// Opens the log, which must have been created before.
async fn open_log(config: &RaftConfig, metrics: &Metrics) -> Result<LogStore, OpenError> {
    let (dir, log_config) = (config.data_dir.join("log"), config.log.clone());
    let opening = host::spawn_blocking(move || LogStore::open_existing(&dir, log_config));
    let log = opening.await.map_err(io::Error::other)??;
    log.mark_end();
    metrics.register(|registry| log.register_metrics(registry));
    Ok(log)
}

/// Opens the state, or rebuilds it from the newest snapshot and the log.
async fn open_state(
    config: &RaftConfig,
    cluster: ClusterId,
    log: &mut LogStore,
    metrics: &Metrics,
    fatal: &Fatal,
) -> Result<(StateStore, StateAccess), OpenError> {
    let snapshots = Arc::new(SnapshotStore::open(&config.data_dir.join("snapshots"), cluster)?);
    let home = EngineHome::new(&config.data_dir.join("state"), config.engine_cache_bytes).with(config.engines.clone());
    let recovered = recover(home.clone(), &snapshots, log, config.state.clone()).await?;
    let state_metrics = metrics.register(StateMetrics::register);
    Ok(StateStore::new(recovered, home, config.state.clone(), snapshots, state_metrics, fatal.clone())?)
}

/// Has the figures told that are looked up when somebody asks.
fn collect_figures(
    raft: &openraft::Raft<TypeConfig, StateStore>,
    state: &StateAccess,
    log: &LogStore,
    metrics: &Metrics,
) {
    let collector = RaftCollector { metrics: raft.metrics(), state: state.clone(), log: log.clone() };
    metrics.register(|registry| registry.register_collector(Box::new(collector)));
}

/// The ways to other members, snapshots included.
fn network(
    config: &RaftConfig,
    identity: RaftIdentity,
    holds: &LogHolds,
    moved: &SnapshotTransferMetrics,
    metrics: &Metrics,
) -> NetworkFactory {
    let RaftIdentity { cluster, me, zone, transport } = identity;
    let packer = Packer::new(metrics.register(PackingMetrics::register));
    let outgoing = Arc::new(Outgoing::new(config.catchup_bytes_per_second, holds.clone(), moved.clone()));
    let pipelined = config.timers.far() && transport.has_pipes();
    let quorum = Quorum::new(config.timers.election_max);
    let peers = Peers { transport, cluster, me, book: AddressBook::default(), zone: zone.into(), packer };
    let acknowledged = Arc::new(metrics.register(Acknowledged::register));
    NetworkFactory { peers, outgoing, pipelined, quorum, refusals: Arc::default(), acknowledged }
}

async fn start_openraft(
    config: &RaftConfig,
    network: NetworkFactory,
    log: LogStore,
    store: StateStore,
) -> Result<openraft::Raft<TypeConfig, StateStore>, OpenError> {
    let raft_config = Arc::new(config.openraft().map_err(|error| OpenError::Raft(error.to_string()))?);
    let quorum = network.quorum.clone();
    let raft = openraft::Raft::new(network.peers.me, raft_config, network, log, store);
    let raft = raft.await.map_err(|error| OpenError::Raft(error.to_string()))?;
    quorum.watch(raft.metrics());
    Ok(raft)
}

/// Tells the log who leads, finds out whether this node still has a quorum if it does, and keeps up where members are.
fn watch_leadership(
    leadership: &Leadership,
    raft: &openraft::Raft<TypeConfig, StateStore>,
    timers: Timers,
    book: &AddressBook,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    tasks.spawn(book.clone().follow(leadership.clone(), shutdown.clone()));
    tasks.spawn(leadership.clone().tell(timers.leader_silence(), shutdown.clone()));
    let Timers { heartbeat, election_max, .. } = timers;
    tasks.spawn(leadership.clone().watch_quorum(raft.metrics(), election_max, heartbeat, shutdown.clone()));
}

/// Takes snapshots from the leader; behind the last entry that is here already this node follows the log.
fn receiver(state: &StateAccess, log: &LogStore, moved: SnapshotTransferMetrics) -> Arc<Mutex<Receiver>> {
    let found = log.last().max(state.applied().borrow().position);
    Arc::new(Mutex::new(Receiver::new(state.snapshots.dir(), found, moved)))
}

/// Counts what other members have forwarded. Closed, which only means that it can be waited for whenever it is empty.
fn forwarded() -> TaskTracker {
    let forwarded = TaskTracker::new();
    forwarded.close();
    forwarded
}

/// How often a wanted snapshot is looked for where no news comes.
const SNAPSHOT_POLL: Duration = Duration::from_millis(100);

/// The part a member plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaftRole {
    /// Orders the writes.
    Leader,
    /// Follows and votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Stopped.
    Shutdown,
}

impl RaftStatus {
    /// The part this node plays.
    #[must_use]
    pub fn role(&self) -> RaftRole {
        match self.metrics.state {
            ServerState::Leader => RaftRole::Leader,
            ServerState::Follower => RaftRole::Follower,
            ServerState::Candidate => RaftRole::Candidate,
            ServerState::Learner => RaftRole::Learner,
            ServerState::Shutdown => RaftRole::Shutdown,
        }
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.metrics.current_term
    }

    /// The leader this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.metrics.current_leader
    }

    /// Index of the last log entry.
    #[must_use]
    pub fn last_log_index(&self) -> Option<u64> {
        self.metrics.last_log_index
    }

    /// The last entry known to be committed.
    #[must_use]
    pub fn committed(&self) -> Option<LogPosition> {
        self.metrics.local_committed.map(Into::into)
    }

    /// The last entry covered by a snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Option<LogPosition> {
        self.metrics.snapshot.map(Into::into)
    }

    /// The last entry removed from the log.
    #[must_use]
    pub fn purged(&self) -> Option<LogPosition> {
        self.metrics.purged.map(Into::into)
    }

    /// Every member: id, what is known of it, whether it votes.
    #[must_use]
    pub fn members(&self) -> Vec<(NodeId, Member, bool)> {
        let membership = self.metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        membership.nodes().map(|(id, member)| (*id, member.clone(), voters.contains(id))).collect()
    }

    /// How far the log of a member is known to reach; known to the leader alone.
    #[must_use]
    pub fn matched(&self, id: NodeId) -> Option<LogPosition> {
        self.metrics.replication.as_ref()?.get(&id)?.map(Into::into)
    }

    /// Time since this leader last heard from a member; `None` where it does not lead or never did.
    #[must_use]
    pub fn heard_from(&self, id: NodeId) -> Option<Duration> {
        self.metrics.heartbeat.as_ref()?.get(&id)?.as_ref().map(|at| at.elapsed())
    }
}

mod committed;

pub use committed::CommittedError;

#[cfg(test)]
mod tests;
