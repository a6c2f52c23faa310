//! The two calls of etcd's v3 API that a key-value benchmark needs, over HTTP/2 directly.
//!
//! gRPC without its general machinery: one unary call is a request with a five-byte prefix before the message, and an
//! answer with a status in its trailers. Leaner than a full gRPC client, so that on a machine that client and servers
//! share, etcd gets as much of it as possible. The messages are the fields of etcd's `rpc.proto` that are used here.

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, Uri, header};
use prost::Message;
use tokio::net::TcpStream;

/// Window for one connection and one stream, in bytes: no answer of a benchmark ever waits for flow control.
const WINDOW_BYTES: u32 = 1 << 24;
/// A message's prefix: one byte "not compressed", four bytes length.
const PREFIX_BYTES: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// One HTTP/2 connection to a member; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    put: Uri,
    range: Uri,
}

impl Connection {
    /// Connects to `host:port`. The connection is driven by a task on the current `LocalSet`.
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .with_context(|| format!("HTTP/2 handshake with {address}"))?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                eprintln!("connection lost: {error}");
            }
        });
        let uri = |method: &str| format!("http://{address}/etcdserverpb.KV/{method}").parse();
        Ok(Self { sender, put: uri("Put")?, range: uri("Range")? })
    }

    /// Sets a key.
    pub(crate) async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        let answer = self.unary(self.put.clone(), &PutRequest { key, value }).await?;
        PutResponse::decode(answer)?;
        Ok(())
    }

    /// Reads a key: linearizable, or whatever the member has. Returns the value.
    pub(crate) async fn get(&self, key: Bytes, stale: bool) -> Result<Option<Bytes>> {
        let answer = self.unary(self.range.clone(), &RangeRequest { key, serializable: stale }).await?;
        Ok(RangeResponse::decode(answer)?.kvs.into_iter().next().map(|record| record.value))
    }

    async fn unary(&self, uri: Uri, message: &impl Message) -> Result<Bytes> {
        let length = message.encoded_len();
        let mut body = BytesMut::with_capacity(PREFIX_BYTES + length);
        body.put_u8(0);
        body.put_u32(u32::try_from(length)?);
        message.encode(&mut body)?;

        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));

        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, false)?;
        stream.send_data(body.freeze(), true)?;
        let response = response.await?;
        if let Some(status) = response.headers().get("grpc-status") {
            // An answer without a body carries its status here.
            bail!("grpc-status {status:?}: {:?}", response.headers().get("grpc-message"));
        }
        let mut body = response.into_body();
        let mut answer = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            answer.extend_from_slice(&part);
        }
        let trailers = body.trailers().await?.context("an answer without trailers")?;
        let status = trailers.get("grpc-status").map(HeaderValue::as_bytes);
        ensure!(status == Some(b"0"), "grpc-status {status:?}: {:?}", trailers.get("grpc-message"));
        ensure!(answer.len() >= PREFIX_BYTES && answer[0] == 0, "a malformed answer");
        Ok(answer.split_off(PREFIX_BYTES).freeze())
    }
}
