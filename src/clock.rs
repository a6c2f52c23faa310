//! The only caller of `now()`.
//!
//! Guarantees: every duration in the program is measured on one monotonic clock, which a test can pause (tokio's), and
//! wall time is read in one place, to stamp commands and to show people; so is processor time. Leaves out: timers; those are tokio's own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::host;
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
    if let Some(simulated) = host::simulated_wall() {
        return simulated;
    }
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::new(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// The calling thread, as [`thread_cpu`] knows it; `None` where the system does not tell.
#[must_use]
pub fn own_thread() -> Option<u32> {
    std::fs::read_link("/proc/thread-self").ok()?.file_name()?.to_str()?.parse().ok()
}

/// How much time of processors a thread of this process has taken; `None` if it is gone, or the system does not tell.
#[must_use]
pub fn thread_cpu(thread: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    // The second field is the thread's name in parentheses and may hold anything; utime is field 14, stime 15 (proc(5)).
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let (user, system): (u64, u64) = (fields.nth(14 - 3)?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis((user + system) * MILLISECONDS_PER_TICK))
}

/// Linux counts these times in hundredths of a second on every architecture it shows to programs (`USER_HZ`, proc(5)).
const MILLISECONDS_PER_TICK: u64 = 10;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_takes_no_time_and_one_that_counts_does() {
        let own = own_thread().unwrap();
        let before = thread_cpu(own).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_cpu(own).unwrap() - before < Duration::from_millis(50));
        while thread_cpu(own).unwrap() == before {
            std::hint::spin_loop();
        }
        assert_eq!(thread_cpu(u32::MAX), None);
    }
}
