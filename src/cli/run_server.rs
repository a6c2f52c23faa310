//! The process of `serve` and `dev`: logs, signals, threads, nodes, until told to stop.
//!
//! Each node has a runtime of its own, so that nodes of one process disturb each other no more than processes would.
//! Guarantees: returns only after every node has closed its files, except after a failed disk: then at once, with the
//! reason. Leaves out: flags and their checks (`serve`, `dev`), and what a node is (`server`).

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::api::ApiConfig;
use crate::config::{LogFormat, ServeConfig};
use crate::node::{Join, MemberPolicy, NodeConfig, Origin, StartError};
use crate::raft::{Engines, LogConfig, OpenError, RaftConfig, RecoveryError, SnapshotStoreError, Timers};
use crate::server::{Server, ServerConfig, ServerError};
use crate::state::StateConfig;
use crate::types::Member;
use crate::{clock, telemetry};

/// What is logged where `RUST_LOG` does not say otherwise: our own news, and only trouble from the libraries.
/// The last one would tell at each start that `log/end` is no chunk.
const LOG_DEFAULT: &str =
    "quorate=info,warn,openraft=error,raft_log=warn,chunked_wal=warn,chunked_wal::wal::chunked_wal=error";

/// What a development cluster logs: its terminal belongs to the person in front of it.
const LOG_DEV: &str = "warn,openraft=error,quorate::node::forming=error,chunked_wal::wal::chunked_wal=error";

/// The version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long the nodes of a development cluster may take to serve before it is given up.
const DEV_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a runtime may take to end its last tasks.
const RUNTIME_END_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs one node until SIGTERM or Ctrl-C.
pub(super) fn run(config: ServeConfig) -> Result<(), Failure> {
    init_logs(config.log_format, LOG_DEFAULT)?;
    let stop = CancellationToken::new();
    let threads = config.tuning.runtime_threads;
    block_on(threads, async move {
        let signals = signal()?;
        let config = server_config(config);
        let (name, data_dir) = (config.node.member.name.clone(), config.node.data_dir.clone());
        let peers = config.peer_addr.clone();
        let server = Server::open(config).await.map_err(|error| failure(&error))?;
        let clients = server.client_addr();
        tracing::info!(version = VERSION, name, data_dir = %data_dir.display(), clients, peers, "starting");
        run_server(&server, signals, || {}, &stop).await
    })
}

/// Runs several nodes in this process until SIGTERM or Ctrl-C; `ready` is called once when all of them serve.
pub(super) fn run_dev(nodes: Vec<ServeConfig>, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    init_logs(LogFormat::Text, LOG_DEV)?;
    let stop = CancellationToken::new();
    let (news, all_news) = mpsc::sync_channel(2 * nodes.len());
    let threads: Vec<_> = nodes
        .into_iter()
        .map(|config| {
            let (stop, news) = (stop.clone(), news.clone());
            thread::Builder::new().name(config.name.to_string()).spawn(move || {
                let result = dev_node(config, &stop, || drop(news.send(Ok(()))));
                // One that ends takes the others with it.
                stop.cancel();
                let _ = news.send(result);
            })
        })
        .collect::<io::Result<_>>()
        .map_err(|error| Failure::unavailable(format!("can't start a thread: {error}")))?;
    drop(news);

    let signals = {
        let stop = stop.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            let wait = block_on(1, async move {
                let signals = signal()?;
                tokio::select! {
                    () = signals => stop.cancel(),
                    () = stop.cancelled() => {}
                }
                Ok(())
            });
            drop(wait);
        })
    };
    let signals = signals.map_err(|error| Failure::unavailable(format!("can't start a thread: {error}")))?;
    let mut result = await_ready(&all_news, threads.len()).and_then(|()| ready());
    if result.is_err() {
        stop.cancel();
    }
    for thread in threads {
        // A panic was shown by its hook already.
        let _ = thread.join();
    }
    let _ = signals.join();
    for news in all_news.try_iter() {
        result = result.and(news);
    }
    result
}

/// Waits until every node serves, or one of them has ended.
fn await_ready(news: &mpsc::Receiver<Result<(), Failure>>, nodes: usize) -> Result<(), Failure> {
    let deadline = clock::now() + DEV_READY_TIMEOUT;
    for _ in 0..nodes {
        match news.recv_timeout(deadline.saturating_duration_since(clock::now())) {
            Ok(result) => result?,
            Err(_) => return Err(Failure::unavailable("the nodes did not come up in time; their log tells why")),
        }
    }
    Ok(())
}

fn dev_node(config: ServeConfig, stop: &CancellationToken, ready: impl FnOnce()) -> Result<(), Failure> {
    let threads = config.tuning.runtime_threads;
    block_on(threads, async move {
        let mut config = server_config(config);
        // It runs where people browse the web.
        config.api.local_hosts_only = true;
        let server = Server::open(config).await.map_err(|error| match error {
            ServerError::Listen { address, source, .. } => Failure::usage(format!(
                "can't listen on {address}: {source}; stop the cluster that runs there, or give other ports with --port"
            )),
            error => failure(&error),
        })?;
        run_server(&server, stop.cancelled(), ready, stop).await
    })
}

/// Starts a node, tells when it serves, and runs it until `signals`.
async fn run_server(
    server: &Server,
    signals: impl Future<Output = ()>,
    ready: impl FnOnce(),
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let work = async {
        server.start().await.map_err(|error| failure(&error))?;
        while let Err(reason) = server.node().ready(clock::now() + READY_PROBE).await {
            tracing::debug!(reason, "not ready yet");
            tokio::time::sleep(READY_PAUSE).await;
        }
        tracing::info!(clients = server.client_addr(), "serving");
        ready();
        Err(Failure::integrity(format!("ending after a local failure: {}", server.failed().await)))
    };
    let result = tokio::select! {
        result = work => result,
        reason = server.failed() => Err(Failure::integrity(format!("ending after a local failure: {reason}"))),
        () = signals => {
            tracing::info!("stopping: a signal came");
            // Where all nodes end at once there is nobody to hand over to.
            if !stop.is_cancelled() {
                server.hand_over().await;
            }
            Ok(())
        }
        () = stop.cancelled() => Ok(()),
    };
    if server.node().fatal().reason().is_none() {
        server.stop().await;
        tracing::info!("stopped");
    }
    result
}

/// How long one look at a node's readiness may take, and the pause before the next.
const READY_PROBE: Duration = Duration::from_secs(1);
const READY_PAUSE: Duration = Duration::from_millis(50);

fn block_on<T>(threads: usize, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime: io::Result<Runtime> = match threads {
        0 | 1 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let runtime = runtime.map_err(|error| Failure::unavailable(format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(RUNTIME_END_TIMEOUT);
    result
}

/// A future that ends with SIGTERM or Ctrl-C. Must be called inside a runtime.
pub(super) fn signal() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen =
        |kind| signal(kind).map_err(|error| Failure::unavailable(format!("can't listen for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn init_logs(format: LogFormat, default_directive: &str) -> Result<(), Failure> {
    let format = match format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::init(format, default_directive).map_err(|error| Failure::usage(error.to_string()))
}

fn server_config(config: ServeConfig) -> ServerConfig {
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let tuning = &config.tuning;
    let raft = RaftConfig {
        data_dir: config.data_dir.clone(),
        timers: Timers::for_rtt(config.rtt),
        log: LogConfig {
            chunk_bytes: tuning.log_chunk_bytes(),
            cache_bytes: tuning.log_cache_bytes,
            ..LogConfig::default()
        },
        state: StateConfig::new(bytes(tuning.write_buffer_bytes), bytes(tuning.value_cache_bytes)),
        engine_cache_bytes: bytes(tuning.state_cache_bytes),
        snapshot_log_bytes: tuning.snapshot_log_bytes,
        catchup_bytes_per_second: tuning.catchup_bytes_per_second,
        engines: Engines::Sled,
    };
    let member = Member {
        name: config.name.to_string(),
        peer_addr: config.advertise_peer_addr.to_string(),
        client_url: config.advertise_client_url.to_string(),
        zone: config.zone.clone(),
        ..Member::default()
    };
    let origin = match (&config.initial_cluster, &config.join) {
        (Some(cluster), _) => {
            let members = cluster.members().iter();
            Origin::FirstMembers(
                members.map(|member| (member.name.to_string(), member.peer_addr.to_string())).collect(),
            )
        }
        (None, Some(join)) => Origin::Join(Join {
            addresses: join.all().iter().map(ToString::to_string).collect(),
            votes: !config.learner,
            replaces: config.replaces.as_ref().map(ToString::to_string),
        }),
        (None, None) => Origin::Directory,
    };
    let policy =
        MemberPolicy { remove_silent_after: config.remove_silent_after, voters_min: config.remove_silent_floor };
    ServerConfig {
        client_addr: config.client_addr.to_string(),
        peer_addr: config.peer_addr.to_string(),
        api: ApiConfig {
            value_bytes_max: tuning.value_bytes_max,
            connections_max: tuning.connections_max,
            connections_per_ip_max: tuning.connections_per_ip_max,
            in_flight_bytes_max: tuning.in_flight_bytes_max,
            answer_bytes_max: tuning.in_flight_bytes_max,
            write_time_target: tuning.write_time_target,
            ..ApiConfig::default()
        },
        node: NodeConfig { data_dir: config.data_dir, member, origin, policy, raft, archive: config.archive },
    }
}

/// Damage ends with the code for damage; everything else that keeps a node from starting is the operator's to change.
fn failure(error: &ServerError) -> Failure {
    let damaged = match error {
        ServerError::Node(StartError::Directory(error)) => error.is_damage(),
        ServerError::Node(StartError::Raft(error)) => match error {
            OpenError::Log(error) => error.is_damage(),
            OpenError::Snapshots(SnapshotStoreError::OtherCluster { .. }) => false,
            OpenError::State(RecoveryError::Shortage(_)) => false,
            OpenError::State(RecoveryError::Storage(error)) => !error.is_shortage(),
            OpenError::Snapshots(_) | OpenError::State(_) | OpenError::Raft(_) => true,
            OpenError::Io(_) => false,
        },
        ServerError::Node(StartError::NoIdentity(_) | StartError::Forming(_))
        | ServerError::Listen { .. }
        | ServerError::Api(_) => false,
    };
    if damaged { Failure::integrity(error.to_string()) } else { Failure::usage(error.to_string()) }
}
