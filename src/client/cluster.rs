//! What a node tells of itself and of its group, and who leads it.
//!
//! Guarantees: [`Client::status`] is the status of the endpoint that answered, which need not be the first. Leaves out:
//! changing the members.

use http::{HeaderValue, Method, header};

use super::call::Call;
use super::{Answer, Client, Error};
use crate::api::model::{ClusterReply, LeaderReply, LeaderRequest, StatusReply};
use crate::types::NodeId;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Client {
    /// How the node that answers sees itself.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn status(&self) -> Result<Answer<StatusReply>, Error> {
        self.call(Call::read(Method::GET, "/v1/status".to_owned())).await?.json()
    }

    /// How the node that answers sees the group.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn cluster(&self) -> Result<Answer<ClusterReply>, Error> {
        self.call(Call::read(Method::GET, "/v1/cluster".to_owned())).await?.json()
    }

    /// Moves the leadership to a voter.
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may have been moved or not.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<Answer<LeaderReply>, Error> {
        let body = serde_json::to_vec(&LeaderRequest { to: to.get() });
        let body = body.map_err(|error| Error::Usage(error.to_string()))?;
        let call = Call::write(Method::POST, "/v1/cluster/leader".to_owned());
        self.call(call.header(header::CONTENT_TYPE, JSON).body(body.into())).await?.json()
    }
}
