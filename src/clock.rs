//! The only caller of `now()`.
//!
//! Guarantees: every duration in the program is measured on one monotonic clock, which a test can pause (tokio's), and
//! wall time is read in one place, to stamp commands and to show people. Leaves out: timers; those are tokio's own.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::WallTime;

/// A point on the monotonic clock of this process.
pub type Instant = tokio::time::Instant;

/// Now, on the monotonic clock.
#[must_use]
pub fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    Instant::now()
}

/// Now, on the wall clock; the epoch if the clock stands before it.
#[must_use]
pub fn wall() -> WallTime {
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::new(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
