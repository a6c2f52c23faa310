//! Which call is sent again, where, and what is told when it is not.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use quorate::api::model::Code;
use quorate::client::{Client, Consistency, Error, ListOptions, Precondition, ReadOptions, WriteOptions};
use quorate::types::{Key, KeyRange, Revision};

use crate::fake::{Reaction, Server, json, nobody, problem};

const PUT_REPLY: &str = r#"{"key":"k","create_revision":7,"mod_revision":7,"version":1,"lease":0}"#;

fn client(endpoints: &[&str]) -> Client {
    let endpoints = endpoints.iter().map(ToString::to_string);
    Client::builder().endpoints(endpoints).timeout(Duration::from_secs(5)).build().unwrap()
}

fn key() -> Key {
    Key::new("k").unwrap()
}

async fn put(client: &Client) -> Result<u64, Error> {
    let answer = client.put(&key(), Bytes::from_static(b"v"), WriteOptions::default()).await?;
    Ok(answer.value.mod_revision)
}

async fn get(client: &Client) -> Result<Option<Bytes>, Error> {
    Ok(client.get(&key(), ReadOptions::default()).await?.value.and_then(|record| record.value))
}

fn put_done() -> Reaction {
    json(200, PUT_REPLY)
}

fn value() -> Reaction {
    let headers = ["quorate-revision", "etag", "quorate-create-revision", "quorate-version"];
    let headers = headers.map(|name| (name.to_owned(), if name == "etag" { "\"7\"" } else { "7" }.to_owned()));
    Reaction::Answer { status: 200, headers: headers.into(), body: b"v".into() }
}

fn half(reaction: Reaction) -> Reaction {
    match reaction {
        Reaction::Answer { status, headers, body } => {
            Reaction::Half { status, headers, body: [body, vec![0; 9]].concat() }
        }
        other => other,
    }
}

#[tokio::test]
async fn a_write_that_was_never_sent_goes_to_the_next_endpoint() {
    let server = Server::script([put_done()]);
    assert_eq!(put(&client(&[&nobody(), &server.url])).await.unwrap(), 7);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_write_whose_connection_broke_is_unknown_and_never_sent_again() {
    for breaking in [Reaction::HangUp, half(put_done())] {
        let (broken, other) = (Server::script([breaking]), Server::script([put_done()]));
        let error = put(&client(&[&broken.url, &other.url])).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
        assert_eq!((broken.requests().len(), other.requests().len()), (1, 0));
    }
}

#[tokio::test]
async fn a_write_without_an_answer_in_time_is_unknown() {
    let (silent, other) = (Server::script([Reaction::Silence]), Server::script([put_done()]));
    let client = client(&[&silent.url, &other.url]);
    // Long enough that it is sent.
    let options = WriteOptions { timeout: Some(Duration::from_secs(1)), ..WriteOptions::default() };
    let error = client.put(&key(), Bytes::new(), options).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!((silent.requests().len(), other.requests().len()), (1, 0));
}

#[tokio::test]
async fn a_write_that_surely_was_not_applied_is_sent_again() {
    let no_leader = problem(503, "no_leader", true, "not_applied");
    let (first, second) = (Server::script([no_leader.clone()]), Server::script([no_leader, put_done()]));
    assert_eq!(put(&client(&[&first.url, &second.url])).await.unwrap(), 7);
    assert_eq!((first.requests().len(), second.requests().len()), (2, 2));
}

#[tokio::test]
async fn a_write_of_unknown_outcome_is_told_as_such_even_if_it_is_retryable() {
    for retryable in [true, false] {
        let server = Server::script([problem(504, "outcome_unknown", retryable, "unknown")]);
        let error = put(&client(&[&server.url])).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::OutcomeUnknown));
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_refusal_is_final() {
    let refusal = problem(412, "precondition_failed", false, "not_applied");
    let (server, other) = (Server::script([refusal]), Server::script([put_done()]));
    let error = put(&client(&[&server.url, &other.url])).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(problem) if problem.code == Code::PreconditionFailed), "{error}");
    assert_eq!((server.requests().len(), other.requests().len()), (1, 0));
}

#[tokio::test]
async fn a_read_goes_on_to_the_next_endpoint_whatever_happens() {
    let unready = problem(503, "not_ready", true, "not_applied");
    for trouble in [Reaction::HangUp, half(value()), Reaction::Silence, unready] {
        let (broken, other) = (Server::script([trouble]), Server::script([value()]));
        let client = client(&[&broken.url, &other.url]);
        let options = ReadOptions { timeout: Some(Duration::from_secs(2)), ..ReadOptions::default() };
        let record = client.get(&key(), options).await.unwrap().value.unwrap();
        assert_eq!((record.value, record.mod_revision), (Some(Bytes::from_static(b"v")), 7));
        assert_eq!((broken.requests().len(), other.requests().len()), (1, 1));
    }
}

#[tokio::test]
async fn calls_stay_with_the_endpoint_that_answered() {
    let server = Server::script([value()]);
    let broken = Server::script([Reaction::HangUp]);
    let client = client(&[&broken.url, &server.url]);
    for _ in 0..3 {
        get(&client).await.unwrap();
    }
    assert_eq!((broken.requests().len(), server.requests().len()), (1, 3));
}

#[tokio::test]
async fn nobody_there_is_unavailable_within_the_deadline() {
    let client = Client::builder().endpoints([nobody(), nobody()]).timeout(Duration::from_secs(1)).build().unwrap();
    let began = tokio::time::Instant::now();
    for error in [put(&client).await.unwrap_err(), get(&client).await.unwrap_err()] {
        assert!(matches!(error, Error::Unavailable { attempts: 4.., .. }), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn what_is_no_answer_of_this_store_is_not_taken_for_one() {
    let page = || Reaction::Answer { status: 200, headers: Vec::new(), body: b"<html>hello".into() };
    let error = get(&client(&[&Server::script([page()]).url])).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { attempts: 1, .. }), "{error}");
    assert!(error.to_string().contains("status 200, '<html>hello'"), "{error}");
    let error = put(&client(&[&Server::script([page()]).url])).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
}

#[tokio::test]
async fn an_absent_key_is_an_answer() {
    let server = Server::script([problem(404, "key_not_found", false, "not_applied")]);
    let client = client(&[&server.url]);
    let answer = client.get(&key(), ReadOptions::default()).await.unwrap();
    assert_eq!((answer.value, answer.revision), (None, Revision::new(7)));
    let deleted = client.delete(&key(), WriteOptions::default()).await.unwrap().value;
    assert_eq!((deleted.deleted, deleted.revision), (0, 7));
}

#[tokio::test]
async fn what_was_asked_for_stands_in_the_request() {
    let server = Server::start(|_, request| if request.method == "GET" { value() } else { put_done() });
    let client = client(&[&server.url]);
    let consistency = Consistency::Bounded { max_staleness: Duration::from_secs(2) };
    let timeout = Some(Duration::from_secs(50));
    let options = ReadOptions { consistency, min_revision: Some(Revision::new(5)), revision: None, timeout };
    client.get(&Key::new("a/ü").unwrap(), options).await.unwrap();
    for precondition in [Precondition::Match(Revision::new(3)), Precondition::Absent] {
        let options = WriteOptions { precondition, ..WriteOptions::default() };
        client.put(&key(), Bytes::from_static(b"\xff"), options).await.unwrap();
    }
    let [get, put_match, put_absent] = &server.requests()[..] else { panic!("three requests were sent") };
    assert_eq!(get.target, "/v1/kv/a/%C3%BC?consistency=bounded&max_staleness=2000ms&min_revision=5");
    let budget = get.header("quorate-timeout").and_then(|text| text.strip_suffix("ms")?.parse::<u64>().ok());
    assert!(budget.is_some_and(|budget| (20_000..=50_000).contains(&budget)), "{budget:?}");
    assert_eq!((put_match.header("if-match"), put_match.body.as_slice()), (Some("\"3\""), &b"\xff"[..]));
    assert_eq!(put_absent.header("if-none-match"), Some("*"));
}

#[tokio::test]
async fn a_listing_follows_its_cursors() {
    let page = |items: &str, next: &str| json(200, &format!(r#"{{"revision":7,"count":3,"items":[{items}]{next}}}"#));
    let item = |key: &str| {
        format!(r#"{{"key":"{key}","value":"v","create_revision":1,"mod_revision":1,"version":1,"lease":0}}"#)
    };
    let server =
        Server::script([page(&[item("a"), item("b")].join(","), r#","next_cursor":"x/=""#), page(&item("c"), "")]);
    let client = client(&[&server.url]);
    let records: Vec<_> = client.list(KeyRange::all(), ListOptions::default()).try_collect().await.unwrap();
    assert_eq!(records.iter().map(|record| &record.key[..]).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    let targets: Vec<_> = server.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/v1/kv?start=&end=", "/v1/kv?start=&end=&cursor=x%2F%3D"]);
}
