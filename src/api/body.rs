//! Request bodies: read whole, within a size and a time.
//!
//! Guarantees: never more than the limit is held, whatever `Content-Length` says (CVE-2025-11374 and -11375 were trust
//! in it); a body that is too large is read on and dropped for a while, so that the client gets to read the refusal
//! instead of a broken connection. Leaves out: decompression, which is not offered.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::admission::{Admission, Pass};
use super::problem::EdgeError;

/// The most bytes of a refused body that are read on and dropped.
const DISCARD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long a refused body is read on.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// What is set aside of the byte budget before a body has shown more. Not what it declares: a few clients that declare
/// much and send nothing would shut out everybody else.
const FIRST_SHARE: usize = 64 * 1024;

/// A body and its share of the byte budget, which is held until this is dropped.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _share: Pass,
}

/// Reads a body of at most `limit` bytes within `time`.
///
/// With `expects` (`Expect: 100-continue`) the client waits before it sends, so that a refusal needs no reading on. What
/// there is no room for by what it declares is refused before any of it is kept.
pub(super) async fn read(
    mut body: Body,
    expects: bool,
    limit: usize,
    time: Duration,
    admission: &Admission,
) -> Result<Held, EdgeError> {
    use http_body::Body as _;
    let declared = body.size_hint();
    if declared.lower() > limit as u64 {
        return Err(refuse(body, expects, EdgeError::BodyTooLarge { limit }).await);
    }
    let claimed = declared.lower() as usize;
    let first = declared.exact().map_or(FIRST_SHARE, |bytes| FIRST_SHARE.min(bytes as usize)).min(limit);
    let room = admission.writes.has_room(claimed).and_then(|()| admission.bytes.has_room(claimed));
    let mut share = match room.and_then(|()| admission.bytes.enter(first)) {
        Ok(share) => share,
        Err(error) => return Err(refuse(body, expects, error).await),
    };
    let most = declared.upper().map_or(limit, |bytes| limit.min(bytes as usize));
    match tokio::time::timeout(time, gather(&mut body, limit, most, &mut share)).await {
        Ok(Ok(bytes)) => Ok(Held { bytes, _share: share }),
        Ok(Err(error @ (EdgeError::BodyTooLarge { .. } | EdgeError::Busy(_)))) => {
            drop(share);
            discard(body).await;
            Err(error)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(EdgeError::BodyTooSlow { limit: time }),
    }
}

/// The data of all frames, of which there are at most `most` bytes if the body is as declared. A body in one frame, as small
/// ones are, is not copied.
async fn gather(body: &mut Body, limit: usize, most: usize, share: &mut Pass) -> Result<Bytes, EdgeError> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| EdgeError::BodyBroken)?.into_data() else { continue };
        let sum = first.len().max(all.len()) + data.len();
        if sum > limit {
            return Err(EdgeError::BodyTooLarge { limit });
        }
        if sum > share.size() {
            // Doubling keeps both the reservations and the copies few; no more than what is to come is set aside.
            let wanted = (2 * share.size()).min(most).max(sum);
            share.grow(wanted - share.size())?;
        }
        if first.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(share.size().min(limit));
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Gives a request up before its body was read. A client that waits for leave to send it sees the refusal instead; any
/// other is listened to, so that it gets to read the refusal and can go on with its connection.
pub(super) async fn refuse(body: Body, expects: bool, error: EdgeError) -> EdgeError {
    if !expects {
        discard(body).await;
    }
    error
}

/// Reads on and drops what comes, within bounds.
async fn discard(mut body: Body) {
    let reading = async {
        let mut dropped = 0_u64;
        while let Some(Ok(frame)) = body.frame().await {
            dropped += frame.data_ref().map_or(0, |data| data.len() as u64);
            if dropped > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Reaching a bound ends the connection with the answer; that is all that can be done.
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, reading).await;
}
