//! The end of a recording: every key is read once more, linearizably.
//!
//! Guarantees: each attempt is an operation of the history; every node is asked for every key as long as it answers at all,
//! and a key that one node does not tell is asked of the others until the time is over. Leaves out: what the reads say.

use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, join_all, select};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Shared;
use super::client::Client;
use crate::workload::history::{Action, Get, Outcome};

/// Clients at each node that read at the end.
const READERS: usize = 4;

/// A node that has failed so often in a row is asked no more.
const FAILURES_MAX: u32 = 10;

/// Reads all keys; how many of them nobody told.
pub(super) async fn read_all(shared: &Arc<Shared>, first_client: u32, cut_short: impl Future<Output = ()>) -> u64 {
    let keys: Arc<[String]> = shared.keys.used().into();
    shared.tally.lock().keys(keys.len());
    let nodes = shared.nodes();
    // Those that were told, by any node.
    let (told, _) = watch::channel(vec![false; keys.len()]);
    let told = Arc::new(told);
    let readers = (0..nodes * READERS).map(|reader| {
        let client = Client::new(shared.clone(), first_client.saturating_add(reader as u32), reader / READERS);
        read(client, reader / READERS, reader % READERS, keys.clone(), told.clone())
    });
    let reading = timeout(shared.config.final_timeout, join_all(readers));
    if let Either::Right(_) = select(pin!(reading), pin!(cut_short)).await {
        tracing::warn!("the reads at the end were cut short");
    }
    let told = told.borrow();
    told.iter().filter(|told| !**told).count() as u64
}

/// Reads every fourth key at one node. A node that is dead for good is given up once all its keys are known elsewhere.
async fn read(mut client: Client, node: usize, first: usize, keys: Arc<[String]>, told: Arc<watch::Sender<Vec<bool>>>) {
    let mut failures = 0;
    for place in (first..keys.len()).step_by(READERS) {
        loop {
            let action = Action::Get(Get { key: keys[place].clone(), ..Get::default() });
            let Some(ended) = client.perform(action, None, node).await else { return };
            if matches!(ended.outcome, Outcome::Done(_)) {
                told.send_modify(|told| told[place] = true);
                failures = 0;
                break;
            }
            failures += 1;
            let all_told = |told: &Vec<bool>| told.iter().all(|told| *told);
            if failures >= FAILURES_MAX && all_told(&told.borrow()) {
                return;
            }
            client.rest_if_failed().await;
        }
    }
}
