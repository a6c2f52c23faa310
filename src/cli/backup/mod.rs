//! `backup`: how the off-site copies of a cluster stand; looking at an archive, proving that it can be restored, and
//! keeping it in order.
//!
//! Guarantees: what works on an archive needs no cluster; what only looks changes nothing. Leaves out: making archives,
//! which the nodes do, and bringing them back (`restore`).

mod check;
mod declare;
mod drill;
mod keys;
mod room;
mod show;
mod standing;
mod upkeep;
mod verify;

use super::Failure;
use super::connect::Global;

/// Off-site archives: how they stand; look, prove, keep in order
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  \
    quorate backup status\n  \
    quorate backup add main s3://bucket/prefix --recipient age1… full='0 3 * * *'\n  \
    quorate backup run main --wait\n  \
    quorate backup list s3://bucket/prefix\n  \
    quorate backup drill s3://bucket/prefix --identity key.txt\n\n\
    To bring one back see 'quorate restore --help'.")]
pub(super) enum BackupCommand {
    Status(standing::Status),
    Run(standing::Run),
    Add(Box<declare::Add>),
    Set(declare::Set),
    Remove(declare::Remove),
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
            Self::Add(add) => add.run(global).await,
            Self::Set(set) => set.run(global).await,
            Self::Remove(remove) => remove.run(global).await,
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
