//! Downloading snapshots: checked, begun anew, never half a file under the name.

use base64::Engine as _;
use quorate::client::{Client, Error};
use quorate::types::Revision;
use sha2::{Digest, Sha256};

use crate::fake::{Reaction, Server};

const CONTENT: &[u8] = b"the bytes of a snapshot";

fn headers(content: &[u8]) -> Vec<(String, String)> {
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(content));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        header("quorate-revision", "9"),
        header("quorate-snapshot-revision", "9"),
        header("repr-digest", &format!("sha-256=:{digest}:")),
    ]
}

fn whole() -> Reaction {
    Reaction::Answer { status: 200, headers: headers(CONTENT), body: CONTENT.into() }
}

fn half() -> Reaction {
    Reaction::Half { status: 200, headers: headers(CONTENT), body: CONTENT.into() }
}

fn damaged() -> Reaction {
    Reaction::Answer { status: 200, headers: headers(b"other bytes"), body: CONTENT.into() }
}

fn client(server: &Server) -> Client {
    Client::builder().endpoints([server.url.clone()]).build().unwrap()
}

#[tokio::test]
async fn a_download_that_broke_off_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.snapshot");
    let server = Server::script([half(), whole()]);
    let saved = client(&server).save_snapshot(&path).await.unwrap();
    assert_eq!((saved.revision, saved.bytes), (Revision::new(9), CONTENT.len() as u64));
    assert_eq!(saved.sha256[..], Sha256::digest(CONTENT)[..]);
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn damage_on_the_way_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.snapshot");
    std::fs::write(&path, "older").unwrap();
    let error = client(&Server::script([damaged()])).save_snapshot(&path).await.unwrap_err();
    assert!(matches!(error, Error::Integrity(_)), "{error}");
    let error = client(&Server::script([half()])).save_snapshot(&path).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"older");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_snapshot_without_a_digest_is_not_trusted() {
    let mut headers = headers(CONTENT);
    headers.pop();
    let server = Server::script([Reaction::Answer { status: 200, headers, body: CONTENT.into() }]);
    let error = client(&server).snapshot().await.unwrap_err();
    assert!(matches!(error, Error::Integrity(_)), "{error}");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_this_machines_trouble() {
    let server = Server::script([whole()]);
    let error = client(&server).save_snapshot("/nonexistent/a.snapshot".as_ref()).await.unwrap_err();
    assert!(matches!(error, Error::Local { .. }), "{error}");
}
