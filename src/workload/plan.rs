//! A [`LoadConfig`] that was checked and prepared once, for all clients to share.
//!
//! Guarantees: endpoints are split into what a connection and a request need. Leaves out: what is counted (`tally`).

use bytes::Bytes;
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{CLIENTS_MAX, Error, KEYS_MAX, LoadConfig, RATE_MAX};
use crate::types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// What needs no escape in a path.
pub(super) const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Values are cut from a random text that is this much longer than one of them, in bytes: none is built, and so many differ
/// that the pages of a store, which are compressed, hardly ever hold two that overlap.
const VALUE_POOL_BYTES: usize = 8 * 1024 * 1024;

/// Digits that a key has behind its prefix.
const KEY_DIGITS: usize = 9;

/// Where a client connects.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    /// What the `Host` header says.
    pub(super) authority: HeaderValue,
}

/// The checked configuration with what every request is made of.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) config: LoadConfig,
    pub(super) endpoints: Vec<Endpoint>,
    /// The prefix as it stands in a path.
    pub(super) path_prefix: String,
    pool: Bytes,
}

impl Plan {
    pub(super) fn new(config: &LoadConfig) -> Result<Self, Error> {
        let within = |what: &str, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::Usage(format!("{what} is {value}; it must be {least} to {most}"))),
        };
        within("the number of clients", config.clients as u64, 1, CLIENTS_MAX as u64)?;
        within("the number of keys", config.keys, 1, KEYS_MAX)?;
        within("the size of a value", config.value_size as u64, 0, VALUE_BYTES_MAX as u64)?;
        within("the rate", config.rate.unwrap_or(1), 1, RATE_MAX)?;
        if config.duration.is_zero() {
            return Err(Error::Usage("the duration is zero; it must be longer".to_owned()));
        }
        let key_bytes = config.key_prefix.len() + KEY_DIGITS;
        if key_bytes > KEY_BYTES_MAX {
            return Err(Error::Usage(format!("keys would have {key_bytes} bytes; they may have {KEY_BYTES_MAX}")));
        }
        if config.endpoints.is_empty() {
            return Err(Error::Usage("no endpoint is given; give one like http://10.0.0.1:7480".to_owned()));
        }
        let endpoints = config.endpoints.iter().map(|text| endpoint(text)).collect::<Result<_, _>>()?;
        let mut random = SmallRng::seed_from_u64(config.seed);
        // Text, because it must also fit into JSON.
        let pool: Vec<u8> = (0..config.value_size + VALUE_POOL_BYTES)
            .map(|_| b"abcdefghijklmnopqrstuvwxyz0123456789"[random.random_range(0..36)])
            .collect();
        let path_prefix = utf8_percent_encode(&config.key_prefix, PATH).to_string();
        Ok(Self { config: config.clone(), endpoints, path_prefix, pool: pool.into() })
    }

    /// A value: random text of the size asked for, not copied.
    pub(super) fn value(&self, random: &mut impl Rng) -> Bytes {
        let start = random.random_range(0..VALUE_POOL_BYTES);
        self.pool.slice(start..start + self.config.value_size)
    }

    /// The number of a key.
    pub(super) fn key(&self, random: &mut impl Rng) -> u64 {
        random.random_range(0..self.config.keys)
    }

    /// The key of a number, behind a prefix that may be escaped.
    pub(super) fn name(prefix: &str, key: u64) -> String {
        format!("{prefix}{key:0KEY_DIGITS$}")
    }
}

/// Splits a URL like `http://10.0.0.1:7480`.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Error> {
    let usage = |why: &str| Error::Usage(format!("the endpoint '{text}' {why}; it must be like http://10.0.0.1:7480"));
    let url = url::Url::parse(text).map_err(|error| usage(&format!("is no URL ({error})")))?;
    if url.scheme() != "http" || url.path() != "/" || url.query().is_some() {
        return Err(usage("is not of the form http://host:port"));
    }
    let host = url.host_str().ok_or_else(|| usage("has no host"))?;
    let port = url.port().unwrap_or(80);
    let authority =
        HeaderValue::try_from(format!("{host}:{port}")).map_err(|_| usage("can't stand in a Host header"))?;
    // A socket takes an IPv6 address without the brackets of a URL.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Endpoint { host, port, authority })
}
