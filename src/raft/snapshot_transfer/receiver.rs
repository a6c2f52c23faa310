//! Receives a snapshot file from a leader.
//!
//! Guarantees: as [`super`]; a part is checked before a byte of it is kept; what is there of a file that is offered again is
//! kept, also over a restart of this node. What a power cut took of it is noticed at the end, by the file's SHA-256.
//! Leaves out: verifying and installing the file (`server`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TransferMetrics;
use crate::host::spawn_blocking;
use crate::raft::messages::{SnapshotOffer, SnapshotPart};
use crate::types::LogPosition;

/// The file is synced each time this many bytes were written: one sync at the end of a large file would hold up, for as
/// long as it takes, whoever else syncs on that disk.
const SYNC_EVERY_BYTES: u64 = 32 * 1024 * 1024;

/// Why a part of a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::raft) enum ReceiveError {
    /// The disk refused.
    #[error("can't keep the snapshot: {0}")]
    Io(#[from] io::Error),
    /// The part was damaged on its way.
    #[error("the part at byte {0} was damaged on its way")]
    Checksum(u64),
    /// Parts of a file that was not announced, or another one.
    #[error("no transfer of this snapshot was announced")]
    NotAnnounced,
    /// More bytes than were announced.
    #[error("the part at byte {0} reaches beyond the announced size")]
    Beyond(u64),
}

/// A snapshot on its way to this node. At most one at a time: a newer offer takes the place of an older one.
pub(in crate::raft) struct Receiver {
    dir: PathBuf,
    current: Option<Incoming>,
    /// The last entry that this node had when it started.
    found: Option<LogPosition>,
    /// Whether nothing lies in the folder that is not of the current one.
    swept: bool,
    metrics: TransferMetrics,
}

struct Incoming {
    offer: SnapshotOffer,
    path: PathBuf,
    file: Arc<File>,
    received: u64,
    synced: u64,
}

/// The name of a file that is being received; its SHA-256 stands in it, so that a cut transfer finds its beginning again.
fn incoming_name(offer: &SnapshotOffer) -> String {
    let digest: String = offer.sha256.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("incoming-{digest}.part")
}

/// Whether a file name is one of a snapshot that is being received.
pub(in crate::raft) fn is_incoming(name: &str) -> bool {
    name.starts_with("incoming-")
}

/// Runs file operations where they may block.
async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::from)?
}

impl Receiver {
    /// `found` is the last entry that this node had when it started.
    pub(in crate::raft) fn new(dir: &Path, found: Option<LogPosition>, metrics: TransferMetrics) -> Self {
        Self { dir: dir.to_owned(), current: None, found, swept: false, metrics }
    }

    /// Removes what nobody goes on with: what has come of a snapshot that ends no later than what is `applied` here. Of
    /// files from an earlier life of this node nobody knows where they end; they go once the node follows the log, as one
    /// that is to have a snapshot does not.
    pub(in crate::raft) async fn remove_outdated(&mut self, applied: Option<LogPosition>) -> io::Result<()> {
        let follows = applied > self.found;
        let ends = self.current.as_ref().map(|current| current.offer.meta.last_log_id.map(LogPosition::from));
        let outdated = ends.is_some_and(|ends| ends <= applied);
        if outdated {
            self.current = None;
        }
        if self.current.is_some() || !(outdated || (follows && !self.swept)) {
            return Ok(());
        }
        // Tried once: what can't be removed only takes room.
        self.swept = true;
        let dir = self.dir.clone();
        off_the_runtime(move || remove_others(&dir, "")).await
    }

    /// Begins a transfer, or goes on with one that was cut; returns how many bytes are there.
    pub(in crate::raft) async fn begin(&mut self, offer: SnapshotOffer) -> Result<u64, ReceiveError> {
        if let Some(current) = &self.current
            && current.offer.sha256 == offer.sha256
        {
            return Ok(current.received);
        }
        (self.current, self.swept) = (None, true);
        let (dir, name, file_bytes) = (self.dir.clone(), incoming_name(&offer), offer.file_bytes);
        let open = move || {
            remove_others(&dir, &name)?;
            let path = dir.join(name);
            let file = File::options().create(true).read(true).write(true).truncate(false).open(&path)?;
            // What was written of a part that a crash tore is as right as any other byte: it was checked before.
            let mut received = file.metadata()?.len();
            if received > file_bytes {
                file.set_len(0)?;
                received = 0;
            }
            Ok((path, file, received))
        };
        let (path, file, received) = off_the_runtime(open).await?;
        self.current = Some(Incoming { offer, path, file: Arc::new(file), received, synced: 0 });
        Ok(received)
    }

    /// Takes one part; returns how many bytes are there. A part that is not the next one is passed over.
    pub(in crate::raft) async fn part(&mut self, part: SnapshotPart) -> Result<u64, ReceiveError> {
        let current = self.current.as_mut().ok_or(ReceiveError::NotAnnounced)?;
        if current.offer.sha256 != part.sha256 {
            return Err(ReceiveError::NotAnnounced);
        }
        let end = part.offset.checked_add(part.bytes.len() as u64).ok_or(ReceiveError::Beyond(part.offset))?;
        if part.offset == current.received && end > current.offer.file_bytes {
            return Err(ReceiveError::Beyond(part.offset));
        }
        let (file, offset) = (Arc::clone(&current.file), part.offset);
        let (is_next, syncs) = (offset == current.received, end.saturating_sub(current.synced) >= SYNC_EVERY_BYTES);
        // A call that is given up in the middle of its write leaves the same bytes that the next one writes there.
        let keep = move || {
            let sound = crc32c::crc32c(&part.bytes) == part.crc;
            if sound && is_next {
                file.write_all_at(&part.bytes, offset)?;
                if syncs {
                    file.sync_data()?;
                }
            }
            Ok(sound)
        };
        if !off_the_runtime(keep).await? {
            return Err(ReceiveError::Checksum(offset));
        }
        if is_next {
            current.received = end;
            current.synced = if syncs { end } else { current.synced };
            self.metrics.received.inc_by(end - offset);
        }
        Ok(current.received)
    }

    /// Ends the transfer: the file is on disk and handed over, to be verified by the caller.
    pub(in crate::raft) async fn end(&mut self, offer: &SnapshotOffer) -> Result<PathBuf, ReceiveError> {
        let complete =
            |current: &Incoming| current.offer.sha256 == offer.sha256 && current.received == current.offer.file_bytes;
        let Some(current) = self.current.take_if(|current| complete(current)) else {
            return Err(ReceiveError::NotAnnounced);
        };
        let file = current.file;
        off_the_runtime(move || file.sync_all()).await?;
        Ok(current.path)
    }
}

/// Removes what transfers of other files left behind, in this life of the process or an earlier one.
fn remove_others(dir: &Path, keep: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| is_incoming(name) && name != keep) {
            tracing::info!(file = %entry.path().display(), "removing what is left of a snapshot that was on its way here");
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::raft::types::{SnapshotMeta, Vote};
    use crate::types::{LogIndex, NodeId, Term};

    fn offer(bytes: &[u8], digest: u8) -> SnapshotOffer {
        SnapshotOffer {
            vote: Vote::new_committed(Term::new(1), NodeId::new(1)),
            meta: SnapshotMeta::default(),
            file_bytes: bytes.len() as u64,
            sha256: [digest; 32],
        }
    }

    fn part(bytes: &[u8], digest: u8, offset: usize, end: usize) -> SnapshotPart {
        let bytes = Bytes::copy_from_slice(&bytes[offset..end]);
        SnapshotPart { sha256: [digest; 32], offset: offset as u64, crc: crc32c::crc32c(&bytes), bytes }
    }

    fn receiver(dir: &Path) -> Receiver {
        Receiver::new(dir, None, TransferMetrics::default())
    }

    #[tokio::test]
    async fn a_transfer_goes_on_behind_the_last_byte_whichever_that_was() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
        let mut at = 0;
        for step in [1, 4_095, 1, 30_000, 77] {
            // Another life of the process each time: what is left is the file.
            let mut receiver = receiver(dir.path());
            assert_eq!(receiver.begin(offer(&bytes, 1)).await.unwrap(), at as u64);
            assert_eq!(receiver.part(part(&bytes, 1, at, at + step)).await.unwrap(), (at + step) as u64);
            at += step;
        }
        // And a part that was torn in the middle of its write.
        let path = dir.path().join(incoming_name(&offer(&bytes, 1)));
        let file = File::options().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut &file, &bytes[at..at + 500]).unwrap();
        let mut receiver = receiver(dir.path());
        assert_eq!(receiver.begin(offer(&bytes, 1)).await.unwrap(), at as u64 + 500);
        receiver.part(part(&bytes, 1, at + 500, bytes.len())).await.unwrap();
        let path = receiver.end(&offer(&bytes, 1)).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes);
    }

    #[tokio::test]
    async fn damaged_repeated_and_foreign_parts_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7; 300];
        let mut receiver = receiver(dir.path());
        receiver.begin(offer(&bytes, 1)).await.unwrap();
        let mut damaged = part(&bytes, 1, 0, 100);
        damaged.crc ^= 1;
        assert!(matches!(receiver.part(damaged).await, Err(ReceiveError::Checksum(0))));
        assert!(matches!(receiver.part(part(&bytes, 2, 0, 100)).await, Err(ReceiveError::NotAnnounced)));
        assert_eq!(receiver.part(part(&bytes, 1, 0, 100)).await.unwrap(), 100);
        assert_eq!(receiver.part(part(&bytes, 1, 0, 100)).await.unwrap(), 100, "repeated");
        assert_eq!(receiver.part(part(&bytes, 1, 200, 300)).await.unwrap(), 100, "ahead of the rest");
        assert!(matches!(receiver.end(&offer(&bytes, 1)).await, Err(ReceiveError::NotAnnounced)), "not complete");
        let mut beyond = part(&[7; 500], 1, 100, 500);
        assert!(matches!(receiver.part(beyond.clone()).await, Err(ReceiveError::Beyond(100))));
        beyond.offset = u64::MAX;
        assert!(matches!(receiver.part(beyond).await, Err(ReceiveError::Beyond(u64::MAX))));
        assert_eq!(receiver.begin(offer(&bytes, 1)).await.unwrap(), 100, "and it is still there");
        assert_eq!(receiver.metrics.received.get(), 100);
    }

    #[tokio::test]
    async fn a_newer_offer_takes_the_place_of_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = receiver(dir.path());
        receiver.begin(offer(&[1; 10], 1)).await.unwrap();
        receiver.begin(offer(&[2; 10], 2)).await.unwrap();
        assert_eq!(names(dir.path()), [incoming_name(&offer(&[], 2))]);
    }

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        std::fs::read_dir(dir).unwrap().map(name).collect()
    }

    #[tokio::test]
    async fn what_nobody_goes_on_with_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |index| LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(index) };
        let until = |index| {
            let meta = SnapshotMeta { last_log_id: Some(at(index).into()), ..SnapshotMeta::default() };
            SnapshotOffer { meta, ..offer(&[1; 10], 1) }
        };
        let left = || std::fs::write(dir.path().join("incoming-77.part"), "of an earlier life").unwrap();
        left();
        let mut receiver = receiver(dir.path());
        receiver.found = Some(at(5));
        receiver.remove_outdated(Some(at(5))).await.unwrap();
        assert_eq!(names(dir.path()), ["incoming-77.part"], "it may be gone on with");
        receiver.remove_outdated(Some(at(6))).await.unwrap();
        assert_eq!(names(dir.path()), [""; 0]);

        left();
        assert_eq!(receiver.begin(until(9)).await.unwrap(), 0);
        let coming = [incoming_name(&until(9))];
        for (applied, there) in [(None, &coming[..]), (Some(at(8)), &coming[..]), (Some(at(9)), &[])] {
            receiver.remove_outdated(applied).await.unwrap();
            assert_eq!(names(dir.path()), there, "{applied:?}");
        }
        assert!(matches!(receiver.part(part(&[1; 10], 1, 0, 10)).await, Err(ReceiveError::NotAnnounced)));
    }
}
