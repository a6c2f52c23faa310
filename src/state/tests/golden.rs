//! Runs the scripts in `testscripts/`. Every changing command of a script is one log entry.
//!
//! | command | does |
//! |---|---|
//! | `put KEY VALUE [lease=N]`, `del KEY`, `delrange START END` | a transaction of one operation; `START` may be `START`, `END` be `END`: the ends of the key space |
//! | `txn if=".." then=".." else=".."` | a transaction; each part as often as wanted, see [`compare`] and [`operation`] |
//! | `entry ".." ".."` | one log entry with a command for each operation |
//! | `get KEY [rev=N]`, `range [START END] [prefix=P] [desc] [keys_only] [limit=N] [bytes=N] [rev=N]`, `count` | reads |
//! | `changes FROM TO [limit=N]`, `records`, `status`, `engine` | what is stored, and where |
//! | `checkpoint`, `interrupt BATCHES`, `crash`, `replay` | the life of the engine |

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Context, Runner};

use super::super::*;
use super::harness::{Entry, Harness, command, hash_of, key, records};
use crate::storage::{FaultPoint, Order};
use crate::types::limits::TXN_OPERATIONS_MAX;
use crate::types::{KeyRange, LeaseId, Revision, Selector};

#[test]
fn scripts_give_what_they_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/state/testscripts");
    for area in ["mvcc", "txn"] {
        let mut scripts: Vec<_> =
            std::fs::read_dir(root.join(area)).unwrap().map(|entry| entry.unwrap().path()).collect();
        scripts.sort();
        assert!(!scripts.is_empty(), "no scripts for {area}");
        for script in scripts {
            goldenscript::run(&mut Script { harness: Harness::new() }, &script)
                .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        }
    }
}

struct Script {
    harness: Harness,
}

type Failure = Box<dyn Error>;

impl Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Result<String, Failure> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "put" | "del" | "delrange" | "getrange" => self.single(&command.name, &mut args)?,
            "txn" => self.txn(&mut args)?,
            "entry" => {
                let mut commands = Vec::new();
                while let Some(text) = args.next_pos() {
                    commands.push(super::harness::command(Txn { success: vec![operation(text)?], ..Txn::default() }));
                }
                let outcomes = self.harness.enter(Entry::Commands(commands));
                outcomes.iter().map(outcome_text).collect()
            }
            "get" => {
                let view = self.view(&mut args)?;
                view.get(&key(args.next_pos().ok_or("which key?")?))?
                    .map_or("absent".into(), |record| record_text(&record))
            }
            "range" => self.range(&mut args)?,
            "count" => {
                let view = self.view(&mut args)?;
                view.count(&range_arg(&mut args)?)?.to_string()
            }
            "changes" => {
                let limit = args.take_key("limit").map_or(Ok(usize::MAX), str::parse)?;
                let from = Revision::new(args.next_pos().ok_or("from which revision?")?.parse()?);
                let to = Revision::new(args.next_pos().ok_or("to which revision?")?.parse()?);
                versions_text(&self.harness.machine.reader().changes(from, to, limit)?)
            }
            "records" => versions_text(&records(&self.harness.machine.pin())),
            "status" => self.status(),
            "engine" => self.engine()?,
            _ => self.life(&command.name, &mut args)?,
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Script {
    fn single(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Result<String, Failure> {
        let lease = args.take_key("lease").unwrap_or("0");
        let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        let mut operation = words_to_operation(name, &words)?;
        if let TxnOp::Put { lease: of_put, .. } = &mut operation {
            *of_put = LeaseId::new(lease.parse()?);
        }
        let outcome = self.harness.run(command(Txn { success: vec![operation], ..Txn::default() }));
        Ok(outcome_text(&outcome))
    }

    fn txn(&mut self, args: &mut ArgumentConsumer<'_>) -> Result<String, Failure> {
        let mut txn = Txn::default();
        while let Some((part, text)) = args.next_key() {
            match part {
                "if" => txn.compares.push(compare(text)?),
                "then" => txn.success.push(operation(text)?),
                "else" => txn.failure.push(operation(text)?),
                // So many that a script could not list them.
                "then_times" => {
                    let (times, text) = text.split_once(' ').ok_or("how often what?")?;
                    let times = if times == "MAX" { TXN_OPERATIONS_MAX } else { times.parse()? };
                    txn.success.extend(std::iter::repeat_n(operation(text)?, times));
                }
                _ => return Err(format!("a transaction has no {part}").into()),
            }
        }
        Ok(outcome_text(&self.harness.run(command(txn))))
    }

    fn range(&self, args: &mut ArgumentConsumer<'_>) -> Result<String, Failure> {
        let view = self.view(args)?;
        let limit = args.take_key("limit").map_or(Ok(usize::MAX), str::parse)?;
        let bytes_max = args.take_key("bytes").map_or(Ok(usize::MAX), str::parse)?;
        let mut words: Vec<&str> = Vec::new();
        let (mut order, mut keys_only) = (Order::Ascending, false);
        let prefix = args.take_key("prefix");
        while let Some(word) = args.next_pos() {
            match word {
                "desc" => order = Order::Descending,
                "keys_only" => keys_only = true,
                word => words.push(word),
            }
        }
        let page = view.range(&RangeRead { range: range(prefix, &words)?, order, limit, bytes_max, keys_only })?;
        let mut out: String = page.records.iter().map(record_text).collect();
        if page.more {
            out.push_str("more\n");
        }
        Ok(if out.is_empty() { "nothing".into() } else { out })
    }

    fn view(&self, args: &mut ArgumentConsumer<'_>) -> Result<StateView, Failure> {
        let reader = self.harness.machine.reader();
        Ok(match args.take_key("rev") {
            Some(revision) => reader.view_at(Revision::new(revision.parse()?))?,
            None => reader.view(),
        })
    }

    fn life(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Result<String, Failure> {
        match name {
            "checkpoint" => {
                let report = self.harness.checkpoint()?;
                return Ok(format!("{} records, revision {}", report.records, report.applied.revision));
            }
            // The disk dies behind so many batches, all of which it still keeps; then the power is cut.
            "interrupt" => {
                let batches: u64 = args.next_pos().ok_or("after how many batches?")?.parse()?;
                self.harness.engine.fail(FaultPoint::Commit, batches + 1);
                let error = self.harness.checkpoint().err().ok_or("the checkpoint has fewer batches")?;
                let kept = self.harness.engine.unflushed();
                self.harness.crash(kept);
                return Ok(format!("{error}; {kept} batches kept"));
            }
            "crash" => self.harness.crash(0),
            "replay" => self.harness.replay(|_| ()),
            "blank" => drop(self.harness.enter(Entry::Blank)),
            "membership" => {
                let text = args.next_pos().ok_or("which?")?;
                self.harness.enter(Entry::Membership(Bytes::copy_from_slice(text.as_bytes())));
            }
            _ => return Err(format!("there is no command {name}").into()),
        }
        Ok(String::new())
    }

    fn status(&self) -> String {
        let applied = self.harness.machine.reader().applied();
        let pinned = self.harness.machine.pin();
        let index = applied.position.map_or("none".into(), |position| position.index.to_string());
        let sum = hash_of(&records(&pinned)) == applied.hash;
        let membership = applied.membership.escape_ascii();
        let hash = if sum { "the sum of its records" } else { "WRONG" };
        format!("revision {}, entry {index}, membership \"{membership}\", hash is {hash}", applied.revision)
    }

    /// The keys of the engine, in order.
    fn engine(&self) -> Result<String, Failure> {
        use crate::storage::{Engine, Scan};
        use std::ops::Bound::Unbounded;
        let all = Scan { start: Unbounded, end: Unbounded, order: Order::Ascending, limit: 1000, bytes_max: 1 << 20 };
        let mut out = String::new();
        for (key, _) in self.harness.engine.scan(all)? {
            writeln!(out, "{}", key.escape_ascii())?;
        }
        Ok(if out.is_empty() { "empty".into() } else { out })
    }
}

/// `START END`, `prefix=P`, or every key.
fn range(prefix: Option<&str>, words: &[&str]) -> Result<KeyRange, Failure> {
    Ok(match (prefix, words) {
        (Some(prefix), []) => KeyRange::prefix(Bytes::copy_from_slice(prefix.as_bytes()))?,
        (None, []) => KeyRange::all(),
        (None, [start, end]) => {
            let start = if *start == "START" { "" } else { start };
            let end = (*end != "END").then(|| Bytes::copy_from_slice(end.as_bytes()));
            KeyRange::new(Bytes::copy_from_slice(start.as_bytes()), end)?
        }
        _ => return Err("a range is START END, prefix=P or nothing".into()),
    })
}

fn range_arg(args: &mut ArgumentConsumer<'_>) -> Result<KeyRange, Failure> {
    let prefix = args.take_key("prefix");
    range(prefix, &std::iter::from_fn(|| args.next_pos()).collect::<Vec<_>>())
}

/// `TARGET KEY OPERATOR OPERAND`.
fn compare(text: &str) -> Result<Compare, Failure> {
    let [target, name, operator, operand] = text.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("no comparison: {text}").into());
    };
    let number = || operand.parse::<u64>();
    let target = match target {
        "value" => CompareTarget::Value(Bytes::copy_from_slice(operand.as_bytes())),
        "version" => CompareTarget::Version(number()?),
        "create" => CompareTarget::CreateRevision(Revision::new(number()?)),
        "mod" => CompareTarget::ModRevision(Revision::new(number()?)),
        "lease" => CompareTarget::Lease(LeaseId::new(number()?)),
        _ => return Err(format!("no target: {target}").into()),
    };
    let operator = match operator {
        "==" => CompareOperator::Equal,
        "!=" => CompareOperator::NotEqual,
        "<" => CompareOperator::Less,
        ">" => CompareOperator::Greater,
        "<=" => CompareOperator::LessOrEqual,
        ">=" => CompareOperator::GreaterOrEqual,
        _ => return Err(format!("no operator: {operator}").into()),
    };
    Ok(Compare { key: key(name), target, operator })
}

/// `put KEY VALUE`, `get KEY`, `getrange START END LIMIT`, `getkey` and `getkeys` like them without values, `del KEY`, `delrange START END`; `*N` as a value is N bytes.
fn operation(text: &str) -> Result<TxnOp, Failure> {
    let words: Vec<&str> = text.split(' ').collect();
    words_to_operation(words[0], &words[1..])
}

fn words_to_operation(name: &str, words: &[&str]) -> Result<TxnOp, Failure> {
    Ok(match (name, words) {
        ("put", [name, value]) => {
            let value = match value.strip_prefix('*') {
                Some(len) => vec![b'x'; len.parse()?],
                None => value.as_bytes().to_vec(),
            };
            super::harness::put_op(name, value)
        }
        ("get", [name]) => TxnOp::Get { selector: Selector::Key(key(name)), limit: 1, keys_only: false },
        ("getkey", [name]) => TxnOp::Get { selector: Selector::Key(key(name)), limit: 1, keys_only: true },
        ("getrange" | "getkeys", [start, end, limit]) => {
            let selector = Selector::Range(range(None, &[start, end])?);
            TxnOp::Get { selector, limit: limit.parse()?, keys_only: name == "getkeys" }
        }
        ("del", [name]) => TxnOp::Delete { selector: Selector::Key(key(name)) },
        ("delrange", [start, end]) => TxnOp::Delete { selector: Selector::Range(range(None, &[start, end])?) },
        _ => return Err(format!("no operation: {name} {words:?}").into()),
    })
}

fn value_text(value: &[u8]) -> String {
    if value.len() > 40 { format!("({} bytes)", value.len()) } else { value.escape_ascii().to_string() }
}

fn record_text(record: &Record) -> String {
    format!("{}={} {}\n", record.key, value_text(&record.value), meta_text(record.meta))
}

fn meta_text(meta: RecordMeta) -> String {
    let lease = if meta.lease == LeaseId::ZERO { String::new() } else { format!(" lease {}", meta.lease) };
    format!("@{} created @{} version {}{lease}", meta.mod_revision, meta.create_revision, meta.version)
}

fn versions_text(versions: &[VersionedRecord]) -> String {
    let mut out = String::new();
    for record in versions {
        let what = match &record.change {
            Change::Put { value, .. } => format!("={}", value_text(value)),
            Change::Delete => " deleted".into(),
        };
        let meta = record.meta().map_or(format!("@{}", record.revision), meta_text);
        writeln!(out, "{}{what} {meta} sub {}", record.key, record.sub).unwrap();
    }
    if out.is_empty() { "nothing".into() } else { out }
}

fn outcome_text(outcome: &Outcome) -> String {
    let reply = match outcome {
        Ok(Reply::Txn(reply)) => reply,
        Ok(Reply::Target) => return "declared\n".to_owned(),
        Err(rejection) => return format!("rejected: {rejection}\n"),
    };
    let branch = if reply.succeeded { "" } else { ", failed" };
    let mut out = format!("revision {}{branch}\n", reply.revision);
    // What repeats is folded.
    let mut texts: Vec<(String, usize)> = Vec::new();
    for response in &reply.responses {
        let text = match response {
            OpReply::Put { key, meta } => format!("  put {key} {}\n", meta_text(*meta)),
            OpReply::Delete { deleted } => format!("  deleted {deleted}\n"),
            OpReply::Get { records, count, keys_only } => {
                let records: String = records.iter().map(|record| format!("    {}", record_text(record))).collect();
                let what = if *keys_only { "keys" } else { "get" };
                format!("  {what}: {count} found\n{records}")
            }
        };
        match texts.last_mut() {
            Some((last, times)) if *last == text => *times += 1,
            _ => texts.push((text, 1)),
        }
    }
    for (text, times) in texts {
        let times = if times == 1 { String::new() } else { format!("  {times} times:\n") };
        write!(out, "{times}{text}").unwrap();
    }
    out
}
