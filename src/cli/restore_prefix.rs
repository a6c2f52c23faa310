//! `restore --prefix … --into …`: one subtree out of an archive, into a cluster that runs, as one transaction.
//!
//! Guarantees: all of it at one revision, or nothing; keys that are there already are refused or, with `--replace`, replaced;
//! what was there stays in history. Leaves out: subtrees beyond the limits of a transaction, which are refused with the
//! numbers; leases of keys, and their revisions of old, which mean nothing in another history.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::Failure;
use super::connect::Global;
use super::facts::{self, size};
use super::restore::{ask, fetch, restore_failure};
use crate::api::model::{Compare, CompareOperator, CompareTarget, Selector, TxnDelete, TxnOp, TxnPut, TxnRequest};
use crate::backup::plan::Plan;
use crate::backup::rebuild::Reached;
use crate::backup::repository::Repository;
use crate::backup::seal::Identities;
use crate::client::{Client, ListOptions, WriteOptions};
use crate::node;
use crate::state::{RangeRead, Record};
use crate::storage::Order;
use crate::types::KeyRange;
use crate::types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX};

/// Keys in one transaction: beside their puts there is one delete.
const KEYS_MAX: usize = TXN_OPERATIONS_MAX - 1;

/// A part of the data, into a cluster that runs.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PrefixArgs {
    /// Bring the keys with this prefix into a running cluster, as one transaction, instead of making a new one
    #[arg(long, value_name = "PREFIX", requires = "into", conflicts_with_all = ["data_dir", "name", "peer_addr", "client_url", "bump_revision"])]
    prefix: Option<OsString>,
    /// With --prefix: a node of that cluster
    #[arg(long, value_name = "URL", requires = "prefix")]
    into: Option<String>,
    /// With --prefix: replace all keys with the prefix that are there; otherwise any is a reason to refuse
    #[arg(long, requires = "prefix")]
    replace: bool,
    /// With --prefix: where what is read lies meanwhile; the system's temporary directory if not given
    #[arg(long, value_name = "DIR", requires = "prefix")]
    scratch: Option<PathBuf>,
}

/// How often the removal of a folder is tried in which somebody may still be writing.
const REMOVALS_MAX: usize = 200;

/// The pause between two tries, and so often in a row the folder has to be gone.
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);
const ABSENT_ENOUGH: u32 = 3;

/// A folder that is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread of a command that was interrupted may add files while they are removed, and make folders anew behind that.
        let mut absent = 0;
        for _ in 0..REMOVALS_MAX {
            match std::fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => absent += 1,
                Ok(()) | Err(_) => absent = 0,
            }
            if absent == ABSENT_ENOUGH {
                break;
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
    }
}

/// Makes a folder to work in.
pub(super) fn scratch(place: Option<&PathBuf>) -> Result<Scratch, Failure> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("quorate-restore-");
    let made = match place {
        Some(place) => builder.tempdir_in(place),
        None => builder.tempdir(),
    };
    made.map(Scratch).map_err(|error| {
        Failure::usage(format!("can't make a folder to work in: {error}; name another with --scratch"))
    })
}

impl PrefixArgs {
    /// Whether it is asked for.
    pub(super) fn is_given(&self) -> bool {
        self.prefix.is_some()
    }

    pub(super) async fn run(
        self,
        global: &Global,
        repository: &Repository,
        plan: &Plan,
        identities: &Identities,
        asks: bool,
    ) -> Result<(), Failure> {
        let prefix = self.prefix.unwrap_or_default().into_encoded_bytes();
        let into = self.into.unwrap_or_default();
        let range = KeyRange::prefix(prefix.clone()).map_err(|error| Failure::usage(error.to_string()))?;
        let client = global.client_at(&into)?;
        let there = there(&client, &range).await?;
        if there > 0 && !self.replace {
            return Err(Failure::refused(format!(
                "{into} has {there} keys with this prefix; give --replace to have them replaced"
            )));
        }
        let folder = scratch(self.scratch.as_ref())?;
        let staged = fetch(repository, plan, identities, &folder.path().join("stage")).await?;
        let (target, workshop, wanted) = (plan.target, folder.path().join("state"), range.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let (machine, reached) = node::state_at(&staged, target, &workshop, |_| {})?;
            let read = RangeRead {
                range: wanted,
                order: Order::Ascending,
                limit: KEYS_MAX + 1,
                bytes_max: TXN_BYTES_MAX,
                keys_only: false,
            };
            Ok((machine.reader().view().range(&read)?, reached))
        });
        let read = reading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (page, reached) = read.map_err(restore_failure)?;
        let bytes = page.records.iter().map(|record| record.key.as_bytes().len() + record.value.len()).sum::<usize>();
        if page.more || page.records.len() > KEYS_MAX || bytes + prefix.len() > TXN_BYTES_MAX {
            return Err(Failure::usage(format!(
                "the archive has more keys with this prefix than one transaction takes: {KEYS_MAX} keys and {} are the most; \
                 restore longer prefixes, one after the other, or a whole cluster beside the running one to copy from",
                size(TXN_BYTES_MAX as u64)
            )));
        }
        if page.records.is_empty() {
            return Err(Failure::refused(format!(
                "cluster {} had no key with this prefix at revision {}; nothing was changed",
                plan.cluster, reached.revision
            )));
        }
        if asks {
            ask(&format!(
                "{} keys with {} from revision {} of cluster {} are written into {into}; {there} that are there are replaced.",
                page.records.len(),
                size(bytes as u64),
                reached.revision,
                plan.cluster
            ))
            .await?;
        }
        let request = transaction(&prefix, page.records, self.replace);
        write(global, &client, &request, there, &reached).await
    }
}

/// How many keys a range has now.
async fn there(client: &Client, range: &KeyRange) -> Result<u64, Failure> {
    let options = ListOptions { page_records: Some(1), keys_only: true, ..ListOptions::default() };
    Ok(client.list_page(range, None, options).await?.value.count)
}

async fn write(
    global: &Global,
    client: &Client,
    request: &TxnRequest,
    there: u64,
    reached: &Reached,
) -> Result<(), Failure> {
    let keys = request.success.iter().filter(|op| matches!(op, TxnOp::Put(_))).count();
    let answer = client.txn(request, WriteOptions::default()).await?.value;
    if !answer.succeeded {
        return Err(Failure::refused("a key with this prefix was made meanwhile; nothing was changed. Run it again"));
    }
    let facts = vec![
        ("keys", json!(keys)),
        ("replaced", json!(there)),
        ("from_revision", json!(reached.revision.get())),
        ("from_index", json!(reached.position.index.get())),
        ("revision", json!(answer.revision)),
    ];
    facts::tell(global, facts)
}

/// All puts, behind a delete of what is there or on the condition that none of the keys is.
///
/// Comparisons are of single keys, so without `replace` a key that was made since the subtree was found empty is only seen
/// if the archive has it, too; another one stays beside what is restored.
fn transaction(prefix: &[u8], records: Vec<Record>, replace: bool) -> TxnRequest {
    let absent = |record: &Record| Compare {
        key: record.key.as_bytes().clone(),
        target: CompareTarget::Version(0),
        op: CompareOperator::Equal,
    };
    let compare = if replace { Vec::new() } else { records.iter().map(absent).collect() };
    let delete = TxnOp::Delete(TxnDelete { selector: Selector::Prefix(prefix.to_vec().into()) });
    let put = |record: Record| TxnOp::Put(TxnPut { key: record.key.into_bytes(), value: record.value, lease: 0 });
    let success = replace.then_some(delete).into_iter().chain(records.into_iter().map(put)).collect();
    TxnRequest { compare, success, failure: Vec::new() }
}
