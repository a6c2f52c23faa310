//! What nobody saw and nobody was told: it may have been done all the same, and sometimes must have been.

use super::*;

fn put_op(key: &str, value: &str) -> TxnOp {
    TxnOp::Put { key: key.into(), value: value.into() }
}

fn get_op(key: &str) -> TxnOp {
    TxnOp::Get { key: key.into() }
}

fn compare(key: &str, target: Target, op: Comparison, value: Operand) -> Compare {
    Compare { key: key.into(), target, op, value }
}

/// As a recorder with paused nodes met it: a put that was sent long ago belongs between two changes, and what stands directly
/// before the second one is a transaction of which nobody was told what it read there.
#[test]
fn a_put_that_nobody_saw_comes_before_a_transaction_that_reads_the_key_and_told_nobody() {
    let base = || {
        let mut script = Script::default().unknown(1, put("k", "unseen"));
        for (revision, version) in (1780..=1783).zip(1..) {
            let at = 10 * version;
            script = script.put((at, at + 5), "k", &format!("v{version}"), (revision, 1780, version));
        }
        for revision in [1784, 1785, 1786, 1787, 1789, 1792, 1793, 1794] {
            script = script.put((50, 90), &format!("other{revision}"), "o", (revision, revision, 1));
        }
        let delete = TxnOp::Delete { key: "m".into() };
        let reads = txn(vec![put_op("l", "read"), delete, get_op("l"), get_op("k"), get_op("m")]);
        let script = script.unknown(60, reads).get((100, 110), "l", 1796, record("read", 1796, 1796, 1));
        script.unknown(60, txn(vec![get_op("k"), put_op("k", "late"), put_op("n", "late")]))
    };
    let seen = |version| base().get((120, 130), "k", 1797, record("late", 1797, 1780, version));
    tells_apart(seen(6), seen(7), ViolationKind::AppliedTwice, &[15, 16]);
    assert_eq!(judge(&seen(5).0).verdict, Verdict::Right);
    // What was read there, told by its answer, leaves no room.
    let stale = Get { consistency: Consistency::Stale, ..get("k") };
    let script = seen(6).get_as((140, 150), stale, 1796, record("v4", 1783, 1780, 4));
    assert_eq!(judge(&script.0).verdict, Verdict::Violated);
}

#[test]
fn a_comparison_with_a_value_tells_apart_what_nobody_saw() {
    let greater = |than: &str| {
        let compare = vec![compare("k", Target::Value, Comparison::Greater, Operand::Text(than.into()))];
        Action::Txn(Txn { compare, success: vec![put_op("l", "x")], failure: Vec::new() })
    };
    let history = |than| {
        let script = Script::default().put((0, 10), "k", "b", (1, 1, 1));
        let script = script.unknown(11, put("k", "a")).unknown(12, put("k", "z"));
        let responses = vec![TxnResponse::Put { create_revision: Some(3), version: Some(1) }];
        let answer = Answer::Txn(TxnAnswer { revision: Some(3), succeeded: true, responses });
        script.done(20, 30, greater(than), answer)
    };
    tells_apart(history("m"), history("zz"), ViolationKind::WrongAnswer, &[0, 3]);
}

#[test]
fn a_change_that_nobody_saw_can_be_why_several_comparisons_did_not_hold() {
    let version_one = |key| compare(key, Target::Version, Comparison::Equal, Operand::Number(1));
    let both = || Action::Txn(Txn { compare: vec![version_one("k"), version_one("l")], ..Txn::default() });
    let failed = Answer::Txn(TxnAnswer { revision: Some(3), succeeded: false, responses: Vec::new() });
    let base = || Script::default().put((0, 5), "k", "a", (1, 1, 1)).put((6, 10), "l", "a", (2, 2, 1));
    let history = |script: Script| script.done(20, 30, both(), failed.clone()).delete((40, 50), "k", 4, true);
    tells_apart(
        history(base().unknown(11, put("k", "u"))),
        history(base().refused(11, 12, put("k", "u"))),
        ViolationKind::WrongAnswer,
        &[3],
    );
}

#[test]
fn a_transaction_that_nobody_saw_was_done_in_one_of_its_branches_only() {
    let compare = vec![compare("k", Target::Version, Comparison::Equal, Operand::Number(1))];
    let branches = Txn { compare, success: vec![put_op("k", "yes")], failure: vec![put_op("k", "no")] };
    let base = || Script::default().put((0, 5), "k", "a", (1, 1, 1)).unknown(6, Action::Txn(branches.clone()));
    let told = |version| base().put((20, 30), "k", "b", (4, 1, version));
    assert_eq!(judge(&told(2).0).verdict, Verdict::Right);
    tells_apart(told(3), told(4), ViolationKind::AppliedTwice, &[0, 2]);
}
