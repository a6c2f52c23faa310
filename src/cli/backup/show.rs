//! `backup list` and `backup show`: what a repository holds, as its manifests tell.
//!
//! Guarantees: reads manifests only, so it needs no key and costs little. Leaves out: whether the objects are there and
//! whole (`backup verify`).

use serde_json::{Value, json};

use crate::backup::catalogue::Catalogue;
use crate::backup::layout::{cluster_name, is_encrypted};
use crate::backup::manifest::Object;
use crate::backup::plan;
use crate::backup::proof::{self, Proof, ProofKind};
use crate::backup::repository::Repository;
use crate::cli::archive::{self, Archived, ClusterArg, StoreArgs};
use crate::cli::connect::Global;
use crate::cli::facts::{self, Fact, size, time};
use crate::cli::failure::Exit;
use crate::cli::output::Format;
use crate::cli::{Failure, Output};
use crate::types::{ClusterId, Revision, WallTime};

/// Show the clusters that have an archive in a repository
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup list s3://bucket/prefix")]
pub(in crate::cli) struct List {
    /// The repository: s3://, az://, gs://, file:///
    #[arg(value_name = "URL")]
    repository: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Show what can be restored of a cluster: windows, full backups, the log, gaps
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup show s3://bucket/prefix --output json")]
pub(in crate::cli) struct Show {
    /// The repository: s3://, az://, gs://, file:///
    #[arg(value_name = "URL")]
    repository: String,
    #[command(flatten)]
    cluster: ClusterArg,
    #[command(flatten)]
    store: StoreArgs,
}

impl List {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let repository = self.store.open(&self.repository)?;
        let clusters = archive::catalogues(&repository).await?;
        let mut out = global.out();
        match out.format {
            Format::Json => {
                let clusters: Vec<Value> =
                    clusters.iter().map(|found| Value::Object(facts::object(listed(found)))).collect();
                out.json(&json!({ "repository": repository.url(), "clusters": clusters }))?;
            }
            Format::Text => {
                let mut rows = vec![
                    ["CLUSTER", "WRITTEN", "FULLS", "LOG", "BYTES", "CAN BE RESTORED"].map(str::to_owned).to_vec(),
                ];
                rows.extend(clusters.iter().map(row));
                out.table(&rows)?;
            }
        }
        out.finish()?;
        // What is damaged is told in its row; what the store did not tell may be anything.
        match clusters.into_iter().find_map(|(_, read)| read.err().filter(is_unavailable)) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

fn is_unavailable(failure: &Failure) -> bool {
    matches!(failure, Failure::Line(Exit::Unavailable, _))
}

/// What is known of a cluster's archive, or why nothing is.
fn listed((cluster, read): &Archived) -> Vec<Fact> {
    match read {
        Ok(catalogue) => of(catalogue),
        Err(failure) => vec![
            ("cluster", json!(cluster_name(*cluster))),
            ("cluster_id", json!(cluster.get())),
            ("error", json!(failure.to_string())),
        ],
    }
}

fn written(catalogue: &Catalogue) -> Option<String> {
    catalogue.head().map(|head| time(WallTime::new(head.written_at)))
}

fn bytes<'a>(objects: impl Iterator<Item = &'a Object>) -> u64 {
    // The numbers of manifests are anybody's.
    objects.fold(0, |sum: u64, object| sum.saturating_add(object.bytes))
}

fn windows(catalogue: &Catalogue) -> Vec<String> {
    plan::windows(catalogue).iter().map(ToString::to_string).collect()
}

fn row((cluster, read): &Archived) -> Vec<String> {
    let catalogue = match read {
        Ok(catalogue) => catalogue,
        Err(failure) => {
            let unknown = std::iter::repeat_n("?".to_owned(), 4);
            return std::iter::once(cluster_name(*cluster)).chain(unknown).chain([failure.to_string()]).collect();
        }
    };
    let windows = windows(catalogue);
    vec![
        cluster_name(catalogue.cluster()),
        written(catalogue).unwrap_or_else(|| "-".to_owned()),
        catalogue.fulls().len().to_string(),
        catalogue.segments().len().to_string(),
        size(bytes(catalogue.objects())),
        if windows.is_empty() { "nothing".to_owned() } else { windows.join("; ") },
    ]
}

/// What is known of one cluster's archive.
fn of(catalogue: &Catalogue) -> Vec<Fact> {
    vec![
        ("cluster", json!(cluster_name(catalogue.cluster()))),
        ("cluster_id", json!(catalogue.cluster().get())),
        ("manifest", json!(catalogue.head().map(|head| head.seq))),
        ("written_at", json!(written(catalogue))),
        ("fulls", json!(catalogue.fulls().len())),
        ("full_bytes", json!(bytes(catalogue.fulls().into_iter()))),
        ("log_objects", json!(catalogue.segments().len())),
        ("log_bytes", json!(bytes(catalogue.segments().into_iter()))),
        ("unencrypted", json!(catalogue.objects().filter(|object| !is_encrypted(&object.name)).count())),
        ("window", json!(windows(catalogue))),
    ]
}

impl Show {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let repository = self.store.open(&self.repository)?;
        let catalogue = archive::catalogue(&repository, &self.cluster).await?;
        let gaps = gaps(&catalogue);
        let proofs = proofs(&repository, catalogue.cluster()).await?;
        let mut out = global.out();
        match out.format {
            Format::Json => {
                let mut told = facts::object(of(&catalogue));
                told.insert("gaps".into(), json!(gaps));
                told.insert("proofs".into(), json!(proofs));
                told.insert("objects".into(), json!(catalogue.objects().collect::<Vec<_>>()));
                out.json(&told)?;
            }
            Format::Text => text(&mut out, &catalogue, &gaps, &proofs)?,
        }
        out.finish()
    }
}

/// The newest verification and the newest drill.
async fn proofs(repository: &Repository, cluster: ClusterId) -> Result<Vec<Proof>, Failure> {
    let mut found = Vec::new();
    for kind in [ProofKind::Verify, ProofKind::Drill] {
        let newest = proof::newest(repository, cluster, kind, false).await;
        found.extend(newest.map_err(|error| archive::store(repository, &error))?);
    }
    Ok(found)
}

/// The first and the last entry of each gap.
fn gaps(catalogue: &Catalogue) -> Vec<(u64, u64)> {
    let windows = plan::windows(catalogue);
    let between = windows.windows(2).map(|pair| (pair[0].to.index.get() + 1, pair[1].from.index.get()));
    between.collect()
}

fn text(out: &mut Output, catalogue: &Catalogue, gaps: &[(u64, u64)], proofs: &[Proof]) -> Result<(), Failure> {
    let plain = |value: &Value| match value {
        Value::Array(lines) if lines.is_empty() => "nothing can be restored".to_owned(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    };
    out.text(&facts::lines(&of(catalogue), plain))?;
    for (first, last) in gaps {
        out.line(&format!("gap:          entries {first} to {last} were never archived one by one"))?;
    }
    for proof in proofs {
        let passed = if proof.passed { "passed" } else { "FAILED" };
        let level = proof.level.map(|level| format!(" of level {level}")).unwrap_or_default();
        let at = time(WallTime::new(proof.at));
        out.line(&format!("{:<13} {passed} at {at}{level}", format!("{}:", proof.kind.name())))?;
    }
    out.line("")?;
    let mut rows = vec![["FULL", "INDEX", "REVISION", "WRITTEN", "BYTES"].map(str::to_owned).to_vec()];
    rows.extend(catalogue.fulls().into_iter().map(|full| {
        let revision = full.state.map(|state| Revision::new(state.revision).to_string());
        vec![
            full.name.rsplit('/').next().unwrap_or_default().to_owned(),
            full.last.index.to_string(),
            revision.unwrap_or_else(|| "-".to_owned()),
            full.times.map_or_else(|| "-".to_owned(), |(at, _)| time(WallTime::new(at))),
            size(full.bytes),
        ]
    }));
    out.table(&rows)
}
