//! The archive of one place while this node is the one that continues it: what is due.
//!
//! Guarantees: entries are archived without a gap, from the first whole state on; where the log does not have them any more
//! a whole state bridges the gap, and that is told; nothing is told as archived before a manifest in the chain says so, nor
//! while the newest whole state is gone, in whose place another one is sent at once, and nothing before it; of two nodes that archive at the same time each finds out at its next manifest and goes on behind the other. Leaves out:
//! when to begin again after an error (`mod`), sending (`jobs`), and what follows from what was sent (`outcome`).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;

use super::ArchiveError;
use super::jobs::{Job, Shipment, Work};
use super::merging;
use super::progress::{Archived, Desk, FullStatus, Lost, Status};
use super::source::LogSource;
use crate::backup::catalogue::{Catalogue, CatalogueError};
use crate::backup::layout::{Kind, Layout, REPOSITORY};
use crate::backup::manifest::Object;
use crate::clock::{self, Instant};
use crate::types::{LogPosition, Revision, WallTime};

/// How often it is looked at most whether something is to be sent.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The least time between two flushes that somebody waits for: so many more of those who wait share one.
const URGENT_INTERVAL: Duration = Duration::from_millis(50);

/// How soon it is looked again for an entry that somebody waits for, and that is not applied here yet.
const WANTED_INTERVAL: Duration = Duration::from_millis(10);

/// How often it is looked for what has belonged to the archive for long, so that it is noticed when somebody emptied or
/// replaced it. What this node has just written tells nothing of that.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// How often groups to merge are looked for, as a part of the time they span, and the bounds of that.
const MERGE_LOOK_PART: u32 = 10;
const MERGE_LOOK_MIN: Duration = Duration::from_millis(500);
const MERGE_LOOK_MAX: Duration = Duration::from_secs(30);

/// After this time, and twice the flush interval, what was proposed is archived, or others have trouble to tell of.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// At work.
pub(super) struct Worker<'a, S> {
    pub(super) work: Arc<Work<S>>,
    pub(super) desk: &'a Desk,
    pub(super) chain: Catalogue,
    /// The last entry that is archived as part of the log: what is sent next follows it.
    pub(super) shipped: Option<LogPosition>,
    /// The revision that is surely archived.
    pub(super) archived: Revision,
    /// The newest whole state, and its revision.
    pub(super) full: Option<(LogPosition, Revision)>,
    /// The name of the newest whole state in the chain.
    pub(super) full_name: Option<String>,
    /// The newest whole state in the chain, where it is not in the store: it counts for nothing.
    pub(super) absent: Option<Object>,
    /// A whole state must bridge a gap before more of the log is of use.
    pub(super) bridging: bool,
    pub(super) jobs: FuturesUnordered<Job>,
    pub(super) shipping: bool,
    pub(super) sending_full: bool,
    pub(super) merging: bool,
    pub(super) checking: bool,
    flushed_at: Instant,
    flushed_bytes: u64,
    pub(super) urgent: bool,
    /// When the next flush that somebody waits for may begin.
    urgent_at: Instant,
    pub(super) merge_at: Instant,
    check_at: Instant,
    /// The newest manifest at the last check.
    pub(super) checked: Option<u64>,
    pub(super) full_at: Option<WallTime>,
    /// Everything applied at that time is archived; since this node archives.
    pub(super) covered_at: Option<Instant>,
}

impl<'a, S: LogSource> Worker<'a, S> {
    /// Begins with the archive as it was just read, and found to lack its newest whole state if that is `absent`.
    pub(super) fn new(work: Arc<Work<S>>, desk: &'a Desk, chain: Catalogue, absent: Option<Object>) -> Self {
        let now = clock::now();
        let flushed_bytes = work.source.written_bytes();
        let checked = chain.head().map(|head| head.seq);
        let mut worker = Self {
            work,
            desk,
            chain,
            shipped: None,
            archived: Revision::ZERO,
            full: None,
            full_name: None,
            absent,
            bridging: false,
            jobs: FuturesUnordered::new(),
            shipping: false,
            sending_full: false,
            merging: false,
            checking: false,
            flushed_at: now,
            flushed_bytes,
            // What came while nobody archived has waited long enough.
            urgent: true,
            urgent_at: now,
            merge_at: now,
            check_at: now + CHECK_INTERVAL,
            checked,
            full_at: None,
            covered_at: None,
        };
        worker.tell_of_loss();
        worker.look_around();
        worker
    }

    /// Tells that the newest whole state is gone, unless that is told already.
    fn tell_of_loss(&self) {
        let Some(absent) = &self.absent else { return };
        let what = ArchiveError::from(CatalogueError::Replaced { name: absent.name.clone() }).to_string();
        tracing::warn!(
            backup = self.work.settings.name,
            what,
            "a whole state is sent in place of the one that is gone"
        );
        self.desk.tell(|status| {
            if status.lost.as_ref().is_none_or(|lost| lost.what != what) {
                status.lost = Some(Lost { since: clock::wall(), what, upto: None });
            }
        });
    }

    /// Archives until something fails.
    pub(super) async fn run(mut self) -> Result<Infallible, ArchiveError> {
        let mut looks = tokio::time::interval(LOOK_INTERVAL.min(self.work.settings.flush_interval));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.begin_what_is_due();
            tokio::select! {
                biased;
                Some(done) = self.jobs.next() => self.finish(done?).await?,
                () = self.desk.nudged() => {}
                () = tokio::time::sleep_until(self.urgent_at), if self.is_urgent() && self.may_ship() => {}
                _ = looks.tick() => {}
            }
        }
    }

    /// Takes from the chain where the archive stands.
    pub(super) fn look_around(&mut self) {
        let segments = self.chain.segments();
        let is_there = |full: &&Object| self.absent.as_ref().is_none_or(|absent| absent.name != full.name);
        let newest = self.chain.newest_full().filter(is_there);
        self.full_name = newest.map(|full| full.name.clone());
        let newest = newest.and_then(full_status);
        let full = newest.map(|full| full.position);
        let log = segments.last().map(|last| LogPosition::from(last.last));
        // Entries between the last piece of the log and the whole state, if there are any, are still wanted: without them
        // the states in between could not be restored from an older one.
        self.shipped = log.or_else(|| self.oldest_followed()).or(full);
        let end = if full.is_some() { log.max(full) } else { None };
        let known = self.chain.objects().filter(|object| object.state.is_some()).max_by_key(|object| object.last.index);
        let revision =
            known.and_then(|object| object.state).map_or(Revision::ZERO, |state| Revision::new(state.revision));
        self.full = newest.map(|full| (full.position, full.revision));
        self.archived = if full.is_some() { revision } else { Revision::ZERO };
        self.full_at = newest.map_or(Some(WallTime::ZERO), |full| self.work.settings.full.next_after(full.at));
        let (objects, bytes) = self.chain.objects().fold((0, 0), |(count, sum), one| (count + 1, sum + one.bytes));
        self.desk.tell(|status| {
            let told = status.archived.filter(|_| full.is_some());
            status.archived = end.map(|position| Archived { position, revision }).max_by_position(told);
            status.shipped = self.shipped;
            status.full = newest;
            (status.objects, status.object_bytes) = (objects, bytes);
        });
    }

    /// The oldest whole state that the log of this node still follows: where the log begins, if none of it is archived.
    fn oldest_followed(&self) -> Option<LogPosition> {
        let purged = self.work.source.log_begins_behind().map(|purged| purged.index);
        let mut positions = self.chain.fulls().into_iter().map(|full| LogPosition::from(full.last));
        positions.find(|full| purged.is_none_or(|purged| full.index >= purged))
    }

    fn begin_what_is_due(&mut self) {
        let now = clock::now();
        if !self.sending_full && self.is_full_due() {
            self.sending_full = true;
            self.desk.tell(|status| status.full_under_way = true);
            self.jobs.push(self.work.full());
        }
        if self.may_ship() {
            self.ship_if_due(now);
        }
        if !self.work.settings.log {
            self.note_without_log(now);
        }
        let interval = self.work.settings.merge_interval;
        if !self.merging && !interval.is_zero() && now >= self.merge_at {
            self.merge_at = now + (interval / MERGE_LOOK_PART).clamp(MERGE_LOOK_MIN, MERGE_LOOK_MAX);
            self.merge_if_due(interval);
        }
        if !self.checking && now >= self.check_at {
            self.checking = true;
            self.check_at = now + CHECK_INTERVAL;
            self.jobs.push(self.work.check(self.must_be_there()));
        }
    }

    /// What is looked for at a check: the marker of the repository, the newest whole state and the manifest that was
    /// the newest at the check before.
    fn must_be_there(&self) -> Vec<String> {
        let full = self.full_name.clone();
        let manifest = self.checked.map(|seq| Layout::new(self.work.cluster).manifest(seq));
        [Some(REPOSITORY.to_owned()), full, manifest].into_iter().flatten().collect()
    }

    /// Whether more of the log can be sent: behind a whole state, one piece after the other.
    fn may_ship(&self) -> bool {
        let reached = self.work.source.reached().is_some();
        self.work.settings.log && !self.shipping && !self.bridging && self.full.is_some() && reached
    }

    /// Whether what is applied should be sent at once.
    fn is_urgent(&self) -> bool {
        self.urgent || self.desk.wanted() > self.archived
    }

    fn is_full_due(&self) -> bool {
        let Some((_, newest)) = self.full else {
            // One that is older than what is gone would not take its place.
            let gone = self.absent.as_ref().map_or(0, |absent| absent.last.index);
            return self.work.source.reached().is_some_and(|reached| reached.position.index.get() >= gone);
        };
        // The same state again would tell nothing new, and that of a node that lags even less.
        let changed = self.work.source.reached().is_some_and(|reached| reached.state.revision > newest);
        let due = self.full_at.is_some_and(|at| at <= clock::wall());
        self.bridging || self.desk.is_full_wanted() || (due && changed)
    }

    fn ship_if_due(&mut self, now: Instant) {
        let Some(upto) = self.work.source.reached() else { return };
        if self.shipped.is_some_and(|shipped| shipped.index >= upto.position.index) {
            self.urgent = false;
            self.urgent_at = now + WANTED_INTERVAL;
            self.flushed_at = now;
            self.flushed_bytes = self.work.source.written_bytes();
            self.all_is_well();
            return self.covered(now, None);
        }
        let settings = &self.work.settings;
        let waiting = self.work.source.written_bytes().saturating_sub(self.flushed_bytes);
        let elapsed = now.saturating_duration_since(self.flushed_at);
        let urgent = self.is_urgent() && now >= self.urgent_at;
        if urgent || elapsed >= settings.flush_interval || waiting >= settings.flush_bytes {
            self.urgent = false;
            self.urgent_at = now + URGENT_INTERVAL;
            self.flushed_at = now;
            self.flushed_bytes = self.work.source.written_bytes();
            self.shipping = true;
            let after = self.shipped;
            self.jobs.push(self.work.ship(Shipment { after, upto, at: now }));
        }
    }

    /// Where only whole states are archived, the age of the newest one is what would be lost.
    fn note_without_log(&mut self, now: Instant) {
        let reached = self.work.source.reached().map(|reached| reached.state.revision);
        if self.full.map(|(_, newest)| newest) == reached && reached.is_some() {
            self.covered(now, None);
        }
    }

    pub(super) fn covered(&mut self, at: Instant, exposed: Option<Duration>) {
        self.covered_at = Some(at);
        self.desk.covered(at, exposed);
    }

    fn merge_if_due(&mut self, interval: Duration) {
        let segments = self.chain.segments();
        let settled = SETTLED_AFTER + 2 * self.work.settings.flush_interval;
        let settled = u64::try_from(settled.as_millis()).unwrap_or(u64::MAX);
        let settled = WallTime::new(clock::wall().get().saturating_sub(settled));
        let group = merging::due(&segments, self.work.source.log_begins_behind(), interval, settled);
        if !group.is_empty() {
            let job = self.work.merge(&group);
            self.merging = true;
            self.jobs.push(job);
        }
    }

    pub(super) fn all_is_well(&self) {
        let well = |status: &Status| status.healthy && status.failing.is_none();
        if !well(&self.desk.status().borrow()) {
            self.desk.tell(|status| (status.healthy, status.failing) = (true, None));
            tracing::info!(backup = self.work.settings.name, "the archive goes on");
        }
    }
}

pub(super) fn full_status(full: &Object) -> Option<FullStatus> {
    let (state, (at, _)) = full.state.zip(full.times)?;
    let (position, revision) = (full.last.into(), Revision::new(state.revision));
    debug_assert_eq!(full.kind, Kind::Full);
    Some(FullStatus { position, revision, at: WallTime::new(at), bytes: full.bytes })
}

pub(super) trait Farther {
    fn max_by_position(self, other: Self) -> Self;
}

impl Farther for Option<Archived> {
    /// What reaches farther; what is archived is never less than what was told.
    fn max_by_position(self, other: Self) -> Self {
        let key = |one: &Archived| (one.position.index, one.revision);
        match (self, other) {
            (Some(one), Some(other)) => Some(if key(&one) >= key(&other) { one } else { other }),
            (one, other) => one.or(other),
        }
    }
}
