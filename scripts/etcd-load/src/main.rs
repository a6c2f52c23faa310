//! Closed-loop load on an etcd cluster: each client sends its next request when the last one was answered.
//!
//! The counterpart of `quorate bench` for scripts/bench-etcd: the same key names, values, mix, spread over endpoints,
//! percentiles and output. Guarantees: every answer is decoded and a wrong or missing value counts as an error. Leaves
//! out: TLS, authentication, retries.

mod rpc;

use std::cell::RefCell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rpc::Connection;
use serde_json::json;
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The longest latency that is told apart, in microseconds.
const LATENCY_MICROS_MAX: u64 = 60_000_000;
/// How long requests in flight at the end are waited for.
const DRAIN: Duration = Duration::from_secs(10);
/// One write for this many operations in the mixed load.
const MIXED_ONE_WRITE_IN: u32 = 10;

/// Closed-loop load on an etcd cluster.
#[derive(Parser, Clone)]
struct Options {
    /// What to do.
    kind: Kind,
    /// Members, `host:port`; clients are spread over them.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoint: Vec<String>,
    /// Clients, each with one request in flight.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Connections all clients share; 0 is one for each client.
    #[arg(long, default_value_t = 0)]
    connections: usize,
    /// Threads of this program.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How long is measured.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long the load runs before.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Keys, drawn evenly.
    #[arg(long, default_value_t = 20_000)]
    keys: u32,
    /// Bytes in a value.
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Every key once, so that reads find something.
    Fill,
    /// Writes.
    Put,
    /// Linearizable reads.
    Get,
    /// Reads of whatever the member has.
    Stale,
    /// One write to nine linearizable reads.
    Mixed,
}

/// What one thread saw.
struct Tally {
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

fn key(number: u32) -> Bytes {
    format!("bench/{number:010}").into()
}

/// One client, until `end`; what ends before `begin` is not counted.
async fn client(
    options: &Options,
    number: usize,
    connection: &Connection,
    begin: Instant,
    end: Instant,
    tally: &RefCell<Tally>,
) {
    let mut random = SmallRng::seed_from_u64(number as u64);
    let mut value = vec![0; options.value_size];
    random.fill(&mut value[..]);
    let value = Bytes::from(value);
    let mut to_fill = (number as u32..options.keys).step_by(options.clients);
    loop {
        let (key, write) = match options.kind {
            Kind::Fill => match to_fill.next() {
                Some(number) => (key(number), true),
                None => return,
            },
            Kind::Put => (key(random.random_range(0..options.keys)), true),
            Kind::Get | Kind::Stale => (key(random.random_range(0..options.keys)), false),
            Kind::Mixed => (key(random.random_range(0..options.keys)), random.random_range(0..MIXED_ONE_WRITE_IN) == 0),
        };
        let started = Instant::now();
        if started >= end && options.kind != Kind::Fill {
            return;
        }
        let result = if write {
            connection.put(key, value.clone()).await
        } else {
            connection.get(key, options.kind == Kind::Stale).await.and_then(|found| {
                ensure!(found.is_some_and(|found| found.len() == options.value_size), "a read found no value");
                Ok(())
            })
        };
        let ended = Instant::now();
        let mut tally = tally.borrow_mut();
        match result {
            Ok(()) if ended >= begin && ended <= end => {
                let micros = (ended - started).as_micros() as u64;
                tally.latencies.saturating_record(micros.clamp(1, LATENCY_MICROS_MAX));
            }
            Ok(()) => {}
            Err(error) => {
                tally.errors += 1;
                tally.first_error.get_or_insert(format!("{error:#}"));
            }
        }
    }
}

/// The clients that fall to one thread.
async fn run_thread(options: Options, thread: usize, begin: Instant, end: Instant) -> Result<Tally> {
    let latencies = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)?;
    let tally = Rc::new(RefCell::new(Tally { latencies, errors: 0, first_error: None }));
    let own: Vec<usize> = (thread..options.clients).step_by(options.threads).collect();
    let connections = if options.connections == 0 { own.len() } else { options.connections.div_ceil(options.threads) };
    let mut open = Vec::new();
    for number in 0..connections.min(own.len()) {
        let endpoint = (thread + number * options.threads) % options.endpoint.len();
        open.push(Connection::open(&options.endpoint[endpoint]).await?);
    }
    let mut tasks = Vec::new();
    for (place, number) in own.into_iter().enumerate() {
        let (options, connection, tally) = (options.clone(), open[place % open.len()].clone(), Rc::clone(&tally));
        tasks.push(tokio::task::spawn_local(async move {
            client(&options, number, &connection, begin, end, &tally).await;
        }));
    }
    let all = async {
        for task in tasks {
            task.await.context("a client panicked")?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout_at((end + DRAIN).into(), all)
        .await
        .context("requests are still in flight after the end")??;
    let tally = Rc::try_unwrap(tally).ok().context("a client is still at work")?;
    Ok(tally.into_inner())
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    options.threads = options.threads.min(options.clients).max(1);
    let begin = Instant::now() + options.warmup;
    let end = begin + options.duration;
    let threads: Vec<_> = (0..options.threads)
        .map(|thread| {
            let options = options.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, run_thread(options, thread, begin, end))
            })
        })
        .collect();
    let mut latencies = Histogram::<u64>::new_with_bounds(1, LATENCY_MICROS_MAX, 3)?;
    let (mut errors, mut first_error) = (0, None);
    for thread in threads {
        let tally = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        latencies.add(&tally.latencies)?;
        errors += tally.errors;
        first_error = first_error.or(tally.first_error);
    }
    if let Some(error) = first_error {
        eprintln!("{errors} errors; the first: {error}");
    }
    let millis = |micros: u64| micros as f64 / 1e3;
    let seconds = options.duration.as_secs_f64();
    let kind = options.kind.to_possible_value().map(|kind| kind.get_name().to_owned());
    println!(
        "{}",
        json!({
            "kind": kind, "clients": options.clients, "seconds": seconds, "ops": latencies.len(), "errors": errors,
            "rate": latencies.len() as f64 / seconds, "p50_ms": millis(latencies.value_at_quantile(0.5)),
            "p99_ms": millis(latencies.value_at_quantile(0.99)), "max_ms": millis(latencies.max()),
        })
    );
    Ok(())
}
