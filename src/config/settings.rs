//! What an operator can set, each once: a flag, a `QUORATE_*` variable and a key of the configuration file share one field.
//! Backups are in the file alone: they are blocks of several settings each.
//!
//! Guarantees: flags win over environment, environment over file; an unknown key in the file is an error that names the
//! file and the line. Leaves out: defaults and relations between settings ([`super::ServeConfig::resolve`]).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::backup::BackupSettings;
use super::values::{Addresses, BaseUrl, HostPort, InitialCluster, Name, Rate, Size, Span};
use super::{ConfigError, LogFormat};

/// The largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The settings of a node as they were given; `None` was not given.
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of this node, unique in the cluster
    #[arg(long, env = "QUORATE_NAME", hide_env_values = true, value_name = "NAME")]
    pub name: Option<Name>,
    /// Directory of this node: identity, log, state and snapshots
    #[arg(long, env = "QUORATE_DATA_DIR", hide_env_values = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where clients are served [default: 127.0.0.1:7480]
    #[arg(long, env = "QUORATE_CLIENT_ADDR", hide_env_values = true, value_name = "HOST:PORT")]
    pub client_addr: Option<HostPort>,
    /// Where the other members are served [default: 127.0.0.1:7481]
    #[arg(long, env = "QUORATE_PEER_ADDR", hide_env_values = true, value_name = "HOST:PORT")]
    pub peer_addr: Option<HostPort>,
    /// URL under which clients reach this node [default: http:// and the client address]
    #[arg(long, env = "QUORATE_ADVERTISE_CLIENT_URL", hide_env_values = true, value_name = "URL")]
    pub advertise_client_url: Option<BaseUrl>,
    /// Address at which the other members reach this node [default: as in --initial-cluster, or the peer address]
    #[arg(long, env = "QUORATE_ADVERTISE_PEER_ADDR", hide_env_values = true, value_name = "HOST:PORT")]
    pub advertise_peer_addr: Option<HostPort>,
    /// Data centre this node stands in
    #[arg(long, env = "QUORATE_ZONE", hide_env_values = true, value_name = "ZONE")]
    pub zone: Option<Name>,
    /// All first members, the same list on each; forms the cluster once. Not needed once the directory has an identity
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER", hide_env_values = true, value_name = "NAME=HOST:PORT,...")]
    pub initial_cluster: Option<InitialCluster>,
    /// Peer addresses of members of a cluster that this node joins. Not needed once the directory has an identity
    #[arg(long, env = "QUORATE_JOIN", hide_env_values = true, value_name = "HOST:PORT,...")]
    pub join: Option<Addresses>,
    /// Join as a learner: a member with all data and no vote
    #[arg(long, env = "QUORATE_LEARNER", hide_env_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub learner: Option<bool>,
    /// Name of the member whose place this node takes once it has caught up; goes with --join
    #[arg(long, env = "QUORATE_REPLACES", hide_env_values = true, value_name = "NAME")]
    pub replaces: Option<Name>,
    /// Take out a member that the leader has not heard from for this long; never below --remove-silent-floor voters, one at
    /// a time [default: never]
    #[arg(long, env = "QUORATE_REMOVE_SILENT_AFTER", hide_env_values = true, value_name = "DURATION")]
    pub remove_silent_after: Option<Span>,
    /// Voters that --remove-silent-after leaves at least [default: 3]
    #[arg(long, env = "QUORATE_REMOVE_SILENT_FLOOR", hide_env_values = true, value_name = "COUNT")]
    pub remove_silent_floor: Option<usize>,
    /// Greatest round-trip time between members; heartbeat and election timeouts follow from it [default: 10ms]
    #[arg(long, env = "QUORATE_RTT", hide_env_values = true, value_name = "DURATION")]
    pub rtt: Option<Span>,
    /// How logs are written to standard error [default: text]
    #[arg(long, env = "QUORATE_LOG_FORMAT", hide_env_values = true, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Largest value a client may store [default: 4MiB]
    #[arg(long, env = "QUORATE_VALUE_BYTES_MAX", hide_env_values = true, value_name = "SIZE", help_heading = "Tuning")]
    pub value_bytes_max: Option<Size>,
    /// Most client connections at a time [default: 4096]
    #[arg(
        long,
        env = "QUORATE_CONNECTIONS_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        help_heading = "Tuning"
    )]
    pub connections_max: Option<usize>,
    /// Most client connections from one address [default: 1024]
    #[arg(
        long,
        env = "QUORATE_CONNECTIONS_PER_IP_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        help_heading = "Tuning"
    )]
    pub connections_per_ip_max: Option<usize>,
    /// Memory for the bodies of requests under way, and as much again for answers [default: 128MiB]
    #[arg(
        long,
        env = "QUORATE_IN_FLIGHT_BYTES_MAX",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Tuning"
    )]
    pub in_flight_bytes_max: Option<Size>,
    /// Time that writes may take before fewer are taken at a time [default: 500ms and four round trips]
    #[arg(
        long,
        env = "QUORATE_WRITE_TIME_TARGET",
        hide_env_values = true,
        value_name = "DURATION",
        help_heading = "Tuning"
    )]
    pub write_time_target: Option<Span>,
    /// A snapshot is made once the log grew by this much, or by the size of the last snapshot if that is more
    /// [default: 256MiB]
    #[arg(
        long,
        env = "QUORATE_SNAPSHOT_LOG_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Tuning"
    )]
    pub snapshot_log_bytes: Option<Size>,
    /// Most that this node sends of snapshots, to all members that catch up together [default: 50MiB/s]
    #[arg(long, env = "QUORATE_CATCHUP_LIMIT", hide_env_values = true, value_name = "SIZE/s", help_heading = "Tuning")]
    pub catchup_limit: Option<Rate>,
    /// Memory for recent log entries [default: 64MiB]
    #[arg(long, env = "QUORATE_LOG_CACHE_BYTES", hide_env_values = true, value_name = "SIZE", help_heading = "Tuning")]
    pub log_cache_bytes: Option<Size>,
    /// Memory for pages of the state on disk, read or freshly written [default: 640MiB]
    #[arg(
        long,
        env = "QUORATE_STATE_CACHE_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Tuning"
    )]
    pub state_cache_bytes: Option<Size>,
    /// Memory for the latest values of keys [default: 512MiB]
    #[arg(
        long,
        env = "QUORATE_VALUE_CACHE_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Tuning"
    )]
    pub value_cache_bytes: Option<Size>,
    /// Memory for applied writes on their way to the state on disk [default: 256MiB]
    #[arg(
        long,
        env = "QUORATE_WRITE_BUFFER_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Tuning"
    )]
    pub write_buffer_bytes: Option<Size>,
    /// Threads that serve requests [default: 1 on up to two cores, otherwise half the cores, at most 8]
    #[arg(
        long,
        env = "QUORATE_RUNTIME_THREADS",
        hide_env_values = true,
        value_name = "COUNT",
        help_heading = "Tuning"
    )]
    pub runtime_threads: Option<usize>,
    /// Places for backups: blocks of the file.
    #[arg(skip)]
    pub backup: Option<Vec<BackupSettings>>,
    /// What places that are declared to the cluster may refer to, as `SETTING=VALUE`; in the file alone.
    #[arg(skip)]
    pub backup_declare_allow: Option<Vec<String>>,
    /// In so many of them a write with `durability=offsite` must be before it is answered; in the file alone.
    #[arg(skip)]
    pub offsite_min_copies: Option<usize>,
    /// Writes to keys with these prefixes are always answered only then; in the file alone.
    #[arg(skip)]
    pub offsite_prefixes: Option<Vec<String>>,
}

impl Settings {
    /// Reads the settings of a TOML file, whose keys are the flags with `_` for `-`.
    ///
    /// # Errors
    /// [`ConfigError::File`] if it can't be read, [`ConfigError::Syntax`] with the line if it can't be understood.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |why: String| ConfigError::File { path: path.to_owned(), why };
        let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(unreadable(format!("it has {size} bytes, a configuration file at most {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        Self::from_toml(&text, path)
    }

    /// Reads settings out of the text of a file; `path` only stands in errors.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] with the line.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
            let why = error.message().replace('\n', ", ");
            ConfigError::Syntax { path: path.to_owned(), line, why }
        })
    }

    /// These settings, and where one is missing that of `fallback`.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        Self {
            name: self.name.or(fallback.name),
            data_dir: self.data_dir.or(fallback.data_dir),
            client_addr: self.client_addr.or(fallback.client_addr),
            peer_addr: self.peer_addr.or(fallback.peer_addr),
            advertise_client_url: self.advertise_client_url.or(fallback.advertise_client_url),
            advertise_peer_addr: self.advertise_peer_addr.or(fallback.advertise_peer_addr),
            zone: self.zone.or(fallback.zone),
            initial_cluster: self.initial_cluster.or(fallback.initial_cluster),
            join: self.join.or(fallback.join),
            learner: self.learner.or(fallback.learner),
            replaces: self.replaces.or(fallback.replaces),
            remove_silent_after: self.remove_silent_after.or(fallback.remove_silent_after),
            remove_silent_floor: self.remove_silent_floor.or(fallback.remove_silent_floor),
            rtt: self.rtt.or(fallback.rtt),
            log_format: self.log_format.or(fallback.log_format),
            value_bytes_max: self.value_bytes_max.or(fallback.value_bytes_max),
            connections_max: self.connections_max.or(fallback.connections_max),
            connections_per_ip_max: self.connections_per_ip_max.or(fallback.connections_per_ip_max),
            in_flight_bytes_max: self.in_flight_bytes_max.or(fallback.in_flight_bytes_max),
            write_time_target: self.write_time_target.or(fallback.write_time_target),
            snapshot_log_bytes: self.snapshot_log_bytes.or(fallback.snapshot_log_bytes),
            catchup_limit: self.catchup_limit.or(fallback.catchup_limit),
            log_cache_bytes: self.log_cache_bytes.or(fallback.log_cache_bytes),
            state_cache_bytes: self.state_cache_bytes.or(fallback.state_cache_bytes),
            value_cache_bytes: self.value_cache_bytes.or(fallback.value_cache_bytes),
            write_buffer_bytes: self.write_buffer_bytes.or(fallback.write_buffer_bytes),
            runtime_threads: self.runtime_threads.or(fallback.runtime_threads),
            backup: self.backup.or(fallback.backup),
            backup_declare_allow: self.backup_declare_allow.or(fallback.backup_declare_allow),
            offsite_min_copies: self.offsite_min_copies.or(fallback.offsite_min_copies),
            offsite_prefixes: self.offsite_prefixes.or(fallback.offsite_prefixes),
        }
    }
}
