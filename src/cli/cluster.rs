//! `status`.
//!
//! Guarantees: `status` asks every endpoint for itself and fails if one of them does not answer. Leaves out: the group (`member`).

use super::Failure;
use super::connect::Global;
use super::output::Format;
use crate::api::model::StatusReply;
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

pub(super) fn heading(columns: &[&str]) -> Vec<String> {
    columns.iter().map(ToString::to_string).collect()
}

/// What is not known is a dash.
pub(super) fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
