//! The OpenAPI 3.1 document, generated from the handlers and wire types.
//!
//! Guarantees: it lists exactly the endpoints and methods that are routed (a test compares it with `Route::ALL`).
//! Leaves out: what a schema can't say; that is `docs/`.

use std::sync::OnceLock;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use utoipa::OpenApi;

use super::call::{Call, JSON};
use super::model;
use super::problem::Failure;
use super::{backups, cluster, kv, list, members, ops, txn};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Quorate",
        description = "A strongly consistent key-value store. Every answer carries `Quorate-Revision`; bounded and \
                       stale reads also `Quorate-Staleness-Ms`. Byte strings in JSON stand under their name where \
                       they are UTF-8, and in base64 under `<name>_base64` otherwise.",
    ),
    paths(
        kv::get_key,
        kv::head_key,
        kv::put_key,
        kv::delete_key,
        kv::delete_keys,
        list::list_keys,
        txn::run_txn,
        cluster::get_status,
        cluster::get_cluster,
        cluster::post_leader,
        members::post_member,
        members::patch_member,
        members::delete_member,
        ops::get_snapshot,
        backups::list_backups,
        backups::get_backup,
        backups::post_backup,
        backups::patch_backup,
        backups::delete_backup,
        backups::run_backup,
        backups::list_alarms,
        ops::get_healthz,
        ops::get_readyz,
        ops::get_metrics,
        get_openapi,
    ),
    components(schemas(model::Problem, model::Record, model::PutReply, model::TxnRequest, model::TxnReply)),
    tags(
        (name = "keys", description = "keys, values and transactions"),
        (name = "cluster", description = "the node and its group"),
        (name = "operations", description = "health, metrics and snapshots"),
    )
)]
struct Document;

/// The document, as JSON.
#[must_use]
pub fn openapi_json() -> Bytes {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    // The document is fixed at compile time, and a test parses what comes out here.
    TEXT.get_or_init(|| Bytes::from(Document::openapi().to_pretty_json().unwrap_or_default())).clone()
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
    (status = 400, description = "bad_request", body = model::Problem, content_type = "application/problem+json"),
))]
pub(super) fn get_openapi(call: &Call) -> Result<Response, Failure> {
    call.query(&[], &[])?;
    let mut response = Response::new(Body::from(openapi_json()));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::routes::Route;
    use super::*;

    fn document() -> serde_json::Value {
        serde_json::from_slice(&openapi_json()).unwrap()
    }

    #[test]
    fn the_document_lists_what_is_routed_and_nothing_else() {
        let document = document();
        let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let methods = operations.as_object().unwrap().keys().map(|method| method.to_uppercase());
            documented.insert(path.clone(), methods.collect());
        }
        for route in Route::ALL {
            let mut methods: BTreeSet<String> = route.allowed().split(", ").map(str::to_owned).collect();
            // Where HEAD is no more than GET without its body, the document leaves it out.
            if route != Route::Key {
                methods.remove("HEAD");
            }
            assert_eq!(documented.remove(route.template()), Some(methods), "{}", route.template());
        }
        assert!(documented.is_empty(), "{documented:?} is documented, but not routed");
    }

    #[test]
    fn the_document_is_openapi_3_1_and_every_reference_in_it_leads_somewhere() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
