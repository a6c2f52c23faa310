//! `backup`: how the off-site copies of a cluster stand.
//!
//! Guarantees: what only looks changes nothing. Leaves out: making archives, which the nodes do.

mod standing;

use super::Failure;
use super::connect::Global;

/// Off-site archives: how they stand
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  quorate backup status\n  quorate backup run main --wait")]
pub(super) enum BackupCommand {
    Status(standing::Status),
    Run(standing::Run),
}

impl BackupCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Status(status) => status.run(global).await,
            Self::Run(run) => run.run(global).await,
        }
    }
}
