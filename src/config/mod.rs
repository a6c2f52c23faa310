//! The configuration of a node: read from flags, environment and file, checked as a whole, then never changed.
//!
//! Guarantees: a [`ServeConfig`] that exists is complete and consistent; each refusal says which setting is wrong and what
//! to do. Leaves out: anything that needs the disk or the network (an occupied port, a directory in use); starting finds
//! those.

mod backup;
mod declared;
mod settings;
mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub(crate) use crate::backup::credentials::read as credentials;
pub use backup::{BackupSettings, Data, Direction, StoreOptions};
pub use declared::DECLARE;
pub use settings::Settings;
pub use values::{
    Addresses, BaseUrl, HostPort, INITIAL_MEMBERS_MAX, InitialCluster, InitialMember, InvalidValue, NAME_CHARS_MAX,
    Name, Rate, Size, Span,
};

use crate::node::ArchiveConfig;
use crate::types::limits::{KEY_BYTES_MAX, TXN_BYTES_MAX, VALUE_BYTES_MAX};

/// The client port where none is named.
pub const CLIENT_PORT_DEFAULT: u16 = 7480;

/// The peer port where none is named.
pub const PEER_PORT_DEFAULT: u16 = 7481;

/// The round-trip time between members that is reckoned with where none is named: a LAN with room for a busy disk.
pub const RTT_DEFAULT: Duration = Duration::from_millis(10);

/// The greatest round-trip time that can be set: the greatest for which there are timers.
pub const RTT_MAX: Duration = crate::raft::RTT_MAX;

/// The most nodes `dev` runs in one process.
pub const DEV_NODES_MAX: u16 = 9;

/// The most threads that can be asked for.
const RUNTIME_THREADS_MAX: usize = 256;

/// The most threads that are taken unasked.
const RUNTIME_THREADS_DEFAULT_MAX: usize = 8;

/// The least log that is worth a snapshot, in bytes.
const SNAPSHOT_LOG_BYTES_MIN: Size = Size(64 * 1024);

/// What snapshots may take of a link where no limit is named: half of one of a gigabit.
const CATCHUP_LIMIT_DEFAULT: Rate = Rate(Size::mib(50));

/// The least limit: a part of the smallest size each second.
const CATCHUP_LIMIT_MIN: Rate = Rate(Size(64 * 1024));

/// Log files to a log that makes a snapshot due.
const SNAPSHOT_LOG_PARTS: u64 = 4;

/// The largest log file, in bytes: the newest one is in memory too.
const LOG_CHUNK_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The smallest write buffer, in bytes: it must hold what the largest transactions write.
const WRITE_BUFFER_BYTES_MIN: Size = Size(16 * 1024 * 1024);

/// The smallest cache that works, in bytes.
const CACHE_BYTES_MIN: Size = Size::mib(1);

/// The most client connections that can be asked for.
const CONNECTIONS_MAX: usize = 1_000_000;

/// Client connections where no number is named.
const CONNECTIONS_DEFAULT: usize = 4_096;

/// The same for one address.
const CONNECTIONS_PER_IP_DEFAULT: usize = 1_024;

/// The least memory for requests under way, in bytes: the largest must fit.
const IN_FLIGHT_BYTES_MIN: Size = Size((2 * TXN_BYTES_MAX) as u64);

/// The time that writes may take where none is named, beside round trips: half of what callers are promised under overload.
const WRITE_TIME_TARGET_LOCAL: Duration = Duration::from_millis(500);

/// The round trips that are added to it.
const WRITE_ROUND_TRIPS: u32 = 4;

/// The bounds of that time.
const WRITE_TIME_TARGET_MIN: Duration = Duration::from_millis(100);
const WRITE_TIME_TARGET_MAX: Duration = Duration::from_secs(60);

/// Why a configuration can't be used. Each is one line for the operator.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration file {}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The file can't be understood.
    #[error("{}:{line}: {why}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        why: String,
    },
    /// A setting that has no default is missing.
    #[error("--{flag} is missing; give the flag, {variable}, or {key} in the configuration file", key = flag.replace('-', "_"))]
    Missing {
        /// The flag.
        flag: &'static str,
        /// The environment variable.
        variable: &'static str,
    },
    /// A setting is out of its range, or contradicts another.
    #[error("{0}")]
    Invalid(String),
}

/// How logs are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a node weighs memory and disk by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// The largest value a client may store, in bytes.
    pub value_bytes_max: usize,
    /// The most client connections at a time.
    pub connections_max: usize,
    /// The most of them from one address.
    pub connections_per_ip_max: usize,
    /// Memory for bodies of requests under way, and as much again for answers, in bytes.
    pub in_flight_bytes_max: usize,
    /// The time that writes may take before fewer are taken at a time.
    pub write_time_target: Duration,
    /// A snapshot is due once the log grew by this many bytes, or by the last snapshot's size if that is more.
    pub snapshot_log_bytes: u64,
    /// What all snapshots that are sent to members may take together, in bytes a second.
    pub catchup_bytes_per_second: u64,
    /// Memory for recent log entries, in bytes.
    pub log_cache_bytes: u64,
    /// Memory for pages of the state engine, in bytes.
    pub state_cache_bytes: u64,
    /// Memory for latest values, in bytes.
    pub value_cache_bytes: u64,
    /// Memory for applied writes that do not stand in the state on disk yet, in bytes.
    pub write_buffer_bytes: u64,
    /// Threads that serve requests.
    pub runtime_threads: usize,
}

impl Tuning {
    /// Size of a log file in bytes, at most 64 MiB: a quarter of what makes a snapshot due. The log is removed in whole
    /// files, so one larger than that would keep it longer than [`Self::snapshot_log_bytes`] promises.
    #[must_use]
    pub fn log_chunk_bytes(&self) -> u64 {
        (self.snapshot_log_bytes / SNAPSHOT_LOG_PARTS).min(LOG_CHUNK_BYTES_MAX)
    }
}

/// The configuration of one node, complete and consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Its directory.
    pub data_dir: PathBuf,
    /// Where it serves clients.
    pub client_addr: HostPort,
    /// Where it serves members.
    pub peer_addr: HostPort,
    /// The URL under which clients reach it.
    pub advertise_client_url: BaseUrl,
    /// Where members reach it; the same as its entry in `initial_cluster`.
    pub advertise_peer_addr: HostPort,
    /// Its data centre; empty if none was named.
    pub zone: String,
    /// The first members, this one among them; `None` if the directory is expected to have an identity already.
    pub initial_cluster: Option<InitialCluster>,
    /// Members of the cluster it joins, if its directory has no identity.
    pub join: Option<Addresses>,
    /// Whether it joins without a vote.
    pub learner: bool,
    /// The name of the member whose place it takes when it joins.
    pub replaces: Option<Name>,
    /// A member that was silent for so long is taken out by the leader; `None`: never.
    pub remove_silent_after: Option<Duration>,
    /// Voters that this leaves at least.
    pub remove_silent_floor: usize,
    /// The greatest round-trip time between members; timers follow from it.
    pub rtt: Duration,
    /// How it logs.
    pub log_format: LogFormat,
    /// Memory and disk.
    pub tuning: Tuning,
    /// Off-site copies.
    pub archive: ArchiveConfig,
}

impl ServeConfig {
    /// Merges flags (with the environment already in them) over the file, fills in defaults and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError`], the first that is found.
    pub fn load(flags: Settings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = file.map(Settings::from_file).transpose()?.unwrap_or_default();
        Self::resolve(flags.or(file))
    }

    /// Fills in defaults and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] and [`ConfigError::Invalid`].
    pub fn resolve(settings: Settings) -> Result<Self, ConfigError> {
        let name = settings.name.clone().ok_or(ConfigError::Missing { flag: "name", variable: "QUORATE_NAME" })?;
        let data_dir =
            settings.data_dir.clone().ok_or(ConfigError::Missing { flag: "data-dir", variable: "QUORATE_DATA_DIR" })?;
        if data_dir.as_os_str().is_empty() {
            return invalid("--data-dir is empty; name a directory");
        }
        let client_addr = settings.client_addr.clone().unwrap_or_else(|| loopback(CLIENT_PORT_DEFAULT));
        let peer_addr = settings.peer_addr.clone().unwrap_or_else(|| loopback(PEER_PORT_DEFAULT));
        check_listeners(&client_addr, &peer_addr)?;
        let rtt = settings.rtt.map_or(RTT_DEFAULT, |rtt| rtt.0);
        if rtt < Duration::from_millis(1) || rtt > RTT_MAX {
            return invalid(format!("--rtt is {}; it must be 1ms to {}", Span(rtt), Span(RTT_MAX)));
        }
        Ok(Self {
            advertise_client_url: client_url(settings.advertise_client_url.clone(), &client_addr)?,
            advertise_peer_addr: advertised_peer(&settings, &name, &peer_addr)?,
            name,
            data_dir,
            client_addr,
            peer_addr,
            zone: settings.zone.as_ref().map_or_else(String::new, ToString::to_string),
            rtt,
            log_format: settings.log_format.unwrap_or_default(),
            tuning: tuning(&settings, rtt)?,
            archive: backup::archive(&settings)?,
            learner: joins_without_vote(&settings)?,
            remove_silent_after: remove_silent_after(&settings, rtt)?,
            remove_silent_floor: remove_silent_floor(&settings)?,
            replaces: settings.replaces,
            join: settings.join,
            initial_cluster: settings.initial_cluster,
        })
    }

    /// The nodes of a development cluster on loopback: node *i* (from 1) is named `n<i>`, serves clients on
    /// `port + 2(i-1)` and members on the port after it, and keeps its data in `data_dir/n<i>`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if there are no or too many nodes, or the ports go beyond 65535.
    pub fn dev(nodes: u16, data_dir: &Path, port: u16) -> Result<Vec<Self>, ConfigError> {
        if nodes == 0 || nodes > DEV_NODES_MAX {
            return invalid(format!("--nodes is {nodes}; it must be 1 to {DEV_NODES_MAX}"));
        }
        if port == 0 || port.checked_add(2 * nodes - 1).is_none() {
            return invalid(format!(
                "--port is {port}; {nodes} nodes take {} ports from there, which must be 1 to 65535",
                2 * nodes
            ));
        }
        let address = |node: u16, peer: u16| loopback(port + 2 * (node - 1) + peer);
        let name =
            |node: u16| format!("n{node}").parse::<Name>().map_err(|error| ConfigError::Invalid(error.to_string()));
        let members = (1..=nodes)
            .map(|node| Ok(InitialMember { name: name(node)?, peer_addr: address(node, 1) }))
            .collect::<Result<Vec<_>, ConfigError>>()?;
        let cluster = InitialCluster::new(members).map_err(|error| ConfigError::Invalid(error.to_string()))?;
        (1..=nodes)
            .map(|node| {
                let name = name(node)?;
                Self::resolve(Settings {
                    data_dir: Some(data_dir.join(name.as_str())),
                    name: Some(name),
                    client_addr: Some(address(node, 0)),
                    peer_addr: Some(address(node, 1)),
                    initial_cluster: Some(cluster.clone()),
                    // Several nodes share this machine: one thread each.
                    runtime_threads: Some(1),
                    ..Settings::default()
                })
            })
            .collect()
    }
}

fn invalid<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid(message.into()))
}

fn loopback(port: u16) -> HostPort {
    format!("127.0.0.1:{port}").parse().expect("a loopback address with a port other than 0 is valid")
}

/// The two listeners can't share a port on one interface.
fn check_listeners(client: &HostPort, peer: &HostPort) -> Result<(), ConfigError> {
    let overlap = client.host() == peer.host() || client.is_unspecified() || peer.is_unspecified();
    if client.port() == peer.port() && overlap {
        return invalid(format!(
            "--client-addr {client} and --peer-addr {peer} share a port; give the two listeners different ones"
        ));
    }
    Ok(())
}

fn client_url(given: Option<BaseUrl>, listener: &HostPort) -> Result<BaseUrl, ConfigError> {
    match given {
        Some(url) => Ok(url),
        None if listener.is_unspecified() => invalid(format!(
            "--client-addr {listener} listens on every interface, which is no address to call; \
             add --advertise-client-url http://HOST:{}",
            listener.port()
        )),
        None => Ok(BaseUrl::of(listener)),
    }
}

/// What the other members dial: as said, or as the list of first members has it, or where this node listens.
fn advertised_peer(settings: &Settings, name: &Name, listener: &HostPort) -> Result<HostPort, ConfigError> {
    let given = settings.advertise_peer_addr.as_ref();
    let Some(cluster) = &settings.initial_cluster else {
        return match given {
            Some(address) => advertisable(address.clone()),
            None if listener.is_unspecified() => invalid(format!(
                "--peer-addr {listener} listens on every interface, which is no address to call; \
                 add --advertise-peer-addr HOST:{}",
                listener.port()
            )),
            None => Ok(listener.clone()),
        };
    };
    let Some(listed) = cluster.find(name).map(|member| &member.peer_addr) else {
        return invalid(format!(
            "--name {name} is not in --initial-cluster {cluster}; the list must hold this node and every other first member"
        ));
    };
    match given {
        Some(address) if address != listed => invalid(format!(
            "--advertise-peer-addr is {address}, but --initial-cluster has {name}={listed}; make them the same"
        )),
        // Nothing says that a port mapping lies between, so the ports were more likely mixed up.
        None if listed.port() != listener.port() => invalid(format!(
            "--peer-addr listens on port {}, but --initial-cluster has {name}={listed}; make the ports the same, \
             or add --advertise-peer-addr {listed} if a port mapping lies between",
            listener.port()
        )),
        _ => advertisable(listed.clone()),
    }
}

fn advertisable(address: HostPort) -> Result<HostPort, ConfigError> {
    if address.is_unspecified() {
        return invalid(format!("{address} is no address the other members could call; name the host"));
    }
    Ok(address)
}

/// A node forms a cluster or joins one.
fn joins_without_vote(settings: &Settings) -> Result<bool, ConfigError> {
    if settings.initial_cluster.is_some() && settings.join.is_some() {
        return invalid(
            "--initial-cluster and --join were given; a first member needs the one, a later member the other"
                .to_owned(),
        );
    }
    let learner = settings.learner.unwrap_or(false);
    if learner && settings.initial_cluster.is_some() {
        return invalid("--learner goes with --join; the first members all vote".to_owned());
    }
    if settings.replaces.is_some() && (learner || settings.initial_cluster.is_some()) {
        return invalid(
            "--replaces goes with --join, and not with --learner: a voter takes the place of another".to_owned(),
        );
    }
    Ok(learner)
}

/// Below this a restart would cost a member its place.
const REMOVE_SILENT_AFTER_MIN: Duration = Duration::from_secs(60);

/// Above this nobody waits.
const REMOVE_SILENT_AFTER_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn remove_silent_after(settings: &Settings, rtt: Duration) -> Result<Option<Duration>, ConfigError> {
    let Some(Span(after)) = settings.remove_silent_after else { return Ok(None) };
    let least = REMOVE_SILENT_AFTER_MIN.max(rtt * 1_000);
    if after < least || after > REMOVE_SILENT_AFTER_MAX {
        let (after, least, most) = (Span(after), Span(least), Span(REMOVE_SILENT_AFTER_MAX));
        return invalid(format!("--remove-silent-after is {after}; it must be {least} to {most}"));
    }
    Ok(Some(after))
}

fn remove_silent_floor(settings: &Settings) -> Result<usize, ConfigError> {
    let floor = settings.remove_silent_floor.unwrap_or(crate::node::VOTERS_MIN_DEFAULT);
    if !(1..=crate::node::MEMBERS_MAX).contains(&floor) {
        let most = crate::node::MEMBERS_MAX;
        return invalid(format!("--remove-silent-floor is {floor}; it must be 1 to {most}"));
    }
    Ok(floor)
}

fn tuning(settings: &Settings, rtt: Duration) -> Result<Tuning, ConfigError> {
    let value_bytes_most = Size((TXN_BYTES_MAX - KEY_BYTES_MAX) as u64);
    let value_bytes_max = in_range(
        "value-bytes-max",
        settings.value_bytes_max.unwrap_or(Size(VALUE_BYTES_MAX as u64)),
        Size(1),
        value_bytes_most,
    )?;
    let unlimited = Size(u64::MAX);
    let cache =
        |flag, given: Option<Size>, default| in_range(flag, given.unwrap_or(default), CACHE_BYTES_MIN, unlimited);
    let snapshot_log = settings.snapshot_log_bytes.unwrap_or(Size::mib(256));
    let catchup_limit = settings.catchup_limit.unwrap_or(CATCHUP_LIMIT_DEFAULT);
    if catchup_limit < CATCHUP_LIMIT_MIN {
        return invalid(format!(
            "--catchup-limit is {catchup_limit}; it must be at least {CATCHUP_LIMIT_MIN}; to have no limit, give more \
             than the network carries"
        ));
    }
    let write_buffer = settings.write_buffer_bytes.unwrap_or(Size::mib(256));
    let runtime_threads = settings.runtime_threads.unwrap_or_else(default_threads);
    if runtime_threads == 0 || runtime_threads > RUNTIME_THREADS_MAX {
        return invalid(format!("--runtime-threads is {runtime_threads}; it must be 1 to {RUNTIME_THREADS_MAX}"));
    }
    let (connections_max, connections_per_ip_max) = connections(settings)?;
    let in_flight = settings.in_flight_bytes_max.unwrap_or(Size::mib(128));
    let in_flight_bytes_max = in_range("in-flight-bytes-max", in_flight, IN_FLIGHT_BYTES_MIN, unlimited)?;
    Ok(Tuning {
        connections_max,
        connections_per_ip_max,
        in_flight_bytes_max: usize::try_from(in_flight_bytes_max).unwrap_or(usize::MAX),
        write_time_target: write_time_target(settings, rtt)?,
        value_bytes_max: usize::try_from(value_bytes_max).unwrap_or(VALUE_BYTES_MAX),
        snapshot_log_bytes: in_range("snapshot-log-bytes", snapshot_log, SNAPSHOT_LOG_BYTES_MIN, unlimited)?,
        catchup_bytes_per_second: catchup_limit.0.0,
        log_cache_bytes: cache("log-cache-bytes", settings.log_cache_bytes, Size::mib(64))?,
        state_cache_bytes: cache("state-cache-bytes", settings.state_cache_bytes, Size::mib(640))?,
        value_cache_bytes: cache("value-cache-bytes", settings.value_cache_bytes, Size::mib(512))?,
        write_buffer_bytes: in_range("write-buffer-bytes", write_buffer, WRITE_BUFFER_BYTES_MIN, unlimited)?,
        runtime_threads,
    })
}

fn connections(settings: &Settings) -> Result<(usize, usize), ConfigError> {
    let in_bounds = |flag, count| match (1..=CONNECTIONS_MAX).contains(&count) {
        true => Ok(count),
        false => invalid(format!("--{flag} is {count}; it must be 1 to {CONNECTIONS_MAX}")),
    };
    Ok((
        in_bounds("connections-max", settings.connections_max.unwrap_or(CONNECTIONS_DEFAULT))?,
        in_bounds("connections-per-ip-max", settings.connections_per_ip_max.unwrap_or(CONNECTIONS_PER_IP_DEFAULT))?,
    ))
}

/// A write through a follower takes two round trips at best, whatever the load.
fn write_time_target(settings: &Settings, rtt: Duration) -> Result<Duration, ConfigError> {
    let target =
        settings.write_time_target.map_or(WRITE_TIME_TARGET_LOCAL + WRITE_ROUND_TRIPS * rtt, |target| target.0);
    if target < WRITE_TIME_TARGET_MIN || target > WRITE_TIME_TARGET_MAX {
        let (given, least, most) = (Span(target), Span(WRITE_TIME_TARGET_MIN), Span(WRITE_TIME_TARGET_MAX));
        return invalid(format!("--write-time-target is {given}; it must be {least} to {most}"));
    }
    Ok(target)
}

fn in_range(flag: &str, size: Size, least: Size, most: Size) -> Result<u64, ConfigError> {
    if size < least {
        return invalid(format!("--{flag} is {size}; it must be at least {least}"));
    }
    if size > most {
        return invalid(format!("--{flag} is {size}; it must be at most {most}"));
    }
    Ok(size.0)
}

/// One thread where a second would only fight for the same core with the log's and the checkpointer's.
fn default_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 2).clamp(1, RUNTIME_THREADS_DEFAULT_MAX)
}

#[cfg(test)]
mod tests;
