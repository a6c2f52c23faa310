//! What a restore reads, and where it ends: from what is archived and the point that is wanted, without reading any of it.
//!
//! Times are those at which the leaders proposed commands, by their clocks: a restore to a time applies the longest prefix of
//! the log before the first command that was proposed later. Guarantees: pure; a point that can't be reached is refused with
//! what can be; what is planned continues without a gap from the snapshot to the point. Where only reading tells whether the
//! archive reaches a revision, the plan says so, and the reading fails if not (`rebuild`). Leaves out: fetching (`stage`).

use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, UNIX_EPOCH};

use super::catalogue::Catalogue;
use super::manifest::Object;
use crate::types::{ClusterId, LogIndex, LogPosition, Revision, WallTime};

/// So much earlier than the time that is wanted a snapshot must have been written to be begun with, in milliseconds, where
/// an older one will do: its time is by the clock of the node that wrote it, and what is in it by those of the leaders.
const CLOCKS_APART_MS: u64 = 5 * 60 * 1000;

/// A command takes at least so many bytes in a piece of the log; it makes one revision at most.
const COMMAND_BYTES_MIN: u64 = 8;

/// Revisions that are left out at least behind all that is known to have been given.
const REVISIONS_LEFT_OUT_MIN: u64 = 1_000_000;

/// More revisions than a cluster makes in a second: what it may have given while nothing was archived.
const REVISIONS_A_SECOND_MAX: u64 = 100_000;

/// The point that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// All that is archived.
    Latest,
    /// Right behind the command that made this revision.
    Revision(Revision),
    /// Before the first command that was proposed later.
    Time(WallTime),
    /// Behind the entry of this index.
    Index(LogIndex),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the archive"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
            Self::Time(time) => f.write_str(&rfc3339(*time)),
            Self::Index(index) => write!(f, "index {index}"),
        }
    }
}

/// A time for people: RFC 3339 in UTC.
#[must_use]
pub fn rfc3339(time: WallTime) -> String {
    // Beyond the year 9999, which a clock that was never set may claim, there is no such form.
    let bounded = time.get().min(253_402_300_799_999);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(bounded)).to_string()
}

/// One end of what can be restored, as far as it is known without reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The entry.
    pub index: LogIndex,
    /// The revision behind it.
    pub revision: Option<Revision>,
    /// When it was proposed or, of a snapshot, written.
    pub at: Option<WallTime>,
}

/// A part of the history of which every point can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The earliest point.
    pub from: Mark,
    /// The last point.
    pub to: Mark,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |mark: &Mark| match mark.revision {
            Some(revision) => format!("revision {revision}, index {}", mark.index),
            None => format!("index {}", mark.index),
        };
        let when = |mark: &Mark| mark.at.map_or_else(|| "?".to_owned(), rfc3339);
        let (from, to) = (&self.from, &self.to);
        write!(f, "{} ({}) to {} ({})", when(from), numbers(from), when(to), numbers(to))
    }
}

/// Why there is no way to the point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is nothing.
    #[error("nothing of this cluster is archived here")]
    Nothing,
    /// There is no snapshot.
    #[error("{0} pieces of the log are archived, but no snapshot to begin with; a full backup must run first")]
    NoFull(usize),
    /// Before or behind all that is archived.
    #[error("{target} is outside of what can be restored: {}", list(.windows))]
    Outside {
        /// What was wanted.
        target: Target,
        /// What there is.
        windows: Vec<Window>,
    },
    /// A time behind all that is archived.
    #[error(
        "the archive ends at {}: nothing in it tells whether more was written between then and {}; without a point, \
         or with that time, the state at its end is restored", rfc3339(*.end), rfc3339(*.wanted)
    )]
    Beyond {
        /// What was wanted.
        wanted: WallTime,
        /// When the last command that is archived was proposed, or the last snapshot written.
        end: WallTime,
    },
    /// Between two parts of the archive.
    #[error("{target} lies in a gap of the archive: entries {after} to {before} are not in it; can be restored: {}", list(.windows))]
    Gap {
        /// What was wanted.
        target: Target,
        /// The first entry that is missing.
        after: u64,
        /// The last entry that is missing.
        before: u64,
        /// What there is.
        windows: Vec<Window>,
    },
}

fn list(windows: &[Window]) -> String {
    windows.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What a restore reads and where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The cluster whose archive it is.
    pub cluster: ClusterId,
    /// What was wanted.
    pub target: Target,
    /// The snapshot to begin with.
    pub full: Object,
    /// The pieces of the log behind it, in order; they may overlap.
    pub segments: Vec<Object>,
    /// The index that is reached: one, or between which ones, where only reading tells. Where a leader's clock went back, a
    /// time may be reached earlier.
    pub index: RangeInclusive<u64>,
    /// The revision that is reached at least.
    pub revision_min: Revision,
    /// The revision that is reached at most, where it is known; the same as the least where it is known exactly.
    pub revision_max: Option<Revision>,
    /// Where all that is archived ends.
    pub newest: Mark,
    /// When the last command that is archived was proposed, or the last snapshot written: nothing is known of what came
    /// behind it.
    pub archived_until: WallTime,
    /// No command that is archived made a revision above this one.
    pub revision_archived_max: Revision,
}

impl Plan {
    /// All that is read, the snapshot first.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        std::iter::once(&self.full).chain(&self.segments)
    }

    /// Bytes that come from the store.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects().fold(0, |sum: u64, object| sum.saturating_add(object.bytes))
    }

    /// Bytes that they take unpacked.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        self.objects().fold(0, |sum: u64, object| sum.saturating_add(object.plain_bytes))
    }

    /// A revision above all that clients of the old cluster may have seen, if that ended now at the latest: above what is
    /// archived by what it can have written since then, and by a margin.
    #[must_use]
    pub fn revision_unseen(&self, now: WallTime) -> Revision {
        let seconds = now.get().saturating_sub(self.archived_until.get()).div_ceil(1000);
        let left_out = seconds.saturating_mul(REVISIONS_A_SECOND_MAX).max(REVISIONS_LEFT_OUT_MIN);
        Revision::new(self.revision_archived_max.get().saturating_add(left_out))
    }
}

/// A part of the history without a gap: snapshots, and the log behind the first of them.
struct Stretch<'a> {
    fulls: Vec<&'a Object>,
    path: Vec<&'a Object>,
    end: LogPosition,
}

impl<'a> Stretch<'a> {
    /// All there are, in order. A snapshot without a log behind it is one, too.
    fn all(catalogue: &'a Catalogue) -> Vec<Self> {
        let mut stretches: Vec<Self> = Vec::new();
        for full in catalogue.fulls().into_iter().filter(|full| full.state.is_some()) {
            match stretches.last_mut() {
                Some(last) if full.last.index <= last.end.index.get() => last.fulls.push(full),
                _ => {
                    let (end, path) = catalogue.follow(full.last.into());
                    stretches.push(Self { fulls: vec![full], path, end });
                }
            }
        }
        stretches
    }

    fn first(&self) -> &'a Object {
        self.fulls[0]
    }

    fn window(&self) -> Window {
        Window { from: mark(self.first()), to: self.end_mark() }
    }

    /// What is known of its end.
    fn end_mark(&self) -> Mark {
        let last_full = self.fulls[self.fulls.len() - 1];
        let marked = self.fulls.iter().chain(&self.path).filter(|object| object.last.index == self.end.index.get());
        let written = self.path.iter().filter_map(|object| object.times).map(|(_, last)| last).max();
        Mark {
            index: self.end.index,
            revision: marked.filter_map(|object| revision(object)).max(),
            at: written.max(last_full.times.map(|(at, _)| at)).map(WallTime::new),
        }
    }
}

fn mark(object: &Object) -> Mark {
    let at = object.times.map(|(_, last)| WallTime::new(last));
    Mark { index: LogIndex::new(object.last.index), revision: revision(object), at }
}

fn revision(object: &Object) -> Option<Revision> {
    object.state.map(|state| Revision::new(state.revision))
}

/// What can be restored, oldest first: more than one part where the archive has gaps.
#[must_use]
pub fn windows(catalogue: &Catalogue) -> Vec<Window> {
    Stretch::all(catalogue).iter().map(Stretch::window).collect()
}

/// The way to a point.
///
/// # Errors
/// [`PlanError`].
pub fn plan(catalogue: &Catalogue, target: Target) -> Result<Plan, PlanError> {
    let stretches = Stretch::all(catalogue);
    let (Some(newest), Some(head)) = (stretches.last(), catalogue.head()) else {
        let pieces = catalogue.segments().len();
        return Err(if pieces == 0 { PlanError::Nothing } else { PlanError::NoFull(pieces) });
    };
    let full = choose(&stretches, target)?;
    let (end, path) = catalogue.follow(full.last.into());
    let segments = cut(full, path, target);
    let (before, reached) = match segments.as_slice() {
        [] => (full, full),
        [reached] => (full, *reached),
        [.., before, reached] => (*before, *reached),
    };
    let index = match target {
        Target::Index(index) => index.get()..=index.get(),
        Target::Latest => end.index.get()..=end.index.get(),
        Target::Time(_) => before.last.index..=reached.last.index,
        Target::Revision(wanted) => {
            let mut below = segments.iter().filter(|object| revision(object).is_some_and(|revision| revision < wanted));
            below.next_back().map_or(full, |object| *object).last.index..=reached.last.index
        }
    };
    let (revision_min, revision_max) = match target {
        Target::Revision(revision) => (revision, Some(revision)),
        Target::Latest | Target::Time(_) | Target::Index(_) => {
            let known = std::iter::once(full).chain(segments.iter().copied());
            let before = known.filter(|object| object.last.index <= *index.start());
            (before.filter_map(revision).max().unwrap_or_default(), revision(reached))
        }
    };
    Ok(Plan {
        cluster: catalogue.cluster(),
        target,
        full: full.clone(),
        segments: segments.into_iter().cloned().collect(),
        index,
        revision_min,
        revision_max,
        newest: newest.end_mark(),
        // Not the time of the last manifest: pruning and copying write some, too, long behind the last entry.
        archived_until: newest.end_mark().at.unwrap_or_else(|| WallTime::new(head.written_at)),
        revision_archived_max: revision_max_of(catalogue),
    })
}

/// The snapshot to begin with.
fn choose<'a>(stretches: &[Stretch<'a>], target: Target) -> Result<&'a Object, PlanError> {
    let windows = || stretches.iter().map(Stretch::window).collect();
    let outside = || PlanError::Outside { target, windows: windows() };
    // Whether a snapshot is not behind the point.
    let fits = |full: &Object| match target {
        Target::Latest => true,
        Target::Index(index) => full.last.index <= index.get(),
        Target::Revision(wanted) => revision(full).is_some_and(|revision| revision <= wanted),
        Target::Time(time) => full.times.is_some_and(|(at, _)| at <= time.get()),
    };
    let at = stretches.iter().rposition(|stretch| fits(stretch.first())).ok_or_else(outside)?;
    let (stretch, next) = (&stretches[at], stretches.get(at + 1));
    let end = stretch.end_mark();
    // Whether the point is behind the stretch for sure.
    let beyond = match target {
        Target::Latest => false,
        Target::Index(index) => index > end.index,
        Target::Revision(wanted) => end.revision.is_some_and(|revision| wanted > revision),
        // What was written behind the last entry that is archived is not known.
        Target::Time(time) => Some(time) > end.at,
    };
    match (beyond, next) {
        (false, _) => {}
        (true, None) => {
            return Err(match (target, end.at) {
                (Target::Time(wanted), Some(end)) => PlanError::Beyond { wanted, end },
                _ => outside(),
            });
        }
        (true, Some(next)) => {
            let (after, before) = (end.index.get() + 1, next.first().last.index - 1);
            return Err(PlanError::Gap { target, after, before, windows: windows() });
        }
    }
    let sure = |full: &&&Object| match target {
        Target::Time(time) => full.times.is_some_and(|(at, _)| at.saturating_add(CLOCKS_APART_MS) <= time.get()),
        _ => fits(full),
    };
    Ok(stretch.fulls.iter().rev().find(sure).copied().unwrap_or_else(|| stretch.first()))
}

/// What of the log behind a snapshot is needed for the point.
fn cut<'a>(full: &'a Object, path: Vec<&'a Object>, target: Target) -> Vec<&'a Object> {
    let (mut needed, mut before, mut passed) = (Vec::new(), full, false);
    for segment in path {
        let is_reached = match target {
            Target::Latest => false,
            Target::Index(index) => before.last.index >= index.get(),
            Target::Revision(wanted) => revision(before).is_some_and(|revision| revision >= wanted),
            Target::Time(time) => passed || segment.times.is_some_and(|(first, _)| first > time.get()),
        };
        if is_reached {
            break;
        }
        if let (Target::Time(time), Some((_, last))) = (target, segment.times) {
            passed |= last > time.get();
        }
        needed.push(segment);
        before = segment;
    }
    needed
}

/// A revision that no archived command is above: the newest that is known, and what the pieces behind it can have made.
fn revision_max_of(catalogue: &Catalogue) -> Revision {
    let marked = catalogue.objects().filter_map(|object| Some((object.last.index, revision(object)?)));
    let (index, newest) = marked.max().unwrap_or_default();
    let behind = catalogue.segments().into_iter().filter(|object| object.last.index > index);
    let made = behind.map(|object| object.plain_bytes / COMMAND_BYTES_MIN).fold(0, u64::saturating_add);
    Revision::new(newest.get().saturating_add(made))
}

#[cfg(test)]
mod tests;
