//! Clients that put and get a few keys through all nodes, and the history of what they were told.
//!
//! Each client keeps to one node, also to one that is cut off: that is where a stale read would come from. Guarantees: each
//! value is written once; what was refused is no part of the history, so that whoever reads it has found a violation; the
//! history ends with a linearizable read of every key at every node, so that no lost write stays unseen. Leaves out: judging
//! (`quorate::workload::check`), and what each node holds (`load`).

use std::time::Duration;

use quorate::workload::{Action, Operation, Violation, check};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::process::{Cluster, client_builder, http};
use crate::recorder::{self, Answer, Clients, Desk};

/// Keys; few, so that clients meet on them.
const KEYS: usize = 4;

/// Clients at each node.
const CLIENTS: usize = 2;

/// The deadline that clients give the nodes.
const DEADLINE: Duration = Duration::from_secs(1);

/// How much later an answer may come: nodes that are cut off must still be told apart from nodes that hang.
const DEADLINE_SLACK: Duration = Duration::from_secs(4);

/// Who was turned away rests this long, so that it does not spin.
const REST: Duration = Duration::from_millis(20);

/// Who was served rests this long: thousands of operations on each key are enough to judge.
const PAUSE: Duration = Duration::from_millis(2);

/// Running clients.
pub(crate) struct Registers {
    origin: Instant,
    clients: Clients<Vec<Operation>>,
    /// Nodes that have clients.
    nodes: usize,
    /// What was noted beside them.
    noted: Vec<Operation>,
}

impl Registers {
    pub(crate) fn start(endpoints: &[String]) -> Self {
        let mut new = Self { origin: Instant::now(), clients: Clients::new(), nodes: 0, noted: Vec::new() };
        endpoints.iter().for_each(|endpoint| new.join(endpoint));
        new
    }

    /// More clients, at another node.
    pub(crate) fn join(&mut self, endpoint: &str) {
        for client in 0..CLIENTS {
            let (name, endpoint, origin) = (format!("{}.{client}", self.nodes), endpoint.to_owned(), self.origin);
            self.clients.join(|desk| work(name, endpoint, origin, desk));
        }
        self.nodes += 1;
    }

    /// Waits until so many more puts are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        self.clients.acknowledged(more).await;
    }

    /// Waits for the acknowledgement of a put that was sent after `moment`; returns how long after it that was.
    pub(crate) async fn resumed_after(&mut self, moment: Instant) -> Duration {
        self.clients.resumed_after(moment).await
    }

    /// Notes what one node has of every key, which it must serve. With a `query` of its own a read may ask for less than
    /// the newest; the judge does not know that.
    pub(crate) async fn look(&mut self, endpoint: &str, query: &str) {
        let client = http();
        for key in 0..KEYS {
            let read = get(&client, endpoint, &register(key), query, self.origin).await;
            self.noted.push(read.unwrap_or_else(|| panic!("{endpoint} does not serve a read")));
        }
    }

    /// Ends the clients, reads every key at every node once more, and judges.
    pub(crate) async fn judge(self, cluster: &Cluster) {
        self.judgement(cluster).await.unwrap();
    }

    /// As [`Self::judge`], and tells what it comes to.
    pub(crate) async fn judgement(mut self, cluster: &Cluster) -> Result<(), Violation> {
        let clients = std::mem::replace(&mut self.clients, Clients::new());
        for noted in clients.stop().await {
            self.noted.extend(noted);
        }
        for endpoint in cluster.endpoints() {
            self.look(&endpoint, "").await;
        }
        let history = self.noted;
        let gets = history.iter().filter(|operation| matches!(operation.action, Action::Get(_))).count();
        let unknown = history.iter().filter(|operation| operation.returned.is_none()).count();
        println!("{} operations, {gets} of them gets, {unknown} puts of unknown outcome", history.len());
        assert!(gets > 100 && history.len() > gets + 100, "too few operations to tell");
        check(&history)
    }
}

fn register(key: usize) -> String {
    format!("register-{key}")
}

async fn work(name: String, endpoint: String, origin: Instant, desk: Desk) -> Vec<Operation> {
    let client = client_builder().build().unwrap();
    let mut history = Vec::new();
    for number in 0_u64.. {
        if !desk.is_open() {
            break;
        }
        let key = register(rand::rng().random_range(0..KEYS));
        let noted = if rand::rng().random_bool(0.5) {
            get(&client, &endpoint, &key, "", origin).await
        } else {
            put(&client, &endpoint, key, format!("{name}.{number}"), origin, &desk).await
        };
        match noted {
            Some(operation) => history.push(operation),
            None => sleep(REST).await,
        }
        sleep(PAUSE).await;
    }
    history
}

/// A read; `None` if there was no answer to it.
async fn get(client: &reqwest::Client, endpoint: &str, key: &str, query: &str, origin: Instant) -> Option<Operation> {
    let called = origin.elapsed();
    let request = client.get(format!("{endpoint}/v1/kv/{key}{query}")).header("quorate-timeout", "1s");
    let answer = request.timeout(DEADLINE + DEADLINE_SLACK).send().await.ok()?;
    let found = match answer.status().as_u16() {
        200 => Some(answer.text().await.ok()?),
        404 => None,
        503 => return None,
        other => panic!("{endpoint} answered a get with {other}"),
    };
    Some(Operation { key: key.to_owned(), action: Action::Get(found), called, returned: Some(origin.elapsed()) })
}

/// A put; `None` if it was refused for sure.
async fn put(
    client: &reqwest::Client,
    endpoint: &str,
    key: String,
    value: String,
    origin: Instant,
    desk: &Desk,
) -> Option<Operation> {
    let (sent, called) = (Instant::now(), origin.elapsed());
    let answer = recorder::put(client, endpoint, &key, value.clone(), DEADLINE).await;
    let unknown = Operation { key, action: Action::Put(value), called, returned: None };
    match answer {
        Answer::Done(_) => {
            desk.acknowledged(sent);
            Some(Operation { returned: Some(origin.elapsed()), ..unknown })
        }
        Answer::Unknown => Some(unknown),
        Answer::Refused => None,
        Answer::Odd(what) => panic!("{what}"),
    }
}
