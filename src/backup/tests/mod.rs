//! What tests of restoring have in common, here and in `node`.

pub(crate) mod history;
