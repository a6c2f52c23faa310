//! The load generator: closed-loop clients, or an open loop at a fixed rate, over one lean connection each. Beside it, clients
//! that note down all they see ([`Recording`]), and the judge of such histories ([`history::judge`]).
//!
//! Guarantees: an error does not end a run and is counted by its kind; a write is counted as acknowledged only when the
//! cluster said so, and one that may or may not have been applied is counted apart; under a fixed rate, time spent waiting
//! for a slow answer counts into the latency of the requests that were due meanwhile (no coordinated omission). Leaves
//! out: judging what a load run has read.

mod connection;
mod echo;
pub mod history;
mod plan;
mod recording;
mod requests;
mod tally;
mod worker;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

pub use echo::{ECHO_BYTES, serve_echo};
pub use recording::{
    DEADLINE_MAX, Mix, NOTES_MAX, News, RECORDED_KEYS_MAX, RECORDED_VALUE_BYTES_MAX, Recording, RecordingConfig,
    Summary,
};
pub use requests::Protocol;
pub use tally::{Latency, Progress, Report};

use plan::Plan;
use tally::{Meter, Shard};

use crate::clock;

/// The most clients of one run: each holds a connection.
pub const CLIENTS_MAX: usize = 10_000;

/// The most keys of one run.
pub const KEYS_MAX: u64 = 100_000_000;

/// The most requests a second that can be asked for.
pub const RATE_MAX: u64 = 10_000_000;

/// How often progress is told.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long the keys to read may take to be written.
const PRELOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// What is done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes a value.
    Put,
    /// Reads a value, linearizably.
    Get,
    /// Reads a value, as the node that is asked has it.
    Stale,
    /// Linearizable reads with a write now and then.
    Mixed {
        /// Reads for each write, on average.
        reads_per_write: u32,
    },
    /// A comparison, a write and a read in one transaction; counted as a write.
    Txn,
}

impl Kind {
    /// The name on the command line and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Stale => "stale",
            Self::Mixed { .. } => "mixed",
            Self::Txn => "txn",
        }
    }

    /// Whether keys are read that must be there.
    fn reads(self) -> bool {
        matches!(self, Self::Get | Self::Stale | Self::Mixed { .. })
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Nodes as `http://host:port`; clients are spread evenly over them.
    pub endpoints: Vec<String>,
    /// What is done.
    pub kind: Kind,
    /// Clients, each with one request at a time: 1 to [`CLIENTS_MAX`].
    pub clients: usize,
    /// How long.
    pub duration: Duration,
    /// Different keys, chosen uniformly: 1 to [`KEYS_MAX`].
    pub keys: u64,
    /// Bytes of each value.
    pub value_size: usize,
    /// Requests a second by all clients together, at fixed times; `None` for as fast as answers come.
    pub rate: Option<u64>,
    /// What every key begins with.
    pub key_prefix: String,
    /// Determines keys and values.
    pub seed: u64,
    /// Whether a client that was turned away stays away for as long as it was told.
    pub heed_retry_after: bool,
    /// How long one request may take.
    pub timeout: Duration,
    /// Write all keys before reads are measured.
    pub preload: bool,
    /// What the endpoints speak.
    pub protocol: Protocol,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:7480".to_owned()],
            kind: Kind::Put,
            clients: 64,
            duration: Duration::from_secs(10),
            keys: 10_000,
            value_size: 256,
            rate: None,
            key_prefix: "bench/".to_owned(),
            seed: 1,
            heed_retry_after: true,
            timeout: Duration::from_secs(10),
            preload: true,
            protocol: Protocol::Quorate,
        }
    }
}

/// Why a run did not take place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The keys to read could not be written first.
    #[error("the keys to read could not be written: {0}")]
    Preload(String),
    /// This machine refused a thread, a runtime or a socket.
    #[error("can't {doing}: {error}")]
    Local {
        /// What was attempted.
        doing: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
}

/// Runs the load on threads of its own and blocks until it is done; `progress` is called every [`PROGRESS_INTERVAL`].
///
/// # Errors
/// [`Error`]. Failing requests are no error: they are in the report.
pub fn run(config: &LoadConfig, progress: &mut dyn FnMut(&Progress)) -> Result<Report, Error> {
    let plan = Arc::new(Plan::new(config)?);
    if config.preload && config.kind.reads() {
        let plan = plan.clone();
        let preload = std::thread::spawn(move || -> Result<(), Error> {
            let written = async { tokio::time::timeout(PRELOAD_TIMEOUT, worker::preload(plan)).await };
            let written = runtime()?.block_on(written);
            written.map_err(|_| Error::Preload(format!("not done after {} s", PRELOAD_TIMEOUT.as_secs())))?
        });
        preload.join().map_err(|_| Error::Preload("the thread that writes them panicked".to_owned()))??;
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(config.clients);
    let shards: Vec<_> = (0..threads).map(|_| Arc::new(Shard::new())).collect();
    let started = clock::now();
    // Nothing is ever sent: the channel closes when the last thread is done, and that is the message.
    let (running, done) = mpsc::sync_channel::<()>(1);
    let mut handles = Vec::new();
    for (thread, shard) in shards.iter().enumerate() {
        let (plan, shard, running) = (plan.clone(), shard.clone(), running.clone());
        let clients: Vec<usize> = (thread..config.clients).step_by(threads).collect();
        let work = move || -> Result<(), Error> {
            runtime()?.block_on(worker::run(plan, shard, clients, started));
            drop(running);
            Ok(())
        };
        let name = format!("load-{thread}");
        let spawned = std::thread::Builder::new().name(name).spawn(work);
        handles.push(spawned.map_err(|error| Error::Local { doing: "start a thread", error })?);
    }
    drop(running);
    let mut meter = Meter::new(shards, started);
    while done.recv_timeout(PROGRESS_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
        progress(&meter.progress());
    }
    for handle in handles {
        handle.join().map_err(|_| Error::Usage("a load thread panicked; this is a bug".to_owned()))??;
    }
    Ok(meter.report(config))
}

/// One thread, no work stealing: clients stay where they are and never wait for each other's locks.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Local { doing: "start a runtime", error })
}

#[cfg(test)]
mod tests;
