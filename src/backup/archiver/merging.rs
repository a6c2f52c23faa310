//! Which objects of the log are worth becoming one.
//!
//! Small objects are due to the haste with which entries go off-site; kept for days there would be hundreds of thousands.
//! Guarantees: the same archive gives the same groups on every node, whoever made the objects, so that one that was merged
//! is not merged again; a group holds entries without a gap. Leaves out: merging (`jobs`).

use std::time::Duration;

use crate::backup::manifest::Object;
use crate::types::{LogPosition, WallTime};

/// A merged object holds about so many bytes at most.
pub(super) const MERGED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The first group of objects that should become one, of those behind `purged`, which the log still has; empty if there is
/// none. `segments` are sorted by their last entry. `settled` is a time so long ago that what was proposed before it is
/// archived.
pub(super) fn due<'a>(
    segments: &[&'a Object],
    purged: Option<LogPosition>,
    interval: Duration,
    settled: WallTime,
) -> Vec<&'a Object> {
    let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    let in_log = |object: &&&Object| match (object.previous, purged) {
        (Some(previous), Some(purged)) => previous.index >= purged.index.get(),
        (None, Some(_)) => false,
        (_, None) => true,
    };
    let mut group = Group::default();
    for object in segments.iter().copied().filter(|object| in_log(&object)) {
        let (begin, end) = object.times.unwrap_or((group.end, group.end));
        if !group.takes(object, end, interval) {
            if group.objects.len() > 1 {
                return group.objects;
            }
            group = Group::default();
        }
        if group.objects.is_empty() {
            group.begin = begin;
        }
        group.end = end;
        group.bytes += object.plain_bytes;
        group.objects.push(object);
    }
    let ended = group.begin.saturating_add(interval) <= settled.get();
    if ended && group.objects.len() > 1 { group.objects } else { Vec::new() }
}

#[derive(Default)]
struct Group<'a> {
    objects: Vec<&'a Object>,
    bytes: u64,
    /// When its first command was proposed, in milliseconds since the epoch.
    begin: u64,
    end: u64,
}

impl Group<'_> {
    /// Whether an object belongs to it. One that does not follow the last (two nodes archived at the same time, or something
    /// is missing) never does.
    fn takes(&self, object: &Object, end: u64, interval: u64) -> bool {
        let follows = self.objects.last().is_none_or(|last| object.previous == Some(last.last));
        let fits = self.bytes + object.plain_bytes <= MERGED_BYTES_MAX;
        self.objects.is_empty() || (follows && fits && end < self.begin.saturating_add(interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::layout::Kind;
    use crate::backup::manifest::{Place, Sha};
    use crate::types::{LogIndex, NodeId, Term};

    const MINUTE: Duration = Duration::from_secs(60);

    fn place(index: u64) -> Place {
        Place { term: 1, leader: 1, index }
    }

    fn object(previous: u64, last: u64, times: (u64, u64), plain_bytes: u64) -> Object {
        Object {
            name: format!("{previous}-{last}"),
            kind: Kind::Log,
            bytes: 1,
            sha256: Sha([0; 32]),
            plain_bytes,
            previous: Some(place(previous)),
            last: place(last),
            state: None,
            times: Some(times),
        }
    }

    fn names(objects: &[Object], purged: u64, settled: u64) -> Vec<String> {
        let segments: Vec<&Object> = objects.iter().collect();
        let purged = LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(purged) };
        let due = due(&segments, Some(purged), MINUTE, WallTime::new(settled));
        due.iter().map(|object| object.name.clone()).collect()
    }

    /// One object a second.
    fn seconds(count: u64) -> Vec<Object> {
        (0..count).map(|at| object(at, at + 1, (at * 1_000, at * 1_000 + 900), 10)).collect()
    }

    #[test]
    fn a_minute_of_objects_becomes_one_and_that_is_left_alone() {
        let mut objects = seconds(130);
        assert_eq!(names(&objects, 0, 0).len(), 60);
        let merged = object(0, 60, (0, 59_900), 600);
        objects.splice(..60, [merged]);
        assert_eq!(names(&objects, 0, 0)[0], "60-61");
        let merged = object(60, 120, (60_000, 119_900), 600);
        objects.splice(1..61, [merged]);
        assert_eq!(names(&objects, 0, 130_000), Vec::<String>::new(), "the last ten are not a minute yet");
        assert_eq!(names(&objects, 0, 180_000).len(), 10, "nothing more will come into that minute");
        // Whoever's log begins within them finds the same borders.
        assert_eq!(names(&objects, 60, 180_000).len(), 10);
        assert_eq!(names(&objects, 61, 180_000).len(), 10);
    }

    #[test]
    fn a_merged_object_is_bounded_and_gaps_and_overlaps_stand_between_groups() {
        let big = |at: u64| object(at, at + 1, (at, at), MERGED_BYTES_MAX / 3);
        assert_eq!(names(&[big(0), big(1), big(2), big(3)], 0, 0), ["0-1", "1-2", "2-3"]);
        let overlapping = [object(0, 2, (0, 0), 1), object(1, 3, (0, 0), 1), object(3, 4, (0, 0), 1)];
        assert_eq!(names(&overlapping, 0, u64::MAX), ["1-3", "3-4"], "the first alone is no group");
        assert!(names(&[object(0, 2, (0, 0), 1), object(3, 4, (0, 0), 1)], 0, u64::MAX).is_empty());
    }

    #[test]
    fn what_the_log_does_not_have_any_more_stays_as_it_is() {
        assert_eq!(names(&seconds(70), 40, 0), Vec::<String>::new());
        assert_eq!(names(&seconds(70), 40, 101_000).len(), 30);
        let only_blanks = Object { times: None, ..object(0, 1, (0, 0), 1) };
        assert_eq!(names(&[only_blanks, object(1, 2, (500, 500), 1)], 0, u64::MAX).len(), 2);
    }
}
