//! Members that come and go while writers write: nothing acknowledged is lost, nothing refused is there, and all members end
//! with the same state.

use quorate::api::model::{ClusterReply, MemberInfo, MemberRole, NodeRole};
use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::load::Load;
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};

async fn cluster_of(node: &Member) -> ClusterReply {
    let answer = http().get(node.url("/v1/cluster")).timeout(PATIENCE).send().await.unwrap();
    answer.json().await.unwrap()
}

/// Waits until the members, as one node sees them, are as they shall be.
async fn await_members(at: &Member, what: &str, is_so: impl Fn(&[MemberInfo]) -> bool) -> Vec<MemberInfo> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let members = cluster_of(at).await.members;
        if is_so(&members) && members.iter().all(|member| member.pending.is_none()) {
            return members;
        }
        assert!(Instant::now() < deadline, "in vain waited for {what}: {members:?}");
        sleep(POLL).await;
    }
}

fn votes(members: &[MemberInfo], name: &str) -> Option<bool> {
    let member = members.iter().find(|member| member.name == name)?;
    Some(member.role == MemberRole::Voter)
}

/// An order through one node; it must succeed.
async fn order(at: &Member, method: &str, path: &str, body: &str) {
    let request = http().request(method.parse().unwrap(), at.url(path)).body(body.to_owned());
    let answer = request.header("quorate-timeout", "20s").timeout(PATIENCE).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{method} {path}: {status} {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_under_load_and_nothing_is_lost() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(200).await;

    // A later member catches up and votes by itself.
    let mut later = cluster.later("n4", &["--zone", "dc2"]);
    later.start();
    later.ready().await;
    let members = await_members(&cluster.nodes[0], "n4 to vote", |members| votes(members, "n4") == Some(true)).await;
    let id = members.iter().find(|member| member.name == "n4").unwrap().id;
    load.acknowledged(200).await;
    let path = format!("/v1/cluster/members/{id}");
    order(&cluster.nodes[1], "PATCH", &path, r#"{"role":"learner"}"#).await;
    await_members(&cluster.nodes[0], "n4 to learn", |members| votes(members, "n4") == Some(false)).await;
    load.acknowledged(200).await;
    order(&later, "PATCH", &path, r#"{"role":"voter"}"#).await;
    await_members(&later, "n4 to vote again", |members| votes(members, "n4") == Some(true)).await;

    // The leader goes: it hands over first, and says afterwards that it is out.
    let leader = cluster.leader().await;
    let gone = cluster.nodes[leader].status().await.unwrap();
    order(&later, "DELETE", &format!("/v1/cluster/members/{}", gone.id), "").await;
    await_members(&later, "the leader to be out", |members| votes(members, &gone.name).is_none()).await;
    load.acknowledged(200).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = cluster.nodes[leader].status().await.unwrap();
        if status.role == NodeRole::Removed {
            assert!(status.not_ready_reason.unwrap().contains("it was removed from cluster"));
            break;
        }
        assert!(Instant::now() < deadline, "it does not learn that it is out: {status:?}");
        sleep(POLL).await;
    }
    let told = load.stop().await;
    assert!(told.unknown.is_empty(), "nothing was killed: {:?}", told.unknown);

    // What is left is one group with one state.
    cluster.nodes[leader].kill();
    cluster.nodes[leader] = later;
    cluster.converged().await;
    told.check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_is_gone_is_replaced_by_another_in_one_change() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(200).await;
    let lost = cluster.follower().await;
    cluster.nodes[lost].kill();
    std::fs::remove_dir_all(&cluster.nodes[lost].dir).unwrap();
    let name = cluster.nodes[lost].name.clone();
    // Under its old name and address it is not let in, and told why.
    let mut again = cluster.nodes[lost].beside("again");
    again.initial_cluster = None;
    again.settings.flags.extend(["--join".to_owned(), cluster.nodes[(lost + 1) % 3].advertised.clone()]);
    let (ended, said) = again.refusal().await;
    assert_eq!(ended, Some(2), "{said}");
    assert!(said.contains("its votes and log are lost"), "{said}");

    let mut other = cluster.later("n9", &["--replaces", &name]);
    other.start();
    other.ready().await;
    let others = &cluster.nodes[(lost + 1) % 3];
    let members = await_members(others, "n9 to vote", |members| votes(members, "n9") == Some(true)).await;
    assert_eq!((members.len(), votes(&members, &name)), (3, None));
    // Started again with nothing but its directory, it is who it was.
    other.terminate().await;
    other.settings = cluster.nodes[lost].settings.clone();
    other.start();
    other.ready().await;
    load.acknowledged(200).await;
    let told = load.stop().await;
    cluster.nodes[lost] = other;
    cluster.converged().await;
    told.check(&cluster).await;
}
