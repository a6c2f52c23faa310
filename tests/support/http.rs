//! A bare HTTP client for contract tests: sends what it is told to, and checks what holds for every answer.
//!
//! Leaves out: retries and redirects. A test wants to see them.

use quorate::api::model::{Listing, Problem, PutReply, StatusReply, TxnReply};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

/// A client that talks to one node.
pub(crate) struct Http {
    pub(crate) url: String,
    pub(crate) client: Client,
}

/// Header lines.
pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

impl Http {
    /// A client of the node at this URL.
    pub(crate) fn new(url: &str) -> Self {
        quorate::tls::install();
        let client = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        Self { url: url.trim_end_matches('/').to_owned(), client }
    }

    /// Sends a request; every answer must carry its revision.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: Headers<'_>,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        let mut request =
            self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", self.url));
        for (name, value) in headers {
            request =
                request.header(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let response = request.body(body).send().await.unwrap();
        let revision = header(response.headers(), "quorate-revision");
        assert!(
            revision.parse::<u64>().is_ok(),
            "{method} {path}: every answer carries its revision, not {revision:?}"
        );
        response
    }

    /// A plain `GET`.
    pub(crate) async fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "").await
    }

    /// Writes a key.
    pub(crate) async fn put(&self, key: &str, value: impl Into<reqwest::Body>) -> PutReply {
        let response = self.send("PUT", &format!("/v1/kv/{key}"), &[], value).await;
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    /// Lists keys.
    pub(crate) async fn list(&self, query: &str) -> Listing {
        let response = self.get(&format!("/v1/kv?{query}")).await;
        assert_eq!(response.status(), 200, "{query}");
        response.json().await.unwrap()
    }

    /// Runs a transaction.
    pub(crate) async fn txn(&self, body: Value) -> TxnReply {
        let response = self.send("POST", "/v1/txn", &[], body.to_string()).await;
        assert_eq!(response.status(), 200, "{body}");
        response.json().await.unwrap()
    }

    /// The newest revision of the node's store.
    pub(crate) async fn revision(&self) -> u64 {
        self.get("/v1/status").await.json::<StatusReply>().await.unwrap().revision
    }

    /// Sends a request that must be refused, and checks that the refusal is told as the contract says.
    pub(crate) async fn refused(&self, case: &Refused<'_>) -> Problem {
        let response = self.send(case.method, case.path, case.headers, case.body.clone()).await;
        let shown = format!("{} {} {:?}", case.method, &case.path[..case.path.len().min(120)], case.headers);
        assert_eq!(response.status(), case.status, "{shown}");
        if case.method == "HEAD" {
            assert_eq!(response.bytes().await.unwrap().len(), 0, "{shown}");
            return serde_json::from_value(
                json!({"type":"","title":"","status":case.status,"detail":"","code":case.code,
                "retryable":false,"outcome":"not_applied","request_id":""}),
            )
            .unwrap();
        }
        problem_of(response, case.status, case.code, &shown).await
    }
}

/// A request that must be refused, and how.
#[derive(Default)]
pub(crate) struct Refused<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: Headers<'a>,
    pub(crate) body: String,
    pub(crate) status: u16,
    pub(crate) code: &'a str,
}

/// A plain request that must be refused.
pub(crate) fn refused<'a>(method: &'a str, path: &'a str, status: u16, code: &'a str) -> Refused<'a> {
    Refused { method, path, status, code, ..Refused::default() }
}

/// The problem document of an answer, checked against what the contract says of all of them.
pub(crate) async fn problem_of(response: Response, status: u16, code: &str, shown: &str) -> Problem {
    assert_eq!(header(response.headers(), "content-type"), "application/problem+json", "{shown}");
    let id = header(response.headers(), "x-request-id");
    let waits = response.headers().contains_key("retry-after");
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.code.as_str(), code, "{shown}: {}", problem.detail);
    assert_eq!(problem.status, status, "{shown}");
    assert_eq!(problem.kind, format!("urn:quorate:problem:{code}"), "{shown}");
    assert_eq!(problem.request_id, id, "{shown}");
    assert_eq!(waits, matches!(status, 429 | 503), "{shown}");
    assert!(!problem.title.is_empty() && !problem.detail.is_empty() && !problem.detail.ends_with('.'), "{shown}");
    problem
}

/// A header of an answer; empty if it is not there.
pub(crate) fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}
