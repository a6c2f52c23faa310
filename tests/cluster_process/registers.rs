//! Clients that do a bit of everything to a few keys through all nodes, and the history of what they were told.
//!
//! Each client keeps to one node as a rule, also to one that is cut off: that is where a stale read would come from.
//! Guarantees: the history ends with a linearizable read of every key at every node of the cluster, so that no lost write
//! stays unseen. Leaves out: recording and judging (`quorate::workload`), and what each node holds (`load`).

use std::time::Duration;

use quorate::workload::history::{self, Action, Answer, Consistency, Get, GetAnswer, Operation, Outcome, Violation};
use quorate::workload::{News, Recording, RecordingConfig};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::process::{Cluster, PATIENCE, http};

/// Keys at a time; few, so that clients meet on them.
const KEYS: u64 = 4;

/// Clients at each node.
const CLIENTS: usize = 2;

/// The deadline that clients give the nodes.
const DEADLINE: Duration = Duration::from_secs(1);

/// Who was turned away rests no longer than this: when writes resume is measured here.
const REST_MAX: Duration = Duration::from_millis(40);

/// Running clients.
pub(crate) struct Registers {
    recording: Recording,
    news: watch::Receiver<News>,
    notes: JoinHandle<Vec<Operation>>,
    /// What was noted beside them.
    noted: Vec<Operation>,
}

impl Registers {
    pub(crate) fn start(endpoints: &[String]) -> Self {
        let (sink, mut notes) = mpsc::channel(quorate::workload::NOTES_MAX);
        let config = RecordingConfig {
            endpoints: endpoints.to_vec(),
            clients: CLIENTS * endpoints.len(),
            keys: KEYS,
            seed: rand::random(),
            deadline: DEADLINE,
            rest_max: REST_MAX,
            final_timeout: PATIENCE,
            ..RecordingConfig::default()
        };
        let recording = Recording::start(&config, sink).unwrap();
        let notes = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(operation) = notes.recv().await {
                all.push(operation);
            }
            all
        });
        Self { news: recording.news(), recording, notes, noted: Vec::new() }
    }

    /// More clients, at another node.
    pub(crate) fn join(&mut self, endpoint: &str) {
        self.recording.join(endpoint, CLIENTS).unwrap();
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        let wanted = self.news.borrow().acknowledged + more;
        let reached = timeout(PATIENCE, self.news.wait_for(|news| news.acknowledged >= wanted)).await;
        assert!(reached.is_ok(), "writes are not acknowledged within {PATIENCE:?}");
    }

    /// Waits for the acknowledgement of a write that was sent after `moment`; returns how long after it that was.
    pub(crate) async fn resumed_after(&mut self, moment: Instant) -> Duration {
        let resumed = timeout(PATIENCE, self.news.wait_for(|news| news.sent > moment)).await;
        let news = *resumed.expect("writes resume in time").expect("the recording goes on");
        news.answered - moment
    }

    /// Reads a key at one node, which must serve it, and notes it as a linearizable read, whatever `query` asks for.
    pub(crate) async fn pass_off_as_linearizable(&mut self, endpoint: &str, query: &str) {
        let key = format!("{}000.00000/0", self.recording.head().prefix);
        let called = self.recording.elapsed();
        let answer = http().get(format!("{endpoint}/v1/kv/{key}{query}")).timeout(PATIENCE).send().await.unwrap();
        assert!([200, 404].contains(&answer.status().as_u16()), "{endpoint} does not serve a read");
        let number = |name: &str| {
            let text = answer.headers().get(name)?.to_str().unwrap();
            Some(text.trim_matches('"').parse::<u64>().unwrap())
        };
        let revision = number("quorate-revision");
        let record = (answer.status() == 200).then(|| history::Record {
            value: String::new(),
            mod_revision: number("etag"),
            create_revision: number("quorate-create-revision"),
            version: number("quorate-version"),
        });
        let value = answer.text().await.unwrap();
        let record = record.map(|record| history::Record { value, ..record });
        self.noted.push(Operation {
            id: u64::MAX - self.noted.len() as u64,
            client: u32::MAX,
            node: 0,
            called,
            returned: Some(self.recording.elapsed()),
            action: Action::Get(Get { key, ..Get::default() }),
            outcome: Outcome::Done(Answer::Get(GetAnswer { revision, record, staleness_ms: None })),
        });
    }

    /// Ends the clients, reads every key at every node once more, and judges.
    pub(crate) async fn judge(self, cluster: &Cluster) {
        self.judgement(cluster).await.unwrap();
    }

    /// As [`Self::judge`], and tells what it comes to.
    pub(crate) async fn judgement(self, cluster: &Cluster) -> Result<history::Summary, Violation> {
        let nodes = self.recording.head().nodes;
        let ended = self.recording.elapsed();
        let summary = self.recording.finish(std::future::pending()).await;
        let mut operations = self.notes.await.unwrap();
        println!("{summary:?}");
        assert_eq!(summary.keys_without_final_read, 0, "keys that no node told at the end");
        for endpoint in cluster.endpoints() {
            let node = nodes.iter().position(|node| *node == endpoint).unwrap() as u32;
            let served = |operation: &&Operation| operation.node == node && operation.called > ended;
            let served = operations.iter().filter(served).filter(|operation| operation.answer().is_some());
            assert!(served.count() as u64 >= summary.keys, "{endpoint} did not tell every key at the end");
        }
        let is = |consistency| {
            move |operation: &&Operation| {
                let freshness = operation.action.freshness();
                freshness.is_some_and(|freshness| freshness.consistency == consistency)
            }
        };
        let count = |consistency| operations.iter().filter(is(consistency)).count();
        let (newest, stale) = (count(Consistency::Linearizable), count(Consistency::Stale));
        let writes = operations.iter().filter(|operation| operation.action.writes()).count();
        assert!(newest > 50 && stale > 0 && writes > 50, "too few operations to tell: {newest}, {stale}, {writes}");
        operations.extend(self.noted);
        history::judge(&operations).into_result()
    }
}
