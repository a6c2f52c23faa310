//! `backup status` and `backup run`: what the cluster says of its off-site copies.
//!
//! Guarantees: `status` ends with exit code 3 if nobody archives to a place, after all were shown; `run --wait` ends with
//! success only once the new state is archived. Leaves out: what is in an archive.

use std::time::Duration;

use crate::api::model::{BackupInfo, TroubleInfo};
use crate::cli::Failure;
use crate::cli::cluster::{heading, known};
use crate::cli::connect::Global;
use crate::cli::output::Format;
use crate::clock;

/// After this time the node that is asked has heard from the one that archives that it took the order.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// How often it is looked whether the new state is archived.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Show how the off-site copies of the cluster stand
///
/// How far each archive reaches, what would be lost if all nodes were lost now (RPO), which node archives, when the archive was
/// verified and drilled last, and why something fails.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup status")]
pub(in crate::cli) struct Status {}

/// Archive a whole state now, beside the schedule
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup run main --wait")]
pub(in crate::cli) struct Run {
    /// Name of the place for backups, as in the configuration of the nodes
    #[arg(value_name = "NAME")]
    name: String,
    /// End only once it is archived, or after --patience
    #[arg(long)]
    wait: bool,
    /// How long --wait waits at most
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    patience: Duration,
}

impl Status {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let backups = global.client()?.backups().await?.value;
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&backups)?,
            Format::Text if backups.backups.is_empty() => {
                out.line("there is no place for backups: 'quorate backup add' declares one, or add a [[backup]] to the configuration of the nodes")?;
            }
            Format::Text => {
                let columns = [
                    "NAME",
                    "STORE",
                    "ARCHIVES",
                    "RPO",
                    "REVISION",
                    "LAST FULL",
                    "VERIFIED",
                    "DRILLED",
                    "HELD",
                    "OBJECTS",
                    "BYTES",
                ];
                let rows = std::iter::once(heading(&columns)).chain(backups.backups.iter().map(row));
                out.table(&rows.collect::<Vec<_>>())?;
                for line in backups.backups.iter().flat_map(remarks) {
                    out.line(&line)?;
                }
            }
        }
        out.finish()?;
        match backups.backups.iter().find(|backup| backup.active.is_none()) {
            None => Ok(()),
            Some(backup) => Err(Failure::unavailable(format!("nobody archives to {} at present", backup.name))),
        }
    }
}

/// What is not as it should be with a place.
fn remarks(backup: &BackupInfo) -> Vec<String> {
    let name = &backup.name;
    let mut remarks: Vec<String> = backup.idle.iter().map(|why| format!("{name}: {why}")).collect();
    let fails = |trouble: &TroubleInfo| format!("{name}: node {} fails: {}", trouble.node, trouble.error);
    remarks.extend(backup.troubles.iter().map(fails));
    if let Some(proofs) = &backup.proofs {
        let failed = proofs.failed.iter();
        remarks.extend(failed.map(|failed| format!("{name}: the archive did not pass a check: {}", failed.finding)));
        let drill = proofs.drill_error.iter();
        remarks.extend(drill.map(|error| format!("{name}: a drill could not be made: {error}")));
    }
    remarks
}

fn row(backup: &BackupInfo) -> Vec<String> {
    let span = |ms: u64| humantime::format_duration(Duration::from_millis(ms)).to_string();
    let ago = |at: u64| {
        let age = clock::wall().get().saturating_sub(at) / 1_000;
        format!("{} ago", humantime::format_duration(Duration::from_secs(age)))
    };
    // A check of that kind that failed later than the last that passed counts.
    let proofs = backup.proofs.as_ref();
    let proven = |kind: &str, at: Option<u64>| match (at, proofs.and_then(|proofs| proofs.failed.as_ref())) {
        (at, Some(failed)) if at < Some(failed.time_unix_ms) && failed.finding.starts_with(kind) => "FAILED".to_owned(),
        (None, _) if proofs.is_some() => "never".to_owned(),
        (at, _) => known(at.map(ago)),
    };
    let full = backup.full.map(|full| ago(full.time_unix_ms));
    let store = if backup.encrypted { backup.url.clone() } else { format!("{} (NOT encrypted)", backup.url) };
    vec![
        backup.name.clone(),
        store,
        backup.active.map_or_else(|| "nobody".to_owned(), |id| format!("node {id}")),
        known(backup.rpo_ms.map(span)),
        known(backup.archived_revision),
        known(full),
        proven("verify", proofs.and_then(|proofs| proofs.verified_unix_ms)),
        proven("drill", proofs.and_then(|proofs| proofs.drilled_unix_ms)),
        known(backup.held_entries),
        backup.objects.to_string(),
        backup.bytes.to_string(),
    ]
}

impl Run {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let standing = async || {
            let backups = client.backups().await?.value.backups;
            let found = backups.into_iter().find(|backup| backup.name == self.name);
            Ok::<_, Failure>(found.map_or((None, false), |backup| (backup.full, backup.full_under_way)))
        };
        let before = standing().await?.0.map(|full| full.time_unix_ms);
        let mut out = global.out();
        let taken = client.run_backup(&self.name).await?.value;
        if !self.wait {
            match out.format {
                Format::Json => out.json(&taken)?,
                Format::Text => out.line(&format!("node {} sends a whole state to {}", taken.node, taken.name))?,
            }
            return out.finish();
        }
        let (deadline, settled) = (clock::now() + self.patience, clock::now() + SETTLED_AFTER);
        loop {
            let (full, under_way) = standing().await?;
            // Where nothing was written since, the same snapshot is sent again.
            let done = |at: u64| Some(at) > before || !under_way && clock::now() >= settled;
            if let Some(full) = full.filter(|full| done(full.time_unix_ms)) {
                match out.format {
                    Format::Json => out.json(&full)?,
                    Format::Text => {
                        out.line(&format!("archived at revision {}, {} bytes", full.revision, full.bytes))?;
                    }
                }
                return out.finish();
            }
            if clock::now() >= deadline {
                return Err(Failure::unavailable(
                    "the whole state is not archived yet; 'quorate backup status' tells how it stands",
                ));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
