//! What a node tells of itself and of its group.
//!
//! Guarantees: [`Client::status`] is the status of the endpoint that answered, which need not be the first. Leaves out:
//! changing the group.

use http::Method;

use super::call::Call;
use super::{Answer, Client, Error};
use crate::api::model::{ClusterReply, StatusReply};

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
}
