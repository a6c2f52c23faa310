//! What a request must not be, whatever it asks for.
//!
//! Guarantees: no web page can make a browser write here, since browsers put `Origin` on every request that writes and it
//! is refused; a body is never stored in a coding that nobody undoes. Leaves out: who the client is.

use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Method, Version};

use super::config::{ApiConfig, HEAD_BYTES_MAX, HEADERS_MAX};
use super::model::Invalid;
use super::problem::{EdgeError, Failure};
use super::query::shown;

/// Judges a request by its head.
///
/// # Errors
/// Why it is not served.
pub(super) fn check(head: &Parts, config: &ApiConfig) -> Result<(), Failure> {
    let headers = &head.headers;
    let path_bytes = head.uri.path().len() + head.uri.query().map_or(0, str::len);
    let head_bytes = headers.iter().fold(path_bytes, |sum, (name, value)| sum + name.as_str().len() + value.len());
    if headers.len() > HEADERS_MAX || head_bytes > HEAD_BYTES_MAX {
        return Err(EdgeError::HeadersTooLarge { headers: HEADERS_MAX, bytes: HEAD_BYTES_MAX }.into());
    }
    // A page of whatever site must not reach a store through the browser of somebody who can reach it (CSRF). Pages of
    // this store do not exist, so no origin is the right one.
    if let Some(origin) = headers.get(header::ORIGIN) {
        return Err(EdgeError::FromBrowser { origin: shown(origin.as_bytes()) }.into());
    }
    check_host(head, config)?;
    check_codings(&head.method, headers)
}

/// RFC 9112 §3.2: exactly one `Host` where the version is 1.1.
fn check_host(head: &Parts, config: &ApiConfig) -> Result<(), Failure> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.as_bytes(),
        (None, None) if head.version < Version::HTTP_11 => return Ok(()),
        _ => return Err(Invalid::request("the request needs exactly one Host header").into()),
    };
    if config.local_hosts_only && !is_local(host) {
        return Err(EdgeError::ForeignHost { host: shown(host) }.into());
    }
    Ok(())
}

/// Whether a host is an address or a name without a dot, like `localhost`: no stranger's name server answers for those.
fn is_local(host: &[u8]) -> bool {
    let Some(text) = std::str::from_utf8(host).ok().filter(|text| text.is_ascii()) else { return false };
    if let Some(bracketed) = text.strip_prefix('[') {
        return bracketed.split(']').next().is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let name = text.rsplit_once(':').map_or(text, |(name, _)| name);
    (!name.is_empty() && !name.contains('.')) || name.parse::<std::net::Ipv4Addr>().is_ok()
}

/// Bodies are taken byte by byte, so a coding of them would be stored, and given out without its name.
fn check_codings(method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
    let named = |name| headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let other_than = |name, allowed: &[u8]| {
        named(name).map(<[u8]>::trim_ascii).find(|one: &&[u8]| !one.eq_ignore_ascii_case(allowed)).map(shown)
    };
    if let Some(coding) = other_than(header::TRANSFER_ENCODING, b"chunked") {
        return Err(Invalid::request(format!("the transfer coding \"{coding}\" is not understood; use chunked")).into());
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::DELETE) {
        return Ok(());
    }
    if let Some(coding) = other_than(header::CONTENT_ENCODING, b"identity") {
        let detail = format!("the content coding \"{coding}\" is not undone here; send the body as it is, without it");
        return Err(Invalid::request(detail).into());
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Invalid::request("a value is written whole; leave content-range out").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: &str, headers: &[(&str, &str)], config: &ApiConfig) -> Result<(), (u16, String)> {
        let mut request = http::Request::builder().method(method).uri("/v1/kv/k");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        check(&head, config).map_err(|failure| (failure.class().status.as_u16(), failure.to_string()))
    }

    #[test]
    fn plain_requests_pass_and_what_would_be_misread_does_not() {
        let config = ApiConfig::default();
        let host = ("host", "db.example:7480");
        assert_eq!(checked("PUT", &[host, ("content-encoding", "identity")], &config), Ok(()));
        assert_eq!(checked("PUT", &[host, ("transfer-encoding", "Chunked")], &config), Ok(()));
        assert_eq!(checked("GET", &[host, ("content-encoding", "gzip")], &config), Ok(()), "there is no body to undo");
        for headers in [
            &[][..],
            &[host, host],
            &[host, ("transfer-encoding", "gzip, chunked")],
            &[host, ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
            &[host, ("content-encoding", "gzip")],
            &[host, ("content-range", "bytes 0-1/2")],
        ] {
            assert_eq!(checked("PUT", headers, &config).unwrap_err().0, 400, "{headers:?}");
        }
    }

    #[test]
    fn no_origin_is_the_right_one() {
        for origin in ["http://evil.example", "null", "http://127.0.0.1:7480"] {
            for method in ["GET", "POST"] {
                let refused = checked(method, &[("host", "127.0.0.1:7480"), ("origin", origin)], &ApiConfig::default());
                let (status, detail) = refused.unwrap_err();
                assert!(status == 403 && detail.contains(origin), "{status} {detail}");
            }
        }
    }

    #[test]
    fn a_development_cluster_answers_to_no_name_that_a_stranger_could_point_at_it() {
        let config = ApiConfig { local_hosts_only: true, ..ApiConfig::default() };
        for host in ["127.0.0.1:7480", "127.0.0.1", "localhost:7480", "LOCALHOST", "[::1]:7480", "devbox:7480"] {
            assert_eq!(checked("GET", &[("host", host)], &config), Ok(()), "{host}");
        }
        for host in ["evil.example:7480", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]", "", "ü"] {
            assert_eq!(checked("GET", &[("host", host)], &config).unwrap_err().0, 403, "{host}");
        }
    }
}
