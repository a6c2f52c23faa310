//! What the log is kept in: raft-log's chunk files, or memory in a simulation.
//!
//! Guarantees: both do and refuse the same, as raft-log defines it; which one it is costs a branch. Leaves out: locks, waiting
//! and openraft (`wal`, `storage`).

use std::io;

use raft_log::api::raft_log_writer::RaftLogWriter as _;
use raft_log::{RaftLog, Segment};

use super::codec::{WalPayload, WalTypes, WalVote};
use super::flush::Flushed;
use super::memory::MemoryLog;
use crate::raft::types::Vote;
use crate::types::LogPosition;

/// An open log. Writes fill a buffer that [`Self::flush`] hands on.
pub(super) enum Journal {
    Disk(Box<RaftLog<WalTypes>>),
    Memory(MemoryLog),
}

/// Where the log begins and ends, and what stands beside its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogMarks {
    pub(super) vote: Option<Vote>,
    pub(super) last: Option<LogPosition>,
    pub(super) committed: Option<LogPosition>,
    pub(super) purged: Option<LogPosition>,
}

/// The chunk that is written to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OpenChunk {
    pub(super) bytes: u64,
    pub(super) start: u64,
}

/// What is counted below the log store.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct JournalFigures {
    pub(super) writes: u64,
    pub(super) syncs: u64,
    pub(super) written_bytes: u64,
    pub(super) sync_us: u64,
    pub(super) cached_entries: u64,
    pub(super) cached_bytes: u64,
}

impl Journal {
    pub(super) fn marks(&self) -> LogMarks {
        match self {
            Self::Disk(log) => {
                let state = log.log_state();
                LogMarks {
                    vote: state.vote().map(|vote| vote.0),
                    last: state.last().copied(),
                    committed: state.committed().copied(),
                    purged: state.purged().copied(),
                }
            }
            Self::Memory(log) => log.marks(),
        }
    }

    /// Says where it ends in the stream of all chunks, as [`Self::append`] does; 0 in memory, which has none.
    pub(super) fn save_vote(&mut self, vote: Vote) -> io::Result<u64> {
        match self {
            Self::Disk(log) => log.save_vote(WalVote(vote)).map(|written| end(&written)),
            Self::Memory(log) => log.save_vote(vote).map(|()| 0),
        }
    }

    pub(super) fn append(&mut self, entries: Vec<(LogPosition, WalPayload)>) -> io::Result<u64> {
        match self {
            Self::Disk(log) => log.append(entries).map(|last| end(&last)),
            Self::Memory(log) => log.append(entries).map(|()| 0),
        }
    }

    /// Removes the entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) -> io::Result<()> {
        match self {
            Self::Disk(log) => log.truncate(index).map(drop),
            Self::Memory(log) => log.truncate(index),
        }
    }

    pub(super) fn purge(&mut self, upto: LogPosition) -> io::Result<()> {
        match self {
            Self::Disk(log) => log.purge(upto).map(drop),
            Self::Memory(log) => log.purge(upto),
        }
    }

    pub(super) fn commit(&mut self, upto: LogPosition) -> io::Result<()> {
        match self {
            Self::Disk(log) => log.commit(upto).map(drop),
            Self::Memory(log) => log.commit(upto),
        }
    }

    /// Hands all that was written to the writer, which tells when it is done; with `sync`, when it is on disk.
    pub(super) fn flush(&mut self, sync: bool, told: Option<Flushed>) -> io::Result<()> {
        match self {
            Self::Disk(log) => log.flush(sync, told),
            Self::Memory(log) => log.flush(sync, told),
        }
    }

    /// Gives the entries from `from` on and before `to`, which is not before it, in order, until `take` returns `false`.
    pub(super) fn read(
        &self,
        from: u64,
        to: u64,
        mut take: impl FnMut(LogPosition, WalPayload) -> io::Result<bool>,
    ) -> io::Result<()> {
        match self {
            Self::Disk(log) => {
                for entry in log.read(from, to) {
                    let (position, payload) = entry?;
                    if !take(position, payload)? {
                        break;
                    }
                }
                Ok(())
            }
            Self::Memory(log) => log.read(from, to, take),
        }
    }

    pub(super) fn open_chunk(&self) -> OpenChunk {
        match self {
            Self::Disk(log) => {
                let chunk = log.stat().open_chunk;
                OpenChunk { bytes: chunk.size, start: chunk.chunk_id.offset() }
            }
            // It has no chunks, so none is ever full.
            Self::Memory(_) => OpenChunk::default(),
        }
    }

    pub(super) fn figures(&self) -> JournalFigures {
        match self {
            Self::Disk(log) => {
                let stat = log.stat();
                JournalFigures {
                    writes: stat.flush_metrics.batch_count,
                    syncs: stat.flush_metrics.sync_batch_count,
                    written_bytes: stat.flush_metrics.write_bytes,
                    sync_us: stat.flush_metrics.sync_us,
                    cached_entries: stat.payload_cache_item_count,
                    cached_bytes: stat.payload_cache_size,
                }
            }
            Self::Memory(log) => log.figures(),
        }
    }

    pub(super) fn size_on_disk(&self) -> u64 {
        match self {
            Self::Disk(log) => log.on_disk_size(),
            Self::Memory(log) => log.size(),
        }
    }
}

fn end(written: &Segment) -> u64 {
    written.offset + written.size
}
