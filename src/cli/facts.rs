//! Names with values, lined up for people or as one object for programs; and times and sizes as people read them.
//!
//! Guarantees: the same names in both forms; times are RFC 3339 in UTC. Leaves out: tables (`output`).

use serde_json::{Map, Value};

use super::Failure;
use super::connect::Global;
use super::output::Format;
use crate::backup::plan::rfc3339;
use crate::types::WallTime;

/// A name and what stands there.
pub(super) type Fact = (&'static str, Value);

/// As one object.
pub(super) fn object(facts: impl IntoIterator<Item = Fact>) -> Map<String, Value> {
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// As lines, lined up. `plain` writes what is no number and no text.
pub(super) fn lines(facts: &[Fact], plain: impl Fn(&Value) -> String) -> String {
    let width = facts.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    let line = |(name, value): &Fact| {
        let value = match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => plain(other),
        };
        format!("{:<width$}  {value}\n", format!("{name}:"))
    };
    facts.iter().map(line).collect()
}

/// Tells facts, and that is all.
pub(super) fn tell(global: &Global, facts: Vec<Fact>) -> Result<(), Failure> {
    let mut out = global.out();
    match out.format {
        Format::Json => out.json(&object(facts))?,
        Format::Text => out.text(&lines(&facts, Value::to_string))?,
    }
    out.finish()
}

/// A time for people.
pub(super) fn time(at: WallTime) -> String {
    rfc3339(at)
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}
