//! Frames on one TCP connection: a length in four bytes, big-endian, then as many bytes.
//!
//! Guarantees: a frame that claims more than [`FRAME_BYTES_MAX`] is an error before anything is allocated for it; a frame
//! is sent in one system call where the socket takes it and is never copied on the way out. Reading is cancel-safe,
//! writing is not: a connection whose write was given up must be dropped. Leaves out: time limits.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::{Decoder, LengthDelimitedCodec};

use super::FRAME_BYTES_MAX;

/// Bytes asked of the socket at once while the size of the next frame is not known.
const READ_BYTES: usize = 8 * 1024;

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
    codec: LengthDelimitedCodec,
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
        let codec = LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec();
        Ok(Self { stream, inbox: BytesMut::new(), codec })
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
        Ok(!self.inbox.is_empty() || self.fill().await? > 0)
    }

    /// The next frame; `None` if the other side closed between two frames.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut inside = !self.inbox.is_empty();
        loop {
            if let Some(frame) = self.codec.decode(&mut self.inbox)? {
                if self.inbox.is_empty() && frame.len() > KEPT_BUFFER_BYTES_MAX {
                    self.inbox = BytesMut::new();
                }
                return Ok(Some(frame.freeze()));
            }
            if self.fill().await? == 0 {
                return if inside { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
            inside = true;
        }
    }

    /// Reads once from the socket; 0 at the end of the stream.
    async fn fill(&mut self) -> io::Result<usize> {
        // Inside a frame the codec has made exactly the room that is needed: making more would copy the frame.
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
