//! `status` and `member list`.
//!
//! Guarantees: `status` asks every endpoint for itself and fails if one of them does not answer. Leaves out: changes.

use super::Failure;
use super::connect::Global;
use super::output::Format;
use crate::api::model::{MemberRole, StatusReply, ViewSource};
use crate::client::Error;

/// Show how nodes see themselves
///
/// Asks every --endpoint once. As JSON one object a line, in the order of the endpoints that answer. An endpoint that does
/// not answer is exit code 3, after the others were shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate status --endpoint http://127.0.0.1:7480,http://127.0.0.1:7482")]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let clients = global.endpoint.iter().map(|endpoint| global.client_once(endpoint));
        let clients: Vec<_> = clients.collect::<Result<_, _>>()?;
        let replies = futures::future::join_all(clients.iter().map(|client| client.status())).await;
        let mut out = global.out();
        let mut rows = vec![heading(&["NODE", "ROLE", "TERM", "COMMIT", "APPLIED", "REVISION", "LEADER", "READY"])];
        let mut silent = Vec::new();
        for (endpoint, reply) in global.endpoint.iter().zip(replies) {
            match reply {
                Ok(status) if out.format == Format::Json => out.json(&status.value)?,
                Ok(status) => rows.push(row(&status.value)),
                Err(Error::Unavailable { last, .. }) => {
                    let mut cells = vec!["-".to_owned(); rows[0].len() - 1];
                    cells.insert(0, endpoint.clone());
                    cells[7] = "no answer".to_owned();
                    rows.push(cells);
                    silent.push(last);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if rows.len() > 1 {
            out.table(&rows)?;
        }
        out.finish()?;
        match silent.first() {
            None => Ok(()),
            Some(first) => {
                let (count, all) = (silent.len(), global.endpoint.len());
                Err(Failure::unavailable(format!("{count} of {all} endpoints gave no status: {first}")))
            }
        }
    }
}

fn row(status: &StatusReply) -> Vec<String> {
    vec![
        status.name.clone(),
        status.role.as_str().to_owned(),
        status.term.to_string(),
        known(status.commit_index),
        known(status.applied_index),
        status.revision.to_string(),
        known(status.leader.as_ref().map(|leader| &leader.name)),
        match &status.not_ready_reason {
            None => "yes".to_owned(),
            Some(reason) => format!("no: {reason}"),
        },
    ]
}

/// Members of the cluster
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  quorate member list")]
pub(super) enum MemberCommand {
    List(MemberList),
}

/// Show the members as their leader sees them
///
/// Where no leader answers, as the node that answers sees them; a line on standard error says so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate member list --output json")]
pub(super) struct MemberList {}

impl MemberCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let Self::List(MemberList {}) = self;
        let cluster = global.client()?.cluster().await?.value;
        let mut out = global.out();
        if out.format == Format::Json {
            out.json(&cluster)?;
            return out.finish();
        }
        let columns = ["ID", "NAME", "ROLE", "ZONE", "PEER", "CLIENT", "REACHABLE", "LAG", "RTT"];
        let mut rows = vec![heading(&columns)];
        for member in &cluster.members {
            let role = match member.role {
                MemberRole::Voter if cluster.leader == Some(member.id) => "leader",
                MemberRole::Voter => "voter",
                MemberRole::Learner => "learner",
            };
            rows.push(vec![
                member.id.to_string(),
                member.name.clone(),
                role.to_owned(),
                known(Some(&member.zone).filter(|zone| !zone.is_empty())),
                member.peer_addr.clone(),
                known(Some(&member.client_url).filter(|url| !url.is_empty())),
                if member.reachable { "yes" } else { "no" }.to_owned(),
                known(member.lag_entries),
                known(member.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            ]);
        }
        out.table(&rows)?;
        out.finish()?;
        if cluster.view == ViewSource::Local {
            super::failure::note("no leader answers; this is what the node that was asked could find out itself");
        }
        Ok(())
    }
}

fn heading(columns: &[&str]) -> Vec<String> {
    columns.iter().map(ToString::to_string).collect()
}

/// What is not known is a dash.
fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
