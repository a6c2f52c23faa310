//! Data centres that are named while the members run: what goes from one to another is compressed from then on.

use tokio::time::{Instant, sleep};

use crate::catch_up::{counter, put};
use crate::membership::{await_members, cluster_of, order};
use crate::process::{Cluster, PATIENCE, POLL, Settings, http};

/// Compresses well.
fn value(number: u8) -> Vec<u8> {
    vec![b'a' + number % 26; 300_000]
}

/// What a node has sent to other zones: before and after it was compressed, in bytes.
async fn packed(cluster: &Cluster, at: usize) -> (u64, u64) {
    let node = &cluster.nodes[at];
    (counter(node, "peer_packing_plain_bytes").await, counter(node, "peer_packing_sent_bytes").await)
}

async fn name_zone(cluster: &Cluster, at: usize, zone: &str) {
    let (name, any) = (&cluster.nodes[at].name, &cluster.nodes[0]);
    let members = cluster_of(any).await.members;
    let id = members.iter().find(|member| member.name == *name).unwrap().id;
    order(any, "PATCH", &format!("/v1/cluster/members/{id}"), &format!(r#"{{"zone":"{zone}"}}"#)).await;
    await_members(any, zone, |members| members.iter().any(|member| member.id == id && member.zone == zone)).await;
}

/// Writes large values at the leader until what it compresses grows with each of them, or does not, as it shall.
async fn write_until(cluster: &Cluster, leader: usize, grows: bool) {
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let before = packed(cluster, leader).await;
        put(&cluster.nodes[leader], "large", value(number)).await;
        cluster.converged().await;
        if (packed(cluster, leader).await != before) == grows {
            // Whatever way it took, it came whole.
            for node in &cluster.nodes {
                let stale =
                    http().get(node.url("/v1/kv/large?consistency=stale")).timeout(PATIENCE).send().await.unwrap();
                assert!(stale.bytes().await.unwrap() == value(number), "{} has another value", node.name);
            }
            return;
        }
        assert!(Instant::now() < deadline, "what is compressed should grow: {grows}");
        sleep(POLL).await;
    }
}

/// With such timers appends go ahead of answers, through pipes, and near members as here don't keep them waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_compress_for_another_data_centre_as_soon_as_it_is_named() {
    let cluster = Cluster::start(&Settings::flags(&["--rtt", "20ms"])).await;
    let leader = cluster.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    put(&cluster.nodes[leader], "large", value(0)).await;
    name_zone(&cluster, others[0], "dc2").await;
    put(&cluster.nodes[leader], "large", value(1)).await;
    cluster.converged().await;
    assert_eq!(packed(&cluster, leader).await, (0, 0), "the leader stands nowhere, so nobody is far from it");
    name_zone(&cluster, leader, "dc1").await;
    write_until(&cluster, leader, true).await;
    let (plain, sent) = packed(&cluster, leader).await;
    assert!(sent * 10 < plain, "{sent} bytes of {plain}");
    name_zone(&cluster, others[0], "dc1").await;
    write_until(&cluster, leader, false).await;
}
