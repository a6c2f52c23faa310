//! A limit of bytes a second, shared by all that is sent to one place, or by all that is read from it.
//!
//! Guarantees: over any time, what waited for its turn takes no more than the limit and one part; what may not wait is
//! counted all the same, so that the others wait for it, but by [`DEBT_MAX`] at a time: they come forward even where it
//! takes all there is. Leaves out: what is sent or read.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{self, Instant};

/// For so long what did not wait may hold up the next part of what does.
const DEBT_MAX: Duration = Duration::from_secs(1);

/// Gives turns.
#[derive(Debug)]
pub(super) struct Bandwidth {
    bytes_per_second: Option<u64>,
    /// When all that was let through so far will have passed at this rate.
    free_at: Mutex<Option<Instant>>,
}

impl Bandwidth {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Counts bytes that do not wait.
    pub(super) fn count(&self, bytes: u64) {
        self.reserve(bytes, Some(DEBT_MAX));
    }

    /// Counts bytes that do not wait, all of them at once.
    pub(super) fn charge(&self, bytes: u64) {
        self.reserve(bytes, None);
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn turn(&self, bytes: u64) {
        if let Some(at) = self.reserve(bytes, None) {
            tokio::time::sleep_until(at).await;
        }
    }

    /// When these bytes may be sent: once those before them have passed. `debt_max` is how far ahead of now they may
    /// move the next turn.
    fn reserve(&self, bytes: u64, debt_max: Option<Duration>) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let mut free_at = self.free_at.lock();
        let begin = free_at.map_or_else(clock::now, |at| at.max(clock::now()));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let free = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Never before what waits already has passed.
        *free_at = Some(debt_max.map_or(free, |most| free.min(begin.max(clock::now() + most))));
        Some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_waits_keeps_to_the_limit_and_pays_for_what_does_not() {
        let limit = Bandwidth::new(Some(1_000));
        let begin = clock::now();
        for _ in 0..5 {
            limit.turn(1_000).await;
        }
        assert_eq!(begin.elapsed(), Duration::from_secs(4));
        tokio::time::sleep(Duration::from_secs(1)).await;
        limit.count(500);
        limit.turn(1).await;
        assert_eq!(begin.elapsed(), Duration::from_millis(5_500));
        let unlimited = Bandwidth::new(None);
        unlimited.turn(u64::MAX).await;
        assert_eq!(begin.elapsed(), Duration::from_millis(5_500));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_comes_forward_even_where_the_rest_takes_more_than_the_limit() {
        let limit = Bandwidth::new(Some(1_000));
        let begin = clock::now();
        for part in 1..=3 {
            limit.count(1_000_000);
            limit.turn(1_000).await;
            // Each waits for the second of debt, and for the part before it.
            assert!(begin.elapsed() <= Duration::from_secs(2 * part), "{:?}", begin.elapsed());
        }
        assert!(begin.elapsed() >= Duration::from_secs(3));
    }
}
