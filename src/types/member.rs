//! What the group knows of each member, besides its id. Replicated with the membership.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A member's name and where it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique in the group, chosen by the operator.
    pub name: String,
    /// `host:port` of its peer listener, as the other members dial it.
    pub peer_addr: String,
    /// URL of its client listener, as clients outside reach it. Empty until the member has told it.
    pub client_url: String,
    /// The data centre it stands in; empty if none was named.
    pub zone: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.peer_addr)
    }
}
