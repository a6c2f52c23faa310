//! The HTTP edge: accept loop, router, wire types, problem documents; one file an area.
//!
//! Guarantees: every answer carries `Quorate-Revision`; every refusal is a problem document that says whether anything
//! was changed; whatever a client sends or holds back is bounded by a named limit. Leaves out: what a read or write
//! does (`node/`), and who may do it (decided at apply).

mod admission;
mod backups;
mod body;
mod call;
mod cluster;
mod config;
mod connection;
mod cursor;
mod freshness;
mod guard;
mod kv;
mod list;
mod members;
mod metrics;
pub mod model;
mod openapi;
mod ops;
mod pace;
mod path;
mod places;
mod precondition;
mod problem;
mod query;
mod refusal;
mod request_log;
mod routes;
mod server;
mod txn;

pub use config::{ApiConfig, InvalidConfig};
pub use metrics::ApiMetrics;
pub use openapi::openapi_json;
pub use routes::{Api, router};
pub use server::serve;
