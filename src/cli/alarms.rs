//! `alarms`.
//!
//! Guarantees: exit code 1 if there are alarms, 3 if a member could not be asked and there are none; 0 means that all is
//! well. Leaves out: raising them (`node`).

use std::time::Duration;

use super::Failure;
use super::cluster::heading;
use super::connect::Global;
use super::output::Format;
use crate::api::model::AlarmInfo;
use crate::clock;

/// Show what an operator should look at, on all members
///
/// Ends with exit code 0 if there is nothing, 1 if there is something, 3 if a member did not answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate alarms")]
pub(super) struct Alarms {}

impl Alarms {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let reply = global.client()?.alarms().await?.value;
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&reply)?,
            Format::Text if reply.alarms.is_empty() => out.line("no alarms")?,
            Format::Text => {
                let rows = std::iter::once(heading(&["ALARM", "ABOUT", "NODE", "SINCE", "WHAT"]));
                out.table(&rows.chain(reply.alarms.iter().map(row)).collect::<Vec<_>>())?;
                for alarm in &reply.alarms {
                    out.line(&format!("{} ({}): {}", alarm.name, alarm.node, alarm.action))?;
                }
            }
        }
        out.finish()?;
        match (reply.alarms.len(), reply.silent.as_slice()) {
            (0, []) => Ok(()),
            (0, silent) => {
                Err(Failure::unavailable(format!("no alarms of {} are known: no answer", silent.join(", "))))
            }
            (count, _) => Err(Failure::refused(format!("{count} alarms stand"))),
        }
    }
}

fn row(alarm: &AlarmInfo) -> Vec<String> {
    let age = clock::wall().get().saturating_sub(alarm.since_unix_ms) / 1_000;
    let since = format!("{} ago", humantime::format_duration(Duration::from_secs(age)));
    vec![alarm.name.clone(), alarm.subject.clone(), alarm.node.clone(), since, alarm.detail.clone()]
}
