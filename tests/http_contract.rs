//! The HTTP contract, asked of running nodes: every call, every status and every code that can be provoked.
//!
//! Leaves out: `revision_compacted` (this version has no call that compacts) and `internal` (a healthy node has none);
//! how they are told is tested beside the code. Limits of the accept loop are tested in `src/api/server/tests.rs`.

#[path = "support/http.rs"]
mod http;
mod support;

use std::collections::BTreeSet;

use crate::http::{Http, Refused, header, problem_of, refused};
use quorate::api::model::{
    ClusterReply, Code, DeleteReply, LeaderReply, MemberChangeReply, NodeRole, OutcomeKind, Problem, PutReply, Record,
    StatusReply, TxnOpReply, ViewSource,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_key_is_created_updated_read_and_deleted() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let before = http.revision().await;

    let response = http.send("PUT", "/v1/kv/app/one", &[], "first").await;
    assert_eq!(response.status(), 201);
    let etag = header(response.headers(), "etag");
    let created: PutReply = response.json().await.unwrap();
    assert_eq!(created.key, "app/one");
    assert_eq!(
        (created.mod_revision, created.create_revision, created.version, created.lease),
        (before + 1, before + 1, 1, 0)
    );
    assert_eq!(etag, format!("\"{}\"", created.mod_revision));

    let response = http.send("PUT", "/v1/kv/app/one", &[], "second").await;
    assert_eq!(response.status(), 200);
    let updated: PutReply = response.json().await.unwrap();
    assert_eq!((updated.mod_revision, updated.create_revision, updated.version), (before + 2, before + 1, 2));

    let response = http.get("/v1/kv/app/one").await;
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert_eq!(header(&headers, "etag"), format!("\"{}\"", updated.mod_revision));
    assert_eq!(header(&headers, "content-type"), "application/octet-stream");
    assert_eq!(header(&headers, "quorate-create-revision"), created.create_revision.to_string());
    assert_eq!((header(&headers, "quorate-version"), header(&headers, "quorate-lease")), ("2".into(), "0".into()));
    assert_eq!(response.bytes().await.unwrap(), "second");

    let response = http.send("HEAD", "/v1/kv/app/one", &[], "").await;
    assert_eq!((response.status().as_u16(), header(response.headers(), "content-length")), (200, "6".into()));

    let record: Record =
        http.send("GET", "/v1/kv/app/one", &[("accept", "application/json")], "").await.json().await.unwrap();
    assert_eq!((record.key.as_ref(), record.value.as_deref()), (&b"app/one"[..], Some(&b"second"[..])));

    let response = http.send("DELETE", "/v1/kv/app/one", &[], "").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.json::<DeleteReply>().await.unwrap(), DeleteReply { deleted: 1, revision: before + 3 });
    http.refused(&refused("GET", "/v1/kv/app/one", 404, "key_not_found")).await;
    http.refused(&refused("HEAD", "/v1/kv/app/one", 404, "key_not_found")).await;
    http.refused(&refused("DELETE", "/v1/kv/app/one", 404, "key_not_found")).await;
    assert_eq!(http.revision().await, before + 3, "a delete of nothing makes no revision");
}

#[tokio::test]
async fn keys_and_values_are_any_bytes() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let value: Vec<u8> = (0..=255).collect();
    http.put("%00%ff%2F", value.clone()).await;
    assert_eq!(http.get("/v1/kv/%00%FF/").await.bytes().await.unwrap(), value, "an encoded slash is a slash");
    let listing: Value = http.get("/v1/kv?prefix=%00%ff").await.json().await.unwrap();
    assert_eq!(listing["items"][0]["key_base64"], "AP8v");
    assert!(listing["items"][0].get("key").is_none());
    http.put("empty", "").await;
    assert_eq!(http.get("/v1/kv/empty").await.bytes().await.unwrap(), "");
    let listing: Value = http.get("/v1/kv?prefix=empty").await.json().await.unwrap();
    assert_eq!(listing["items"][0]["value"], "");
}

/// Sends bytes as they are: an ordinary client would tidy up the path.
async fn raw(url: &str, request: &str) -> String {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn paths_are_taken_as_they_stand() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    for path in ["a//b", "a/../b", "./a", "a/", "/a", "%2e%2e/a", "A", "a%2Fb"] {
        let put = format!(
            "PUT /v1/kv/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{path}",
            path.len()
        );
        assert!(raw(&node.url, &put).await.starts_with("HTTP/1.1 201"), "{path}");
    }
    let keys: BTreeSet<String> =
        http.list("").await.items.iter().map(|item| String::from_utf8(item.key.to_vec()).unwrap()).collect();
    let expected = ["a//b", "a/../b", "./a", "a/", "/a", "../a", "A", "a/b"];
    assert_eq!(keys, expected.into_iter().map(str::to_owned).collect());
    for path in ["%zz", "%", "a%2"] {
        let get = format!("GET /v1/kv/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = raw(&node.url, &get).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"invalid_key\""), "{path}: {answer}");
    }
}

#[tokio::test]
async fn preconditions_are_decided_where_the_write_is_applied() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let put = async |name: &str, value: &str| http.send("PUT", "/v1/kv/k", &[(name, value)], "v").await;
    assert_eq!(put("if-match", "*").await.status(), 412, "the key does not exist");
    assert_eq!(put("if-match", "\"1\"").await.status(), 412);
    assert_eq!(put("if-none-match", "*").await.status(), 201);
    let response = put("if-none-match", "*").await;
    let etag = header(response.headers(), "etag");
    let problem = problem_of(response, 412, "precondition_failed", "if-none-match: *").await;
    assert_eq!(problem.outcome, OutcomeKind::NotApplied);
    assert!(!etag.is_empty(), "a failed precondition tells the current entity tag");
    assert_eq!(put("if-match", &etag).await.status(), 200);
    assert_eq!(put("if-match", &etag).await.status(), 412, "the tag has changed");
    let current = header(http.get("/v1/kv/k").await.headers(), "etag");
    assert_eq!(put("if-match", &format!("\"999\", {current}")).await.status(), 200, "one of a list is enough");
    assert_eq!(put("if-match", "*").await.status(), 200);

    let current = header(http.get("/v1/kv/k").await.headers(), "etag");
    let response = http.send("GET", "/v1/kv/k", &[("if-none-match", &current)], "").await;
    assert_eq!((response.status().as_u16(), header(response.headers(), "etag")), (304, current.clone()));
    assert_eq!(http.send("GET", "/v1/kv/k", &[("if-none-match", "\"1\"")], "").await.status(), 200);
    assert_eq!(http.send("GET", "/v1/kv/k", &[("if-match", "\"1\"")], "").await.status(), 412);
    assert_eq!(http.send("DELETE", "/v1/kv/k", &[("if-match", "\"1\"")], "").await.status(), 412);
    assert_eq!(http.send("DELETE", "/v1/kv/k", &[("if-match", &current)], "").await.status(), 200);
}

#[tokio::test]
async fn listings_are_complete_and_ordered_at_one_revision() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    for number in 0..25 {
        http.put(&format!("p/{number:02}"), format!("v{number}")).await;
    }
    http.put("q", "outside").await;
    let all = http.list("prefix=p/").await;
    assert_eq!((all.count, all.items.len(), all.next_cursor), (25, 25, None));
    assert!(all.items.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(http.list("start=p/05&end=p/10").await.count, 5);
    assert_eq!(http.list("start=p/20&end=").await.count, 6, "an empty end is the end of the key space");
    assert_eq!(http.list("").await.count, 26);
    let counted = http.list("prefix=p/&count_only=true").await;
    assert_eq!((counted.count, counted.items.len()), (25, 0));
    let keys = http.list("prefix=p/&keys_only=true&order=desc&limit=3").await;
    assert_eq!(keys.items.iter().map(|item| item.key.clone()).collect::<Vec<_>>(), ["p/24", "p/23", "p/22"]);
    assert!(keys.items.iter().all(|item| item.value.is_none()));
    assert_eq!(http.list("prefix=nothing").await.count, 0);

    for order in ["asc", "desc"] {
        let mut page = http.list(&format!("prefix=p/&limit=10&order={order}")).await;
        let (revision, mut items) = (page.revision, page.items.clone());
        // What is written between the pages must not be seen.
        http.put("p/03x", "new").await;
        http.put("p/20", "changed").await;
        assert_eq!(http.send("DELETE", "/v1/kv/p/15", &[], "").await.status(), 200);
        while let Some(cursor) = page.next_cursor {
            page = http.list(&format!("cursor={cursor}&limit=10")).await;
            assert_eq!((page.revision, page.count), (revision, 25));
            items.extend(page.items);
        }
        assert_eq!(items.len(), 25, "{order}");
        let at_revision = http.list(&format!("prefix=p/&revision={revision}&order={order}")).await;
        assert_eq!(items, at_revision.items, "{order}");
        http.put("p/15", "back").await;
        assert_eq!(http.send("DELETE", "/v1/kv/p/03x", &[], "").await.status(), 200);
    }
}

#[tokio::test]
async fn a_stream_of_lines_brings_the_whole_range() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let puts: Vec<Value> =
        (0..1_000).map(|number| json!({"put": {"key": format!("s/{number:05}"), "value": "x".repeat(100)}})).collect();
    http.txn(json!({"success": puts})).await;
    for number in 0..1_500 {
        http.put(&format!("t/{number:05}"), "y").await;
    }
    let response = http.send("GET", "/v1/kv", &[("accept", "application/x-ndjson")], "").await;
    assert_eq!(
        (response.status().as_u16(), header(response.headers(), "content-type")),
        (200, "application/x-ndjson".into())
    );
    let text = response.text().await.unwrap();
    let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2_500);
    assert!(records.is_sorted_by(|a, b| a.key < b.key));
    let response =
        http.send("GET", "/v1/kv?prefix=s/&order=desc&keys_only", &[("accept", "application/x-ndjson")], "").await;
    let text = response.text().await.unwrap();
    let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(records.len() == 1_000 && records.is_sorted_by(|a, b| a.key > b.key) && records[0].value.is_none());
}

#[tokio::test]
async fn ranges_are_deleted_only_where_they_are_named() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    for key in ["a/1", "a/2", "b/1", "c"] {
        http.put(key, "v").await;
    }
    let delete = async |query: &str| -> u64 {
        http.send("DELETE", &format!("/v1/kv?{query}"), &[], "").await.json::<DeleteReply>().await.unwrap().deleted
    };
    assert_eq!(delete("prefix=a/").await, 2);
    let revision = http.revision().await;
    assert_eq!(delete("prefix=a/").await, 0);
    assert_eq!(http.revision().await, revision, "a delete of nothing makes no revision");
    assert_eq!(delete("start=b&end=c").await, 1);
    http.refused(&refused("DELETE", "/v1/kv", 400, "bad_request")).await;
    http.refused(&refused("DELETE", "/v1/kv?start=a", 400, "bad_request")).await;
    http.refused(&refused("DELETE", "/v1/kv?start=b&end=a", 400, "invalid_range")).await;
    assert_eq!(http.list("").await.count, 1);
    assert_eq!(delete("prefix=").await, 1);
}

#[tokio::test]
async fn transactions_compare_and_do_in_one_revision() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let a = http.put("a", "1").await;
    for key in ["tmp/1", "tmp/2", "tmp/3"] {
        http.put(key, "x").await;
    }
    let before = http.revision().await;
    let request = json!({"compare": [{"key": "a", "target": "mod_revision", "op": "==", "value": a.mod_revision}],
        "success": [{"put": {"key": "a", "value": "2"}}, {"get": {"key": "a"}},
            {"get": {"key": "b"}}, {"delete": {"prefix": "tmp/"}}],
        "failure": [{"get": {"key": "a"}}]});
    let reply = http.txn(request.clone()).await;
    assert_eq!((reply.succeeded, reply.revision, reply.responses.len()), (true, before + 1, 4));
    let TxnOpReply::Put(put) = &reply.responses[0] else { panic!("{reply:?}") };
    assert_eq!((put.mod_revision, put.version), (before + 1, 2));
    let TxnOpReply::Get(own) = &reply.responses[1] else { panic!("{reply:?}") };
    assert_eq!(own.items[0].value.as_deref(), Some(&b"2"[..]), "a get sees the transaction's own writes");
    let TxnOpReply::Get(absent) = &reply.responses[2] else { panic!("{reply:?}") };
    assert_eq!((absent.count, absent.items.len()), (0, 0));
    assert!(matches!(&reply.responses[3], TxnOpReply::Delete(deleted) if deleted.deleted == 3));

    let reply = http.txn(request).await;
    assert_eq!((reply.succeeded, reply.revision), (false, before + 1), "a branch that only reads makes no revision");
    let compare = |target: &str, op: &str, value: Value| json!({"compare": [{"key": "a", "target": target, "op": op, "value": value}]});
    for (target, op, value, holds) in [
        ("value", "==", json!("2"), true),
        ("value", "<", json!("3"), true),
        ("value", ">=", json!("3"), false),
        ("version", ">", json!(1), true),
        ("version", "<=", json!(1), false),
        ("create_revision", "!=", json!(a.create_revision), false),
        ("lease", "==", json!(0), true),
    ] {
        assert_eq!(http.txn(compare(target, op, value.clone())).await.succeeded, holds, "{target} {op} {value}");
    }
    let absent = json!({"compare": [{"key": "none", "target": "version", "op": "==", "value": 0}]});
    assert!(http.txn(absent).await.succeeded);
}

#[tokio::test]
async fn reads_are_as_fresh_as_asked() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let first = http.put("k", "old").await;
    let second = http.put("k", "new").await;
    let response = http.get("/v1/kv/k?consistency=linearizable").await;
    assert!(!response.headers().contains_key("quorate-staleness-ms"));
    for query in ["consistency=stale", "consistency=bounded&max_staleness=2s"] {
        let response = http.get(&format!("/v1/kv/k?{query}")).await;
        let told = header(response.headers(), "quorate-staleness-ms");
        assert!(response.status() == 200 && (told == "unknown" || told.parse::<u64>().is_ok()), "{query}: {told}");
        assert!(query == "consistency=stale" || told.parse::<u64>().unwrap() <= 2_000, "{query}: {told}");
    }
    let old = http.get(&format!("/v1/kv/k?revision={}", first.mod_revision)).await;
    assert_eq!(header(old.headers(), "quorate-revision"), first.mod_revision.to_string());
    assert_eq!(old.bytes().await.unwrap(), "old");
    assert_eq!(http.get(&format!("/v1/kv/k?min_revision={}", second.mod_revision)).await.bytes().await.unwrap(), "new");
    http.refused(&refused("GET", "/v1/kv/k?revision=1000000", 400, "bad_request")).await;
    let late = Refused {
        headers: &[("quorate-timeout", "200ms")],
        ..refused("GET", "/v1/kv/k?min_revision=1000000", 503, "not_ready")
    };
    assert!(http.refused(&late).await.retryable);
}

#[tokio::test]
async fn bad_requests_get_their_problem_and_change_nothing() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    http.put("k", "v").await;
    let before = http.get("/v1/status").await.json::<StatusReply>().await.unwrap();
    let long_key = format!("/v1/kv/{}", "x".repeat(4_097));
    let long_prefix = format!("/v1/kv?prefix={}", "x".repeat(4_098));
    let get = [
        ("/v1/kv/", 400, "invalid_key"),
        (&long_key, 400, "invalid_key"),
        (&long_prefix, 400, "invalid_range"),
        ("/v1/kv/k?unknown=1", 400, "bad_request"),
        ("/v1/kv/k?consistency=fresh", 400, "bad_request"),
        ("/v1/kv/k?consistency=bounded", 400, "bad_request"),
        ("/v1/kv/k?max_staleness=2s", 400, "bad_request"),
        ("/v1/kv/k?consistency=bounded&max_staleness=soon", 400, "bad_request"),
        ("/v1/kv/k?revision=0", 400, "bad_request"),
        ("/v1/kv/k?revision=-1", 400, "bad_request"),
        ("/v1/kv/k?revision=9007199254740992", 400, "bad_request"),
        ("/v1/kv/k?revision=1&revision=1", 400, "bad_request"),
        ("/v1/kv/k?min_revision=x", 400, "bad_request"),
        ("/v1/kv/absent", 404, "key_not_found"),
        ("/v1/kv?limit=0", 400, "bad_request"),
        ("/v1/kv?limit=10001", 400, "bad_request"),
        ("/v1/kv?cursor=bm90IG9uZQ", 400, "bad_request"),
        ("/v1/kv?order=sideways", 400, "bad_request"),
        ("/v1/kv?start=b&end=a", 400, "invalid_range"),
        ("/v1/kv?start=a&end=a", 400, "invalid_range"),
        ("/v1/kv?prefix=a&start=b", 400, "bad_request"),
        ("/v1/kv?keys_only=perhaps", 400, "bad_request"),
        ("/v1/status?verbose=1", 400, "bad_request"),
        ("/v1/nothing", 404, "not_found"),
        ("/", 404, "not_found"),
        ("/v1/status/", 404, "not_found"),
        ("/v2/kv/k", 404, "not_found"),
        ("/v1/txn", 405, "method_not_allowed"),
    ];
    for (path, status, code) in get {
        http.refused(&refused("GET", path, status, code)).await;
    }
    let on_key = |headers| Refused { headers, ..refused("PUT", "/v1/kv/k", 400, "bad_request") };
    for headers in [
        &[("if-match", "7")][..],
        &[("if-match", "W/\"7\"")],
        &[("if-match", "*"), ("if-none-match", "*")],
        &[("quorate-timeout", "forever")],
        &[("quorate-timeout", "61s")],
        &[("idempotency-key", "a")],
    ] {
        http.refused(&on_key(headers)).await;
    }
    for (method, path) in [("PUT", "/v1/kv/k?lease=1"), ("PUT", "/v1/kv/k?ttl=3s")] {
        let problem = http.refused(&refused(method, path, 400, "bad_request")).await;
        assert!(problem.detail.contains("not available in this version"), "{}", problem.detail);
    }
    for (method, path, allowed) in [
        ("PATCH", "/v1/kv/k", "GET, HEAD, PUT, DELETE"),
        ("POST", "/v1/kv", "GET, DELETE"),
        ("DELETE", "/v1/txn", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ] {
        http.refused(&refused(method, path, 405, "method_not_allowed")).await;
        assert_eq!(header(http.send(method, path, &[], "").await.headers(), "allow"), allowed);
    }
    let large = Refused { body: "x".repeat(4 * 1024 * 1024 + 1), ..refused("PUT", "/v1/kv/k", 413, "value_too_large") };
    http.refused(&large).await;
    for (name, value) in [("a", "x".repeat(70_000))] {
        http.refused(&Refused { headers: &[(name, &value)], ..refused("GET", "/v1/kv/k", 431, "bad_request") }).await;
    }
    let after = http.get("/v1/status").await.json::<StatusReply>().await.unwrap();
    assert_eq!((before.revision, before.state_hash), (after.revision, after.state_hash));
}

#[tokio::test]
async fn bad_transactions_get_their_problem_and_change_nothing() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let before = http.revision().await;
    let put = json!({"put": {"key": "k", "value": "v"}});
    let many = json!({"success": vec![put.clone(); 1_025]}).to_string();
    let large = json!({"success": [{"put": {"key": "k", "value": "x".repeat(4 * 1024 * 1024 + 1)}}]}).to_string();
    let huge = format!("{{\"success\":[{}]}}", " ".repeat(17 * 1024 * 1024));
    let with = |second: Value| json!({"success": [put.clone(), second]}).to_string();
    let cases = [
        (String::new(), 400, "bad_request"),
        ("{".to_owned(), 400, "bad_request"),
        ("[]".to_owned(), 400, "bad_request"),
        ("null".to_owned(), 400, "bad_request"),
        (json!({"sucess": []}).to_string(), 400, "bad_request"),
        (with(json!({"move": {}})), 400, "bad_request"),
        (with(json!({"put": {"key": "k"}})), 400, "bad_request"),
        (with(json!({"put": {"key": "k", "key_base64": "aw==", "value": ""}})), 400, "bad_request"),
        (with(json!({"put": {"key": "k", "value": "", "lease": 1}})), 400, "bad_request"),
        (with(json!({"put": {"key": "k", "value": "", "lease": 9_007_199_254_740_992_u64}})), 400, "bad_request"),
        (with(json!({"put": {"key": "", "value": ""}})), 400, "invalid_key"),
        (with(json!({"get": {"start": "b", "end": "a"}})), 400, "invalid_range"),
        (with(json!({"get": {"key": "k", "limit": 10_001}})), 400, "bad_request"),
        (with(json!({"delete": {"start": "a"}})), 400, "bad_request"),
        (json!({"compare": [{"key": "k", "target": "age", "op": "==", "value": 1}]}).to_string(), 400, "bad_request"),
        (
            json!({"compare": [{"key": "k", "target": "version", "op": "~", "value": 1}]}).to_string(),
            400,
            "bad_request",
        ),
        (many, 400, "bad_request"),
        (large, 413, "value_too_large"),
        (huge, 413, "value_too_large"),
    ];
    for (body, status, code) in cases {
        http.refused(&Refused { body, ..refused("POST", "/v1/txn", status, code) }).await;
    }
    assert_eq!(http.revision().await, before);
    assert_eq!(http.list("").await.count, 0);
}

#[tokio::test]
async fn the_node_tells_how_it_does() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    http.put("k", "v").await;
    let status: StatusReply = http.get("/v1/status").await.json().await.unwrap();
    assert!(status.ready && status.not_ready_reason.is_none());
    assert_eq!(status.leader.map(|leader| leader.id), Some(status.id));
    assert!(status.applied_index.is_some() && status.commit_index >= status.applied_index);
    assert_eq!(status.state_hash.len(), 32);
    let cluster: ClusterReply = http.get("/v1/cluster").await.json().await.unwrap();
    assert_eq!((cluster.cluster_id, cluster.leader, cluster.members.len()), (status.cluster_id, Some(status.id), 1));
    assert_eq!((cluster.quorum.voters, cluster.quorum.needed), (1, 1));

    assert_eq!(http.get("/healthz").await.text().await.unwrap(), "ok\n");
    assert_eq!(http.get("/readyz").await.text().await.unwrap(), "ready\n");
    assert_eq!(http.send("HEAD", "/readyz", &[], "").await.status(), 200);
    let metrics = http.get("/metrics").await.text().await.unwrap();
    assert!(
        metrics.contains("http_requests_total{route=\"/v1/kv/{key}\",method=\"PUT\",status=\"201\"} 1"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"));
    let document: Value = http.get("/openapi.json").await.json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/v1/kv/{key}"]["put"].is_object());
}

#[tokio::test]
async fn the_snapshot_is_the_file_its_digest_says() {
    use base64::Engine as _;
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let put = http.put("k", vec![7; 300_000]).await;
    let response = http.get("/v1/snapshot").await;
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert!(header(&headers, "quorate-snapshot-revision").parse::<u64>().unwrap() >= put.mod_revision);
    let length = header(&headers, "content-length").parse::<usize>().unwrap();
    let bytes = response.bytes().await.unwrap();
    assert_eq!(bytes.len(), length);
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(&bytes));
    assert_eq!(header(&headers, "repr-digest"), format!("sha-256=:{digest}:"));
}

#[tokio::test]
async fn requests_are_named_and_details_told_where_asked() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let response = http.send("GET", "/v1/kv/none", &[("x-request-id", "my-request")], "").await;
    assert_eq!(header(response.headers(), "x-request-id"), "my-request");
    assert_eq!(response.json::<Problem>().await.unwrap().request_id, "my-request");
    let names = ["quorate-term", "quorate-served-by", "quorate-leader", "quorate-cluster", "quorate-consistency"];
    let plain = http.get("/v1/status").await;
    assert!(names.iter().all(|name| !plain.headers().contains_key(*name)));
    let detailed = http.send("GET", "/v1/kv?consistency=stale", &[("quorate-details", "1")], "").await;
    assert!(names.iter().all(|name| detailed.headers().contains_key(*name)), "{:?}", detailed.headers());
    assert_eq!(header(detailed.headers(), "quorate-consistency"), "stale");
}

#[tokio::test]
async fn what_is_over_a_limit_at_a_time_is_refused_with_429() {
    let node = support::single_node_with(|config| config.streams_max = 1).await;
    let http = Http::new(&node.url);
    for number in 0..24 {
        http.put(&format!("large/{number}"), vec![b'x'; 1024 * 1024]).await;
    }
    let ndjson = &[("accept", "application/x-ndjson")];
    // The answer is larger than all buffers on the way: as long as it is not read, the stream is open.
    let held = http.send("GET", "/v1/kv", ndjson, "").await;
    let second = Refused { headers: ndjson, ..refused("GET", "/v1/kv", 429, "too_many_requests") };
    assert!(http.refused(&second).await.retryable);
    assert_eq!(http.get("/readyz").await.status(), 200);
    assert!(held.bytes().await.unwrap().len() > 24 * 1024 * 1024);
    assert_eq!(http.send("GET", "/v1/kv?keys_only", ndjson, "").await.status(), 200);
}

#[tokio::test]
async fn any_node_takes_any_request() {
    let cluster = support::cluster(3).await;
    let https: Vec<Http> = cluster.nodes.iter().map(|node| Http::new(&node.url)).collect();
    for (number, http) in https.iter().enumerate() {
        let put = http.put(&format!("n/{number}"), "v").await;
        for other in &https {
            let response = other.get(&format!("/v1/kv/n/{number}")).await;
            assert_eq!(response.status(), 200, "what was acknowledged is seen by every linearizable read");
            assert_eq!(header(response.headers(), "etag"), format!("\"{}\"", put.mod_revision));
        }
    }
    let leader = cluster.leader().await;
    let follower = &https[(leader + 1) % 3];
    let redirect = &[("prefer", "redirect")];
    let response = follower.send("PUT", "/v1/kv/r%2F1", redirect, "v").await;
    assert_eq!(response.status(), 307);
    let location = header(response.headers(), "location");
    assert_eq!(location, format!("{}/v1/kv/r%2F1", cluster.nodes[leader].url.trim_end_matches('/')));
    assert_eq!(https[leader].send("PUT", "/v1/kv/r%2F1", redirect, "v").await.status(), 201);
    // The cursor of one node goes on at another.
    let page = https[0].list("prefix=n/&limit=2").await;
    let rest = https[1].list(&format!("cursor={}", page.next_cursor.unwrap())).await;
    assert_eq!((rest.revision, rest.items.len()), (page.revision, 1));
    for http in &https {
        let told: ClusterReply = http.get("/v1/cluster").await.json().await.unwrap();
        assert_eq!((told.view, told.leader), (ViewSource::Leader, Some(leader as u64 + 1)));
        assert_eq!((told.quorum.voters, told.quorum.needed, told.quorum.reachable, told.quorum.spare), (3, 2, 3, 1));
        assert!(told.members.iter().all(|member| member.reachable && member.lag_entries.is_some()), "{told:?}");
    }
}

#[tokio::test]
async fn a_member_that_lost_its_leader_says_so() {
    let mut cluster = support::cluster(3).await;
    let leader = cluster.leader().await;
    let http = Http::new(&cluster.nodes[(leader + 1) % 3].url);
    // The leader last: with the other one this member could elect another.
    for other in [(leader + 2) % 3, leader] {
        cluster.stop(other).await;
    }
    let deadline = quorate::clock::now() + support::PATIENCE;
    let status = loop {
        let status: StatusReply = http.get("/v1/status").await.json().await.unwrap();
        if !status.ready || quorate::clock::now() > deadline {
            break status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!((status.ready, status.leader), (false, None));
    assert_eq!(status.not_ready_reason.as_deref(), Some("there is no leader at present"));
    let told: ClusterReply = http.get("/v1/cluster").await.json().await.unwrap();
    assert_eq!((told.view, told.leader, told.quorum.reachable, told.quorum.spare), (ViewSource::Local, None, 1, 0));
    let me = told.members.iter().find(|member| member.id == status.id).unwrap();
    assert!(me.reachable && told.members.iter().filter(|member| member.reachable).count() == 1, "{told:?}");
    let quick = &[("quorate-timeout", "300ms")];
    let refused = http.refused(&Refused { headers: quick, ..refused("GET", "/v1/kv/k", 503, "no_leader") }).await;
    assert_eq!(refused.leader, None, "a leader that is gone is no place to turn to");
}

#[tokio::test]
async fn the_leadership_moves_on_request_through_any_node() {
    let mut cluster = support::cluster(3).await;
    let https: Vec<Http> = cluster.nodes.iter().map(|node| Http::new(&node.url)).collect();
    let order = |to: u64| json!({"to": to}).to_string();
    for (asked, http) in https.iter().enumerate() {
        let leader = cluster.leader().await;
        let to = cluster.nodes[(leader + 1) % 3].node.status();
        let response = http.send("POST", "/v1/cluster/leader", &[], order(to.id.get())).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "asked at {asked}: {text}");
        let reply: LeaderReply = serde_json::from_str(&text).unwrap();
        assert_eq!((reply.leader.id, reply.moved), (to.id.get(), true), "asked at {asked}");
        assert_eq!((reply.leader.name, reply.leader.client_url), (to.member.name, to.member.client_url));
        let again = http.send("POST", "/v1/cluster/leader", &[], order(to.id.get())).await;
        let again: LeaderReply = again.json().await.unwrap();
        assert_eq!((again.leader.id, again.term, again.moved), (to.id.get(), reply.term, false), "it leads already");
    }
    for http in &https {
        let post = |status, code, body: &str| Refused {
            body: body.to_owned(),
            ..refused("POST", "/v1/cluster/leader", status, code)
        };
        let unknown = http.refused(&post(404, "member_not_found", &order(9))).await;
        assert_eq!(unknown.detail, "there is no member 9; the voters are 1 (n1), 2 (n2), 3 (n3)");
        for body in ["", "{}", "[2]", "{\"to\":\"n2\"}", "{\"to\":2,\"force\":true}"] {
            http.refused(&post(400, "bad_request", body)).await;
        }
        http.refused(&refused("GET", "/v1/cluster/leader", 405, "method_not_allowed")).await;
    }
    // A member that is gone is asked for before anything is begun.
    let leader = cluster.leader().await;
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (term, to) = (cluster.nodes[leader].node.status().term, cluster.nodes[gone].node.status().id.get());
    cluster.stop(gone).await;
    let lost = Refused { body: order(to), ..refused("POST", "/v1/cluster/leader", 409, "conflict") };
    let told = https[other].refused(&lost).await;
    assert!(told.detail.starts_with(&format!("the leader can't reach n{to}")), "{}", told.detail);
    assert_eq!(cluster.nodes[leader].node.status().term, term, "nothing was begun");
}

#[tokio::test]
async fn members_are_changed_through_any_node_and_bad_orders_are_told_why() {
    let mut cluster = support::cluster(3).await;
    let https: Vec<Http> = cluster.nodes.iter().map(|node| Http::new(&node.url)).collect();
    cluster.leader().await;
    let path = |id: u64| format!("/v1/cluster/members/{id}");
    // Through each node in turn.
    for (http, id) in https.iter().zip([2, 3, 1]) {
        let dry = http.send("DELETE", &format!("{}?dry_run=true", path(id)), &[], "").await;
        assert_eq!(dry.status(), 200);
        let told: MemberChangeReply = dry.json().await.unwrap();
        assert_eq!((told.id, told.dry_run, told.done), (Some(id), true, false));
        assert_eq!((told.before.voters, told.before.spare, told.after.voters, told.after.spare), (3, 1, 2, 0));
        assert_eq!(told.after.zones.iter().map(|zone| zone.voters).sum::<u64>(), 2);
        assert!(told.warnings[0].starts_with("2 voters survive no more failures than 1 would"), "{told:?}");

        let body = json!({"zone": "dc1", "priority": 0}).to_string();
        let changed = http.send("PATCH", &path(id), &[], body).await;
        assert_eq!(changed.status(), 200);
        let told: MemberChangeReply = changed.json().await.unwrap();
        assert_eq!((told.id, told.dry_run, told.done), (Some(id), false, true));
    }
    let told: ClusterReply = https[0].get("/v1/cluster").await.json().await.unwrap();
    for member in &told.members {
        assert_eq!((member.zone.as_str(), member.priority, member.pending), ("dc1", 0, None));
        assert_eq!(member.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
    let http = &https[1];
    for (method, path, status, code, body, why) in [
        (
            "DELETE",
            path(9),
            404,
            "member_not_found",
            "",
            "there is no member 9; the members are 1 (n1), 2 (n2), 3 (n3)",
        ),
        ("DELETE", path(9) + "x", 400, "bad_request", "", "\"9x\" is no id of a member"),
        ("DELETE", path(2) + "?force=maybe", 400, "bad_request", "", "force"),
        ("PATCH", path(2), 400, "bad_request", "{}", "asks for nothing"),
        ("PATCH", path(2), 400, "bad_request", "[]", "the body is a list"),
        ("PATCH", path(2), 400, "bad_request", "{\"role\":\"leader\"}", "unknown variant `leader`"),
        ("PATCH", path(2), 409, "conflict", "{\"name\":\"n1\"}", "n1 is the name of member 1 already"),
        ("PATCH", path(2), 409, "conflict", "{\"peer_addr\":\"127.0.0.1:1\"}", "does not answer at 127.0.0.1:1"),
        ("POST", "/v1/cluster/members".into(), 400, "bad_request", "{\"name\":\"n4\"}", "missing field `peer_addr`"),
        (
            "POST",
            "/v1/cluster/members".into(),
            409,
            "conflict",
            "{\"name\":\"n4\",\"peer_addr\":\"127.0.0.1:1\"}",
            "the leader can't reach n4 at 127.0.0.1:1",
        ),
    ] {
        let told = http.refused(&Refused { body: body.to_owned(), ..refused(method, &path, status, code) }).await;
        assert!(told.detail.contains(why), "{method} {path} {body}: {}", told.detail);
    }
    http.refused(&refused("GET", &path(2), 405, "method_not_allowed")).await;
    // One is down: another must not go, but the one that is down may.
    let leader = cluster.leader().await;
    let (down, up) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop(down).await;
    let dry_run = path(up as u64 + 1) + "?dry_run=true";
    let lost = refused("DELETE", &dry_run, 409, "would_lose_quorum");
    let deadline = quorate::clock::now() + support::PATIENCE;
    while https[leader].send("DELETE", lost.path, &[], "").await.status() == 200 {
        assert!(quorate::clock::now() < deadline, "the leader must miss it some time");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let told = https[leader].refused(&lost).await;
    assert!(told.detail.contains("2 voters would be left, of which 2 must agree, but only 1"), "{}", told.detail);
    let removed = https[up].send("DELETE", &path(down as u64 + 1), &[], "").await;
    assert_eq!(removed.status(), 200);
    let told: MemberChangeReply = removed.json().await.unwrap();
    assert_eq!((told.after.voters, told.after.reachable), (2, 2));
}

#[tokio::test]
async fn a_leader_without_a_quorum_steps_down() {
    let mut cluster = support::cluster(3).await;
    let leader = cluster.leader().await;
    let http = Http::new(&cluster.nodes[leader].url);
    http.put("k", "v").await;
    for other in (0..3).filter(|other| *other != leader) {
        cluster.stop(other).await;
    }
    let deadline = quorate::clock::now() + support::PATIENCE;
    let status = loop {
        let status: StatusReply = http.get("/v1/status").await.json().await.unwrap();
        if !status.ready || quorate::clock::now() > deadline {
            break status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!((status.ready, status.role, status.leader), (false, NodeRole::Follower, None));
    assert_eq!(status.not_ready_reason.as_deref(), Some("it can't reach a quorum, and leads no more"));
    let told: ClusterReply = http.get("/v1/cluster").await.json().await.unwrap();
    assert_eq!((told.view, told.leader), (ViewSource::Local, None));
    // However long the caller would wait.
    let patient = &[("quorate-timeout", "50s")];
    let began = quorate::clock::now();
    let write = Refused { headers: patient, ..refused("PUT", "/v1/kv/k", 503, "no_quorum") };
    assert_eq!(http.refused(&write).await.outcome, OutcomeKind::NotApplied);
    http.refused(&Refused { headers: patient, ..refused("GET", "/v1/kv/k", 503, "no_quorum") }).await;
    http.refused(&Refused { headers: patient, ..refused("GET", "/readyz", 503, "not_ready") }).await;
    let body = json!({"to": (leader + 1) % 3 + 1}).to_string();
    let order = Refused { headers: patient, body, ..refused("POST", "/v1/cluster/leader", 503, "no_quorum") };
    http.refused(&order).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(40), "{:?}", began.elapsed());
    assert_eq!(http.get("/v1/kv/k?consistency=stale").await.status(), 200);
}

#[tokio::test]
async fn web_pages_are_not_served() {
    let node = support::single_node_with(|api| api.local_hosts_only = true).await;
    let http = Http::new(&node.url);
    let page = &[("origin", "http://evil.example"), ("content-type", "text/plain")];
    let body = json!({"success": [{"put": {"key": "k", "value": "planted"}}]}).to_string();
    let post = Refused { headers: page, body, ..refused("POST", "/v1/txn", 403, "permission_denied") };
    assert_eq!(http.refused(&post).await.outcome, OutcomeKind::NotApplied);
    http.refused(&Refused { headers: page, ..refused("GET", "/v1/kv/k", 403, "permission_denied") }).await;
    http.refused(&refused("OPTIONS", "/v1/kv/k", 405, "method_not_allowed")).await;
    let rebound = &[("host", "evil.example:7480")];
    http.refused(&Refused { headers: rebound, ..refused("GET", "/v1/kv/k", 403, "permission_denied") }).await;
    assert_eq!(http.revision().await, 0, "nothing was written");
}

#[tokio::test]
async fn what_is_no_request_gets_its_problem_document_too() {
    let node = support::single_node().await;
    let long = "x".repeat(70_000);
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    for (request, status) in [
        ("GET /v1/kv/a b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 400),
        ("GET /v1/kv/a HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n".to_owned(), 400),
        ("hello\r\n\r\n".to_owned(), 400),
        ("GET /v1/kv/a HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), 400),
        (format!("GET /v1/kv/{long} HTTP/1.1\r\nhost: x\r\n\r\n"), 414),
        (format!("GET /v1/kv/a HTTP/1.1\r\nhost: x\r\n{many}\r\n"), 431),
        // Behind a good request on the same connection.
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /a b HTTP/1.1\r\n\r\n".to_owned(), 400),
    ] {
        let answer = raw(&node.url, &request).await;
        let shown = &request[..request.len().min(60)];
        let last = answer.rfind(&format!("HTTP/1.1 {status} ")).map(|at| &answer[at..]);
        let last = last.unwrap_or_else(|| panic!("{shown}: {answer}"));
        assert!(last.contains("application/problem+json"), "{shown}: {answer}");
        let problem: Problem = serde_json::from_str(last.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!((problem.status, problem.code), (status, Code::BadRequest), "{shown}");
    }
}

#[tokio::test]
async fn a_body_that_only_claims_to_be_large_shuts_out_nobody() {
    let node = support::single_node_with(|api| api.in_flight_bytes_max = 17 * 1024 * 1024).await;
    let http = Http::new(&node.url);
    let address = node.url.trim_start_matches("http://").to_owned();
    let mut idlers = Vec::new();
    for _ in 0..32 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n").await.unwrap();
        idlers.push(stream);
    }
    http.put("k", "x".repeat(4 * 1024 * 1024)).await;
    // Who waits for leave before sending is refused without being read.
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let ask = b"PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99000000\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn without_a_quorum_the_answer_comes_in_time_and_says_what_it_means() {
    let mut cluster = support::cluster(3).await;
    let leader = cluster.leader().await;
    let http = Http::new(&cluster.nodes[leader].url);
    http.put("k", "v").await;
    for other in (0..3).filter(|other| *other != leader) {
        cluster.stop(other).await;
    }
    let quick = &[("quorate-timeout", "1500ms")];
    let began = quorate::clock::now();
    let response = http.send("GET", "/v1/kv/k", quick, "").await;
    let code = response.json::<Problem>().await.unwrap().code;
    assert!(matches!(code, Code::NoQuorum | Code::NoLeader), "{code}");
    let response = http.send("PUT", "/v1/kv/k", quick, "w").await;
    let status = response.status().as_u16();
    let problem: Problem = response.json().await.unwrap();
    match status {
        503 => assert!(
            matches!(problem.code, Code::NoQuorum | Code::NoLeader) && problem.outcome == OutcomeKind::NotApplied
        ),
        504 => {
            assert_eq!((problem.code, problem.outcome), (Code::OutcomeUnknown, OutcomeKind::Unknown));
            assert!(!problem.retryable);
        }
        other => panic!("{other}: {problem:?}"),
    }
    // Two that may take 1.5 s each; without deadlines of their own it would be 5 s.
    assert!(began.elapsed() < std::time::Duration::from_secs(9), "{:?}", began.elapsed());
    let ready = Refused { headers: quick, ..refused("GET", "/readyz", 503, "not_ready") };
    http.refused(&ready).await;
    assert_eq!(http.get("/healthz").await.status(), 200);
    assert_eq!(http.get("/v1/kv/k?consistency=stale").await.status(), 200);
    let local = &[("prefer", "local"), ("quorate-timeout", "1500ms")];
    let bounded = "/v1/kv/k?consistency=bounded&max_staleness=1ms";
    http.refused(&Refused { headers: local, ..refused("GET", bounded, 503, "stale_beyond_bound") }).await;
}

#[tokio::test]
async fn places_for_backups_are_declared_changed_and_forgotten() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let json_type = &[("content-type", "application/json")];
    let send = async |method: &str, path: &str, body: Value| {
        let response = http.send(method, path, json_type, body.to_string()).await;
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (status, tried) = send("POST", "/v1/backups?dry_run=true", json!({"name": "main", "url": url})).await;
    assert_eq!((status, &tried["dry_run"], &tried["store"]["made"]), (200, &json!(true), &json!(true)), "{tried}");
    let block = json!({"name": "main", "url": url, "full": "0 3 * * *"});
    let (status, added) = send("POST", "/v1/backups", block.clone()).await;
    assert_eq!((status, &added["declared"], &added["store"]["made"]), (201, &block, &json!(false)), "{added}");
    let (_, told) = send("GET", "/v1/backups/main", Value::Null).await;
    assert_eq!((&told["origin"], &told["declared"]), (&json!("api"), &block), "{told}");
    let (status, changed) = send("PATCH", "/v1/backups/main", json!({"full": null, "durable": false})).await;
    assert_eq!(
        (status, &changed["declared"]),
        (200, &json!({"name": "main", "url": url, "durable": false})),
        "{changed}"
    );
    let body = |body: Value| body.to_string();
    for case in [
        Refused {
            body: body(json!({"name": "main", "url": "s3://b/x"})),
            ..refused("POST", "/v1/backups", 409, "conflict")
        },
        Refused { body: body(json!({"name": "other", "url": url})), ..refused("POST", "/v1/backups", 409, "conflict") },
        Refused { body: body(json!({"name": "other"})), ..refused("POST", "/v1/backups", 400, "bad_request") },
        Refused { body: body(json!([])), ..refused("POST", "/v1/backups", 400, "bad_request") },
        Refused { body: "x".repeat(20_000), ..refused("POST", "/v1/backups", 413, "value_too_large") },
        Refused { body: body(json!({"name": "x"})), ..refused("PATCH", "/v1/backups/main", 400, "bad_request") },
        Refused { body: body(json!({"full": "x"})), ..refused("PATCH", "/v1/backups/main", 400, "bad_request") },
        Refused { body: body(json!({})), ..refused("PATCH", "/v1/backups/other", 404, "backup_not_found") },
        refused("DELETE", "/v1/backups/other", 404, "backup_not_found"),
        refused("DELETE", "/v1/backups/main?dry_run=true", 400, "bad_request"),
        refused("PUT", "/v1/backups/main", 405, "method_not_allowed"),
    ] {
        http.refused(&case).await;
    }
    let (status, gone) = send("DELETE", "/v1/backups/main", Value::Null).await;
    assert_eq!((status, &gone["declared"]), (200, &Value::Null), "{gone}");
    http.refused(&refused("GET", "/v1/backups/main", 404, "backup_not_found")).await;
}

#[tokio::test]
async fn without_a_place_for_backups_that_is_told_and_nothing_is_promised() {
    let node = support::single_node().await;
    let http = Http::new(&node.url);
    assert_eq!(http.get("/v1/backups").await.json::<Value>().await.unwrap(), json!({"backups": []}));
    assert_eq!(http.get("/v1/alarms").await.json::<Value>().await.unwrap(), json!({"alarms": [], "silent": []}));
    let before = http.revision().await;
    for case in [
        refused("GET", "/v1/backups/main", 404, "backup_not_found"),
        refused("POST", "/v1/backups/main/run", 404, "backup_not_found"),
        refused("PUT", "/v1/kv/k?durability=offsite", 409, "conflict"),
        refused("DELETE", "/v1/kv/k?durability=offsite", 409, "conflict"),
        refused("DELETE", "/v1/kv?prefix=&durability=offsite", 409, "conflict"),
        refused("PUT", "/v1/kv/k?durability=sure", 400, "bad_request"),
        refused("GET", "/v1/kv/k?durability=offsite", 400, "bad_request"),
    ] {
        http.refused(&case).await;
    }
    let txn = json!({"success": [{"put": {"key": "k", "value": "v"}}]}).to_string();
    http.refused(&Refused { body: txn, ..refused("POST", "/v1/txn?durability=offsite", 409, "conflict") }).await;
    assert_eq!(http.revision().await, before, "nothing was changed");
    assert_eq!(http.send("PUT", "/v1/kv/k?durability=quorum", &[], "v").await.status(), 201);
}
