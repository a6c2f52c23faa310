//! `backup prune` and `backup copy`: keeping archives in order.
//!
//! Guarantees: pruning never takes the newest state that can be restored, and a dry run takes nothing; a copy never writes
//! over anything, and goes on where it was interrupted. Leaves out: what is kept, and how (`backup::retention`).

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::backup::copy::{self, Copied, CopyError, Reseal};
use crate::backup::layout::cluster_name;
use crate::backup::probe::ProbeError;
use crate::backup::prune::{self, How, PruneError, Pruned};
use crate::backup::repository::Repository;
use crate::backup::retention::{Keep, Reason};
use crate::backup::seal::Recipients;
use crate::backup::transfer::StoreDataError;
use crate::backup::trim::TrimError;
use crate::cli::Failure;
use crate::cli::archive::{self, ClusterArg, KeyArgs, StoreArgs};
use crate::cli::connect::Global;
use crate::cli::facts::{self, size};
use crate::cli::interrupt::interruptible;
use crate::cli::output::Format;
use crate::cli::restore_prefix::scratch;
use crate::clock;
use crate::config::Span;

/// Who it was, in manifests and proofs.
const PRUNER: &str = "quorate backup prune";
const COPIER: &str = "quorate backup copy";

/// Take out of an archive what its retention does not keep
///
/// First the manifests forget it; it is deleted by a later run, once the grace is over, as are objects that belong to
/// nothing. Never the newest state that can be restored, nor what is younger than an object lock. Needs the right to delete.
/// Nodes that have it do the same by themselves, where [backup.keep] in their configuration says what is kept, and remove
/// superseded manifests in any case.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup prune s3://bucket/prefix --window 14d --dry-run")]
pub(in crate::cli) struct Prune {
    /// The repository: s3://, az://, gs://, file:///
    #[arg(value_name = "URL")]
    repository: String,
    /// Any point of this time back from now can be restored
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    window: Span,
    /// Full backups that are kept of so many hours
    #[arg(long, value_name = "COUNT", default_value_t = 24)]
    hourly: u32,
    /// Of so many days, in UTC
    #[arg(long, value_name = "COUNT", default_value_t = 7)]
    daily: u32,
    /// Of so many weeks
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    weekly: u32,
    /// Of so many months
    #[arg(long, value_name = "COUNT", default_value_t = 12)]
    monthly: u32,
    /// Nothing younger is taken away: what the store would refuse
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    object_lock: Span,
    /// How long what was taken out, or never belonged to it, stays before it is deleted: 1h at least, and longer than the
    /// slowest upload of a full backup
    #[arg(long, value_name = "DURATION", default_value_t = Span(prune::GRACE))]
    grace: Span,
    /// Also delete what was stored before this archive began: what is left of another one, whose manifests are gone, and can be
    /// restored if they are put back
    #[arg(long)]
    lost: bool,
    /// Only tell what would happen
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: ClusterArg,
    #[command(flatten)]
    store: StoreArgs,
}

impl Prune {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let repository = self.store.open(&self.repository)?;
        let cluster = archive::cluster(&repository, &self.cluster).await?;
        let keep = Keep {
            window: self.window.0,
            hourly: self.hourly,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            object_lock: self.object_lock.0,
        };
        let how = How { keep: &keep, grace: self.grace.0, by: PRUNER, lost: self.lost, dry_run: self.dry_run };
        if how.grace < prune::NAME_WITHIN {
            return Err(prune_failure(&repository, &PruneError::Grace(how.grace)));
        }
        let now = match self.dry_run {
            true => clock::wall(),
            false => {
                let begun = prune::begin(&repository, cluster, PRUNER).await;
                begun.map_err(|error| archive::store(&repository, &error))?
            }
        };
        let pruned = prune::run(&repository, cluster, how, now).await;
        let pruned = pruned.map_err(|error| prune_failure(&repository, &error))?;
        tell(global, &pruned, self.dry_run)
    }
}

fn prune_failure(repository: &Repository, error: &PruneError) -> Failure {
    match error {
        PruneError::Store(error) => archive::store(repository, error),
        PruneError::Marker(error) => archive::marker_failure(repository, error),
        PruneError::Catalogue(error) => archive::catalogue_failure(repository, "", error),
        PruneError::Trim(TrimError::Chain(error)) => archive::catalogue_failure(repository, "", error),
        PruneError::Trim(TrimError::Refused { source, .. }) => archive::store(repository, source),
        PruneError::Incomplete { .. } => Failure::integrity(error.to_string()),
        PruneError::Grace(_) => Failure::usage(error.to_string()),
    }
}

fn tell(global: &Global, pruned: &Pruned, dry_run: bool) -> Result<(), Failure> {
    let mut out = global.out();
    let bytes = |objects: &[crate::backup::repository::Listed]| objects.iter().map(|object| object.bytes).sum::<u64>();
    let reasons =
        |reasons: &std::collections::BTreeSet<Reason>| reasons.iter().map(|reason| reason.name()).collect::<Vec<_>>();
    match out.format {
        Format::Json => {
            let names = |objects: &[crate::backup::repository::Listed]| {
                objects.iter().map(|object| object.name.clone()).collect::<Vec<_>>()
            };
            let kept: serde_json::Map<String, Value> =
                pruned.plan.kept.iter().map(|(name, why)| (name.clone(), json!(reasons(why)))).collect();
            out.json(&json!({
                "dry_run": dry_run,
                "kept": kept,
                "taken_out": pruned.plan.drops.iter().map(|object| &object.name).collect::<Vec<_>>(),
                "deleted": names(&pruned.deleted),
                "waiting": names(&pruned.waiting),
                "lost": names(&pruned.lost),
                "manifests_deleted": pruned.manifests,
                "proofs_deleted": pruned.proofs,
            }))?;
        }
        Format::Text => {
            let would = if dry_run { "would be " } else { "" };
            for (name, why) in pruned.plan.kept.iter().filter(|(name, _)| name.contains("/full/")) {
                out.line(&format!("kept       {name} ({})", reasons(why).join(", ")))?;
            }
            for object in &pruned.plan.drops {
                out.line(&format!("taken out  {} ({})", object.name, size(object.bytes)))?;
            }
            for object in &pruned.deleted {
                out.line(&format!("deleted    {} ({})", object.name, size(object.bytes)))?;
            }
            out.line(&format!(
                "\n{} objects {would}kept, {} {would}taken out, {} ({}) {would}deleted, {} ({}) wait for the end of their grace",
                pruned.plan.kept.len(),
                pruned.plan.drops.len(),
                pruned.deleted.len(),
                size(bytes(&pruned.deleted)),
                pruned.waiting.len(),
                size(bytes(&pruned.waiting)),
            ))?;
            if !pruned.lost.is_empty() {
                out.line(&format!(
                    "{} ({}) were stored before this archive began, and stay: what is left of another one, whose manifests are \
                     gone; --lost removes them",
                    pruned.lost.len(),
                    size(bytes(&pruned.lost)),
                ))?;
            }
        }
    }
    out.finish()
}

/// Copy the archive of a cluster into another repository, byte for byte or for other keys
///
/// Into another cloud, another region, a disk. What is there already is not copied again, so running it regularly keeps
/// the copy up to date. With --recipient everything is decrypted, by --identity, and encrypted anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup copy s3://bucket/prefix file:///mnt/usb/quorate")]
pub(in crate::cli) struct Copy {
    /// The repository to copy from
    #[arg(value_name = "URL")]
    from: String,
    /// The repository to copy to; an empty place becomes one
    #[arg(value_name = "URL")]
    to: String,
    #[command(flatten)]
    cluster: ClusterArg,
    #[command(flatten)]
    keys: KeyArgs,
    /// Encrypt the copy to this public key (age1…); may be given several times
    #[arg(long, value_name = "KEY")]
    recipient: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// Setting of the store to copy to, as --store-option for the other
    #[arg(long, value_name = "NAME=VALUE")]
    to_store_option: Vec<String>,
    /// File of such settings
    #[arg(long, value_name = "FILE")]
    to_credentials_file: Option<PathBuf>,
    /// Where an object lies while it is encrypted anew; the system's temporary directory if not given
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl Copy {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        interruptible(self.copy(global)).await
    }

    async fn copy(self, global: &Global) -> Result<(), Failure> {
        let from = self.store.open(&self.from)?;
        let to = StoreArgs::new(self.to_store_option, self.to_credentials_file).open_or_make(&self.to)?;
        let cluster = archive::cluster(&from, &self.cluster).await?;
        let identities = self.keys.identities()?;
        let recipients = Recipients::parse(&self.recipient).map_err(|error| Failure::usage(error.to_string()))?;
        let folder = scratch(self.scratch.as_ref())?;
        let reseal = Reseal { identities: &identities, recipients: &recipients, scratch: folder.path() };
        let reseal = Some(reseal).filter(|_| !recipients.is_empty());
        let bar = archive::bytes_bar("copying", 0);
        let seen = |done: Copied, bytes_total| {
            bar.set_length(bytes_total);
            bar.set_position(done.bytes);
        };
        let copied = copy::copy(&from, &to, cluster, reseal, COPIER, seen).await;
        bar.finish_and_clear();
        let copied = copied.map_err(|error| copy_failure(&from, &to, &error))?;
        facts::tell(
            global,
            vec![
                ("cluster", json!(cluster_name(cluster))),
                ("to", json!(to.url())),
                ("objects", json!(copied.objects)),
                ("bytes", json!(copied.bytes)),
                ("present", json!(copied.present)),
            ],
        )
    }
}

fn copy_failure(from: &Repository, to: &Repository, error: &CopyError) -> Failure {
    match error {
        CopyError::Source(error) => archive::marker_failure(from, error),
        CopyError::Catalogue(error) => archive::catalogue_failure(from, "", error),
        CopyError::Fetch(error) => archive::fetch_failure(from, error),
        CopyError::Store(error) => archive::store(from, error),
        CopyError::TargetCatalogue(error) => archive::catalogue_failure(to, "", error),
        CopyError::TargetStore(error)
        | CopyError::Put(StoreDataError::Store(error))
        | CopyError::Target(ProbeError::Store { source: error, .. }) => archive::store(to, error),
        CopyError::Target(ProbeError::Marker(error)) => archive::marker_failure(to, error),
        CopyError::Put(StoreDataError::Local(_)) => {
            Failure::usage(format!("{error}; the folder to work in is --scratch, or else the temporary directory"))
        }
        CopyError::Target(ProbeError::Right { .. } | ProbeError::Replaces { .. }) | CopyError::NoArchive { .. } => {
            Failure::usage(error.to_string())
        }
    }
}
