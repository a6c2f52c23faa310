//! `backup`: how the off-site copies of a cluster stand; looking at an archive, proving that it can be restored, and
//! keeping it in order.
//!
//! Guarantees: what works on an archive needs no cluster; what only looks changes nothing. Leaves out: making archives,
//! which the nodes do, and bringing them back (`restore`).

mod drill;
mod keys;
mod show;
mod standing;
mod upkeep;
mod verify;

use super::Failure;
use super::connect::Global;
use crate::config::Span;

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
    Verify(Box<verify::Verify>),
    Drill(Box<drill::Drill>),
    Prune(Box<upkeep::Prune>),
    Copy(Box<upkeep::Copy>),
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
            Self::Verify(verify) => verify.run(global).await,
            Self::Drill(drill) => drill.run(global).await,
            Self::Prune(prune) => prune.run(global).await,
            Self::Copy(copy) => copy.run(global).await,
            Self::Keys(keys) => keys.run(global).await,
        }
    }
}

/// Does something once, or again and again with a pause between; then a failure is told and does not end it.
async fn again_and_again(every: Option<Span>, once: impl AsyncFn() -> Result<(), Failure>) -> Result<(), Failure> {
    let Some(Span(pause)) = every else { return once().await };
    if pause.is_zero() {
        return Err(Failure::usage("--every is 0s; it must be longer"));
    }
    loop {
        if let Err(error) = once().await {
            error.report();
        }
        tokio::time::sleep(pause).await;
    }
}
