//! `leader show` and `leader transfer`.
//!
//! Guarantees: `transfer` ends with success only if that member leads. Leaves out: what a transfer does (`node`).

use super::Failure;
use super::connect::Global;
use super::output::Format;
use crate::api::model::{ClusterReply, LeaderReply, MemberInfo, ViewSource};
use crate::types::NodeId;

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
    let id = find(&client.cluster().await?.value, to)?;
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

/// The member that is meant: by its name, or by its id.
fn find(cluster: &ClusterReply, wanted: &str) -> Result<NodeId, Failure> {
    let meant = |member: &&MemberInfo| member.name == wanted || member.id.to_string() == wanted;
    let mut found = cluster.members.iter().filter(meant);
    match (found.next(), found.next()) {
        (Some(member), None) => Ok(NodeId::new(member.id)),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "{wanted} is the name of one member and the id of another; give the other of the two"
        ))),
        (None, _) => {
            let all: Vec<_> = cluster.members.iter().map(|member| format!("{} ({})", member.name, member.id)).collect();
            Err(Failure::refused(format!("there is no member {wanted}; the members are {}", all.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::{MemberRole, QuorumInfo};

    fn cluster(members: &[(u64, &str)]) -> ClusterReply {
        let member = |(id, name): &(u64, &str)| MemberInfo {
            id: *id,
            name: (*name).to_owned(),
            role: MemberRole::Voter,
            zone: String::new(),
            peer_addr: String::new(),
            client_url: String::new(),
            reachable: true,
            matched_index: None,
            lag_entries: None,
            rtt_ms: None,
        };
        let members: Vec<_> = members.iter().map(member).collect();
        let quorum = QuorumInfo::of(&members);
        ClusterReply { cluster_id: 1, term: 1, leader: None, view: ViewSource::Local, members, quorum }
    }

    #[test]
    fn a_member_is_found_by_name_or_id_unless_both_fit() {
        let cluster = cluster(&[(1, "a"), (2, "b"), (3, "2")]);
        assert_eq!(find(&cluster, "a").unwrap(), NodeId::new(1));
        assert_eq!(find(&cluster, "3").unwrap(), NodeId::new(3));
        assert!(format!("{:?}", find(&cluster, "2").unwrap_err()).contains("Usage"));
        let nobody = format!("{:?}", find(&cluster, "z").unwrap_err());
        assert!(nobody.contains("Refused") && nobody.contains("a (1), b (2), 2 (3)"), "{nobody}");
    }
}
