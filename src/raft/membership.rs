//! The stored form of a membership: what `state/` keeps as opaque bytes and snapshot files carry.
//!
//! ```text
//! version (1) | postcard of openraft's StoredMembership
//! ```
//! In format 1 members have no priority and no wish.
//!
//! Guarantees: no bytes at all mean "no membership yet"; a newer format is refused. Leaves out: changing it
//! (`membership_change`).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::types::{LeaderId, Membership, StoredMembership};
use crate::types::{MemberV1, NodeId};

/// The newest format.
const MEMBERSHIP_VERSION: u8 = 2;

/// The format before.
const MEMBERSHIP_VERSION_1: u8 = 1;

/// Why bytes are no membership.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// From a newer program.
    #[error("membership format {0} is newer than the newest this program knows ({MEMBERSHIP_VERSION})")]
    Newer(u8),
    /// Not a membership.
    #[error("the membership can't be decoded: {0}")]
    Malformed(String),
}

/// Encodes a membership.
pub(super) fn encode_membership(membership: &StoredMembership) -> Bytes {
    let out = postcard::to_extend(membership, vec![MEMBERSHIP_VERSION]);
    Bytes::from(out.expect("plain data into a growing vector can't fail"))
}

/// Decodes a membership; empty bytes are the empty one.
///
/// # Errors
/// [`MembershipError`].
pub(super) fn decode_membership(bytes: &[u8]) -> Result<StoredMembership, MembershipError> {
    let malformed = |error: postcard::Error| MembershipError::Malformed(error.to_string());
    match bytes.split_first() {
        None => Ok(StoredMembership::default()),
        Some((&MEMBERSHIP_VERSION, body)) => postcard::from_bytes(body).map_err(malformed),
        Some((&MEMBERSHIP_VERSION_1, body)) => {
            let old: openraft::StoredMembership<LeaderId, NodeId, MemberV1> =
                postcard::from_bytes(body).map_err(malformed)?;
            Ok(StoredMembership::new(*old.log_id(), of_v1(old.membership())?))
        }
        Some((&version, _)) => Err(MembershipError::Newer(version)),
    }
}

/// The same membership with today's members.
///
/// # Errors
/// [`MembershipError::Malformed`] if a voter is no member.
pub(super) fn of_v1(old: &openraft::Membership<NodeId, MemberV1>) -> Result<Membership, MembershipError> {
    let nodes: BTreeMap<_, _> = old.nodes().map(|(id, member)| (*id, member.clone().into())).collect();
    let new = Membership::new(old.get_joint_config().clone(), nodes);
    new.map_err(|error| MembershipError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::LogId;
    use crate::types::{Member, Term};

    fn membership() -> StoredMembership {
        let member = |name: &str| Member { name: name.into(), peer_addr: format!("{name}:7481"), ..Member::default() };
        let nodes = BTreeMap::from([(NodeId::new(1), member("a")), (NodeId::new(2), member("b"))]);
        let voters = nodes.keys().copied().collect();
        let leader_id = LeaderId { term: Term::new(3), node_id: NodeId::new(1) };
        let membership = Membership::new(vec![voters], nodes).unwrap();
        StoredMembership::new(Some(LogId { leader_id, index: 9 }), membership)
    }

    #[test]
    fn a_membership_comes_back() {
        assert_eq!(decode_membership(&encode_membership(&membership())).unwrap(), membership());
        assert_eq!(decode_membership(b"").unwrap(), StoredMembership::default());
    }

    #[test]
    fn the_bytes_of_format_one_stay_readable() {
        let old = b"\x01\x01\x03\x01\x09\x01\x02\x01\x02\x02\x01\x01a\x06a:7481\0\0\x02\x01b\x06b:7481\0\0";
        assert_eq!(decode_membership(old).unwrap(), membership());
    }

    #[test]
    fn the_bytes_of_format_two_stay_readable() {
        let now =
            b"\x02\x01\x03\x01\x09\x01\x02\x01\x02\x02\x01\x0d\x01a\x06a:7481\0\0\0\0\x02\x0d\x01b\x06b:7481\0\0\0\0";
        assert_eq!(encode_membership(&membership()), &now[..]);
        assert_eq!(decode_membership(now).unwrap(), membership());
        assert!(matches!(decode_membership(b"\x09"), Err(MembershipError::Newer(9))));
    }
}
