//! `put`, `get`, `del`, `list`.
//!
//! Guarantees: keys and values are the very bytes that were typed or fed; a listing is printed page by page and never
//! held as a whole. Leaves out: transactions (`txn`).

use std::ffi::OsString;

use super::Failure;
use super::connect::{Global, ReadArgs, key, range, standard_input};
use super::output::{Format, json_text, readable};
use crate::api::model::Record;
use crate::client::{ListOptions, Precondition, WriteOptions};
use crate::types::Revision;
use crate::types::limits::PAGE_RECORDS_DEFAULT;

/// Write a value
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate put greeting hello\n  quorate put config/app - < app.json\n  \
                        quorate put leader me --if-absent")]
pub(super) struct Put {
    /// The key, 1 to 4096 bytes
    key: OsString,
    /// The value; '-' or none reads it from standard input
    #[arg(allow_negative_numbers = true)]
    value: Option<OsString>,
    /// Only if the key was last changed by this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "if_absent")]
    if_match: Option<u64>,
    /// Only if there is no such key
    #[arg(long)]
    if_absent: bool,
    /// End only once it is off-site; if that takes longer than --timeout it is done all the same, and the exit code is 3
    #[arg(long)]
    offsite: bool,
}

impl Put {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let key = key(self.key)?;
        let client = global.client()?;
        let value = match self.value {
            Some(value) if value != "-" => value.into_encoded_bytes(),
            _ => standard_input("value")?,
        };
        let precondition = match (self.if_match, self.if_absent) {
            (Some(revision), _) => Precondition::Match(Revision::new(revision)),
            (None, true) => Precondition::Absent,
            (None, false) => Precondition::None,
        };
        let options = WriteOptions { precondition, offsite: self.offsite, timeout: None };
        let reply = client.put(&key, value.into(), options).await?.value;
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&reply)?,
            Format::Text if reply.version == 1 => out.line(&format!("created at revision {}", reply.mod_revision))?,
            Format::Text => {
                out.line(&format!("updated at revision {}, version {}", reply.mod_revision, reply.version))?;
            }
        }
        out.finish()
    }
}

/// Read a value
///
/// As text the value is written as it is, with a line end on a terminal only. A key that does not exist is exit code 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate get greeting\n  quorate get greeting --consistency stale\n  \
                        quorate get greeting --revision 5 --output json")]
pub(super) struct Get {
    /// The key
    key: OsString,
    #[command(flatten)]
    read: ReadArgs,
}

impl Get {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let key = key(self.key)?;
        let options = self.read.options()?;
        let Some(record) = global.client()?.get(&key, options).await?.value else {
            return Err(Failure::refused(format!("there is no key '{}'", readable(key.as_bytes()))));
        };
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&record)?,
            Format::Text => out.raw(record.value.as_deref().unwrap_or_default())?,
        }
        out.finish()
    }
}

/// Delete a key, or all keys of a prefix or range
///
/// A single key that does not exist is exit code 1; a prefix or range without keys is not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate del greeting\n  quorate del --prefix tmp/\n  \
                        quorate del --start a --end b")]
#[command(group = clap::ArgGroup::new("what").args(["key", "prefix", "start"]).required(true))]
pub(super) struct Del {
    /// The key
    key: Option<OsString>,
    /// Every key that begins with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// Every key from here on; needs --end
    #[arg(long, value_name = "KEY", requires = "end")]
    start: Option<OsString>,
    /// Up to, not including, this key
    // Conflicts are said beside what it requires: the parser drops a requirement that conflicts with what was given.
    #[arg(long, value_name = "KEY", requires = "start", conflicts_with_all = ["key", "prefix"])]
    end: Option<OsString>,
    /// Only if the key was last changed by this revision
    #[arg(long, value_name = "REVISION", requires = "key", conflicts_with_all = ["prefix", "start"])]
    if_match: Option<u64>,
    /// End only once it is off-site; if that takes longer than --timeout it is done all the same, and the exit code is 3
    #[arg(long)]
    offsite: bool,
}

impl Del {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let precondition =
            self.if_match.map_or(Precondition::None, |revision| Precondition::Match(Revision::new(revision)));
        let options = WriteOptions { precondition, offsite: self.offsite, timeout: None };
        let reply = match self.key {
            Some(argument) => {
                let key = key(argument)?;
                let reply = client.delete(&key, options).await?.value;
                if reply.deleted == 0 {
                    return Err(Failure::refused(format!("there is no key '{}'", readable(key.as_bytes()))));
                }
                reply
            }
            None => client.delete_range(&range(self.prefix, self.start, self.end)?, options).await?.value,
        };
        let mut out = global.out();
        match out.format {
            Format::Json => out.json(&reply)?,
            Format::Text => out.line(&format!("deleted {} at revision {}", reply.deleted, reply.revision))?,
        }
        out.finish()
    }
}

/// List keys and values in order, all at one revision
///
/// As text one record a line: the key, a tab, the value; bytes that are no text are escaped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate list config/\n  quorate list --keys-only --limit 10\n  \
                        quorate list --start a --end b --desc --output json")]
pub(super) struct List {
    /// Only keys that begin with this
    prefix: Option<OsString>,
    /// Only keys from here on
    #[arg(long, value_name = "KEY", conflicts_with = "prefix")]
    start: Option<OsString>,
    /// Only keys before this
    #[arg(long, value_name = "KEY", conflicts_with = "prefix")]
    end: Option<OsString>,
    /// At most so many records
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// From the last key to the first
    #[arg(long)]
    desc: bool,
    #[command(flatten)]
    read: ReadArgs,
}

impl List {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let options = self.read.options()?;
        let range = range(self.prefix, self.start, self.end)?;
        let client = global.client()?;
        let mut out = global.out();
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut cursor: Option<String> = None;
        let mut first = true;
        loop {
            let page_records = left.min(PAGE_RECORDS_DEFAULT as u64);
            let options = ListOptions {
                read: options,
                page_records: u32::try_from(page_records).ok(),
                keys_only: self.keys_only,
                descending: self.desc,
            };
            let page = client.list_page(&range, cursor.as_deref(), options).await?.value;
            if first && out.format == Format::Json {
                out.text(&format!("{{\"revision\":{},\"count\":{},\"items\":[", page.revision, page.count))?;
            }
            for record in page.items.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                match out.format {
                    Format::Json => {
                        let comma = if first { "\n" } else { ",\n" };
                        out.text(&format!("{comma}{}", json_text(record)?))?;
                    }
                    Format::Text => out.line(&text_line(record))?,
                }
                first = false;
            }
            left = left.saturating_sub(page.items.len() as u64);
            cursor = page.next_cursor.filter(|_| left > 0);
            if cursor.is_none() {
                break;
            }
        }
        if out.format == Format::Json {
            out.line(if first { "]}" } else { "\n]}" })?;
        }
        out.finish()
    }
}

fn text_line(record: &Record) -> String {
    match &record.value {
        Some(value) => format!("{}\t{}", readable(&record.key), readable(value)),
        None => readable(&record.key),
    }
}
