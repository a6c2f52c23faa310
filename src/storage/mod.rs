//! Bytes on disk: ordered key-value engines behind one small trait.
//!
//! An engine guarantees that a committed batch is atomic, also across a crash; that batches become durable in the order
//! they were committed, at the latest when [`Engine::flush`] returns; and that a key which exists all through a scan is
//! seen by it. It does *not* guarantee that a scan is a snapshot: callers write immutable, versioned records and filter.
//! Leaves out: what the bytes mean.

pub mod conformance;
mod endless;
mod engine;
mod memory;
mod sled;
mod stamps;

pub use engine::{BATCH_OPERATIONS_MAX, Batch, Engine, Error, Order, Scan, Write};
pub use memory::{FaultPoint, MemoryEngine, MemoryEngines};
pub use sled::{SledConfig, SledEngine};
