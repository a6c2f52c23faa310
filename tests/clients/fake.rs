//! A tiny HTTP server that breaks off where it is told to, and remembers what it was sent.
//!
//! Guarantees: every request is recorded before anything is done about it. Leaves out: being an HTTP server; it knows
//! `Content-Length` and nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }
}

/// What the server does about a request.
#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    /// Answers.
    Answer { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Announces the whole answer, sends half of the body and hangs up.
    Half { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Hangs up without an answer.
    HangUp,
    /// Says nothing and keeps the connection.
    Silence,
}

/// An answer of success with a JSON body at revision 7.
pub(crate) fn json(status: u16, body: &str) -> Reaction {
    let headers = vec![("quorate-revision".to_owned(), "7".to_owned())];
    Reaction::Answer { status, headers, body: body.into() }
}

/// A problem document.
pub(crate) fn problem(status: u16, code: &str, retryable: bool, outcome: &str) -> Reaction {
    let body = format!(
        r#"{{"type":"urn:quorate:problem:{code}","title":"t","status":{status},"detail":"because of {code}",
            "code":"{code}","retryable":{retryable},"outcome":"{outcome}","request_id":"r1"}}"#
    );
    json(status, &body)
}

/// The server; stops taking connections when the process ends.
pub(crate) struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// A server that reacts to each request as `react` says; it is given the count of requests before.
    pub(crate) fn start(react: impl Fn(usize, &Request) -> Reaction + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (react, log) = (Arc::new(react), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (react, log) = (react.clone(), log.clone());
                // A connection that fails is the client's to notice.
                std::thread::spawn(move || stream.and_then(|stream| serve(stream, &*react, &log)));
            }
        });
        Self { url, requests }
    }

    /// A server that reacts in turn, and with the last reaction from then on.
    pub(crate) fn script(reactions: impl IntoIterator<Item = Reaction>) -> Self {
        let reactions: Vec<_> = reactions.into_iter().collect();
        Self::start(move |count, _| reactions[count.min(reactions.len() - 1)].clone())
    }

    /// What it was sent so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no handler panics").clone()
    }
}

/// An address where nobody listens.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("a bound address"))
}

fn serve(
    stream: TcpStream,
    react: &(impl Fn(usize, &Request) -> Reaction + ?Sized),
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = read(&mut reader)? {
        let count = {
            let mut log = log.lock().expect("no handler panics");
            log.push(request.clone());
            log.len() - 1
        };
        match react(count, &request) {
            Reaction::Answer { status, headers, body } => {
                stream.write_all(&head(status, &headers, body.len()))?;
                if request.method != "HEAD" {
                    stream.write_all(&body)?;
                }
            }
            Reaction::Half { status, headers, body } => {
                stream.write_all(&head(status, &headers, body.len()))?;
                stream.write_all(&body[..body.len() / 2])?;
                return stream.shutdown(Shutdown::Both);
            }
            Reaction::HangUp => return stream.shutdown(Shutdown::Both),
            Reaction::Silence => {
                // Until the client goes.
                let _ = reader.read(&mut [0])?;
                return Ok(());
            }
        }
    }
    Ok(())
}

fn head(status: u16, headers: &[(String, String)], length: usize) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    (head + "\r\n").into_bytes()
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, target, headers, body }))
}
