//! What the tests of this room share: a store that fails on request, made-up histories with their archives, and with the
//! states that a restore must give, for `node` as well.

pub(super) mod faults;
pub(crate) mod history;
pub(super) mod sample;
