//! `workload`: a bit of everything, done to a cluster and noted down as a history that `check-history` judges.
//!
//! Guarantees: with a signal it ends in order, with a whole file; a file that is there already is not touched; a file that
//! can't be written any more ends the run; exit code 4 if an answer made no sense. Leaves out: the work (`workload::recording`).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};

use super::Failure;
use super::connect::Global;
use super::output::Format;
use super::run_server::signal;
use crate::config::{Size, Span};
use crate::workload::history::{Operation, Writer};
use crate::workload::{Error, Mix, NOTES_MAX, Recording, RecordingConfig, Summary};

/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Do a bit of everything to a cluster and note down what it answers, to be judged by 'check-history'
///
/// Clients put, delete, read in every way, and run transactions, on keys that nobody else uses, and go on whatever fails: what
/// is refused or of unknown outcome is noted as that, and never sent again. At the end, or with SIGTERM or Ctrl-C, every key is
/// read once more at every node; a second signal cuts that short.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  quorate workload --duration 60s --history run.history && quorate check-history run.history"
)]
pub(super) struct WorkloadCommand {
    /// Where the history is written; must not be there yet; - is standard output
    #[arg(long, value_name = "FILE")]
    history: PathBuf,
    /// Clients, each with one operation at a time
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    clients: usize,
    /// How long, without the reads at the end
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    duration: Span,
    /// Keys in use at a time; each is given up for a new one after some hundred operations
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    keys: u64,
    /// What is done
    #[arg(long, value_name = "MIX", value_enum, default_value_t = MixName::Default)]
    mix: MixName,
    /// Operations a second by all clients together [default: 2 ms between two of a client]
    #[arg(long, value_name = "RATE")]
    rate: Option<u64>,
    /// Determines what is done
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// How long each operation may take
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    deadline: Span,
    /// The least size of each value
    #[arg(long, value_name = "SIZE", default_value = "0")]
    value_size: Size,
    /// What every key begins with; the name of the run follows
    #[arg(long, value_name = "TEXT", default_value = "history/")]
    key_prefix: String,
    /// How long the reads at the end may take
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    final_timeout: Span,
}

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MixName {
    /// A bit of everything
    Default,
    /// Puts and linearizable gets alone
    Registers,
}

impl WorkloadCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        if self.duration.0.is_zero() {
            return Err(Failure::usage("the duration is zero; it must be longer"));
        }
        let config = self.config(global);
        let signals = signal()?;
        let (sink, notes) = mpsc::channel(NOTES_MAX);
        let recording = Recording::start(&config, sink).map_err(|error| match error {
            Error::Usage(message) => Failure::usage(message),
            other => Failure::unavailable(other.to_string()),
        })?;
        let head = recording.head();
        // Clients that have begun wait for the file, as what they note is bounded; one that can't be made ends them.
        let writer = Writer::new(create(&self.history)?, &head).map_err(|error| unwritable(&self.history, &error))?;
        let writing = write(writer, notes)?;
        let line = progress_line(self.duration.0);
        load(&recording, self.duration.0, signals, &line, &writing).await;
        line.set_message("reading all keys");
        let summary = recording.finish(signal()?).await;
        line.finish_and_clear();
        let written =
            writing.join().map_err(|_| Failure::unavailable("the thread that writes the history panicked"))?;
        written.map_err(|error| unwritable(&self.history, &error))?;
        self.tell(global, &summary)
    }

    fn config(&self, global: &Global) -> RecordingConfig {
        RecordingConfig {
            endpoints: global.endpoint.clone(),
            clients: self.clients,
            keys: self.keys,
            mix: match self.mix {
                MixName::Default => Mix::Default,
                MixName::Registers => Mix::Registers,
            },
            rate: self.rate,
            seed: self.seed,
            deadline: self.deadline.0,
            value_size: usize::try_from(self.value_size.0).unwrap_or(usize::MAX),
            key_prefix: self.key_prefix.clone(),
            final_timeout: self.final_timeout.0,
            ..RecordingConfig::default()
        }
    }

    fn tell(&self, global: &Global, summary: &Summary) -> Result<(), Failure> {
        let name = self.history.display().to_string();
        // Where the history itself goes to standard output, nothing else may.
        if !is_standard_output(&self.history) {
            let mut out = global.out();
            match out.format {
                Format::Json => {
                    let mut told = json!(summary);
                    told["history"] = json!(name);
                    out.json(&told)?;
                }
                Format::Text => out.text(&text_of(&name, summary))?,
            }
            out.finish()?;
        }
        if summary.malformed > 0 {
            return Err(Failure::integrity(format!(
                "{} answers made no sense: a value that was never written, or an answer without what it must tell; 'quorate \
                 check-history {name}' names them",
                summary.malformed
            )));
        }
        if summary.done == 0 {
            return Err(Failure::unavailable("no operation was answered; are the endpoints right, and the nodes up?"));
        }
        if summary.keys_without_final_read > 0 {
            return Err(Failure::unavailable(format!(
                "{} of {} keys were told by no node at the end; {name} is whole, but does not show what became of them",
                summary.keys_without_final_read, summary.keys
            )));
        }
        Ok(())
    }
}

/// Waits for the end of the load: its time, a signal, or a file that can't be written any more.
async fn load(
    recording: &Recording,
    duration: Duration,
    signals: impl Future<Output = ()>,
    line: &ProgressBar,
    writing: &JoinHandle<io::Result<()>>,
) {
    let mut ticks = interval(PROGRESS_INTERVAL);
    let shown = async {
        while !writing.is_finished() {
            ticks.tick().await;
            let summary = recording.summary();
            line.set_position((summary.elapsed_seconds * 1000.0) as u64);
            line.set_message(format!(
                "{} done, {} refused, {} unknown, longest gap {} ms",
                summary.done, summary.refused, summary.unknown, summary.longest_gap_ms
            ));
        }
    };
    tokio::select! {
        () = sleep(duration) => {}
        () = signals => {}
        () = shown => {}
    }
}

/// Notes down what comes, on a thread of its own, and ends the file when nothing more can come.
fn write(
    mut writer: Writer<Box<dyn Write + Send>>,
    mut notes: mpsc::Receiver<Operation>,
) -> Result<JoinHandle<io::Result<()>>, Failure> {
    let work = move || {
        while let Some(operation) = notes.blocking_recv() {
            writer.push(&operation)?;
        }
        writer.finish().map(drop)
    };
    let spawned = std::thread::Builder::new().name("history".to_owned()).spawn(work);
    spawned.map_err(|error| Failure::unavailable(format!("can't start a thread: {error}")))
}

fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn create(path: &Path) -> Result<Box<dyn Write + Send>, Failure> {
    if is_standard_output(path) {
        return Ok(Box::new(BufWriter::new(io::stdout())));
    }
    match File::create_new(path) {
        Ok(file) => Ok(Box::new(BufWriter::new(file))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Failure::usage(format!("{} is there already; name another file", path.display())))
        }
        Err(error) => Err(unwritable(path, &error)),
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("can't write {}: {error}", path.display()))
}

/// A line that is drawn anew while the run goes on; on a standard error that is no terminal, nothing.
fn progress_line(duration: Duration) -> ProgressBar {
    let line = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    // A template that is wrong would only cost the looks.
    if let Ok(style) = ProgressStyle::with_template("{bar:20} {elapsed:>4}  {msg}") {
        line.set_style(style);
    }
    line
}

fn text_of(name: &str, summary: &Summary) -> String {
    let mut text = format!(
        "{name}: {} operations in {:.1} s: {} done, {} refused, {} of unknown outcome\n",
        summary.operations, summary.elapsed_seconds, summary.done, summary.refused, summary.unknown
    );
    for (kind, count) in &summary.by_kind {
        text += &format!("  {kind:<18} {count}\n");
    }
    for (code, count) in &summary.by_code {
        text += &format!("  not done           {count} {code}\n");
    }
    text += &format!(
        "  longest time without an acknowledged write {} ms; {} keys, {} of them not read at the end\n",
        summary.longest_gap_ms, summary.keys, summary.keys_without_final_read
    );
    text
}
