//! What is counted of the HTTP edge.
//!
//! Guarantees: a request that is counted for the second time touches only atomics and one short lock of its histogram;
//! labels are static. Leaves out: the text form (`telemetry`).

use std::sync::OnceLock;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::admission::{Admission, Scarce};
use super::routes::Route;

/// Upper bounds of the latency histogram, in seconds.
const SECONDS: [f64; 16] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 5.0, 60.0];

/// Methods with a place of their own; any other is counted as `other`.
const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "HEAD", "other"];

/// Statuses with a place of their own; any other falls into the last.
const STATUSES: [u16; 21] =
    [200, 201, 304, 307, 400, 403, 404, 405, 408, 410, 412, 413, 429, 431, 500, 503, 504, 507, 409, 422, 0];

/// Routes, and one place for requests without any.
const ROUTES: usize = Route::ALL.len() + 1;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectedLabels {
    reason: &'static str,
}

/// The metrics of the HTTP edge.
#[derive(Debug)]
pub struct ApiMetrics {
    requests: Family<RequestLabels, Counter>,
    /// The counters of `requests` that have been used, by route, method and status.
    handles: Vec<OnceLock<Counter>>,
    durations: Vec<Histogram>,
    refused: [Counter; Scarce::ALL.len()],
    body_bytes: Gauge,
    answer_bytes: Gauge,
    write_bytes: Gauge,
    write_bytes_limit: Gauge,
    pub(super) in_flight: Gauge,
    pub(super) connections: Gauge,
    pub(super) rejected_total: Counter,
    pub(super) rejected_per_ip: Counter,
    pub(super) timed_out: Counter,
}

impl ApiMetrics {
    /// Registers them as `http_…`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("http");
        let requests = Family::default();
        registry.register("requests", "requests answered, by route, method and status", requests.clone());
        let durations: Family<RouteLabels, Histogram> = Family::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register("request_duration_seconds", "from the head of a request to its answer", durations.clone());
        let rejected: Family<RejectedLabels, Counter> = Family::default();
        registry.register("connections_rejected", "connections closed by a limit, by reason", rejected.clone());
        let in_flight = Gauge::default();
        registry.register("requests_in_flight", "requests that are worked on", in_flight.clone());
        let connections = Gauge::default();
        registry.register("connections", "client connections that are open", connections.clone());
        let refused: Family<RejectedLabels, Counter> = Family::default();
        registry.register("requests_refused", "requests refused for lack of room, by reason", refused.clone());
        let bytes: Family<KindLabels, Gauge> = Family::default();
        registry.register("in_flight_bytes", "bytes of requests and answers in memory, by kind", bytes.clone());
        let of_kind = |kind| bytes.get_or_create_owned(&KindLabels { kind });
        let write_bytes_limit = Gauge::default();
        let help = "bytes of writes that are taken at a time, as learnt from how long they take";
        registry.register("write_bytes_limit", help, write_bytes_limit.clone());
        let reason = |reason| rejected.get_or_create_owned(&RejectedLabels { reason });
        let labels = |place: usize| RouteLabels { route: label(place) };
        Self {
            requests,
            handles: (0..ROUTES * METHODS.len() * STATUSES.len()).map(|_| OnceLock::new()).collect(),
            durations: (0..ROUTES).map(|place| durations.get_or_create_owned(&labels(place))).collect(),
            refused: Scarce::ALL.map(|what| refused.get_or_create_owned(&RejectedLabels { reason: what.label() })),
            body_bytes: of_kind("bodies"),
            answer_bytes: of_kind("answers"),
            write_bytes: of_kind("writes"),
            write_bytes_limit,
            in_flight,
            connections,
            rejected_total: reason("connections_max"),
            rejected_per_ip: reason("connections_per_ip_max"),
            timed_out: reason("timeout"),
        }
    }

    /// Counts a request that was refused for lack of something.
    pub(super) fn refused(&self, what: Scarce) {
        self.refused[what as usize].inc();
    }

    /// Takes over what is in flight, which is counted elsewhere.
    pub(super) fn tell_admission(&self, admission: &Admission) {
        let set = |gauge: &Gauge, bytes: usize| gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        set(&self.body_bytes, admission.bytes.taken());
        set(&self.answer_bytes, admission.answer_bytes());
        set(&self.write_bytes, admission.writes.taken());
        set(&self.write_bytes_limit, admission.writes.limit());
    }

    /// Counts an answered request.
    pub(super) fn answered(&self, route: Option<Route>, method: &Method, status: StatusCode, took: Duration) {
        let route = route.map_or(Route::ALL.len(), |route| route as usize);
        let last = METHODS.len() - 1;
        let method = METHODS[..last].iter().position(|known| *known == method.as_str()).unwrap_or(last);
        let known = STATUSES.iter().position(|known| *known == status.as_u16()).unwrap_or(STATUSES.len() - 1);
        let handle = &self.handles[(route * METHODS.len() + method) * STATUSES.len() + known];
        let labels = || RequestLabels { route: label(route), method: METHODS[method], status: STATUSES[known] };
        handle.get_or_init(|| self.requests.get_or_create_owned(&labels())).inc();
        self.durations[route].observe(took.as_secs_f64());
    }
}

fn label(route: usize) -> &'static str {
    Route::ALL.get(route).map_or("unknown", |route| route.template())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_method_and_status() {
        let mut registry = Registry::default();
        let metrics = ApiMetrics::register(&mut registry);
        for (method, status) in [(Method::GET, 200), (Method::GET, 200), (Method::PATCH, 405), (Method::PUT, 599)] {
            let status = StatusCode::from_u16(status).unwrap();
            metrics.answered(Some(Route::Key), &method, status, Duration::from_millis(3));
        }
        metrics.answered(None, &Method::GET, StatusCode::NOT_FOUND, Duration::ZERO);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "http_requests_total{route=\"/v1/kv/{key}\",method=\"GET\",status=\"200\"} 2",
            "http_requests_total{route=\"/v1/kv/{key}\",method=\"other\",status=\"405\"} 1",
            "http_requests_total{route=\"/v1/kv/{key}\",method=\"PUT\",status=\"0\"} 1",
            "http_requests_total{route=\"unknown\",method=\"GET\",status=\"404\"} 1",
            "http_request_duration_seconds_count{route=\"/v1/kv/{key}\"} 4",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
