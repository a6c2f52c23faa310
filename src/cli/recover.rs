//! `recover`: a new cluster out of what one node has, once the quorum is lost for good.
//!
//! Guarantees: without `--as-new-cluster` it only tells; with it, it tells first and asks, and nothing is changed by a "no".
//! Leaves out: how it is done (`node`, `raft`), and running the node.

use std::io::{BufRead, IsTerminal as _, Write as _};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Failure;
use super::connect::Global;
use super::facts::{self, Fact, object, time};
use super::output::Format;
use crate::config::{BaseUrl, HostPort, Name};
use crate::node::{Founding, NewCluster, Opened, RefoundingError, Survivor};
use crate::raft::{LogConfig, RefoundError};
use crate::types::{ClusterId, LogPosition, Member, NodeId};

/// Revisions that are left out where no number is given, as etcd's documents advise: more than a week of 1,500 writes a
/// second, and nine million such recoveries before revisions reach 2^53.
pub(super) const SKIPPED_REVISIONS_DEFAULT: u64 = 1_000_000_000;

/// Found a new cluster on what one node still has
///
/// For when more than half of the voters are lost for good. Stop every node that is left. Without --as-new-cluster this
/// command only tells what a stopped node has; run it on each and choose the one whose last_log is greatest, compared
/// number by number from the left. With it, that node becomes the only member of a new cluster: everything in its log is
/// kept, what it never got is lost, and the data of all other nodes is refused from then on. They join again with empty
/// directories. What was in the directory is moved aside, not removed.
///
/// A log that has lost its end, so that no node starts with it, is read up to there, and lost_end_bytes tells how much is
/// missing; --accept-lost-end gives that up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, on the one survivor:\n  \
    quorate recover --data-dir /var/lib/quorate\n  \
    quorate recover --data-dir /var/lib/quorate --as-new-cluster\n\n\
    Example, from a file of 'quorate snapshot save' into a new directory:\n  \
    quorate recover --from backup.snapshot --data-dir /var/lib/quorate --as-new-cluster \\\n    \
    --name n1 --peer-addr 10.0.0.1:7481 --client-url http://10.0.0.1:7480")]
pub(super) struct Recover {
    /// Directory of the stopped node; with --from one that is empty or not there yet
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// Do it: make the node the only member of a new cluster
    #[arg(long)]
    pub(super) as_new_cluster: bool,
    /// Go on although the log has lost its end, and with it perhaps acknowledged writes; only where no other node has more
    #[arg(long, requires = "as_new_cluster", conflicts_with = "from")]
    pub(super) accept_lost_end: bool,
    /// Take the data from this snapshot file, not from a node
    #[arg(long, value_name = "FILE", requires_all = ["name", "peer_addr"])]
    pub(super) from: Option<PathBuf>,
    /// With --from: name of the new cluster's first node; a survivor keeps its own
    #[arg(long, value_name = "NAME", requires = "from")]
    pub(super) name: Option<Name>,
    /// Where members reach the node; a survivor's own if not given
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) peer_addr: Option<HostPort>,
    /// Where clients reach the node; a survivor's own if not given
    #[arg(long, value_name = "URL")]
    pub(super) client_url: Option<BaseUrl>,
    /// Leave out so many revisions, more than can have been written and lost; history is given up. 0 for neither
    #[arg(long, value_name = "COUNT", default_value_t = SKIPPED_REVISIONS_DEFAULT)]
    pub(super) bump_revision: u64,
    /// Do not ask; for scripts
    #[arg(long)]
    pub(super) yes: bool,
}

impl Recover {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let asks = self.as_new_cluster && !self.yes;
        if asks && !std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "standard input is no terminal, so nobody can confirm; give --yes to go on without",
            ));
        }
        let opened = match &self.from {
            None => Survivor::open(&self.data_dir, LogConfig::default()).await,
            Some(file) => Survivor::open_file(file, &self.data_dir, LogConfig::default()).await,
        };
        let survivor = match opened.map_err(failure)? {
            Opened::Survivor(survivor) => survivor,
            Opened::Unfinished(unfinished) if !self.as_new_cluster => {
                unfinished.is_recovery().map_err(failure)?;
                return Err(Failure::refused(
                    "a recovery of this directory was confirmed and interrupted; give --as-new-cluster to finish it",
                ));
            }
            Opened::Unfinished(unfinished) => {
                unfinished.is_recovery().map_err(failure)?;
                let founded = unfinished.finish().map_err(failure)?;
                return self.tell(global, Vec::new(), &founded);
            }
        };
        if !self.as_new_cluster {
            return look(global, &survivor);
        }
        let founding = Founding {
            name: self.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            peer_addr: self.peer_addr.as_ref().map(ToString::to_string),
            client_url: self.client_url.as_ref().map(ToString::to_string),
            skipped_revisions: self.bump_revision,
            accept_lost_end: self.accept_lost_end,
        };
        survivor.permits(&founding).map_err(failure)?;
        let told = facts(&survivor);
        if asks {
            ask(&survivor)?;
        } else if matches!(global.output, Format::Text) {
            let mut out = global.out();
            out.text(&text(&told))?;
            out.text(&meaning(&survivor))?;
            out.finish()?;
        }
        let founded = survivor.refound(&founding).await.map_err(failure)?;
        self.tell(global, told, &founded)
    }

    fn tell(&self, global: &Global, told: Vec<Fact>, founded: &NewCluster) -> Result<(), Failure> {
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&object(told.into_iter().chain(result(founded))))?,
            Format::Text => {
                out.line("")?;
                out.text(&text(&result(founded)))?;
                out.text(&next_steps(founded, &self.data_dir.display().to_string()))?;
            }
        }
        out.finish()
    }
}

/// Tells what there is, and that is all.
fn look(global: &Global, survivor: &Survivor) -> Result<(), Failure> {
    let mut out = global.out();
    match out.format {
        Format::Json => out.json(&object(facts(survivor)))?,
        Format::Text => {
            out.text(&text(&facts(survivor)))?;
            out.text(&meaning(survivor))?;
            if !survivor.has_quorum() {
                let accepting = survivor.survey().lost_end.as_ref().map_or("", |_| " --accept-lost-end");
                out.text(&format!(
                    "\nNothing was changed. With --as-new-cluster{accepting} this becomes a new cluster.\n"
                ))?;
            }
        }
    }
    out.finish()
}

/// Tells what there is, and asks on the terminal whether to go on.
fn ask(survivor: &Survivor) -> Result<(), Failure> {
    let cluster = survivor.survey().cluster;
    // On standard error: the output may be for a program.
    let mut terminal = std::io::stderr().lock();
    let told = format!("{}{}", text(&facts(survivor)), meaning(survivor));
    write!(terminal, "{told}\nThis can't be taken back by a command. To go on, type the cluster id {cluster}: ")?;
    terminal.flush()?;
    confirmed(cluster, &mut std::io::stdin().lock())
}

/// Whether the operator typed the cluster's id.
fn confirmed(cluster: ClusterId, input: &mut impl BufRead) -> Result<(), Failure> {
    let mut line = String::new();
    let read = input.read_line(&mut line);
    read.map_err(|error| Failure::usage(format!("can't read the answer: {error}")))?;
    if line.trim() == cluster.to_string() {
        return Ok(());
    }
    Err(Failure::refused("that is not the cluster id; nothing was changed"))
}

/// What the operator decides by.
fn facts(survivor: &Survivor) -> Vec<Fact> {
    let survey = survivor.survey();
    let position = |position: LogPosition| json!(position.to_string());
    let mut facts = vec![("cluster_id", json!(survey.cluster.get()))];
    if let Some(identity) = survivor.identity() {
        let role = survivor.member().map(|(.., voter)| if *voter { "voter" } else { "learner" });
        facts.push(("name", json!(identity.name)));
        facts.push(("id", json!(identity.id.get())));
        facts.push(("role", json!(role.unwrap_or("removed"))));
    }
    let snapshot = survey.snapshot.as_ref();
    facts.extend([
        ("snapshot", json!(snapshot.map(|file| file.path.display().to_string()))),
        ("snapshot_at", json!(snapshot.map(|file| time(file.created_at)))),
        ("snapshot_index", json!(snapshot.map(|file| file.position.index.get()))),
        ("snapshot_revision", json!(snapshot.map(|file| file.revision.get()))),
    ]);
    facts.extend([
        ("log_entries", json!(survey.logged.entries)),
        ("log_writes", json!(survey.logged.commands)),
        ("committed", survey.committed.map_or(Value::Null, position)),
        ("uncommitted_entries", json!(survey.doubtful.entries)),
        ("uncommitted_writes", json!(survey.doubtful.commands)),
        ("last_log", position(survey.last)),
        ("revision_max", json!(survey.revision_max().get())),
        ("last_write_at", json!(survey.last_command_at.map(time))),
    ]);
    if survivor.identity().is_some() {
        let lost = survey.lost_end.as_ref();
        facts.extend([
            ("lost_end_bytes", json!(lost.map_or(0, |end| end.missing_bytes))),
            ("lost_end_file", json!(lost.map(|end| end.file.display().to_string()))),
            ("lost_end_offset", json!(lost.map(|end| end.offset))),
        ]);
    }
    let others: Vec<Value> = survivor.cut_off().map(other).collect();
    facts.push(("cut_off", Value::Array(others)));
    facts
}

fn other((id, member, voter): &(NodeId, Member, bool)) -> Value {
    let role = if *voter { "voter" } else { "learner" };
    json!({ "id": id.get(), "name": member.name, "role": role, "peer_addr": member.peer_addr })
}

/// What was made of it.
pub(super) fn result(founded: &NewCluster) -> Vec<Fact> {
    let mut facts = vec![
        ("new_cluster_id", json!(founded.founder.cluster.get())),
        ("new_name", json!(founded.founder.member.name)),
        ("new_id", json!(founded.founder.id.get())),
    ];
    if let Some(made) = &founded.made {
        facts.extend([
            ("peer_addr", json!(founded.founder.member.peer_addr)),
            ("client_url", json!(founded.founder.member.client_url)),
            ("keys", json!(made.keys)),
            ("revision_before", json!(made.revision_before.get())),
            ("revision", json!(made.revision.get())),
        ]);
    }
    facts.push(("old_data", json!(founded.aside.as_ref().map(|path| path.display().to_string()))));
    facts
}

fn text(facts: &[Fact]) -> String {
    facts::lines(facts, |value| match value {
        Value::Array(others) if others.is_empty() => "nobody".to_owned(),
        Value::Array(others) => others.iter().map(person).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    })
}

fn person(member: &Value) -> String {
    let text = |name: &str| member[name].as_str().unwrap_or_default().to_owned();
    format!("{} (id {}, {}, {})", text("name"), member["id"], text("role"), text("peer_addr"))
}

/// What the numbers mean, in sentences.
fn meaning(survivor: &Survivor) -> String {
    let survey = survivor.survey();
    if survivor.has_quorum() {
        return "\nIt is the only voter: its quorum is not lost, and it can be started as it is.\n".to_owned();
    }
    let mut lines = Vec::new();
    if survivor.identity().is_some() && survivor.member().is_none_or(|(.., voter)| !voter) {
        lines.push(
            "It does not vote: what was acknowledged need not have reached it. Look for a voter first.".to_owned(),
        );
    }
    if let Some(end) = &survey.lost_end {
        lines.push(format!(
            "The log has lost its end: at byte {} of {} {}. It is whole up to {}, which is revision {} at most. What was \
             acknowledged behind that is lost unless another node has it.",
            end.offset,
            end.file.display(),
            end.reason,
            survey.last,
            survey.revision_max()
        ));
    }
    let doubtful = survey.doubtful;
    lines.push(match doubtful.entries {
        0 => format!("Kept: everything up to {}.", survey.last),
        entries => format!(
            "Kept: everything up to {}. Of that, {entries} entries with {} writes are not marked as committed here: they may \
             have been acknowledged, and may as well be writes that nobody was told of.",
            survey.last, doubtful.commands
        ),
    });
    lines.push(match (survey.last_command_at, &survey.snapshot) {
        (Some(at), _) => format!(
            "Lost: what was acknowledged without this node. Writes after {} (by the leader's clock) may be missing; how \
             many can't be known here.",
            time(at)
        ),
        (None, Some(snapshot)) => format!(
            "Lost: what the snapshot does not have. It was written at {}, by a node that may have lagged behind then; how \
             many writes are missing can't be known here.",
            time(snapshot.created_at)
        ),
        (None, None) => "Lost: what was acknowledged without this node; how much can't be known here.".to_owned(),
    });
    let others = survivor.cut_off().count();
    if others > 0 {
        lines.push(format!("Cut off: {others} members. Their data is refused by the new cluster."));
    }
    if others > 0 && survivor.identity().is_some() {
        let advice = "If another node is left, run this there, too, and take the one whose last_log is greatest, compared \
                      number by number from the left.";
        lines.push(advice.to_owned());
    }
    lines.iter().fold("\n".to_owned(), |text, line| text + line + "\n")
}

/// What is to be done with a cluster of one member.
pub(super) fn next_steps(founded: &NewCluster, dir: &str) -> String {
    let member = &founded.founder.member;
    // Of one that an earlier attempt made only the name is known here.
    let address = match member.peer_addr.as_str() {
        "" => "HOST:PORT",
        known => known,
    };
    let mut text = format!(
        "\n{} is the only member of a new cluster. Start it as before; 'quorate serve' needs --name {}, --data-dir {dir} and, \
         where it listens on every interface, --advertise-peer-addr {address}.\n\
         Then have the others join, each with an EMPTY directory and --join. Never start one with its old data.\n",
        member.name, member.name
    );
    if let Some(aside) = &founded.aside {
        text += &format!("Keep {} until you have looked at the data; then it may be removed.\n", aside.display());
    }
    text
}

pub(super) fn failure(error: RefoundingError) -> Failure {
    match &error {
        RefoundingError::HasQuorum(_) | RefoundingError::OtherExchange { .. } => Failure::refused(error.to_string()),
        // A file that is bad says already that another copy is to be used.
        RefoundingError::Data(RefoundError::Snapshot { .. }) if error.is_damage() => {
            Failure::integrity(error.to_string())
        }
        // It names better ways itself.
        RefoundingError::LostEnd { .. } => Failure::integrity(error.to_string()),
        error if error.is_damage() => Failure::integrity(format!(
            "{error}; a snapshot file of this or another node may still be whole: see 'quorate recover --from'"
        )),
        _ => Failure::usage(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WallTime;

    #[test]
    fn only_the_cluster_id_confirms() {
        let answer = |text: &str| confirmed(ClusterId::new(42), &mut text.as_bytes());
        assert!(answer("42\n").is_ok() && answer(" 42 \r\n").is_ok());
        for other in ["", "\n", "y\n", "yes\n", "4\n", "421\n", "43\n42\n"] {
            let refused = format!("{:?}", answer(other).unwrap_err());
            assert!(refused.contains("Refused") && refused.contains("nothing was changed"), "{other:?}: {refused}");
        }
    }

    #[test]
    fn facts_are_lined_up_and_members_named() {
        let member = json!({ "id": 2, "name": "n2", "role": "voter", "peer_addr": "h2:7481" });
        let facts = [("id", json!(1)), ("last_write_at", Value::Null), ("cut_off", json!([member]))];
        let lines = "id:             1\nlast_write_at:  -\ncut_off:        n2 (id 2, voter, h2:7481)\n";
        assert_eq!(text(&facts), lines);
        assert_eq!(time(WallTime::new(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
    }
}
