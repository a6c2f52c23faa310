//! When something is due: patterns as cron reads them, in UTC.
//!
//! Guarantees: a [`Schedule`] that exists comes again and again; a pattern that never comes (the 30th of February) is
//! refused when it is read, not waited for. Leaves out: what is due then.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::types::WallTime;

/// A time at which patterns are tried out: the epoch.
const TRIED_FROM: WallTime = WallTime::ZERO;

/// A pattern of five fields: minute, hour, day of the month, month, day of the week.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
}

/// Why a pattern is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// Not a pattern.
    #[error(
        "'{text}' is no schedule ({why}); it must be five fields as cron has them, such as \"0 3 * * *\" for three \
         o'clock each night, in UTC"
    )]
    Malformed {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// No day is like that.
    #[error("the schedule '{0}' never comes: no day is like that; it must be one such as \"0 3 * * *\"")]
    Never(String),
}

impl Schedule {
    /// The first time behind `after` at which it comes. Nothing only at the end of the calendar.
    #[must_use]
    pub fn next_after(&self, after: WallTime) -> Option<WallTime> {
        let from = DateTime::<Utc>::from_timestamp_millis(i64::try_from(after.get()).ok()?)?;
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        u64::try_from(next.timestamp_millis()).ok().map(WallTime::new)
    }
}

impl FromStr for Schedule {
    type Err = InvalidSchedule;

    fn from_str(text: &str) -> Result<Self, InvalidSchedule> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser
            .parse(text)
            .map_err(|error| InvalidSchedule::Malformed { text: text.to_owned(), why: error.to_string() })?;
        let schedule = Self { text: text.to_owned(), cron };
        match schedule.next_after(TRIED_FROM) {
            Some(_) => Ok(schedule),
            None => Err(InvalidSchedule::Never(text.to_owned())),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({})", self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn next(text: &str, after: u64) -> u64 {
        text.parse::<Schedule>().unwrap().next_after(WallTime::new(after)).unwrap().get()
    }

    #[test]
    fn a_pattern_comes_at_its_times_in_utc() {
        assert_eq!(next("0 3 * * *", 0), 3 * HOUR);
        assert_eq!(next("0 3 * * *", 3 * HOUR), 27 * HOUR, "behind, not at");
        assert_eq!(next("*/5 * * * *", 1), HOUR / 12);
        // The epoch was a Thursday.
        assert_eq!(next("0 0 * * 0", 0), 72 * HOUR);
    }

    #[test]
    fn what_never_comes_or_is_no_pattern_is_refused() {
        assert_eq!("0 3 30 2 *".parse::<Schedule>(), Err(InvalidSchedule::Never("0 3 30 2 *".into())));
        for bad in ["", "daily", "0 3 * *", "61 * * * *", "0 25 * * *", "0 0 3 * * *", "* * * * * *"] {
            let error = bad.parse::<Schedule>().unwrap_err();
            assert!(error.to_string().contains("five fields") || error.to_string().contains("never"), "{bad}: {error}");
        }
    }
}
