//! A server that does nothing, to measure what a machine and the load generator allow at best.
//!
//! Guarantees: every request is answered 200 with the same [`ECHO_BYTES`] bytes. Leaves out: everything else.

use std::convert::Infallible;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Bytes in each answer: the usual value of a benchmark.
pub const ECHO_BYTES: usize = 256;

static ANSWER: [u8; ECHO_BYTES] = [b'e'; ECHO_BYTES];

/// Serves until it is dropped.
///
/// # Errors
/// What the listener meets.
pub async fn serve_echo(listener: TcpListener) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Those that have ended are forgotten, so that the set holds open connections only.
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let service = service_fn(|request: http::Request<Incoming>| async move {
                // The body must be taken off the connection before the next request.
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&ANSWER))))
            });
            // A client that goes away is the usual end of a connection.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
