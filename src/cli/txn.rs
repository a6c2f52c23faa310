//! `txn`: a transaction out of a file.
//!
//! Guarantees: a file that is no transaction is refused before anything is sent. Leaves out: limits; the cluster has them.

use std::path::{Path, PathBuf};

use super::Failure;
use super::connect::{Global, file_or_standard_input};
use super::output::{Format, readable};
use crate::api::model::{TxnOpReply, TxnRequest};
use crate::client::WriteOptions;

/// Carry out a transaction
///
/// The file holds the JSON of POST /v1/txn. Whichever branch was taken, the exit code is 0; the output says which.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  echo '{\"compare\":[{\"key\":\"a\",\"target\":\"version\",\"op\":\"==\",\"value\":0}],\n    \
                        \"success\":[{\"put\":{\"key\":\"a\",\"value\":\"1\"}}],\n    \
                        \"failure\":[{\"get\":{\"key\":\"a\"}}]}' | quorate txn -"
)]
pub(super) struct TxnFile {
    /// The file; '-' is standard input
    file: PathBuf,
    /// End only once it is off-site; if that takes longer than --timeout it is done all the same, and the exit code is 3
    #[arg(long)]
    offsite: bool,
}

impl TxnFile {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let text = file_or_standard_input(&self.file, "transaction")?;
        let request: TxnRequest = serde_json::from_slice(&text)
            .map_err(|error| Failure::usage(format!("{} is no transaction: {error}", name_of(&self.file))))?;
        let reply =
            client.txn(&request, WriteOptions { offsite: self.offsite, ..WriteOptions::default() }).await?.value;
        let mut out = global.out();
        if out.format == Format::Json {
            out.json(&reply)?;
            return out.finish();
        }
        let branch = if reply.succeeded { "succeeded" } else { "failed" };
        out.line(&format!("{branch} at revision {}", reply.revision))?;
        for response in &reply.responses {
            match response {
                TxnOpReply::Put(put) => out.line(&format!("put {} version {}", readable(&put.key), put.version))?,
                TxnOpReply::Delete(deleted) => out.line(&format!("deleted {}", deleted.deleted))?,
                TxnOpReply::Get(got) => {
                    out.line(&format!("got {}", got.count))?;
                    for record in &got.items {
                        let value = record.value.as_deref().unwrap_or_default();
                        out.line(&format!("  {}\t{}", readable(&record.key), readable(value)))?;
                    }
                }
            }
        }
        out.finish()
    }
}

fn name_of(file: &Path) -> String {
    if file.as_os_str() == "-" { "standard input".to_owned() } else { file.display().to_string() }
}
