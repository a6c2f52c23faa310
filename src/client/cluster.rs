//! What a node tells of itself and of its group, who leads it and who is in it.
//!
//! Guarantees: [`Client::status`] is the status of the endpoint that answered, which need not be the first. A change
//! of the members may be ordered again: it comes to the same, but for a removal, which then finds nobody. Leaves out: waiting for a learner to catch up.

use http::{HeaderValue, Method, header};
use serde::Serialize;

use super::call::Call;
use super::{Answer, Client, Error};
use crate::api::model::{
    AddMemberRequest, ClusterReply, LeaderReply, LeaderRequest, MemberChangeReply, StatusReply, UpdateMemberRequest,
};
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

    /// Adds a node that runs and waits for it.
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may be a member or not.
    pub async fn add_member(
        &self,
        member: &AddMemberRequest,
        options: MemberOptions,
    ) -> Result<Answer<MemberChangeReply>, Error> {
        self.change_members(Method::POST, String::new(), options, Some(member)).await
    }

    /// Changes what is known of a member, or whether it votes.
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may be changed or not.
    pub async fn update_member(
        &self,
        id: NodeId,
        change: &UpdateMemberRequest,
        options: MemberOptions,
    ) -> Result<Answer<MemberChangeReply>, Error> {
        self.change_members(Method::PATCH, format!("/{id}"), options, Some(change)).await
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may be out or not.
    pub async fn remove_member(&self, id: NodeId, options: MemberOptions) -> Result<Answer<MemberChangeReply>, Error> {
        self.change_members(Method::DELETE, format!("/{id}"), options, None::<&()>).await
    }

    async fn change_members<T: Serialize>(
        &self,
        method: Method,
        member: String,
        options: MemberOptions,
        body: Option<&T>,
    ) -> Result<Answer<MemberChangeReply>, Error> {
        let MemberOptions { dry_run, force } = options;
        let target = format!("/v1/cluster/members{member}?dry_run={dry_run}&force={force}");
        let call = if dry_run { Call::read(method, target) } else { Call::write(method, target) };
        let call = match body.map(serde_json::to_vec).transpose().map_err(|error| Error::Usage(error.to_string()))? {
            Some(body) => call.header(header::CONTENT_TYPE, JSON).body(body.into()),
            None => call,
        };
        self.call(call).await?.json()
    }
}

/// How the members are to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemberOptions {
    /// Only tell what would happen.
    pub dry_run: bool,
    /// Also where too few voters would be reachable.
    pub force: bool,
}
