//! What an operator should look at, and since when.
//!
//! Guarantees: an alarm stands as long as its cause does, under one name, with the time at which it began, and says what to
//! do. Leaves out: telling others (`gossip`, `api`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::news::{Alarm, Trouble};
use super::place::Place;
use crate::backup::archiver::{Gap, Status};
use crate::backup::care::Health;
use crate::clock;
use crate::types::WallTime;

/// A store that fails for less than this is no news.
const FAILING_GRACE: Duration = Duration::from_secs(3);

/// A store that says nothing at all for so long is taken for one that hangs.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// A gap is told for this long behind its bridge.
const GAP_TOLD: Duration = Duration::from_secs(24 * 3_600);

/// Entries may stand on the nodes' disks alone for this long, and ten flush intervals, before that is an alarm.
const BEHIND_MAX: Duration = Duration::from_secs(60);
const BEHIND_FLUSHES_MAX: u32 = 10;

/// Verifications are due each night where nothing else is said, drills each week.
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
    pub(super) fn update<'a>(&mut self, places: impl Iterator<Item = (&'a Place, Option<Duration>, Vec<String>)>) {
        let mut now = BTreeMap::new();
        for (place, rpo, others) in places {
            for cause in causes(place, rpo, &others) {
                let key = (cause.name, place.settings.name.clone());
                let since = self.0.get(&key).map(|before| before.since).or(cause.since).unwrap_or_else(clock::wall);
                let (name, subject) = (cause.name.to_owned(), place.settings.name.clone());
                now.insert(key, Alarm { name, subject, since, detail: cause.detail, action: cause.action.to_owned() });
            }
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

fn causes(place: &Place, rpo: Option<Duration>, others: &[String]) -> Vec<Cause> {
    let status: Status = place.status();
    let settings = &place.settings;
    let mut causes = Vec::new();
    if let Some(Trouble { since, error }) = place.trouble(&status).filter(|trouble| age(trouble.since) >= FAILING_GRACE)
    {
        causes.push(Cause {
            name: "backup_failing",
            since: Some(since),
            detail: format!("this node can't archive to {}: {error}", place.url),
            action: "make the store usable for this node; what was written meanwhile is sent then",
        });
    }
    if !status.healthy
        && status.failing.is_none()
        && place.trouble(&status).is_none()
        && place.began.elapsed() > SILENT_MAX
    {
        causes.push(Cause {
            name: "backup_failing",
            since: None,
            detail: format!("{} has neither done nor refused what this node asked of it", place.url),
            action: "see whether the store, or the disk that is mounted there, answers at all",
        });
    }
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
    let bound = BEHIND_MAX.max(settings.flush_interval * BEHIND_FLUSHES_MAX);
    if let Some(rpo) = rpo.filter(|rpo| settings.log && *rpo > bound) {
        causes.push(Cause {
            name: "backup_behind",
            since: None,
            detail: format!("what was written in the last {} is not archived", humantime::format_duration(Duration::from_secs(rpo.as_secs()))),
            action: "look at the alarms of the other nodes and at 'quorate backup status'; if all went down now, it would be lost",
        });
    }
    causes.extend(place.health.borrow().as_ref().and_then(|health| unproven(health, &place.url)));
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

/// What the proofs beside an archive give cause for: the worst alone.
fn unproven(health: &Health, url: &str) -> Option<Cause> {
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
    if let Some(at) = old(health.verified, UNVERIFIED_MAX) {
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
        action: "run 'quorate backup drill' where the private key is, best of all with --every 7d",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days_ago(days: u64) -> WallTime {
        WallTime::new(clock::wall().get() - days * 24 * 3_600 * 1_000)
    }

    #[test]
    fn an_archive_that_nobody_proves_is_an_alarm_in_time() {
        let name = |health: &Health| unproven(health, "file:///b").map(|cause| cause.name);
        let fresh = Health { since: days_ago(0), ..Health::default() };
        assert_eq!(name(&fresh), None, "there was no time yet");
        let proven =
            Health { since: days_ago(90), verified: Some(days_ago(1)), drilled: Some(days_ago(6)), ..fresh.clone() };
        assert_eq!(name(&proven), None);
        assert_eq!(name(&Health { since: days_ago(4), ..fresh.clone() }), Some("backup_unverified"));
        assert_eq!(name(&Health { verified: Some(days_ago(4)), ..proven.clone() }), Some("backup_unverified"));
        assert_eq!(name(&Health { drilled: Some(days_ago(9)), ..proven.clone() }), Some("backup_undrilled"));
        assert_eq!(name(&Health { drilled: None, ..proven.clone() }), Some("backup_undrilled"));
        let failed = Some((days_ago(1), "verify: x is missing".to_owned()));
        assert_eq!(name(&Health { failed, ..proven }), Some("backup_damaged"));
    }
}
