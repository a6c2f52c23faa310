//! `leader show` and `leader transfer`.
//!
//! Guarantees: `transfer` ends with success only if that member leads. Leaves out: what a transfer does (`node`).

use super::Failure;
use super::connect::Global;
use super::member;
use super::output::Format;
use crate::api::model::{LeaderReply, MemberInfo, ViewSource};

/// Who leads the cluster
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  quorate leader show\n  quorate leader transfer n2")]
pub(super) enum LeaderCommand {
    Show(LeaderShow),
    Transfer(LeaderTransfer),
}

/// Show who leads
///
/// If no leader answers, the exit code is 3.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate leader show --output json")]
pub(super) struct LeaderShow {}

/// Have another voter lead
///
/// Ends when it was elected. Writes that come meanwhile wait; none fails. The voter must answer and have the log.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate leader transfer n2")]
pub(super) struct LeaderTransfer {
    /// Name or id of the voter
    #[arg(value_name = "MEMBER")]
    to: String,
}

impl LeaderCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Show(LeaderShow {}) => show(global).await,
            Self::Transfer(LeaderTransfer { to }) => transfer(global, &to).await,
        }
    }
}

async fn show(global: &Global) -> Result<(), Failure> {
    let cluster = global.client()?.cluster().await?.value;
    let leads = |member: &&MemberInfo| cluster.leader == Some(member.id) && cluster.view == ViewSource::Leader;
    let Some(leader) = cluster.members.iter().find(leads) else {
        return Err(Failure::unavailable("no leader answers; 'quorate member list' tells who is reachable"));
    };
    let mut out = global.out();
    match out.format {
        Format::Json => out.json(leader)?,
        Format::Text => out.text(&format!("{} (id {}) leads in term {}\n", leader.name, leader.id, cluster.term))?,
    }
    out.finish()
}

async fn transfer(global: &Global, to: &str) -> Result<(), Failure> {
    let client = global.client()?;
    let id = member::find(&client.cluster().await?.value, to)?;
    let LeaderReply { leader, term, moved } = client.transfer_leadership(id).await?.value;
    let mut out = global.out();
    match out.format {
        Format::Json => out.json(&LeaderReply { leader, term, moved })?,
        Format::Text => {
            let how = if moved { "leads now," } else { "led already," };
            out.text(&format!("{} (id {}) {how} in term {term}\n", leader.name, leader.id))?;
        }
    }
    out.finish()
}
