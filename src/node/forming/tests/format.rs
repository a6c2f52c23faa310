//! Old bytes of forming messages: one of each stays readable, and a newer format is refused by name.

use super::super::*;
use crate::codec::golden;

fn identity() -> Identity {
    Identity { cluster: ClusterId::new(300), id: NodeId::new(2), name: "n2".into(), has_log: true }
}

fn requests() -> [(&'static str, Request); 2] {
    [("probe", Request::Probe), ("adopt", Request::Adopt(identity()))]
}

fn responses() -> [(&'static str, Response); 3] {
    let member = Member {
        name: "n2".into(),
        peer_addr: "h2:7481".into(),
        client_url: "http://h2:7480".into(),
        zone: "dc2".into(),
        ..Member::default()
    };
    let list = [("n1", "h1:7481"), ("n2", "h2:7481")].map(|(name, address)| (name.into(), address.into()));
    [
        ("pristine", Response::Pristine { member: member.clone(), first_members: list.into() }),
        ("identified", Response::Identified { member, identity: identity(), initialized: true }),
        ("refused", Response::Refused("why".into())),
    ]
}

#[test]
fn the_bytes_of_format_two_stay_readable() {
    let written = requests().into_iter().map(|(name, request)| (name, encode(&request).to_vec()));
    let written = written.chain(responses().into_iter().map(|(name, answer)| (name, encode(&answer).to_vec())));
    let stored = golden::check("forming-messages-v2", written);
    for (name, request) in requests() {
        assert_eq!(format!("{:?}", decode::<Request>(&stored[name]).unwrap()), format!("{request:?}"));
    }
    for (name, response) in responses() {
        assert_eq!(decode::<Response>(&stored[name]).unwrap(), response);
    }
}

#[test]
fn a_newer_format_and_what_is_no_forming_message_are_refused_by_name() {
    let refused = |bytes: &[u8]| decode::<Request>(bytes).unwrap_err();
    for other in [1, 3] {
        let why = refused(&[0xF0, other, 0]);
        assert!(
            why.starts_with(&format!("forming message format {other} is not known here (this node speaks 2)")),
            "{why}"
        );
    }
    assert_eq!(refused(b"\x01\x01"), "not a forming message");
    assert_eq!(refused(b""), "not a forming message");
}
