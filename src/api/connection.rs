//! One client connection's clock: when it last did something, and whether that was too long ago.
//!
//! Guarantees: a connection that sends its headers too slowly, sends nothing, or does not take its answer is closed
//! within one [`TICK`] of its limit. No timer is set per request: the stream notes the tick of its last progress, and
//! one sweep looks at all connections. Leaves out: the time of handlers and bodies, which have deadlines of their own.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{ReadBufCursor, Write as _};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::refusal;

/// How often connections are looked at: the grain of their timeouts.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Nothing of the first request has come yet.
const FRESH: u8 = 0;
/// Between requests, or sending an answer.
const IDLE: u8 = 1;
/// The head of a request has begun to come.
const HEAD: u8 = 2;
/// A request is worked on.
const BUSY: u8 = 3;

/// What a connection is at, and since when.
#[derive(Debug)]
pub(super) struct Pulse {
    phase: AtomicU8,
    /// In ticks of the [`Sweeper`].
    since: AtomicU64,
    ticks: Arc<AtomicU64>,
    /// Cancelled once the connection took too long.
    pub(super) overdue: CancellationToken,
}

impl Pulse {
    fn enter(&self, phase: u8) {
        self.since.store(self.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// A request has been read and is worked on.
    pub(super) fn request_begins(&self) {
        self.enter(BUSY);
    }

    /// Its answer is handed over to be sent.
    pub(super) fn request_ends(&self) {
        self.enter(IDLE);
    }

    fn bytes_came(&self) {
        if matches!(self.phase.load(Ordering::Relaxed), FRESH | IDLE) {
            self.enter(HEAD);
        }
    }

    fn bytes_went(&self) {
        // Bytes of the next request may lie behind the answer that is sent; its time begins when the answer is gone.
        if matches!(self.phase.load(Ordering::Relaxed), HEAD | IDLE) {
            self.enter(IDLE);
        }
    }
}

/// Looks after all connections of one listener.
#[derive(Debug)]
pub(super) struct Sweeper {
    ticks: Arc<AtomicU64>,
    pulses: Mutex<HashMap<u64, Arc<Pulse>>>,
    next: AtomicU64,
    head_ticks: u64,
    idle_ticks: u64,
}

/// A connection's place in the sweep, left on drop.
pub(super) struct Watch {
    sweeper: Arc<Sweeper>,
    number: u64,
    pub(super) pulse: Arc<Pulse>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.sweeper.pulses.lock().remove(&self.number);
    }
}

impl Sweeper {
    pub(super) fn new(header_timeout: Duration, idle_timeout: Duration) -> Arc<Self> {
        let ticks = |time: Duration| u64::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX);
        Arc::new(Self {
            ticks: Arc::default(),
            pulses: Mutex::default(),
            next: AtomicU64::new(0),
            head_ticks: ticks(header_timeout),
            idle_ticks: ticks(idle_timeout),
        })
    }

    pub(super) fn watch(self: &Arc<Self>) -> Watch {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let pulse = Arc::new(Pulse {
            phase: AtomicU8::new(FRESH),
            since: AtomicU64::new(self.ticks.load(Ordering::Relaxed)),
            ticks: Arc::clone(&self.ticks),
            overdue: CancellationToken::new(),
        });
        self.pulses.lock().insert(number, Arc::clone(&pulse));
        Watch { sweeper: Arc::clone(self), number, pulse }
    }

    /// Sweeps until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            self.sweep();
        }
    }

    fn sweep(&self) {
        let now = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        for pulse in self.pulses.lock().values() {
            let limit = match pulse.phase.load(Ordering::Relaxed) {
                FRESH | HEAD => self.head_ticks,
                IDLE => self.idle_ticks,
                _ => continue,
            };
            if now.saturating_sub(pulse.since.load(Ordering::Relaxed)) > limit {
                pulse.overdue.cancel();
            }
        }
    }
}

/// An answer in place of another one.
struct Instead {
    bytes: Vec<u8>,
    sent: usize,
    /// Size of the answer that is not sent: what the writer must believe was taken.
    claimed: usize,
}

/// A stream that notes its progress.
pub(super) struct Watched {
    io: TokioIo<TcpStream>,
    pulse: Arc<Pulse>,
    instead: Option<Instead>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, pulse: Arc<Pulse>) -> Self {
        Self { io: TokioIo::new(stream), pulse, instead: None }
    }

    /// Takes note if these bytes are an answer that another one stands in for.
    fn consider(&mut self, bytes: &[u8]) {
        if self.instead.is_none() && self.pulse.phase.load(Ordering::Relaxed) != BUSY {
            let claimed = bytes.len();
            self.instead = refusal::instead_of(bytes).map(|bytes| Instead { bytes, sent: 0, claimed });
        }
    }

    /// Sends what stands in for another answer; ready once all of it is sent.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Option<Poll<std::io::Result<usize>>> {
        let instead = self.instead.as_mut()?;
        while instead.sent < instead.bytes.len() {
            match Pin::new(&mut self.io).poll_write(cx, &instead.bytes[instead.sent..]) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(sent)) => instead.sent += sent,
                other => return Some(other),
            }
        }
        let claimed = instead.claimed;
        self.instead = None;
        Some(Poll::Ready(Ok(claimed)))
    }

    fn wrote(&self, result: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.pulse.bytes_went();
        }
        result
    }
}

impl hyper::rt::Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        if matches!(result, Poll::Ready(Ok(()))) {
            self.pulse.bytes_came();
        }
        result
    }
}

impl hyper::rt::Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.consider(bytes);
        let result = self.poll_instead(cx).unwrap_or_else(|| Pin::new(&mut self.io).poll_write(cx, bytes));
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        if let Some(first) = slices.first() {
            self.consider(first);
        }
        let result = self.poll_instead(cx).unwrap_or_else(|| Pin::new(&mut self.io).poll_write_vectored(cx, slices));
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sweeps `ticks` times and tells whether the connection is overdue.
    fn overdue_after(sweeper: &Sweeper, pulse: &Pulse, ticks: u64) -> bool {
        (0..ticks).for_each(|_| sweeper.sweep());
        pulse.overdue.is_cancelled()
    }

    #[test]
    fn each_phase_has_its_own_limit() {
        let sweeper = Sweeper::new(TICK * 2, TICK * 5);
        let silent = sweeper.watch();
        assert!(!overdue_after(&sweeper, &silent.pulse, 2) && overdue_after(&sweeper, &silent.pulse, 1));

        let dribbling = sweeper.watch();
        dribbling.pulse.bytes_came();
        assert!(!overdue_after(&sweeper, &dribbling.pulse, 2));
        dribbling.pulse.bytes_came();
        assert!(overdue_after(&sweeper, &dribbling.pulse, 1), "more bytes of one head gain no time");

        let working = sweeper.watch();
        working.pulse.bytes_came();
        working.pulse.request_begins();
        assert!(!overdue_after(&sweeper, &working.pulse, 50), "a handler has a deadline of its own");
        working.pulse.request_ends();
        assert!(!overdue_after(&sweeper, &working.pulse, 4));
        working.pulse.bytes_went();
        assert!(!overdue_after(&sweeper, &working.pulse, 5), "an answer that is taken gains time");
        assert!(overdue_after(&sweeper, &working.pulse, 1));
    }

    #[test]
    fn a_closed_connection_is_forgotten() {
        let sweeper = Sweeper::new(TICK, TICK);
        drop(sweeper.watch());
        assert!(sweeper.pulses.lock().is_empty());
    }
}
