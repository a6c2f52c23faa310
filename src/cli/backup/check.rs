//! What the checks of an archive have in common: where it is, how often, with what, and what is kept of them.
//!
//! Guarantees: a check that is done again and again goes on behind one that failed; a proof that can't be kept is told, and
//! fails nothing. Leaves out: the checks (`verify`, `drill`).

use std::path::PathBuf;

use crate::backup::proof::{self, Proof};
use crate::backup::repository::Repository;
use crate::cli::archive::{self, ClusterArg, KeyArgs, StoreArgs};
use crate::cli::interrupt::interruptible;
use crate::cli::restore_prefix::{Scratch, scratch};
use crate::cli::{Failure, failure};
use crate::config::{Span, StoreOptions};
use crate::node::DrillOrder;
use crate::types::ClusterId;

/// What every check is told.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The repository: s3://, az://, gs://, file:///
    #[arg(value_name = "URL")]
    repository: String,
    #[command(flatten)]
    cluster: ClusterArg,
    #[command(flatten)]
    pub(super) keys: KeyArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Folder to work in; the system's temporary directory if not given
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Do it again and again, this long after the last; a failure is told and does not end it
    #[arg(long, value_name = "DURATION")]
    every: Option<Span>,
    /// Leave no proof in the repository
    #[arg(long)]
    no_proof: bool,
    /// What may be read, in bytes a second.
    #[arg(skip)]
    bandwidth: Option<u64>,
}

impl CheckArgs {
    /// Does the check once, or again and again with a pause between; then a failure is told and does not end it.
    pub(super) async fn run(&self, once: impl AsyncFn() -> Result<(), Failure>) -> Result<(), Failure> {
        let Some(Span(pause)) = self.every else { return interruptible(once()).await };
        if pause.is_zero() {
            return Err(Failure::usage("--every is 0s; it must be longer"));
        }
        let again_and_again = async {
            loop {
                if let Err(error) = once().await {
                    error.report();
                }
                tokio::time::sleep(pause).await;
            }
        };
        interruptible(again_and_again).await
    }

    /// Does what a node says, which has started this.
    pub(super) fn obey(&mut self, order: DrillOrder) {
        self.store.take(StoreOptions::from(order.options));
        self.bandwidth = order.bandwidth;
    }

    /// The repository, and the cluster whose archive is meant.
    pub(super) async fn open(&self) -> Result<(Repository, ClusterId), Failure> {
        let repository = self.store.open(&self.repository)?.limited(self.bandwidth);
        let cluster = archive::cluster(&repository, &self.cluster).await?;
        Ok((repository, cluster))
    }

    /// A folder to work in, gone with what is returned.
    pub(super) fn scratch(&self) -> Result<Scratch, Failure> {
        scratch(self.scratch.as_ref())
    }

    /// Keeps a proof beside the archive, if it is wanted.
    pub(super) async fn keep(&self, repository: &Repository, cluster: ClusterId, proof: &Proof) {
        if self.no_proof {
            return;
        }
        if let Err(error) = proof::write(repository, cluster, proof).await {
            failure::note(&format!("the proof could not be kept: {error}"));
        }
    }
}
