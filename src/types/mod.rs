//! The vocabulary of the whole house: ids and counters as newtypes, keys and key ranges that carry the proof of their
//! validity, members, and the limits every room agrees on.
//!
//! Guarantees: no two plain `u64` of different meaning meet in one signature, and a [`Key`] or [`KeyRange`] that exists
//! is valid. Leaves out: behaviour. Nothing here reads a clock, a disk or a network.

mod ids;
mod key;
pub mod limits;
mod member;
mod place;

pub use ids::{ClusterId, LeaseId, LogIndex, LogPosition, NodeId, Revision, Term, WallTime};
pub use key::{InvalidKey, InvalidRange, Key, KeyRange, Selector};
pub use member::{Member, MemberV1, Wish};
pub use place::{BaseUrl, HostPort, InvalidValue, NAME_CHARS_MAX, Name};
