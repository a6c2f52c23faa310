//! What of an archive is kept, decided from its catalogue and the time alone.
//!
//! Kept are: everything that is needed to restore any point of the last `window`; the newest snapshot of each of the last
//! so many hours, days, weeks and months that have one (each alone, without the log behind it, where it is older than the
//! window); the newest snapshot and all behind it, whatever its age; and what is younger than an object lock. A period
//! without a snapshot does not count, so an archive that is not written to any more does not melt away.
//!
//! Guarantees: pure; what is kept is restorable as it was before; deciding again on what was kept drops nothing more at
//! the same time. Leaves out: taking things away (`prune`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};

use super::catalogue::Catalogue;
use super::manifest::Object;
use crate::types::WallTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// Any point of this time back from now can be restored.
    pub window: Duration,
    /// Snapshots of so many hours.
    pub hourly: u32,
    /// Of so many days, in UTC.
    pub daily: u32,
    /// Of so many weeks, which begin on Monday.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
    /// Nothing younger is taken away: the store would refuse.
    pub object_lock: Duration,
}

impl Default for Keep {
    /// Any point of 7 days; 24 hourly, 7 daily, 4 weekly and 12 monthly snapshots; no lock.
    fn default() -> Self {
        Self { window: 7 * DAY, hourly: 24, daily: 7, weekly: 4, monthly: 12, object_lock: Duration::ZERO }
    }
}

/// Why something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Points of the window need it.
    Window,
    /// The snapshot of an hour.
    Hourly,
    /// Of a day.
    Daily,
    /// Of a week.
    Weekly,
    /// Of a month.
    Monthly,
    /// It belongs to the newest that can be restored.
    Newest,
    /// It is younger than the object lock.
    Locked,
}

impl Reason {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Newest => "newest",
            Self::Locked => "locked",
        }
    }
}

/// What shall happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is kept, by name, and why.
    pub kept: BTreeMap<String, BTreeSet<Reason>>,
    /// What is not, in the order of the log.
    pub drops: Vec<Object>,
}

impl Plan {
    fn keep(&mut self, object: &Object, reason: Reason) {
        self.kept.entry(object.name.clone()).or_default().insert(reason);
    }
}

/// Decides what is kept of an archive.
#[must_use]
pub fn plan(catalogue: &Catalogue, keep: &Keep, now: WallTime) -> Plan {
    let (fulls, segments, mut plan) = (catalogue.fulls(), catalogue.segments(), Plan::default());
    let back = |span: Duration| now.get().saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    // Restoring the first point of the window begins with the last snapshot before it. With none that old, with all.
    // Looked for from the oldest on: a newer one that was stamped by a wrong clock is not taken for an old one.
    let window = fulls.iter().position(|full| time(full) > back(keep.window));
    let window = window.unwrap_or(fulls.len()).saturating_sub(1);
    for (full, at) in fulls.iter().zip(0..) {
        if at >= window {
            plan.keep(full, Reason::Window);
        }
    }
    for (number, reason) in [
        (keep.hourly, Reason::Hourly),
        (keep.daily, Reason::Daily),
        (keep.weekly, Reason::Weekly),
        (keep.monthly, Reason::Monthly),
    ] {
        let mut periods = BTreeSet::new();
        for full in fulls.iter().rev() {
            if periods.len() == number as usize {
                break;
            }
            if periods.insert(period(reason, time(full))) {
                plan.keep(full, reason);
            }
        }
    }
    if let Some(newest) = fulls.last() {
        plan.keep(newest, Reason::Newest);
    }
    let (begin, newest) = (fulls.get(window), fulls.last());
    for segment in &segments {
        let behind = |full: Option<&&Object>| full.is_none_or(|full| segment.last.index > full.last.index);
        if behind(begin) {
            plan.keep(segment, Reason::Window);
        }
        if behind(newest) {
            plan.keep(segment, Reason::Newest);
        }
    }
    let mut all: Vec<&Object> = fulls.into_iter().chain(segments).collect();
    all.sort_by_key(|object| object.last.index);
    // What tells no time is as old as what comes behind it.
    let mut at = now.get();
    for object in all.iter().rev() {
        at = object.times.map_or(at, |(_, last)| last);
        if !keep.object_lock.is_zero() && at > back(keep.object_lock) {
            plan.keep(object, Reason::Locked);
        }
    }
    plan.drops = all.into_iter().filter(|object| !plan.kept.contains_key(&object.name)).cloned().collect();
    plan
}

/// When a snapshot was made.
fn time(full: &Object) -> u64 {
    full.times.map_or(0, |(_, last)| last)
}

/// Which hour, day, week or month a time belongs to.
fn period(reason: Reason, millis: u64) -> (i64, u32) {
    let time: DateTime<Utc> =
        i64::try_from(millis).ok().and_then(DateTime::from_timestamp_millis).unwrap_or(DateTime::<Utc>::MAX_UTC);
    match reason {
        Reason::Monthly => (i64::from(time.year()), time.month()),
        Reason::Weekly => (i64::from(time.iso_week().year()), time.iso_week().week()),
        Reason::Daily => (i64::from(time.num_days_from_ce()), 0),
        _ => (i64::from(time.num_days_from_ce()), time.hour()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::layout::Kind;
    use crate::backup::manifest::{Place, Sha};
    use crate::types::{ClusterId, LogPosition};

    const HOUR_MS: u64 = 3_600_000;
    /// Monday, 2023-11-13, 00:00 UTC.
    const MONDAY: u64 = 1_699_833_600_000;

    fn object(kind: Kind, previous: Option<u64>, last: u64, at: Option<u64>) -> Object {
        let place = |index| Place { term: 1, leader: 1, index };
        Object {
            name: format!("{kind}-{previous:?}-{last}"),
            kind,
            bytes: 1,
            sha256: Sha([0; 32]),
            plain_bytes: 1,
            previous: previous.map(place),
            last: place(last),
            state: None,
            times: at.map(|at| (at, at)),
        }
    }

    fn catalogue(objects: impl IntoIterator<Item = Object>) -> Catalogue {
        Catalogue::of(ClusterId::new(7), objects)
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    fn nothing() -> Keep {
        Keep { window: Duration::ZERO, hourly: 0, daily: 0, weekly: 0, monthly: 0, object_lock: Duration::ZERO }
    }

    /// A snapshot each `every` hours with ten entries between, and a segment behind each.
    fn history(count: u64, every: u64) -> Vec<Object> {
        let at = |n: u64| MONDAY + n * every * HOUR_MS;
        let full = |n: u64| object(Kind::Full, None, n * 10, Some(at(n)));
        let log = |n: u64| object(Kind::Log, Some(n * 10), n * 10 + 10, Some(at(n) + HOUR_MS / 2));
        (0..count).flat_map(|n| [full(n), log(n)]).collect()
    }

    fn fulls_kept(plan: &Plan, catalogue: &Catalogue) -> Vec<u64> {
        let kept = |object: &&&Object| plan.kept.contains_key(&object.name);
        catalogue.fulls().iter().filter(kept).map(|object| object.last.index / 10).collect()
    }

    #[test]
    fn the_window_keeps_the_snapshot_before_it_and_all_behind() {
        let catalogue = catalogue(history(10, 1));
        let now = WallTime::new(MONDAY + 10 * HOUR_MS);
        let plan = plan(&catalogue, &Keep { window: hours(3) + Duration::from_secs(1), ..nothing() }, now);
        assert_eq!(fulls_kept(&plan, &catalogue), [6, 7, 8, 9]);
        let logs: Vec<u64> = plan.drops.iter().filter(|o| o.kind == Kind::Log).map(|o| o.last.index).collect();
        assert_eq!(logs, [10, 20, 30, 40, 50, 60]);
    }

    #[test]
    fn a_snapshot_stamped_by_a_wrong_clock_does_not_melt_the_window() {
        let mut objects = history(10, 1);
        objects.push(object(Kind::Full, None, 100, Some(0)));
        let catalogue = catalogue(objects);
        let now = WallTime::new(MONDAY + 10 * HOUR_MS);
        let plan = plan(&catalogue, &Keep { window: hours(3) + Duration::from_secs(1), ..nothing() }, now);
        assert_eq!(fulls_kept(&plan, &catalogue), [6, 7, 8, 9, 10]);
    }

    #[test]
    fn periods_count_only_where_there_is_a_snapshot() {
        let catalogue = catalogue(history(24 * 60, 1));
        // A year later: nothing was written since.
        let now = WallTime::new(MONDAY + (24 * 60 + 8760) * HOUR_MS);
        let kept = |keep: Keep| fulls_kept(&plan(&catalogue, &keep, now), &catalogue);
        let last = 24 * 60 - 1;
        assert_eq!(kept(nothing()), [last]);
        assert_eq!(kept(Keep { hourly: 3, ..nothing() }), [last - 2, last - 1, last]);
        assert_eq!(kept(Keep { daily: 2, ..nothing() }), [last - 24, last]);
        // From a Monday on, day 59 is a Thursday; the week before ended with day 55.
        assert_eq!(kept(Keep { weekly: 2, ..nothing() }), [56 * 24 - 1, last]);
        // 13 November to 11 January.
        assert_eq!(kept(Keep { monthly: 9, ..nothing() }), [18 * 24 - 1, 49 * 24 - 1, last]);
    }

    #[test]
    fn what_is_locked_stays() {
        let catalogue = catalogue(history(10, 1));
        let now = WallTime::new(MONDAY + 10 * HOUR_MS);
        let plan = plan(&catalogue, &Keep { object_lock: hours(5), ..nothing() }, now);
        assert_eq!(plan.drops.iter().filter_map(|o| o.times).map(|(_, at)| at).max(), Some(MONDAY + 5 * HOUR_MS));
        assert_eq!(plan.drops.len(), 5 * 2 + 1);
    }

    #[test]
    fn without_a_snapshot_nothing_is_dropped() {
        let catalogue = catalogue([object(Kind::Log, None, 10, None), object(Kind::Log, Some(10), 20, None)]);
        assert_eq!(plan(&catalogue, &nothing(), WallTime::new(MONDAY)).drops, []);
    }

    /// Pieces of a log in which some overlap and some are missing, and snapshots here and there.
    fn archives() -> impl Strategy<Value = Vec<Object>> {
        let piece = (0_u64..4, 1_u64..6, any::<bool>(), prop::bool::weighted(0.4), prop::bool::weighted(0.1));
        prop::collection::vec(piece, 1..40).prop_map(|pieces| {
            let (mut objects, mut at) = (Vec::new(), 0_u64);
            for (number, (overlap, length, has_time, full, gap)) in (1_u64..).zip(pieces) {
                let time = MONDAY + number * 7 * HOUR_MS;
                if gap {
                    at += 3;
                }
                let (begin, end) = (at.saturating_sub(overlap), at + length);
                objects.push(object(Kind::Log, Some(begin), end, has_time.then_some(time)));
                at = end;
                if full || gap {
                    objects.push(object(Kind::Full, None, at, Some(time + 1)));
                }
            }
            objects
        })
    }

    fn restorable(catalogue: &Catalogue, index: u64) -> bool {
        let begins = catalogue.fulls().into_iter().filter(|full| full.last.index <= index).map(|full| full.last);
        begins.map(LogPosition::from).any(|begin| catalogue.follow(begin).0.index.get() >= index)
    }

    proptest! {
        #[test]
        fn what_should_stay_restorable_does_and_a_second_look_drops_nothing(
            objects in archives(),
            window in 0_u64..200,
            (hourly, daily, weekly, monthly) in (0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4),
            lock in 0_u64..100,
        ) {
            let keep = Keep { window: hours(window), hourly, daily, weekly, monthly, object_lock: hours(lock) };
            let before = catalogue(objects.clone());
            let now = WallTime::new(MONDAY + objects.len() as u64 * 7 * HOUR_MS);
            let made = plan(&before, &keep, now);
            let after = catalogue(objects.iter().filter(|o| made.kept.contains_key(&o.name)).cloned());
            prop_assert_eq!(made.kept.len() + made.drops.len(), before.objects().count());
            prop_assert_eq!(after.fulls().last().copied(), before.fulls().last().copied());
            prop_assert_eq!(after.end(), before.end());
            let since = now.get() - window * HOUR_MS;
            for object in objects.iter().filter(|object| object.times.is_some_and(|(_, at)| at >= since)) {
                let index = object.last.index;
                prop_assert_eq!(restorable(&after, index), restorable(&before, index), "entry {}", index);
            }
            for full in after.fulls() {
                prop_assert!(restorable(&after, full.last.index));
            }
            for dropped in &made.drops {
                prop_assert!(lock == 0 || dropped.times.is_none_or(|(_, at)| at + lock * HOUR_MS <= now.get()));
            }
            prop_assert_eq!(plan(&after, &keep, now).drops, vec![]);
        }
    }
}
