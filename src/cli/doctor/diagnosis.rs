//! What follows from distances, disks, clocks and zones.
//!
//! Guarantees: arithmetic on what the members said, nothing is asked here; what rests on something unknown is unknown.
//! Leaves out: how it was found out, and what a write takes besides the way and the disks (a fraction of a millisecond where
//! there is no load).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::api::model::{ClusterReply, MemberInfo, MemberRole, StatusReply, Timers, ViewSource};
use crate::node::advised_rtt;

/// The least election timeout is this many round trips at least.
pub(super) const ELECTION_PER_RTT: u64 = 10;

/// By so much may what is measured be more than the timers were made for: it has the members' work in it.
const RTT_TOLERANCE: f64 = 1.25;

/// Clocks that differ by more are warned of: times that clients are shown, and leases under another leader, are wrong by as
/// much. Nothing that is promised hangs on clocks.
const CLOCK_OFFSET_MAX_MS: f64 = 500.0;

/// What a member said of itself, and when.
pub(super) struct Account {
    pub(super) status: StatusReply,
    /// The wall clock here, in the middle between question and answer, since the Unix epoch.
    pub(super) here: Duration,
    /// Half the time between question and answer: by so much the difference of the clocks may be wrong.
    pub(super) uncertain: Duration,
}

/// The state of the group, as far as it could be found out.
#[derive(Debug, Serialize)]
pub(super) struct Diagnosis {
    cluster_id: u64,
    term: u64,
    leader: Option<u64>,
    pub(super) members: Vec<Patient>,
    /// Round-trip times in milliseconds: a row for each member that measures, in the order of `members`.
    pub(super) rtt_ms: Vec<Vec<Option<f64>>>,
    /// The timers, if all that answered have the same.
    pub(super) timers: Option<Timers>,
    pub(super) warnings: Vec<Warning>,
}

/// One member.
#[derive(Debug, Serialize)]
pub(super) struct Patient {
    id: u64,
    pub(super) name: String,
    pub(super) role: &'static str,
    pub(super) zone: String,
    /// Whether it answered.
    answers: bool,
    pub(super) version: Option<String>,
    pub(super) fsync_ms: Option<f64>,
    /// Its clock less the one here, and how wrong that may be.
    pub(super) clock_offset_ms: Option<f64>,
    pub(super) clock_error_ms: Option<f64>,
    /// How long a write takes if this member leads; `null` for learners and where too little is known.
    pub(super) commit_ms: Option<f64>,
}

/// Something to look after.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Warning {
    /// For programs; stable.
    pub(super) code: &'static str,
    /// For people.
    pub(super) text: String,
}

/// Puts it all together.
pub(super) fn diagnose(cluster: &ClusterReply, accounts: &BTreeMap<u64, Account>) -> Diagnosis {
    let members = &cluster.members;
    let rtt_ms: Vec<Vec<_>> =
        members.iter().map(|from| members.iter().map(|to| measured(accounts, from.id, to.id)).collect()).collect();
    let patients: Vec<Patient> = members.iter().map(|member| patient(cluster, accounts, member)).collect();
    let mut timers: Vec<Timers> = Vec::new();
    for account in accounts.values() {
        if !timers.contains(&account.status.timers) {
            timers.push(account.status.timers);
        }
    }
    let mut warnings = Vec::new();
    warn_of_absence(&mut warnings, cluster, &patients);
    warn_of_voters(&mut warnings, cluster);
    warn_of_timers(&mut warnings, cluster, accounts, &timers);
    warn_of_clocks(&mut warnings, &patients);
    let versions: BTreeSet<&String> = patients.iter().filter_map(|patient| patient.version.as_ref()).collect();
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().map(String::as_str).collect();
        let text = format!("the members run different versions ({}); bring all to the same", versions.join(", "));
        warnings.push(Warning { code: "versions_differ", text });
    }
    Diagnosis {
        cluster_id: cluster.cluster_id,
        term: cluster.term,
        leader: cluster.leader,
        members: patients,
        rtt_ms,
        timers: Some(timers).filter(|timers| timers.len() == 1).and_then(|timers| timers.first().copied()),
        warnings,
    }
}

fn patient(cluster: &ClusterReply, accounts: &BTreeMap<u64, Account>, member: &MemberInfo) -> Patient {
    let account = accounts.get(&member.id);
    let offset = account.and_then(|account| {
        let theirs = account.status.time_unix_ms? as f64;
        Some(theirs - account.here.as_secs_f64() * 1e3)
    });
    // Their clock is told in whole milliseconds.
    let error = account.map(|account| account.uncertain.as_secs_f64() * 1e3 + 1.0);
    let role = match member.role {
        MemberRole::Voter if cluster.leader == Some(member.id) => "leader",
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
    };
    Patient {
        id: member.id,
        name: member.name.clone(),
        role,
        zone: member.zone.clone(),
        answers: account.is_some(),
        version: account.map(|account| account.status.version.clone()),
        fsync_ms: account.and_then(|account| account.status.fsync_ms),
        clock_offset_ms: offset,
        clock_error_ms: error.filter(|_| offset.is_some()),
        commit_ms: commit_ms(cluster, accounts, member),
    }
}

/// The round-trip time that one member has measured to another.
fn measured(accounts: &BTreeMap<u64, Account>, from: u64, to: u64) -> Option<f64> {
    let peers = &accounts.get(&from)?.status.peers;
    peers.iter().find(|peer| peer.id == to)?.rtt_ms
}

/// The round-trip time between two members, whichever has measured it.
fn between(accounts: &BTreeMap<u64, Account>, one: u64, other: u64) -> Option<f64> {
    measured(accounts, one, other).or_else(|| measured(accounts, other, one))
}

/// How long a write takes if this voter leads: until it is on its own disk, and on as many others as make a majority.
fn commit_ms(cluster: &ClusterReply, accounts: &BTreeMap<u64, Account>, leader: &MemberInfo) -> Option<f64> {
    if leader.role != MemberRole::Voter {
        return None;
    }
    let fsync = |id: u64| accounts.get(&id).and_then(|account| account.status.fsync_ms);
    let own = fsync(leader.id)?;
    let voters = voters(cluster);
    let mut others: Vec<f64> = voters
        .iter()
        .filter(|voter| voter.id != leader.id)
        .filter_map(|voter| Some(between(accounts, leader.id, voter.id)? + fsync(voter.id)?))
        .collect();
    others.sort_by(f64::total_cmp);
    match majority(voters.len()) - 1 {
        0 => Some(own),
        needed => others.get(needed - 1).map(|slowest| slowest.max(own)),
    }
}

fn voters(cluster: &ClusterReply) -> Vec<&MemberInfo> {
    cluster.members.iter().filter(|member| member.role == MemberRole::Voter).collect()
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn warn_of_absence(warnings: &mut Vec<Warning>, cluster: &ClusterReply, patients: &[Patient]) {
    if cluster.view == ViewSource::Local {
        let text = "no leader answers; this is what the node that was asked could find out itself".to_owned();
        warnings.push(Warning { code: "no_leader", text });
    }
    for (member, patient) in cluster.members.iter().zip(patients).filter(|(_, patient)| !patient.answers) {
        let whom = &patient.name;
        let text = match member.client_url.as_str() {
            "" => format!("{whom} gives no account of itself: its client URL is not known; add it to --endpoint"),
            url => format!("{whom} does not answer under {url} from here; what rests on it is not known"),
        };
        warnings.push(Warning { code: "no_answer", text });
    }
    for member in cluster.members.iter().filter(|member| !member.reachable) {
        let text = format!("{} can't be reached by the other members", member.name);
        warnings.push(Warning { code: "unreachable", text });
    }
}

fn warn_of_voters(warnings: &mut Vec<Warning>, cluster: &ClusterReply) {
    let voters = voters(cluster);
    let (count, needed) = (voters.len(), majority(voters.len()));
    if count > 0 && count.is_multiple_of(2) {
        let text = match count {
            2 => "2 voters stand the loss of none; have one or three".to_owned(),
            _ => format!(
                "{count} voters stand the loss of {}, no more than {} would; make one a learner or add one",
                count - needed,
                count - 1
            ),
        };
        warnings.push(Warning { code: "even_voters", text });
    }
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for voter in voters.iter().filter(|voter| !voter.zone.is_empty()) {
        *zones.entry(&voter.zone).or_default() += 1;
    }
    for (zone, inside) in zones {
        let warning = if inside >= needed {
            let text =
                format!("{inside} of {count} voters, a majority, stand in {zone}: without it nothing can be written");
            Some(Warning { code: "majority_in_one_zone", text })
        } else if count - inside < needed {
            let text = format!("without {zone} {} of {count} voters are left, and {needed} are needed", count - inside);
            Some(Warning { code: "zone_loses_quorum", text })
        } else {
            None
        };
        warnings.extend(warning.filter(|_| count > 1));
    }
}

fn warn_of_timers(
    warnings: &mut Vec<Warning>,
    cluster: &ClusterReply,
    accounts: &BTreeMap<u64, Account>,
    timers: &[Timers],
) {
    if timers.len() > 1 {
        let text = "the members have different timers; start all with the same --rtt".to_owned();
        warnings.push(Warning { code: "timers_differ", text });
    }
    let members = &cluster.members;
    let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
    let times = pairs.filter_map(|(from, to)| Some((measured(accounts, from.id, to.id)?, from, to)));
    let Some((rtt, from, to)) = times.max_by(|(one, ..), (other, ..)| one.total_cmp(other)) else { return };
    let Some(shortest) = timers.iter().map(|timers| timers.election_min_ms).min() else { return };
    if rtt * ELECTION_PER_RTT as f64 > shortest as f64 * RTT_TOLERANCE {
        let advised = humantime::format_duration(advised_rtt(Duration::from_secs_f64(rtt / 1e3)));
        let text = format!(
            "the least election timeout of {shortest} ms is below {ELECTION_PER_RTT} round trips of {rtt:.1} ms from {} to {}; \
             start all nodes with --rtt {advised}",
            from.name, to.name
        );
        warnings.push(Warning { code: "timers_too_short", text });
    }
}

/// Clocks that surely differ from each other by too much; the one here may be the wrong one.
fn warn_of_clocks(warnings: &mut Vec<Warning>, patients: &[Patient]) {
    let clock = |patient: &Patient| Some((patient.clock_offset_ms?, patient.clock_error_ms?));
    let known = || patients.iter().filter_map(|patient| Some((patient, clock(patient)?)));
    let fastest = known().max_by(|(_, (one, _)), (_, (other, _))| one.total_cmp(other));
    let slowest = known().min_by(|(_, (one, _)), (_, (other, _))| one.total_cmp(other));
    let (Some((fast, (most, one_error))), Some((slow, (least, other_error)))) = (fastest, slowest) else { return };
    let apart = most - least;
    if apart - one_error - other_error > CLOCK_OFFSET_MAX_MS {
        let text = format!("the clocks of {} and {} are {apart:.0} ms apart; look after NTP", fast.name, slow.name);
        warnings.push(Warning { code: "clocks_differ", text });
    }
}

#[cfg(test)]
mod tests;
