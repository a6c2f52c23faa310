//! Quorate: a strongly consistent key-value store.

pub mod api;
pub mod backup;
pub mod cli;
pub mod client;
pub mod clock;
pub mod codec;
pub mod config;
pub mod host;
pub mod node;
pub mod raft;
pub mod server;
pub mod state;
pub mod storage;
pub mod telemetry;
pub mod tls;
pub mod transport;
pub mod types;
pub mod watch;
pub mod workload;
