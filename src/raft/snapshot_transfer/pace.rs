//! One limit of bytes a second for all transfers of a node.
//!
//! Guarantees: over any span of time no more is let through than the limit allows for it, and [`SLACK`], and one part; who
//! asked first goes first, so that transfers that ask for one part at a time share the limit evenly; nobody waits while
//! there is room. Leaves out: what the bytes are.
//!
//! The virtual scheduling form of a leaky bucket. Crates for it (`governor` and its kin) have clocks of their own, which
//! a test can't pause with tokio's, and wake who waits in no order.

use std::time::Duration;

use parking_lot::Mutex;

use super::{PART_BYTES_MAX, PART_BYTES_MIN};
use crate::clock::{self, Instant};

/// What may be caught up of time in which nothing was asked for: about what a timer of a busy runtime comes late.
const SLACK: Duration = Duration::from_millis(20);

/// A part takes about so long at the limit, unless the smallest takes longer: far less than a heartbeat's interval, so that
/// on a link no faster than the limit a heartbeat waits no longer than this behind a part.
const PART_TIME: Duration = Duration::from_millis(20);

/// A part takes at least so many round trips at the limit. Each part waits for its answer, so shorter ones would leave a
/// long link idle.
const PART_ROUND_TRIPS: u32 = 2;

/// Lets bytes through at a rate.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When all that was let through so far is paid for; `None` before the first.
    paid_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: Mutex::new(None) }
    }

    /// Waits until so many bytes may be sent; returns how long that was. Giving up the wait gives up its turn, not what it
    /// was to let through: that is lost to all.
    pub(super) async fn take(&self, bytes: usize) -> Duration {
        let now = clock::now();
        let turn = {
            let mut paid_at = self.paid_at.lock();
            let earliest = now.checked_sub(SLACK).unwrap_or(now);
            let turn = paid_at.map_or(now, |at| at.max(earliest));
            *paid_at = Some(turn + self.time_of(bytes));
            turn
        };
        let wait = turn.saturating_duration_since(now);
        if !wait.is_zero() {
            tokio::time::sleep_until(turn).await;
        }
        wait
    }

    /// How large parts should be for a member at this round-trip time, in bytes.
    pub(super) fn part_bytes(&self, rtt: Option<Duration>) -> usize {
        let span = rtt.map_or(PART_TIME, |rtt| PART_TIME.max(rtt * PART_ROUND_TRIPS));
        let bytes = u128::from(self.bytes_per_second) * span.as_nanos() / Duration::from_secs(1).as_nanos();
        usize::try_from(bytes).unwrap_or(usize::MAX).clamp(PART_BYTES_MIN, PART_BYTES_MAX)
    }

    fn time_of(&self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * Duration::from_secs(1).as_nanos() / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MIB: usize = 1024 * 1024;

    #[tokio::test(start_paused = true)]
    async fn no_more_is_let_through_than_the_limit_and_no_less() {
        let pace = Pace::new(50 * MIB as u64);
        let started = clock::now();
        let mut waited = Duration::ZERO;
        for _ in 0..=100 {
            waited += pace.take(MIB).await;
        }
        // The first needs no wait; a hundred more take two seconds.
        assert_eq!(waited, started.elapsed());
        let took = started.elapsed().as_millis();
        assert!((1_980..=2_005).contains(&took), "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_was_sent_is_not_made_up_for() {
        let pace = Pace::new(MIB as u64);
        pace.take(MIB).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let started = clock::now();
        for _ in 0..11 {
            pace.take(MIB).await;
        }
        assert!(started.elapsed() >= Duration::from_secs(10) - SLACK, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn several_transfers_share_the_limit_evenly() {
        let pace = Arc::new(Pace::new(10 * MIB as u64));
        let until = clock::now() + Duration::from_secs(10);
        let transfer = |part: usize| {
            let pace = Arc::clone(&pace);
            async move {
                let mut sent = 0;
                while clock::now() < until {
                    pace.take(part).await;
                    sent += part;
                }
                sent
            }
        };
        let (a, b, c) = tokio::join!(transfer(MIB / 4), transfer(MIB / 4), transfer(MIB / 4));
        let all = a + b + c;
        assert!((100 * MIB..=101 * MIB).contains(&all), "{all}");
        for share in [a, b, c] {
            assert!((33 * MIB..=34 * MIB).contains(&share), "{a} {b} {c}");
        }
    }

    #[test]
    fn parts_fit_the_limit_and_the_distance() {
        let bytes = |mib, rtt| Pace::new(mib * MIB as u64).part_bytes(rtt);
        assert_eq!(bytes(50, None), MIB);
        assert_eq!(bytes(50, Some(Duration::from_millis(1))), MIB);
        assert_eq!(bytes(1, None), PART_BYTES_MIN);
        assert_eq!(bytes(50, Some(Duration::from_millis(40))), 4 * MIB);
        assert_eq!(bytes(u64::MAX / MIB as u64, Some(Duration::from_secs(2))), PART_BYTES_MAX);
    }
}
