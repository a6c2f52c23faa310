//! `restore`: a new cluster out of a snapshot file or of an off-site archive, at any point that is archived.
//!
//! Guarantees: `plan` only tells and needs no private key; a restore tells first and asks; a directory that holds anything
//! is refused; what was interrupted goes on when the same command is given again. Leaves out: how it is done (`backup`,
//! `node`), a part of the data (`restore_prefix`), and running the node.

use std::io::{BufRead, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::archive::{self, ClusterArg, KeyArgs, StoreArgs};
use super::connect::Global;
use super::facts::{self, Fact, size, time};
use super::interrupt::interruptible;
use super::output::Format;
use super::recover::{self, Recover, SKIPPED_REVISIONS_DEFAULT};
use super::restore_prefix::{PrefixArgs, Scratch, scratch};
use super::{Failure, failure};
use crate::backup::catalogue::Catalogue;
use crate::backup::layout::{cluster_name, is_encrypted};
use crate::backup::plan::{self, Plan, Target, rfc3339};
use crate::backup::repository::Repository;
use crate::backup::seal::Identities;
use crate::backup::stage::{Progress, Stage, Staged};
use crate::clock;
use crate::config::{BaseUrl, HostPort, Name};
use crate::node::{Emptied, NewCluster, Restorable, RestoreError, Restored};
use crate::raft::Raise;
use crate::types::{LogIndex, Member, Revision, WallTime};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Tell what would be read, how much, the point that is reached, and what is lost behind it
    Plan,
    /// Do it
    Run,
}

/// Make a new cluster out of a backup
///
/// From an off-site archive, at its end or at any point of its window, or from a snapshot file. The new cluster has one
/// member, in a directory that must be empty, and an id of its own: members and archives of the old one can't mix with
/// it. Revisions go on above all that clients may have seen, and history below is given up. The other members join with
/// empty directories. 'plan' tells before, without a private key. What was interrupted goes on with the same command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    quorate restore plan --from s3://bucket/prefix --to-time 2026-11-20T09:30:00Z\n  \
    quorate restore --from s3://bucket/prefix --to-time 2026-11-20T09:30:00Z --identity key.txt \\\n    \
    --data-dir /var/lib/quorate --name n1 --peer-addr 10.0.0.1:7481 --client-url http://10.0.0.1:7480\n\n\
    Example, one subtree into a running cluster:\n  \
    quorate restore --from s3://bucket/prefix --identity key.txt --prefix users/ --into http://10.0.0.1:7480")]
pub(super) struct Restore {
    /// Whether it is done or only told
    #[arg(value_enum, default_value_t = Step::Run, value_name = "STEP", hide_default_value = true)]
    step: Step,
    /// A snapshot file, or the URL of a repository: s3://, az://, gs://, file:///
    #[arg(long, value_name = "FILE|URL")]
    from: String,
    #[command(flatten)]
    point: PointArgs,
    /// Directory of the new node: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of the new cluster's first node
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Where members reach it
    #[arg(long, value_name = "HOST:PORT")]
    peer_addr: Option<HostPort>,
    /// Where clients reach it
    #[arg(long, value_name = "URL")]
    client_url: Option<BaseUrl>,
    /// Leave out so many revisions, not as many as clients may have seen; history is given up. 0 for neither
    #[arg(long, value_name = "COUNT")]
    bump_revision: Option<u64>,
    #[command(flatten)]
    subtree: PrefixArgs,
    #[command(flatten)]
    cluster: ClusterArg,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Do not ask; for scripts
    #[arg(long)]
    yes: bool,
}

/// The point that is wanted; the end of the archive if none is given.
#[derive(Debug, Clone, clap::Args)]
#[group(multiple = false)]
pub(super) struct PointArgs {
    /// Restore the state right behind this revision
    #[arg(long, value_name = "REVISION")]
    to_revision: Option<u64>,
    /// Restore the state before the first write that was proposed later, in UTC: 2026-11-20T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to_time: Option<WallTime>,
    /// Restore the state behind this entry of the log
    #[arg(long, value_name = "INDEX")]
    to_index: Option<u64>,
}

fn parse_time(text: &str) -> Result<WallTime, String> {
    let parsed = humantime::parse_rfc3339_weak(text);
    let since = parsed.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let millis = since.and_then(|since| u64::try_from(since.as_millis()).ok());
    millis.map(WallTime::new).ok_or_else(|| "it must be a time in UTC like 2026-11-20T09:30:00Z".to_owned())
}

impl PointArgs {
    pub(super) fn target(&self) -> Target {
        match (self.to_revision, self.to_time, self.to_index) {
            (Some(revision), ..) => Target::Revision(Revision::new(revision)),
            (_, Some(time), _) => Target::Time(time),
            (.., Some(index)) => Target::Index(LogIndex::new(index)),
            (None, None, None) => Target::Latest,
        }
    }
}

/// Where the new member lives.
struct Place {
    data_dir: PathBuf,
    member: Member,
}

impl Restore {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let asks = self.step == Step::Run && !self.yes;
        if asks && !std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "standard input is no terminal, so nobody can confirm; give --yes to go on without",
            ));
        }
        if !self.from.contains("://") {
            // A plan needs no directory, and makes none that stays.
            let folder = if self.step == Step::Plan { Some(scratch(None)?) } else { None };
            return self.of_file(folder.as_ref().map(Scratch::path))?.run(global).await;
        }
        let place = if self.step == Step::Run && !self.subtree.is_given() { Some(self.place()?) } else { None };
        let repository = self.store.open(&self.from)?;
        let catalogue = archive::catalogue(&repository, &self.cluster).await?;
        let plan = plan::plan(&catalogue, self.point.target()).map_err(|error| archive::plan_failure(&error))?;
        if self.step == Step::Plan {
            return self.look(global, &repository, &catalogue, &plan);
        }
        let identities = self.keys.for_plan(&plan)?;
        if self.subtree.is_given() {
            return interruptible(self.subtree.run(global, &repository, &plan, &identities, asks)).await;
        }
        let place = place.expect("it was asked for above");
        let emptied = match Emptied::open(&place.data_dir).map_err(recover::failure)? {
            Restorable::Empty(emptied) => emptied,
            Restorable::Unfinished(unfinished) => {
                let same = unfinished.is_restore_of(plan.cluster, plan.target, &place.member.name);
                same.map_err(recover::failure)?;
                failure::note("an earlier restore was complete but for its last step; finishing that one");
                let mut founded = unfinished.finish().map_err(recover::failure)?;
                founded.founder.member.peer_addr.clone_from(&place.member.peer_addr);
                return tell(global, Vec::new(), recover::result(&founded), &founded, &place);
            }
        };
        let told = self.facts(&repository, &catalogue, &plan);
        self.confirm(global, &told, &plan, asks).await?;
        let started = clock::now();
        let staged = fetch(&repository, &plan, &identities, &emptied.stage()).await?;
        let fetched = started.elapsed();
        let bar = archive::bytes_bar("applying", staged.log_bytes());
        let (counted, raise) = (bar.clone(), self.raise(&plan));
        let restored =
            emptied.restore(staged, plan.target, place.member.clone(), raise, move |bytes| counted.inc(bytes as u64));
        let restored = restored.await.map_err(restore_failure)?;
        bar.finish_and_clear();
        let founded = NewCluster { founder: restored.founder.clone(), made: Some(restored.made.clone()), aside: None };
        let mut result = recover::result(&founded);
        result.retain(|(name, _)| *name != "old_data");
        result.extend(reached(&restored));
        result.extend([
            ("fetch_ms", json!(u64::try_from(fetched.as_millis()).unwrap_or(u64::MAX))),
            ("build_ms", json!(u64::try_from((started.elapsed() - fetched).as_millis()).unwrap_or(u64::MAX))),
        ]);
        tell(global, told, result, &founded, &place)
    }

    /// A snapshot file is what `recover --from` takes, too.
    /// With a folder it is only looked at, in that one.
    fn of_file(self, folder: Option<&Path>) -> Result<Recover, Failure> {
        if self.point.target() != Target::Latest || self.subtree.is_given() {
            return Err(Failure::usage(
                "a snapshot file holds one point: --to-revision, --to-time, --to-index and --prefix are for repositories",
            ));
        }
        let data_dir = match folder {
            Some(folder) => folder.to_owned(),
            None => self.place()?.data_dir,
        };
        Ok(Recover {
            data_dir,
            as_new_cluster: folder.is_none(),
            accept_lost_end: false,
            from: Some(PathBuf::from(self.from)),
            name: self.name,
            peer_addr: self.peer_addr,
            client_url: self.client_url,
            bump_revision: self.bump_revision.unwrap_or(SKIPPED_REVISIONS_DEFAULT),
            yes: self.yes,
        })
    }

    fn place(&self) -> Result<Place, Failure> {
        let (Some(data_dir), Some(name), Some(peer_addr)) = (&self.data_dir, &self.name, &self.peer_addr) else {
            return Err(Failure::usage(
                "a restore needs --data-dir, --name and --peer-addr of the new node; 'quorate restore plan' does not",
            ));
        };
        let member = Member {
            name: name.to_string(),
            peer_addr: peer_addr.to_string(),
            client_url: self.client_url.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..Member::default()
        };
        Ok(Place { data_dir: data_dir.clone(), member })
    }

    fn raise(&self, plan: &Plan) -> Raise {
        let unseen = || Raise::To(plan.revision_unseen(clock::wall()));
        self.bump_revision.map_or_else(unseen, Raise::By)
    }

    /// Tells what a restore would do, and that is all.
    fn look(&self, global: &Global, from: &Repository, catalogue: &Catalogue, plan: &Plan) -> Result<(), Failure> {
        let mut out = global.out();
        let told = self.facts(from, catalogue, plan);
        match out.format {
            Format::Json => out.json(&facts::object(told))?,
            Format::Text => {
                out.text(&text(&told))?;
                out.text(&meaning(plan))?;
            }
        }
        out.finish()
    }

    /// Tells what is to be done, and asks on the terminal whether to go on.
    async fn confirm(&self, global: &Global, told: &[Fact], plan: &Plan, asks: bool) -> Result<(), Failure> {
        let text = format!("{}{}", text(told), meaning(plan));
        if asks {
            return ask(&text).await;
        }
        if matches!(global.output, Format::Text) {
            let mut out = global.out();
            out.text(&text)?;
            out.finish()?;
        }
        Ok(())
    }

    /// What the operator decides by.
    fn facts(&self, from: &Repository, catalogue: &Catalogue, plan: &Plan) -> Vec<Fact> {
        let state = plan.full.state.map(|state| state.revision);
        let revision = match self.raise(plan) {
            Raise::To(revision) => json!(revision.get()),
            // What it is added to only the end tells.
            Raise::By(_) => Value::Null,
        };
        let windows = plan::windows(catalogue);
        vec![
            ("repository", json!(from.url())),
            ("cluster", json!(cluster_name(plan.cluster))),
            ("cluster_id", json!(plan.cluster.get())),
            ("target", json!(plan.target.to_string())),
            ("full", json!(plan.full.name)),
            ("full_index", json!(plan.full.last.index)),
            ("full_revision", json!(state)),
            ("full_at", json!(plan.full.times.map(|(at, _)| time(WallTime::new(at))))),
            ("log_objects", json!(plan.segments.len())),
            ("bytes", json!(plan.bytes())),
            ("plain_bytes", json!(plan.plain_bytes())),
            ("encrypted", json!(plan.objects().any(|object| is_encrypted(&object.name)))),
            ("index_min", json!(plan.index.start())),
            ("index_max", json!(plan.index.end())),
            ("revision_min", json!(plan.revision_min.get())),
            ("revision_max", json!(plan.revision_max.map(Revision::get))),
            ("archived_index", json!(plan.newest.index.get())),
            ("archived_revision", json!(plan.newest.revision.map(Revision::get))),
            ("archived_at", json!(plan.newest.at.map(time))),
            ("archived_until", json!(time(plan.archived_until))),
            ("new_revision", revision),
            ("window", json!(windows.iter().map(ToString::to_string).collect::<Vec<_>>())),
        ]
    }
}

fn text(told: &[Fact]) -> String {
    facts::lines(told, |value| match value {
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    })
}

/// What the numbers mean, in sentences.
fn meaning(plan: &Plan) -> String {
    let mut lines = vec![format!(
        "Read: {} objects, {}, which are {} unpacked.",
        plan.objects().count(),
        size(plan.bytes()),
        size(plan.plain_bytes())
    )];
    let (low, high) = (*plan.index.start(), *plan.index.end());
    let exact = low == high && plan.revision_max.is_none_or(|most| most == plan.revision_min);
    lines.push(match plan.target {
        Target::Latest => format!("Reached: the end of the archive, index {high}."),
        Target::Revision(revision) => format!("Reached: revision {revision}, at an index from {low} to {high}."),
        Target::Index(index) => format!("Reached: index {index}."),
        Target::Time(at) if exact => format!("Reached: index {low}, the last before {}.", rfc3339(at)),
        Target::Time(at) => format!(
            "Reached: the last write before {} (by the leaders' clocks), from index {low} to {high}; only reading tells which.",
            rfc3339(at)
        ),
    });
    let newest = plan.newest.index.get();
    lines.push(match (newest.saturating_sub(low), newest.saturating_sub(high)) {
        (0, _) => {
            format!("Lost: nothing that is archived; writes after {} may be missing.", rfc3339(plan.archived_until))
        }
        (most, least) if most == least => format!("Left behind: {most} archived entries, up to index {newest}."),
        (most, least) => format!("Left behind: {least} to {most} archived entries, up to index {newest}."),
    });
    lines.iter().fold("\n".to_owned(), |text, line| text + line + "\n")
}

/// Tells on standard error, as the output may be for a program, and asks whether to go on.
pub(super) async fn ask(told: &str) -> Result<(), Failure> {
    let mut terminal = std::io::stderr();
    write!(terminal, "{told}\nTo go on, type yes: ")?;
    terminal.flush()?;
    // On a thread of its own, so that a signal ends the command meanwhile.
    let asked = tokio::task::spawn_blocking(|| confirmed(&mut std::io::stdin().lock()));
    asked.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn confirmed(input: &mut impl BufRead) -> Result<(), Failure> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| Failure::usage(format!("can't read the answer: {error}")))?;
    if line.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::refused("that is not \"yes\"; nothing was changed"))
}

/// Brings all that a plan reads into a folder, with a bar.
pub(super) async fn fetch(
    repository: &Repository,
    plan: &Plan,
    identities: &Identities,
    folder: &Path,
) -> Result<Staged, Failure> {
    let failed = |error| archive::stage_failure(repository, &error);
    let bar = archive::bytes_bar("fetching", plan.bytes());
    let stage = Stage::open(folder).map_err(failed)?;
    let seen = |progress| match progress {
        Progress::Fetched(bytes) => bar.inc(bytes as u64),
        Progress::Kept(bytes) => bar.inc(bytes),
    };
    let staged = stage.fill(repository, plan, identities, seen).await.map_err(failed)?;
    bar.finish_and_clear();
    Ok(staged)
}

/// How a restore that failed ends the command.
pub(super) fn restore_failure(error: RestoreError) -> Failure {
    if error.is_damage() { Failure::integrity(error.to_string()) } else { Failure::usage(error.to_string()) }
}

/// The point that was reached.
fn reached(restored: &Restored) -> [Fact; 7] {
    let reached = &restored.reached;
    [
        ("index", json!(reached.position.index.get())),
        ("last_write_at", json!(reached.last_command_at.map(time))),
        ("state_hash", json!(format!("{:032x}", reached.hash))),
        ("log_entries", json!(reached.entries)),
        ("log_writes", json!(reached.commands)),
        ("writes_left_out_of_the_last_entry", json!(reached.left_out)),
        ("states_compared", json!(reached.compared)),
    ]
}

fn tell(
    global: &Global,
    told: Vec<Fact>,
    result: Vec<Fact>,
    founded: &NewCluster,
    place: &Place,
) -> Result<(), Failure> {
    let mut out = global.out();
    match out.format {
        Format::Json => out.json(&facts::object(told.into_iter().chain(result)))?,
        Format::Text => {
            out.line("")?;
            out.text(&text(&result))?;
            out.text(&recover::next_steps(founded, &place.data_dir.display().to_string()))?;
        }
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_confirms() {
        let answer = |text: &str| confirmed(&mut text.as_bytes());
        assert!(answer("yes\n").is_ok() && answer(" yes \r\n").is_ok());
        for other in ["", "\n", "y\n", "no\n", "YES!\n", "n\nyes\n"] {
            let refused = format!("{:?}", answer(other).unwrap_err());
            assert!(refused.contains("Refused") && refused.contains("nothing was changed"), "{other:?}: {refused}");
        }
    }

    #[test]
    fn times_are_in_utc_and_anything_else_is_told() {
        assert_eq!(parse_time("2023-11-14T22:13:20.123Z"), Ok(WallTime::new(1_700_000_000_123)));
        assert_eq!(parse_time("2023-11-14 22:13:20"), Ok(WallTime::new(1_700_000_000_000)));
        for other in ["", "yesterday", "2023-11-14", "2023-11-14T22:13:20+02:00", "1969-12-31T00:00:00Z"] {
            assert!(parse_time(other).unwrap_err().contains("UTC"), "{other}");
        }
    }
}
