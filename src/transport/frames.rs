//! Frames on one TCP connection: a length in four bytes, big-endian, then as many bytes.
//!
//! Guarantees: a frame that claims more than [`FRAME_BYTES_MAX`] is an error before anything is allocated for it; what is
//! allocated for a frame is at most [`FIRST_ROOM_BYTES`] or twice what has come of it, whatever it claims; a frame
//! is sent in one system call where the socket takes it and is never copied on the way out. Reading is cancel-safe,
//! writing is not: a connection whose write was given up must be dropped. Leaves out: time limits.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::FRAME_BYTES_MAX;

/// Bytes asked of the socket at once while the size of the next frame is not known.
const READ_BYTES: usize = 8 * 1024;

/// The length before each frame.
const HEADER_BYTES: usize = 4;

/// What is allocated for a frame before as much of it has come. A frame up to this size is read without a copy.
const FIRST_ROOM_BYTES: usize = 256 * 1024;

/// With less room than this left in the buffer, a new frame begins in a new one.
const READ_BYTES_MIN: usize = 1024;

/// The largest buffer that a connection keeps between two frames; a snapshot part's is given back.
const KEPT_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// A connection that carried nothing for so long is probed by the system, this often, and closed after so many probes
/// without an answer: a member that lost its power does not say goodbye.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;

/// How much of what still comes is dropped when a connection is parted, in reads of 1 KiB, and for how long.
const PARTING_READS_MAX: usize = 64;
const PARTING_TIME: Duration = Duration::from_millis(200);

/// Why a frame was not sent.
#[derive(Debug)]
pub(super) struct WriteError {
    /// Not one byte was taken by the system, so the other side can't have seen any of it.
    pub(super) nothing_sent: bool,
    pub(super) source: io::Error,
}

/// One connection and what was read of the next frame.
#[derive(Debug)]
pub(super) struct Frames {
    stream: TcpStream,
    inbox: BytesMut,
    /// Where the bytes of large frames are counted, if they are.
    room: Option<Room>,
    /// What this connection has of it.
    held: Vec<Share>,
}

/// Memory for large frames of many connections together, in bytes. Small frames go without, so that a heartbeat or a vote
/// never waits for it. A clone shares it.
#[derive(Debug, Clone)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    taken: Gauge,
}

/// A part of it, given back on drop.
#[derive(Debug)]
struct Share {
    _permit: OwnedSemaphorePermit,
    taken: Gauge,
    bytes: i64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.dec_by(self.bytes);
    }
}

impl Room {
    /// Room for this many bytes, told by `taken`.
    pub(super) fn new(bytes: usize, taken: Gauge) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes)), taken }
    }

    /// Waits for this many bytes. Frames that wait for each other half-way are parted by the limit of time that each has.
    async fn take(&self, bytes: usize) -> io::Result<Share> {
        let count = u32::try_from(bytes).map_err(io::Error::other)?;
        let permit = Arc::clone(&self.free).acquire_many_owned(count).await.map_err(io::Error::other)?;
        let bytes = i64::from(count);
        self.taken.inc_by(bytes);
        Ok(Share { _permit: permit, taken: self.taken.clone(), bytes })
    }
}

impl Frames {
    /// Takes over a fresh connection.
    ///
    /// # Errors
    /// If the system refuses the socket options: the connection is gone already.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { stream, inbox: BytesMut::new(), room: None, held: Vec::new() })
    }

    /// Counts what large frames take from now on; it is given back when the next frame is waited for.
    pub(super) fn within(mut self, room: Room) -> Self {
        self.room = Some(room);
        self
    }

    /// The address of the other side, for logs.
    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Sends bytes outside of any frame: a hello.
    pub(super) async fn write_bare(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Ends this side, and drops what still comes for a moment: closing with bytes unread would be a reset, in which what
    /// was sent last is lost.
    pub(super) async fn part(&mut self) {
        let drop_rest = async {
            self.stream.shutdown().await?;
            let mut rest = [0; 1024];
            for _ in 0..PARTING_READS_MAX {
                if self.stream.read(&mut rest).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        let _ = timeout(PARTING_TIME, drop_rest).await;
    }

    /// Reads exactly `N` bytes outside of any frame; only before the first frame.
    pub(super) async fn read_bare<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// Sends one frame.
    pub(super) async fn write(&mut self, payload: &[u8]) -> Result<(), WriteError> {
        let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= FRAME_BYTES_MAX);
        let Some(length) = length else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the message is over the frame limit");
            return Err(WriteError { nothing_sent: true, source });
        };
        let header = length.to_be_bytes();
        // Header and payload leave together by a vectored write, without a copy into one buffer.
        let mut frame = Buf::chain(header.as_slice(), payload);
        let total = frame.remaining();
        let result = self.stream.write_all_buf(&mut frame).await;
        result.map_err(|source| WriteError { nothing_sent: frame.remaining() == total, source })
    }

    /// Waits for the first byte of a frame; false if the other side closed instead.
    pub(super) async fn begun(&mut self) -> io::Result<bool> {
        self.held.clear();
        Ok(!self.inbox.is_empty() || self.fill().await? > 0)
    }

    /// The next frame; `None` if the other side closed between two frames.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut inside = !self.inbox.is_empty();
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            self.make_room().await?;
            if self.fill().await? == 0 {
                return if inside { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
            inside = true;
        }
    }

    /// The frame at the head of what was read, if all of it is there; otherwise makes room for more of it.
    fn take_frame(&mut self) -> io::Result<Option<Bytes>> {
        let Some(header) = self.inbox.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > FRAME_BYTES_MAX {
            let told = format!("a frame claims {length} bytes; at most {FRAME_BYTES_MAX} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, told));
        }
        if self.inbox.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.inbox.advance(HEADER_BYTES);
        let frame = self.inbox.split_to(length).freeze();
        if self.inbox.is_empty() && length > KEPT_BUFFER_BYTES_MAX {
            self.inbox = BytesMut::new();
        }
        Ok(Some(frame))
    }

    /// Makes room for more of a frame that has begun.
    async fn make_room(&mut self) -> io::Result<()> {
        let Some(header) = self.inbox.first_chunk::<HEADER_BYTES>() else { return Ok(()) };
        let length = u32::from_be_bytes(*header) as usize;
        let missing = (HEADER_BYTES + length).saturating_sub(self.inbox.len());
        // A stranger could claim much and send little on every connection there is.
        let more = missing.min(self.inbox.len().max(FIRST_ROOM_BYTES));
        if self.inbox.capacity() == self.inbox.len() || missing <= FIRST_ROOM_BYTES {
            if let Some(room) = self.room.as_ref().filter(|_| length > FIRST_ROOM_BYTES) {
                let counted: i64 = self.held.iter().map(|share| share.bytes).sum();
                let wanted = self.inbox.len() + more;
                if let Some(short) =
                    wanted.checked_sub(usize::try_from(counted).unwrap_or_default()).filter(|short| *short > 0)
                {
                    self.held.push(room.take(short).await?);
                }
            }
            self.inbox.reserve(more);
        }
        Ok(())
    }

    /// Reads once from the socket; 0 at the end of the stream.
    async fn fill(&mut self) -> io::Result<usize> {
        // Inside a frame the room that is needed was made: making more would copy the frame.
        let room = self.inbox.capacity() - self.inbox.len();
        if room == 0 || (self.inbox.is_empty() && room < READ_BYTES_MIN) {
            self.inbox.reserve(READ_BYTES);
        }
        self.stream.read_buf(&mut self.inbox).await
    }

    /// Whether bytes are here that belong to no call yet.
    pub(super) fn has_unread(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Whether an idle connection still stands: nothing has come, no end and no reset either. Asks the system, since the
    /// runtime may not have looked yet.
    pub(super) fn stands(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = SockRef::from(&self.stream).peek(&mut byte);
        !self.has_unread() && matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_frame_gets_room_for_what_has_come_of_it_and_not_for_what_it_claims() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut frames = Frames::new(listener.accept().await.unwrap().0).unwrap();
        stream.write_all(&(FRAME_BYTES_MAX as u32).to_be_bytes()).await.unwrap();
        stream.write_all(&[7; 1000]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(frames.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(frames.inbox.capacity() <= 2 * FIRST_ROOM_BYTES, "{}", frames.inbox.capacity());
    }

    #[tokio::test]
    async fn large_frames_wait_for_room_and_small_ones_never_do() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = Gauge::default();
        let room = Room::new(2 * 1024 * 1024, taken.clone());
        let mut pairs = Vec::new();
        for _ in 0..3 {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let receiver = Frames::new(listener.accept().await.unwrap().0).unwrap().within(room.clone());
            pairs.push((Frames::new(stream).unwrap(), receiver));
        }
        let large = vec![1; 2 * 1024 * 1024 - HEADER_BYTES];
        let [(sender, holder), (other_sender, waiting), (small_sender, small)] = &mut pairs[..] else { panic!() };
        let (sent, held) = tokio::join!(sender.write(&large), holder.next());
        assert!(sent.is_ok() && held.unwrap().unwrap().len() == large.len());
        assert!((1024 * 1024..=2 * 1024 * 1024).contains(&taken.get()), "{}", taken.get());
        let next = async {
            small_sender.write(&[2; 1000]).await.unwrap();
            assert_eq!(small.next().await.unwrap().unwrap().len(), 1000, "what is small never waits");
            // The next request is waited for: what the last one took is free.
            sender.write(&[3; 10]).await.unwrap();
            assert!(holder.begun().await.unwrap());
        };
        let (sent, came, ()) = tokio::join!(other_sender.write(&large), waiting.next(), next);
        assert!(sent.is_ok() && came.unwrap().unwrap().len() == large.len());
        drop(pairs);
        assert_eq!(taken.get(), 0);
    }

    #[tokio::test]
    async fn frames_of_every_size_come_whole_one_behind_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut sender, mut receiver) =
            (Frames::new(stream).unwrap(), Frames::new(listener.accept().await.unwrap().0).unwrap());
        let sizes = [0, 1, 8191, 8192, FIRST_ROOM_BYTES, FIRST_ROOM_BYTES + 1, 0, 5_000_000, 3, FRAME_BYTES_MAX];
        let sending = async {
            for size in sizes {
                sender.write(&vec![size as u8; size]).await.unwrap();
            }
        };
        let receiving = async {
            for size in sizes {
                let frame = receiver.next().await.unwrap().unwrap();
                assert!(frame.len() == size && frame.iter().all(|byte| *byte == size as u8), "{size}");
            }
        };
        tokio::join!(sending, receiving);
        assert!(!receiver.has_unread());
    }
}
