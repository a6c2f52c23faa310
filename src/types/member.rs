//! What the group knows of each member, besides its id. Replicated with the membership.
//!
//! Stored as a byte string with the fields one behind the other, in postcard:
//!
//! ```text
//! length | name | peer_addr | client_url | zone | priority (1) | wish
//! ```
//!
//! A field that is missing at the end has its default, and bytes behind the last known field are passed over, so that a
//! later version can add fields. The form before had no length, no priority and no wish: [`MemberV1`].
//!
//! Guarantees: a member that was written comes back. Leaves out: who votes; that stands beside it in the membership.

use std::fmt;

use bytes::Bytes;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::NodeId;

/// A member's name, where it is reached, and what is to become of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Unique in the group, chosen by the operator.
    pub name: String,
    /// `host:port` of its peer listener, as the other members dial it.
    pub peer_addr: String,
    /// URL of its client listener, as clients outside reach it. Empty until the member has told it.
    pub client_url: String,
    /// The data centre it stands in; empty if none was named.
    pub zone: String,
    /// How much it is preferred as the leader: among voters that could lead, one of the greatest shall. 0 is the least.
    pub priority: u8,
    /// What the leader shall do with it once it can.
    pub wish: Wish,
}

/// What the leader shall do with a member once it can. Replicated with it, so that a later leader goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// Nothing.
    #[default]
    Stay,
    /// A learner that is to vote as soon as it has caught up.
    Vote {
        /// The member it takes the place of, in the same change.
        replaces: Option<NodeId>,
    },
    /// To be taken out of the group.
    Leave,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.peer_addr)
    }
}

impl Serialize for Member {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, peer_addr, client_url, zone, priority, wish } = self;
        let fields = (name, peer_addr, client_url, zone, priority, wish);
        serializer.serialize_bytes(&postcard::to_stdvec(&fields).map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        read(&bytes).map_err(D::Error::custom)
    }
}

fn read(bytes: &[u8]) -> Result<Member, postcard::Error> {
    let rest = &mut &bytes[..];
    Ok(Member {
        name: field(rest)?,
        peer_addr: field(rest)?,
        client_url: field(rest)?,
        zone: field(rest)?,
        priority: field(rest)?,
        wish: field(rest)?,
    })
}

/// The next field, or its default behind the end.
fn field<'a, T: Deserialize<'a> + Default>(rest: &mut &'a [u8]) -> Result<T, postcard::Error> {
    if rest.is_empty() {
        return Ok(T::default());
    }
    let (value, behind) = postcard::take_from_bytes(rest)?;
    *rest = behind;
    Ok(value)
}

/// A member as formats of memberships before 2 have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberV1 {
    name: String,
    peer_addr: String,
    client_url: String,
    zone: String,
}

impl From<MemberV1> for Member {
    fn from(old: MemberV1) -> Self {
        let MemberV1 { name, peer_addr, client_url, zone } = old;
        Self { name, peer_addr, client_url, zone, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member() -> Member {
        Member {
            name: "n4".into(),
            peer_addr: "h4:7481".into(),
            client_url: "http://h4:7480".into(),
            zone: "dc2".into(),
            priority: 10,
            wish: Wish::Vote { replaces: Some(NodeId::new(3)) },
        }
    }

    #[test]
    fn a_member_comes_back() {
        for wish in [Wish::Stay, Wish::Vote { replaces: None }, member().wish, Wish::Leave] {
            let member = Member { wish, ..member() };
            assert_eq!(postcard::from_bytes(&postcard::to_stdvec(&member).unwrap()), Ok(member));
        }
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over_and_those_an_earlier_one_lacks_have_their_defaults() {
        let mut bytes = postcard::to_stdvec(&member()).unwrap();
        let fields = bytes.split_off(1);
        let sealed = |fields: &[u8]| postcard::to_stdvec(&Bytes::copy_from_slice(fields)).unwrap();
        let later = [&fields[..], b"more"].concat();
        assert_eq!(postcard::from_bytes(&sealed(&later)), Ok(member()));
        // Priority takes a byte, this wish three.
        let earlier = &fields[..fields.len() - 4];
        let expected = Member { priority: 0, wish: Wish::Stay, ..member() };
        assert_eq!(postcard::from_bytes(&sealed(earlier)), Ok(expected));
        assert!(postcard::from_bytes::<Member>(&sealed(&fields[..fields.len() - 1])).is_err(), "cut within a field");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = postcard::from_bytes::<Member>(&bytes);
        }
    }
}
