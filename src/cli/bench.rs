//! `bench`: load, with a live line on standard error and a report on standard output.
//!
//! Guarantees: the report comes even if requests failed; a run in which nothing succeeded is exit code 3. Leaves out: the
//! load (`workload`).

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use super::connect::Global;
use super::output::Format;
use crate::config::{Size, Span};
use crate::workload::{self, Kind, Latency, LoadConfig, Progress, Protocol, Report};

/// Measure rates and latencies under load
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  quorate bench put --clients 64 --duration 10s")]
pub(super) enum BenchCommand {
    Put(PutLoad),
    Get(GetLoad),
    Stale(StaleLoad),
    Mixed(MixedLoad),
    Txn(TxnLoad),
    EchoServer(EchoServer),
}

/// Write values
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate bench put --clients 64 --duration 10s --value-size 256")]
pub(super) struct PutLoad {
    #[command(flatten)]
    load: Load,
}

/// Read values, linearizably
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate bench get --clients 64 --duration 10s --keys 20000")]
pub(super) struct GetLoad {
    #[command(flatten)]
    load: Load,
}

/// Read values as the node that is asked has them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate bench stale --clients 64 --duration 10s --output json")]
pub(super) struct StaleLoad {
    #[command(flatten)]
    load: Load,
}

/// Read values, linearizably, and write now and then
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate bench mixed --reads-per-write 9 --rate 5000")]
pub(super) struct MixedLoad {
    /// Reads for each write, on average
    #[arg(long, value_name = "COUNT", default_value_t = 9)]
    reads_per_write: u32,
    #[command(flatten)]
    load: Load,
}

/// Carry out transactions: a comparison, a write and a read each
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate bench txn --clients 16 --duration 10s")]
pub(super) struct TxnLoad {
    #[command(flatten)]
    load: Load,
}

/// Serve answers without any work, to find the ceiling of this machine with 'bench get'
#[derive(Debug, clap::Args)]
#[command(hide = true, after_help = "Example:\n  quorate bench echo-server --listen 127.0.0.1:7400")]
pub(super) struct EchoServer {
    /// Where to listen; port 0 takes a free one, which is printed
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,
}

/// What is asked of the cluster.
#[derive(Debug, clap::Args)]
struct Load {
    /// Clients, each with one request at a time
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    clients: usize,
    /// How long
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    duration: Span,
    /// Different keys
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    keys: u64,
    /// Size of each value
    #[arg(long, value_name = "SIZE", default_value = "256")]
    value_size: Size,
    /// Requests a second by all clients together [default: as fast as answers come]
    #[arg(long, value_name = "RATE")]
    rate: Option<u64>,
    /// What every key begins with
    #[arg(long, value_name = "TEXT", default_value = "bench/")]
    key_prefix: String,
    /// Determines keys and values
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Try again at once where a node says when to come back
    #[arg(long)]
    ignore_retry_after: bool,
    /// Don't write the keys before they are read
    #[arg(long)]
    no_preload: bool,
    /// What the endpoints speak
    #[arg(long, value_name = "PROTOCOL", value_enum, default_value_t = ProtocolName::Quorate, hide = true)]
    protocol: ProtocolName,
}

/// What the endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ProtocolName {
    /// The API of this store
    Quorate,
    /// The JSON gateway of etcd, to compare with
    EtcdGateway,
}

impl BenchCommand {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Put(put) => put.load.run(Kind::Put, global),
            Self::Get(get) => get.load.run(Kind::Get, global),
            Self::Stale(stale) => stale.load.run(Kind::Stale, global),
            Self::Mixed(mixed) => mixed.load.run(Kind::Mixed { reads_per_write: mixed.reads_per_write }, global),
            Self::Txn(txn) => txn.load.run(Kind::Txn, global),
            Self::EchoServer(server) => server.run(global),
        }
    }
}

impl Load {
    fn run(self, kind: Kind, global: &Global) -> Result<(), Failure> {
        let config = LoadConfig {
            endpoints: global.endpoint.clone(),
            kind,
            clients: self.clients,
            duration: self.duration.0,
            keys: self.keys,
            value_size: usize::try_from(self.value_size.0).unwrap_or(usize::MAX),
            rate: self.rate,
            key_prefix: self.key_prefix,
            seed: self.seed,
            heed_retry_after: !self.ignore_retry_after,
            timeout: global.timeout.0,
            preload: !self.no_preload,
            protocol: match self.protocol {
                ProtocolName::Quorate => Protocol::Quorate,
                ProtocolName::EtcdGateway => Protocol::EtcdGateway,
            },
        };
        let line = progress_line(config.duration);
        let report = workload::run(&config, &mut |progress| show(&line, progress));
        line.finish_and_clear();
        let report = report.map_err(|error| match error {
            workload::Error::Usage(message) => Failure::usage(message),
            other => Failure::unavailable(other.to_string()),
        })?;
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&report)?,
            Format::Text => out.text(&text_of(&report))?,
        }
        out.finish()?;
        if report.operations == 0 {
            return Err(Failure::unavailable("no request succeeded"));
        }
        Ok(())
    }
}

/// A line that is drawn anew while the run goes on; on a standard error that is no terminal, nothing.
fn progress_line(duration: Duration) -> ProgressBar {
    let line = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    // A template that is wrong would only cost the looks.
    if let Ok(style) = ProgressStyle::with_template("{bar:20} {elapsed:>4}  {msg}") {
        line.set_style(style);
    }
    line.set_message("starting");
    line
}

fn show(line: &ProgressBar, progress: &Progress) {
    line.set_position(u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX));
    line.set_message(format!(
        "{:.0}/s  p50 {}  p99 {}  errors {}",
        progress.rate_per_second,
        milliseconds(progress.p50_us),
        milliseconds(progress.p99_us),
        progress.errors
    ));
}

fn text_of(report: &Report) -> String {
    let mut text = format!(
        "{}: {} clients, {} keys, {}-byte values, {:.1} s\n",
        report.kind, report.clients, report.keys, report.value_size, report.elapsed_seconds
    );
    text += &format!(
        "  rate     {:.0}/s, {} done ({} reads, {} acknowledged writes)\n",
        report.rate_per_second, report.operations, report.reads, report.writes_acknowledged
    );
    if report.reads > 0 && report.writes_acknowledged > 0 {
        text += &latency_line("reads", report.read_latency_us);
        text += &latency_line("writes", report.write_latency_us);
    } else {
        text += &latency_line("latency", report.latency_us);
    }
    text += &format!(
        "  failed   {} refused, {} unavailable, {} unknown\n",
        report.refused, report.unavailable, report.unknown
    );
    text += &latency_line("refusals", report.refusal_latency_us);
    for (kind, count) in &report.errors {
        text += &format!("           {kind} {count}\n");
    }
    text
}

fn latency_line(name: &str, latency: Option<Latency>) -> String {
    let Some(latency) = latency else { return String::new() };
    format!(
        "  {name:<8} p50 {}, p90 {}, p99 {}, p99.9 {}, max {}\n",
        milliseconds(latency.p50),
        milliseconds(latency.p90),
        milliseconds(latency.p99),
        milliseconds(latency.p999),
        milliseconds(latency.max)
    )
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

impl EchoServer {
    fn run(self, global: &Global) -> Result<(), Failure> {
        super::client_command(async {
            let refused = |error| Failure::usage(format!("can't listen on {}: {error}", self.listen));
            let listener = tokio::net::TcpListener::bind(&self.listen).await.map_err(refused)?;
            let address = listener.local_addr().map_err(refused)?;
            let mut out = global.out();
            out.line(&format!("http://{address}"))?;
            out.finish()?;
            workload::serve_echo(listener).await.map_err(|error| Failure::unavailable(error.to_string()))
        })
    }
}
