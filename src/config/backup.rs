//! Places for backups: the `[[backup]]` blocks of the file.
//!
//! Guarantees: what is refused is refused with what is allowed; a secret is never shown, wherever it was given. Leaves out:
//! whether a store can be reached: a node starts without it, and says so.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::declared::{self, DECLARE};
use super::values::{Name, Rate, Size, Span};
use super::{ConfigError, Settings, invalid};
use crate::backup::care::Care;
use crate::backup::credentials::Credentials;
use crate::backup::retention::Keep;
use crate::backup::schedule::Schedule;
use crate::backup::seal::Recipients;
use crate::backup::settings::TargetSettings;
use crate::backup::target::{self, Options, Stores};
use crate::backup::verify::Level;
use crate::node::{ArchiveConfig, Declare, OffsiteRule};

/// The most places for backups.
const BACKUPS_MAX: usize = 16;

/// Whole states go there at this time where none is named.
const FULL_DEFAULT: &str = "0 3 * * *";

/// An archive is verified at this time where none is named, so deep, and what is not kept is removed at this one.
const VERIFY_DEFAULT: &str = "0 5 * * *";
const VERIFY_LEVEL_DEFAULT: u8 = 2;
const PRUNE_DEFAULT: &str = "0 4 * * *";

/// The bounds of the time after which what was written goes there, and where none is named.
const FLUSH_INTERVAL_MIN: Duration = Duration::from_millis(100);
const FLUSH_INTERVAL_MAX: Duration = Duration::from_secs(3_600);
const FLUSH_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// The bounds of the size of an object of the log, and where none is named.
const FLUSH_BYTES_MIN: Size = Size(64 * 1024);
const FLUSH_BYTES_MAX: Size = Size::mib(64);
const FLUSH_BYTES_DEFAULT: Size = Size::mib(4);

/// Objects of the log become one within this time where none is named, and at most.
const MERGE_INTERVAL_DEFAULT: Duration = Duration::from_secs(300);
const MERGE_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The least that can be allowed of the line.
const BANDWIDTH_MIN: Rate = Rate(Size(64 * 1024));

/// Where content can be read, a point of it is restored at this time where none is named, to try it; and what means that it is not.
const DRILL_DEFAULT: &str = "0 4 * * 0";
const DRILL_NEVER: &str = "never";

/// Which way data goes. Stands there to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the cluster into the store.
    Out,
}

/// What goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// The log, all the time.
    Log,
    /// Whole states, by a schedule.
    Full,
}

/// Settings of a store, which may be secret.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct StoreOptions(Options);

impl StoreOptions {
    /// Each with its value, which may be secret.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(option, value)| (option.as_str(), value.as_str()))
    }
}

impl From<Options> for StoreOptions {
    fn from(options: Options) -> Self {
        Self(options)
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One block, as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupSettings {
    /// Its name, the same on every node.
    pub name: Name,
    /// Which store.
    pub url: String,
    /// Which way.
    pub direction: Option<Direction>,
    /// What goes there.
    pub data: Option<Vec<Data>>,
    /// When whole states go there.
    pub full: Option<String>,
    /// After which time what was written goes there.
    pub flush_interval: Option<Span>,
    /// How much of it goes there earlier.
    pub flush_bytes: Option<Size>,
    /// Within which time objects of the log become one.
    pub merge_interval: Option<Span>,
    /// Public keys of those who may read.
    pub recipients: Option<Vec<String>>,
    /// Settings of the store.
    pub options: Option<StoreOptions>,
    /// A file with more of them.
    pub credentials_file: Option<PathBuf>,
    /// Settings that stand in variables of the environment, by the name of the variable.
    pub credentials_env: Option<BTreeMap<String, String>>,
    /// What it may take of the line.
    pub bandwidth: Option<Rate>,
    /// Whether it counts for `durability=offsite`.
    pub durable: Option<bool>,
    /// When it is verified.
    pub verify: Option<String>,
    /// How deep, 1 to 4.
    pub verify_level: Option<u8>,
    /// Private keys for that.
    pub identity_file: Option<PathBuf>,
    /// When a point of it is restored, started and read from.
    pub drill: Option<String>,
    /// What is kept.
    pub keep: Option<KeepSettings>,
    /// When the rest is removed.
    pub prune: Option<String>,
}

/// What is kept of an archive, as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepSettings {
    /// Any point of this time can be restored.
    pub window: Option<Span>,
    /// Snapshots of so many hours.
    pub hourly: Option<u32>,
    /// Of so many days.
    pub daily: Option<u32>,
    /// Of so many weeks.
    pub weekly: Option<u32>,
    /// Of so many months.
    pub monthly: Option<u32>,
    /// Nothing younger is removed.
    pub object_lock: Option<Span>,
}

impl KeepSettings {
    fn keep(&self) -> Keep {
        let default = Keep::default();
        Keep {
            window: self.window.map_or(default.window, |span| span.0),
            hourly: self.hourly.unwrap_or(default.hourly),
            daily: self.daily.unwrap_or(default.daily),
            weekly: self.weekly.unwrap_or(default.weekly),
            monthly: self.monthly.unwrap_or(default.monthly),
            object_lock: self.object_lock.map_or(default.object_lock, |span| span.0),
        }
    }
}

/// What is done for an archive beside filling it.
fn care(block: &BackupSettings, encrypted: bool) -> Result<Care, String> {
    let schedule = |key: &str, given: Option<&String>, default: &str| -> Result<Schedule, String> {
        let text = given.map_or(default, String::as_str);
        text.parse().map_err(|error| format!("{key}: {error}"))
    };
    let number = block.verify_level.unwrap_or(VERIFY_LEVEL_DEFAULT);
    let Some(level) = Level::of(number) else {
        return Err(format!(
            "verify_level is {number}; it must be 1 (objects are there), 2 (and the chain is whole), 3 (and \
                            all can be read) or 4 (and a replay gives the state of the cluster)"
        ));
    };
    if level >= Level::Content && encrypted && block.identity_file.is_none() {
        return Err(format!(
            "verify_level is {number}, and what is encrypted can't be read without a private key; give \
                            identity_file, or, better, run 'quorate backup verify --level {number}' on a machine that is no server"
        ));
    }
    if block.prune.is_some() && block.keep.is_none() {
        return Err("prune says when, and nothing says what is kept; add a [backup.keep] table".to_owned());
    }
    Ok(Care {
        verify: schedule("verify", block.verify.as_ref(), VERIFY_DEFAULT)?,
        level,
        identity_file: block.identity_file.clone(),
        keep: block.keep.as_ref().map(KeepSettings::keep),
        prune: schedule("prune", block.prune.as_ref(), PRUNE_DEFAULT)?,
    })
}

/// Checks all that is said of backups.
pub(super) fn archive(settings: &Settings) -> Result<ArchiveConfig, ConfigError> {
    let blocks = settings.backup.as_deref().unwrap_or_default();
    if blocks.len() > BACKUPS_MAX {
        return invalid(format!("{} [[backup]] blocks are given; {BACKUPS_MAX} are the most", blocks.len()));
    }
    let mut places: Vec<TargetSettings> = Vec::new();
    for block in blocks {
        let place = place(block, Lookup::Now)?;
        let same = |other: &&TargetSettings| other.name == place.name || same_url(&other.url, &place.url);
        if let Some(other) = places.iter().find(same) {
            return invalid(format!(
                "[[backup]] {} and {} have the same name or url; give each its own",
                other.name, place.name
            ));
        }
        places.push(place);
    }
    let allow = declared::allowed(settings.backup_declare_allow.as_deref().unwrap_or_default());
    let allow = allow.map_err(|error| ConfigError::Invalid(format!("backup_declare_allow: {error}")))?;
    let declare = Declare { allow, ..DECLARE };
    Ok(ArchiveConfig { offsite: offsite(settings, &places)?, places, declare, stores: Stores::ByUrl })
}

/// Whether two URLs mean the same store, as nodes compare them.
fn same_url(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

fn offsite(settings: &Settings, places: &[TargetSettings]) -> Result<OffsiteRule, ConfigError> {
    let min_copies = settings.offsite_min_copies.unwrap_or(1);
    let prefixes: Vec<Bytes> =
        settings.offsite_prefixes.iter().flatten().map(|prefix| Bytes::copy_from_slice(prefix.as_bytes())).collect();
    if !(1..=BACKUPS_MAX).contains(&min_copies) {
        return invalid(format!("offsite_min_copies is {min_copies}; it must be 1 to {BACKUPS_MAX}"));
    }
    let durable = places.iter().filter(|place| place.durable && place.log).count();
    if (settings.offsite_min_copies.is_some() || !prefixes.is_empty()) && durable < min_copies {
        return invalid(format!(
            "offsite_min_copies is {min_copies}, but {durable} [[backup]] blocks count for it: those with data \"log\" and \
             durable = true; add blocks, or ask for fewer copies"
        ));
    }
    Ok(OffsiteRule { min_copies, prefixes })
}

/// When a point of the archive is restored to try it, if it is on this node.
fn drill(block: &BackupSettings, encrypted: bool) -> Result<Option<Schedule>, String> {
    let readable = !encrypted || block.identity_file.is_some();
    match block.drill.as_deref() {
        Some(DRILL_NEVER) => Ok(None),
        None if !readable => Ok(None),
        Some(_) if !readable => Err("drill is given, and what is encrypted can't be restored without a private key; give \
            identity_file, or, better, run 'quorate backup drill --every 7d' where the key is, on a machine that is no server"
            .to_owned()),
        given => {
            let text = given.unwrap_or(DRILL_DEFAULT);
            let schedule = text.parse().map_err(|error| format!("drill: {error}, or \"{DRILL_NEVER}\""))?;
            Ok(Some(schedule))
        }
    }
}

/// When credentials that are referred to are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Now: what is missing is told at the start.
    Now,
    /// When the store is set up.
    Later,
}

/// What the credentials of a block are, looked up or as references.
fn looked_up(block: &BackupSettings, lookup: Lookup) -> Result<(Options, Credentials), String> {
    let variables = block.credentials_env.clone().unwrap_or_default();
    for (option, variable) in &variables {
        Credentials::check_pair(option, variable).map_err(|error| format!("credentials_env: {error}"))?;
    }
    let credentials = Credentials { file: block.credentials_file.clone(), variables };
    let mut options = block.options.clone().unwrap_or_default().0;
    if lookup == Lookup::Later {
        return Ok((options, credentials));
    }
    options.extend(credentials.resolve()?);
    Ok((options, credentials))
}

pub(super) fn place(block: &BackupSettings, lookup: Lookup) -> Result<TargetSettings, ConfigError> {
    let name = &block.name;
    let wrong = |what: String| ConfigError::Invalid(format!("[[backup]] {name}: {what}"));
    let data = block.data.as_deref().unwrap_or(&[Data::Log, Data::Full]);
    if !data.contains(&Data::Full) {
        let what = "data must hold \"full\", with or without \"log\": the log alone can't be restored from";
        return Err(wrong(what.to_owned()));
    }
    target::check(&block.url).map_err(|error| wrong(error.to_string()))?;
    let full = block.full.as_deref().unwrap_or(FULL_DEFAULT);
    let full: Schedule = full.parse().map_err(|error| wrong(format!("full: {error}")))?;
    let span = |key: &str, given: Option<Span>, default, least: Duration, most: Duration| {
        let span = given.map_or(default, |span| span.0);
        match span >= least && span <= most {
            true => Ok(span),
            false => Err(wrong(format!("{key} is {}; it must be {} to {}", Span(span), Span(least), Span(most)))),
        }
    };
    let merge_interval = match block.merge_interval {
        Some(Span(Duration::ZERO)) => Duration::ZERO,
        given => {
            let least = 2 * FLUSH_INTERVAL_MIN;
            span("merge_interval", given, MERGE_INTERVAL_DEFAULT, least, MERGE_INTERVAL_MAX)?
        }
    };
    let flush_bytes = block.flush_bytes.unwrap_or(FLUSH_BYTES_DEFAULT);
    if flush_bytes < FLUSH_BYTES_MIN || flush_bytes > FLUSH_BYTES_MAX {
        return Err(wrong(format!("flush_bytes is {flush_bytes}; it must be {FLUSH_BYTES_MIN} to {FLUSH_BYTES_MAX}")));
    }
    if let Some(rate) = block.bandwidth.filter(|rate| *rate < BANDWIDTH_MIN) {
        return Err(wrong(format!(
            "bandwidth is {rate}; it must be at least {BANDWIDTH_MIN}; leave it out for no limit"
        )));
    }
    let recipients = Recipients::parse(block.recipients.as_deref().unwrap_or_default());
    let (options, credentials) = looked_up(block, lookup).map_err(wrong)?;
    let (least, most) = (FLUSH_INTERVAL_MIN, FLUSH_INTERVAL_MAX);
    let recipients = recipients.map_err(|error| wrong(format!("recipients: {error}")))?;
    Ok(TargetSettings {
        name: name.to_string(),
        url: block.url.clone(),
        options,
        credentials,
        care: care(block, !recipients.is_empty()).map_err(wrong)?,
        drill: drill(block, !recipients.is_empty()).map_err(wrong)?,
        recipients,
        log: data.contains(&Data::Log),
        full,
        flush_interval: span("flush_interval", block.flush_interval, FLUSH_INTERVAL_DEFAULT, least, most)?,
        flush_bytes: flush_bytes.0,
        merge_interval,
        bandwidth: block.bandwidth.map(|rate| rate.0.0),
        durable: block.durable.unwrap_or(true) && data.contains(&Data::Log),
    })
}
