//! kill -9 against the sled engine: what was flushed is there, batches are whole, and what is lost is a tail.
//!
//! The test starts itself again as a child that commits numbered batches, flushes every few and says so. The parent kills
//! it at a random moment, opens what is left, checks it, and lets the next child go on from there. The page cache survives
//! a killed process: this shows the order and the wholeness of batches, not what a power cut does.

use std::io::{BufRead, BufReader};
use std::ops::Bound;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use quorate::storage::{Engine, Order, Scan, SledConfig, SledEngine, Write};
use rand::Rng;
use tempfile::TempDir;

/// Tells the child where to write; its absence makes this process the parent.
const DIRECTORY_VARIABLE: &str = "QUORATE_STORAGE_CRASH_DIRECTORY";
/// Kills.
const ROUNDS: u32 = 12;
/// Writes of one batch: keys spread over the whole tree, so that a batch touches many leaves.
const KEYS_PER_BATCH: u64 = 24;
/// Slots that the batches overwrite in turn: later batches meet leaves that earlier ones have dirtied.
const SLOTS: u64 = 4_000;
/// The newest batches that keep their log; each batch deletes that of an older one.
const LOG_KEPT: u64 = 300;
/// Batches behind each other that one flush covers, at most.
const BATCHES_PER_FLUSH_MAX: u64 = 9;
/// A child that was not killed by then stops itself.
const BATCHES_MAX: u64 = 1_000_000;

fn log_key(batch: u64, part: u64) -> Bytes {
    let mut key = b"log/".to_vec();
    key.extend_from_slice(&batch.to_be_bytes());
    key.extend_from_slice(&part.to_be_bytes());
    Bytes::from(key)
}

fn slot_of(batch: u64, part: u64) -> u64 {
    (batch * 31 + part * (SLOTS / KEYS_PER_BATCH)) % SLOTS
}

fn slot_key(slot: u64) -> Bytes {
    Bytes::from([b"slot/".as_slice(), &slot.to_be_bytes()].concat())
}

/// A batch: log records that only it writes, slots that others overwrite, and the log of an old batch deleted.
fn batch(number: u64) -> Vec<Write> {
    let value = Bytes::copy_from_slice(&[number.to_be_bytes(); 12].concat());
    let mut writes = Vec::new();
    for part in 0..KEYS_PER_BATCH {
        writes.push(Write::Put(log_key(number, part), value.clone()));
        writes.push(Write::Put(slot_key(slot_of(number, part)), value.clone()));
        if let Some(old) = number.checked_sub(LOG_KEPT) {
            writes.push(Write::Delete(log_key(old, part)));
        }
    }
    writes
}

/// The newest batch in the store and every check of its state: exactly what the batches up to it leave behind.
fn checked_newest(engine: &SledEngine) -> u64 {
    let scan = |prefix: &'static [u8], end: &'static [u8]| {
        let scan = Scan {
            start: Bound::Included(prefix),
            end: Bound::Excluded(end),
            order: Order::Ascending,
            limit: usize::MAX,
            bytes_max: usize::MAX,
        };
        engine.scan(scan).expect("scan")
    };
    let number_at = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let log = scan(b"log/", b"log0");
    let newest = log.last().map_or(0, |(key, _)| number_at(key, 4));
    let first = (newest + 1).saturating_sub(LOG_KEPT).max(1);
    let expected =
        (first..=newest).flat_map(|number| (0..KEYS_PER_BATCH).map(move |part| (log_key(number, part), number)));
    let found = log.iter().map(|(key, value)| (key.clone(), number_at(value, 0)));
    assert!(found.eq(expected), "the log up to batch {newest} has a hole, a torn batch or a deleted record");

    let mut slots = std::collections::BTreeMap::new();
    for number in 1..=newest {
        for part in 0..KEYS_PER_BATCH {
            slots.insert(slot_key(slot_of(number, part)), number);
        }
    }
    let found = scan(b"slot/", b"slot0").into_iter().map(|(key, value)| (key, number_at(&value, 0)));
    assert!(found.eq(slots), "the slots are not those of batch {newest}");
    newest
}

fn open(directory: &Path) -> SledEngine {
    SledEngine::open(directory, &SledConfig::default()).expect("the store opens behind a kill")
}

/// The child: goes on behind the newest batch until it is killed.
fn write_until_killed(directory: &Path) {
    let mut random = rand::rng();
    // Every other child reopens its store at each flush, so that kills also meet closing and opening.
    let pinned_bytes = if random.random() { 0 } else { SledConfig::default().pinned_bytes };
    let config = SledConfig { pinned_bytes, ..SledConfig::default() };
    let engine = SledEngine::open(directory, &config).expect("the store opens behind a kill");
    let mut number = checked_newest(&engine);
    while number < BATCHES_MAX {
        for _ in 0..random.random_range(1..=BATCHES_PER_FLUSH_MAX) {
            number += 1;
            engine.commit(batch(number)).expect("commit");
        }
        engine.flush().expect("flush");
        println!("flushed {number}");
    }
}

fn start_child(directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("the path of this test"))
        .args(["--exact", "killed_writers_lose_only_an_unflushed_tail", "--nocapture"])
        .env(DIRECTORY_VARIABLE, directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the child")
}

/// The number behind `flushed `. The test harness may print its own words in front of it.
fn flushed(line: &str) -> Option<u64> {
    line.split_once("flushed ").and_then(|(_, number)| number.trim().parse().ok())
}

#[test]
fn killed_writers_lose_only_an_unflushed_tail() {
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) {
        write_until_killed(Path::new(&directory));
        return;
    }
    let home = TempDir::new().expect("a temporary directory");
    let directory = home.path().join("state");
    let mut random = rand::rng();
    let mut before = 0;
    for round in 0..ROUNDS {
        let mut child = start_child(&directory);
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        // A random number of flushes, then a random moment in the work behind them.
        let mut newest_flushed = before;
        for _ in 0..random.random_range(1..=12) {
            newest_flushed = lines
                .by_ref()
                .map_while(Result::ok)
                .find_map(|line| flushed(&line))
                .expect("the child flushes until it is killed");
        }
        // Not a wait for something: the moment of the kill itself is what is drawn.
        std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        child.kill().expect("kill");
        child.wait().expect("reap");
        // What it still said before it died counts too.
        newest_flushed = lines.map_while(Result::ok).filter_map(|line| flushed(&line)).last().unwrap_or(newest_flushed);

        let engine = open(&directory);
        let newest = checked_newest(&engine);
        assert!(newest >= newest_flushed, "round {round}: batch {newest_flushed} was flushed, only {newest} is left");
        assert!(newest >= before, "round {round}: the store went back behind an earlier opening");
        before = newest;
    }
    assert!(before > u64::from(ROUNDS), "the children got nothing done");
}
