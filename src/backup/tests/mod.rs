//! What the tests of this room share: a store that fails on request, and a made-up history with its archive.

pub(super) mod faults;
pub(super) mod sample;
