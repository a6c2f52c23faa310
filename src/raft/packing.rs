//! Messages made smaller for the way to another data centre.
//!
//! Guarantees: a message is packed only where that makes it smaller, and comes out as it went in; large ones are packed and
//! unpacked off the threads that serve; what unpacking takes in memory is bounded by what the message says before
//! anything is allocated, that by [`FRAME_BYTES_MAX`], and all that is unpacked at a time by [`UNPACKED_BYTES_MAX`]. A message
//! that is not packed passes without a wait or a copy. Leaves out: which messages are worth it (`network`).
//!
//! What it brings for records of JSON, of about 230 bytes with random numbers and names in them, and costs (zstd 1.5.4 and
//! its own benchmark, one core of a busy machine of two):
//!
//! | commands | bytes | smaller by | packing | unpacking |
//! |---|---|---|---|---|
//! | 16 | 3,665 | 3.4 | 20 µs | – |
//! | 64 | 14,752 | 4.3 | 55 µs | 19 µs |
//! | 256 | 59,266 | 4.7 | 250 µs | 58 µs |
//! | 8,000 | 1,860,535 | 4.8 | 6.6 ms | 2.2 ms |

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use super::messages::{Form, HEAD_BYTES, MessageError, form, head};
use crate::clock;
use crate::host::spawn_blocking;
use crate::transport::FRAME_BYTES_MAX;

/// Below this size a message fits a few packets, and is sent as it is.
const PACK_BYTES_MIN: usize = 4 * 1024;

/// Up to this size a message is packed and unpacked where it is at hand, in a fraction of a millisecond; a larger one on
/// another thread, whose wake-up costs less than what it saves the others.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// The level of zstd: the fastest that does not trade ratio for nothing. Messages are on the path of a write.
const ZSTD_LEVEL: i32 = 1;

/// A message is sent as it is unless packing saves at least this part of it.
const SAVING_WORTH_IT: usize = 16;

/// The most bytes of unpacked messages that are worked on at a time; the next waits. Two of the largest.
const UNPACKED_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// Compressors that are kept for the next message: making one costs as much as packing a small message.
const SPARE_MAX: usize = 4;

/// The size of the message as it was, behind the head of a packed one, little-endian.
const SIZE_BYTES: usize = 4;

/// What packing brings and costs.
#[derive(Debug, Clone, Default)]
pub(super) struct PackingMetrics {
    plain: Counter,
    packed: Counter,
    seconds: Counter<f64, AtomicU64>,
}

impl PackingMetrics {
    /// New figures, shown by `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        let packing = registry.sub_registry_with_prefix("peer_packing");
        let plain = "Bytes of large messages to members in other zones, before they were compressed";
        packing.register_with_unit("plain", plain, Unit::Bytes, new.plain.clone());
        let packed = "Bytes of the same messages as they were sent";
        packing.register_with_unit("sent", packed, Unit::Bytes, new.packed.clone());
        packing.register_with_unit("spent", "Time spent on compressing them", Unit::Seconds, new.seconds.clone());
        new
    }
}

/// Packs messages. Clones share what they keep.
#[derive(Clone, Default)]
pub(super) struct Packer {
    spare: Arc<Mutex<Vec<Compressor<'static>>>>,
    metrics: PackingMetrics,
}

impl Packer {
    pub(super) fn new(metrics: PackingMetrics) -> Self {
        Self { spare: Arc::default(), metrics }
    }

    /// The message packed, or as it is where that is not worth it.
    pub(super) async fn pack(&self, message: Bytes) -> Bytes {
        if message.len() < PACK_BYTES_MIN || form(&message) != Some(Form::Plain) {
            return message;
        }
        let (this, plain) = (self.clone(), message.clone());
        let work = move || {
            let started = clock::now();
            let packed = this.packed(&plain);
            this.metrics.seconds.inc_by(started.elapsed().as_secs_f64());
            packed
        };
        let packed = if message.len() <= INLINE_BYTES_MAX { Ok(work()) } else { spawn_blocking(work).await };
        // Who can't compress sends what there is.
        let sent = match packed {
            Ok(Ok(packed)) if packed.len() + message.len() / SAVING_WORTH_IT <= message.len() => packed,
            _ => message.clone(),
        };
        self.metrics.plain.inc_by(message.len() as u64);
        self.metrics.packed.inc_by(sent.len() as u64);
        sent
    }

    fn packed(&self, message: &[u8]) -> io::Result<Bytes> {
        let plain = &message[HEAD_BYTES..];
        let spare = self.spare.lock().pop();
        let mut compressor = spare.map_or_else(|| Compressor::new(ZSTD_LEVEL), Ok)?;
        let mut out = vec![0; HEAD_BYTES + SIZE_BYTES + zstd_safe::compress_bound(plain.len())];
        let (front, body) = out.split_at_mut(HEAD_BYTES + SIZE_BYTES);
        front[..HEAD_BYTES].copy_from_slice(&head(Form::Zstd));
        let size = u32::try_from(plain.len()).map_err(io::Error::other)?;
        front[HEAD_BYTES..].copy_from_slice(&size.to_le_bytes());
        let written = compressor.compress_to_buffer(plain, body)?;
        out.truncate(HEAD_BYTES + SIZE_BYTES + written);
        let mut spares = self.spare.lock();
        if spares.len() < SPARE_MAX {
            spares.push(compressor);
        }
        Ok(Bytes::from(out))
    }
}

/// Unpacks messages. Clones share the room.
#[derive(Clone)]
pub(super) struct Unpacker {
    room: Arc<Semaphore>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(UNPACKED_BYTES_MAX)) }
    }
}

/// A message as it was before it was packed. The room it takes is free once this is dropped.
pub(super) struct Unpacked {
    pub(super) message: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Unpacker {
    /// The message as it was before it was packed, if it was.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] if it was packed and can't be unpacked.
    pub(super) async fn unpack(&self, message: Bytes) -> Result<Unpacked, MessageError> {
        if form(&message) != Some(Form::Zstd) {
            return Ok(Unpacked { message, _room: None });
        }
        let malformed = |what: String| MessageError::Malformed(format!("can't be unpacked: {what}"));
        let size = message.get(HEAD_BYTES..).and_then(|rest| rest.first_chunk::<SIZE_BYTES>());
        let size = u32::from_le_bytes(*size.ok_or_else(|| malformed("it ends too early".into()))?);
        let bytes = size as usize;
        if bytes + HEAD_BYTES > FRAME_BYTES_MAX {
            return Err(malformed(format!("it claims {bytes} bytes, and at most {FRAME_BYTES_MAX} are allowed")));
        }
        let room = Arc::clone(&self.room).acquire_many_owned(size).await;
        let room = room.map_err(|closed| malformed(closed.to_string()))?;
        let work = move || unpacked(&message[HEAD_BYTES + SIZE_BYTES..], bytes);
        let done = if bytes <= INLINE_BYTES_MAX {
            work()
        } else {
            spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()))
        };
        let message = done.map_err(|error| malformed(error.to_string()))?;
        Ok(Unpacked { message, _room: Some(room) })
    }
}

/// The plain message of a zstd frame that holds so many bytes, neither more nor less.
fn unpacked(frame: &[u8], bytes: usize) -> io::Result<Bytes> {
    let mut out = vec![0; HEAD_BYTES + bytes];
    out[..HEAD_BYTES].copy_from_slice(&head(Form::Plain));
    let found = Decompressor::new()?.decompress_to_buffer(frame, &mut out[HEAD_BYTES..])?;
    if found != bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it holds {found} bytes and claims {bytes}")));
    }
    Ok(Bytes::from(out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(body: impl IntoIterator<Item = u8>) -> Bytes {
        head(Form::Plain).into_iter().chain(body).collect()
    }

    fn text(bytes: usize) -> Bytes {
        message("customers/0017 is an active customer; ".bytes().cycle().take(bytes))
    }

    async fn round_trip(plain: &Bytes) -> (usize, Bytes) {
        let packed = Packer::default().pack(plain.clone()).await;
        let len = packed.len();
        (len, Unpacker::default().unpack(packed).await.unwrap().message)
    }

    #[tokio::test]
    async fn messages_shrink_and_come_out_as_they_went_in() {
        for bytes in [PACK_BYTES_MIN, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 3_000_000] {
            let plain = text(bytes);
            let (sent, back) = round_trip(&plain).await;
            assert_eq!(back, plain);
            assert!(sent * 10 < bytes, "{sent} of {bytes}");
        }
    }

    #[tokio::test]
    async fn what_is_small_or_does_not_shrink_is_sent_as_it_is() {
        let small = text(PACK_BYTES_MIN / 2);
        assert_eq!(round_trip(&small).await.0, small.len());
        let mut state = 1_u64;
        let noise = message(
            std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .take(50_000),
        );
        let (sent, back) = round_trip(&noise).await;
        assert_eq!((sent, &back), (noise.len(), &noise));
        let twice = Packer::default();
        let packed = twice.pack(text(50_000)).await;
        assert_eq!(twice.pack(packed.clone()).await, packed, "once is enough");
    }

    async fn refusal(message: Bytes) -> String {
        Unpacker::default().unpack(message).await.err().expect("it is refused").to_string()
    }

    fn packed_as(size: u32, frame: &[u8]) -> Bytes {
        head(Form::Zstd).into_iter().chain(size.to_le_bytes()).chain(frame.iter().copied()).collect()
    }

    #[tokio::test]
    async fn a_message_takes_no_more_than_it_claims_and_claims_no_more_than_a_frame() {
        let bomb = zstd::bulk::compress(&vec![0; FRAME_BYTES_MAX * 2], 1).unwrap();
        assert!(refusal(packed_as(1_000, &bomb)).await.contains("can't be unpacked"));
        assert!(refusal(packed_as(u32::MAX, &bomb)).await.contains("it claims 4294967295 bytes"));
        let small = zstd::bulk::compress(&[0; 50], 1).unwrap();
        assert!(refusal(packed_as(51, &small)).await.contains("it holds 50 bytes and claims 51"));
        assert!(refusal(packed_as(50, b"no zstd")).await.contains("can't be unpacked"));
        assert!(refusal(Bytes::copy_from_slice(&head(Form::Zstd))).await.contains("it ends too early"));
    }

    #[tokio::test]
    async fn what_is_unpacked_at_a_time_is_bounded() {
        let unpacker = Unpacker::default();
        let large = Packer::default().pack(text(FRAME_BYTES_MAX - HEAD_BYTES)).await;
        let first = unpacker.unpack(large.clone()).await.unwrap();
        let second = unpacker.unpack(large.clone()).await.unwrap();
        let mut third = Box::pin(unpacker.unpack(large));
        assert!(futures::poll!(third.as_mut()).is_pending());
        assert_eq!(unpacker.unpack(text(100)).await.unwrap().message, text(100), "what is plain never waits");
        drop(first);
        assert!(third.await.is_ok());
        drop(second);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(Unpacker::default().unpack(packed_as(64, &bytes)));
        }
    }
}
