//! The requests of a run.
//!
//! Guarantees: what is asked is the same in both protocols: one key written, one key read linearizably or not, or a
//! comparison with a write and a read. Leaves out: sending.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use rand::Rng;
use serde_json::json;

use super::plan::{Endpoint, Plan};
use super::{Error, Kind};

/// What the endpoints speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The API of this store.
    #[default]
    Quorate,
    /// The JSON gateway of etcd 3.4 and later, to compare with.
    EtcdGateway,
}

/// Which of the two a request is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Put,
    Get,
    Stale,
    Txn,
}

impl Operation {
    pub(super) fn choose(kind: Kind, random: &mut impl Rng) -> Self {
        match kind {
            Kind::Put => Self::Put,
            Kind::Get => Self::Get,
            Kind::Stale => Self::Stale,
            Kind::Txn => Self::Txn,
            Kind::Mixed { reads_per_write } => match random.random_range(0..=reads_per_write) {
                0 => Self::Put,
                _ => Self::Get,
            },
        }
    }

    pub(super) fn effect(self) -> Effect {
        match self {
            Self::Put | Self::Txn => Effect::Write,
            Self::Get | Self::Stale => Effect::Read,
        }
    }
}

impl Plan {
    /// The request of an operation on random keys.
    pub(super) fn request(
        &self,
        operation: Operation,
        endpoint: &Endpoint,
        random: &mut impl Rng,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let key = self.key(random);
        match self.config.protocol {
            Protocol::Quorate => {
                let path = |query: &str| format!("/v1/kv/{}{query}", Self::name(&self.path_prefix, key));
                match operation {
                    Operation::Put => build(endpoint, Method::PUT, path(""), self.value(random)),
                    Operation::Get => build(endpoint, Method::GET, path(""), Bytes::new()),
                    Operation::Stale => build(endpoint, Method::GET, path("?consistency=stale"), Bytes::new()),
                    Operation::Txn => {
                        let (own, other) = (self.text(key), self.text(self.key(random)));
                        let value = self.value(random);
                        let body = json!({
                            "compare": [{"key": own, "target": "version", "op": ">=", "value": 0}],
                            "success": [{"put": {"key": own, "value": text(&value)}}, {"get": {"key": other}}],
                        });
                        build(endpoint, Method::POST, "/v1/txn".to_owned(), body.to_string().into())
                    }
                }
            }
            Protocol::EtcdGateway => {
                let own = BASE64.encode(self.text(key));
                let (path, body) = match operation {
                    Operation::Put => ("/v3/kv/put", json!({"key": own, "value": BASE64.encode(self.value(random))})),
                    Operation::Get => ("/v3/kv/range", json!({"key": own})),
                    Operation::Stale => ("/v3/kv/range", json!({"key": own, "serializable": true})),
                    Operation::Txn => {
                        let other = BASE64.encode(self.text(self.key(random)));
                        let value = BASE64.encode(self.value(random));
                        let body = json!({
                            "compare": [{"key": own, "target": "VERSION", "result": "GREATER", "version": "-1"}],
                            "success": [
                                {"requestPut": {"key": own, "value": value}}, {"requestRange": {"key": other}},
                            ],
                        });
                        ("/v3/kv/txn", body)
                    }
                };
                build(endpoint, Method::POST, path.to_owned(), body.to_string().into())
            }
        }
    }

    /// The request that writes a few keys at once, before a run.
    pub(super) fn fill(
        &self,
        keys: std::ops::Range<u64>,
        endpoint: &Endpoint,
        random: &mut impl Rng,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let (path, body) = match self.config.protocol {
            Protocol::Quorate => {
                let put = |key| json!({"put": {"key": self.text(key), "value": text(&self.value(random))}});
                ("/v1/txn", json!({"success": keys.map(put).collect::<Vec<_>>()}))
            }
            Protocol::EtcdGateway => {
                let put = |key| {
                    let (key, value) = (BASE64.encode(self.text(key)), BASE64.encode(self.value(random)));
                    json!({"requestPut": {"key": key, "value": value}})
                };
                ("/v3/kv/txn", json!({"success": keys.map(put).collect::<Vec<_>>()}))
            }
        };
        build(endpoint, Method::POST, path.to_owned(), body.to_string().into())
    }

    fn text(&self, key: u64) -> String {
        Self::name(&self.config.key_prefix, key)
    }
}

/// The pool that values are cut from is ASCII.
fn text(value: &Bytes) -> &str {
    std::str::from_utf8(value).unwrap_or_default()
}

fn build(endpoint: &Endpoint, method: Method, target: String, body: Bytes) -> Result<Request<Full<Bytes>>, Error> {
    let is_json = method == Method::POST;
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, endpoint.authority.clone());
    if is_json {
        request = request.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    request.body(Full::new(body)).map_err(|error| Error::Usage(format!("a request can't be built: {error}")))
}
