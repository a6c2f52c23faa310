//! What a leader does by itself. Property: one step at a time, none while a change is under way, and never one after which
//! the voters that are reachable are no quorum.

use super::*;
use crate::types::{LogIndex, Term};

fn id(id: u64) -> NodeId {
    NodeId::new(id)
}

fn ids(all: &[u64]) -> BTreeSet<NodeId> {
    all.iter().copied().map(NodeId::new).collect()
}

fn at(index: u64) -> LogPosition {
    LogPosition { term: Term::new(1), leader: id(1), index: LogIndex::new(index) }
}

const SILENCE: Duration = Duration::from_secs(2);

/// Voters 1 to 3, and 4 as a learner; the membership is of entry 50.
fn roster() -> Roster {
    let member = |number| Member { name: format!("n{number}"), peer_addr: format!("h{number}"), ..Member::default() };
    Roster {
        position: Some(at(50)),
        committed: true,
        members: (1..=4).map(|number| (id(number), member(number))).collect(),
        voters: ids(&[1, 2, 3]),
        leaving_voters: None,
    }
}

fn wishing(number: u64, wish: Wish) -> Roster {
    let mut roster = roster();
    roster.members.get_mut(&id(number)).unwrap().wish = wish;
    roster
}

/// 1 leads, its last entry is 1,000, and everybody is there with all of it.
fn facts() -> Facts {
    let seen = Seen { reachable: true, matched: Some(at(1_000)), ..Seen::default() };
    let others = (2..=4).map(|number| (id(number), seen)).collect();
    Facts { me: id(1), last: 1_000, others, silence: SILENCE }
}

fn with(number: u64, seen: Seen) -> Facts {
    let mut facts = facts();
    facts.others.insert(id(number), seen);
    facts
}

fn silent(seconds: u64) -> Seen {
    Seen { reachable: false, silent: Duration::from_secs(seconds), matched: Some(at(900)), ..Seen::default() }
}

fn never() -> MemberPolicy {
    MemberPolicy::default()
}

const VOTE: Wish = Wish::Vote { replaces: None };

#[test]
fn nothing_is_done_where_nothing_is_wished_for_or_a_change_is_under_way() {
    assert_eq!(next_step(&roster(), &facts(), &never()), None);
    let open = Roster { committed: false, ..wishing(4, VOTE) };
    assert_eq!(next_step(&open, &facts(), &never()), None);
    let joint = Roster { leaving_voters: Some(ids(&[1, 2])), ..open };
    assert_eq!(next_step(&joint, &facts(), &never()), None);
}

#[test]
fn a_joint_membership_of_an_earlier_leader_is_ended() {
    let joint = Roster { leaving_voters: Some(ids(&[1, 2])), ..wishing(4, VOTE) };
    let step = next_step(&joint, &facts(), &never()).unwrap();
    assert_eq!((step.members, step.voters), (joint.members, joint.voters));
}

#[test]
fn a_learner_votes_once_it_has_caught_up() {
    let behind = Seen { matched: Some(at(1_000 - LAG_ENTRIES_MAX - 1)), ..facts().others[&id(4)] };
    assert_eq!(next_step(&wishing(4, VOTE), &with(4, behind), &never()), None);
    assert_eq!(next_step(&wishing(4, VOTE), &with(4, silent(0)), &never()), None, "it does not answer");
    let step = next_step(&wishing(4, VOTE), &facts(), &never()).unwrap();
    assert_eq!((step.voters, step.members[&id(4)].wish), (ids(&[1, 2, 3, 4]), Wish::Stay));
    let mut two_down = facts();
    two_down.others.extend([(id(2), silent(0)), (id(3), silent(0))]);
    assert_eq!(next_step(&wishing(4, VOTE), &two_down, &never()), None, "2 of 4 are no quorum");
}

#[test]
fn one_that_replaces_another_does_so_in_one_change() {
    let roster = wishing(4, Wish::Vote { replaces: Some(id(3)) });
    let step = next_step(&roster, &facts(), &never()).unwrap();
    assert_eq!(step.voters, ids(&[1, 2, 4]));
    assert_eq!((step.members[&id(4)].wish, step.members[&id(3)].wish), (Wish::Stay, Wish::Leave));
    let gone = Roster { voters: ids(&[1, 2]), ..roster };
    let mut gone = gone;
    gone.members.remove(&id(3));
    assert_eq!(next_step(&gone, &facts(), &never()).unwrap().voters, ids(&[1, 2, 4]), "it was removed meanwhile");
}

#[test]
fn a_leader_that_is_replaced_hands_over_first() {
    let roster = wishing(4, Wish::Vote { replaces: Some(id(1)) });
    assert_eq!(next_step(&roster, &facts(), &never()), None);
    assert!(replaces_leader(&roster, &facts()));
    assert!(!replaces_leader(&roster, &with(4, silent(0))), "not before the other has caught up");
}

#[test]
fn a_member_that_leaves_goes_once_it_has_heard_so_or_can_not() {
    let roster = wishing(4, Wish::Leave);
    let deaf = Seen { matched: Some(at(49)), ..facts().others[&id(4)] };
    assert_eq!(next_step(&roster, &with(4, deaf), &never()), None);
    assert_eq!(next_step(&roster, &with(4, silent(1)), &never()), None, "a new leader has heard nobody yet");
    let stuck = Seen { leaving: SILENCE * LEAVING_SILENCES_MAX, ..deaf };
    for facts in [facts(), with(4, silent(2)), with(4, stuck)] {
        let step = next_step(&roster, &facts, &never()).unwrap();
        assert_eq!((step.members.contains_key(&id(4)), step.voters), (false, ids(&[1, 2, 3])));
    }
}

#[test]
fn a_silent_member_is_taken_out_only_where_that_is_wanted_and_enough_others_stay() {
    let policy = |voters_min| MemberPolicy { remove_silent_after: Some(Duration::from_secs(100)), voters_min };
    assert_eq!(next_step(&roster(), &with(4, silent(9_999)), &never()), None, "nobody wants it");
    assert_eq!(next_step(&roster(), &with(4, silent(99)), &policy(1)), None, "not yet");
    let step = next_step(&roster(), &with(4, silent(100)), &policy(3)).unwrap();
    assert_eq!((step.members[&id(4)].wish, &step.voters), (Wish::Leave, &ids(&[1, 2, 3])), "a learner is no loss");
    assert_eq!(next_step(&roster(), &with(3, silent(100)), &policy(3)), None, "two voters are below the floor");
    let step = next_step(&roster(), &with(3, silent(100)), &policy(2)).unwrap();
    assert_eq!((step.members[&id(3)].wish, step.voters), (Wish::Leave, ids(&[1, 2])));
    let one_leaves = Roster { members: step.members, ..roster() };
    let mut two = with(3, silent(100));
    two.others.insert(id(4), silent(100));
    let step = next_step(&Roster { voters: ids(&[1, 2]), ..one_leaves }, &two, &policy(1)).unwrap();
    assert!(!step.members.contains_key(&id(3)) && step.members.contains_key(&id(4)), "one at a time");
    let mut floor = with(3, silent(100));
    floor.others.insert(id(4), silent(100));
    let step = next_step(&roster(), &floor, &policy(3)).unwrap();
    assert_eq!(step.members[&id(4)].wish, Wish::Leave, "a voter that stays hides nobody behind it");
    let mut most_are_away = with(3, silent(100));
    most_are_away.others.insert(id(2), silent(100));
    assert_eq!(next_step(&roster(), &most_are_away, &policy(1)), None, "no quorum is left");
}

#[test]
fn a_voter_of_greater_priority_shall_lead_if_it_can() {
    let priorities = |of: &[(u64, u8)]| {
        let mut roster = roster();
        for (number, priority) in of {
            roster.members.get_mut(&id(*number)).unwrap().priority = *priority;
        }
        roster
    };
    assert_eq!(preferred_leader(&roster(), &facts()), None, "all are equal");
    assert_eq!(preferred_leader(&priorities(&[(3, 5)]), &facts()), Some(id(3)));
    assert_eq!(preferred_leader(&priorities(&[(1, 5), (3, 5)]), &facts()), None, "no better than this one");
    assert_eq!(preferred_leader(&priorities(&[(2, 5), (3, 5)]), &facts()), Some(id(2)), "the first of equals");
    assert_eq!(preferred_leader(&priorities(&[(3, 5)]), &with(3, silent(0))), None, "it does not answer");
    assert_eq!(preferred_leader(&priorities(&[(2, 1), (3, 5)]), &with(3, silent(0))), Some(id(2)), "the next best");
    assert_eq!(preferred_leader(&priorities(&[(4, 5)]), &facts()), None, "a learner can't lead");
    let behind = Seen { matched: Some(at(100)), ..facts().others[&id(3)] };
    assert_eq!(preferred_leader(&priorities(&[(3, 5)]), &with(3, behind)), None, "it lacks entries");
    let mut replaced = priorities(&[(3, 5)]);
    replaced.members.get_mut(&id(4)).unwrap().wish = Wish::Vote { replaces: Some(id(3)) };
    assert_eq!(preferred_leader(&replaced, &facts()), None, "it is on its way out");
    let open = Roster { committed: false, ..priorities(&[(3, 5)]) };
    assert_eq!(preferred_leader(&open, &facts()), None, "not while the members change");
}
