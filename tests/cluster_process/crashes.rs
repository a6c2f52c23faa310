//! Nodes that are killed, stopped or told to end while clients write and read.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate::api::model::PutReply;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::load::Load;
use crate::process::{Cluster, Member, PATIENCE, Settings, client_builder};

/// Writers of a test: enough that rounds carry several commands, few enough for two cores.
pub(crate) const WRITERS: usize = 12;

/// The promise: writes resume within three election timeouts, of 1 s each by default.
pub(crate) const RESUME_WITHIN: Duration = Duration::from_secs(3);

/// What a busy test machine may add to it: less than the deadline of the writes that a fault holds up. `scripts/faults` holds
/// the promise against less.
pub(crate) const RESUME_SLACK: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_loses_no_acknowledged_write_and_writes_resume() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        load.acknowledged(300).await;
        let leader = cluster.leader().await;
        let killed_at = Instant::now();
        cluster.nodes[leader].kill();
        longest = longest.max(load.resumed_after(killed_at).await);
        load.acknowledged(300).await;
        cluster.nodes[leader].start();
        cluster.nodes[leader].ready().await;
    }
    load.acknowledged(300).await;
    let told = load.stop().await;
    cluster.converged().await;
    told.check(&cluster).await;
    println!("writes resumed within {longest:?} of the kill; {} acknowledged", told.acknowledged.len());
    assert!(longest <= RESUME_WITHIN + RESUME_SLACK, "writes resumed after {longest:?}, not {RESUME_WITHIN:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once_keep_every_acknowledged_write() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut told = crate::load::Told::default();
    for _ in 0..3 {
        let mut load = Load::start(&cluster.endpoints(), WRITERS);
        load.acknowledged(400).await;
        cluster.nodes.iter_mut().for_each(Member::kill);
        told.merge(load.stop().await);
        cluster.start_all().await;
        cluster.converged().await;
        told.check(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_end_does_so_cleanly_under_load() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(200).await;
    let follower = cluster.follower().await;
    for at in [follower, cluster.leader().await] {
        let status = cluster.nodes[at].terminate().await;
        assert_eq!(status.code(), Some(0), "{}", cluster.nodes[at].said());
        load.acknowledged(200).await;
        cluster.nodes[at].start();
        cluster.nodes[at].ready().await;
    }
    load.acknowledged(200).await;
    // All at once, with writers still at work: those who wait last have no quorum any more.
    cluster.nodes.iter_mut().for_each(|node| node.signal("TERM"));
    for node in &mut cluster.nodes {
        let status = node.ended().await;
        assert_eq!(status.code(), Some(0), "{}", node.said());
        assert!(!node.said().contains("panicked"), "{}", node.said());
    }
    let told = load.stop().await;
    cluster.start_all().await;
    cluster.converged().await;
    told.check(&cluster).await;
}

/// The key of the readers, with its newest acknowledged value.
const REGISTER: &str = "register";

/// Who was turned away rests this long, so that it does not spin.
const REST: Duration = Duration::from_millis(10);

/// How long a paused leader sleeps: well beyond an election timeout.
const PAUSE: Duration = Duration::from_secs(3);

/// A leader that slept through an election must not answer reads from what it knew (etcd issue 20418).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_serves_no_stale_linearizable_read() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let register = Register::start(&cluster.endpoints());
    register.acknowledged(50).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        cluster.nodes[leader].signal("STOP");
        // The pause itself is the fault.
        sleep(PAUSE).await;
        // A few: whatever is sent to the paused node takes its time.
        register.acknowledged(4).await;
        cluster.nodes[leader].signal("CONT");
        register.acknowledged(50).await;
        cluster.nodes[leader].ready().await;
    }
    let reads = register.stop().await;
    assert!(reads.iter().all(|count| *count > 20), "too few reads to tell: {reads:?}");
    cluster.converged().await;
}

/// One writer that numbers its writes to a register, and readers at each node which check that no read is older than what
/// was acknowledged before it began. Age is told by revisions: a write whose outcome was unknown may still be done later,
/// and then a lower number is newer.
struct Register {
    acknowledged: watch::Receiver<Acknowledged>,
    stop: watch::Sender<bool>,
    writer: JoinSet<BTreeSet<u64>>,
    readers: JoinSet<Vec<u64>>,
}

#[derive(Clone, Copy, Default)]
struct Acknowledged {
    count: u64,
    /// The revision of the newest.
    revision: u64,
}

impl Register {
    fn start(endpoints: &[String]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (news, acknowledged) = watch::channel(Acknowledged::default());
        let (mut writer, mut readers) = (JoinSet::new(), JoinSet::new());
        writer.spawn(write(endpoints.to_vec(), news, stopped.clone()));
        for endpoint in endpoints {
            for _ in 0..2 {
                readers.spawn(read(endpoint.clone(), acknowledged.clone(), stopped.clone()));
            }
        }
        Self { acknowledged, stop, writer, readers }
    }

    /// Waits until so many more writes are acknowledged.
    async fn acknowledged(&self, more: u64) {
        let wanted = self.acknowledged.borrow().count + more;
        let mut news = self.acknowledged.clone();
        let reached = news.wait_for(|news| news.count >= wanted);
        tokio::time::timeout(PATIENCE, reached).await.expect("in time").expect("the writer runs");
    }

    /// Ends it; how many reads each reader got an answer to.
    async fn stop(mut self) -> Vec<usize> {
        self.stop.send_replace(true);
        let refused = self.writer.join_next().await.expect("there is one writer").unwrap();
        let mut reads = Vec::new();
        while let Some(reader) = self.readers.join_next().await {
            let seen = reader.unwrap();
            let ghost = seen.iter().find(|number| refused.contains(number));
            assert!(ghost.is_none(), "write {ghost:?} was refused and is there");
            reads.push(seen.len());
        }
        reads
    }
}

/// A client that keeps its connections: thousands of short ones would only fill the system's tables.
fn client() -> reqwest::Client {
    client_builder().build().unwrap()
}

/// Writes until stopped; the numbers of the writes that were refused.
async fn write(
    endpoints: Vec<String>,
    news: watch::Sender<Acknowledged>,
    stopped: watch::Receiver<bool>,
) -> BTreeSet<u64> {
    let (client, mut refused) = (client(), BTreeSet::new());
    for number in 1_u64.. {
        if *stopped.borrow() {
            break;
        }
        let endpoint = &endpoints[usize::try_from(number).unwrap() % endpoints.len()];
        let request = client.put(format!("{endpoint}/v1/kv/{REGISTER}")).body(number.to_string());
        let answer = request.header("quorate-timeout", "1s").timeout(Duration::from_secs(2)).send().await;
        match answer {
            Ok(answer) if answer.status().is_success() => {
                let Ok(reply) = answer.json::<PutReply>().await else { continue };
                news.send_modify(|news| {
                    *news = Acknowledged { count: news.count + 1, revision: reply.mod_revision };
                });
                continue;
            }
            Ok(answer) if answer.status() == 503 => drop(refused.insert(number)),
            Ok(_) | Err(_) => {}
        }
        sleep(REST).await;
    }
    refused
}

/// Reads until stopped; the numbers that were seen.
async fn read(
    endpoint: String,
    acknowledged: watch::Receiver<Acknowledged>,
    stopped: watch::Receiver<bool>,
) -> Vec<u64> {
    let (client, mut seen) = (client(), Vec::new());
    while !*stopped.borrow() {
        let least = acknowledged.borrow().revision;
        // Longer than the pause: a read that was waiting in the paused process comes back when it wakes up.
        let request = client.get(format!("{endpoint}/v1/kv/{REGISTER}")).timeout(PAUSE * 3);
        let Ok(answer) = request.header("quorate-timeout", "1s").send().await else {
            sleep(REST).await;
            continue;
        };
        match answer.status().as_u16() {
            200 => {
                let tag = answer.headers()["etag"].to_str().unwrap().trim_matches('"').to_owned();
                let revision: u64 = tag.parse().unwrap();
                assert!(revision >= least, "{endpoint} served revision {revision} after {least} was acknowledged");
                let Ok(text) = answer.text().await else { continue };
                seen.push(text.parse().unwrap());
            }
            404 => assert_eq!(least, 0, "{endpoint} knows no key after revision {least} was acknowledged"),
            503 => sleep(REST).await,
            other => panic!("{endpoint} answered a read with {other}"),
        }
    }
    seen
}
