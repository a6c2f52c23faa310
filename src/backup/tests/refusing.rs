//! Stores that refuse, as their documentation has them do: what an operator is told, through the real clients of each cloud.
//!
//! Method: a listener on loopback answers every request alike. Leaves out: stores that work (`tests/backup_stores.rs`).

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::backup::probe::{ProbeError, probe};
use crate::backup::repository::StoreError;
use crate::backup::target::{self, Options};

/// Longer than a client tries again at a store that is away, and shorter than anybody waits.
const PATIENCE: Duration = Duration::from_secs(40);

/// Answers every request with the same; gives its address.
async fn store(status: &str, body: &str) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let serving = tokio::task::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            // Requests without a body fit in one read; those with one are answered as early.
            let mut request = vec![0; 64 * 1024];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(answer.as_bytes()).await;
            let _ = connection.shutdown().await;
        }
    });
    (address, serving)
}

fn page(code: &str, message: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
}

fn options(pairs: &[(&str, &str)]) -> Options {
    pairs.iter().map(|(option, value)| ((*option).to_owned(), (*value).to_owned())).collect()
}

/// What the probe of an S3 bucket at an address says.
async fn s3(endpoint: &str) -> ProbeError {
    let options = options(&[
        ("aws_endpoint", endpoint),
        ("aws_allow_http", "true"),
        ("aws_region", "eu-central-1"),
        ("aws_access_key_id", "me"),
        ("aws_secret_access_key", "hunter2"),
    ]);
    let repository = target::open("s3://bucket/prefix", &options).unwrap();
    tokio::time::timeout(PATIENCE, probe(&repository)).await.expect("it ends").unwrap_err()
}

#[tokio::test]
async fn what_s3_refuses_is_told_with_what_to_do() {
    type Is = fn(&StoreError) -> bool;
    let cases: [(&str, &str, &str, Is, &str); 8] = [
        (
            "404 Not Found",
            "NoSuchBucket",
            "no bucket",
            |error| matches!(error, StoreError::NoBucket { .. }),
            "make it first",
        ),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "the region 'eu-central-1' is wrong; expecting 'us-west-2'",
            |error| matches!(error, StoreError::Region { .. }),
            "set the option aws_region",
        ),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "the bucket must be addressed using another endpoint",
            |error| matches!(error, StoreError::Region { .. }),
            "set the option aws_region",
        ),
        (
            "403 Forbidden",
            "RequestTimeTooSkewed",
            "the difference is too large",
            |error| matches!(error, StoreError::Clock { .. }),
            "by NTP",
        ),
        (
            "400 Bad Request",
            "ExpiredToken",
            "the token has expired",
            |error| matches!(error, StoreError::Unauthenticated { .. }),
            "not expired",
        ),
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            "no such key",
            |error| matches!(error, StoreError::Unauthenticated { .. }),
            "are they set",
        ),
        (
            "403 Forbidden",
            "SignatureDoesNotMatch",
            "wrong secret",
            |error| matches!(error, StoreError::Unauthenticated { .. }),
            "are they set",
        ),
        ("507 Insufficient Storage", "InsufficientStorage", "full", |error| error.is_transient(), "make room"),
    ];
    for (status, code, message, is, says) in cases {
        let (address, serving) = store(status, &page(code, message)).await;
        let error = s3(&address).await;
        assert!(matches!(&error, ProbeError::Store { source, .. } if is(source)), "{code}: {error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("s3://bucket/prefix"), "{code}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
        serving.abort();
    }
}

#[tokio::test]
async fn a_bucket_that_is_forbidden_is_told_with_the_right_that_lacks() {
    let (address, serving) = store("403 Forbidden", &page("AccessDenied", "Access Denied")).await;
    let error = s3(&address).await;
    assert!(matches!(error, ProbeError::Right { right: "list", .. }), "{error}");
    assert!(error.to_string().contains("s3:ListBucket"), "{error}");
    serving.abort();
}

#[tokio::test]
async fn a_store_that_is_not_there_is_no_fault_of_the_credentials() {
    // The port is free again, so nobody listens there.
    let (address, serving) = store("200 OK", "").await;
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    let error = s3(&address).await;
    assert!(matches!(&error, ProbeError::Store { source: StoreError::Failed { .. }, .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
}

#[tokio::test]
async fn azure_and_google_are_understood_alike() {
    let (address, serving) =
        store("403 Server failed to authenticate the request", &page("AuthenticationFailed", "check the signature"))
            .await;
    let settings = options(&[
        ("azure_endpoint", &address),
        ("azure_allow_http", "true"),
        ("azure_storage_account_name", "me"),
        ("azure_storage_account_key", "aHVudGVyMg=="),
    ]);
    let error = probe(&target::open("az://container/x", &settings).unwrap()).await.unwrap_err();
    assert!(matches!(&error, ProbeError::Store { source: StoreError::Unauthenticated { .. }, .. }), "{error}");
    serving.abort();

    let (address, serving) = store("404 Not Found", &page("NoSuchBucket", "no bucket")).await;
    let settings =
        options(&[("google_base_url", &address), ("google_allow_http", "true"), ("google_bearer_token", "hunter2")]);
    let error = probe(&target::open("gs://bucket/x", &settings).unwrap()).await.unwrap_err();
    assert!(matches!(&error, ProbeError::Store { source: StoreError::NoBucket { .. }, .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    serving.abort();
}
