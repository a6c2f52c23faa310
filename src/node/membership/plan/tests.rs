//! Plans. Property: whatever is planned leaves voters that are members, at least one of them, and names and addresses that
//! differ; and what is refused says who is there or what is missing.

use proptest::prelude::*;

use super::*;

fn id(id: u64) -> NodeId {
    NodeId::new(id)
}

fn ids(all: &[u64]) -> BTreeSet<NodeId> {
    all.iter().copied().map(NodeId::new).collect()
}

fn member(number: u64) -> Member {
    let zone = if number.is_multiple_of(2) { "even" } else { "odd" };
    Member { name: format!("n{number}"), peer_addr: format!("h{number}:7481"), zone: zone.into(), ..Member::default() }
}

fn roster(members: &[u64], voters: &[u64]) -> Roster {
    Roster {
        position: None,
        committed: true,
        members: members.iter().map(|number| (id(*number), member(*number))).collect(),
        voters: ids(voters),
        leaving_voters: None,
    }
}

fn votes(votes: bool) -> MemberPatch {
    MemberPatch { votes: Some(votes), ..MemberPatch::default() }
}

#[test]
fn a_member_that_is_removed_loses_its_vote_at_once_and_is_wished_away() {
    let roster = roster(&[1, 2, 3], &[1, 2, 3]);
    let plan = Plan::of(&Change::Remove(id(3)), &roster).unwrap();
    assert_eq!((plan.voters, plan.members[&id(3)].wish), (ids(&[1, 2]), Wish::Leave));
    assert_eq!(plan.members_at_last, ids(&[1, 2]));
}

#[test]
fn a_voter_that_is_demoted_stays_as_a_learner() {
    let roster = roster(&[1, 2, 3], &[1, 2, 3]);
    let plan = Plan::of(&Change::Update(id(3), votes(false)), &roster).unwrap();
    assert_eq!((&plan.voters, plan.members[&id(3)].wish), (&ids(&[1, 2]), Wish::Stay));
    assert_eq!(plan.members_at_last, ids(&[1, 2, 3]));
    let again = Plan::of(&Change::Update(id(3), votes(true)), &roster).unwrap();
    assert!(again.changes_nothing(&roster), "it votes already");
}

#[test]
fn a_learner_is_promoted_by_a_wish() {
    let roster = roster(&[1, 2, 3, 4], &[1, 2, 3]);
    let plan = Plan::of(&Change::Update(id(4), votes(true)), &roster).unwrap();
    assert_eq!((plan.voters, plan.voters_at_last), (ids(&[1, 2, 3]), ids(&[1, 2, 3, 4])));
    assert_eq!(plan.members[&id(4)].wish, Wish::Vote { replaces: None });
}

#[test]
fn one_that_replaces_another_counts_in_its_place_at_last() {
    let roster = roster(&[1, 2, 3], &[1, 2, 3]);
    let new = Member { wish: Wish::Vote { replaces: Some(id(2)) }, ..member(9) };
    let plan = Plan::adding(&roster, id(9), new.clone()).unwrap();
    assert_eq!((&plan.voters, &plan.voters_at_last), (&ids(&[1, 2, 3]), &ids(&[1, 3, 9])));
    assert_eq!(plan.members_at_last, ids(&[1, 3, 9]));
    // Were that one removed meanwhile, there is nobody to replace.
    let later = Roster { members: plan.members, ..roster };
    let plan = Plan::of(&Change::Remove(id(2)), &later).unwrap();
    assert_eq!(plan.members[&id(9)].wish, Wish::Vote { replaces: None });
    assert_eq!(plan.voters_at_last, ids(&[1, 3, 9]));
    let nobody = Member { wish: Wish::Vote { replaces: Some(id(7)) }, ..member(9) };
    let refused = Plan::adding(&later, id(8), Member { name: "x".into(), peer_addr: "x:1".into(), ..nobody });
    assert!(matches!(refused, Err(Refusal::UnknownMember { .. })), "{refused:?}");
}

#[test]
fn an_order_to_add_a_member_makes_it_stand_as_was_ordered() {
    let roster = roster(&[1, 2, 3, 4], &[1, 2, 3]);
    let order = |votes, replaces: Option<u64>| NewMember {
        name: "n4".into(),
        votes,
        replaces: replaces.map(|old| MemberRef::Id(id(old))),
        ..NewMember::default()
    };
    assert!(Plan::as_ordered(&roster, id(4), &order(false, None)).unwrap().changes_nothing(&roster));
    let plan = Plan::as_ordered(&roster, id(4), &order(true, None)).unwrap();
    assert_eq!(plan.voters_at_last, ids(&[1, 2, 3, 4]));
    let plan = Plan::as_ordered(&roster, id(4), &order(true, Some(2))).unwrap();
    assert_eq!((plan.voters, plan.voters_at_last), (ids(&[1, 2, 3]), ids(&[1, 3, 4])));
    // One that votes already takes the place of another at once.
    let plan = Plan::as_ordered(&roster, id(1), &NewMember { name: "n1".into(), ..order(true, Some(2)) }).unwrap();
    assert_eq!((&plan.voters, plan.members[&id(2)].wish), (&ids(&[1, 3]), Wish::Leave));
    let gone = Plan::as_ordered(&roster, id(1), &NewMember { name: "n1".into(), ..order(true, Some(9)) }).unwrap();
    assert!(gone.changes_nothing(&roster), "it was replaced before");
    let leaving = Plan::of(&Change::Remove(id(4)), &roster).unwrap();
    let later = Roster { members: leaving.members, ..roster };
    assert!(matches!(Plan::as_ordered(&later, id(4), &order(false, None)), Err(Refusal::Conflict(_))));
}

#[test]
fn the_last_voter_stays_even_by_force() {
    let roster = roster(&[1, 2], &[1]);
    for change in [Change::Remove(id(1)), Change::Update(id(1), votes(false))] {
        let refused = Plan::of(&change, &roster).unwrap_err();
        assert_eq!(
            refused,
            Refusal::WouldLoseQuorum(
                "n1 is the only voter; without it there is no group. Add another voter first".into()
            )
        );
    }
}

#[test]
fn a_change_that_leaves_too_few_reachable_voters_is_refused_with_the_figures() {
    let roster = roster(&[1, 2, 3], &[1, 2, 3]);
    // 3 is down: taking 2 out would leave 1 and 3, of which both must agree.
    let plan = Plan::of(&Change::Remove(id(2)), &roster).unwrap();
    let Err(Refusal::WouldLoseQuorum(why)) = plan.check_quorum(&roster, &ids(&[1, 2])) else { panic!() };
    assert!(
        why.starts_with("2 voters would be left, of which 2 must agree, but only 1 of them can be reached (not n3)"),
        "{why}"
    );
    assert_eq!(plan.check_quorum(&roster, &ids(&[1, 2, 3])), Ok(()));
    let plan = Plan::of(&Change::Remove(id(3)), &roster).unwrap();
    assert_eq!(plan.check_quorum(&roster, &ids(&[1, 2])), Ok(()), "the one that is down may go");
    let zone = MemberPatch { zone: Some("x".into()), ..MemberPatch::default() };
    let plan = Plan::of(&Change::Update(id(1), zone), &roster).unwrap();
    assert_eq!(plan.check_quorum(&roster, &ids(&[1])), Ok(()), "no vote changes");
}

#[test]
fn names_and_addresses_are_nobody_elses() {
    let roster = roster(&[1, 2], &[1, 2]);
    let refused = |member| match Plan::adding(&roster, id(9), member) {
        Err(Refusal::Conflict(why)) => why,
        other => panic!("{other:?}"),
    };
    let named = Member { name: "n1".into(), ..member(9) };
    assert_eq!(refused(named), "n1 is the name of member 1 already; choose another");
    let placed = Member { peer_addr: "h2:7481".into(), ..member(9) };
    assert_eq!(refused(placed), "h2:7481 is the address of n2 (member 2) already");
    let patch = MemberPatch { name: Some("n2".into()), ..MemberPatch::default() };
    assert!(matches!(Plan::of(&Change::Update(id(1), patch), &roster), Err(Refusal::Conflict(_))));
    let full: Vec<u64> = (1..=MEMBERS_MAX as u64).collect();
    let full = Roster { members: full.iter().map(|number| (id(*number), member(*number))).collect(), ..roster };
    assert!(matches!(Plan::adding(&full, id(999), member(999)), Err(Refusal::Conflict(_))));
}

#[test]
fn an_unknown_member_is_refused_with_those_there_are() {
    let refused = Plan::of(&Change::Remove(id(9)), &roster(&[1, 2], &[1, 2])).unwrap_err();
    assert_eq!(refused.to_string(), "there is no member 9; the members are 1 (n1), 2 (n2)");
}

#[test]
fn a_member_that_leaves_gets_no_vote_any_more() {
    let roster = roster(&[1, 2, 3], &[1, 2]);
    let leaving = Plan::of(&Change::Remove(id(3)), &roster).unwrap();
    let later = Roster { members: leaving.members, ..roster };
    assert!(matches!(Plan::of(&Change::Update(id(3), votes(true)), &later), Err(Refusal::Conflict(_))));
}

#[test]
fn figures_tell_what_each_data_centre_is_worth() {
    let roster = roster(&[1, 2, 3, 4, 5], &[1, 2, 3, 5]);
    let quorums = Quorums::of(&roster.members, &roster.voters, &ids(&[1, 2, 3]));
    assert_eq!((quorums.voters, quorums.needed, quorums.reachable), (4, 3, 3));
    let zone = |zone: &str, voters, learners, may_fail| ZoneQuorum { zone: zone.into(), voters, learners, may_fail };
    assert_eq!(quorums.zones, [zone("even", 1, 1, true), zone("odd", 3, 0, false)]);
    assert_eq!(
        quorums.warnings(),
        [
            "4 voters survive no more failures than 3 would: an odd number is better",
            "3 of 4 voters are reachable and 3 are needed: with one failure more, writes stop",
            "without odd, the other data centres have no quorum",
        ]
    );
}

fn changes() -> impl Strategy<Value = Change> {
    let role = (0..8u64, any::<bool>()).prop_map(|(number, vote)| Change::Update(id(number), votes(vote)));
    prop_oneof![(0..8u64).prop_map(|number| Change::Remove(id(number))), role]
}

proptest! {
    #[test]
    fn every_plan_leaves_a_group_that_can_agree(
        voters in prop::collection::btree_set(0..8u64, 1..6),
        learners in prop::collection::btree_set(0..8u64, 0..4),
        reachable in prop::collection::btree_set(0..8u64, 0..8),
        change in changes(),
    ) {
        let members: Vec<u64> = voters.union(&learners).copied().collect();
        let voters: Vec<u64> = voters.into_iter().collect();
        let reachable = reachable.into_iter().map(NodeId::new).collect();
        let roster = roster(&members, &voters);
        let Ok(plan) = Plan::of(&change, &roster) else { return Ok(()) };
        prop_assert!(!plan.voters.is_empty() && !plan.voters_at_last.is_empty());
        prop_assert!(plan.voters.iter().all(|voter| plan.members.contains_key(voter)));
        prop_assert!(plan.voters.symmetric_difference(&roster.voters).count() <= 1);
        if plan.check_quorum(&roster, &reachable).is_ok() && plan.voters != roster.voters {
            prop_assert!(plan.voters.intersection(&reachable).count() * 2 > plan.voters.len());
        }
    }
}
