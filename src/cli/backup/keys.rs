//! `backup keys`: a key pair for archives, and whether a private key opens what is there.
//!
//! Guarantees: a private key goes into a file that only its owner may read, never to the terminal and never over another
//! file. Leaves out: where the file is kept then, which is not on a server.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::backup::layout::is_encrypted;
use crate::backup::manifest::Object;
use crate::backup::repository::Repository;
use crate::backup::seal::Identities;
use crate::backup::transfer;
use crate::cli::archive::{self, ClusterArg, KeyArgs, StoreArgs};
use crate::cli::connect::Global;
use crate::cli::output::Format;
use crate::cli::{Failure, facts};

/// Keys of encrypted archives
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum KeysCommand {
    Generate(Generate),
    Check(Check),
}

/// Make a key pair: the private key goes into a file, the public one is shown
///
/// The public key (age1…) belongs into 'recipients' of the configuration, beside that of a second pair which is kept
/// elsewhere: without one of the private keys an archive is worth nothing. age-keygen makes the same files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup keys generate key.txt")]
pub(in crate::cli) struct Generate {
    /// The file; it must not exist yet
    file: PathBuf,
}

/// Tell whether private keys open an archive: its full backups, and both ends of the log
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup keys check s3://bucket/prefix --identity key.txt")]
pub(in crate::cli) struct Check {
    /// The repository: s3://, az://, gs://, file:///
    #[arg(value_name = "URL")]
    repository: String,
    #[command(flatten)]
    cluster: ClusterArg,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    store: StoreArgs,
}

impl KeysCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Generate(Generate { file }) => {
                let public = Identities::generate_into(&file).map_err(|error| Failure::usage(error.to_string()))?;
                facts::tell(
                    global,
                    vec![("public_key", json!(public)), ("identity_file", json!(file.display().to_string()))],
                )
            }
            Self::Check(check) => check.run(global).await,
        }
    }
}

impl Check {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let identities = self.keys.identities()?;
        if identities.is_empty() {
            return Err(Failure::usage("name the file of a private key with --identity"));
        }
        let repository = self.store.open(&self.repository)?;
        let catalogue = archive::catalogue(&repository, &self.cluster).await?;
        let segments = catalogue.segments();
        let ends = segments.first().into_iter().chain(segments.last()).copied();
        let mut found = Vec::new();
        for object in catalogue.fulls().into_iter().chain(ends) {
            found.push((object.name.clone(), look(&repository, object, &identities).await?));
        }
        found.dedup();
        let shut = found.iter().filter(|(_, state)| state != "opens" && state != "not encrypted").count();
        let mut out = global.out();
        match out.format {
            Format::Json => {
                let objects: Vec<Value> =
                    found.iter().map(|(name, state)| json!({ "name": name, "state": state })).collect();
                out.json(&json!({ "public_keys": identities.public(), "objects": objects, "shut": shut }))?;
            }
            Format::Text => {
                for public in identities.public() {
                    out.line(&format!("public key  {public}"))?;
                }
                out.table(&found.iter().map(|(name, state)| vec![state.clone(), name.clone()]).collect::<Vec<_>>())?;
            }
        }
        out.finish()?;
        if shut > 0 {
            return Err(Failure::refused(format!("{shut} of {} objects are not opened by these keys", found.len())));
        }
        Ok(())
    }
}

async fn look(repository: &Repository, object: &Object, identities: &Identities) -> Result<String, Failure> {
    if !is_encrypted(&object.name) {
        return Ok("not encrypted".to_owned());
    }
    match transfer::opens(repository, object, identities).await {
        Ok(()) => Ok("opens".to_owned()),
        Err(transfer::FetchError::Store(error)) => Err(archive::store(repository, &error)),
        Err(error) => Ok(error.to_string()),
    }
}
