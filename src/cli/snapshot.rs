//! `snapshot save`, `inspect`, `verify`.
//!
//! Guarantees: `inspect` and `verify` need no cluster; a damaged file is exit code 4. Leaves out: restoring.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Failure;
use super::connect::Global;
use super::output::Format;
use crate::state::snapshot::{self, SnapshotError, SnapshotMeta};

/// Snapshot files: save, look into, verify
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  quorate snapshot save backup.snapshot && quorate snapshot verify backup.snapshot")]
pub(super) enum SnapshotCommand {
    Save(Save),
    Inspect(Inspect),
    Verify(Verify),
}

/// Save a snapshot of this moment to a file
///
/// The file appears under its name once it is complete and its digest was checked; one that was there is replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate snapshot save backup.snapshot")]
pub(super) struct Save {
    /// The file
    file: PathBuf,
}

/// Show what a snapshot file says it is, without reading all of it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate snapshot inspect backup.snapshot --output json")]
pub(super) struct Inspect {
    /// The file
    file: PathBuf,
}

/// Read a snapshot file to its end and check everything in it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate snapshot verify backup.snapshot && echo sound")]
pub(super) struct Verify {
    /// The file
    file: PathBuf,
}

impl SnapshotCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let facts = match self {
            Self::Save(Save { file }) => {
                let saved = global.client()?.save_snapshot(&file).await?;
                vec![
                    ("file", json!(file.display().to_string())),
                    ("revision", json!(saved.revision.get())),
                    ("file_bytes", json!(saved.bytes)),
                    ("sha256", json!(hex(&saved.sha256))),
                ]
            }
            Self::Inspect(Inspect { file }) => {
                let meta = snapshot::inspect(&file).map_err(|error| failure(&file, &error))?;
                meta_facts(&meta)
            }
            Self::Verify(Verify { file }) => {
                let summary = snapshot::verify(&file).map_err(|error| failure(&file, &error))?;
                let mut facts = meta_facts(&summary.meta);
                facts.extend([
                    ("records", json!(summary.records)),
                    ("keys", json!(summary.keys)),
                    ("file_bytes", json!(summary.file_bytes)),
                    ("sha256", json!(hex(&summary.sha256))),
                ]);
                facts
            }
        };
        let mut out = global.out();
        match out.format {
            Format::Json => {
                let object: serde_json::Map<_, _> =
                    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                out.json(&object)?;
            }
            Format::Text => {
                let rows: Vec<_> = facts.iter().map(|(name, value)| vec![format!("{name}:"), plain(value)]).collect();
                out.table(&rows)?;
            }
        }
        out.finish()
    }
}

fn meta_facts(meta: &SnapshotMeta) -> Vec<(&'static str, Value)> {
    let created = UNIX_EPOCH + Duration::from_millis(meta.created_at.get());
    vec![
        ("cluster_id", json!(meta.cluster_id.get())),
        ("revision", json!(meta.revision.get())),
        ("compacted_revision", json!(meta.compacted.get())),
        ("term", json!(meta.position.map(|position| position.term.get()))),
        ("index", json!(meta.position.map(|position| position.index.get()))),
        ("state_hash", json!(format!("{:032x}", meta.hash))),
        ("created_at", json!(humantime::format_rfc3339_seconds(created).to_string())),
    ]
}

fn failure(file: &Path, error: &SnapshotError) -> Failure {
    let line = format!("{}: {error}", file.display());
    match error {
        SnapshotError::Io { .. } => Failure::usage(format!("can't {error}")),
        SnapshotError::Newer { .. } | SnapshotError::NewerSection { .. } => Failure::usage(line),
        SnapshotError::NotASnapshot { .. } | SnapshotError::Cut { .. } | SnapshotError::Damaged { .. } => {
            Failure::integrity(line)
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
