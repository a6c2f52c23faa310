//! [`MemoryLog`]: the log in memory, as a model of what a disk may do to it.
//!
//! It keeps what readers see, what would be left behind a power cut, and the records between the two. What is handed to the
//! writer waits until the simulation has it done ([`MemoryLog::complete`]), or fails it. A crash leaves what was synced and,
//! of what was handed over behind it, as many whole records as the caller wishes: a record that was cut is discarded when
//! the log is opened, as raft-log's torn tail is. Clones share one log: a simulation keeps one as "the disk" while the node
//! under test comes and goes with another.
//!
//! Guarantees: accepts and refuses what raft-log does. Leaves out: files, chunks, damage to what was synced, and a limit to
//! the orders that wait for a writer whom nobody drives.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use raft_log::Callback as _;

use super::codec::{RECORD_OVERHEAD_BYTES, WalPayload};
use super::flush::Flushed;
use super::journal::{JournalFigures, LogMarks};
use super::wal::next_index;
use crate::raft::types::{Entry, Vote};
use crate::types::LogPosition;

/// A log in memory with a model of durability. Clones share one.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Medium>>);

/// Something that was written to the log, for who watches it.
#[derive(Debug, Clone, PartialEq)]
pub enum LogRecord {
    /// This node's vote.
    Vote(Vote),
    /// An entry behind the last one.
    Append(Entry),
    /// The entries behind this one are gone.
    Truncate(Option<LogPosition>),
    /// The entries up to this one are gone.
    Purge(LogPosition),
    /// The entries up to this one are committed.
    Commit(LogPosition),
}

#[derive(Debug, Clone)]
enum Record {
    Vote(Vote),
    Append(LogPosition, WalPayload),
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
    Commit(LogPosition),
}

/// What a log amounts to.
#[derive(Default, Clone)]
struct Image {
    marks: LogMarks,
    entries: BTreeMap<u64, (LogPosition, WalPayload)>,
    bytes: u64,
}

/// What was handed to the writer at once.
struct Order {
    records: usize,
    sync: bool,
    told: Option<Flushed>,
}

#[derive(Default)]
struct Medium {
    exists: bool,
    /// Whether what is handed over waits for [`MemoryLog::complete`].
    held: bool,
    visible: Image,
    durable: Image,
    /// What `visible` has beyond `durable`, oldest first.
    tail: VecDeque<Record>,
    /// How many records of the tail were written, but not synced.
    written: usize,
    orders: VecDeque<Order>,
    failed: Option<String>,
    watched: Option<Vec<LogRecord>>,
    figures: JournalFigures,
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLog").finish_non_exhaustive()
    }
}

/// The same log, not an equal one.
impl PartialEq for MemoryLog {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemoryLog {}

impl MemoryLog {
    /// A log that was never opened, and whose writer is done at once with what it gets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, but the writer does what [`Self::complete`] says, and what is written is noted for
    /// [`Self::take_records`].
    #[must_use]
    pub fn held() -> Self {
        let log = Self::default();
        {
            let mut medium = log.0.lock();
            medium.held = true;
            medium.watched = Some(Vec::new());
        }
        log
    }

    /// Whether it was ever opened.
    pub(super) fn exists(&self) -> bool {
        self.0.lock().exists
    }

    /// Opens it; whether it was there already.
    pub(super) fn open(&self) -> bool {
        std::mem::replace(&mut self.0.lock().exists, true)
    }

    /// What the writer still has to do, in orders.
    #[must_use]
    pub fn orders(&self) -> usize {
        self.0.lock().orders.len()
    }

    /// Has the writer do the oldest order, and tells who waits for it.
    pub fn complete(&self) {
        self.finish(true);
    }

    /// As [`Self::complete`], but the disk lies: what was to be synced is not.
    pub fn pretend(&self) {
        self.finish(false);
    }

    fn finish(&self, honest: bool) {
        let told = {
            let mut medium = self.0.lock();
            let Some(order) = medium.orders.pop_front() else { return };
            medium.written += order.records;
            medium.figures.writes += 1;
            if order.sync && honest {
                medium.figures.syncs += 1;
                let synced = std::mem::take(&mut medium.written);
                medium.make_durable(synced);
            }
            order.told
        };
        // Without the lock: whoever is told may write.
        if let Some(told) = told {
            told.send(Ok(()));
        }
    }

    /// The writer fails, with all that it has to do, and takes nothing more until the next crash.
    pub fn fail(&self, reason: &str) {
        let orders = {
            let mut medium = self.0.lock();
            medium.failed = Some(reason.to_owned());
            std::mem::take(&mut medium.orders)
        };
        for told in orders.into_iter().filter_map(|order| order.told) {
            told.send(Err(io::Error::other(reason.to_owned())));
        }
    }

    /// How many records a crash may lose: those that were handed to the writer and are not synced. What was not handed over
    /// is lost in any case.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.0.lock().handed()
    }

    /// What a power cut leaves: all that was synced, and the first `keep` records behind it. The node that used it must be
    /// gone. Clears a failure.
    pub fn crash(&self, keep: usize) {
        let orders = {
            let mut medium = self.0.lock();
            let kept = keep.min(medium.handed());
            medium.make_durable(kept);
            medium.tail.clear();
            medium.written = 0;
            medium.failed = None;
            medium.visible = medium.durable.clone();
            std::mem::take(&mut medium.orders)
        };
        // They tell their waiters, which are gone.
        drop(orders);
    }

    /// What was written since the last call, in order.
    #[must_use]
    pub fn take_records(&self) -> Vec<LogRecord> {
        self.0.lock().watched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All that the log holds, as records that make it what it is.
    ///
    /// # Errors
    /// An entry can't be decoded.
    pub fn image(&self) -> io::Result<Vec<LogRecord>> {
        let medium = self.0.lock();
        let Image { marks, entries, .. } = &medium.visible;
        let mut records: Vec<_> = marks.purged.map(Record::Purge).into_iter().collect();
        records.extend(entries.values().map(|(position, payload)| Record::Append(*position, payload.clone())));
        records.extend(marks.vote.map(Record::Vote));
        records.extend(marks.committed.map(Record::Commit));
        records.iter().map(LogRecord::try_from).collect()
    }

    /// Whether a power cut would leave this entry, or the mark behind which it was purged.
    #[must_use]
    pub fn durably_holds(&self, position: LogPosition) -> bool {
        let medium = self.0.lock();
        let entry = medium.durable.entries.get(&position.index.get());
        entry.is_some_and(|(found, _)| *found == position)
            || medium.durable.marks.purged.is_some_and(|purged| purged.index >= position.index)
    }

    /// The vote that a power cut would leave.
    #[must_use]
    pub fn durable_vote(&self) -> Option<Vote> {
        self.0.lock().durable.marks.vote
    }

    pub(super) fn marks(&self) -> LogMarks {
        self.0.lock().visible.marks
    }

    pub(super) fn save_vote(&self, vote: Vote) -> io::Result<()> {
        self.0.lock().write(Record::Vote(vote))
    }

    pub(super) fn append(&self, entries: Vec<(LogPosition, WalPayload)>) -> io::Result<()> {
        let mut medium = self.0.lock();
        entries.into_iter().try_for_each(|(position, payload)| medium.write(Record::Append(position, payload)))
    }

    pub(super) fn truncate(&self, index: u64) -> io::Result<()> {
        let mut medium = self.0.lock();
        let purged = medium.visible.marks.purged;
        let keep = if index == next_index(purged.as_ref()) {
            purged
        } else {
            let kept = index.checked_sub(1).and_then(|before| medium.visible.entries.get(&before));
            Some(kept.ok_or_else(|| refused(format!("there is no entry before {index}")))?.0)
        };
        medium.write(Record::Truncate(keep))
    }

    pub(super) fn purge(&self, upto: LogPosition) -> io::Result<()> {
        let mut medium = self.0.lock();
        if upto.index.get() < next_index(medium.visible.marks.purged.as_ref()) {
            return Ok(());
        }
        medium.write(Record::Purge(upto))
    }

    pub(super) fn commit(&self, upto: LogPosition) -> io::Result<()> {
        self.0.lock().write(Record::Commit(upto))
    }

    pub(super) fn flush(&self, sync: bool, told: Option<Flushed>) -> io::Result<()> {
        let held = {
            let mut medium = self.0.lock();
            medium.usable()?;
            let records = medium.tail.len() - medium.handed();
            medium.orders.push_back(Order { records, sync, told });
            medium.held
        };
        if !held {
            self.complete();
        }
        Ok(())
    }

    pub(super) fn read(
        &self,
        from: u64,
        to: u64,
        mut take: impl FnMut(LogPosition, WalPayload) -> io::Result<bool>,
    ) -> io::Result<()> {
        let medium = self.0.lock();
        for (position, payload) in medium.visible.entries.range(from..to).map(|(_, entry)| entry) {
            if !take(*position, payload.clone())? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn figures(&self) -> JournalFigures {
        let medium = self.0.lock();
        let cached_entries = medium.visible.entries.len() as u64;
        JournalFigures { cached_entries, cached_bytes: medium.visible.bytes, ..medium.figures }
    }

    pub(super) fn size(&self) -> u64 {
        self.0.lock().visible.bytes
    }
}

impl Medium {
    fn usable(&self) -> io::Result<()> {
        self.failed.as_ref().map_or(Ok(()), |reason| Err(io::Error::other(reason.clone())))
    }

    /// Records of the tail that the writer has got.
    fn handed(&self) -> usize {
        self.written + self.orders.iter().map(|order| order.records).sum::<usize>()
    }

    fn write(&mut self, record: Record) -> io::Result<()> {
        self.usable()?;
        self.visible.apply(&record)?;
        if let Some(watched) = &mut self.watched {
            watched.push(LogRecord::try_from(&record)?);
        }
        self.tail.push_back(record);
        Ok(())
    }

    fn make_durable(&mut self, records: usize) {
        for record in self.tail.drain(..records) {
            // It was accepted before, behind the same records.
            let applied = self.durable.apply(&record);
            debug_assert!(applied.is_ok(), "{applied:?}");
        }
    }
}

impl Image {
    fn apply(&mut self, record: &Record) -> io::Result<()> {
        let marks = &mut self.marks;
        match record {
            Record::Vote(vote) => {
                let goes_on = Some(vote) >= marks.vote.as_ref();
                if !goes_on {
                    return Err(refused(format!("vote {vote} is before {:?}", marks.vote)));
                }
                marks.vote = Some(*vote);
            }
            Record::Append(position, payload) => {
                let out_of_order = Some(*position) <= marks.last;
                let gap = marks.last.is_some() && position.index.get() != next_index(marks.last.as_ref());
                if out_of_order || gap {
                    return Err(refused(format!("{position} can't come behind {:?}", marks.last)));
                }
                marks.last = Some(*position);
                self.bytes += payload.len() as u64 + RECORD_OVERHEAD_BYTES;
                self.entries.insert(position.index.get(), (*position, payload.clone()));
            }
            Record::Truncate(keep) => {
                if *keep < marks.committed {
                    return Err(refused(format!("{:?} is committed and can't be truncated", marks.committed)));
                }
                if marks.last > *keep {
                    marks.last = *keep;
                }
                let gone = self.entries.split_off(&next_index(keep.as_ref()));
                self.bytes -= size(&gone);
            }
            Record::Purge(upto) => {
                marks.purged = marks.purged.max(Some(*upto));
                marks.last = marks.last.max(Some(*upto));
                let kept = self.entries.split_off(&next_index(Some(upto)));
                self.bytes -= size(&std::mem::replace(&mut self.entries, kept));
            }
            Record::Commit(upto) => {
                if Some(*upto) < marks.committed || Some(*upto) > marks.last {
                    return Err(refused(format!("{upto} can't be committed: {marks:?}")));
                }
                marks.committed = Some(*upto);
            }
        }
        Ok(())
    }
}

impl TryFrom<&Record> for LogRecord {
    type Error = io::Error;

    fn try_from(record: &Record) -> io::Result<Self> {
        Ok(match record {
            Record::Vote(vote) => Self::Vote(*vote),
            Record::Append(position, payload) => Self::Append(payload.clone().decode_entry(*position)?),
            Record::Truncate(keep) => Self::Truncate(*keep),
            Record::Purge(upto) => Self::Purge(*upto),
            Record::Commit(upto) => Self::Commit(*upto),
        })
    }
}

/// As raft-log counts them.
fn size(entries: &BTreeMap<u64, (LogPosition, WalPayload)>) -> u64 {
    entries.values().map(|(_, payload)| payload.len() as u64 + RECORD_OVERHEAD_BYTES).sum()
}

/// As raft-log refuses what openraft must not ask for.
fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
