//! Logs and the metrics registry: what a member says about itself.
//!
//! Guarantees: logs go to standard error, one line an event; `/metrics` is OpenMetrics text that Prometheus takes; the
//! names of all series of ours begin with `quorate_`, those of the process with `process_` as in every Prometheus client.
//! Leaves out: the series themselves; each room keeps them beside the code that they measure and registers them here.

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, fmt as lines};

mod process;

/// The upper bounds, in seconds, of every latency histogram: from a loopback call to what a person would give up on. The
/// same for all, so that they can be laid over each other.
const LATENCY_BUCKETS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

/// The upper bounds, in bytes, of every size histogram: 64 B to 64 MiB by fours.
const SIZE_BUCKETS: [f64; 11] = [
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The upper bounds of every histogram of counts: entries in a batch, commands in a round.
const COUNT_BUCKETS: [f64; 13] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0, 16_384.0];

/// The buckets of latency histograms, in seconds: 50 µs to 10 s.
pub fn latency_buckets() -> impl Iterator<Item = f64> {
    LATENCY_BUCKETS.into_iter()
}

/// The buckets of size histograms, in bytes: 64 B to 64 MiB.
pub fn size_buckets() -> impl Iterator<Item = f64> {
    SIZE_BUCKETS.into_iter()
}

/// The buckets of count histograms: 1 to 16,384.
pub fn count_buckets() -> impl Iterator<Item = f64> {
    COUNT_BUCKETS.into_iter()
}

/// A label value that may hold anything. prometheus-client 0.24 writes label values as they are, so that one quotation
/// mark in a member's address would make a scraper refuse all of the text; this escapes what the format has escaped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LabelText(String);

impl LabelText {
    /// The label value for `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        if !text.contains(['\\', '"', '\n']) {
            return Self(text.to_owned());
        }
        Self(text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
    }
}

impl EncodeLabelValue for LabelText {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people: time, level, place, message, fields. Coloured on a terminal.
    #[default]
    Text,
    /// For machines: a JSON object a line, the event's fields beside the message.
    Json,
}

/// Why logging was not set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The environment variable can't be read as directives.
    #[error("RUST_LOG={value:?} is not understood: {source}; write it like \"info,quorate::raft=debug\"")]
    EnvironmentDirectives {
        /// What the variable holds.
        value: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The default directives can't be read as such.
    #[error(
        "the log level {value:?} is not understood: {source}; write it like \"info\" or \"info,quorate::raft=debug\""
    )]
    Directives {
        /// What was given.
        value: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process logs already.
    #[error("logging was set up before: {0}")]
    Twice(#[from] TryInitError),
}

/// Sends the process's logs to standard error. `default_directive` (`info`, or `info,quorate::raft=debug`) says what is
/// logged unless the environment variable `RUST_LOG` does. Colours on a terminal only, and not if `NO_COLOR` is set.
///
/// # Errors
/// [`TelemetryError`] if the directives can't be read or the process logs already.
#[expect(clippy::disallowed_methods, reason = "the one place that knows the conventions of logging")]
pub fn init(format: LogFormat, default_directive: &str) -> Result<(), TelemetryError> {
    let filter = filter(std::env::var(EnvFilter::DEFAULT_ENV).ok(), default_directive)?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = lines::layer().with_writer(std::io::stderr).with_ansi(colours);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(())
}

/// What is logged. An empty variable is as good as none.
fn filter(environment: Option<String>, default_directive: &str) -> Result<EnvFilter, TelemetryError> {
    let builder = EnvFilter::builder();
    match environment.filter(|value| !value.trim().is_empty()) {
        Some(value) => builder.parse(&value).map_err(|source| TelemetryError::EnvironmentDirectives { value, source }),
        None => builder
            .parse(default_directive)
            .map_err(|source| TelemetryError::Directives { value: default_directive.to_owned(), source }),
    }
}

/// The series of this process. Clones show the same.
#[derive(Clone)]
pub struct Metrics {
    registries: Arc<Mutex<Registries>>,
}

struct Registries {
    /// Names begin with `quorate_`.
    ours: Registry,
    /// Names as every Prometheus client has them.
    process: Registry,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The content type of [`Metrics::encode`]. Prometheus reads the text by it; as `text/plain` it would stumble over
    /// the `info` type.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// A registry with the series of the process (memory, CPU, descriptors, start; on Linux) and `quorate_build_info`.
    #[must_use]
    pub fn new() -> Self {
        let mut ours = Registry::with_prefix("quorate");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "The program that runs", build);
        let mut process = Registry::default();
        process.register_collector(Box::new(process::ProcessCollector));
        Self { registries: Arc::new(Mutex::new(Registries { ours, process })) }
    }

    /// Lets a room register its series; their names get the prefix `quorate_`. What the closure returns is handed on, so
    /// that a room's own `register(&mut Registry) -> Self` fits: `metrics.register(TransportMetrics::register)`.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registries.lock().ours)
    }

    /// All series now, as OpenMetrics text; see [`Metrics::CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let registries = self.registries.lock();
        let mut text = String::new();
        let result = encode_registry(&mut text, &registries.process)
            .and_then(|()| encode_registry(&mut text, &registries.ours))
            .and_then(|()| encode_eof(&mut text));
        if result.is_err() {
            // Without its end mark the text is refused by a scraper, which is right: something is missing from it.
            tracing::error!("a metric could not be encoded");
        }
        text
    }
}

#[cfg(test)]
mod tests;
