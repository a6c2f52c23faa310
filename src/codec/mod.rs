//! How things are written as bytes: an order-preserving encoding for composite keys ([`ordered`]) and a frame with magic,
//! format version and checksum for everything that stays on a disk or crosses a wire ([`framed`]).
//!
//! Guarantees: what was damaged or comes from a newer format is told apart and never decoded. Leaves out: the contents;
//! each room that has a format owns its versions.

pub mod framed;
#[cfg(test)]
pub(crate) mod golden;
pub mod ordered;
