//! The options every command has, and what follows from them.
//!
//! Guarantees: they may stand before or behind the name of the command. Leaves out: reading the environment; the parser
//! does that.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use super::output::Format;
use super::{Failure, Output};
use crate::client::{Client, Consistency, ENDPOINT_DEFAULT, ReadOptions};
use crate::config::Span;
use crate::types::{Key, KeyRange, Revision};

/// The most bytes that are read from standard input or a file.
const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where to turn to, how long to wait, and how to answer.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Nodes to talk to, any of them, tried in turn
    #[arg(long, global = true, env = "QUORATE_ENDPOINT", value_name = "URL[,URL]", value_delimiter = ',')]
    #[arg(default_value = ENDPOINT_DEFAULT, hide_env_values = true)]
    pub(super) endpoint: Vec<String>,
    /// How results are written to standard output
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    pub(super) output: Format,
    /// How long a request may take with all its retries
    #[arg(long, global = true, env = "QUORATE_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    #[arg(hide_env_values = true)]
    pub(super) timeout: Span,
}

impl Global {
    /// A client of the endpoints.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        self.client_of(self.endpoint.iter().cloned())
    }

    /// A client of just these endpoints.
    fn client_of(&self, endpoints: impl IntoIterator<Item = String>) -> Result<Client, Failure> {
        if self.timeout.0.is_zero() {
            return Err(Failure::usage("--timeout is 0s; it must be longer"));
        }
        Ok(Client::builder().endpoints(endpoints).timeout(self.timeout.0).build()?)
    }

    /// A client of one endpoint that is not among those given for all commands.
    pub(super) fn client_at(&self, endpoint: &str) -> Result<Client, Failure> {
        self.client_of([endpoint.to_owned()])
    }

    /// A client of one endpoint that tries once: for a look at a node that may be down.
    pub(super) fn client_once(&self, endpoint: &str) -> Result<Client, Failure> {
        Ok(Client::builder().endpoints([endpoint]).timeout(self.timeout.0).attempts_max(1).build()?)
    }

    pub(super) fn out(&self) -> Output {
        Output::new(self.output)
    }
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ConsistencyName {
    /// Sees every write acknowledged before
    Linearizable,
    /// Proven to be no older than --max-staleness
    Bounded,
    /// Whatever the node has
    Stale,
}

/// What reads can ask for.
#[derive(Debug, clap::Args)]
pub(super) struct ReadArgs {
    /// How fresh the answer must be
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = ConsistencyName::Linearizable)]
    consistency: ConsistencyName,
    /// With --consistency bounded: how old the answer may be
    #[arg(long, value_name = "DURATION")]
    max_staleness: Option<Span>,
    /// Wait until this revision is there (read your writes)
    #[arg(long, value_name = "REVISION")]
    min_revision: Option<u64>,
    /// Read the store as it was at this revision
    #[arg(long, value_name = "REVISION")]
    revision: Option<u64>,
}

impl ReadArgs {
    pub(super) fn options(&self) -> Result<ReadOptions, Failure> {
        let consistency = match (self.consistency, self.max_staleness) {
            (ConsistencyName::Bounded, Some(bound)) => Consistency::Bounded { max_staleness: bound.0 },
            (ConsistencyName::Bounded, None) => {
                return Err(Failure::usage("--consistency bounded needs --max-staleness, like --max-staleness 2s"));
            }
            (_, Some(_)) => return Err(Failure::usage("--max-staleness goes with --consistency bounded only")),
            (ConsistencyName::Linearizable, None) => Consistency::Linearizable,
            (ConsistencyName::Stale, None) => Consistency::Stale,
        };
        Ok(ReadOptions {
            consistency,
            min_revision: self.min_revision.map(Revision::new),
            revision: self.revision.map(Revision::new),
            timeout: None,
        })
    }
}

/// A key as it was typed, byte by byte.
pub(super) fn key(argument: OsString) -> Result<Key, Failure> {
    Key::new(argument.into_encoded_bytes()).map_err(|error| Failure::usage(error.to_string()))
}

/// The range of a prefix, or between two bounds; every key if nothing is given.
pub(super) fn range(
    prefix: Option<OsString>,
    start: Option<OsString>,
    end: Option<OsString>,
) -> Result<KeyRange, Failure> {
    let range = match (prefix, start, end) {
        (Some(prefix), None, None) => KeyRange::prefix(prefix.into_encoded_bytes()),
        (None, start, end) => {
            let end = end.map(|end| end.into_encoded_bytes().into());
            KeyRange::new(start.unwrap_or_default().into_encoded_bytes(), end)
        }
        _ => return Err(Failure::usage("give a prefix, or --start and --end, not both")),
    };
    range.map_err(|error| Failure::usage(error.to_string()))
}

/// All of standard input.
pub(super) fn standard_input(what: &str) -> Result<Vec<u8>, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(Failure::usage(format!("no {what} is given; give it, or feed it to standard input")));
    }
    bounded("standard input", input.lock())
}

/// All of a file; `-` is standard input.
pub(super) fn file_or_standard_input(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    if path.as_os_str() == "-" {
        return standard_input(what);
    }
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| Failure::usage(format!("can't read {name}: {error}")))?;
    bounded(&name, file)
}

fn bounded(name: &str, input: impl std::io::Read) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::usage(format!("can't read {name}: {error}")))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::usage(format!("{name} has more than {INPUT_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}
