//! The simulated network: every request and every answer is a parcel whose fate is drawn from the seed.
//!
//! Guarantees: what a link does (delay, loss, a cut of one direction) is decided parcel by parcel in an order that follows
//! from the seed alone; a call ends by its deadline, and earlier if its connection is dead; one to a process that is not
//! there is refused when the link is whole. Requests of Raft itself may arrive twice and in another order, which a
//! connection would not do. Leaves out: bytes on a wire, and duplicates of forwarded commands and snapshot parts, which no
//! connection makes either.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate::clock::Instant;
use quorate::raft::types::Vote;
use quorate::raft::vote_given;
use quorate::transport::{BoxFuture, CallError, Channel, FRAME_BYTES_MAX, Pipe, Transport};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

/// A call of which a parcel was lost breaks after so many steps, if its machines can reach each other by then: TCP sends
/// again, and who knows nothing of the connection says so. Without this a call would be silent until its deadline, which for
/// a part of a snapshot is a minute and for its installation a quarter of an hour, as no connection is. The deadlines of
/// appends, votes and what clients ask come first.
const LOSS_NOTICED: u64 = 2_000;

/// Forwarded commands in a thousand that arrive twice if that bug is planted.
const PLANTED_DOUBLES: u32 = 100;

/// A machine's number; its address follows from it.
pub(crate) type Place = usize;

/// The address of a machine.
pub(crate) fn address(place: Place) -> String {
    format!("n{}:1", place + 1)
}

fn place_of(address: &str) -> Option<Place> {
    address.strip_prefix('n')?.strip_suffix(":1")?.parse::<Place>().ok()?.checked_sub(1)
}

/// How links behave when nothing is wrong with them, and how much is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// A parcel takes from the first to the second, in steps.
    pub(crate) delay: (u64, u64),
    /// Parcels in a thousand that are lost.
    pub(crate) lost: u32,
    /// Requests in a thousand that arrive twice.
    pub(crate) doubled: u32,
    /// Parcels in a thousand that take ten times as long.
    pub(crate) late: u32,
}

/// Why a call brought nothing.
#[derive(Debug, Clone, Copy)]
enum Lost {
    /// Nobody listens there: nothing was done.
    Refused,
    /// The connection broke: it may have been done.
    Broken,
}

type Answered = oneshot::Sender<Result<Bytes, Lost>>;

enum Sent {
    Call { from: Place, to: Place, channel: Channel, request: Bytes, answered: Answered, pipe: Option<u64> },
    Answer { id: u64, from: Place, to: Place, pipe: Option<u64>, answer: Option<Bytes> },
}

/// What is on its way.
#[derive(Clone)]
pub(crate) struct Parcel {
    pub(crate) id: u64,
    pub(crate) from: Place,
    pub(crate) to: Place,
    /// The pipe it goes through, if it does: parcels there keep their order, and one that is lost breaks it.
    pub(crate) pipe: Option<u64>,
    pub(crate) load: Load,
}

/// What a parcel holds.
#[derive(Clone)]
pub(crate) enum Load {
    Request(Channel, Bytes),
    Answer(Bytes),
    /// The other end closed the connection, or there was none; whether the request may have been done.
    NoAnswer(bool),
}

/// Where transports and handlers put what they send.
#[derive(Clone, Default)]
pub(crate) struct Outbox {
    sent: Arc<Mutex<Vec<Sent>>>,
    pipes: Arc<AtomicU64>,
    /// Whom nodes have voted for or followed by their answers.
    given: Arc<Mutex<Vec<(Place, Vote)>>>,
}

impl Outbox {
    /// The transport of a machine.
    pub(crate) fn transport(&self, from: Place) -> Arc<dyn Transport> {
        Arc::new(Line { outbox: self.clone(), from })
    }

    /// Sends the answer to a request; `None` closes the connection.
    pub(crate) fn answer(&self, request: &Parcel, answer: Option<Bytes>) {
        let Parcel { id, from, to, pipe, .. } = *request;
        if let (Load::Request(Channel::Heartbeat | Channel::Append | Channel::Control, asked), Some(answer)) =
            (&request.load, &answer)
            && let Some(vote) = vote_given(asked, answer)
        {
            self.given.lock().push((to, vote));
        }
        let sent = Sent::Answer { id, from: to, to: from, pipe, answer };
        self.sent.lock().push(sent);
    }

    /// What was answered since the last call, and by whom.
    pub(crate) fn take_given(&self) -> Vec<(Place, Vote)> {
        std::mem::take(&mut self.given.lock())
    }
}

struct Line {
    outbox: Outbox,
    from: Place,
}

impl Line {
    async fn exchange(&self, peer: &str, channel: Channel, request: Bytes, by: Instant) -> Result<Bytes, CallError> {
        if request.len() > FRAME_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: request.len(), limit: FRAME_BYTES_MAX });
        }
        let peer_name = peer.to_owned();
        let Some(to) = place_of(peer) else {
            return Err(CallError::Unreachable { peer: peer_name, reason: "there is no such address".into() });
        };
        let (answered, answer) = oneshot::channel();
        self.outbox.sent.lock().push(Sent::Call { from: self.from, to, channel, request, answered, pipe: None });
        let (peer, reason) = (peer_name, |reason: &str| reason.to_owned());
        match timeout_at(by, answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(Lost::Refused))) => Err(CallError::Unreachable { peer, reason: reason("nobody listens there") }),
            Ok(Ok(Err(Lost::Broken)) | Err(_)) => Err(CallError::NoAnswer { peer, reason: reason("it broke") }),
            Err(_elapsed) => Err(CallError::NoAnswer { peer, reason: reason("the deadline passed") }),
        }
    }
}

impl Transport for Line {
    fn call<'a>(
        &'a self,
        peer: &'a str,
        channel: Channel,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(self.exchange(peer, channel, request, deadline))
    }

    fn has_pipes(&self) -> bool {
        true
    }

    fn pipe<'a>(
        &'a self,
        peer: &'a str,
        channel: Channel,
        _deadline: Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Pipe>, CallError>> {
        let opened = place_of(peer).map(|to| {
            let id = self.outbox.pipes.fetch_add(1, Ordering::Relaxed);
            let pipe = LinePipe {
                outbox: self.outbox.clone(),
                peer: peer.to_owned(),
                from: self.from,
                to,
                channel,
                id,
                under_way: VecDeque::new(),
            };
            Box::new(pipe) as Box<dyn Pipe>
        });
        let none = || CallError::Unreachable { peer: peer.to_owned(), reason: "there is no such address".into() };
        Box::pin(std::future::ready(opened.ok_or_else(none)))
    }
}

/// The sending end of a pipe. Opening it costs nothing: the first request that is lost tells.
struct LinePipe {
    outbox: Outbox,
    peer: String,
    from: Place,
    to: Place,
    channel: Channel,
    id: u64,
    under_way: VecDeque<oneshot::Receiver<Result<Bytes, Lost>>>,
}

impl LinePipe {
    async fn next(&mut self, by: Instant) -> Result<Bytes, CallError> {
        let Some(oldest) = self.under_way.front_mut() else { return std::future::pending().await };
        let answered = timeout_at(by, oldest).await;
        self.under_way.pop_front();
        match answered {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(_) => Err(CallError::NoAnswer { peer: self.peer.clone(), reason: "the pipe broke".into() }),
            Err(_elapsed) => Err(CallError::NoAnswer { peer: self.peer.clone(), reason: "the deadline passed".into() }),
        }
    }
}

impl Pipe for LinePipe {
    fn send<'a>(&'a mut self, request: Bytes, _deadline: Instant) -> BoxFuture<'a, Result<(), CallError>> {
        let (answered, answer) = oneshot::channel();
        let (from, to, channel, pipe) = (self.from, self.to, self.channel, Some(self.id));
        self.outbox.sent.lock().push(Sent::Call { from, to, channel, request, answered, pipe });
        self.under_way.push_back(answer);
        Box::pin(std::future::ready(Ok(())))
    }

    fn answer<'a>(&'a mut self, deadline: Instant) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(self.next(deadline))
    }
}

/// A pipe that was used.
#[derive(Default)]
struct PipeState {
    /// When its last parcel arrives, in each direction.
    requests_until: u64,
    answers_until: u64,
    broken: bool,
    ends: Option<(Place, Place)>,
    /// Its requests that have no answer yet.
    calls: Vec<u64>,
}

/// The network with all that is under way.
pub(crate) struct Wire {
    pub(crate) outbox: Outbox,
    random: SmallRng,
    weather: Weather,
    /// Directions in which nothing passes, with how many cuts lie over each.
    cuts: BTreeMap<(Place, Place), u32>,
    under_way: BTreeMap<(u64, u64), Parcel>,
    waiting: BTreeMap<u64, (Place, Place, Answered)>,
    /// Calls that will have no answer, by when their callers hear so.
    dead: BTreeSet<(u64, u64)>,
    pipes: BTreeMap<u64, PipeState>,
    numbers: u64,
    /// A planted bug: forwarded commands arrive twice as well.
    double_forwards: bool,
}

impl Wire {
    pub(crate) fn new(random: SmallRng, weather: Weather) -> Self {
        Self {
            outbox: Outbox::default(),
            random,
            weather,
            cuts: BTreeMap::new(),
            under_way: BTreeMap::new(),
            waiting: BTreeMap::new(),
            dead: BTreeSet::new(),
            pipes: BTreeMap::new(),
            numbers: 0,
            double_forwards: false,
        }
    }

    pub(crate) fn set_double_forwards(&mut self, on: bool) {
        self.double_forwards = on;
    }

    pub(crate) fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Lays a cut over a direction, or takes one away.
    pub(crate) fn cut(&mut self, from: Place, to: Place, on: bool) {
        let cuts = self.cuts.entry((from, to)).or_default();
        *cuts = if on { *cuts + 1 } else { cuts.saturating_sub(1) };
    }

    fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0)
    }

    /// A process is gone: its calls are nobody's, and those to it break: at once if the machine is there to say so.
    pub(crate) fn gone(&mut self, now: u64, place: Place, says_so: bool) {
        let touches = |state: &PipeState| state.ends.is_some_and(|(from, to)| from == place || to == place);
        let torn: Vec<u64> = self.pipes.iter().filter(|(_, state)| touches(state)).map(|(pipe, _)| *pipe).collect();
        torn.into_iter().for_each(|pipe| self.break_pipe(pipe));
        let (gone, rest): (BTreeMap<_, _>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, (from, to, _))| *from == place || (says_so && *to == place));
        self.waiting = rest;
        for (_, (_, _, answered)) in gone {
            // Its caller may be gone as well.
            let _ = answered.send(Err(Lost::Broken));
        }
        let unheard = self.waiting.iter().filter(|(_, (_, to, _))| *to == place);
        self.dead.extend(unheard.map(|(call, _)| (now + LOSS_NOTICED, *call)));
    }

    /// Calls break that were dead for long enough.
    fn notice_losses(&mut self, now: u64) {
        while let Some((_, call)) = self.dead.first().copied().filter(|(at, _)| *at <= now) {
            self.dead.pop_first();
            let Some((from, to, _)) = self.waiting.get(&call) else { continue };
            if self.is_cut(*from, *to) || self.is_cut(*to, *from) {
                self.dead.insert((now + LOSS_NOTICED, call));
            } else if let Some((_, _, answered)) = self.waiting.remove(&call) {
                // Its caller may have given up.
                let _ = answered.send(Err(Lost::Broken));
            }
        }
    }

    /// Takes what was sent since the last step on its way.
    pub(crate) fn post(&mut self, now: u64) {
        self.notice_losses(now);
        let sent = std::mem::take(&mut *self.outbox.sent.lock());
        for sent in sent {
            match sent {
                Sent::Call { from, to, channel, request, answered, pipe } => {
                    self.numbers += 1;
                    let id = self.numbers;
                    self.waiting.insert(id, (from, to, answered));
                    if let Some(pipe) = pipe {
                        let state = self.pipes.entry(pipe).or_default();
                        state.ends = Some((from, to));
                        state.calls.push(id);
                    }
                    let doubled = match channel {
                        _ if pipe.is_some() => 0,
                        Channel::Heartbeat | Channel::Append => self.weather.doubled,
                        Channel::Forward if self.double_forwards => PLANTED_DOUBLES,
                        _ => 0,
                    };
                    let twice = self.random.random_range(0..1_000) < doubled;
                    let parcel = Parcel { id, from, to, pipe, load: Load::Request(channel, request) };
                    if twice {
                        self.dispatch(now, parcel.clone());
                    }
                    self.dispatch(now, parcel);
                }
                Sent::Answer { id, from, to, pipe, answer } => {
                    let load = answer.map_or(Load::NoAnswer(true), Load::Answer);
                    self.dispatch(now, Parcel { id, from, to, pipe, load });
                }
            }
        }
        if now.is_multiple_of(1_024) {
            self.waiting.retain(|_, (_, _, answered)| !answered.is_closed());
            let waiting = &self.waiting;
            self.pipes.retain(|_, state| {
                state.calls.retain(|call| waiting.contains_key(call));
                // One that broke stays so, whatever still comes through it.
                state.broken || !state.calls.is_empty()
            });
        }
    }

    fn dispatch(&mut self, now: u64, parcel: Parcel) {
        let Weather { delay, lost, late, .. } = self.weather;
        let is_lost = self.random.random_range(0..1_000) < lost;
        let factor = if self.random.random_range(0..1_000) < late { 10 } else { 1 };
        let mut at = now + self.random.random_range(delay.0..=delay.1) * factor;
        let goes = !is_lost && !self.is_cut(parcel.from, parcel.to);
        if let Some(pipe) = parcel.pipe {
            let state = self.pipes.entry(pipe).or_default();
            if state.broken || !goes {
                return self.break_pipe(pipe);
            }
            let is_request = matches!(parcel.load, Load::Request(..));
            let until = if is_request { &mut state.requests_until } else { &mut state.answers_until };
            at = at.max(*until);
            *until = at;
        }
        if goes {
            self.numbers += 1;
            self.under_way.insert((at, self.numbers), parcel);
        } else {
            self.dead.insert((now + LOSS_NOTICED, parcel.id));
        }
    }

    /// All that goes through a pipe from now on, and what has no answer, is in vain.
    fn break_pipe(&mut self, pipe: u64) {
        let state = self.pipes.entry(pipe).or_default();
        state.broken = true;
        for call in std::mem::take(&mut state.calls) {
            if let Some((_, _, answered)) = self.waiting.remove(&call) {
                // Its caller may have given up.
                let _ = answered.send(Err(Lost::Broken));
            }
        }
    }

    /// The next parcel that arrives by `now`.
    pub(crate) fn next_due(&mut self, now: u64) -> Option<Parcel> {
        loop {
            let first = self.under_way.first_entry().filter(|first| first.key().0 <= now)?;
            let parcel = first.remove();
            let broken = |pipe: u64| self.pipes.get(&pipe).is_some_and(|state| state.broken);
            let cut = self.is_cut(parcel.from, parcel.to);
            if !cut && !parcel.pipe.is_some_and(broken) {
                return Some(parcel);
            }
            match parcel.pipe {
                Some(pipe) => self.break_pipe(pipe),
                None => drop(self.dead.insert((now + LOSS_NOTICED, parcel.id))),
            }
        }
    }

    /// Hands an answer to who waits for it, if anybody does.
    pub(crate) fn hand_over(&mut self, parcel: Parcel) {
        let Some((_, _, answered)) = self.waiting.remove(&parcel.id) else { return };
        // A caller that has given up hears nothing.
        let _ = answered.send(match parcel.load {
            Load::Answer(answer) => Ok(answer),
            Load::NoAnswer(may_be_done) => Err(if may_be_done { Lost::Broken } else { Lost::Refused }),
            Load::Request(..) => unreachable!("a request is no answer"),
        });
    }

    /// Nobody listens where this request arrived.
    pub(crate) fn refuse(&mut self, now: u64, request: &Parcel) {
        let Parcel { id, from, to, pipe, .. } = *request;
        let parcel = Parcel { id, from: to, to: from, pipe, load: Load::NoAnswer(false) };
        self.dispatch(now, parcel);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::task::Poll;
    use std::time::Duration;

    use rand::SeedableRng;

    use super::*;

    const FINE: Weather = Weather { delay: (1, 1), lost: 0, doubled: 0, late: 0 };
    const LOSING: Weather = Weather { lost: 1_000, ..FINE };

    /// After how many steps a call ends that has a quarter of an hour, where this happens to the network.
    async fn ends_after(happens: fn(&mut Wire, u64), is_answered: bool) -> u64 {
        let mut wire = Wire::new(SmallRng::seed_from_u64(1), FINE);
        let (line, deadline) = (wire.outbox.transport(0), quorate::clock::now() + Duration::from_secs(15 * 60));
        let mut call = line.call("n2:1", Channel::Snapshot, Bytes::new(), deadline);
        let mut now = 0;
        loop {
            if let Poll::Ready(answer) = futures::poll!(&mut call) {
                assert!(matches!(answer, Err(CallError::NoAnswer { .. })), "{answer:?}");
                return now;
            }
            now += 1;
            assert!(now < 10_000, "it does not end");
            happens(&mut wire, now);
            wire.post(now);
            while let Some(request) = wire.next_due(now).filter(|_| is_answered) {
                wire.outbox.answer(&request, Some(Bytes::new()));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_gets_no_answer_ends_soon_after_the_machines_can_reach_each_other() {
        type Case = (&'static str, fn(&mut Wire, u64), bool, Range<u64>);
        let noticed = LOSS_NOTICED..LOSS_NOTICED + 5;
        let cases: [Case; 4] = [
            ("the request is lost", |wire, _| wire.set_weather(LOSING), false, noticed.clone()),
            (
                "the answer is lost",
                |wire, now| wire.set_weather(if now < 2 { FINE } else { LOSING }),
                true,
                noticed.clone(),
            ),
            (
                "the machine is gone",
                |wire, now| {
                    if now == 3 {
                        wire.gone(now, 1, false);
                    }
                },
                false,
                noticed,
            ),
            (
                "it is cut off meanwhile",
                |wire, now| {
                    if now == 2 || now == 3_000 {
                        wire.cut(0, 1, now == 2);
                    }
                },
                false,
                3_000..3_000 + LOSS_NOTICED,
            ),
        ];
        for (case, happens, is_answered, expected) in cases {
            let after = ends_after(happens, is_answered).await;
            assert!(expected.contains(&after), "{case}: after {after} steps");
        }
    }
}
