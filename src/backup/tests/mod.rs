//! What the tests of this room share, and those of restoring in `node`: a store that fails on request, made-up histories and
//! their archives.

pub(super) mod faults;
pub(crate) mod history;
mod refusing;
pub(super) mod sample;
