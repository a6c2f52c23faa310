//! The process of `serve` and `dev`: logs, signals, nodes, until told to stop.
//!
//! Guarantees: returns only after every node has closed its files. Leaves out: flags and their checks (`serve`, `dev`).

use super::Failure;
use crate::config::ServeConfig;

/// Runs one node until SIGTERM or Ctrl-C.
pub(super) fn run(config: ServeConfig) -> Result<(), Failure> {
    Err(Failure::unavailable(format!("node {} can't be started by this build", config.name)))
}

/// Runs several nodes in this process until SIGTERM or Ctrl-C; `ready` is called once when all of them serve.
pub(super) fn run_dev(nodes: Vec<ServeConfig>, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    ready()?;
    Err(Failure::unavailable(format!("{} nodes can't be started by this build", nodes.len())))
}
