//! What a transport counts: calls, errors, bytes and time per peer and channel on the calling side, connections and
//! requests on the listening side.
//!
//! Guarantees: the label values are bounded: addresses of peers that were called ([`super::tcp::PEERS_MAX`] at a time),
//! channels, and fixed words. A call touches atomics only; its series are looked up once for a peer. Leaves out: what is
//! in the messages; `raft/` counts elections and entries.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{CallError, Channel};
use crate::telemetry::{LabelText, latency_buckets};

impl EncodeLabelValue for Channel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.name().encode(encoder)
    }
}

/// One peer's traffic of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    peer: LabelText,
    channel: Channel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    peer: LabelText,
    channel: Channel,
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: LabelText,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChannelLabels {
    channel: Channel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

type SecondsGauge = Gauge<f64, AtomicU64>;

/// The words of the `error` label.
const UNREACHABLE: &str = "unreachable";
const NO_ANSWER: &str = "no_answer";
const TOO_LARGE: &str = "too_large";

/// The series of a transport and a peer listener. Clones share them.
#[derive(Debug, Clone)]
pub struct TransportMetrics {
    calls: Family<LaneLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    connects: Family<LaneLabels, Counter>,
    sent: Family<LaneLabels, Counter>,
    received: Family<LaneLabels, Counter>,
    duration: Family<LaneLabels, Histogram, fn() -> Histogram>,
    round_trip: Family<PeerLabels, SecondsGauge>,
    connections: Gauge,
    pub(super) frame_bytes: Gauge,
    accepted: Counter,
    refused: Family<RefusalLabels, Counter>,
    requests: Family<ChannelLabels, Counter>,
}

impl Default for TransportMetrics {
    /// Series that no registry shows.
    fn default() -> Self {
        Self {
            calls: Family::default(),
            errors: Family::default(),
            connects: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(latency_buckets())),
            round_trip: Family::default(),
            connections: Gauge::default(),
            frame_bytes: Gauge::default(),
            accepted: Counter::default(),
            refused: Family::default(),
            requests: Family::default(),
        }
    }
}

impl TransportMetrics {
    /// New series, shown by `registry`. Call it once for a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        let peer = registry.sub_registry_with_prefix("peer");
        peer.register("calls", "Calls to peers that were answered", new.calls.clone());
        peer.register("call_errors", "Calls to peers that brought no answer", new.errors.clone());
        peer.register("connects", "Connections opened to peers", new.connects.clone());
        let sent = "Bytes of requests sent to peers, without framing";
        peer.register_with_unit("sent", sent, Unit::Bytes, new.sent.clone());
        let received = "Bytes of answers received from peers, without framing";
        peer.register_with_unit("received", received, Unit::Bytes, new.received.clone());
        let duration = "Time from a call to its answer, the peer's work included";
        peer.register_with_unit("call_duration", duration, Unit::Seconds, new.duration.clone());
        let round_trip = "Smoothed round-trip time of heartbeats";
        peer.register_with_unit("round_trip", round_trip, Unit::Seconds, new.round_trip.clone());

        let listener = registry.sub_registry_with_prefix("peer_listener");
        listener.register("connections", "Connections that peers hold open now", new.connections.clone());
        let frames = "Memory of large requests of peers that are read or worked on";
        listener.register_with_unit("request", frames, Unit::Bytes, new.frame_bytes.clone());
        listener.register("accepted", "Connections taken from peers", new.accepted.clone());
        listener.register("refused", "Connections turned away or closed for what they sent", new.refused.clone());
        listener.register("requests", "Requests of peers that were answered", new.requests.clone());
        new
    }

    /// The series of one peer and channel.
    pub(super) fn lane(&self, peer: &str, channel: Channel) -> LaneMetrics {
        let labels = LaneLabels { peer: LabelText::new(peer), channel };
        let error =
            |error| self.errors.get_or_create_owned(&ErrorLabels { peer: LabelText::new(peer), channel, error });
        LaneMetrics {
            calls: self.calls.get_or_create_owned(&labels),
            unreachable: error(UNREACHABLE),
            no_answer: error(NO_ANSWER),
            too_large: error(TOO_LARGE),
            connects: self.connects.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            duration: self.duration.get_or_create_owned(&labels),
        }
    }

    /// The gauge of one peer's round-trip time.
    pub(super) fn round_trip(&self, peer: &str) -> SecondsGauge {
        self.round_trip.get_or_create_owned(&PeerLabels { peer: LabelText::new(peer) })
    }

    /// Takes a peer out of the exposition.
    pub(super) fn forget(&self, peer: &str) {
        self.round_trip.remove(&PeerLabels { peer: LabelText::new(peer) });
        for channel in Channel::ALL {
            let labels = LaneLabels { peer: LabelText::new(peer), channel };
            for family in [&self.calls, &self.connects, &self.sent, &self.received] {
                family.remove(&labels);
            }
            self.duration.remove(&labels);
            for error in [UNREACHABLE, NO_ANSWER, TOO_LARGE] {
                self.errors.remove(&ErrorLabels { peer: LabelText::new(peer), channel, error });
            }
        }
    }

    pub(super) fn connection_opened(&self) {
        self.accepted.inc();
        self.connections.inc();
    }

    pub(super) fn connection_closed(&self) {
        self.connections.dec();
    }

    pub(super) fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&RefusalLabels { reason }).inc();
    }

    /// The counter of one channel's requests.
    pub(super) fn requests(&self, channel: Channel) -> Counter {
        self.requests.get_or_create_owned(&ChannelLabels { channel })
    }
}

/// The series of one peer and channel, looked up once.
#[derive(Debug)]
pub(super) struct LaneMetrics {
    calls: Counter,
    unreachable: Counter,
    no_answer: Counter,
    too_large: Counter,
    pub(super) connects: Counter,
    sent: Counter,
    received: Counter,
    duration: Histogram,
}

impl LaneMetrics {
    /// Counts a call that was answered.
    pub(super) fn answered(&self, request_bytes: usize, answer_bytes: usize, seconds: f64) {
        self.calls.inc();
        self.sent.inc_by(request_bytes as u64);
        self.received.inc_by(answer_bytes as u64);
        self.duration.observe(seconds);
    }

    /// Counts a call that was not.
    pub(super) fn failed(&self, error: &CallError) {
        let counter = match error {
            CallError::Unreachable { .. } => &self.unreachable,
            CallError::NoAnswer { .. } => &self.no_answer,
            CallError::TooLarge { .. } => &self.too_large,
        };
        counter.inc();
    }
}
