//! A large object of entries of the log, which is stored as its entries come.
//!
//! Guarantees: memory holds a few parts of it and the entries of a few pieces, never all; nothing appears in the store
//! before it is whole. Leaves out: small ones, which are made in one go (`transfer`), and making them known (`catalogue`).

use std::io::{self, BufWriter, Write as _};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::layout::{Kind, Layout};
use super::manifest::Object;
use super::repository::{PART_BYTES, Repository, Upload};
use super::seal::{Recipients, SealWriter, Sealed};
use super::segment::{SegmentEnd, SegmentHeader, SegmentWriter, StateMark};
use super::transfer::{PARTS_WAITING, Parts, StoreDataError, object, times};
use crate::host;
use crate::state::LogEntry;
use crate::types::{ClusterId, LogPosition};

/// Pieces of entries that may wait to be packed.
const PIECES_WAITING: usize = 1;

/// What an object will hold.
pub(super) struct LogObject {
    pub(super) cluster: ClusterId,
    /// The entry right before the first.
    pub(super) previous: Option<LogPosition>,
    /// Index of the first entry.
    pub(super) first: u64,
    /// The last entry.
    pub(super) last: LogPosition,
    /// The state behind it, where it is known.
    pub(super) state: Option<StateMark>,
}

type Packed = (SegmentEnd, Sealed, Option<(u64, u64)>);

/// An object on its way.
pub(super) struct Sending {
    of: LogObject,
    name: String,
    pieces: mpsc::Sender<Vec<LogEntry>>,
    parts: mpsc::Receiver<Bytes>,
    packing: JoinHandle<io::Result<Packed>>,
    upload: Upload,
}

impl LogObject {
    /// Begins to store it.
    ///
    /// # Errors
    /// [`StoreDataError`].
    pub(super) async fn begin(self, repository: &Repository, keys: &Recipients) -> Result<Sending, StoreDataError> {
        let last = self.last.index.get();
        let name = Layout::new(self.cluster).log(self.first, last, host::random(), !keys.is_empty());
        let upload = repository.upload(&name).await?;
        let (pieces, mut arriving) = mpsc::channel::<Vec<LogEntry>>(PIECES_WAITING);
        let (packed, parts) = mpsc::channel(PARTS_WAITING);
        let (keys, header, state) =
            (keys.clone(), SegmentHeader { cluster: self.cluster, previous: self.previous }, self.state);
        let packing = host::spawn_blocking(move || {
            let sealing = BufWriter::with_capacity(PART_BYTES / 8, SealWriter::new(Parts::new(packed), &keys)?);
            let mut writer = SegmentWriter::new(sealing, &header)?;
            let mut all_times: Option<(u64, u64)> = None;
            while let Some(entries) = arriving.blocking_recv() {
                for entry in &entries {
                    writer.push(entry)?;
                }
                let (begin, end) = (all_times, times(&entries));
                all_times = begin.zip(end).map(|(begin, end)| (begin.0, end.1)).or(begin).or(end);
            }
            let (end, mut sealing) = writer.finish(state)?;
            sealing.flush()?;
            let sealing = sealing.into_inner().map_err(io::IntoInnerError::into_error)?;
            let (sealed, mut parts) = sealing.finish()?;
            parts.send()?;
            Ok((end, sealed, all_times))
        });
        Ok(Sending { of: self, name, pieces, parts, packing, upload })
    }
}

impl Sending {
    /// Adds the next entries. Returns how many bytes were sent meanwhile.
    ///
    /// # Errors
    /// [`StoreDataError`].
    pub(super) async fn push(&mut self, entries: Vec<LogEntry>) -> Result<u64, StoreDataError> {
        let mut sent = 0;
        loop {
            tokio::select! {
                biased;
                room = self.pieces.reserve() => {
                    // Without a receiver packing has failed, and says why at the end.
                    if let Ok(room) = room {
                        room.send(entries);
                    }
                    return Ok(sent);
                }
                Some(part) = self.parts.recv() => {
                    sent += part.len() as u64;
                    self.upload.part(part).await?;
                }
            }
        }
    }

    /// Ends the object.
    ///
    /// # Errors
    /// [`StoreDataError`]; nothing appears then.
    pub(super) async fn finish(self) -> Result<Object, StoreDataError> {
        let Self { of, name, pieces, mut parts, packing, mut upload } = self;
        drop(pieces);
        while let Some(part) = parts.recv().await {
            upload.part(part).await?;
        }
        let packed = packing.await.map_err(io::Error::other).flatten();
        let packed = packed.and_then(|packed| match packed.0.last == of.last {
            true => Ok(packed),
            false => Err(io::Error::other("the object ends with another entry than it was begun for")),
        });
        match packed {
            Ok((end, sealed, times)) => {
                upload.complete().await?;
                let previous = of.previous.map(Into::into);
                Ok(object(name, Kind::Log, sealed, end.last, end.state, times, previous))
            }
            Err(error) => {
                upload.abort().await;
                Err(error.into())
            }
        }
    }

    /// Gives the object up.
    pub(super) async fn abort(self) {
        self.upload.abort().await;
    }
}
