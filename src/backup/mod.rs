//! Off-site copies: the committed entries of the log and snapshot files, in a place that only ever grows, encrypted to keys
//! that no server has; and what brings a lost cluster back from them.
//!
//! Guarantees: an object is never overwritten; what is archived is what every member applies, so replaying it gives the
//! same state, and the state hash proves it; the store being away stops nothing here but the archive. Needs no running
//! cluster. Leaves out: which member archives and when (`node`), and making a member of what was restored (`node`, `raft`).

pub mod archiver;
mod bandwidth;
pub mod care;
pub mod catalogue;
pub mod copy;
pub mod credentials;
pub mod layout;
mod log_object;
pub mod manifest;
pub mod marker;
pub mod plan;
pub mod probe;
pub mod proof;
pub mod prune;
pub mod rebuild;
pub mod repository;
pub mod retention;
pub mod schedule;
pub mod seal;
pub mod segment;
pub mod settings;
pub mod stage;
pub mod target;
#[cfg(test)]
pub(crate) mod tests;
pub mod transfer;
pub mod trim;
pub mod verify;

#[cfg(test)]
use tests::{faults, sample};
