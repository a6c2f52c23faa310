//! Log matching: entries with one position are the same everywhere, and so is all before them.
//!
//! Guarantees: exact for entries whose predecessor was not purged when they were written. Leaves out: nothing else.

use std::collections::BTreeMap;

use quorate::raft::types::{Entry, Payload};
use quorate::types::LogPosition;

use super::Violation;

/// Every entry that was ever written, with the position before it.
#[derive(Default)]
pub(super) struct LogMatching(BTreeMap<LogPosition, (Option<LogPosition>, Payload)>);

impl LogMatching {
    pub(super) fn appended(&mut self, before: Option<LogPosition>, entry: &Entry) -> Result<(), Violation> {
        let position = LogPosition::from(entry.log_id);
        let Some((known_before, payload)) = self.0.get(&position) else {
            self.0.insert(position, (before, entry.payload.clone()));
            return Ok(());
        };
        if *payload != entry.payload {
            return Err(Violation::new("log matching", format!("two different entries at {position}")));
        }
        if *known_before != before {
            let what = format!("{position} stands behind {known_before:?} and behind {before:?}");
            return Err(Violation::new("log matching", what));
        }
        Ok(())
    }
}
