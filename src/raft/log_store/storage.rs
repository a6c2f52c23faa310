//! openraft's view of the log: `RaftLogReader` and `RaftLogStorage`.
//!
//! Guarantees: openraft's contract (the doc comments of both traits in 0.10.0-alpha.37): entries are readable when `append`
//! returns and flushed when its callback fires, votes are durable on return, writes keep their order. Leaves out: how
//! (`wal`).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::Stream;
use futures::stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};

use super::codec::{RECORD_OVERHEAD_BYTES, WalPayload};
use super::flush::Waiter;
use super::wal::{self, next_index};
use super::{LogStore, READ_BYTES_MAX};
use crate::raft::types::{Entry, LogId, LogState, TypeConfig, Vote};
use crate::types::LogPosition;

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = half_open(&range);
        self.inner.read(from..to, u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.inner.read(start..end, READ_BYTES_MAX).await
    }

    /// Read piece by piece as openraft applies them, so that a long backlog is never in memory as a whole. They are
    /// committed and not yet in a snapshot, so none is truncated or purged between two pieces.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = half_open(&range);
        let inner = self.inner.clone();
        let pieces = stream::try_unfold(from, move |from| {
            let inner = inner.clone();
            async move {
                if from >= to {
                    return Ok(None);
                }
                let entries = inner.read(from..to, READ_BYTES_MAX).await?;
                let next = entries.last().map(|entry| entry.log_id.index + 1);
                Ok::<_, io::Error>(next.map(|next| (stream::iter(entries.into_iter().map(Ok)), next)))
            }
        });
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.inner.wal.read().log.marks().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState> {
        let marks = self.inner.wal.read().log.marks();
        Ok(LogState { last_purged_log_id: marks.purged.map(LogId::from), last_log_id: marks.last.map(LogId::from) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.inner
            .write_synced(RECORD_OVERHEAD_BYTES, move |wal| {
                let end = wal.log.save_vote(vote)?;
                wal.ends_at(end);
                Ok(())
            })
            .await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed.map(LogPosition::from) else { return Ok(()) };
        self.inner
            .write_mark(RECORD_OVERHEAD_BYTES, move |wal| {
                let marks = wal.log.marks();
                // A mark never goes back, and one beyond the log (a snapshot is ahead of it) says nothing about the log.
                if Some(committed) <= marks.committed || Some(committed) > marks.last {
                    return Ok(());
                }
                wal.log.commit(committed)
            })
            .await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.committed().map(LogId::from))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // Made before anything can fail, so that the callback is told in any case.
        let told = self.inner.told(Waiter::Entries(callback));
        let records: io::Result<Vec<_>> = entries
            .into_iter()
            .map(|entry| Ok((LogPosition::from(entry.log_id), WalPayload::encode_entry(entry.payload)?)))
            .collect();
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                told.refuse(&error);
                return Err(error);
            }
        };
        let count = records.len() as u64;
        let bytes: u64 = records.iter().map(|(_position, payload)| payload.len() as u64).sum();
        self.metrics().appended_entries.inc_by(count);
        self.metrics().appended_bytes.inc_by(bytes);
        self.inner
            .write(bytes + count * RECORD_OVERHEAD_BYTES, move |wal| match wal.log.append(records) {
                Ok(end) => {
                    wal.ends_at(end);
                    wal.flush(true, Some(told))
                }
                Err(error) => {
                    told.refuse(&error);
                    Err(error)
                }
            })
            .await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let last = last_log_id.map(LogPosition::from);
        self.inner
            .write_mark(RECORD_OVERHEAD_BYTES, move |wal| {
                if wal.log.marks().last.is_none_or(|end| next_index(Some(&end)) <= next_index(last.as_ref())) {
                    return Ok(());
                }
                wal.log.truncate(next_index(last.as_ref()))
            })
            .await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let told = self.inner.told(Waiter::Nobody);
        self.inner
            .write(wal::PURGE_BYTES, move |wal| {
                wal.log.purge(log_id.into())?;
                // Only a sync lets raft-log remove the chunks; nobody waits for it.
                wal.flush(true, Some(told))
            })
            .await
    }
}

/// A range of indexes as start (inclusive) and end (exclusive).
fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
