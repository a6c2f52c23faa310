//! Tests of the state machine as a whole. Method: golden scripts for the meaning of each operation (`testscripts/`), a
//! plain map as a model for random histories with crashes, interrupted checkpoints cut at every batch, and threads.

mod concurrency;
mod crash;
mod golden;
mod harness;
mod load;
mod model;
