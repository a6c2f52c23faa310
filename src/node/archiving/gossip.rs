//! Telling the other nodes, and hearing from them.
//!
//! Guarantees: each node that could archive tells all others how it stands every [`INTERVAL`], and at once when it has
//! archived something or somebody waits for that, but never more often than every [`PAUSE`]; a node that does not answer
//! holds up no other. Leaves out: what is told (`news`).

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{join_all, select_all};
use futures::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;

use super::news::{Answer, What};
use super::{Archiving, GONE_AFTER};
use crate::backup::archiver::Status;
use crate::clock::{self, Instant};
use crate::types::{NodeId, Revision};
use crate::watch;

/// How often a node tells how it stands.
const INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two rounds.
const PAUSE: Duration = Duration::from_millis(10);

/// How long an answer may take where elections are quicker than this.
const ANSWER_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// Tells and hears until it is dropped.
pub(super) async fn run(archiving: Archiving) {
    let shared = &archiving.0;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut targets, mut places) = (shared.raft.targets(), shared.places.subscribe());
    let mut desks = desks_of(&archiving);
    let mut told: Vec<_> = vec![Revision::ZERO; desks.len()];
    let mut under_way = FuturesUnordered::new();
    let mut busy = BTreeSet::new();
    let mut again = BTreeSet::new();
    let began = clock::now();
    loop {
        let asks: bool;
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                asks = !desks.is_empty();
            }
            () = shared.telling.notified() => asks = true,
            Ok(()) = targets.changed() => {
                targets.borrow_and_update();
                archiving.adopt();
                asks = true;
            }
            Ok(()) = places.changed() => {
                places.borrow_and_update();
                desks = desks_of(&archiving);
                told = vec![Revision::ZERO; desks.len()];
                asks = true;
            }
            () = news_of(&mut desks) => {
                let archived: Vec<_> = desks.iter_mut().map(|desk| {
                    desk.borrow_and_update().archived.map_or(Revision::ZERO, |archived| archived.revision)
                }).collect();
                asks = archived != told;
                told = archived;
                shared.changed.send_modify(|changes| *changes += 1);
            }
            Some((id, answer)) = under_way.next() => {
                busy.remove(&id);
                asks = false;
                if let Some(Answer::News(news)) = answer {
                    archiving.hear(id, news);
                }
                if again.remove(&id) {
                    busy.insert(id);
                    under_way.push(exchange(&archiving, id));
                }
            }
        }
        settle(&archiving, began);
        archiving.decide();
        let wanted = *shared.wanted.lock();
        archiving.nudge(wanted);
        archiving.look();
        if !asks {
            continue;
        }
        let others = others(&archiving);
        for id in others {
            if busy.insert(id) {
                under_way.push(exchange(&archiving, id));
            } else {
                again.insert(id);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Lets this node archive once it has heard from all others, or waited long enough for that: before, each node of a group
/// that starts would think that it is alone.
fn settle(archiving: &Archiving, began: Instant) {
    if archiving.0.settled.load(Ordering::Relaxed) {
        return;
    }
    let others = others(archiving);
    let known = !others.is_empty() || archiving.0.raft.leads();
    let heard = archiving.0.heard.lock();
    if (known && others.iter().all(|id| heard.contains_key(id))) || began.elapsed() >= GONE_AFTER {
        archiving.0.settled.store(true, Ordering::Relaxed);
    }
}

/// What the archivers of this node tell.
fn desks_of(archiving: &Archiving) -> Vec<watch::Receiver<Status>> {
    archiving.list().iter().map(|place| place.desk.status()).collect()
}

/// Returns once one of them has something to tell; never without one.
async fn news_of(desks: &mut [watch::Receiver<Status>]) {
    if desks.is_empty() {
        return std::future::pending().await;
    }
    let _ = select_all(desks.iter_mut().map(|desk| Box::pin(desk.changed()))).await;
}

fn others(archiving: &Archiving) -> Vec<NodeId> {
    let me = archiving.0.raft.id();
    archiving.0.raft.roster().members.into_keys().filter(|id| *id != me).collect()
}

/// Tells one node, and hears from it.
async fn exchange(archiving: &Archiving, id: NodeId) -> (NodeId, Option<Answer>) {
    let deadline = clock::now() + archiving.0.timers.election_min.max(ANSWER_TIMEOUT_MIN);
    (id, archiving.call(id, What::News(archiving.news()), deadline).await)
}

/// Asks all others now; returns those that did not answer.
pub(super) async fn ask_all(archiving: &Archiving) -> Vec<NodeId> {
    let answers = join_all(others(archiving).into_iter().map(|id| exchange(archiving, id))).await;
    let mut silent = Vec::new();
    for (id, answer) in answers {
        match answer {
            Some(Answer::News(news)) => archiving.hear(id, news),
            _ => silent.push(id),
        }
    }
    archiving.look();
    silent
}
