//! What `POST /v1/cluster/members`, `PATCH` and `DELETE /v1/cluster/members/{id}` take and answer.
//!
//! Guarantees: unknown fields are refused, and a [`node::Change`] that comes out of here has valid names and addresses.
//! Leaves out: whether the group can bear the change (`node::membership`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cluster::MemberRole;
use super::problem::Invalid;
use crate::node;
use crate::types::{BaseUrl, HostPort, Name, NodeId};

/// A node that shall become a member. It must run, with an empty directory and `--join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMemberRequest {
    /// The name it was started with.
    pub name: String,
    /// `host:port` of its peer listener, as the other members dial it.
    pub peer_addr: String,
    /// The URL of its client listener; as the node says itself where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_url: Option<String>,
    /// Its data centre; as the node says itself where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it shall vote once it has caught up; a voter where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MemberRole>,
    /// How much it is preferred as the leader, from 0 to 255; 0 where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// The id of the member whose place it takes once it has caught up, in one change. Only for a voter.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::bytestring::number_if_any")]
    pub replaces: Option<u64>,
}

/// What shall be different about a member; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMemberRequest {
    /// Whether it votes. A learner votes once it has caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MemberRole>,
    /// Its data centre; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// How much it is preferred as the leader, from 0 to 255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Its name. From its next start on it must be given that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `host:port` of its peer listener. It must answer there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_addr: Option<String>,
    /// The URL of its client listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_url: Option<String>,
}

/// A change of the members that was made, or with `dry_run` would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberChangeReply {
    /// The id of the member; `null` for one that would be added.
    pub id: Option<u64>,
    /// Whether nothing was changed, because that was asked for.
    pub dry_run: bool,
    /// Whether all is done. If not, the leader goes on by itself; `GET /v1/cluster` tells how far it is.
    pub done: bool,
    /// How voters stood before.
    pub before: QuorumReport,
    /// How they stand once all is done.
    pub after: QuorumReport,
    /// What is doubtful about that, each in a sentence.
    pub warnings: Vec<String>,
}

/// How voters stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuorumReport {
    /// How many members vote.
    pub voters: u64,
    /// How many of them must agree.
    pub needed: u64,
    /// How many of them are reachable now.
    pub reachable: u64,
    /// How many more of them may fail before writes stop.
    pub spare: u64,
    /// By data centre; an empty name stands for members without one.
    pub zones: Vec<ZoneReport>,
}

/// One data centre.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ZoneReport {
    /// Its name.
    pub zone: String,
    /// Voters in it.
    pub voters: u64,
    /// Learners in it.
    pub learners: u64,
    /// Whether the voters elsewhere are a quorum without it.
    pub may_fail: bool,
}

impl MemberChangeReply {
    /// What is told of a change.
    #[must_use]
    pub fn of(changed: node::Changed, dry_run: bool) -> Self {
        Self {
            id: changed.id.map(NodeId::get),
            dry_run,
            done: changed.done,
            before: changed.before.into(),
            after: changed.after.into(),
            warnings: changed.warnings,
        }
    }
}

impl From<node::Quorums> for QuorumReport {
    fn from(quorums: node::Quorums) -> Self {
        let node::Quorums { voters, needed, reachable, zones } = quorums;
        let zone = |zone: node::ZoneQuorum| ZoneReport {
            zone: zone.zone,
            voters: zone.voters,
            learners: zone.learners,
            may_fail: zone.may_fail,
        };
        let zones = zones.into_iter().map(zone).collect();
        Self { voters, needed, reachable, spare: reachable.saturating_sub(needed), zones }
    }
}

impl AddMemberRequest {
    /// The change that is asked for.
    ///
    /// # Errors
    /// [`Invalid`]: a name or an address is none.
    pub fn into_change(self) -> Result<node::Change, Invalid> {
        let votes = self.role.unwrap_or(MemberRole::Voter) == MemberRole::Voter;
        if self.replaces.is_some() && !votes {
            return Err(Invalid::request("replaces is only for a voter; leave it out, or set role to \"voter\""));
        }
        Ok(node::Change::Add(node::NewMember {
            name: name("name", self.name)?,
            peer_addr: peer_addr(self.peer_addr)?,
            client_url: self.client_url.map(client_url).transpose()?,
            zone: self.zone.map(zone).transpose()?,
            priority: self.priority,
            votes,
            replaces: self.replaces.map(|id| node::MemberRef::Id(NodeId::new(id))),
        }))
    }
}

impl UpdateMemberRequest {
    /// The change that is asked for.
    ///
    /// # Errors
    /// [`Invalid`]: nothing is asked for, or a name or an address is none.
    pub fn into_change(self, id: NodeId) -> Result<node::Change, Invalid> {
        if self == Self::default() {
            return Err(Invalid::request(
                "the body asks for nothing; it must have role, zone, priority, name, peer_addr or client_url",
            ));
        }
        Ok(node::Change::Update(
            id,
            node::MemberPatch {
                votes: self.role.map(|role| role == MemberRole::Voter),
                name: self.name.map(|text| name("name", text)).transpose()?,
                peer_addr: self.peer_addr.map(peer_addr).transpose()?,
                client_url: self.client_url.map(client_url).transpose()?,
                zone: self.zone.map(zone).transpose()?,
                priority: self.priority,
            },
        ))
    }
}

fn name(field: &str, text: String) -> Result<String, Invalid> {
    match text.parse::<Name>() {
        Ok(_) => Ok(text),
        Err(error) => Err(Invalid::request(format!("{field} is \"{}\"; {error}", text.escape_debug()))),
    }
}

/// An empty zone is none.
fn zone(text: String) -> Result<String, Invalid> {
    if text.is_empty() { Ok(text) } else { name("zone", text) }
}

fn peer_addr(text: String) -> Result<String, Invalid> {
    match text.parse::<HostPort>() {
        Ok(address) if address.is_unspecified() => Err(Invalid::request(format!(
            "peer_addr: {address} is no address the other members could call; name the host"
        ))),
        Ok(_) => Ok(text),
        Err(error) => Err(Invalid::request(format!("peer_addr: {error}"))),
    }
}

fn client_url(text: String) -> Result<String, Invalid> {
    match text.parse::<BaseUrl>() {
        Ok(url) => Ok(url.to_string()),
        Err(error) => Err(Invalid::request(format!("client_url: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(body: &str) -> Result<node::Change, String> {
        let request: AddMemberRequest = serde_json::from_str(body).map_err(|error| error.to_string())?;
        request.into_change().map_err(|invalid| invalid.detail)
    }

    #[test]
    fn a_node_is_added_as_a_voter_unless_a_learner_is_asked_for() {
        let node::Change::Add(new) = add(r#"{"name":"n4","peer_addr":"h4:7481"}"#).unwrap() else { panic!() };
        assert_eq!((new.votes, new.priority, new.replaces, new.zone), (true, None, None, None));
        let body = r#"{"name":"n4","peer_addr":"h4:7481","role":"learner","zone":"","client_url":"http://h4:7480/"}"#;
        let node::Change::Add(new) = add(body).unwrap() else { panic!() };
        assert_eq!(
            (new.votes, new.zone.as_deref(), new.client_url.as_deref()),
            (false, Some(""), Some("http://h4:7480"))
        );
    }

    #[test]
    fn what_is_wrong_with_a_node_is_told_by_field() {
        for (body, expected) in [
            (r#"{"name":"n 4","peer_addr":"h4:7481"}"#, "name is \"n 4\"; a name has 1 to 64 characters"),
            (r#"{"name":"n4","peer_addr":"h4"}"#, "peer_addr: 'h4' is no address"),
            (r#"{"name":"n4","peer_addr":"0.0.0.0:1"}"#, "peer_addr: 0.0.0.0:1 is no address the other members"),
            (r#"{"name":"n4","peer_addr":"h4:7481","client_url":"h4:7480"}"#, "client_url: "),
            (r#"{"name":"n4","peer_addr":"h4:7481","zone":"dc 1"}"#, "zone is \"dc 1\""),
            (r#"{"name":"n4","peer_addr":"h4:7481","role":"learner","replaces":2}"#, "replaces is only for a voter"),
            (r#"{"name":"n4","peer_addr":"h4:7481","priority":256}"#, "invalid value: integer `256`, expected u8"),
            (r#"{"name":"n4","peer_addr":"h4:7481","force":true}"#, "unknown field `force`"),
            (r#"{"name":"n4"}"#, "missing field `peer_addr`"),
        ] {
            let refused = add(body).unwrap_err();
            assert!(refused.starts_with(expected), "{body}: {refused}");
        }
    }

    #[test]
    fn a_change_of_nothing_is_refused() {
        let id = NodeId::new(2);
        assert!(UpdateMemberRequest::default().into_change(id).unwrap_err().detail.contains("asks for nothing"));
        let request: UpdateMemberRequest = serde_json::from_str(r#"{"role":"learner","priority":7}"#).unwrap();
        let node::Change::Update(_, patch) = request.into_change(id).unwrap() else { panic!() };
        assert_eq!((patch.votes, patch.priority, patch.zone), (Some(false), Some(7), None));
    }
}
