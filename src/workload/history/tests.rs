//! The judge of histories against planted bugs, and against all orders of short histories tried one by one.

use proptest::prelude::*;

use super::*;

fn ms(at: u64) -> Duration {
    Duration::from_millis(at)
}

fn put(value: &str, called: u64, returned: u64) -> Operation {
    Operation { key: "k".into(), action: Action::Put(value.into()), called: ms(called), returned: Some(ms(returned)) }
}

fn unknown(value: &str, called: u64) -> Operation {
    Operation { returned: None, ..put(value, called, 0) }
}

fn get(found: &str, called: u64, returned: u64) -> Operation {
    let found = Some(found.to_owned()).filter(|found| !found.is_empty());
    Operation { action: Action::Get(found), ..put("", called, returned) }
}

/// A history that is right, and then one with a bug planted.
fn tells_apart(right: &[Operation], wrong: &[Operation], why: &str) {
    check(right).unwrap();
    let violation = check(wrong).unwrap_err();
    assert!(matches!(violation, Violation::NotLinearizable { .. }), "{violation}");
    assert!(violation.to_string().contains(why), "{violation}");
}

#[test]
fn a_stale_read_is_found() {
    let puts = [put("1", 0, 10), put("2", 20, 30)];
    // While the second put is under way, both are right.
    for found in ["1", "2"] {
        check(&[puts[0].clone(), puts[1].clone(), get(found, 15, 25)]).unwrap();
    }
    let [right, wrong] = ["2", "1"].map(|found| [puts.to_vec(), vec![get(found, 31, 40)]].concat());
    tells_apart(&right, &wrong, "\"1\"");
    // Nor may it go back once one has seen the newer value, though the put has not returned.
    let seen = |second| [put("1", 0, 10), put("2", 20, 90), get("2", 30, 40), get(second, 50, 60)];
    tells_apart(&seen("2"), &seen("1"), "\"1\"");
}

#[test]
fn a_lost_write_is_found() {
    let lost = |found| [put("1", 0, 10), put("2", 20, 30), get(found, 40, 50), get(found, 60, 70)];
    tells_apart(&lost("2"), &lost("1"), "\"1\"");
    tells_apart(&[get("", 0, 10), put("1", 5, 20)], &[put("1", 0, 10), get("", 20, 30)], "nothing");
}

#[test]
fn a_write_that_is_done_twice_is_found() {
    let twice = |last| [put("1", 0, 10), get("1", 11, 12), put("2", 20, 30), get("2", 31, 32), get(last, 40, 50)];
    tells_apart(&twice("2"), &twice("1"), "\"1\"");
    // Also one of unknown outcome may be done at any time, but once only.
    let late = |last| [unknown("1", 0), put("2", 20, 30), get("2", 31, 32), get("1", 40, 50), get(last, 60, 70)];
    tells_apart(&late("1"), &late("2"), "\"2\"");
}

#[test]
fn a_refused_write_that_is_there_is_found() {
    tells_apart(&[put("1", 0, 10)], &[put("1", 0, 10), get("2", 20, 30)], "nobody put");
}

#[test]
fn writes_of_unknown_outcome_are_done_at_any_time_or_never() {
    check(&[unknown("1", 0), get("", 10, 20)]).unwrap();
    check(&[unknown("1", 0), get("1", 10, 20)]).unwrap();
    check(&[unknown("1", 0), get("", 10, 20), get("1", 30, 40), put("2", 50, 60), get("2", 70, 80)]).unwrap();
    tells_apart(&[unknown("1", 5), get("1", 0, 10)], &[unknown("1", 15), get("1", 0, 10)], "before it was put");
}

#[test]
fn what_can_not_be_judged_is_not_called_right() {
    for unfit in [vec![put("1", 0, 1), put("1", 2, 3)], vec![Operation { returned: None, ..get("1", 0, 0) }]] {
        assert!(matches!(check(&unfit), Err(Violation::Unfit { .. })));
    }
}

#[test]
fn keys_are_judged_by_themselves() {
    let other = |operation: Operation| Operation { key: "other".into(), ..operation };
    let history = [put("1", 0, 10), other(put("1", 0, 10)), other(put("2", 20, 30)), get("1", 40, 50)];
    check(&history).unwrap();
    assert!(check(&[history.to_vec(), vec![other(get("1", 40, 50))]].concat()).is_err());
}

/// What a single copy answers to clients whose operations overlap: each takes place at a moment between call and return.
fn right(steps: &[(bool, u64, u64, u64)]) -> Vec<Operation> {
    let mut by_moment: Vec<usize> = (0..steps.len()).collect();
    by_moment.sort_by_key(|at| (steps[*at].1, *at));
    let mut value = String::new();
    let mut history = Vec::new();
    for at in by_moment {
        let (writes, moment, before, after) = steps[at];
        let (called, returned) = (moment.saturating_sub(before), moment + after);
        history.push(if writes {
            value = format!("v{at}");
            put(&value, called, returned)
        } else {
            get(&value, called, returned)
        });
    }
    history
}

/// Tries every order.
fn explained(left: &mut Vec<Operation>, value: &str) -> bool {
    if left.is_empty() {
        return true;
    }
    let first_return = left.iter().filter_map(|operation| operation.returned).min().unwrap();
    (0..left.len()).any(|at| {
        let next = left[at].clone();
        let value_behind = match &next.action {
            Action::Put(written) => written.as_str(),
            Action::Get(found) if found.as_deref().unwrap_or_default() == value => value,
            Action::Get(_) => return false,
        };
        if next.called > first_return {
            return false;
        }
        left.remove(at);
        let explained = explained(left, value_behind);
        left.insert(at, next.clone());
        explained
    })
}

proptest! {
    #[test]
    fn histories_of_a_single_copy_are_right(
        steps in prop::collection::vec((any::<bool>(), 0..2_000_u64, 0..100_u64, 0..100_u64), 0..400)
    ) {
        prop_assert_eq!(check(&right(&steps)), Ok(()));
    }

    #[test]
    fn short_histories_are_judged_as_if_every_order_were_tried(
        steps in prop::collection::vec((any::<bool>(), 0..8_u64, 0..4_u64, 0..4_u64), 0..7),
        changed in 0..7_usize,
        found in 0..7_usize,
    ) {
        let mut history = right(&steps);
        let values: Vec<String> = history.iter().filter_map(|operation| match &operation.action {
            Action::Put(value) => Some(value.clone()),
            Action::Get(_) => None,
        }).collect();
        if let Some(Operation { action: Action::Get(answer), .. }) = history.get_mut(changed) {
            *answer = values.get(found).cloned();
        }
        let judged = check(&history).is_ok();
        prop_assert_eq!(judged, explained(&mut history.clone(), ""), "{:?}", history);
    }
}
