//! `backup verify`: whether an archive holds what it promises, as deep as is asked for.
//!
//! Guarantees: nothing of the archive is changed but that the proof is added; damage is exit code 4, after all of it was
//! told. Leaves out: a start of what was restored (`backup drill`).

use serde_json::{Value, json};

use super::check::CheckArgs;
use crate::backup::layout::{cluster_name, is_encrypted};
use crate::backup::repository::Repository;
use crate::backup::seal::Identities;
use crate::backup::verify::{self, Level, Report, Scope, Severity, VerifyError};
use crate::cli::Failure;
use crate::cli::archive;
use crate::cli::connect::Global;
use crate::cli::facts::{self, Fact, size};
use crate::cli::failure::Exit;
use crate::cli::output::Format;
use crate::clock;
use crate::types::ClusterId;

/// Who it was, in the proof.
const AUTHOR: &str = "quorate backup verify";

/// Check an archive: what is there, the chain, the content, and the state that it gives
///
/// Level 1: all objects are there, with their lengths. 2: the chain of manifests is whole, as far back as is
/// needed, and the log has no gap that it does not know of. 3: everything is fetched, decrypted and decoded. 4: everything is applied, and the state compared
/// with the hashes that the cluster left. What was found is kept in the repository as a proof.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    quorate backup verify s3://bucket/prefix --level 2\n  \
    quorate backup verify s3://bucket/prefix --identity key.txt --every 24h")]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    check: CheckArgs,
    /// How deep, 1 to 4; 4 if nothing is encrypted or a private key is given, otherwise 2
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=4))]
    level: Option<u8>,
}

impl Verify {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        self.check.run(async || self.once(global).await).await
    }

    async fn once(&self, global: &Global) -> Result<(), Failure> {
        let (repository, cluster) = self.check.open().await?;
        let catalogue = match archive::read(&repository, cluster).await {
            Ok(catalogue) => Some(catalogue),
            // A chain that can't be read is a finding of its own, with advice.
            Err(Failure::Line(Exit::Integrity, _)) => None,
            Err(error) => return Err(error),
        };
        let identities = self.check.keys.identities()?;
        let sealed = catalogue.is_some_and(|found| found.objects().any(|object| is_encrypted(&object.name)));
        let deepest = if sealed && identities.is_empty() { Level::Chain } else { Level::Replay };
        let level = self.level.and_then(Level::of).unwrap_or(deepest);
        let began = clock::wall();
        let report = self.report(&repository, cluster, level, &identities).await?;
        self.check.keep(&repository, cluster, &report.proof(AUTHOR, began, clock::wall())).await;
        tell(global, &report)?;
        if report.passed() {
            Ok(())
        } else {
            Err(Failure::integrity("the archive does not hold what it promises; see above"))
        }
    }

    async fn report(
        &self,
        repository: &Repository,
        cluster: ClusterId,
        level: Level,
        identities: &Identities,
    ) -> Result<Report, Failure> {
        let folder = self.check.scratch()?;
        let bar = archive::bytes_bar("checking", 0);
        let scope = Scope { level, identities, scratch: folder.path() };
        let seen = |progress: verify::Progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
        };
        let report = verify::verify(repository, cluster, scope, &seen).await;
        bar.finish_and_clear();
        report.map_err(|error| verify_failure(repository, &error))
    }
}

fn verify_failure(repository: &Repository, error: &VerifyError) -> Failure {
    match error {
        VerifyError::Store(error) => archive::store(repository, error),
        VerifyError::Marker(error) => archive::marker_failure(repository, error),
        VerifyError::NoArchive { .. }
        | VerifyError::NoIdentity
        | VerifyError::WrongIdentity
        | VerifyError::Newer { .. }
        | VerifyError::Scratch { .. }
        | VerifyError::Replay(_) => Failure::usage(error.to_string()),
    }
}

fn facts_of(report: &Report) -> Vec<Fact> {
    vec![
        ("cluster", json!(cluster_name(report.cluster))),
        ("level", json!(report.level.number())),
        ("passed", json!(report.passed())),
        ("manifest", json!(report.head.map(|head| head.seq))),
        ("objects", json!(report.objects)),
        ("bytes", json!(report.bytes)),
        ("entries", json!(report.entries)),
        ("records", json!(report.records)),
        ("states_compared", json!(report.compared)),
        ("index", json!(report.reached.map(|(position, _)| position.index.get()))),
        ("revision", json!(report.reached.map(|(_, mark)| mark.revision.get()))),
        ("state_hash", json!(report.reached.map(|(_, mark)| format!("{:032x}", mark.hash)))),
        ("orphans", json!(report.orphans.len())),
        ("lost", json!(report.lost.len())),
    ]
}

fn tell(global: &Global, report: &Report) -> Result<(), Failure> {
    let mut out = global.out();
    let told = facts_of(report);
    match out.format {
        Format::Json => {
            let findings = report.findings.iter().map(|finding| {
                json!({
                    "damage": finding.severity == Severity::Damage,
                    "object": finding.object,
                    "what": finding.what,
                    "advice": finding.advice,
                })
            });
            let mut told = facts::object(told);
            told.insert("findings".into(), Value::Array(findings.collect()));
            out.json(&told)?;
        }
        Format::Text => {
            out.text(&facts::lines(&told, Value::to_string))?;
            let waste = report.orphans.iter().fold(0_u64, |sum, object| sum.saturating_add(object.bytes));
            if waste > 0 {
                out.line(&format!(
                    "\n{} of objects belong to nothing; 'quorate backup prune' removes them",
                    size(waste)
                ))?;
            }
            for finding in &report.findings {
                let severity = if finding.severity == Severity::Damage { "DAMAGE" } else { "note" };
                out.line(&format!("\n{severity}: {finding}"))?;
            }
        }
    }
    out.finish()
}
