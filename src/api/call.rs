//! One request on its way through the edge: its head, its deadline, and what the answer must carry.
//!
//! Guarantees: headers that belong on every answer are set in one place ([`Call::finish`]). Leaves out: bodies.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};

use super::config::TIMEOUT_MAX;
use super::freshness::Freshness;
use super::model::{Invalid, LeaderHint, Problem};
use super::problem::{EdgeError, Failure, title};
use super::query::{Query, shown};
use super::routes::Api;
use crate::clock::{self, Instant};
use crate::types::Revision;

pub(super) const REVISION: HeaderName = HeaderName::from_static("quorate-revision");
const STALENESS: HeaderName = HeaderName::from_static("quorate-staleness-ms");
const TIMEOUT: HeaderName = HeaderName::from_static("quorate-timeout");
const DETAILS: HeaderName = HeaderName::from_static("quorate-details");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The query parameter of writes that says how safe they are to be.
pub(super) const DURABILITY: &str = "durability";

/// The longest request id that is taken over, in characters.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// A request without its body, and what is known of the answer so far.
pub(super) struct Call {
    pub(super) head: Parts,
    /// The revision the answer speaks of; the node's newest where none was set.
    pub(super) revision: Option<Revision>,
    /// How old the data may be, if the answer must tell: `Some(None)` where nothing is proven.
    pub(super) staleness: Option<Option<Duration>>,
    /// Whether a write is answered only once it is off-site.
    pub(super) offsite: bool,
    /// The consistency of a read.
    pub(super) consistency: Option<&'static str>,
    request_id: Option<HeaderValue>,
}

impl Call {
    pub(super) fn new(head: Parts) -> Self {
        let sound = |id: &&HeaderValue| {
            (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        let request_id = head.headers.get(&REQUEST_ID).filter(sound).cloned();
        Self { head, revision: None, staleness: None, offsite: false, consistency: None, request_id }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    pub(super) fn query(
        &self,
        allowed: &'static [&'static str],
        later: &'static [&'static str],
    ) -> Result<Query<'_>, Invalid> {
        Query::parse(self.head.uri.query(), allowed, later)
    }

    /// Reads how safe a write is to be before it is answered: the parameter [`DURABILITY`] of a query.
    pub(super) fn note_durability(&mut self, query: Option<&str>) -> Result<(), Invalid> {
        self.offsite = match query {
            None | Some("quorum") => false,
            Some("offsite") => true,
            Some(other) => {
                return Err(Invalid::request(format!(
                    "the query parameter \"{DURABILITY}\" is \"{}\"; it must be quorum (the default) or offsite",
                    shown(other.as_bytes())
                )));
            }
        };
        Ok(())
    }

    /// When the caller stops waiting, counted from now.
    pub(super) fn deadline(&self, api: &Api) -> Result<Instant, Invalid> {
        Ok(clock::now() + self.timeout(api.config().default_timeout)?)
    }

    /// How long the caller waits.
    pub(super) fn timeout(&self, default: Duration) -> Result<Duration, Invalid> {
        let mut values = self.headers().get_all(&TIMEOUT).iter();
        let Some(value) = values.next() else { return Ok(default) };
        if values.next().is_some() {
            return Err(Invalid::request("the header quorate-timeout is given twice"));
        }
        let parsed = value.to_str().ok().and_then(|text| humantime::parse_duration(text).ok());
        parsed.filter(|timeout| !timeout.is_zero() && *timeout <= TIMEOUT_MAX).ok_or_else(|| {
            Invalid::request(format!(
                "the header quorate-timeout is \"{}\"; it must be a duration such as 5s or 500ms, at most {}",
                shown(value.as_bytes()),
                humantime::format_duration(TIMEOUT_MAX)
            ))
        })
    }

    /// Whether the client asked for this preference (RFC 7240).
    pub(super) fn prefers(&self, preference: &str) -> bool {
        let lines = self.headers().get_all(&PREFER).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|one| one.trim().eq_ignore_ascii_case(preference))
    }

    /// Whether the client waits for leave before it sends its body.
    pub(super) fn expects(&self) -> bool {
        let value = self.headers().get(header::EXPECT);
        value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    }

    /// Whether the client lists this media type, with a quality above zero.
    pub(super) fn accepts(&self, media_type: &str) -> bool {
        let lines = self.headers().get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type));
            let zero = |q: &str| q.trim().parse::<f32>().is_ok_and(|q| q <= 0.0);
            named && !parts.any(|part| part.strip_prefix("q=").is_some_and(zero))
        })
    }

    /// Refuses what writes will take in a later version.
    pub(super) fn refuse_later_headers(&self) -> Result<(), Invalid> {
        match self.headers().contains_key(&IDEMPOTENCY_KEY) {
            true => Err(Invalid::request("the header idempotency-key is not available in this version; leave it out")),
            false => Ok(()),
        }
    }

    /// The request's name for logs and problems: the client's, or one made now.
    pub(super) fn request_id(&mut self) -> HeaderValue {
        self.request_id
            .get_or_insert_with(|| {
                let made = format!("{:016x}", rand::random::<u64>());
                HeaderValue::try_from(made).unwrap_or(HeaderValue::from_static("-"))
            })
            .clone()
    }

    /// Where the leader takes this write, if the client wants to be sent there and this node is not it.
    pub(super) fn redirect(&self, api: &Api) -> Option<Response> {
        if !self.prefers("redirect") {
            return None;
        }
        let (id, leader) = api.node().leader()?;
        if id == api.node().status().id || leader.client_url.is_empty() {
            return None;
        }
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let location = format!("{}{path}", leader.client_url.trim_end_matches('/'));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(header::LOCATION, HeaderValue::try_from(location).ok()?);
        Some(response)
    }

    /// Turns a failure into its document and sets the headers every answer carries.
    pub(super) fn finish(mut self, api: &Api, result: Result<Response, Failure>) -> Finished {
        let mut failure = None;
        let mut response = result.unwrap_or_else(|error| {
            let response = self.problem(api, &error);
            failure = Some(error);
            response
        });
        let details = self.headers().get(&DETAILS).is_some_and(|value| value.as_bytes() == b"1");
        let headers = response.headers_mut();
        let revision = self.revision.unwrap_or_else(|| api.node().revision());
        headers.insert(REVISION, HeaderValue::from(revision.get()));
        if let Some(proven) = self.staleness {
            let unknown = HeaderValue::from_static("unknown");
            // Rounded up: a bound that is told must hold.
            let millis = |age: Duration| HeaderValue::from(age.as_micros().div_ceil(1_000).min(u64::MAX.into()) as u64);
            headers.insert(STALENESS, proven.map_or(unknown, millis));
        }
        if let Some(id) = &self.request_id {
            headers.insert(REQUEST_ID, id.clone());
        }
        if details {
            self.details(api, headers);
        }
        Finished { call: self, response, failure }
    }

    fn details(&self, api: &Api, headers: &mut HeaderMap) {
        let status = api.node().status();
        let mut set = |name: &'static str, value: HeaderValue| headers.insert(HeaderName::from_static(name), value);
        set("quorate-term", status.term.get().into());
        set("quorate-cluster", status.cluster_id.get().into());
        set("quorate-consistency", HeaderValue::from_static(self.consistency.unwrap_or("linearizable")));
        if let Ok(name) = HeaderValue::try_from(status.member.name) {
            set("quorate-served-by", name);
        }
        let leader = status.leader.map_or_else(|| "none".to_owned(), |(_, leader)| leader.name);
        if let Ok(name) = HeaderValue::try_from(leader) {
            set("quorate-leader", name);
        }
    }

    fn problem(&mut self, api: &Api, failure: &Failure) -> Response {
        let class = failure.class();
        let unavailable = matches!(class.status.as_u16(), 429 | 503 | 504);
        let leader = unavailable.then(|| api.node().leader()).flatten();
        let request_id = self.request_id();
        let problem = Problem {
            kind: format!("urn:quorate:problem:{}", class.code),
            title: title(class.code).to_owned(),
            status: class.status.as_u16(),
            detail: failure.to_string(),
            code: class.code,
            retryable: class.retryable,
            outcome: class.outcome,
            request_id: request_id.to_str().unwrap_or_default().to_owned(),
            leader: leader.map(|(id, member)| LeaderHint {
                id: id.get(),
                name: member.name,
                client_url: member.client_url,
            }),
        };
        let mut response = json(class.status, &problem).unwrap_or_else(|_| Response::new(Body::empty()));
        *response.status_mut() = class.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if let Some(after) = class.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1_000).max(1) as u64));
        }
        match failure {
            Failure::Edge(EdgeError::PreconditionFailed { current: Some(current) }) => {
                headers.insert(header::ETAG, etag(*current));
            }
            Failure::Edge(EdgeError::MethodNotAllowed { allowed, .. }) => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }
}

/// A request with its answer, for the log and the metrics.
pub(super) struct Finished {
    pub(super) call: Call,
    pub(super) response: Response,
    pub(super) failure: Option<Failure>,
}

impl Finished {
    pub(super) fn method(&self) -> &Method {
        &self.call.head.method
    }
}

/// A mod revision as an entity tag.
pub(super) fn etag(revision: Revision) -> HeaderValue {
    // Digits in quotes are always a valid header value.
    HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// An answer in JSON whose size depends on what is stored.
pub(super) fn counted_json(api: &Api, value: &impl serde::Serialize) -> Result<Response, Failure> {
    let body = serde_json::to_vec(value).map_err(|error| EdgeError::Internal(error.to_string()))?;
    Ok(json_bytes(StatusCode::OK, api.admission().answer(body)?))
}

/// An answer that is JSON already.
pub(super) fn json_bytes(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Result<Response, Failure> {
    let body = serde_json::to_vec(value).map_err(|error| EdgeError::Internal(error.to_string()))?;
    Ok(json_bytes(status, body))
}

impl Call {
    /// Notes what a read promised, for the headers of the answer.
    pub(super) fn note_read(&mut self, freshness: Freshness, revision: Revision, staleness: Option<Duration>) {
        self.revision = Some(revision);
        self.consistency = Some(freshness.name());
        if freshness.tells_staleness() {
            self.staleness = Some(staleness);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(headers: &[(&str, &str)]) -> Call {
        let mut request = http::Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Call::new(request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_sound_request_id_is_taken_over_and_any_other_replaced() {
        assert_eq!(call(&[("x-request-id", "a-1")]).request_id(), "a-1");
        for bad in ["", "with space", "ü", &"x".repeat(129)] {
            let mut call = call(&[("x-request-id", bad)]);
            let made = call.request_id();
            assert_eq!(made.len(), 16, "{bad}");
            assert_eq!(call.request_id(), made);
        }
    }

    #[test]
    fn timeouts_are_durations_up_to_a_minute() {
        let default = Duration::from_secs(5);
        assert_eq!(call(&[]).timeout(default), Ok(default));
        assert_eq!(call(&[("quorate-timeout", "250ms")]).timeout(default), Ok(Duration::from_millis(250)));
        assert!(call(&[("quorate-timeout", "1s"), ("quorate-timeout", "2s")]).timeout(default).is_err());
        for bad in ["", "5", "0s", "61s", "-1s", "soon"] {
            assert!(call(&[("quorate-timeout", bad)]).timeout(default).is_err(), "{bad}");
        }
    }

    #[test]
    fn preferences_and_media_types_are_found_in_lists() {
        let call = call(&[
            ("prefer", "wait=1, Local"),
            ("accept", "text/html, application/json;q=0.5"),
            ("accept", "application/x-ndjson;q=0"),
        ]);
        assert!(call.prefers("local") && !call.prefers("redirect"));
        assert!(call.accepts("application/json") && !call.accepts("application/x-ndjson") && !call.accepts("text"));
    }
}
