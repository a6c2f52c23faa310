//! Off-site copies and alarms, as the cluster tells them.
//!
//! Guarantees: any endpoint answers for all. Leaves out: what is in an archive; that needs no cluster (`backup`).

use std::time::Duration;

use http::{HeaderValue, Method, header};
use serde_json::{Map, Value};

use super::call::Call;
use super::{Answer, Client, Error};
use crate::api::model::{AlarmsReply, BackupChangeReply, BackupRunReply, BackupsReply};

/// How long a change may take: the store is tried first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How what is declared for backups is to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackupChangeOptions {
    /// Only try the store.
    pub dry_run: bool,
    /// Also where the store can't be used at present, or a member does not answer.
    pub force: bool,
}

impl Client {
    /// The places for backups and how they stand.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn backups(&self) -> Result<Answer<BackupsReply>, Error> {
        self.call(Call::read(Method::GET, "/v1/backups".to_owned())).await?.json()
    }

    /// Has a whole state sent to the place of this name. Ordered twice, it may be sent twice, which does no harm.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run_backup(&self, name: &str) -> Result<Answer<BackupRunReply>, Error> {
        self.call(Call::write(Method::POST, format!("/v1/backups/{}/run", encoded(name)))).await?.json()
    }

    /// Declares a place for backups. The block is that of [`BackupDeclaration`](crate::api::model::BackupDeclaration).
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may be declared or not.
    pub async fn add_backup(
        &self,
        block: &Map<String, Value>,
        options: BackupChangeOptions,
    ) -> Result<Answer<BackupChangeReply>, Error> {
        self.change_backups(Method::POST, "", options, Some(block)).await
    }

    /// Changes a place for backups that was declared: what is given replaces what is there, `null` takes it out.
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may be changed or not.
    pub async fn update_backup(
        &self,
        name: &str,
        patch: &Map<String, Value>,
        options: BackupChangeOptions,
    ) -> Result<Answer<BackupChangeReply>, Error> {
        self.change_backups(Method::PATCH, name, options, Some(patch)).await
    }

    /// Forgets a place for backups that was declared; what is archived there stays.
    ///
    /// # Errors
    /// [`Error`]; with [`Error::OutcomeUnknown`] it may be forgotten or not.
    pub async fn remove_backup(&self, name: &str, force: bool) -> Result<Answer<BackupChangeReply>, Error> {
        let options = BackupChangeOptions { dry_run: false, force };
        self.change_backups(Method::DELETE, name, options, None).await
    }

    async fn change_backups(
        &self,
        method: Method,
        name: &str,
        options: BackupChangeOptions,
        block: Option<&Map<String, Value>>,
    ) -> Result<Answer<BackupChangeReply>, Error> {
        let BackupChangeOptions { dry_run, force } = options;
        let place = if name.is_empty() { String::new() } else { format!("/{}", encoded(name)) };
        let tried = if dry_run { "&dry_run=true" } else { "" };
        let target = format!("/v1/backups{place}?force={force}{tried}");
        let call = if dry_run { Call::read(method, target) } else { Call::write(method, target) };
        let call = match block.map(serde_json::to_vec).transpose().map_err(|error| Error::Usage(error.to_string()))? {
            Some(body) => {
                call.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body.into())
            }
            None => call,
        };
        self.call(call.timeout(Some(CHANGE_TIMEOUT))).await?.json()
    }

    /// What an operator should look at, on all members.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn alarms(&self) -> Result<Answer<AlarmsReply>, Error> {
        self.call(Call::read(Method::GET, "/v1/alarms".to_owned())).await?.json()
    }
}

/// A name as part of a path. Names hold only characters that stand for themselves; others go as they are, to be refused.
fn encoded(name: &str) -> String {
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    name.to_string().replace("%2D", "-").replace("%5F", "_").replace("%2E", ".")
}
