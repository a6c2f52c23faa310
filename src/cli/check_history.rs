//! `check-history`: judges histories that `workload` or anything else has recorded.
//!
//! Guarantees: exit code 0 only if every file was read whole and is right; 4 if one is not, or can't be judged; 2 if one
//! can't be read. Needs no cluster. Leaves out: judging (`workload::history`).

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Failure;
use super::archive::bytes_bar;
use super::connect::Global;
use super::failure::note;
use super::output::{Format, Output};
use crate::workload::history::{self, FileError, History, Judgement, Verdict};

/// What is read from a file at a time, in bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Judge recorded histories: could one copy of the store have given these answers?
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  quorate workload --duration 60s --history run.history && quorate check-history run.history"
)]
pub(super) struct CheckHistory {
    /// Histories; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl CheckHistory {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let mut out = global.out();
        let (mut unreadable, mut wrong) = (Vec::new(), 0);
        for file in &self.files {
            let name = file.display().to_string();
            match read(file) {
                Err(error) => unreadable.push(format!("{name}: {error}")),
                Ok(history) => {
                    let judgement = history::judge(&history.operations);
                    wrong += usize::from(judgement.verdict != Verdict::Right);
                    tell(&mut out, &name, &history, &judgement)?;
                }
            }
        }
        out.finish()?;
        let last = if wrong == 0 { unreadable.pop() } else { None };
        unreadable.iter().for_each(|line| note(line));
        match (wrong, last) {
            (0, None) => Ok(()),
            (0, Some(line)) => Err(Failure::usage(line)),
            (wrong, _) => Err(Failure::integrity(match self.files.len() {
                1 => "the history is not right".to_owned(),
                files => format!("{wrong} of {files} histories are not right"),
            })),
        }
    }
}

fn read(path: &Path) -> Result<History, FileError> {
    if path.as_os_str() == "-" {
        return history::read(io::stdin().lock(), &mut |_| {});
    }
    let file = File::open(path)?;
    let bar = bytes_bar("reading", file.metadata().map_or(0, |meta| meta.len()));
    let read = history::read(BufReader::with_capacity(READ_BYTES, file), &mut |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    read
}

fn tell(out: &mut Output, name: &str, history: &History, judgement: &Judgement) -> Result<(), Failure> {
    match out.format {
        Format::Json => {
            let mut told = json!(judgement);
            told["file"] = json!(name);
            told["started"] = json!(history.head.started);
            told["nodes"] = json!(history.head.nodes);
            out.json(&told)
        }
        Format::Text => out.text(&text_of(name, history, judgement)),
    }
}

fn text_of(name: &str, history: &History, judgement: &Judgement) -> String {
    let summary = &judgement.summary;
    let verdict = match judgement.verdict {
        Verdict::Right => "right",
        Verdict::Violated => "NOT RIGHT",
        Verdict::Undecided => "CAN'T BE JUDGED",
    };
    let mut text = format!(
        "{name}: {verdict}: {} operations of {} clients on {} keys at {} nodes in {:.1} s, from {}\n",
        summary.operations,
        summary.clients,
        summary.keys,
        history.head.nodes.len(),
        summary.span_seconds,
        history.head.started
    );
    let kinds: Vec<String> = summary.by_kind.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    text += &format!("  {}\n", kinds.join(", "));
    text += &format!(
        "  {} done, {} refused, {} of unknown outcome, {} of those seen to have been done\n",
        summary.done, summary.refused, summary.unknown, summary.unknown_seen
    );
    text += &format!(
        "  {} keys judged by their revisions, {} by a search that tried {} situations; {} without a last read\n",
        summary.keys_by_revision, summary.keys_by_search, summary.search_tried, summary.keys_without_final_read
    );
    for violation in &judgement.violations {
        text += &format!("  {violation}\n");
    }
    if judgement.violations_total > judgement.violations.len() {
        text += &format!("  and {} more\n", judgement.violations_total - judgement.violations.len());
    }
    text
}
