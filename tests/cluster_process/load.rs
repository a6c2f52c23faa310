//! Writers that remember what they were told, and the comparison of that with what every node holds.
//!
//! Each write has a key of its own, so that each answer can be held against the data: acknowledged means there, refused
//! means not there, unknown may be either. Leaves out: order and reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::api::model::{OutcomeKind, Problem, PutReply, Record};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::process::{Cluster, Member, PATIENCE, client_builder, http};

/// How much longer than its deadline a writer waits for an answer; one that takes longer is a failure.
const ANSWER_SLACK: Duration = Duration::from_secs(5);

/// The deadline that the writers give the nodes: long, so that one lost write must not hold up the others.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);

/// A writer that was turned away rests this long, so that it does not spin.
const REST: Duration = Duration::from_millis(10);

/// Each run of writers has keys of its own.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// What clients were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Key to the revision of its acknowledgement.
    pub(crate) acknowledged: BTreeMap<String, u64>,
    pub(crate) refused: BTreeSet<String>,
    pub(crate) unknown: BTreeSet<String>,
    /// Answers that no client should see.
    pub(crate) odd: Vec<String>,
}

impl Told {
    pub(crate) fn merge(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.refused.extend(other.refused);
        self.unknown.extend(other.unknown);
        self.odd.extend(other.odd);
    }

    /// Holds it against what every running node has.
    pub(crate) async fn check(&self, cluster: &Cluster) {
        for node in &cluster.nodes {
            self.check_on(node).await;
        }
    }

    /// Holds it against what one running node has.
    pub(crate) async fn check_on(&self, node: &Member) {
        assert!(self.odd.is_empty(), "{:#?}", self.odd);
        let held = held(node).await;
        let lost: Vec<_> = self.acknowledged.iter().filter(|(key, at)| held.get(*key) != Some(at)).collect();
        assert!(lost.is_empty(), "{}: {} acknowledged writes are lost, as {:?}", node.name, lost.len(), lost[0]);
        let ghosts: Vec<_> = self.refused.iter().filter(|key| held.contains_key(*key)).collect();
        assert!(ghosts.is_empty(), "{}: {} refused writes are there: {ghosts:?}", node.name, ghosts.len());
    }
}

/// What one node itself holds of the writers' keys, with their revisions. Every value must be the one that was written.
async fn held(node: &Member) -> BTreeMap<String, u64> {
    let asked = http()
        .get(node.url("/v1/kv?prefix=load/&consistency=stale"))
        .header("accept", "application/x-ndjson")
        .timeout(PATIENCE)
        .send()
        .await
        .unwrap();
    assert_eq!(asked.status(), 200);
    let text = asked.text().await.unwrap();
    text.lines()
        .map(|line| {
            let record: Record = serde_json::from_str(line).unwrap();
            let key = String::from_utf8(record.key.to_vec()).unwrap();
            assert_eq!(record.value.as_deref(), Some(value_of(&key).as_bytes()), "{}: a wrong value", node.name);
            assert_eq!(record.version, 1, "{}: {key} was written more than once", node.name);
            (key, record.mod_revision)
        })
        .collect()
}

/// The value of a key: follows from it, and is as long as values usually are.
fn value_of(key: &str) -> String {
    format!("{key:=<256}")
}

/// Running writers.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    writers: JoinSet<Told>,
    news: watch::Receiver<News>,
}

#[derive(Clone, Copy, Debug)]
struct News {
    acknowledged: u64,
    /// When the latest acknowledged write had been sent.
    sent: Instant,
    /// When it was acknowledged.
    answered: Instant,
}

impl Load {
    /// Starts writers that begin at different nodes and go on to the next whenever one does not serve.
    pub(crate) fn start(endpoints: &[String], writers: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let now = Instant::now();
        let (news_in, news) = watch::channel(News { acknowledged: 0, sent: now, answered: now });
        let news_in = Arc::new(news_in);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let (endpoints, stopped, news) = (endpoints.to_vec(), stopped.clone(), news_in.clone());
            tasks.spawn(write(format!("load/{run}-{writer}"), endpoints, writer, stopped, news));
        }
        Self { stop, writers: tasks, news }
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        let wanted = self.news.borrow().acknowledged + more;
        let reached = timeout(PATIENCE, self.news.wait_for(|news| news.acknowledged >= wanted)).await;
        assert!(reached.is_ok_and(|news| news.is_ok()), "writes are not acknowledged within {PATIENCE:?}");
    }

    /// Waits for the acknowledgement of a write that was sent after `moment`; returns how long after it that was.
    pub(crate) async fn resumed_after(&mut self, moment: Instant) -> Duration {
        let resumed = timeout(PATIENCE, self.news.wait_for(|news| news.sent > moment)).await;
        let news = *resumed.expect("writes resume in time").expect("the writers run");
        news.answered - moment
    }

    /// Ends the writers; what they were told.
    pub(crate) async fn stop(mut self) -> Told {
        self.stop.send_replace(true);
        let mut all = Told::default();
        while let Some(told) = self.writers.join_next().await {
            all.merge(told.unwrap());
        }
        assert!(!all.acknowledged.is_empty(), "nothing was acknowledged");
        all
    }
}

async fn write(
    prefix: String,
    endpoints: Vec<String>,
    first: usize,
    stopped: watch::Receiver<bool>,
    news: Arc<watch::Sender<News>>,
) -> Told {
    let client = client_builder().build().unwrap();
    let (mut told, mut endpoint) = (Told::default(), first);
    for number in 0_u64.. {
        if *stopped.borrow() {
            break;
        }
        let key = format!("{prefix}-{number}");
        let sent = Instant::now();
        match put(&client, &endpoints[endpoint % endpoints.len()], &key, WRITE_DEADLINE).await {
            Answer::Done(revision) => {
                told.acknowledged.insert(key, revision);
                let answered = Instant::now();
                news.send_modify(|news| {
                    news.acknowledged += 1;
                    if sent > news.sent {
                        (news.sent, news.answered) = (sent, answered);
                    }
                });
                continue;
            }
            Answer::Refused => drop(told.refused.insert(key)),
            Answer::Unknown => drop(told.unknown.insert(key)),
            Answer::Odd(what) => told.odd.push(what),
        }
        endpoint += 1;
        sleep(REST).await;
    }
    told
}

/// What a client makes of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Done(u64),
    Refused,
    Unknown,
    Odd(String),
}

/// Writes one of the load's keys.
pub(crate) async fn put(client: &reqwest::Client, endpoint: &str, key: &str, deadline: Duration) -> Answer {
    let request = client.put(format!("{endpoint}/v1/kv/{key}"));
    let request = request.header("quorate-timeout", format!("{}ms", deadline.as_millis()));
    let answer = match request.body(value_of(key)).timeout(deadline + ANSWER_SLACK).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => {
            return Answer::Odd(format!("{key}: no answer {ANSWER_SLACK:?} after its deadline"));
        }
        Err(error) if error.is_connect() => return Answer::Refused,
        Err(_) => return Answer::Unknown,
    };
    let status = answer.status().as_u16();
    let Ok(body) = answer.bytes().await else { return Answer::Unknown };
    if status == 201 {
        return match serde_json::from_slice::<PutReply>(&body) {
            Ok(reply) => Answer::Done(reply.mod_revision),
            Err(error) => Answer::Odd(format!("{key}: {error}")),
        };
    }
    let problem = serde_json::from_slice::<Problem>(&body);
    match problem.as_ref().map(|problem| (status, problem.code.as_str(), problem.outcome)) {
        Ok((503, "no_leader" | "no_quorum" | "not_ready", OutcomeKind::NotApplied)) => Answer::Refused,
        Ok((504, "outcome_unknown", OutcomeKind::Unknown)) => Answer::Unknown,
        _ => Answer::Odd(format!("{key}: {status} {}", String::from_utf8_lossy(&body))),
    }
}
