//! Anomalies planted in histories that are right: each is found and named, and the history without it passes.

mod brute;
mod random;
mod recorded;
mod store;
mod unseen;

use super::super::*;
use super::*;

/// A moment, in milliseconds.
const fn ms(at: u64) -> Nanos {
    at * 1_000_000
}

/// Operations in a row, each with its times in milliseconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Script(pub(super) Vec<Operation>);

impl Script {
    fn push(mut self, called: u64, returned: Option<u64>, action: Action, outcome: Outcome) -> Self {
        let id = self.0.len() as u64;
        let (called, returned) = (ms(called), returned.map(ms));
        self.0.push(Operation { id, client: id as u32, node: 0, called, returned, action, outcome });
        self
    }

    fn done(self, called: u64, returned: u64, action: Action, answer: Answer) -> Self {
        self.push(called, Some(returned), action, Outcome::Done(answer))
    }

    fn unknown(self, called: u64, action: Action) -> Self {
        self.push(called, None, action, Outcome::Unknown(Cause { code: "timeout".into() }))
    }

    fn refused(self, called: u64, returned: u64, action: Action) -> Self {
        self.push(called, Some(returned), action, Outcome::Refused(Cause { code: "no_leader".into() }))
    }

    fn put(self, times: (u64, u64), key: &str, value: &str, told: (u64, u64, u64)) -> Self {
        let (revision, create_revision, version) = (Some(told.0), Some(told.1), Some(told.2));
        self.done(times.0, times.1, put(key, value), Answer::Put(PutAnswer { revision, create_revision, version }))
    }

    fn delete(self, times: (u64, u64), key: &str, revision: u64, deleted: bool) -> Self {
        let answer = Answer::Delete(DeleteAnswer { revision: Some(revision), deleted });
        self.done(times.0, times.1, delete(key), answer)
    }

    fn get(self, times: (u64, u64), key: &str, revision: u64, found: Option<Record>) -> Self {
        self.get_as(times, get(key), revision, found)
    }

    fn get_as(self, times: (u64, u64), get: Get, revision: u64, record: Option<Record>) -> Self {
        let answer = GetAnswer { revision: Some(revision), staleness_ms: None, record };
        self.done(times.0, times.1, Action::Get(get), Answer::Get(answer))
    }
}

fn put(key: &str, value: &str) -> Action {
    Action::Put(Put { key: key.into(), value: value.into(), ..Put::default() })
}

fn delete(key: &str) -> Action {
    Action::Delete(Delete { key: key.into(), if_revision: None })
}

fn get(key: &str) -> Get {
    Get { key: key.into(), ..Get::default() }
}

fn record(value: &str, mod_revision: u64, create_revision: u64, version: u64) -> Option<Record> {
    let (mod_revision, create_revision, version) = (Some(mod_revision), Some(create_revision), Some(version));
    Some(Record { value: value.into(), mod_revision, create_revision, version })
}

/// What is right passes; what is wrong is found as what it is, by these operations.
fn tells_apart(right: Script, wrong: Script, kind: ViolationKind, operations: &[u64]) {
    let judgement = judge(&right.0);
    assert_eq!(judgement.verdict, Verdict::Right, "{:#?}", judgement.violations);
    finds(&wrong, kind, operations);
}

fn finds(wrong: &Script, kind: ViolationKind, operations: &[u64]) {
    let judgement = judge(&wrong.0);
    let first = judgement.violations.first().unwrap_or_else(|| panic!("nothing was found, but {kind:?} is there"));
    assert_eq!((first.kind, &first.operations[..]), (kind, operations), "{first}");
    // In another order it is the same.
    let mut turned = wrong.0.clone();
    turned.reverse();
    assert!(!judge(&turned).violations.is_empty());
}

#[test]
fn an_answer_that_makes_no_sense_is_a_violation_of_reads_and_writes() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1));
    for action in [Action::Get(get("k")), put("k", "b")] {
        let answered =
            |code: &str| base().push(20, None, action.clone(), Outcome::Unknown(Cause { code: code.into() }));
        tells_apart(answered("timeout"), answered(MALFORMED_ANSWER), ViolationKind::MalformedAnswer, &[1]);
        assert_eq!(judge(&answered(MALFORMED_ANSWER).0).verdict, Verdict::Violated);
    }
}

#[test]
fn a_stale_read_is_found_by_the_time_and_by_the_state() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1)).put((20, 30), "k", "b", (2, 1, 2));
    let read = |times, revision, found| base().get(times, "k", revision, found);
    // While the second put is under way, both are right.
    assert_eq!(judge(&read((25, 28), 1, record("a", 1, 1, 1)).0).verdict, Verdict::Right);
    let right = || read((31, 40), 2, record("b", 2, 1, 2));
    tells_apart(right(), read((31, 40), 1, record("a", 1, 1, 1)), ViolationKind::StaleRead, &[1, 2]);
    tells_apart(right(), read((31, 40), 2, record("a", 1, 1, 1)), ViolationKind::StaleRead, &[1, 2]);
    // Also on another key, and also behind a read alone.
    let other = |revision| base().get((31, 40), "k", 2, record("b", 2, 1, 2)).get((50, 60), "l", revision, None);
    tells_apart(other(2), other(1), ViolationKind::StaleRead, &[2, 3]);
}

#[test]
fn a_lost_write_is_found() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1));
    tells_apart(
        base().get((20, 30), "k", 1, record("a", 1, 1, 1)),
        base().get((20, 30), "k", 1, None),
        ViolationKind::LostWrite,
        &[0, 1],
    );
    // The next writer is told that it created the key.
    tells_apart(
        base().put((20, 30), "k", "b", (2, 1, 2)),
        base().put((20, 30), "k", "b", (2, 2, 1)),
        ViolationKind::LostWrite,
        &[0, 1],
    );
    // A revision that is given twice.
    tells_apart(
        base().put((20, 30), "l", "b", (2, 2, 1)),
        base().put((20, 30), "l", "b", (1, 1, 1)),
        ViolationKind::RevisionTwice,
        &[0, 1],
    );
}

#[test]
fn a_write_that_is_done_twice_is_found() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1));
    // By the value, at another revision.
    tells_apart(
        base().get((20, 30), "k", 3, record("a", 1, 1, 1)),
        base().get((20, 30), "k", 3, record("a", 3, 1, 2)),
        ViolationKind::AppliedTwice,
        &[0, 1],
    );
    // By the version alone.
    tells_apart(
        base().put((20, 30), "k", "b", (3, 1, 2)),
        base().put((20, 30), "k", "b", (3, 1, 3)),
        ViolationKind::AppliedTwice,
        &[0, 1],
    );
}

#[test]
fn an_unknown_write_is_done_once_at_any_time_or_never() {
    let base = || Script::default().unknown(5, put("k", "u"));
    let right = [
        base().get((10, 20), "k", 0, None),
        base().get((10, 20), "k", 1, record("u", 1, 1, 1)),
        base().get((10, 20), "k", 0, None).get((30, 40), "k", 1, record("u", 1, 1, 1)),
        // Nobody saw it, but the version tells that it was there.
        base().put((10, 20), "k", "b", (2, 1, 2)),
    ];
    for script in right {
        assert_eq!(judge(&script.0).verdict, Verdict::Right, "{:#?}", judge(&script.0).violations);
    }
    let twice = base().get((10, 20), "k", 1, record("u", 1, 1, 1)).put((30, 40), "k", "b", (2, 1, 2));
    let again = |found| twice.clone().get((50, 60), "k", 3, found);
    tells_apart(again(record("b", 2, 1, 2)), again(record("u", 3, 1, 3)), ViolationKind::AppliedTwice, &[0, 3]);
    finds(&base().put((10, 20), "k", "b", (3, 1, 3)), ViolationKind::AppliedTwice, &[1]);
    // Not before it was sent, and not among revisions that were told before.
    let early = |called| {
        let script = Script::default().unknown(called, put("k", "u"));
        script.get((10, 20), "k", 1, record("u", 1, 1, 1)).get((30, 40), "k", 1, record("u", 1, 1, 1))
    };
    tells_apart(early(15), early(25), ViolationKind::SeenTooEarly, &[0, 1]);
}

#[test]
fn an_unknown_delete_explains_one_absence() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1)).unknown(15, delete("k"));
    let gone = || base().get((20, 30), "k", 2, None);
    tells_apart(
        gone().put((40, 50), "k", "b", (3, 3, 1)),
        gone().put((40, 50), "k", "b", (3, 3, 1)).get((60, 70), "k", 4, None),
        ViolationKind::LostWrite,
        &[3, 4],
    );
    // There is no revision at which it could have been done.
    finds(&base().get((20, 30), "k", 1, None), ViolationKind::LostWrite, &[0, 2]);
}

#[test]
fn a_refused_write_that_is_there_is_found() {
    let base = || Script::default().refused(0, 10, put("k", "a"));
    let seen = base().get((20, 30), "k", 1, record("a", 1, 1, 1));
    tells_apart(base().get((20, 30), "k", 1, None), seen, ViolationKind::Phantom, &[0, 1]);
    finds(&Script::default().get((20, 30), "k", 1, record("x", 1, 1, 1)), ViolationKind::Phantom, &[0]);
}

#[test]
fn a_delete_that_is_undone_is_found() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1)).delete((20, 30), "k", 2, true);
    tells_apart(
        base().get((40, 50), "k", 2, None),
        base().get((40, 50), "k", 2, record("a", 1, 1, 1)),
        ViolationKind::Resurrected,
        &[1, 2],
    );
}

fn txn(success: Vec<TxnOp>) -> Action {
    Action::Txn(Txn { success, ..Txn::default() })
}

fn two_puts() -> Action {
    let put = |key: &str| TxnOp::Put { key: key.into(), value: format!("t{key}") };
    txn(vec![put("k"), put("l")])
}

fn told_twice(revision: u64) -> Answer {
    let response = TxnResponse::Put { create_revision: Some(revision), version: Some(1) };
    Answer::Txn(TxnAnswer { revision: Some(revision), succeeded: true, responses: vec![response.clone(), response] })
}

#[test]
fn a_split_transaction_is_found_whether_its_outcome_is_known_or_not() {
    let known =
        || Script::default().done(0, 10, two_puts(), told_twice(1)).get((20, 30), "k", 1, record("tk", 1, 1, 1));
    let unknown = || Script::default().unknown(0, two_puts()).get((20, 30), "k", 1, record("tk", 1, 1, 1));
    for base in [known(), unknown()] {
        tells_apart(
            base.clone().get((20, 30), "l", 1, record("tl", 1, 1, 1)),
            base.get((20, 30), "l", 1, None),
            ViolationKind::SplitTransaction,
            &[0, 2],
        );
    }
    // At two revisions is as bad.
    let twice = unknown().get((20, 30), "l", 2, record("tl", 2, 2, 1));
    finds(&twice, ViolationKind::AppliedTwice, &[0, 2]);
}

#[test]
fn a_comparison_is_held_against_the_state_before_it() {
    let compare = |value| Compare {
        key: "k".into(),
        target: Target::ModRevision,
        op: Comparison::Equal,
        value: Operand::Number(value),
    };
    let guarded = |at: &[u64]| {
        let success = vec![TxnOp::Put { key: "k".into(), value: "b".into() }];
        Action::Txn(Txn { compare: at.iter().map(|at| compare(*at)).collect(), success, failure: Vec::new() })
    };
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1));
    let succeeded = || {
        let responses = vec![TxnResponse::Put { create_revision: Some(1), version: Some(2) }];
        Answer::Txn(TxnAnswer { revision: Some(2), succeeded: true, responses })
    };
    let failed = || Answer::Txn(TxnAnswer { revision: Some(1), succeeded: false, responses: Vec::new() });
    tells_apart(
        base().done(20, 30, guarded(&[1]), succeeded()),
        base().done(20, 30, guarded(&[7]), succeeded()),
        ViolationKind::WrongAnswer,
        &[0, 1],
    );
    for (no, yes) in [(&[7][..], &[1][..]), (&[1, 7][..], &[1, 1][..])] {
        let operations: &[u64] = if yes.len() == 1 { &[0, 1] } else { &[1] };
        tells_apart(
            base().done(20, 30, guarded(no), failed()),
            base().done(20, 30, guarded(yes), failed()),
            ViolationKind::WrongAnswer,
            operations,
        );
    }
}

#[test]
fn a_condition_that_did_not_hold_is_found() {
    let if_revision = |at| {
        let (key, value) = ("k".to_owned(), "b".to_owned());
        Action::Put(Put { key, value, if_revision: Some(at), if_absent: false })
    };
    let answer = || Answer::Put(PutAnswer { revision: Some(3), create_revision: Some(1), version: Some(3) });
    let base = || Script::default().put((0, 5), "k", "a", (1, 1, 1)).put((6, 10), "k", "c", (2, 1, 2));
    tells_apart(
        base().done(20, 30, if_revision(2), answer()),
        base().done(20, 30, if_revision(1), answer()),
        ViolationKind::WrongAnswer,
        &[1, 2],
    );
    let failed = |at| Answer::Failed(FailedAnswer { revision: Some(2), mod_revision: at });
    tells_apart(
        base().done(20, 30, if_revision(1), failed(Some(2))),
        base().done(20, 30, if_revision(1), failed(None)),
        ViolationKind::LostWrite,
        &[1, 2],
    );
    // Refused, although by its own words the condition held.
    tells_apart(
        base().done(20, 30, if_revision(1), failed(Some(2))),
        base().done(20, 30, if_revision(2), failed(Some(2))),
        ViolationKind::WrongAnswer,
        &[1, 2],
    );
}

#[test]
fn a_bounded_read_beyond_its_bound_is_found() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1)).put((20, 30), "k", "b", (2, 1, 2));
    let bounded = |called, bound| {
        let get = Get { consistency: Consistency::Bounded, max_staleness_ms: Some(bound), ..get("k") };
        base().get_as((called, called + 1), get, 1, record("a", 1, 1, 1))
    };
    tells_apart(bounded(130, 100), bounded(131, 100), ViolationKind::BeyondBound, &[1, 2]);
    // What the answer says of its age counts as well.
    let said = |staleness_ms| {
        let action = Action::Get(Get { consistency: Consistency::Stale, ..get("k") });
        let answer = GetAnswer { revision: Some(1), staleness_ms, record: record("a", 1, 1, 1) };
        base().done(131, 132, action, Answer::Get(answer))
    };
    tells_apart(said(None), said(Some(100)), ViolationKind::BeyondBound, &[1, 2]);
}

#[test]
fn stale_reads_are_of_some_past_state_and_go_back_no_further_than_allowed() {
    let base = || Script::default().put((0, 10), "k", "a", (1, 1, 1)).put((20, 30), "k", "b", (2, 1, 2));
    let stale = |least, revision, found| {
        let get = Get { consistency: Consistency::Stale, min_revision: least, ..get("k") };
        base().get_as((90, 91), get, revision, found)
    };
    tells_apart(stale(None, 0, None), stale(Some(1), 0, None), ViolationKind::WentBack, &[2]);
    tells_apart(stale(None, 1, record("a", 1, 1, 1)), stale(None, 1, None), ViolationKind::LostWrite, &[0, 2]);
    // Nor of a future one: what it saw was sent before it returned.
    let future = |called| {
        let get = Get { consistency: Consistency::Stale, ..get("l") };
        Script::default().get_as((0, 10), get, 1, None).put((called, 90), "k", "a", (1, 1, 1))
    };
    tells_apart(future(5), future(11), ViolationKind::SeenTooEarly, &[0, 1]);
    let past = |revision| {
        let get = Get { at_revision: Some(1), ..get("k") };
        base().get_as((90, 91), get, revision, record("a", 1, 1, 1))
    };
    tells_apart(past(1), past(2), ViolationKind::WrongAnswer, &[2]);
}

fn page(continues: Option<u64>) -> Action {
    Action::List(List { prefix: "p".into(), limit: 1, continues, ..List::default() })
}

fn listed(key: &str, revision: u64) -> Listed {
    let (key, value) = (key.to_owned(), format!("v{key}"));
    Listed { key, value, mod_revision: revision, create_revision: revision, version: 1 }
}

fn page_answer(revision: u64, count: u64, records: Vec<Listed>, more: bool) -> Answer {
    Answer::List(ListAnswer { revision, staleness_ms: None, count, records, more })
}

#[test]
fn pages_of_two_revisions_are_found() {
    let base = || {
        let script = Script::default().put((0, 10), "p1", "vp1", (1, 1, 1)).put((11, 20), "p2", "vp2", (2, 2, 1));
        script.put((60, 70), "p3", "vp3", (3, 3, 1))
    };
    let first = || base().done(30, 40, page(None), page_answer(2, 2, vec![listed("p1", 1)], true));
    let right = || first().done(80, 90, page(Some(3)), page_answer(2, 2, vec![listed("p2", 2)], false));
    // The second page at another revision; or at the same, with what came later, or without what is there.
    let other = first().done(80, 90, page(Some(3)), page_answer(3, 2, vec![listed("p2", 2)], false));
    tells_apart(right(), other, ViolationKind::MixedPage, &[3, 4]);
    let mixed = base().done(30, 50, page(None), page_answer(2, 2, vec![listed("p1", 1)], true));
    let later = mixed.clone().done(80, 90, page(Some(3)), page_answer(2, 2, vec![listed("p3", 3)], false));
    finds(&later, ViolationKind::MixedPage, &[1, 4]);
    let missing = base().done(30, 40, page(None), page_answer(2, 1, vec![listed("p2", 2)], false));
    finds(&missing, ViolationKind::MixedPage, &[0, 3]);
    // A key twice, a wrong count, and one that is no page of the listing.
    let twice = first().done(80, 90, page(Some(3)), page_answer(2, 2, vec![listed("p1", 1)], false));
    finds(&twice, ViolationKind::MixedPage, &[3, 4]);
    finds(
        &base().done(30, 40, page(None), page_answer(2, 1, vec![listed("p1", 1)], true)),
        ViolationKind::MixedPage,
        &[3],
    );
    finds(&base().done(30, 40, page(Some(0)), page_answer(2, 0, vec![], false)), ViolationKind::Undecided, &[3]);
}

#[test]
fn without_revisions_an_order_is_searched() {
    let plain = |value: &str| Some(Record { value: value.into(), ..Record::default() });
    let put = |script: Script, times: (u64, u64), value: &str| {
        script.done(times.0, times.1, put("k", value), Answer::Put(PutAnswer::default()))
    };
    let get = |script: Script, times: (u64, u64), record| {
        script.done(times.0, times.1, Action::Get(get("k")), Answer::Get(GetAnswer { record, ..GetAnswer::default() }))
    };
    let base = || put(put(Script::default(), (0, 10), "a"), (5, 30), "b");
    let read = |second: &str| get(get(base(), (12, 20), plain("b")), (40, 50), plain(second));
    tells_apart(read("b"), read("a"), ViolationKind::WrongAnswer, &[1, 3]);
    // The put of unknown outcome explains one change, and no second one.
    let unknown = |last: &str| {
        let script = put(Script::default().unknown(0, self::put("k", "u")), (5, 10), "a");
        get(get(get(script, (12, 20), plain("a")), (30, 40), plain("u")), (50, 60), plain(last))
    };
    let judged = judge(&unknown("a").0);
    assert_eq!(judge(&unknown("u").0).verdict, Verdict::Right);
    assert_eq!(judged.verdict, Verdict::Violated, "{judged:#?}");
    assert!(judged.summary.keys_by_search == 1 && judged.summary.search_tried > 0);
}

#[test]
fn a_search_that_is_given_up_is_not_called_right() {
    // Many writes at the same time that nobody tells apart, and a read of what is not there: every order would have to be
    // tried.
    let mut script = Script::default();
    for value in 0..40 {
        script = script.done(0, 100, put("k", &value.to_string()), Answer::Put(PutAnswer::default()));
    }
    let answer = GetAnswer { record: Some(Record { value: "x".into(), ..Record::default() }), ..GetAnswer::default() };
    let script = script.done(0, 100, Action::Get(get("k")), Answer::Get(answer));
    let judgement = judge(&script.0);
    assert_eq!(judgement.verdict, Verdict::Undecided, "{:#?}", judgement.violations);
    assert!(judgement.summary.search_tried >= search::TRIED_MAX);
}

#[test]
fn what_can_not_be_judged_is_not_called_right() {
    let doubled = Script::default().unknown(0, put("k", "a")).unknown(0, put("k", "a"));
    let seen = doubled.get((10, 20), "k", 1, record("a", 1, 1, 1));
    finds(&seen, ViolationKind::Undecided, &[0, 2]);
    let mut twice = Script::default().unknown(0, put("k", "a")).unknown(0, put("k", "b"));
    twice.0[1].id = 0;
    assert_eq!(judge(&twice.0).verdict, Verdict::Undecided);
    let mut backwards = Script::default().get((10, 20), "k", 1, None);
    backwards.0[0].returned = Some(ms(5));
    assert_eq!(judge(&backwards.0).verdict, Verdict::Undecided);
}

#[test]
fn only_some_violations_are_told_in_full() {
    let mut script = Script::default();
    for at in 0..50 {
        script = script.get((at * 10, at * 10 + 5), "k", 50 - at, None);
    }
    let judgement = judge(&script.0);
    assert_eq!((judgement.violations.len(), judgement.violations_total), (VIOLATIONS_MAX, 49));
}
