//! The engines against the contract: the conformance suite on both, random histories against a model, and what belongs to
//! one engine only.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate::storage::conformance::{self, Medium};
use quorate::storage::{Engine, Error, FaultPoint, MemoryEngine, Order, Scan, SledConfig, SledEngine, Write};
use tempfile::TempDir;

/// A directory that goes away with the test.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }
}

impl Medium for Directory {
    type Engine = SledEngine;

    fn open(&self) -> Result<SledEngine, Error> {
        SledEngine::open(&self.0.path().join("state"), &SledConfig::default())
    }
}

/// A disk in memory that outlives its engine handles.
struct Disk(MemoryEngine);

impl Medium for Disk {
    type Engine = MemoryEngine;

    fn open(&self) -> Result<MemoryEngine, Error> {
        Ok(self.0.clone())
    }
}

#[test]
fn sled_conforms() {
    conformance::check(Directory::new);
}

#[test]
fn memory_conforms() {
    conformance::check(|| Disk(MemoryEngine::new()));
}
