//! `member list`, `add`, `remove`, `promote` and `set`.
//!
//! Guarantees: a member is meant by its name or its id, and by nothing that fits two; `--dry-run` changes nothing. Leaves
//! out: what a change takes (`node`).

use super::Failure;
use super::cluster::{heading, known};
use super::connect::Global;
use super::output::{Format, Output};
use crate::api::model::{
    AddMemberRequest, ClusterReply, MemberChangeReply, MemberInfo, MemberRole, PendingChange, QuorumReport,
    UpdateMemberRequest, ViewSource,
};
use crate::client::MemberOptions;
use crate::config::{BaseUrl, HostPort, Name};
use crate::types::NodeId;

/// Members of the cluster
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  quorate member list\n  quorate member remove n3 --dry-run")]
pub(super) enum MemberCommand {
    List(MemberList),
    Add(MemberAdd),
    Remove(MemberRemove),
    Promote(MemberPromote),
    Set(MemberSet),
}

/// Show the members as their leader sees them
///
/// Where no leader answers, as the node that answers sees them; a line on standard error says so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate member list --output json")]
pub(super) struct MemberList {}

/// Add a node that runs and waits for it
///
/// A node that is started with --join adds itself; this is for adding it by hand, or for one that shall take the place of
/// another. The leader dials it before anything is changed. It is a learner first, and votes by itself once it has caught
/// up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate member add n4 --peer-addr 10.0.0.4:7481\n  \
    quorate member add n5 --peer-addr 10.0.0.5:7481 --replaces n2 --dry-run")]
pub(super) struct MemberAdd {
    /// Name it was started with
    name: Name,
    /// Address of its peer listener, as the other members dial it
    #[arg(long, value_name = "HOST:PORT")]
    peer_addr: HostPort,
    /// URL of its client listener [default: as it says itself]
    #[arg(long, value_name = "URL")]
    client_url: Option<BaseUrl>,
    /// Data centre it stands in [default: as it says itself]
    #[arg(long, value_name = "ZONE")]
    zone: Option<Name>,
    /// Add it as a learner: with all data and no vote
    #[arg(long, conflicts_with = "replaces")]
    learner: bool,
    /// How much it is preferred as the leader
    #[arg(long, value_name = "0..255")]
    priority: Option<u8>,
    /// Name or id of the member whose place it takes once it has caught up, in one change
    #[arg(long, value_name = "MEMBER")]
    replaces: Option<String>,
    #[command(flatten)]
    how: How,
}

/// Take a member out
///
/// It loses its vote, hears so, and is taken out. A leader hands over first. Its id is never given again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate member remove n3 --dry-run")]
pub(super) struct MemberRemove {
    /// Name or id of the member
    #[arg(value_name = "MEMBER")]
    member: String,
    #[command(flatten)]
    how: How,
}

/// Have a learner vote once it has caught up
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate member promote n4")]
pub(super) struct MemberPromote {
    /// Name or id of the learner
    #[arg(value_name = "MEMBER")]
    member: String,
    #[command(flatten)]
    how: How,
}

/// Change what is known of a member, or whether it votes
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate member set n2 --priority 10\n  quorate member set n3 --role learner")]
#[group(id = "change", required = true, multiple = true, args = ["role", "zone", "priority", "name", "peer_addr", "client_url"])]
pub(super) struct MemberSet {
    /// Name or id of the member
    #[arg(value_name = "MEMBER")]
    member: String,
    /// Whether it votes; a learner votes once it has caught up
    #[arg(long, value_name = "ROLE")]
    role: Option<Role>,
    /// Data centre it stands in; empty for none
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// How much it is preferred as the leader: among voters that could lead, one of the greatest does
    #[arg(long, value_name = "0..255")]
    priority: Option<u8>,
    /// Another name; from its next start on the node must be given that one
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Another address of its peer listener; it must answer there already
    #[arg(long, value_name = "HOST:PORT")]
    peer_addr: Option<HostPort>,
    /// Another URL of its client listener
    #[arg(long, value_name = "URL")]
    client_url: Option<BaseUrl>,
    #[command(flatten)]
    how: How,
}

/// Whether a member votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Counts for the quorum
    Voter,
    /// Has all data, but no vote
    Learner,
}

#[derive(Debug, Clone, Copy, clap::Args)]
struct How {
    /// Only tell what would happen
    #[arg(long)]
    dry_run: bool,
    /// Also where too few voters would be reachable: then writes stop until enough are back
    #[arg(long)]
    force: bool,
}

impl From<How> for MemberOptions {
    fn from(How { dry_run, force }: How) -> Self {
        Self { dry_run, force }
    }
}

impl From<Role> for MemberRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Voter => Self::Voter,
            Role::Learner => Self::Learner,
        }
    }
}

impl MemberCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::List(MemberList {}) => list(global).await,
            Self::Add(add) => add.run(global).await,
            Self::Remove(MemberRemove { member, how }) => {
                let client = global.client()?;
                let id = find(&client.cluster().await?.value, &member)?;
                let reply = client.remove_member(id, how.into()).await?.value;
                let done = if reply.done { "is out" } else { "has no vote any more and leaves once it has heard so" };
                show(global, &member, &reply, done)
            }
            Self::Promote(MemberPromote { member, how }) => {
                let change = UpdateMemberRequest { role: Some(MemberRole::Voter), ..UpdateMemberRequest::default() };
                update(global, &member, &change, how).await
            }
            Self::Set(set) => {
                let change = UpdateMemberRequest {
                    role: set.role.map(Into::into),
                    zone: set.zone,
                    priority: set.priority,
                    name: set.name.map(|name| name.to_string()),
                    peer_addr: set.peer_addr.map(|address| address.to_string()),
                    client_url: set.client_url.map(|url| url.to_string()),
                };
                update(global, &set.member, &change, set.how).await
            }
        }
    }
}

impl MemberAdd {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let replaces = match &self.replaces {
            Some(member) => Some(find(&client.cluster().await?.value, member)?.get()),
            None => None,
        };
        let member = AddMemberRequest {
            name: self.name.to_string(),
            peer_addr: self.peer_addr.to_string(),
            client_url: self.client_url.map(|url| url.to_string()),
            zone: self.zone.map(|zone| zone.to_string()),
            role: Some(if self.learner { MemberRole::Learner } else { MemberRole::Voter }),
            priority: self.priority,
            replaces,
        };
        let reply = client.add_member(&member, self.how.into()).await?.value;
        let done = match (self.learner, reply.done) {
            (true, _) => "is a learner",
            (false, true) => "votes",
            (false, false) => "is a learner and votes once it has caught up",
        };
        show(global, &member.name, &reply, done)
    }
}

async fn update(global: &Global, member: &str, change: &UpdateMemberRequest, how: How) -> Result<(), Failure> {
    let client = global.client()?;
    let id = find(&client.cluster().await?.value, member)?;
    let reply = client.update_member(id, change, how.into()).await?.value;
    let done = if reply.done { "is changed" } else { "votes once it has caught up" };
    show(global, member, &reply, done)
}

/// Tells what was done, or would be, and how voters stand before and after.
fn show(global: &Global, member: &str, reply: &MemberChangeReply, done: &str) -> Result<(), Failure> {
    let mut out = global.out();
    if out.format == Format::Json {
        out.json(reply)?;
        return out.finish();
    }
    let id = reply.id.map_or_else(String::new, |id| format!(" (id {id})"));
    let what = if reply.dry_run { "is not changed; this is what would happen" } else { done };
    out.text(&format!("{member}{id} {what}\n"))?;
    report(&mut out, &reply.before, &reply.after)?;
    out.finish()?;
    for warning in &reply.warnings {
        super::failure::note(warning);
    }
    Ok(())
}

fn report(out: &mut Output, before: &QuorumReport, after: &QuorumReport) -> Result<(), Failure> {
    let mut rows = vec![heading(&["", "VOTERS", "NEEDED", "REACHABLE", "MAY FAIL", "ZONES"])];
    for (when, report) in [("before", before), ("after", after)] {
        let zones = report.zones.iter().map(|zone| {
            let name = if zone.zone.is_empty() { "-" } else { &zone.zone };
            let learners = if zone.learners > 0 { format!("+{}", zone.learners) } else { String::new() };
            format!("{name}:{}{learners}", zone.voters)
        });
        rows.push(vec![
            when.to_owned(),
            report.voters.to_string(),
            report.needed.to_string(),
            report.reachable.to_string(),
            report.spare.to_string(),
            zones.collect::<Vec<_>>().join(" "),
        ]);
    }
    out.table(&rows)
}

async fn list(global: &Global) -> Result<(), Failure> {
    let cluster = global.client()?.cluster().await?.value;
    let mut out = global.out();
    if out.format == Format::Json {
        out.json(&cluster)?;
        return out.finish();
    }
    let columns = ["ID", "NAME", "ROLE", "ZONE", "PRIORITY", "PEER", "CLIENT", "REACHABLE", "LAG", "RTT", "VERSION"];
    let mut rows = vec![heading(&columns)];
    for member in &cluster.members {
        let role = match (member.role, member.pending) {
            (MemberRole::Voter, _) if cluster.leader == Some(member.id) => "leader",
            (MemberRole::Voter, _) => "voter",
            (MemberRole::Learner, None) => "learner",
            (MemberRole::Learner, Some(PendingChange::Promotion)) => "learner, joins",
            (MemberRole::Learner, Some(PendingChange::Removal)) => "learner, leaves",
        };
        rows.push(vec![
            member.id.to_string(),
            member.name.clone(),
            role.to_owned(),
            known(Some(&member.zone).filter(|zone| !zone.is_empty())),
            member.priority.to_string(),
            member.peer_addr.clone(),
            known(Some(&member.client_url).filter(|url| !url.is_empty())),
            if member.reachable { "yes" } else { "no" }.to_owned(),
            known(member.lag_entries),
            known(member.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            known(member.version.as_ref()),
        ]);
    }
    out.table(&rows)?;
    out.finish()?;
    if cluster.view == ViewSource::Local {
        super::failure::note("no leader answers; this is what the node that was asked could find out itself");
    }
    Ok(())
}

/// The member that is meant: by its name, or by its id.
pub(super) fn find(cluster: &ClusterReply, wanted: &str) -> Result<NodeId, Failure> {
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
            priority: 0,
            pending: None,
            version: None,
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
