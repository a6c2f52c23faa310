//! Settings of the consensus room, and the timers that follow from the network's round-trip time.
//!
//! Guarantees: timers keep the relations Raft needs (heartbeat « election timeout, election timeout ≥ 10 round trips), and
//! what openraft must be told for safety is told in one place. Leaves out: where settings come from (`config`).

use std::path::PathBuf;
use std::time::Duration;

use super::engine_home::Engines;
use super::log_store::LogConfig;
use crate::state::StateConfig;

/// Below this the network is taken for a local one.
const LAN_RTT: Duration = Duration::from_millis(10);

/// Heartbeats on a local network. Also the least time openraft gives one heartbeat, so it must cover a slow fsync.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// The shortest election timeout on a local network.
const ELECTION_MIN: Duration = Duration::from_millis(500);

/// How many round trips an election timeout spans at least (Ongaro's thesis §4.1 and etcd's tuning guide say 10).
const ELECTION_PER_RTT: u32 = 10;

/// The longest round trip for which timers are derived; beyond it a cluster is unusable anyway.
pub const RTT_MAX: Duration = Duration::from_secs(2);

/// Heartbeat interval and election timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// The round-trip time that they were made for.
    pub rtt: Duration,
    /// How often the leader sends heartbeats when nothing else is sent.
    pub heartbeat: Duration,
    /// The least time without a leader after which a follower campaigns.
    pub election_min: Duration,
    /// The greatest such time; also the lease that keeps a healthy leader from being disturbed.
    pub election_max: Duration,
}

impl Timers {
    /// Timers for links with this round-trip time.
    #[must_use]
    pub fn for_rtt(rtt: Duration) -> Self {
        let rtt = rtt.clamp(LAN_RTT, RTT_MAX);
        let election_min = (rtt * ELECTION_PER_RTT).max(ELECTION_MIN);
        Self { rtt, heartbeat: (rtt * 3).max(HEARTBEAT_MIN), election_min, election_max: election_min * 2 }
    }
}

/// Silent for this many longest election timeouts, a leader counts as gone.
const SILENCE_ELECTIONS: u32 = 2;

impl Timers {
    /// How long a leader may be silent before it is not called leader any more: in a connected majority another one was
    /// elected by then.
    #[must_use]
    pub fn leader_silence(&self) -> Duration {
        self.election_max * SILENCE_ELECTIONS
    }

    /// The greatest round-trip time for which they are long enough: a quarter more than they are made for, because what is
    /// measured has the members' work in it.
    #[must_use]
    pub fn rtt_max(&self) -> Duration {
        self.election_min / ELECTION_PER_RTT * 5 / 4
    }

    /// Whether members are so far from each other that time passes on the way rather than at its ends: then more is sent
    /// while answers are awaited, which on a local network only costs.
    #[must_use]
    pub fn far(&self) -> bool {
        self.rtt > LAN_RTT
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self::for_rtt(LAN_RTT)
    }
}

/// Settings of the consensus room.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// The node's directory; `log/`, `state/` and `snapshots/` lie in it.
    pub data_dir: PathBuf,
    /// Timers.
    pub timers: Timers,
    /// The log store.
    pub log: LogConfig,
    /// The state machine.
    pub state: StateConfig,
    /// Memory for the pages of the state engine, read or freshly written, in bytes.
    pub engine_cache_bytes: usize,
    /// A snapshot is built once the log since the last one outgrows this and the last snapshot's size, in bytes.
    pub snapshot_log_bytes: u64,
    /// What all snapshots that this node sends to members may take together, in bytes a second.
    pub catchup_bytes_per_second: u64,
    /// What the state is kept in.
    pub engines: Engines,
}

/// A learner that lacks no more entries than this counts as caught up with the log.
const LEARNER_LAG_MAX: u64 = 20_000;

/// The most entries in one append call; their bytes are bounded by the log store's read limit.
const APPEND_ENTRIES_MAX: u64 = 1_024;

impl RaftConfig {
    /// For tests: little memory, the timers of a local network, and no snapshot by itself.
    #[cfg(test)]
    pub(crate) fn small(data_dir: &std::path::Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            timers: Timers::default(),
            log: LogConfig::default(),
            state: StateConfig::default(),
            engine_cache_bytes: 1024 * 1024,
            snapshot_log_bytes: u64::MAX,
            catchup_bytes_per_second: 50 * 1024 * 1024,
            engines: Engines::Sled,
        }
    }

    /// What openraft is told.
    ///
    /// # Errors
    /// openraft's own check of the relations, which hold for every [`Timers`].
    pub(super) fn openraft(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let Timers { heartbeat, election_min, election_max, .. } = self.timers;
        openraft::Config {
            cluster_name: "quorate".into(),
            heartbeat_interval: ms(heartbeat),
            election_timeout_min: ms(election_min),
            election_timeout_max: ms(election_max),
            // A node that was cut off must not raise the term of a healthy group when it comes back.
            enable_pre_vote: Some(true),
            // A restarted leader may not resume without an election: its read index would be of another life.
            enable_leader_restore: Some(false),
            // Without it heartbeats of a leader that has lost its quorum one way keep a connected quorum from electing.
            quorum_loss_probe_interval: Some(ms(election_max) * 2),
            // A member whose disk lied comes back with less than it acknowledged; what can be noticed of it at home is refused there
            // (`log_store::end_mark`). openraft warns of this setting, because such a member may vote for a leader without
            // committed entries. It may do so whatever is set here: this alone decides what the leader does that notices. With
            // it, the leader forgets how far the member was: nothing is committed by what the member had once, what is committed
            // stays so, and what is missing is sent again, which ends the danger. Without it, the leader goes on counting what is
            // not there, and so may commit with less than a quorum, and never sends it again (with assertions, it panics).
            // Votes that the member has forgotten are gone all the same, so it has to be replaced: `forgetting` tells.
            allow_log_reversion: Some(true),
            // Snapshots are asked for by size of the log (`maintenance`), not by count of entries.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            // The log is removed on request alone: openraft knows neither its size nor what members still need of it.
            max_in_snapshot_log_to_keep: u64::MAX,
            max_payload_entries: APPEND_ENTRIES_MAX,
            replication_lag_threshold: LEARNER_LAG_MAX,
            ..openraft::Config::default()
        }
        .validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_network_fails_over_in_under_three_seconds() {
        let timers = Timers::default();
        assert_eq!(timers.heartbeat, Duration::from_millis(100));
        assert_eq!((timers.election_min, timers.election_max), (Duration::from_millis(500), Duration::from_secs(1)));
    }

    #[test]
    fn timers_follow_the_round_trip_time() {
        let timers = Timers::for_rtt(Duration::from_millis(80));
        assert_eq!(timers.heartbeat, Duration::from_millis(240));
        assert_eq!(timers.election_min, Duration::from_millis(800));
        for ms in [0, 1, 30, 80, 150, 500, 2_000, 60_000] {
            let timers = Timers::for_rtt(Duration::from_millis(ms));
            assert!(timers.heartbeat * 3 <= timers.election_min * 2, "{timers:?}");
            assert!(timers.election_min < timers.election_max);
            assert!(timers.rtt_max() >= timers.rtt && timers.far() == (ms > 10), "{timers:?}");
        }
    }
}
