//! `serve`: runs one node.
//!
//! Guarantees: nothing is touched before the whole configuration was found good. Leaves out: the node.

use std::path::PathBuf;

use super::{Failure, run_server};
use crate::config::{ServeConfig, Settings};

/// Run one node of a cluster
///
/// Every option can also be given as QUORATE_... in the environment, or in the file named by --config, where the keys are
/// the options with '_' for '-'. Options win over the environment, the environment over the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, on the first of three machines:\n  \
    quorate serve --name n1 --data-dir /var/lib/quorate \\\n    \
    --client-addr 10.0.0.1:7480 --peer-addr 10.0.0.1:7481 \\\n    \
    --initial-cluster n1=10.0.0.1:7481,n2=10.0.0.2:7481,n3=10.0.0.3:7481")]
pub(super) struct Serve {
    /// TOML file with settings
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        run_server::run(ServeConfig::load(self.settings, self.config.as_deref())?)
    }
}
