//! `doctor`: how far apart the members are, how quick their disks, and what follows from it.
//!
//! Guarantees: each member is asked for itself, under the URL that it advertises or under an --endpoint; what could not be
//! found out is a dash or `null`; it changes nothing. Leaves out: the judgement (`diagnosis`).

mod diagnosis;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;

use self::diagnosis::{Account, Diagnosis, diagnose};
use super::Failure;
use super::connect::Global;
use super::output::{Format, Output};
use crate::api::model::ClusterReply;
use crate::clock;

/// Show distances, disks and clocks of the members, and what is wrong with them
///
/// Asks every member for its round-trip times to the others, the time of its fsyncs, its clock and its timers. COMMIT is how
/// long a write would take with that member as leader: the time until a majority has it on disk. CLOCK is the member's clock
/// less the one here; behind it stands how wrong that may be. Warnings do not change the exit code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate doctor --output json")]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let cluster = global.client()?.cluster().await?.value;
        let accounts = accounts(global, &cluster).await?;
        let diagnosis = diagnose(&cluster, &accounts);
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&diagnosis)?,
            Format::Text => show(&mut out, &diagnosis)?,
        }
        out.finish()
    }
}

/// What every member that could be asked says of itself, by its id.
async fn accounts(global: &Global, cluster: &ClusterReply) -> Result<BTreeMap<u64, Account>, Failure> {
    let mut found = ask(global, cluster, global.endpoint.iter()).await?;
    let missing = cluster.members.iter().filter(|member| !found.contains_key(&member.id));
    let urls = missing.map(|member| &member.client_url).filter(|url| !url.is_empty());
    found.extend(ask(global, cluster, urls).await?);
    Ok(found)
}

async fn ask(
    global: &Global,
    cluster: &ClusterReply,
    urls: impl Iterator<Item = &String>,
) -> Result<BTreeMap<u64, Account>, Failure> {
    let clients: Vec<_> = urls.map(|url| global.client_once(url)).collect::<Result<_, _>>()?;
    let asked = clients.iter().map(|client| async move {
        // The first opens the connection, so that the second takes a round trip alone.
        client.status().await.ok()?;
        let (sent, sent_wall) = (clock::now(), clock::wall());
        let status = client.status().await.ok()?.value;
        let took = sent.elapsed();
        let here = Duration::from_millis(sent_wall.get()) + took / 2;
        Some(Account { status, here, uncertain: took / 2 })
    });
    let answered = join_all(asked).await.into_iter().flatten();
    let of_cluster = answered.filter(|account| account.status.cluster_id == cluster.cluster_id);
    Ok(of_cluster.map(|account| (account.status.id, account)).collect())
}

fn show(out: &mut Output, diagnosis: &Diagnosis) -> Result<(), Failure> {
    let mut rows = vec![["NAME", "ROLE", "ZONE", "FSYNC", "CLOCK", "COMMIT", "VERSION"].map(str::to_owned).to_vec()];
    for member in &diagnosis.members {
        let clock = member.clock_offset_ms.zip(member.clock_error_ms);
        rows.push(vec![
            member.name.clone(),
            member.role.to_owned(),
            dash(Some(member.zone.clone()).filter(|zone| !zone.is_empty())),
            millis(member.fsync_ms),
            dash(clock.map(|(offset, error)| format!("{offset:+.0} ± {error:.0} ms"))),
            millis(member.commit_ms),
            dash(member.version.clone()),
        ]);
    }
    out.table(&rows)?;
    out.line("")?;
    let mut rows = vec![vec!["RTT TO".to_owned()]];
    rows[0].extend(diagnosis.members.iter().map(|member| member.name.clone()));
    for (from, times) in diagnosis.members.iter().zip(&diagnosis.rtt_ms) {
        let mut row = vec![from.name.clone()];
        row.extend(times.iter().map(|time| millis(*time)));
        rows.push(row);
    }
    out.table(&rows)?;
    out.line("")?;
    if let Some(timers) = &diagnosis.timers {
        out.line(&format!(
            "timers: heartbeat {} ms, election {} to {} ms; made for round trips of up to {} ms",
            timers.heartbeat_ms,
            timers.election_min_ms,
            timers.election_max_ms,
            timers.election_min_ms / diagnosis::ELECTION_PER_RTT
        ))?;
    }
    for warning in &diagnosis.warnings {
        out.line(&format!("warning: {}", warning.text))?;
    }
    if diagnosis.warnings.is_empty() {
        out.line("no warnings")?;
    }
    Ok(())
}

fn dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

fn millis(value: Option<f64>) -> String {
    dash(value.map(|value| format!("{value:.1} ms")))
}
