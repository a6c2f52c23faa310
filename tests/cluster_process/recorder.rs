//! Writers at work, and what they were told: for `load`, which holds each write against the data, and for all who put by hand.
//!
//! Guarantees: an answer to a put is one of [`Answer`], and what no client should see is none of the first three; when puts
//! are acknowledged can be awaited. Leaves out: what is put where, what is made of the answers, and histories
//! (`registers`).

use std::sync::Arc;
use std::time::Duration;

use quorate::api::model::{OutcomeKind, Problem, PutReply};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::process::PATIENCE;

/// How much longer than its deadline a client waits for an answer; one that takes longer is a failure.
const ANSWER_SLACK: Duration = Duration::from_secs(5);

/// Running clients; each ends with an account of what it was told.
pub(crate) struct Clients<T> {
    desk: Desk,
    stop: watch::Sender<bool>,
    tasks: JoinSet<T>,
    news: watch::Receiver<News>,
}

/// What a client has to do with the others.
#[derive(Clone)]
pub(crate) struct Desk {
    stopped: watch::Receiver<bool>,
    news: Arc<watch::Sender<News>>,
}

#[derive(Clone, Copy, Debug)]
struct News {
    acknowledged: u64,
    /// When the latest acknowledged put had been sent.
    sent: Instant,
    /// When it was acknowledged.
    answered: Instant,
}

impl<T: Send + 'static> Clients<T> {
    /// Nobody yet.
    pub(crate) fn new() -> Self {
        let (stop, stopped) = watch::channel(false);
        let now = Instant::now();
        let (news_in, news) = watch::channel(News { acknowledged: 0, sent: now, answered: now });
        Self { desk: Desk { stopped, news: Arc::new(news_in) }, stop, tasks: JoinSet::new(), news }
    }

    /// One more, from now on.
    pub(crate) fn join<F: Future<Output = T> + Send + 'static>(&mut self, client: impl FnOnce(Desk) -> F) {
        self.tasks.spawn(client(self.desk.clone()));
    }

    /// Waits until so many more puts are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        let wanted = self.news.borrow().acknowledged + more;
        let reached = timeout(PATIENCE, self.news.wait_for(|news| news.acknowledged >= wanted)).await;
        assert!(reached.is_ok(), "puts are not acknowledged within {PATIENCE:?}");
    }

    /// Waits for the acknowledgement of a put that was sent after `moment`; returns how long after it that was.
    pub(crate) async fn resumed_after(&mut self, moment: Instant) -> Duration {
        let resumed = timeout(PATIENCE, self.news.wait_for(|news| news.sent > moment)).await;
        let news = *resumed.expect("puts resume in time").expect("the desk is here");
        news.answered - moment
    }

    /// Ends them; their accounts.
    pub(crate) async fn stop(mut self) -> Vec<T> {
        self.stop.send_replace(true);
        let mut accounts = Vec::new();
        while let Some(account) = self.tasks.join_next().await {
            accounts.push(account.unwrap());
        }
        accounts
    }
}

impl Desk {
    /// Whether the clients are to go on.
    pub(crate) fn is_open(&self) -> bool {
        !*self.stopped.borrow()
    }

    /// A put that was sent then has just been acknowledged.
    pub(crate) fn acknowledged(&self, sent: Instant) {
        let answered = Instant::now();
        self.news.send_modify(|news| {
            news.acknowledged += 1;
            if sent > news.sent {
                (news.sent, news.answered) = (sent, answered);
            }
        });
    }
}

/// What a client makes of the answer to a put.
#[derive(Debug)]
pub(crate) enum Answer {
    Done(PutReply),
    Refused,
    Unknown,
    /// No client should see this.
    Odd(String),
}

/// Puts a value, once.
pub(crate) async fn put(
    client: &reqwest::Client,
    endpoint: &str,
    key: &str,
    value: String,
    deadline: Duration,
) -> Answer {
    let request = client.put(format!("{endpoint}/v1/kv/{key}"));
    let request = request.header("quorate-timeout", format!("{}ms", deadline.as_millis()));
    let answer = match request.body(value).timeout(deadline + ANSWER_SLACK).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => {
            return Answer::Odd(format!("{key} at {endpoint}: no answer {ANSWER_SLACK:?} after its deadline"));
        }
        Err(error) if error.is_connect() => return Answer::Refused,
        Err(_) => return Answer::Unknown,
    };
    let status = answer.status().as_u16();
    let Ok(body) = answer.bytes().await else { return Answer::Unknown };
    let odd = || Answer::Odd(format!("{key} at {endpoint}: {status} {}", String::from_utf8_lossy(&body)));
    if status == 200 || status == 201 {
        return serde_json::from_slice::<PutReply>(&body).map_or_else(|_| odd(), Answer::Done);
    }
    let problem = serde_json::from_slice::<Problem>(&body);
    match problem.as_ref().map(|problem| (status, problem.code.as_str(), problem.outcome)) {
        Ok((503, "no_leader" | "no_quorum" | "not_ready", OutcomeKind::NotApplied)) => Answer::Refused,
        Ok((504, "outcome_unknown", OutcomeKind::Unknown)) => Answer::Unknown,
        _ => odd(),
    }
}
