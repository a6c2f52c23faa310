//! Raft over openraft.

pub mod log_store;
pub mod types;
