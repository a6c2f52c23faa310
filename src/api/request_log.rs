//! What the log tells of requests: failures as warnings, everything else for those who debug.
//!
//! Guarantees: at most [`WARNINGS_PER_SECOND`], and the next one says how many were left out: a cluster without a quorum
//! fails every request of every client, and the log must not add to that. Leaves out: counting; `metrics` counts all.

use std::time::Duration;

use axum::response::Response;
use parking_lot::Mutex;

use super::call::Finished;
use super::routes::Route;
use crate::clock::{self, Instant};

/// The most requests that are warned of in a second.
const WARNINGS_PER_SECOND: u32 = 5;

/// Tells the log of requests.
#[derive(Debug, Default)]
pub(super) struct RequestLog(Mutex<Told>);

/// What was told since a moment.
#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    warnings: u32,
    left_out: u64,
}

impl Told {
    /// Whether one more may be told now, and then how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.warnings) = (Some(now), 0);
        }
        if self.warnings >= WARNINGS_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.warnings += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl RequestLog {
    /// Tells of a request, and gives its answer out.
    pub(super) fn tell(&self, route: Option<Route>, mut finished: Finished, took: Duration) -> Response {
        let status = finished.response.status().as_u16();
        // A node that is not ready says so once itself; who asks for it every second knows.
        let failed = status >= 500 && route != Some(Route::Readyz);
        let debug = tracing::enabled!(tracing::Level::DEBUG);
        let left_out = if failed { self.0.lock().admit(clock::now()) } else { None };
        if left_out.is_none() && !debug {
            return finished.response;
        }
        let id = finished.call.request_id();
        let request_id = id.to_str().unwrap_or_default();
        let route = route.map_or("unknown", Route::template);
        let method = finished.method().as_str();
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match (&finished.failure, left_out) {
            (Some(failure), Some(0)) => {
                tracing::warn!(request_id, method, route, status, took_us, %failure, "request failed");
            }
            (Some(failure), Some(left_out)) => {
                tracing::warn!(request_id, method, route, status, took_us, left_out, %failure, "request failed");
            }
            (Some(failure), None) => {
                tracing::debug!(request_id, method, route, status, took_us, %failure, "request refused");
            }
            (None, _) => tracing::debug!(request_id, method, route, status, took_us, "request answered"),
        }
        finished.response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_part_and_counted() {
        let (mut told, start) = (Told::default(), clock::now());
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..WARNINGS_PER_SECOND {
            assert_eq!(told.admit(at(0)), Some(0));
        }
        assert_eq!((told.admit(at(10)), told.admit(at(999))), (None, None));
        assert_eq!((told.admit(at(1_000)), told.admit(at(1_001))), (Some(2), Some(0)));
    }
}
