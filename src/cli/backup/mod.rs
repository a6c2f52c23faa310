//! `backup`: how the off-site copies of a cluster stand; looking at an archive, proving that it can be restored, and
//! keeping it in order.
//!
//! Guarantees: what works on an archive needs no cluster; what only looks changes nothing. Leaves out: making archives,
//! which the nodes do, and bringing them back (`restore`).

mod drill;
mod keys;
mod show;
mod standing;

use super::Failure;
use super::connect::Global;

/// Off-site archives: how they stand; look, prove, keep in order
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  \
    quorate backup status\n  \
    quorate backup run main --wait\n  \
    quorate backup list s3://bucket/prefix\n  \
    quorate backup drill s3://bucket/prefix --identity key.txt\n\n\
    To bring one back see 'quorate restore --help'.")]
pub(super) enum BackupCommand {
    Status(standing::Status),
    Run(standing::Run),
    List(show::List),
    Show(show::Show),
    Drill(Box<drill::Drill>),
    #[command(subcommand)]
    Keys(keys::KeysCommand),
}

impl BackupCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Status(status) => status.run(global).await,
            Self::Run(run) => run.run(global).await,
            Self::List(list) => list.run(global).await,
            Self::Show(show) => show.run(global).await,
            Self::Drill(drill) => drill.run(global).await,
            Self::Keys(keys) => keys.run(global).await,
        }
    }
}
