//! Tests of the wire types: every form comes back, and what is wrong is named.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::state;
use crate::types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX, VALUE_BYTES_MAX};

fn parse(body: serde_json::Value) -> Result<TxnRequest, String> {
    serde_json::from_str(&body.to_string()).map_err(|error| error.to_string())
}

fn converted(body: serde_json::Value) -> Result<crate::state::Txn, Invalid> {
    parse(body).unwrap().into_txn(VALUE_BYTES_MAX)
}

fn record(key: &'static [u8], value: Option<&'static [u8]>) -> Record {
    let value = value.map(Bytes::from_static);
    Record { key: Bytes::from_static(key), value, create_revision: 3, mod_revision: 7, version: 2, lease: 0 }
}

#[test]
fn a_record_is_plain_text_where_it_can_be() {
    let got = serde_json::to_value(record(b"a/b", Some("ü".as_bytes()))).unwrap();
    assert_eq!(
        got,
        json!({"key": "a/b", "value": "ü", "create_revision": 3, "mod_revision": 7, "version": 2, "lease": 0})
    );
    let got = serde_json::to_value(record(b"\xFF", Some(b"\xFE\x00"))).unwrap();
    assert_eq!(got["key_base64"], "/w==");
    assert_eq!(got["value_base64"], "/gA=");
    assert!(got.get("key").is_none() && got.get("value").is_none());
    let got = serde_json::to_value(record(b"k", None)).unwrap();
    assert!(got.get("value").is_none() && got.get("value_base64").is_none());
}

#[test]
fn the_example_of_the_contract_is_understood() {
    let body = json!({"compare":[{"key":"a","target":"mod_revision","op":"==","value":7}],
        "success":[{"put":{"key":"a","value":"2"}},{"get":{"key":"b"}},{"delete":{"prefix":"tmp/"}}],
        "failure":[{"get":{"key":"a"}}]});
    let txn = converted(body.clone()).unwrap();
    assert_eq!((txn.compares.len(), txn.success.len(), txn.failure.len()), (1, 3, 1));
    let again = serde_json::to_value(parse(body.clone()).unwrap()).unwrap();
    assert_eq!(again, body);
}

#[test]
fn malformed_transactions_are_refused_with_the_reason() {
    let put = |fields: serde_json::Value| json!({"success": [{"put": fields}]});
    let compare = |fields: serde_json::Value| json!({"compare": [fields]});
    let cases = [
        (json!({"sucess": []}), "unknown field `sucess`"),
        (put(json!({"key": "a", "value": "1", "vlaue": "2"})), "unknown field `vlaue`"),
        (put(json!({"key": "a"})), "`value` is missing"),
        (put(json!({"key": "a", "key_base64": "YQ==", "value": "1"})), "both `key` and `key_base64`"),
        (put(json!({"key_base64": "*", "value": "1"})), "not base64"),
        (put(json!({"key": "a", "value": "1", "lease": -1})), "whole number"),
        (put(json!({"key": "a", "value": "1", "lease": 9_007_199_254_740_992_u64})), "whole number"),
        (put(json!({"key": 1, "value": "1"})), "expected a string"),
        (json!({"success": [{"get": {"key": "a", "prefix": "b"}}]}), "not several of them"),
        (json!({"success": [{"get": {}}]}), "a get needs"),
        (json!({"success": [{"delete": {}}]}), "a delete needs"),
        (json!({"success": [{"delete": {"start": "a"}}]}), "needs both `start` and `end`"),
        (json!({"success": [{"move": {}}]}), "unknown variant `move`"),
        (json!({"success": [{"get": {"key": "a", "limit": 1.5}}]}), "whole number"),
        (compare(json!({"key": "a", "target": "value", "op": "==", "value": 1})), "must be a string"),
        (compare(json!({"key": "a", "target": "version", "op": "==", "value": "1"})), "must be a whole number"),
        (compare(json!({"key": "a", "target": "version", "op": "==", "value": -1})), "must be a whole number"),
        (compare(json!({"key": "a", "target": "version", "op": "==", "value_base64": "YQ=="})), "allowed only where"),
        (compare(json!({"key": "a", "target": "version", "op": "=", "value": 1})), "unknown variant `=`"),
        (compare(json!({"key": "a", "target": "size", "op": "==", "value": 1})), "unknown variant `size`"),
    ];
    for (body, reason) in cases {
        let error = parse(body.clone()).unwrap_err();
        assert!(error.contains(reason), "{body}: {error}");
    }
}

#[test]
fn a_get_without_values_is_asked_for_and_answered_as_such() {
    let body = json!({"success": [{"get": {"key": "a", "keys_only": true}}, {"get": {"prefix": "a"}}]});
    let txn = serde_json::from_value::<TxnRequest>(body).unwrap().into_txn(1).unwrap();
    let asked = |op: &state::TxnOp| matches!(op, state::TxnOp::Get { keys_only: true, .. });
    assert_eq!(txn.success.iter().map(asked).collect::<Vec<_>>(), [true, false]);
    let answered = |keys_only| {
        let (key, meta) = (crate::types::Key::new("a").unwrap(), state::RecordMeta::default());
        let records = vec![state::Record { key, value: Bytes::new(), meta }];
        serde_json::to_value(TxnOpReply::from(state::OpReply::Get { records, count: 1, keys_only })).unwrap()
    };
    assert_eq!(answered(false)["get"]["items"][0]["value"], json!(""));
    assert_eq!(answered(true)["get"]["items"][0].get("value"), None);
}

#[test]
fn transactions_beyond_a_limit_are_refused_with_their_code() {
    let get = |fields: serde_json::Value| json!({"success": [{"get": fields}]});
    let many = vec![json!({"get": {"key": "a"}}); TXN_OPERATIONS_MAX + 1];
    let large = "x".repeat(VALUE_BYTES_MAX);
    let large_puts = vec![json!({"put": {"key": "a", "value": large}}); TXN_BYTES_MAX / VALUE_BYTES_MAX];
    let cases = [
        (json!({"success": many}), Code::BadRequest, "1025 entries"),
        (json!({"success": large_puts}), Code::ValueTooLarge, "at most"),
        (json!({"success": [{"put": {"key": "a", "value": large + "x"}}]}), Code::ValueTooLarge, "success[0]"),
        (json!({"success": [{"put": {"key": "a", "value": "", "lease": 1}}]}), Code::BadRequest, "not available"),
        (json!({"success": [{"put": {"key": "", "value": ""}}]}), Code::InvalidKey, "success[0]: the key is empty"),
        (json!({"failure": [{"get": {"key": "x".repeat(4097)}}]}), Code::InvalidKey, "failure[0]"),
        (get(json!({"start": "b", "end": "a"})), Code::InvalidRange, "start must sort before end"),
        (get(json!({"start": "a", "end": "a"})), Code::InvalidRange, "start must sort before end"),
        (get(json!({"key": "a", "limit": 0})), Code::BadRequest, "`limit` is 0"),
        (get(json!({"key": "a", "limit": 10_001})), Code::BadRequest, "`limit` is 10001"),
    ];
    for (body, code, reason) in cases {
        let invalid = converted(body).unwrap_err();
        assert_eq!(invalid.code, code, "{invalid}");
        assert!(invalid.detail.contains(reason), "{invalid}");
    }
}

#[test]
fn a_code_of_a_newer_server_is_no_error() {
    assert_eq!(serde_json::from_str::<Code>("\"moon_phase\"").unwrap(), Code::Unknown);
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}

#[test]
fn the_quorum_counts_voters_alone() {
    let member = |role, reachable| MemberInfo {
        id: 1,
        name: String::new(),
        role,
        zone: String::new(),
        peer_addr: String::new(),
        client_url: String::new(),
        reachable,
        matched_index: None,
        lag_entries: None,
        rtt_ms: None,
        priority: 0,
        pending: None,
        version: None,
    };
    let voter = |reachable| member(MemberRole::Voter, reachable);
    let learner = member(MemberRole::Learner, true);
    let healthy = QuorumInfo::of(&[voter(true), voter(true), voter(true), learner.clone()]);
    assert_eq!(healthy, QuorumInfo { voters: 3, needed: 2, reachable: 3, spare: 1 });
    let lost = QuorumInfo::of(&[voter(true), voter(false), voter(false), learner]);
    assert_eq!(lost, QuorumInfo { voters: 3, needed: 2, reachable: 1, spare: 0 });
}

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..24).prop_map(Bytes::from)
}

fn operation() -> impl Strategy<Value = TxnOp> {
    let selector = prop_oneof![
        bytes().prop_map(Selector::Key),
        bytes().prop_map(Selector::Prefix),
        (bytes(), bytes()).prop_map(|(start, end)| Selector::Range { start, end: Some(end) }),
    ];
    let limit = proptest::option::of(0_u64..1 << 53);
    prop_oneof![
        (bytes(), bytes(), 0_u64..1 << 53).prop_map(|(key, value, lease)| TxnOp::Put(TxnPut { key, value, lease })),
        (selector.clone(), limit, any::<bool>()).prop_map(|(selector, limit, keys_only)| TxnOp::Get(TxnGet {
            selector,
            limit,
            keys_only
        })),
        selector.prop_map(|selector| TxnOp::Delete(TxnDelete { selector })),
    ]
}

proptest! {
    #[test]
    fn records_of_any_bytes_come_back(key in bytes(), value in proptest::option::of(bytes())) {
        let record = Record { key, value, create_revision: 1, mod_revision: 2, version: 3, lease: 4 };
        let text = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn transactions_of_any_bytes_come_back(
        key in bytes(),
        value in bytes(),
        success in proptest::collection::vec(operation(), 0..5),
    ) {
        let compare = vec![Compare { key, target: CompareTarget::Value(value), op: CompareOperator::GreaterOrEqual }];
        let request = TxnRequest { compare, success, failure: vec![] };
        let text = serde_json::to_string(&request).unwrap();
        prop_assert_eq!(serde_json::from_str::<TxnRequest>(&text).unwrap(), request);
    }

    #[test]
    fn no_body_makes_the_parser_panic(text in "\\PC*") {
        if let Ok(request) = serde_json::from_str::<TxnRequest>(&text) {
            let _ = request.into_txn(1024);
        }
    }
}
