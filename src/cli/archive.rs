//! What commands on an off-site archive have in common: reaching it, choosing the cluster, the keys, and how failures end.
//!
//! Guarantees: secrets come from the environment or from files, never from an argument, and are never shown; a folder that
//! is not there is not made. Leaves out: what is done with it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use crate::backup::catalogue::{Catalogue, CatalogueError};
use crate::backup::layout::{cluster_name, is_encrypted};
use crate::backup::manifest::ManifestError;
use crate::backup::marker::{self, MarkerError};
use crate::backup::plan::{Plan, PlanError, rfc3339};
use crate::backup::repository::{Repository, StoreError};
use crate::backup::seal::{Identities, OpenError};
use crate::backup::stage::StageError;
use crate::backup::target;
use crate::backup::transfer::FetchError;
use crate::config::{StoreOptions, credentials};
use crate::types::{ClusterId, WallTime};

/// How a store is reached, beside its URL.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct StoreArgs {
    /// Setting of the store by the name its cloud gives it, like aws_region=eu-central-1; the environment is read, too
    #[arg(long, value_name = "NAME=VALUE")]
    store_option: Vec<String>,
    /// File of such settings, one NAME=VALUE a line: the place for credentials that are not in the environment
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// More of them, that come from the node which has started this.
    #[arg(skip)]
    given: StoreOptions,
}

/// The private keys that open what is encrypted.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct KeyArgs {
    /// File with the private key, as age-keygen writes it; may be given several times
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
}

/// Which cluster of a repository.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ClusterArg {
    /// The cluster, if there are several in the repository; 'quorate backup list' shows them
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
}

impl StoreArgs {
    /// Of another store than the one that the usual flags are for.
    pub(super) fn new(store_option: Vec<String>, credentials_file: Option<PathBuf>) -> Self {
        Self { store_option, credentials_file, given: StoreOptions::default() }
    }

    /// Takes settings besides those of arguments.
    pub(super) fn take(&mut self, given: StoreOptions) {
        self.given = given;
    }

    /// Opens the repository. Nothing is written, and of a folder not even the folder.
    pub(super) fn open(&self, url: &str) -> Result<Repository, Failure> {
        if let Some(path) = target::folder_of(url).filter(|path| !path.is_dir()) {
            let path = path.display();
            return Err(Failure::usage(format!("{path} is no folder, so there is no repository in it")));
        }
        self.open_or_make(url)
    }

    /// As [`Self::open`]; a folder is made if it is not there.
    pub(super) fn open_or_make(&self, url: &str) -> Result<Repository, Failure> {
        target::open(url, &self.options()?).map_err(|error| Failure::usage(error.to_string()))
    }

    fn options(&self) -> Result<BTreeMap<String, String>, Failure> {
        let given = self.given.entries().map(|(option, value)| (option.to_owned(), value.to_owned()));
        let mut options: BTreeMap<_, _> = given.collect();
        if let Some(path) = &self.credentials_file {
            options.extend(credentials(path).map_err(Failure::usage)?);
        }
        for option in &self.store_option {
            let (key, value) = option
                .split_once('=')
                .ok_or_else(|| Failure::usage("--store-option must be NAME=VALUE, like aws_region=eu-central-1"))?;
            options.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        }
        Ok(options)
    }
}

impl KeyArgs {
    /// The private keys of all files.
    pub(super) fn identities(&self) -> Result<Identities, Failure> {
        let mut all = Identities::default();
        for path in &self.identity {
            all.add(Identities::from_file(path).map_err(|error| Failure::usage(error.to_string()))?);
        }
        Ok(all)
    }

    /// The private keys, if what a plan reads can be opened at all.
    pub(super) fn for_plan(&self, plan: &Plan) -> Result<Identities, Failure> {
        let identities = self.identities()?;
        if identities.is_empty() && plan.objects().any(|object| is_encrypted(&object.name)) {
            return Err(Failure::usage(
                "the archive is encrypted, and no private key was given: name the file of one with --identity",
            ));
        }
        Ok(identities)
    }
}

/// A cluster, and what it has here, or why that can't be read.
pub(super) type Archived = (ClusterId, Result<Catalogue, Failure>);

/// The clusters that have an archive here, oldest first by the last thing written, behind those that can't be read.
pub(super) async fn catalogues(repository: &Repository) -> Result<Vec<Archived>, Failure> {
    let mut found = Vec::new();
    for cluster in clusters(repository).await? {
        found.push((cluster, read(repository, cluster).await));
    }
    found.sort_by_key(|(_, read)| {
        let head = read.as_ref().ok().and_then(Catalogue::head);
        head.map(|head| head.written_at)
    });
    Ok(found)
}

async fn clusters(repository: &Repository) -> Result<Vec<ClusterId>, Failure> {
    marker::clusters(repository).await.map_err(|error| marker_failure(repository, &error))
}

/// The catalogue of a cluster.
pub(super) async fn read(repository: &Repository, cluster: ClusterId) -> Result<Catalogue, Failure> {
    let read = Catalogue::read(repository, cluster).await;
    read.map_err(|error| catalogue_failure(repository, &format!("cluster {}: ", cluster_name(cluster)), &error))
}

/// The catalogue of the cluster that is meant.
pub(super) async fn catalogue(repository: &Repository, wanted: &ClusterArg) -> Result<Catalogue, Failure> {
    read(repository, cluster(repository, wanted).await?).await
}

/// The cluster that is meant.
pub(super) async fn cluster(repository: &Repository, wanted: &ClusterArg) -> Result<ClusterId, Failure> {
    let clusters = clusters(repository).await?;
    let url = repository.url();
    if let Some(wanted) = &wanted.cluster {
        let meant = clusters.iter().find(|id| cluster_name(**id) == *wanted || id.to_string() == *wanted);
        let known = || clusters.iter().map(|id| cluster_name(*id)).collect::<Vec<_>>().join(", ");
        return match meant {
            Some(cluster) => Ok(*cluster),
            None if clusters.is_empty() => Err(nothing(url)),
            None => Err(Failure::usage(format!("{url} has no cluster {wanted}; there are: {}", known()))),
        };
    }
    match clusters.as_slice() {
        [] => Err(nothing(url)),
        [cluster] => Ok(*cluster),
        _ => {
            // Told with their ages, so that whoever is in a hurry needs no second command to choose.
            let all = catalogues(repository).await?;
            let told = all.iter().map(|(cluster, read)| {
                let written = match read {
                    Ok(catalogue) => catalogue.head().map(|head| rfc3339(WallTime::new(head.written_at))),
                    Err(_) => return format!("{} (can't be read)", cluster_name(*cluster)),
                };
                format!("{} (last written {})", cluster_name(*cluster), written.as_deref().unwrap_or("?"))
            });
            Err(Failure::usage(format!(
                "{url} holds the archives of {} clusters; say which with --cluster: {}",
                all.len(),
                told.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}

fn nothing(url: &str) -> Failure {
    Failure::usage(format!("{url} holds no archive of a cluster; check the URL and its prefix"))
}

/// How a store's refusal ends a command.
pub(super) fn store(repository: &Repository, error: &StoreError) -> Failure {
    let line = format!("{}: {error}", repository.url());
    match error {
        StoreError::Failed { .. } | StoreError::NoRoom { .. } => Failure::unavailable(line),
        StoreError::Missing { .. } | StoreError::TooLarge { .. } => Failure::integrity(line),
        StoreError::Unauthenticated { .. }
        | StoreError::Forbidden { .. }
        | StoreError::NoBucket { .. }
        | StoreError::Region { .. }
        | StoreError::Clock { .. }
        | StoreError::Exists { .. } => Failure::usage(line),
    }
}

/// How a place that is no repository ends a command.
pub(super) fn marker_failure(repository: &Repository, error: &MarkerError) -> Failure {
    match error {
        MarkerError::Store(error) => store(repository, error),
        MarkerError::Empty { .. } | MarkerError::Foreign { .. } | MarkerError::Newer { .. } => {
            Failure::usage(error.to_string())
        }
        MarkerError::Damaged { .. } => Failure::integrity(error.to_string()),
    }
}

/// How a chain that can't be read ends a command.
pub(super) fn catalogue_failure(repository: &Repository, what: &str, error: &CatalogueError) -> Failure {
    let line = format!("{}: {what}{error}", repository.url());
    match error {
        CatalogueError::Store(error) => store(repository, error),
        CatalogueError::Manifest { source: ManifestError::Newer(_), .. } => Failure::usage(line),
        CatalogueError::Manifest { .. }
        | CatalogueError::Gap { .. }
        | CatalogueError::Unlinked { .. }
        | CatalogueError::Unequal { .. }
        | CatalogueError::Replaced { .. } => Failure::integrity(line),
        CatalogueError::Overtaken => Failure::unavailable(line),
    }
}

/// How a target that can't be reached ends a command.
pub(super) fn plan_failure(error: &PlanError) -> Failure {
    Failure::usage(error.to_string())
}

/// How a failed fetch ends a command.
pub(super) fn stage_failure(repository: &Repository, error: &StageError) -> Failure {
    match error {
        StageError::Fetch(error) => fetch_failure(repository, error),
        StageError::Damaged { .. } => damaged(error),
        StageError::Io { .. } | StageError::NoRoom { .. } | StageError::Newer { .. } => {
            Failure::usage(error.to_string())
        }
    }
}

/// How an object that can't be fetched ends a command.
pub(super) fn fetch_failure(repository: &Repository, error: &FetchError) -> Failure {
    match error {
        FetchError::Store(error) => store(repository, error),
        FetchError::Open { source: OpenError::NoIdentity | OpenError::WrongIdentity, .. }
        | FetchError::Local { .. } => Failure::usage(error.to_string()),
        FetchError::Damaged { .. } | FetchError::Open { .. } => damaged(error),
    }
}

fn damaged(error: &impl std::fmt::Display) -> Failure {
    Failure::integrity(format!(
        "{error}; other copies of the archive may be whole, and an earlier full backup may not need it: see 'quorate backup \
         verify'"
    ))
}

/// A bar that counts bytes; on a standard error that is no terminal, nothing.
pub(super) fn bytes_bar(what: &'static str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    // A template that is wrong would only cost the looks.
    if let Ok(style) =
        ProgressStyle::with_template("{msg:9} {bar:30} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13} {eta:>5}")
    {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
