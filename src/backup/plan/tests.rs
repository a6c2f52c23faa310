//! Which snapshot and which pieces of the log a point needs, and what is said where there is no way to it.

use super::*;
use crate::backup::catalogue::Catalogue;
use crate::backup::layout::{Kind, Layout};
use crate::backup::manifest::{Place, Sha, State};
use crate::backup::tests::history::{CLUSTER, repository};

/// Minutes as milliseconds.
const MINUTE: u64 = 60_000;

fn place(index: u64) -> Place {
    Place { term: 1, leader: 1, index }
}

fn state(revision: u64) -> Option<State> {
    Some(State { revision, hash: [1; 16] })
}

/// A snapshot behind entry `last`, at revision ten times that and at minute `last`.
fn full(last: u64) -> Object {
    Object {
        name: Layout::new(CLUSTER).full(last, 0, true),
        kind: Kind::Full,
        bytes: 1_000,
        sha256: Sha([0; 32]),
        plain_bytes: 2_000,
        previous: None,
        last: place(last),
        state: state(10 * last),
        times: Some((last * MINUTE, last * MINUTE)),
    }
}

/// Entries `first` to `last`, each at the minute of its index; with what the state behind them amounts to, if so.
fn piece(first: u64, last: u64, marked: bool) -> Object {
    Object {
        name: Layout::new(CLUSTER).log(first, last, 0, true),
        kind: Kind::Log,
        bytes: 100,
        plain_bytes: 800,
        previous: first.checked_sub(1).map(place),
        state: state(10 * last).filter(|_| marked),
        times: Some((first * MINUTE, last * MINUTE)),
        last: place(last),
        ..full(0)
    }
}

async fn catalogue(objects: impl IntoIterator<Item = Object>) -> Catalogue {
    let mut catalogue = Catalogue::empty(CLUSTER);
    catalogue.append(&repository(), "n1", objects.into_iter().collect(), vec![]).await.unwrap();
    catalogue
}

/// Snapshots behind 10 and 30, the log from 11 to 60; then a gap, and a snapshot behind 90 with the log up to 99.
async fn with_gap() -> Catalogue {
    catalogue([
        full(10),
        piece(11, 20, true),
        piece(21, 30, true),
        full(30),
        piece(31, 45, false),
        piece(46, 60, true),
        full(90),
        piece(91, 99, false),
    ])
    .await
}

fn to_index(index: u64) -> Target {
    Target::Index(LogIndex::new(index))
}

fn to_revision(revision: u64) -> Target {
    Target::Revision(Revision::new(revision))
}

fn to_minute(minute: u64) -> Target {
    Target::Time(WallTime::new(minute * MINUTE))
}

/// What is read: the last entries of the snapshot and of the pieces.
fn read(plan: &Plan) -> (u64, Vec<u64>) {
    (plan.full.last.index, plan.segments.iter().map(|object| object.last.index).collect())
}

#[tokio::test]
async fn the_newest_snapshot_before_the_point_and_the_log_up_to_it_are_read() {
    let catalogue = with_gap().await;
    for (target, expected, index, revisions) in [
        (Target::Latest, (90, vec![99]), 99..=99, (900, None)),
        (to_index(10), (10, vec![]), 10..=10, (100, Some(100))),
        (to_index(20), (10, vec![20]), 20..=20, (200, Some(200))),
        (to_index(25), (10, vec![20, 30]), 25..=25, (200, Some(300))),
        (to_index(30), (30, vec![]), 30..=30, (300, Some(300))),
        (to_index(40), (30, vec![45]), 40..=40, (300, None)),
        (to_index(60), (30, vec![45, 60]), 60..=60, (600, Some(600))),
        (to_revision(100), (10, vec![]), 10..=10, (100, Some(100))),
        (to_revision(299), (10, vec![20, 30]), 20..=30, (299, Some(299))),
        // Where only reading tells, all that may be needed is read.
        (to_revision(301), (30, vec![45, 60]), 30..=60, (301, Some(301))),
        (to_revision(950), (90, vec![99]), 90..=99, (950, Some(950))),
        (to_minute(10), (10, vec![]), 10..=10, (100, Some(100))),
        // What is proposed at that very time belongs to it; the first that is later ends it.
        (to_minute(20), (10, vec![20]), 10..=20, (100, Some(200))),
        (to_minute(21), (10, vec![20, 30]), 20..=30, (200, Some(300))),
        // A snapshot that was written right before is not trusted to be from before, by another clock.
        (to_minute(34), (10, vec![20, 30, 45]), 30..=45, (300, None)),
        (to_minute(35), (30, vec![45]), 30..=45, (300, None)),
        (to_minute(91), (90, vec![99]), 90..=99, (900, None)),
    ] {
        let plan = plan(&catalogue, target).unwrap();
        assert_eq!(read(&plan), expected, "{target}");
        assert_eq!((plan.index, plan.revision_min.get()), (index, revisions.0), "{target}");
        assert_eq!(plan.revision_max.map(Revision::get), revisions.1, "{target}");
    }
    let plan = plan(&catalogue, to_index(25)).unwrap();
    assert_eq!((plan.bytes(), plan.plain_bytes()), (1_200, 3_600));
    assert_eq!((plan.newest.index.get(), plan.newest.at), (99, Some(WallTime::new(99 * MINUTE))));
}

#[tokio::test]
async fn what_can_not_be_restored_is_refused_with_what_can() {
    let catalogue = with_gap().await;
    assert_eq!(windows(&catalogue).len(), 2);
    let told = "1970-01-01T00:10:00.000Z (revision 100, index 10) to 1970-01-01T01:00:00.000Z (revision 600, index 60); \
                1970-01-01T01:30:00.000Z (revision 900, index 90) to 1970-01-01T01:39:00.000Z (index 99)";
    for (target, name) in [(to_index(9), "index 9"), (to_revision(99), "revision 99"), (to_index(100), "index 100")] {
        let error = plan(&catalogue, target).unwrap_err();
        assert_eq!(error.to_string(), format!("{name} is outside of what can be restored: {told}"));
    }
    let future = Target::Time(WallTime::new(crate::clock::wall().get() + MINUTE));
    assert!(matches!(plan(&catalogue, to_minute(9)), Err(PlanError::Outside { .. })));
    // Of what came behind the last write nothing is known, but when that was.
    let error = plan(&catalogue, future).unwrap_err();
    let end = WallTime::new(99 * MINUTE);
    assert!(matches!(error, PlanError::Beyond { end: at, .. } if at == end), "{error}");
    assert!(
        error.to_string().starts_with("the archive ends at 1970-01-01T01:39:00.000Z: nothing in it tells"),
        "{error}"
    );
    assert_eq!(plan(&catalogue, Target::Time(end)).unwrap().index.end(), &99);
    for (target, name) in [(to_index(61), "index 61"), (to_index(89), "index 89"), (to_revision(700), "revision 700")] {
        let error = plan(&catalogue, target).unwrap_err();
        let expected =
            format!("{name} lies in a gap of the archive: entries 61 to 89 are not in it; can be restored: {told}");
        assert_eq!(error.to_string(), expected);
    }
    assert!(matches!(plan(&catalogue, to_minute(70)), Err(PlanError::Gap { .. })));
}

#[tokio::test]
async fn an_archive_without_a_snapshot_says_what_is_missing() {
    let empty = Catalogue::empty(CLUSTER);
    assert_eq!(plan(&empty, Target::Latest), Err(PlanError::Nothing));
    let error = plan(&catalogue([piece(0, 5, true)]).await, Target::Latest).unwrap_err();
    assert!(error.to_string().contains("no snapshot to begin with"), "{error}");
}

#[tokio::test]
async fn what_is_not_known_begins_behind_the_last_entry_whoever_wrote_the_last_manifest() {
    // Nothing was archived for years, but the manifest was written now, as pruning does.
    let catalogue = catalogue([full(10), piece(11, 20, true)]).await;
    let until = plan(&catalogue, Target::Latest).unwrap().archived_until;
    assert!(until < WallTime::new(catalogue.head().unwrap().written_at));
    let at = plan(&catalogue, Target::Time(until)).unwrap();
    assert_eq!((read(&at), at.index.clone()), ((10, vec![20]), 10..=20));
    let later = plan(&catalogue, Target::Time(WallTime::new(until.get() + 1)));
    assert!(matches!(later, Err(PlanError::Beyond { .. })), "{later:?}");
}

#[tokio::test]
async fn a_leaders_clock_that_goes_back_is_no_reason_to_read_on() {
    let late = Object { times: Some((30 * MINUTE, 31 * MINUTE)), ..piece(11, 20, true) };
    let catalogue = catalogue([full(10), late, piece(21, 30, true)]).await;
    let plan = plan(&catalogue, to_minute(25)).unwrap();
    // The first command behind the snapshot is later already; that others behind it are not does not matter.
    assert_eq!(read(&plan), (10, vec![]));
}

#[tokio::test]
async fn revisions_go_on_above_all_that_may_have_been_seen() {
    let catalogue = with_gap().await;
    let plan = plan(&catalogue, to_index(20)).unwrap();
    // The last piece tells no revision; its 800 bytes can't hold more than a hundred commands.
    assert_eq!(plan.revision_archived_max.get(), 900 + 100);
    let unseen = |seconds: u64| {
        let now = WallTime::new(plan.archived_until.get() + 1_000 * seconds);
        plan.revision_unseen(now).get() - plan.revision_archived_max.get()
    };
    assert_eq!((unseen(0), unseen(10), unseen(3_600)), (1_000_000, 1_000_000, 360_000_000));
}
