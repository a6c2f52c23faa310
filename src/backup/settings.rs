//! What an operator says about one place for backups.
//!
//! Guarantees: the values are within their bounds and secrets don't show when they are printed. Leaves out: where they
//! come from (`config`).

use std::fmt;
use std::time::Duration;

use super::care::Care;
use super::credentials::Credentials;
use super::schedule::Schedule;
use super::seal::Recipients;
use super::target::Options;

/// One place for backups, and what goes there when.
#[derive(Clone)]
pub struct TargetSettings {
    /// Its name; the same on every node.
    pub name: String,
    /// Which store.
    pub url: String,
    /// Settings of the store, credentials among them.
    pub options: Options,
    /// Where more of them are to be found when the store is set up.
    pub credentials: Credentials,
    /// To whom objects are encrypted; nobody means plaintext.
    pub recipients: Recipients,
    /// Whether the log goes there.
    pub log: bool,
    /// When whole states go there.
    pub full: Schedule,
    /// What was written goes there after this time at the latest.
    pub flush_interval: Duration,
    /// It goes there earlier once there is so much of it, in bytes. An object holds about as much at most.
    pub flush_bytes: u64,
    /// Objects of the log that are younger than this together become one; zero: never.
    pub merge_interval: Duration,
    /// What everything but the newest entries may take of the line, in bytes a second; `None`: all.
    pub bandwidth: Option<u64>,
    /// Whether what is there counts for writes that ask for it.
    pub durable: bool,
    /// What is done for it beside filling it.
    pub care: Care,
    /// When a point of it is restored, started and read from by the node that archives; `None`: that is left to others.
    pub drill: Option<Schedule>,
}

impl fmt::Debug for TargetSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<&String> = self.options.keys().collect();
        f.debug_struct("TargetSettings")
            .field("name", &self.name)
            .field("url", &self.url)
            .field("options", &options)
            .field("credentials", &self.credentials)
            .field("recipients", &self.recipients)
            .field("log", &self.log)
            .field("full", &self.full)
            .field("flush_interval", &self.flush_interval)
            .field("flush_bytes", &self.flush_bytes)
            .field("merge_interval", &self.merge_interval)
            .field("bandwidth", &self.bandwidth)
            .field("durable", &self.durable)
            .field("care", &self.care)
            .field("drill", &self.drill)
            .finish()
    }
}

impl PartialEq for TargetSettings {
    fn eq(&self, other: &Self) -> bool {
        let plain = |one: &Self| {
            let times = (one.flush_interval, one.merge_interval);
            (one.log, one.flush_bytes, one.bandwidth, one.durable, times, one.recipients.names())
        };
        (&self.name, &self.url, &self.options, &self.full) == (&other.name, &other.url, &other.options, &other.full)
            && (&self.care, &self.drill, &self.credentials) == (&other.care, &other.drill, &other.credentials)
            && plain(self) == plain(other)
    }
}

impl Eq for TargetSettings {}

#[cfg(test)]
impl TargetSettings {
    /// A place "main" of the memory of a test, with the log, a whole state each night and nothing that comes by itself
    /// otherwise; the log goes there a second later at the latest.
    pub(crate) fn sample() -> Self {
        Self {
            name: "main".into(),
            url: "memory:".into(),
            options: Options::new(),
            credentials: Credentials::default(),
            recipients: Recipients::default(),
            log: true,
            full: "0 3 * * *".parse().unwrap(),
            flush_interval: Duration::from_secs(1),
            flush_bytes: 2_000,
            merge_interval: Duration::ZERO,
            bandwidth: None,
            durable: true,
            care: Care {
                verify: "0 5 * * *".parse().unwrap(),
                level: super::verify::Level::Chain,
                identity_file: None,
                keep: None,
                prune: "0 4 * * *".parse().unwrap(),
            },
            drill: None,
        }
    }
}
