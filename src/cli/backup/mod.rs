//! `backup`: looking at an off-site archive, proving that it can be restored, and keeping it in order.
//!
//! Guarantees: needs no cluster; what only looks writes nothing. Leaves out: making archives, which the nodes do, and
//! bringing them back (`restore`).

mod drill;
mod keys;
mod show;

use super::Failure;
use super::connect::Global;

/// Off-site archives: look, prove, keep in order
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  \
    quorate backup list s3://bucket/prefix\n  \
    quorate backup drill s3://bucket/prefix --identity key.txt\n\n\
    To bring one back see 'quorate restore --help'.")]
pub(super) enum BackupCommand {
    List(show::List),
    Show(show::Show),
    Drill(Box<drill::Drill>),
    #[command(subcommand)]
    Keys(keys::KeysCommand),
}

impl BackupCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(global).await,
            Self::Show(show) => show.run(global).await,
            Self::Drill(drill) => drill.run(global).await,
            Self::Keys(keys) => keys.run(global).await,
        }
    }
}
