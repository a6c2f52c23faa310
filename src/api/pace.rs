//! How much work may be under way so that it ends in time: a limit that follows what the node achieves.
//!
//! A queue that is bounded only by a number waits as long as the disk likes. By Little's law what is under way is the
//! rate times the time it takes; so bounding the time means to move the bound on what is under way with the rate. This one
//! learns it as TCP learns a path: it grows by half while it is used and everything ends well before the target, and shrinks
//! by a third once more than one in a hundred took longer. Work is weighed by bytes, so that a few large values count like
//! many small ones. Crates that limit concurrency count requests alone, and take a lock for each.
//!
//! What is learnt from times comes too late where time goes by leaps: values that are applied wait in memory for the state
//! store, and once that memory is full every write stops for as long as it takes to empty. So the limit also shrinks with
//! what is left of that memory, and is at its least well before the end.
//!
//! Guarantees: at least one piece of work is taken, however large, unless the
//! disk is far behind; work beyond the limit is refused at once, never queued;
//! taking and giving back cost a few atomic operations and no allocation. Leaves out: bytes of bodies that are still being
//! read (`admission`): how fast those come is the client's doing.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::admission::Scarce;
use super::problem::EdgeError;
use crate::clock::{self, Instant};

/// What a piece of work counts for beside its bytes, in bytes: what a small write costs compared with a large one.
pub(super) const WORK_BYTES: usize = 2 * 1024;

/// Where the limit begins, and where it comes back to when nothing is slow, in bytes: some hundred small writes or a few large ones.
const FIRST_LIMIT: usize = 2 * 1024 * 1024;

/// The limit does not shrink below this, in bytes: with so few small writes under way, fewer would not be faster.
const LEAST_LIMIT: usize = 32 * WORK_BYTES;

/// How long the limit stays before it is judged again, at least ...
const WINDOW: Duration = Duration::from_millis(100);

/// ... if so many pieces of work have ended under it; or else ...
const SAMPLES_MIN: usize = 16;

/// ... this long.
const WINDOW_MAX: Duration = Duration::from_secs(1);

/// One of this many may take longer than the target.
const LATE_SHARE: usize = 100;

/// One of this many may take longer than half the target for the limit to grow on.
const SLOW_SHARE: usize = 20;

/// From this much of the memory for what waits for the disk on the limit shrinks, in percent ...
const BACKLOG_NOTED: usize = 50;

/// ... and from this much on it is at its least, and large work is not even taken alone. The rest is for what other nodes
/// have taken meanwhile: each looks at its own memory, but a write waits for the leader's.
const BACKLOG_FULL: usize = 72;

/// The limit and what is under way.
#[derive(Debug)]
pub(super) struct Pace {
    taken: AtomicUsize,
    limit: AtomicUsize,
    most: usize,
    target: Duration,
    epoch: Instant,
    /// When the limit was last judged, in microseconds since the epoch.
    judged: AtomicU64,
    window: Window,
}

/// What has happened since the limit was judged. Only work that began since then counts: older work met another limit.
/// Two threads at the end of a window may each lose a count; nothing depends on a single one.
#[derive(Debug, Default)]
struct Window {
    samples: AtomicUsize,
    slow: AtomicUsize,
    late: AtomicUsize,
    /// The most that was asked for at a time.
    peak: AtomicUsize,
}

/// Work under way; its share is given back on drop.
#[derive(Debug)]
#[must_use]
pub(super) struct Work<'a> {
    pace: &'a Pace,
    bytes: usize,
    began: Instant,
}

impl Pace {
    /// A limit of at most `most` bytes that keeps the time of work below `target`.
    pub(super) fn new(most: usize, target: Duration) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            limit: AtomicUsize::new(FIRST_LIMIT.min(most)),
            most,
            target,
            epoch: clock::now(),
            judged: AtomicU64::new(0),
            window: Window::default(),
        }
    }

    /// Begins work on this many bytes, or says that it would take too long. `backlog` is how far the disk is behind, in
    /// percent of what stops all work.
    pub(super) fn begin(&self, bytes: usize, backlog: usize) -> Result<Work<'_>, EdgeError> {
        let bytes = bytes.saturating_add(WORK_BYTES);
        let limit = self.limit.load(Relaxed);
        let span = BACKLOG_FULL - BACKLOG_NOTED;
        let left = BACKLOG_FULL.saturating_sub(backlog.max(BACKLOG_NOTED));
        let allowed = (limit - limit / span * (span - left)).clamp(LEAST_LIMIT.min(limit), limit);
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= allowed || taken == 0 && left > 0);
        match self.taken.fetch_update(Relaxed, Relaxed, fits) {
            Ok(others) => {
                self.window.peak.fetch_max(others + bytes, Relaxed);
                Ok(Work { pace: self, bytes, began: clock::now() })
            }
            Err(_) => Err(self.refuse(limit)),
        }
    }

    /// Whether work on this many bytes could begin now. Nothing is set aside for it.
    pub(super) fn has_room(&self, bytes: usize) -> Result<(), EdgeError> {
        let (taken, limit) = (self.taken.load(Relaxed), self.limit.load(Relaxed));
        let fits = taken == 0 || taken.saturating_add(bytes).saturating_add(WORK_BYTES) <= limit;
        if fits { Ok(()) } else { Err(self.refuse(limit)) }
    }

    /// Bytes under way.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Bytes that may be under way.
    pub(super) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    fn refuse(&self, limit: usize) -> EdgeError {
        // Who is refused would have used what there is, and more.
        self.window.peak.fetch_max(limit, Relaxed);
        EdgeError::Busy(Scarce::WriteTime)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    fn ended(&self, began: Instant, now: Instant) {
        let judged = self.judged.load(Relaxed);
        let (began, now) = (self.micros(began), self.micros(now));
        if began < judged {
            return;
        }
        let took = Duration::from_micros(now.saturating_sub(began));
        let window = &self.window;
        let samples = window.samples.fetch_add(1, Relaxed) + 1;
        if took > self.target {
            window.late.fetch_add(1, Relaxed);
        }
        if took > self.target / 2 {
            window.slow.fetch_add(1, Relaxed);
        }
        let open = Duration::from_micros(now.saturating_sub(judged));
        let full = open >= WINDOW && samples >= SAMPLES_MIN || open >= WINDOW_MAX;
        if full && self.judged.compare_exchange(judged, now, Relaxed, Relaxed).is_ok() {
            self.judge();
        }
    }

    /// Moves the limit by what the window has shown, and begins a new one.
    fn judge(&self) {
        let window = &self.window;
        let [samples, slow, late, peak] =
            [&window.samples, &window.slow, &window.late, &window.peak].map(|count| count.swap(0, Relaxed));
        window.peak.store(self.taken(), Relaxed);
        let limit = self.limit.load(Relaxed);
        let next = if late * LATE_SHARE > samples {
            // What nobody used says nothing; the way down begins at what was really under way.
            limit.min(peak.saturating_mul(2).max(FIRST_LIMIT)) / 3 * 2
        } else if slow * SLOW_SHARE <= samples && (peak > limit / 2 || limit < FIRST_LIMIT) {
            limit + limit / 2
        } else {
            return;
        };
        self.limit.store(next.clamp(LEAST_LIMIT.min(self.most), self.most), Relaxed);
    }
}

impl Work<'_> {
    /// The work has ended, well or not, in the time that it took this node.
    pub(super) fn end(self) {
        self.pace.ended(self.began, clock::now());
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.pace.taken.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;
    const TARGET: Duration = Duration::from_millis(500);

    /// A server that works through `bytes_per_second`, one piece behind the other, and clients that always want more. Gives
    /// the limits over `seconds`, and the times of all work begun in the second half of them.
    fn saturate(pace: &Pace, bytes_per_second: usize, piece: usize, seconds: u64) -> (Vec<usize>, Vec<Duration>) {
        let (mut now, mut limits, mut times) = (pace.epoch, Vec::new(), Vec::new());
        let mut queue = std::collections::VecDeque::new();
        let settled = now + Duration::from_secs(seconds) / 2;
        while now < pace.epoch + Duration::from_secs(seconds) {
            while let Ok(mut work) = pace.begin(piece, 0) {
                work.began = now;
                queue.push_back(work);
            }
            now += Duration::from_secs_f64((piece + WORK_BYTES) as f64 / bytes_per_second as f64);
            let work = queue.pop_front().expect("one is always taken");
            if work.began >= settled {
                times.push(now - work.began);
            }
            pace.ended(work.began, now);
            drop(work);
            limits.push(pace.limit());
        }
        (limits, times)
    }

    #[test]
    fn work_ends_in_time_whatever_the_rate_and_the_size() {
        for (rate, piece) in [(100 * MIB, 256), (100 * MIB, MIB), (20 * MIB, MIB), (8 * MIB, 4 * MIB), (MIB, 256)] {
            let pace = Pace::new(128 * MIB, TARGET);
            let (limits, mut times) = saturate(&pace, rate, piece, 40);
            times.sort();
            let p99 = times[times.len() * 99 / 100];
            assert!(p99 < 2 * TARGET, "{rate} bytes/s in pieces of {piece}: p99 {p99:?}, {:?}", limits.last());
            // Less than a tenth of a second under way would leave the disk idle between two of them.
            let last = *limits.last().unwrap();
            assert!(last + piece >= rate / 20, "{rate} bytes/s in pieces of {piece}: {last}");
        }
    }

    #[test]
    fn what_is_not_used_does_not_grow_and_what_is_quick_recovers() {
        let pace = Pace::new(128 * MIB, TARGET);
        let work = |at: Instant, took: Duration| pace.ended(at, at + took);
        let mut now = pace.epoch;
        let mut run = |times: usize, took: Duration| {
            for _ in 0..times {
                now += Duration::from_millis(10);
                work(now, took);
                now += took;
            }
            pace.limit()
        };
        assert_eq!(run(1_000, Duration::from_millis(1)), FIRST_LIMIT, "nobody asked for more");
        let shrunk = run(40, TARGET * 3);
        assert_eq!(shrunk, LEAST_LIMIT);
        assert!(run(1_000, Duration::from_millis(1)) >= FIRST_LIMIT, "quick again");
        assert!(pace.limit() < 2 * FIRST_LIMIT);
    }

    #[test]
    fn the_further_the_disk_is_behind_the_less_is_taken() {
        let most = |backlog| {
            let pace = Pace::new(128 * MIB, TARGET);
            let mut work = Vec::new();
            while let Ok(more) = pace.begin(0, backlog) {
                work.push(more);
            }
            work.len() * WORK_BYTES
        };
        assert_eq!((most(0), most(BACKLOG_NOTED)), (FIRST_LIMIT, FIRST_LIMIT));
        let half = most((BACKLOG_NOTED + BACKLOG_FULL) / 2);
        assert!((FIRST_LIMIT * 4 / 10..=FIRST_LIMIT * 6 / 10).contains(&half), "{half}");
        assert_eq!((most(BACKLOG_FULL), most(150)), (LEAST_LIMIT, LEAST_LIMIT), "small writes go on");
        let pace = Pace::new(128 * MIB, TARGET);
        assert!(pace.begin(MIB, BACKLOG_FULL - 1).is_ok());
        assert!(pace.begin(MIB, BACKLOG_FULL).is_err(), "a large one would not end");
    }

    #[test]
    fn one_piece_is_taken_however_large_and_no_second_one() {
        let pace = Pace::new(4 * MIB, TARGET);
        assert!(pace.has_room(16 * MIB).is_ok());
        let large = pace.begin(16 * MIB, 0).unwrap();
        assert!(pace.has_room(1).is_err() && pace.begin(1, 0).is_err());
        assert_eq!(pace.taken(), 16 * MIB + WORK_BYTES);
        large.end();
        assert_eq!(pace.taken(), 0);
        assert!(pace.begin(1, 0).is_ok());
    }
}
