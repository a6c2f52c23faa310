//! One call: its attempts over the endpoints until it is answered, refused, or out of time.
//!
//! Guarantees: a request that can change something is sent again only if the attempt before it surely changed nothing;
//! attempts are bounded by [`ATTEMPTS_MAX`] and by the deadline; between rounds over all endpoints it waits, longer each
//! time and with jitter. Leaves out: what is asked (`kv`, `cluster`, `snapshot`).

use std::fmt;
use std::time::Duration;

use backon::BackoffBuilder;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::de::DeserializeOwned;

use super::{Answer, Client, Error};
use crate::api::model::{Code, OutcomeKind, Problem};
use crate::clock::{self, Instant};
use crate::types::Revision;

/// The most attempts of one call.
pub(super) const ATTEMPTS_MAX: u32 = 100;

/// The wait before the second round over the endpoints; doubles from round to round, plus jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// The longest wait between two rounds.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How much longer than the server may take the client listens: its "no leader in time" should arrive.
const ANSWER_GRACE: Duration = Duration::from_millis(250);

/// The longest time that a node can be given for one request.
const SERVER_TIME_MAX: Duration = Duration::from_secs(60);

/// The least time an attempt of a read gets before another endpoint is asked.
const READ_ATTEMPT_MIN: Duration = Duration::from_millis(500);

/// The largest answer that is taken into memory: a page of the most bytes, all of them escaped in JSON.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most characters of an answer of somebody else that are shown in an error.
const EXCERPT_CHARS_MAX: usize = 120;

/// The time the server has, in whole milliseconds with their unit: `1500ms`.
const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("quorate-timeout");
const REVISION_HEADER: HeaderName = HeaderName::from_static("quorate-revision");
const STALENESS_HEADER: HeaderName = HeaderName::from_static("quorate-staleness-ms");

/// Whether sending it twice could do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Changes nothing.
    Read,
    /// May change something.
    Write,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) effect: Effect,
    pub(super) method: Method,
    /// Path and query, encoded.
    pub(super) target: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    pub(super) timeout: Option<Duration>,
    /// "There is no such key" is an answer, not an error.
    pub(super) may_be_absent: bool,
}

/// An answer of success.
#[derive(Debug)]
pub(super) struct Reply {
    /// There is no such key; the body says nothing then.
    pub(super) absent: bool,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What one attempt met instead of success.
#[derive(Debug)]
enum Miss {
    /// The request did not leave: no connection.
    Unsent(String),
    /// It left, and no whole answer came.
    Lost(String),
    /// A problem document, and when to come back at the earliest.
    Problem(Box<Problem>, Option<Duration>),
    /// An answer that no node gives; it comes from something in between.
    Foreign(StatusCode, String),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsent(why) | Self::Lost(why) => f.write_str(why),
            Self::Problem(problem, _) => f.write_str(&problem.detail),
            Self::Foreign(status, excerpt) => {
                write!(f, "the answer is none of this store: status {}, '{excerpt}'", status.as_u16())
            }
        }
    }
}

impl Call {
    pub(super) fn read(method: Method, target: String) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { effect: Effect::Read, method, target, headers, body, timeout: None, may_be_absent: false }
    }

    pub(super) fn write(method: Method, target: String) -> Self {
        Self { effect: Effect::Write, ..Self::read(method, target) }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    pub(super) fn may_be_absent(mut self) -> Self {
        self.may_be_absent = true;
        self
    }

    pub(super) fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }
}

impl Client {
    /// Makes the call and takes the whole answer.
    pub(super) async fn call(&self, call: Call) -> Result<Reply, Error> {
        let response = self.attempts(&call, true).await?;
        Ok(Reply { absent: response.absent, headers: response.headers, body: response.whole })
    }

    /// Makes the call and leaves the body to be read as it comes.
    pub(super) async fn open(&self, call: Call) -> Result<(HeaderMap, reqwest::Response), Error> {
        let response = self.attempts(&call, false).await?;
        match response.stream {
            Some(stream) => Ok((response.headers, stream)),
            None => unreachable!("an attempt that does not collect the body leaves the stream"),
        }
    }

    async fn attempts(&self, call: &Call, collect: bool) -> Result<Response, Error> {
        let deadline = clock::now() + call.timeout.unwrap_or(self.shared.timeout);
        let endpoints = &self.shared.endpoints;
        let mut waits = backon::ExponentialBuilder::new()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .without_max_times()
            .with_jitter()
            .build();
        let first = endpoints.preferred();
        let mut attempts = 0;
        loop {
            let place = first + attempts as usize;
            let endpoint = endpoints.at(place);
            attempts += 1;
            let miss = match self.attempt(call, endpoint, deadline, collect).await {
                Ok(response) => {
                    endpoints.prefer(place);
                    return Ok(response);
                }
                Err(miss) => miss,
            };
            let pause = judge(call.effect, endpoint, &miss, attempts)?;
            // One round over all endpoints goes without a wait: the trouble is likely that of a single node.
            let round_is_over = (attempts as usize).is_multiple_of(endpoints.len());
            let wait = if round_is_over { waits.next().unwrap_or(BACKOFF_MAX).max(pause) } else { Duration::ZERO };
            if attempts >= self.shared.attempts_max || clock::now() + wait >= deadline {
                return Err(unavailable(endpoint, &miss, attempts));
            }
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Sends the request once.
    async fn attempt(&self, call: &Call, endpoint: &str, until: Instant, collect: bool) -> Result<Response, Miss> {
        let left = until.saturating_duration_since(clock::now());
        let budget = match call.effect {
            // A write that was sent must be waited for: giving up on it early would only make its outcome unknown.
            Effect::Write => left,
            // A read may leave a silent node in time to ask another one.
            Effect::Read if self.shared.endpoints.len() > 1 => left.min(READ_ATTEMPT_MIN.max(left / 2)),
            Effect::Read => left,
        };
        let budget = budget.min(SERVER_TIME_MAX);
        let give_up = clock::now() + budget + ANSWER_GRACE;
        let mut request = self.shared.http.request(call.method.clone(), format!("{endpoint}{}", call.target));
        request = request.header(TIMEOUT_HEADER, format!("{}ms", budget.as_millis().max(1)));
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if !call.body.is_empty() || call.method == Method::PUT || call.method == Method::POST {
            request = request.body(call.body.clone());
        }
        let response = match tokio::time::timeout_at(give_up, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() || error.is_builder() => return Err(Miss::Unsent(root_cause(&error))),
            Ok(Err(error)) => return Err(Miss::Lost(format!("the connection broke: {}", root_cause(&error)))),
            Err(_) => {
                return Err(Miss::Lost(format!("no answer within {}", humantime::format_duration(whole(budget)))));
            }
        };
        let (status, headers) = (response.status(), response.headers().clone());
        if status.is_success() && !collect {
            return Ok(Response { absent: false, headers, whole: Bytes::new(), stream: Some(response) });
        }
        let body = match tokio::time::timeout_at(give_up, whole_body(response)).await {
            Ok(body) => body?,
            Err(_) => return Err(Miss::Lost("the answer did not end in time".to_owned())),
        };
        // A node says at which revision it answers; a success without it comes from something else that listens there.
        if status.is_success() && headers.contains_key(REVISION_HEADER) {
            return Ok(Response { absent: false, headers, whole: body, stream: None });
        }
        match problem_of(status, &headers, &body) {
            Miss::Problem(problem, _) if call.may_be_absent && problem.code == Code::KeyNotFound => {
                Ok(Response { absent: true, headers, whole: body, stream: None })
            }
            miss => Err(miss),
        }
    }
}

/// A successful answer; its body is in `whole` or still to come from `stream`.
struct Response {
    absent: bool,
    headers: HeaderMap,
    whole: Bytes,
    stream: Option<reqwest::Response>,
}

/// Whether the call may be tried again after this miss, and after which pause at least; the error if not.
fn judge(effect: Effect, endpoint: &str, miss: &Miss, attempts: u32) -> Result<Duration, Error> {
    let unknown = |problem| Error::OutcomeUnknown { why: format!("{endpoint}: {miss}"), problem };
    match (effect, miss) {
        (_, Miss::Unsent(_)) | (Effect::Read, Miss::Lost(_)) => Ok(Duration::ZERO),
        (Effect::Write, Miss::Lost(_)) => Err(unknown(None)),
        (Effect::Write, Miss::Problem(problem, _)) if problem.outcome == OutcomeKind::Unknown => {
            Err(unknown(Some(problem.clone())))
        }
        (_, Miss::Problem(problem, _)) if problem.outcome == OutcomeKind::Applied => {
            Err(Error::Incomplete(problem.clone()))
        }
        (_, Miss::Problem(problem, pause)) if problem.retryable => Ok(pause.unwrap_or_default()),
        (_, Miss::Problem(problem, _)) if problem.code == Code::Internal => Err(unavailable(endpoint, miss, attempts)),
        (_, Miss::Problem(problem, _)) => Err(Error::Refused(problem.clone())),
        (Effect::Read, Miss::Foreign(status, _)) if status.is_server_error() => Ok(Duration::ZERO),
        // Who turned the request away did not pass it on.
        (_, Miss::Foreign(status, _)) if effect == Effect::Read || status.is_client_error() => {
            Err(unavailable(endpoint, miss, attempts))
        }
        (_, Miss::Foreign(..)) => Err(unknown(None)),
    }
}

fn unavailable(endpoint: &str, miss: &Miss, attempts: u32) -> Error {
    let problem = match miss {
        Miss::Problem(problem, _) => Some(problem.clone()),
        _ => None,
    };
    Error::Unavailable { attempts, last: format!("{endpoint}: {miss}"), problem }
}

/// Takes the body into memory, up to [`ANSWER_BYTES_MAX`].
async fn whole_body(mut response: reqwest::Response) -> Result<Bytes, Miss> {
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > ANSWER_BYTES_MAX => {
                return Err(Miss::Lost(format!("the answer has more than {ANSWER_BYTES_MAX} bytes")));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(error) => return Err(Miss::Lost(format!("the answer broke off: {}", root_cause(&error)))),
        }
    }
}

fn problem_of(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Miss {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => {
            let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Miss::Problem(Box::new(problem), retry_after.map(Duration::from_secs))
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            let excerpt = text.split_whitespace().collect::<Vec<_>>().join(" ");
            Miss::Foreign(status, excerpt.chars().take(EXCERPT_CHARS_MAX).collect())
        }
    }
}

/// The innermost cause: what the system said, without the layers in between.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A number in a header.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim_matches('"').parse().ok()
}

impl Reply {
    /// The answer with what the headers say about it.
    pub(super) fn answer<T>(&self, value: T) -> Answer<T> {
        Answer {
            value,
            revision: Revision::new(number(&self.headers, REVISION_HEADER.as_str()).unwrap_or_default()),
            staleness: number(&self.headers, STALENESS_HEADER.as_str()).map(Duration::from_millis),
        }
    }

    /// The body as JSON. A body that can't be read says nothing about whether a write was applied: it was.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<Answer<T>, Error> {
        let value = serde_json::from_slice(&self.body).map_err(|error| {
            Error::Integrity(format!("the cluster answered, but not in a form known here: {error}"))
        })?;
        Ok(self.answer(value))
    }
}
