//! Writers that remember what they were told, and the comparison of that with what every node holds.
//!
//! Each write has a key of its own, so that each answer can be held against the data: acknowledged means there, refused
//! means not there, unknown may be either. Leaves out: order and reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::api::model::Record;
use tokio::time::{Instant, sleep};

use crate::process::{Cluster, Member, PATIENCE, client_builder, http};
use crate::recorder::{self, Answer, Clients, Desk};

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
pub(crate) struct Load(Clients<Told>);

impl Load {
    /// Starts writers that begin at different nodes and go on to the next whenever one does not serve.
    pub(crate) fn start(endpoints: &[String], writers: usize) -> Self {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let mut clients = Clients::new();
        for writer in 0..writers {
            let endpoints = endpoints.to_vec();
            clients.join(|desk| write(format!("load/{run}-{writer}"), endpoints, writer, desk));
        }
        Self(clients)
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        self.0.acknowledged(more).await;
    }

    /// Waits for the acknowledgement of a write that was sent after `moment`; returns how long after it that was.
    pub(crate) async fn resumed_after(&mut self, moment: Instant) -> Duration {
        self.0.resumed_after(moment).await
    }

    /// Ends the writers; what they were told.
    pub(crate) async fn stop(self) -> Told {
        let mut all = Told::default();
        self.0.stop().await.into_iter().for_each(|told| all.merge(told));
        assert!(!all.acknowledged.is_empty(), "nothing was acknowledged");
        all
    }
}

async fn write(prefix: String, endpoints: Vec<String>, first: usize, desk: Desk) -> Told {
    let client = client_builder().build().unwrap();
    let (mut told, mut endpoint) = (Told::default(), first);
    for number in 0_u64.. {
        if !desk.is_open() {
            break;
        }
        let key = format!("{prefix}-{number}");
        let sent = Instant::now();
        match put(&client, &endpoints[endpoint % endpoints.len()], &key, WRITE_DEADLINE).await {
            // Nobody else writes it.
            Answer::Done(reply) if reply.version != 1 => told.odd.push(format!("{key}: {reply:?}")),
            Answer::Done(reply) => {
                told.acknowledged.insert(key, reply.mod_revision);
                desk.acknowledged(sent);
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

/// Writes one of the load's keys.
pub(crate) async fn put(client: &reqwest::Client, endpoint: &str, key: &str, deadline: Duration) -> Answer {
    recorder::put(client, endpoint, key, value_of(key), deadline).await
}
