//! Raft over openraft.

pub mod types;
