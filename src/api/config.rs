//! What an operator can set of the HTTP edge, with its defaults and their bounds.
//!
//! Guarantees: a config that passed [`ApiConfig::validate`] makes no limit meaningless. Leaves out: where the values
//! come from (`config`).

use std::time::Duration;

use crate::types::limits::{KEY_BYTES_MAX, TXN_BYTES_MAX, VALUE_BYTES_MAX};

/// The longest a caller may ask a request to be waited for.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The most bytes of a transaction's JSON: base64 and escapes make it larger than what it holds.
pub(super) const TXN_BODY_BYTES_MAX: usize = 2 * TXN_BYTES_MAX;

/// The least that can be set aside for answers, in bytes. A larger answer is given while there is no other.
const ANSWER_BYTES_MIN: usize = 64 * 1024;

/// The most headers of a request.
pub(super) const HEADERS_MAX: usize = 64;

/// The most bytes of a request's line and headers. A range with a cursor, all of it percent-encoded, fits.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The limits and timeouts of the HTTP edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// The most client connections at a time; more are closed with a 503.
    pub connections_max: usize,
    /// The most connections beyond these limits that may ask one thing about the node, and are told to come back later for
    /// everything else.
    pub spare_connections: usize,
    /// The most of them from one address.
    pub connections_per_ip_max: usize,
    /// The most requests that are worked on at a time; more are refused with 429.
    pub in_flight_max: usize,
    /// The most bytes of request bodies held at a time; more are refused with 429.
    pub in_flight_bytes_max: usize,
    /// The most bytes of answers that are built and not taken yet; reads beyond it are refused with 429. Small answers don't
    /// count.
    pub answer_bytes_max: usize,
    /// The time that writes may take here, from the whole request to its outcome. When more than one in a hundred takes
    /// longer, fewer are taken at a time, and the others refused with 429.
    pub write_time_target: Duration,
    /// The most listings that read the disk at a time.
    pub scans_max: usize,
    /// The most answers streamed at a time: whole listings and snapshots.
    pub streams_max: usize,
    /// From the first byte of a request, or from connecting, to the end of its headers.
    pub header_timeout: Duration,
    /// Between two requests of a connection, and without any progress while an answer is sent.
    pub idle_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// How long a request is waited for if it does not say so.
    pub default_timeout: Duration,
    /// How long requests may run on once the node stops.
    pub drain_timeout: Duration,
    /// Refuse requests whose `Host` is a name with a dot: one that a stranger's name server points here would let web pages
    /// read (DNS rebinding).
    pub local_hosts_only: bool,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            value_bytes_max: VALUE_BYTES_MAX,
            connections_max: 4_096,
            connections_per_ip_max: 1_024,
            spare_connections: 512,
            in_flight_max: 2_048,
            in_flight_bytes_max: 128 * 1024 * 1024,
            answer_bytes_max: 128 * 1024 * 1024,
            write_time_target: Duration::from_millis(500),
            scans_max: 8,
            streams_max: 32,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            default_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            local_hosts_only: false,
        }
    }
}

/// A setting is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}; {allowed} is allowed")]
pub struct InvalidConfig {
    /// The setting.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl ApiConfig {
    /// Checks every setting against its bounds.
    ///
    /// # Errors
    /// [`InvalidConfig`] with the first that is out of them.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let counts = [
            ("value_bytes_max", self.value_bytes_max, 1, TXN_BYTES_MAX - KEY_BYTES_MAX),
            ("connections_max", self.connections_max, 1, 1_000_000),
            ("connections_per_ip_max", self.connections_per_ip_max, 1, 1_000_000),
            ("spare_connections", self.spare_connections, 0, 10_000),
            ("in_flight_max", self.in_flight_max, 1, 1_000_000),
            ("in_flight_bytes_max", self.in_flight_bytes_max, TXN_BODY_BYTES_MAX, usize::MAX),
            ("answer_bytes_max", self.answer_bytes_max, ANSWER_BYTES_MIN, usize::MAX),
            ("scans_max", self.scans_max, 1, 256),
            ("streams_max", self.streams_max, 1, 10_000),
        ];
        for (name, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                return Err(InvalidConfig { name, value: value.to_string(), allowed: format!("{least} to {most}") });
            }
        }
        let hour = Duration::from_secs(3_600);
        let least = Duration::from_millis(100);
        let times = [
            ("header_timeout", self.header_timeout, hour),
            ("idle_timeout", self.idle_timeout, hour),
            ("body_timeout", self.body_timeout, hour),
            ("default_timeout", self.default_timeout, TIMEOUT_MAX),
            ("drain_timeout", self.drain_timeout, hour),
            ("write_time_target", self.write_time_target, TIMEOUT_MAX),
        ];
        for (name, value, most) in times {
            if !(least..=most).contains(&value) {
                let shown = |time| humantime::format_duration(time).to_string();
                let allowed = format!("{} to {}", shown(least), shown(most));
                return Err(InvalidConfig { name, value: shown(value), allowed });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(ApiConfig::default().validate(), Ok(()));
    }

    #[test]
    fn a_setting_out_of_bounds_is_named_with_its_bounds() {
        let config = ApiConfig { value_bytes_max: TXN_BYTES_MAX, ..ApiConfig::default() };
        assert_eq!(config.validate().unwrap_err().to_string(), "value_bytes_max is 8388608; 1 to 8384512 is allowed");
        let config = ApiConfig { default_timeout: Duration::from_secs(61), ..ApiConfig::default() };
        assert_eq!(config.validate().unwrap_err().to_string(), "default_timeout is 1m 1s; 100ms to 1m is allowed");
    }
}
