//! What an operator should look at, and since when.
//!
//! Guarantees: an alarm stands as long as its cause does, under one name, with the time at which it began, and says what to
//! do. Leaves out: telling others (`gossip`, `api`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::declared::{Idle, Why};
use super::news::{Alarm, Trouble};
use super::place::Place;
use crate::backup::archiver::{Failing, Gap, Lost, Status};
use crate::backup::care::Health;
use crate::backup::schedule::Schedule;
use crate::clock;
use crate::raft::Forgetful;
use crate::types::WallTime;

/// A store that fails for less than this is no news.
const FAILING_GRACE: Duration = Duration::from_secs(3);

/// A store that says nothing at all for so long is taken for one that hangs.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// A gap is told for this long behind its bridge.
const GAP_TOLD: Duration = Duration::from_secs(24 * 3_600);

/// And so is the loss of what was archived.
const LOST_TOLD: Duration = Duration::from_secs(24 * 3_600);

/// Entries may stand on the nodes' disks alone for this long, and ten flush intervals, before that is an alarm.
const BEHIND_MAX: Duration = Duration::from_secs(60);
const BEHIND_FLUSHES_MAX: u32 = 10;

/// Verifications are due each night where nothing else is said, drills each week. Two times of a rarer schedule may pass.
const UNVERIFIED_MAX: Duration = Duration::from_secs(3 * 24 * 3_600);
const UNDRILLED_MAX: Duration = Duration::from_secs(8 * 24 * 3_600);

/// The alarms of this node.
#[derive(Debug, Default)]
pub(super) struct Board(BTreeMap<(&'static str, String), Alarm>);

/// A cause, at this moment.
struct Cause {
    name: &'static str,
    since: Option<WallTime>,
    detail: String,
    action: &'static str,
}

impl Board {
    /// Takes note of how all places stand now. `rpo` is the age of the oldest entry that is not archived, where it is known.
    /// `idle` are the declared places that are none for this node.
    pub(super) fn update<'a>(
        &mut self,
        places: impl Iterator<Item = (&'a Place, Option<Duration>, Vec<String>)>,
        idle: &[(String, Idle)],
        forgetful: &[(String, Forgetful)],
    ) {
        let mut now = BTreeMap::new();
        let of_places = places.flat_map(|(place, rpo, others)| {
            let causes = causes(place, rpo, &others).into_iter();
            causes.map(|cause| (place.settings.name.clone(), cause))
        });
        let of_members = forgetful.iter().map(|(name, one)| (name.clone(), forgot(one)));
        let unused = idle.iter().map(|(name, idle)| (name.clone(), unused(idle)));
        for (subject, cause) in of_places.chain(unused).chain(of_members) {
            let key = (cause.name, subject.clone());
            let since = self.0.get(&key).map(|before| before.since).or(cause.since).unwrap_or_else(clock::wall);
            let name = cause.name.to_owned();
            now.insert(key, Alarm { name, subject, since, detail: cause.detail, action: cause.action.to_owned() });
        }
        for ((name, subject), alarm) in &now {
            if !self.0.contains_key(&(*name, subject.clone())) {
                tracing::warn!(alarm = name, subject, detail = alarm.detail, action = alarm.action, "alarm");
            }
        }
        for (name, subject) in self.0.keys().filter(|key| !now.contains_key(*key)) {
            tracing::info!(alarm = name, subject, "the alarm is over");
        }
        self.0 = now;
    }

    pub(super) fn all(&self) -> Vec<Alarm> {
        self.0.values().cloned().collect()
    }
}

fn age(since: WallTime) -> Duration {
    Duration::from_millis(clock::wall().get().saturating_sub(since.get()))
}

/// What a store gives cause for that does not do what this node asks of it.
fn failing(place: &Place, status: &Status) -> Option<Cause> {
    let trouble = place.trouble(status);
    // That it is broken is told as such.
    let is_broken = |error: &String| status.broken.as_ref().is_some_and(|broken| broken.error == *error);
    if let Some(Trouble { since, error }) = &trouble
        && age(*since) >= FAILING_GRACE
        && !is_broken(error)
    {
        return Some(Cause {
            name: "backup_failing",
            since: Some(*since),
            detail: format!("this node can't archive to {}: {error}", place.url),
            action: "make the store usable for this node; what was written meanwhile is sent then",
        });
    }
    let is_silent = !status.healthy && status.failing.is_none() && trouble.is_none();
    (is_silent && place.began.elapsed() > SILENT_MAX).then(|| Cause {
        name: "backup_failing",
        since: None,
        detail: format!("{} has neither done nor refused what this node asked of it", place.url),
        action: "see whether the store, or the disk that is mounted there, answers at all",
    })
}

fn causes(place: &Place, rpo: Option<Duration>, others: &[String]) -> Vec<Cause> {
    let status: Status = place.status();
    let settings = &place.settings;
    let mut causes: Vec<Cause> = failing(place, &status).into_iter().collect();
    if let Some(Gap { after, until, since }) = status.gap.filter(|gap| age(gap.since) < GAP_TOLD) {
        let end = until.map_or("a whole state is being sent".to_owned(), |until| format!("entry {until}"));
        causes.push(Cause {
            name: "backup_gap",
            since: Some(since),
            detail: format!(
                "the log was removed behind entry {after} before it was archived; no state can be restored between \
                 that and the next: {end}"
            ),
            action: "keep the store reachable, or let the nodes keep more log (--snapshot-log-bytes)",
        });
    }
    causes.extend(gone(status.broken.as_ref(), status.lost.as_ref(), &place.url));
    let bound = BEHIND_MAX.max(settings.flush_interval * BEHIND_FLUSHES_MAX);
    if let Some(rpo) = rpo.filter(|rpo| settings.log && *rpo > bound) {
        causes.push(Cause {
            name: "backup_behind",
            since: None,
            detail: format!("what was written in the last {} is not archived", humantime::format_duration(Duration::from_secs(rpo.as_secs()))),
            action: "look at the alarms of the other nodes and at 'quorate backup status'; if all went down now, it would be lost",
        });
    }
    let drills_here = settings.drill.is_some();
    if let Some(health) = place.health.borrow().as_ref() {
        causes.extend(unproven(health, &settings.care.verify, &place.url, drills_here));
        causes.extend(unpruned(health, &place.url));
    }
    causes.extend(place.drill_trouble().filter(|_| drills_here).map(|Trouble { since, error }| Cause {
        name: "backup_drill_failing",
        since: Some(since),
        detail: format!("a drill of the archive in {} could not be made on this node: {error}", place.url),
        action: "see to what is missing; it is tried again at its next time, and 'quorate backup drill' makes one now",
    }));
    if !others.is_empty() {
        causes.push(Cause {
            name: "backup_mismatch",
            since: None,
            detail: format!("{} mean another store by this name", others.join(", ")),
            action: "give the same url on every node, or another name",
        });
    }
    causes
}

/// What an archive gives cause for that can't be read any more, or that is not what it was.
fn gone(broken: Option<&Failing>, lost: Option<&Lost>, url: &str) -> Option<Cause> {
    if let Some(Failing { since, error }) = broken {
        return Some(Cause {
            name: "backup_broken",
            since: Some(*since),
            detail: format!("nothing is archived to {url}, and what is there can't be read: {error}"),
            action: "put that manifest back, from older versions in the bucket or a copy; archiving then goes on. No new archive is begun beside it: if it can't be put back, archive to another prefix",
        });
    }
    let Lost { since, what, upto } = lost.filter(|lost| age(lost.since) < LOST_TOLD)?;
    let upto = upto.map_or(String::new(), |upto| format!(", up to entry {upto}"));
    Some(Cause {
        name: "backup_lost",
        since: Some(*since),
        detail: format!("what was archived in {url}{upto}, was emptied, replaced or broken: {what}"),
        action: "find out who did that; what is gone can be restored only from a copy, or from older versions in the bucket. Once the store can be used a whole state is sent there, and what comes behind it can be restored",
    })
}

/// What is to be removed from an archive, and is not.
fn unpruned(health: &Health, url: &str) -> Option<Cause> {
    let (since, why) = health.unpruned.as_ref()?;
    Some(Cause {
        name: "backup_unpruned",
        since: Some(*since),
        detail: format!("what is not needed any more in {url} is not removed: {why}"),
        action: "give the nodes the right to delete there, or run 'quorate backup prune' now and then with credentials that have it; until then the archive grows",
    })
}

/// How long an archive may go without a verification that passes.
fn unverified_max(schedule: &Schedule, since: WallTime) -> Duration {
    let second = schedule.next_after(since).and_then(|next| schedule.next_after(next));
    let span = second.map_or(0, |second| second.get().saturating_sub(since.get()));
    UNVERIFIED_MAX.max(Duration::from_millis(span))
}

/// What a declared place gives cause for that is none for this node.
fn unused(idle: &Idle) -> Cause {
    let (name, action) = match idle.why {
        Why::Suspended(_) => (
            "backup_suspended",
            "'quorate backup set NAME' goes on archiving there, in a folder of this cluster; 'quorate backup remove NAME' forgets it",
        ),
        Why::Unreadable(_) => (
            "backup_unreadable",
            "run the same version on all nodes, allow in the configuration of all what it refers to, or declare the place anew",
        ),
        Why::SameStore(_) => {
            ("backup_mismatch", "'quorate backup remove NAME' this one, or give it a store of its own")
        }
        Why::Shadowed(_) => (
            "backup_mismatch",
            "remove the place from the configuration, or 'quorate backup remove NAME' the declared one",
        ),
    };
    Cause { name, since: None, detail: idle.why.to_string(), action }
}

/// A member whose disk is not to be trusted.
fn forgot(one: &Forgetful) -> Cause {
    Cause {
        name: "member_forgot",
        since: Some(one.since),
        detail: format!(
            "it had acknowledged the log up to entry {}, and came back without entry {}: its disk lied, or was set back to an \
             earlier copy; what is missing was sent again",
            one.acknowledged, one.missing
        ),
        action: "take the member out ('quorate member remove'), look at its disk, and let it join again empty; until then it may have forgotten votes, too",
    }
}

/// What the proofs beside an archive give cause for: the worst alone.
fn unproven(health: &Health, schedule: &Schedule, url: &str, drills_here: bool) -> Option<Cause> {
    let days = |at: WallTime| age(at).as_secs() / (24 * 3_600);
    let old = |at: Option<WallTime>, most: Duration| {
        let at = at.unwrap_or(health.since);
        (age(at) > most).then_some(at)
    };
    if let Some((at, finding)) = &health.failed {
        return Some(Cause {
            name: "backup_damaged",
            since: Some(*at),
            detail: format!("the archive in {url} did not pass its last check: {finding}"),
            action: "run 'quorate backup verify --level 4' for all findings, and to end this alarm once it passes; 'quorate backup run' sends a whole state that does not need what is damaged",
        });
    }
    let most = unverified_max(schedule, health.verified.unwrap_or(health.since));
    if let Some(at) = old(health.verified, most) {
        return Some(Cause {
            name: "backup_unverified",
            since: Some(at),
            detail: format!("the archive in {url} was not verified for {} days", days(at)),
            action: "see why the scheduled verification does not pass (the nodes' logs), or run 'quorate backup verify'",
        });
    }
    old(health.drilled, UNDRILLED_MAX).map(|at| Cause {
        name: "backup_undrilled",
        since: Some(at),
        detail: format!("nothing was restored from the archive in {url} for {} days, to try it", days(at)),
        action: if drills_here {
            "see why the scheduled drill is not made (the nodes' logs), or run 'quorate backup drill'"
        } else {
            "run 'quorate backup drill' where the private key is, best of all with --every 7d"
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days_ago(days: u64) -> WallTime {
        WallTime::new(clock::wall().get() - days * 24 * 3_600 * 1_000)
    }

    #[test]
    fn a_broken_chain_is_told_as_one_that_nobody_begins_anew() {
        let failing = Failing { since: days_ago(9), error: "manifest 7 is missing".to_owned() };
        let lost = Lost { since: days_ago(0), what: "manifest 7 is missing".to_owned(), upto: None };
        let told = |broken, lost| gone(broken, lost, "file:///b").map(|cause| (cause.name, cause.since, cause.action));
        let (name, since, action) = told(Some(&failing), Some(&lost)).unwrap();
        assert_eq!((name, since), ("backup_broken", Some(failing.since)), "as long as it is");
        assert!(action.contains("put that manifest back") && action.contains("another prefix"), "{action}");
        assert_eq!(told(None, Some(&lost)).unwrap().0, "backup_lost");
        assert_eq!(told(None, Some(&Lost { since: days_ago(2), ..lost.clone() })), None);
    }

    #[test]
    fn an_archive_that_nobody_proves_is_an_alarm_in_time() {
        let nightly: Schedule = "0 5 * * *".parse().unwrap();
        let name = |health: &Health| unproven(health, &nightly, "file:///b", false).map(|cause| cause.name);
        let fresh = Health { since: days_ago(0), ..Health::default() };
        assert_eq!(name(&fresh), None, "there was no time yet");
        let proven =
            Health { since: days_ago(90), verified: Some(days_ago(1)), drilled: Some(days_ago(6)), ..fresh.clone() };
        assert_eq!(name(&proven), None);
        assert_eq!(name(&Health { since: days_ago(4), ..fresh.clone() }), Some("backup_unverified"));
        assert_eq!(name(&Health { verified: Some(days_ago(4)), ..proven.clone() }), Some("backup_unverified"));
        assert_eq!(name(&Health { drilled: Some(days_ago(9)), ..proven.clone() }), Some("backup_undrilled"));
        assert_eq!(name(&Health { drilled: None, ..proven.clone() }), Some("backup_undrilled"));
        let monthly: Schedule = "0 5 1 * *".parse().unwrap();
        let old = |days| Health { verified: Some(days_ago(days)), ..proven.clone() };
        let name_monthly = |health: &Health| unproven(health, &monthly, "file:///b", false).map(|cause| cause.name);
        assert_eq!((name_monthly(&old(27)), name_monthly(&old(63))), (None, Some("backup_unverified")));
        let failed = Some((days_ago(1), "verify: x is missing".to_owned()));
        assert_eq!(name(&Health { failed, ..proven.clone() }), Some("backup_damaged"));
        let refused = Health { unpruned: Some((days_ago(2), "AccessDenied".to_owned())), ..proven };
        assert_eq!(name(&refused), None, "it is proven all the same");
        let told = unpruned(&refused, "file:///b").unwrap();
        assert!(told.name == "backup_unpruned" && told.detail.contains("AccessDenied"), "{}", told.detail);
    }
}
