//! Messages about the members: one of each stays readable, and others are refused by name.

use super::*;
use crate::codec::golden;

type Answer = Result<Changed, MemberError>;

fn new() -> NewMember {
    NewMember {
        name: "n4".into(),
        peer_addr: "h4:7481".into(),
        client_url: Some("http://h4:7480".into()),
        zone: Some("dc2".into()),
        priority: Some(9),
        votes: true,
        replaces: Some(MemberRef::Id(NodeId::new(2))),
    }
}

fn orders() -> Vec<(&'static str, Order)> {
    let order = |to: Option<u64>, change| Order {
        cluster: Some(ClusterId::new(300)),
        to: to.map(NodeId::new),
        change,
        options: ChangeOptions { dry_run: true, force: false },
        timeout_ms: 300,
    };
    let patch = MemberPatch {
        votes: Some(false),
        name: Some("n5".into()),
        peer_addr: Some("h5:7481".into()),
        client_url: Some("http://h5:7480".into()),
        zone: Some("dc3".into()),
        priority: Some(7),
    };
    vec![
        ("add", Order { cluster: None, ..order(None, Change::Add(new())) }),
        ("update", order(Some(1), Change::Update(NodeId::new(3), patch))),
        ("remove", order(Some(1), Change::Remove(NodeId::new(3)))),
    ]
}

fn answers() -> Vec<(&'static str, Answer)> {
    let zone = ZoneQuorum { zone: "dc1".into(), voters: 3, learners: 1, may_fail: false };
    let before = Quorums { voters: 3, needed: 2, reachable: 3, zones: vec![zone] };
    let changed = Changed {
        id: Some(NodeId::new(1_004)),
        done: true,
        after: Quorums { voters: 4, ..before.clone() },
        before,
        warnings: vec!["why".into()],
        position: Some(LogPosition::default()),
    };
    let why = || "why".to_owned();
    vec![
        ("changed", Ok(changed)),
        ("not_ready", Err(MemberError::NotReady(why()))),
        ("no_leader", Err(MemberError::NoLeader)),
        ("no_quorum", Err(MemberError::NoQuorum)),
        ("unknown_member", Err(MemberError::UnknownMember { id: NodeId::new(9), members: "1 (n1)".into() })),
        ("conflict", Err(MemberError::Conflict(why()))),
        ("unreachable", Err(MemberError::Unreachable(why()))),
        ("would_lose_quorum", Err(MemberError::WouldLoseQuorum(why()))),
        ("busy", Err(MemberError::Busy)),
        ("unknown", Err(MemberError::Unknown(why()))),
        ("not_leader", Err(MemberError::NotLeader)),
    ]
}

#[test]
fn the_bytes_of_format_one_stay_readable() {
    let (orders, answers) = (orders(), answers());
    let written = orders.iter().map(|(name, order)| (*name, encode(order).to_vec()));
    let written = written.chain(answers.iter().map(|(name, answer)| (*name, encode(answer).to_vec())));
    let stored = golden::check("membership-messages-v1", written);
    for (name, order) in orders {
        assert_eq!(decode::<Order>(&stored[name]), Ok(order), "{name}");
    }
    for (name, answer) in answers {
        assert_eq!(decode::<Answer>(&stored[name]), Ok(answer), "{name}");
    }
}

#[test]
fn another_format_is_refused_by_number() {
    let why = decode::<Order>(&[MEMBERSHIP, 9]).unwrap_err();
    assert!(why.starts_with("format 9 of membership messages is not known here (newest: 1)"), "{why}");
    for foreign in [&b""[..], &[MEMBERSHIP], &[0xF1, 1, 7]] {
        assert_eq!(decode::<Order>(foreign).unwrap_err(), "not a membership message");
    }
    assert!(decode::<Order>(&[MEMBERSHIP, VERSION, 1]).is_err());
}
