//! One HTTP/1.1 connection that is driven by the client that uses it.
//!
//! Guarantees: after an error the connection must not be used again; whether a lost request can have reached the server is
//! told. Leaves out: pooling, redirects, retries: a load generator must cost as little as it can.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::plan::Endpoint;

/// The largest answer that is taken, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// A connection with at most one request in flight.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Moves bytes whenever it is polled. It is not a task of its own: waking one up would cost more than the request.
    driver: Pin<Box<Driver>>,
    closed: bool,
}

/// What a client makes of an answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// When to try again, if the server says so.
    pub(super) retry_after: Option<Duration>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// How a request can be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// It never left.
    Unsent,
    /// It may have arrived.
    Unanswered,
}

impl Connection {
    pub(super) async fn open(endpoint: &Endpoint) -> std::io::Result<Self> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        Ok(Self { sender, driver: Box::pin(driver), closed: false })
    }

    /// Sends a request and takes the whole answer.
    pub(super) async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Lost> {
        let Self { sender, driver, closed } = self;
        let answer = async move {
            let sent = sender.try_send_request(request).await;
            // A request that is handed back was not begun.
            let response = sent.map_err(|mut error| match error.take_message() {
                Some(_) => Lost::Unsent,
                None => Lost::Unanswered,
            })?;
            let (head, body) = response.into_parts();
            let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_| Lost::Unanswered)?.to_bytes();
            let retry_after = retry_after.map(Duration::from_secs);
            Ok(Answer { status: head.status, retry_after, headers: head.headers, body })
        };
        let mut answer = pin!(answer);
        poll_fn(|context| {
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            if !*closed {
                *closed = driver.as_mut().poll(context).is_ready();
            }
            // What the driver has just read is looked at in the same turn.
            answer.as_mut().poll(context)
        })
        .await
    }

    /// Whether another request can be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.closed && !self.sender.is_closed()
    }
}
