//! Links between members that are cut, one way or both.

use std::time::Duration;

use tokio::time::Instant;

use crate::crashes::{RESUME_SLACK, RESUME_WITHIN, WRITERS};
use crate::links::Links;
use crate::load::{Load, Told, put};
use crate::process::{Cluster, PATIENCE, POLL, Settings, http, without_elections};
use crate::recorder::Answer;

/// The greatest time beyond its deadline that an answer may take on a busy machine: without a deadline of its own it would be 5 s.
const DEADLINE_SLACK: Duration = Duration::from_millis(3_500);

/// The deadline of what is asked of a node that is cut off.
const DEADLINE: Duration = Duration::from_secs(1);

/// Waits until another node than this one leads and serves.
async fn other_leader(cluster: &mut Cluster, than: usize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for at in (0..cluster.nodes.len()).filter(|at| *at != than) {
            let leads = cluster.nodes[at].status().await.and_then(|status| status.leader);
            if let Some(leader) = leads.filter(|leader| leader.name != cluster.nodes[than].name) {
                let at = cluster.nodes.iter().position(|node| node.name == leader.name).unwrap();
                cluster.nodes[at].ready().await;
                return at;
            }
        }
        assert!(Instant::now() < deadline, "the majority elects nobody");
        tokio::time::sleep(POLL).await;
    }
}

/// What a node that is cut off may say to a linearizable read and to a write; each within its deadline.
async fn refuses(cluster: &Cluster, at: usize, key: &str, told: &mut Told) {
    let (url, client) = (cluster.nodes[at].url(""), http());
    let asked_at = Instant::now();
    let request = client.get(format!("{url}/v1/kv/register")).header("quorate-timeout", "1s");
    let answer = request.timeout(PATIENCE).send().await.unwrap();
    assert_eq!(answer.status(), 503, "a node that is cut off served a linearizable read");
    assert!(asked_at.elapsed() < DEADLINE + DEADLINE_SLACK, "{:?}", asked_at.elapsed());
    let asked_at = Instant::now();
    match put(&client, &url, key, DEADLINE).await {
        Answer::Refused => drop(told.refused.insert(key.into())),
        Answer::Unknown => drop(told.unknown.insert(key.into())),
        other => panic!("a node that is cut off answered a write with {other:?}"),
    }
    assert!(asked_at.elapsed() < DEADLINE + DEADLINE_SLACK, "{:?}", asked_at.elapsed());
}

async fn set(cluster: &Cluster, at: usize, value: &str) {
    let request = http().put(cluster.nodes[at].url("/v1/kv/register")).body(value.to_owned());
    let answer = request.timeout(PATIENCE).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

async fn get(cluster: &Cluster, at: usize) -> String {
    let answer = http().get(cluster.nodes[at].url("/v1/kv/register")).timeout(PATIENCE).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_no_stale_read_and_follows_when_healed() {
    let (mut cluster, links) = Links::start(&Settings::default()).await;
    let mut told = Told::default();
    let old = cluster.leader().await;
    set(&cluster, old, "old").await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(200).await;

    let cut_at = Instant::now();
    links.isolate(old, 3);
    // Sent at once, while it still takes itself for the leader.
    write_at_the_cut(&cluster, old, &mut told).await;
    let new = other_leader(&mut cluster, old).await;
    let resumed = load.resumed_after(cut_at).await;
    println!("writes resumed {resumed:?} after the cut");
    // Writes that were on their way to the old leader must not hold up those behind them.
    assert!(resumed <= RESUME_WITHIN + RESUME_SLACK, "writes resumed after {resumed:?}, not {RESUME_WITHIN:?}");
    set(&cluster, new, "new").await;
    for number in 0..3 {
        refuses(&cluster, old, &format!("load/cut-{number}"), &mut told).await;
    }
    assert_eq!(get(&cluster, new).await, "new");
    load.acknowledged(200).await;

    links.heal();
    cluster.nodes[old].ready().await;
    assert_eq!(get(&cluster, old).await, "new");
    load.acknowledged(200).await;
    told.merge(load.stop().await);
    cluster.converged().await;
    println!("{} writes had an unknown outcome, {} were refused", told.unknown.len(), told.refused.len());
    told.check(&cluster).await;
}

/// A write that reaches the leader at the moment of the cut: its outcome is unknown, and said to be.
async fn write_at_the_cut(cluster: &Cluster, at: usize, told: &mut Told) {
    let (key, started) = ("load/at-the-cut", Instant::now());
    match put(&http(), &cluster.nodes[at].url(""), key, DEADLINE).await {
        Answer::Unknown => drop(told.unknown.insert(key.into())),
        Answer::Refused => drop(told.refused.insert(key.into())),
        other => panic!("a leader without followers answered a write with {other:?}"),
    }
    assert!(started.elapsed() < DEADLINE + DEADLINE_SLACK, "{:?}", started.elapsed());
}

/// The hardest cut: the leader's heartbeats still arrive, so that its followers see no reason to elect, but no answer
/// comes back to it (openraft issue 2080).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_gives_way() {
    let (mut cluster, links) = Links::start(&Settings::default()).await;
    let mut told = Told::default();
    let old = cluster.leader().await;
    set(&cluster, old, "old").await;
    let others: Vec<_> = (0..3).filter(|at| *at != old).collect();
    let cut_at = Instant::now();
    links.cut(&[(others[0], old), (others[1], old)]);
    // It still takes itself for the leader and sends the write out, but never hears what became of it.
    write_at_the_cut(&cluster, old, &mut told).await;
    let new = other_leader(&mut cluster, old).await;
    set(&cluster, new, "new").await;
    println!("the others elected and wrote {:?} after the cut", cut_at.elapsed());
    refuses(&cluster, old, "load/deaf", &mut told).await;
    links.heal();
    cluster.nodes[old].ready().await;
    assert_eq!(get(&cluster, old).await, "new");
    cluster.converged().await;
    told.check(&cluster).await;
}

/// With pre-vote, a follower that comes back does not disturb the leader it could not hear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_comes_back_without_an_election() {
    without_elections(None, a_follower_is_cut_off).await;
}

async fn a_follower_is_cut_off() -> Result<(), String> {
    let (mut cluster, links) = Links::start(&Settings::default()).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut told = Told::default();
    set(&cluster, leader, "old").await;
    let mut load = Load::start(&[cluster.nodes[leader].url("")], WRITERS);
    links.isolate(follower, 3);
    refuses(&cluster, follower, "load/lonely", &mut told).await;
    load.acknowledged(500).await;
    let term = cluster.nodes[leader].status().await.unwrap().term;
    links.heal();
    cluster.nodes[follower].ready().await;
    told.merge(load.stop().await);
    let status = cluster.converged().await;
    told.check(&cluster).await;
    if status.term == term { Ok(()) } else { Err(format!("the leader of term {term} was disturbed: {}", status.term)) }
}

/// The leader's entries still arrive at the follower, but no proof of how fresh it is: what was proven before a read waited
/// for its revision says nothing about what it found behind the wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_read_that_waited_for_a_revision_proves_its_age_behind_the_wait() {
    let (cluster, links) = Links::start(&Settings::default()).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % cluster.nodes.len();
    set(&cluster, leader, "old").await;
    let next = cluster.converged().await.revision + 1;
    let url = cluster.nodes[follower].url("/v1/kv/register?consistency=bounded&max_staleness=1s");
    let bounded = |url: String| {
        let request = http().get(url).header("prefer", "local").header("quorate-timeout", "30s");
        async move { request.timeout(PATIENCE).send().await.unwrap() }
    };
    let deadline = Instant::now() + PATIENCE;
    // Until the moment of the cut there is a proof.
    while bounded(url.clone()).await.status() != 200 {
        assert!(Instant::now() < deadline, "nothing is proven by a follower that reaches everybody");
        tokio::time::sleep(POLL).await;
    }
    links.cut_calls(&[(follower, leader)]);
    let waits = tokio::spawn(bounded(format!("{url}&min_revision={next}")));
    while bounded(url.clone()).await.status() != 503 {
        assert!(Instant::now() < deadline, "a follower that can't ask the leader proves that it is fresh");
        tokio::time::sleep(POLL).await;
    }
    set(&cluster, leader, "new").await;
    let answer = waits.await.unwrap();
    let (status, body) = (answer.status(), answer.text().await.unwrap());
    assert!(status == 503 && body.contains("stale_beyond_bound"), "{status} {body}");
    // It was the age that was refused, and not the revision.
    let stale = cluster.nodes[follower].url(&format!("/v1/kv/register?consistency=stale&min_revision={next}"));
    assert_eq!(bounded(stale).await.text().await.unwrap(), "new");
    links.heal();
}
