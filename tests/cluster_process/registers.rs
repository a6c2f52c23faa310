//! Clients that put and get a few keys through all nodes, and the history of what they were told.
//!
//! Each client keeps to one node, also to one that is cut off: that is where a stale read would come from. Guarantees: each
//! value is written once; what was refused is no part of the history, so that whoever reads it has found a violation; the
//! history ends with a linearizable read of every key at every node, so that no lost write stays unseen. Leaves out: judging
//! (`quorate::workload::check`), and what each node holds (`load`).

use std::sync::Arc;
use std::time::Duration;

use quorate::api::model::{OutcomeKind, Problem};
use quorate::workload::{Action, Operation, check};
use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::process::{Cluster, PATIENCE, client_builder};

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
    stop: watch::Sender<bool>,
    clients: JoinSet<Vec<Operation>>,
    news: watch::Receiver<News>,
}

#[derive(Clone, Copy, Debug)]
struct News {
    acknowledged: u64,
    /// When the latest acknowledged put had been sent, and when it was acknowledged.
    sent: Instant,
    answered: Instant,
}

impl Registers {
    pub(crate) fn start(endpoints: &[String]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let origin = Instant::now();
        let (news_in, news) = watch::channel(News { acknowledged: 0, sent: origin, answered: origin });
        let news_in = Arc::new(news_in);
        let mut clients = JoinSet::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            for client in 0..CLIENTS {
                let name = format!("{at}.{client}");
                clients.spawn(work(name, endpoint.clone(), origin, stopped.clone(), news_in.clone()));
            }
        }
        Self { origin, stop, clients, news }
    }

    /// Waits until so many more puts are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        let wanted = self.news.borrow().acknowledged + more;
        let reached = timeout(PATIENCE, self.news.wait_for(|news| news.acknowledged >= wanted)).await;
        assert!(reached.is_ok_and(|news| news.is_ok()), "puts are not acknowledged within {PATIENCE:?}");
    }

    /// Waits for the acknowledgement of a put that was sent after `moment`; returns how long after it that was.
    pub(crate) async fn resumed_after(&mut self, moment: Instant) -> Duration {
        let resumed = timeout(PATIENCE, self.news.wait_for(|news| news.sent > moment)).await;
        let news = *resumed.expect("puts resume in time").expect("the clients run");
        news.answered - moment
    }

    /// Ends the clients, reads every key at every node once more, and judges.
    pub(crate) async fn judge(mut self, cluster: &Cluster) {
        self.stop.send_replace(true);
        let mut history = Vec::new();
        while let Some(noted) = self.clients.join_next().await {
            history.extend(noted.unwrap());
        }
        let client = client_builder().build().unwrap();
        for endpoint in cluster.endpoints() {
            for key in 0..KEYS {
                let read = get(&client, &endpoint, &format!("register-{key}"), self.origin).await;
                history.push(read.unwrap_or_else(|| panic!("{endpoint} does not serve a read")));
            }
        }
        let gets = history.iter().filter(|operation| matches!(operation.action, Action::Get(_))).count();
        let unknown = history.iter().filter(|operation| operation.returned.is_none()).count();
        println!("{} operations, {gets} of them gets, {unknown} puts of unknown outcome", history.len());
        assert!(gets > 100 && history.len() > gets + 100, "too few operations to tell");
        check(&history).unwrap();
    }
}

async fn work(
    name: String,
    endpoint: String,
    origin: Instant,
    stopped: watch::Receiver<bool>,
    news: Arc<watch::Sender<News>>,
) -> Vec<Operation> {
    let client = client_builder().build().unwrap();
    let mut history = Vec::new();
    for number in 0_u64.. {
        if *stopped.borrow() {
            break;
        }
        let key = format!("register-{}", rand::rng().random_range(0..KEYS));
        if rand::rng().random_bool(0.5) {
            match get(&client, &endpoint, &key, origin).await {
                Some(read) => history.push(read),
                None => sleep(REST).await,
            }
        } else {
            let sent = Instant::now();
            match put(&client, &endpoint, &key, &format!("{name}.{number}"), origin).await {
                Some(written) => {
                    if written.returned.is_some() {
                        let answered = Instant::now();
                        news.send_modify(|news| {
                            news.acknowledged += 1;
                            if sent > news.sent {
                                (news.sent, news.answered) = (sent, answered);
                            }
                        });
                    }
                    history.push(written);
                }
                None => sleep(REST).await,
            }
        }
        sleep(PAUSE).await;
    }
    history
}

/// A linearizable read; `None` if there was no answer to it.
async fn get(client: &reqwest::Client, endpoint: &str, key: &str, origin: Instant) -> Option<Operation> {
    let called = origin.elapsed();
    let request = client.get(format!("{endpoint}/v1/kv/{key}")).header("quorate-timeout", "1s");
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
async fn put(client: &reqwest::Client, endpoint: &str, key: &str, value: &str, origin: Instant) -> Option<Operation> {
    let called = origin.elapsed();
    let (key, action) = (key.to_owned(), Action::Put(value.to_owned()));
    let unknown = Operation { key, action, called, returned: None };
    let request = client.put(format!("{endpoint}/v1/kv/{}", unknown.key)).header("quorate-timeout", "1s");
    let answer = match request.body(value.to_owned()).timeout(DEADLINE + DEADLINE_SLACK).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return None,
        Err(error) if error.is_timeout() => panic!("{endpoint} left a put without an answer"),
        Err(_) => return Some(unknown),
    };
    let status = answer.status().as_u16();
    let Ok(body) = answer.bytes().await else { return Some(unknown) };
    if status == 200 || status == 201 {
        return Some(Operation { returned: Some(origin.elapsed()), ..unknown });
    }
    let problem: Problem = serde_json::from_slice(&body).unwrap();
    match (status, problem.outcome) {
        (503, OutcomeKind::NotApplied) => None,
        (504, OutcomeKind::Unknown) => Some(unknown),
        _ => panic!("{endpoint} answered a put with {status} {problem:?}"),
    }
}
