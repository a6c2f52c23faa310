//! Off-site copies and alarms, as the cluster tells them.
//!
//! Guarantees: any endpoint answers for all. Leaves out: what is in an archive; that needs no cluster (`backup`).

use http::Method;

use super::call::Call;
use super::{Answer, Client, Error};
use crate::api::model::{AlarmsReply, BackupRunReply, BackupsReply};

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
        let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        // Names hold only characters that stand for themselves.
        let name = name.to_string().replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
        self.call(Call::write(Method::POST, format!("/v1/backups/{name}/run"))).await?.json()
    }

    /// What an operator should look at, on all members.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn alarms(&self) -> Result<Answer<AlarmsReply>, Error> {
        self.call(Call::read(Method::GET, "/v1/alarms".to_owned())).await?.json()
    }
}
