//! How much is worked on at a time.
//!
//! Guarantees: what is over a limit is refused at once, never queued; a place is given back when its guard is dropped,
//! also by a cancelled request. Leaves out: connections (`server`) and the node's own queues.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::ApiConfig;
use super::pace::{Pace, WORK_BYTES};
use super::problem::EdgeError;

/// An answer's body up to this many bytes is not counted: connections are bounded in number, and each sends one answer.
const UNCOUNTED_BYTES_MAX: usize = 16 * 1024;

/// What there is not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scarce {
    Connections,
    Requests,
    BodyBytes,
    AnswerBytes,
    Streams,
    WriteTime,
}

impl Scarce {
    pub(super) const ALL: [Self; 6] =
        [Self::Connections, Self::Requests, Self::BodyBytes, Self::AnswerBytes, Self::Streams, Self::WriteTime];

    /// The `reason` label of what is refused for it.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::BodyBytes => "body_bytes",
            Self::AnswerBytes => "answer_bytes",
            Self::Streams => "streams",
            Self::WriteTime => "write_time",
        }
    }
}

impl fmt::Display for Scarce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "there are too many connections",
            Self::Requests => "too many requests are worked on",
            Self::BodyBytes => "the bodies of requests take too much memory",
            Self::AnswerBytes => "answers that are not taken yet take too much memory",
            Self::Streams => "too many answers are streamed",
            Self::WriteTime => "more is being written than ends in good time",
        })
    }
}

/// A count with an upper bound.
#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<Count>);

#[derive(Debug)]
struct Count {
    taken: AtomicUsize,
    limit: usize,
    what: Scarce,
}

/// A share of a [`Gate`], given back on drop.
#[derive(Debug)]
pub(super) struct Pass {
    count: Arc<Count>,
    share: usize,
}

impl Count {
    fn take(&self, share: usize) -> Result<(), EdgeError> {
        self.take_if(share, |_, sum| sum <= self.limit)
    }

    fn take_if(&self, share: usize, allowed: impl Fn(usize, usize) -> bool) -> Result<(), EdgeError> {
        let fits = |taken: usize| taken.checked_add(share).filter(|sum| allowed(taken, *sum));
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(_) => Err(EdgeError::Busy(self.what)),
        }
    }
}

impl Gate {
    pub(super) fn new(limit: usize, what: Scarce) -> Self {
        Self(Arc::new(Count { taken: AtomicUsize::new(0), limit, what }))
    }

    /// Takes a share of the limit, or says that there is none.
    pub(super) fn enter(&self, share: usize) -> Result<Pass, EdgeError> {
        self.0.take(share)?;
        Ok(Pass { count: Arc::clone(&self.0), share })
    }

    /// As [`Self::enter`], but whoever comes alone gets in, however large.
    fn enter_or_alone(&self, share: usize) -> Result<Pass, EdgeError> {
        self.0.take_if(share, |taken, sum| taken == 0 || sum <= self.0.limit)?;
        Ok(Pass { count: Arc::clone(&self.0), share })
    }

    /// Whether a share could be taken now.
    pub(super) fn has_room(&self, share: usize) -> Result<(), EdgeError> {
        let fits = self.taken().checked_add(share).is_some_and(|sum| sum <= self.0.limit);
        if fits { Ok(()) } else { Err(EdgeError::Busy(self.0.what)) }
    }

    /// How much is taken.
    pub(super) fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }
}

impl Pass {
    /// How much is held.
    pub(super) fn size(&self) -> usize {
        self.share
    }

    /// Takes more; on refusal what was held stays held.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), EdgeError> {
        self.count.take(more)?;
        self.share += more;
        Ok(())
    }

    /// Holds exactly this much from now on, even beyond the limit: for what is there already and can't be refused any more.
    fn settle(&mut self, share: usize) {
        match share.checked_sub(self.share) {
            Some(more) => self.count.taken.fetch_add(more, Ordering::Relaxed),
            None => self.count.taken.fetch_sub(self.share - share, Ordering::Relaxed),
        };
        self.share = share;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.count.taken.fetch_sub(self.share, Ordering::Relaxed);
    }
}

/// The limits of one edge.
#[derive(Debug)]
pub(super) struct Admission {
    /// Requests at work.
    pub(super) requests: Gate,
    /// Bytes of bodies.
    pub(super) bytes: Gate,
    /// Bytes of answers that are built and not sent yet.
    answers: Gate,
    /// Answers that are streamed.
    pub(super) streams: Gate,
    /// Writes on their way through the log.
    pub(super) writes: Pace,
    scans: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(config: &ApiConfig) -> Self {
        let writes_max = config.in_flight_bytes_max.saturating_add(config.in_flight_max.saturating_mul(WORK_BYTES));
        Self {
            requests: Gate::new(config.in_flight_max, Scarce::Requests),
            bytes: Gate::new(config.in_flight_bytes_max, Scarce::BodyBytes),
            answers: Gate::new(config.answer_bytes_max, Scarce::AnswerBytes),
            streams: Gate::new(config.streams_max, Scarce::Streams),
            writes: Pace::new(writes_max, config.write_time_target),
            scans: Arc::new(Semaphore::new(config.scans_max)),
        }
    }

    /// Waits for a place among those that read ranges; requests at work are bounded, so this queue is too.
    pub(super) async fn scan(&self) -> Result<OwnedSemaphorePermit, EdgeError> {
        Arc::clone(&self.scans).acquire_owned().await.map_err(|_| EdgeError::Busy(Scarce::Streams))
    }

    /// Counts the bytes of an answer until the last of them is sent.
    pub(super) fn answer(&self, bytes: impl Into<Bytes>) -> Result<Bytes, EdgeError> {
        let bytes = bytes.into();
        if bytes.len() <= UNCOUNTED_BYTES_MAX {
            return Ok(bytes);
        }
        let pass = self.answers.enter_or_alone(bytes.len())?;
        Ok(Counted { bytes, _pass: pass }.into())
    }

    /// Sets room aside for an answer that can't be refused once it is there. Too little may be set aside; what is over the
    /// limit then counts against those that come after it.
    pub(super) fn expect_answer(&self, bytes: usize) -> Result<Expected, EdgeError> {
        Ok(Expected(self.answers.enter_or_alone(bytes)?))
    }

    /// Bytes of answers that are counted.
    pub(super) fn answer_bytes(&self) -> usize {
        self.answers.taken()
    }
}

/// Room for an answer to come.
pub(super) struct Expected(Pass);

impl Expected {
    /// The answer is there.
    pub(super) fn answer(mut self, bytes: impl Into<Bytes>) -> Bytes {
        let bytes = bytes.into();
        if bytes.len() <= UNCOUNTED_BYTES_MAX {
            return bytes;
        }
        self.0.settle(bytes.len());
        Counted { bytes, _pass: self.0 }.into()
    }
}

/// Bytes that hold their share for as long as anybody holds them: the parser keeps them until the socket took them, long
/// after it has dropped the body.
struct Counted {
    bytes: Bytes,
    _pass: Pass,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Counted> for Bytes {
    fn from(counted: Counted) -> Self {
        Self::from_owner(counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_takes_up_to_its_limit_and_forgets_nothing() {
        let gate = Gate::new(10, Scarce::Requests);
        let first = gate.enter(7).unwrap();
        assert!(gate.enter(4).is_err());
        let mut second = gate.enter(1).unwrap();
        assert!(second.grow(3).is_err() && second.grow(2).is_ok());
        drop(first);
        assert!(gate.enter(8).is_err());
        drop(second);
        assert!(gate.enter(10).is_ok() && gate.enter(usize::MAX).is_err());
    }

    #[test]
    fn an_answer_counts_until_its_last_byte_is_dropped() {
        let config = ApiConfig { answer_bytes_max: 100_000, ..ApiConfig::default() };
        let admission = Admission::new(&config);
        let small = admission.answer(vec![1; UNCOUNTED_BYTES_MAX]).unwrap();
        assert_eq!((small.len(), admission.answer_bytes()), (UNCOUNTED_BYTES_MAX, 0));
        let mut large = admission.answer(vec![2; 60_000]).unwrap();
        let rest = large.split_off(59_999);
        drop(large);
        assert_eq!((rest.as_ref(), admission.answer_bytes()), ([2].as_slice(), 60_000));
        assert!(admission.answer(vec![3; 50_000]).is_err());
        drop(rest);
        assert_eq!(admission.answer_bytes(), 0);
    }

    #[test]
    fn an_answer_that_must_be_given_counts_for_what_it_is() {
        let config = ApiConfig { answer_bytes_max: 100_000, ..ApiConfig::default() };
        let admission = Admission::new(&config);
        let expected = admission.expect_answer(50_000).unwrap();
        let large = expected.answer(vec![1; 150_000]);
        assert_eq!(admission.answer_bytes(), 150_000);
        assert!(admission.expect_answer(1).is_err() && admission.answer(vec![1; 20_000]).is_err());
        drop(large);
        drop(admission.expect_answer(50_000).unwrap().answer("small"));
        assert_eq!(admission.answer_bytes(), 0);
    }
}
