//! `backup add`, `set` and `remove`: places for backups that the cluster keeps, beside those in the nodes' configuration.
//!
//! Guarantees: a secret that is given by mistake is refused before it is kept anywhere; `--dry-run` changes nothing in the
//! cluster. Leaves out: what each setting means (docs/operations.md), and archives themselves.

#![allow(rustdoc::broken_intra_doc_links, reason = "help texts write [[backup]] as it stands in a file")]

use serde_json::{Map, Number, Value};

use crate::api::model::{BackupChangeReply, StoreInfo};
use crate::cli::Failure;
use crate::cli::connect::Global;
use crate::cli::output::Format;
use crate::client::BackupChangeOptions;

/// Settings whose values are texts, whatever they look like.
const TEXTS: [&str; 2] = ["options", "credentials_env"];

/// Settings that are lists.
const LISTS: [&str; 2] = ["data", "recipients"];

/// Have the cluster archive to a place, without a restart
///
/// The same as a [[backup]] block in the configuration of every node, kept by the cluster itself. The node that is asked tries
/// the store first. Credentials are not given but referred to: each node has them in its environment (AWS_…), in the file that
/// credentials_file names, in variables that credentials_env.NAME=VARIABLE names, or by an instance role. A
/// reference, a role and another host are taken only where every node's own configuration allows the very same setting, such as
/// backup_declare_allow = ["credentials_file=/etc/quorate/key.json"].
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    quorate backup add main s3://bucket/prefix --recipient age1… options.aws_region=eu-central-1 full='0 3 * * *'\n  \
    quorate backup add usb file:///mnt/usb/quorate keep.window=30d --dry-run")]
pub(in crate::cli) struct Add {
    /// Name of the place
    #[arg(value_name = "NAME")]
    name: String,
    /// The repository: s3://, az://, gs://, file:///; an empty place becomes one
    #[arg(value_name = "URL")]
    url: String,
    /// Further settings, as in a [[backup]] block; keep.window=7d and options.aws_region=… for what stands in a table
    #[arg(value_name = "SETTING=VALUE")]
    settings: Vec<String>,
    /// Encrypt to this public key (age1…); may be given several times
    #[arg(long, value_name = "KEY")]
    recipient: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// Change a place that was added, or go on archiving there after a restore
///
/// What is given replaces what is there; SETTING= brings the default back. In a cluster that was restored from a backup no node
/// archives to the places of the old one; this, also without any setting, has them do so, in a folder of the new cluster.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  quorate backup set main full='0 4 * * *' bandwidth=20MiB/s\n  quorate backup set main"
)]
pub(in crate::cli) struct Set {
    /// Name of the place
    #[arg(value_name = "NAME")]
    name: String,
    /// Settings, as in a [[backup]] block
    #[arg(value_name = "SETTING=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// Have the cluster forget a place that was added; what is archived there stays
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate backup remove main")]
pub(in crate::cli) struct Remove {
    /// Name of the place
    #[arg(value_name = "NAME")]
    name: String,
    /// Also where a member does not answer
    #[arg(long)]
    force: bool,
}

/// How a change is made.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(in crate::cli) struct How {
    /// Only try the store, and tell
    #[arg(long)]
    dry_run: bool,
    /// Also where the store can't be used at present, or a member does not answer
    #[arg(long)]
    force: bool,
}

impl From<How> for BackupChangeOptions {
    fn from(How { dry_run, force }: How) -> Self {
        Self { dry_run, force }
    }
}

impl Add {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut block = object(&self.settings, false)?;
        if !self.recipient.is_empty() {
            block.insert("recipients".into(), self.recipient.iter().cloned().map(Value::String).collect());
        }
        block.insert("name".into(), Value::String(self.name));
        block.insert("url".into(), Value::String(self.url));
        tell(global, &global.client()?.add_backup(&block, self.how.into()).await?.value)
    }
}

impl Set {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let patch = object(&self.settings, true)?;
        tell(global, &global.client()?.update_backup(&self.name, &patch, self.how.into()).await?.value)
    }
}

impl Remove {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        tell(global, &global.client()?.remove_backup(&self.name, self.force).await?.value)
    }
}

/// What `SETTING=VALUE`s amount to; `may_clear` allows a setting without a value.
fn object(settings: &[String], may_clear: bool) -> Result<Map<String, Value>, Failure> {
    let mut object = Map::new();
    for setting in settings {
        let usage = |what: &str| Failure::usage(format!("{what}; it must be SETTING=VALUE, like full='0 3 * * *'"));
        let (path, text) = setting.split_once('=').ok_or_else(|| usage(&format!("'{setting}' has no '='")))?;
        if text.is_empty() && !may_clear {
            return Err(usage(&format!("{path} has no value")));
        }
        let value = if text.is_empty() { Value::Null } else { value(path, text) };
        match path.split_once('.') {
            None if path.is_empty() => return Err(usage(&format!("'{setting}' names no setting"))),
            None => {
                object.insert(path.to_owned(), value);
            }
            Some((table, name)) => {
                let inner = object.entry(table).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(inner) = inner else {
                    return Err(usage(&format!("{table} is given as a value and as a table")));
                };
                inner.insert(name.to_owned(), value);
            }
        }
    }
    Ok(object)
}

/// A value as the setting has it.
fn value(path: &str, text: &str) -> Value {
    let text_of = |text: &str| Value::String(text.to_owned());
    if LISTS.contains(&path) {
        return text.split(',').map(|item| text_of(item.trim())).collect();
    }
    if path.split_once('.').is_some_and(|(table, _)| TEXTS.contains(&table)) {
        return text_of(text);
    }
    match (text, text.parse::<u64>()) {
        ("true", _) => Value::Bool(true),
        ("false", _) => Value::Bool(false),
        (_, Ok(number)) => Value::Number(Number::from(number)),
        _ => text_of(text),
    }
}

/// What was found of a store.
fn found(store: &StoreInfo) -> String {
    if store.made {
        "the store can be used; it was empty, and is a repository now".to_owned()
    } else if store.clusters.is_empty() {
        "the store can be used".to_owned()
    } else {
        format!("the store can be used; it has archives of: {}", store.clusters.join(", "))
    }
}

fn tell(global: &Global, changed: &BackupChangeReply) -> Result<(), Failure> {
    let mut out = global.out();
    match out.format {
        Format::Json => out.json(changed)?,
        Format::Text => {
            let name = &changed.name;
            if let Some(store) = &changed.store {
                out.line(&found(store))?;
            }
            for warning in &changed.warnings {
                out.line(&format!("warning: {warning}"))?;
            }
            out.line(&match (changed.dry_run, changed.declared.is_some()) {
                (true, _) => format!("{name} was not changed: this was a dry run"),
                (false, true) => format!("{name} is declared; 'quorate backup status' tells how it stands"),
                (false, false) => format!("{name} is forgotten; what is archived there stays"),
            })?;
        }
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_become_the_block_that_they_stand_for() {
        let settings = [
            "full=0 3 * * *",
            "flush_bytes=1048576",
            "durable=false",
            "verify_level=2",
            "recipients=age1a, age1b",
            "keep.window=7d",
            "keep.daily=3",
            "options.aws_region=7",
        ];
        let expected = json!({
            "full": "0 3 * * *", "flush_bytes": 1_048_576, "durable": false, "verify_level": 2,
            "recipients": ["age1a", "age1b"], "keep": {"window": "7d", "daily": 3}, "options": {"aws_region": "7"},
        });
        assert_eq!(Value::Object(object(&settings.map(str::to_owned), false).unwrap()), expected);
        let cleared = object(&["bandwidth=".to_owned(), "keep.daily=".to_owned()], true).unwrap();
        assert_eq!(Value::Object(cleared), json!({"bandwidth": null, "keep": {"daily": null}}));
    }

    #[test]
    fn what_is_no_setting_is_refused_with_what_one_is() {
        for bad in [&["full"][..], &["=x"], &["full="], &["keep=1", "keep.daily=3"]] {
            let bad: Vec<String> = bad.iter().map(|text| (*text).to_owned()).collect();
            let error = object(&bad, false).unwrap_err();
            assert!(error.to_string().contains("SETTING=VALUE"), "{error}");
        }
    }
}
