//! Members that come and go while writers write: nothing acknowledged is lost, nothing refused is there, and all members end
//! with the same state.

use quorate::api::model::{ClusterReply, MemberInfo, MemberRole, NodeRole};
use quorate::workload::history::ViolationKind;
use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::links::Links;
use crate::load::Load;
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};
use crate::registers::Registers;

/// Puts that are acknowledged between two changes.
const PUTS: u64 = 60;

pub(crate) async fn cluster_of(node: &Member) -> ClusterReply {
    let answer = http().get(node.url("/v1/cluster")).timeout(PATIENCE).send().await.unwrap();
    answer.json().await.unwrap()
}

/// Waits until the members, as one node sees them, are as they shall be.
pub(crate) async fn await_members(at: &Member, what: &str, is_so: impl Fn(&[MemberInfo]) -> bool) -> Vec<MemberInfo> {
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

pub(crate) fn votes(members: &[MemberInfo], name: &str) -> Option<bool> {
    let member = members.iter().find(|member| member.name == name)?;
    Some(member.role == MemberRole::Voter)
}

/// An order through one node; it must succeed.
pub(crate) async fn order(at: &Member, method: &str, path: &str, body: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = http().request(method.parse().unwrap(), at.url(path)).body(body.to_owned());
        let answer = request.header("quorate-timeout", "20s").timeout(PATIENCE).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        if status.is_success() {
            return;
        }
        // What the leader does by itself is a change, too, and may not have come to its end.
        let busy = text.contains("\"membership_busy\"") && Instant::now() < deadline;
        assert!(busy, "{method} {path}: {status} {text}");
        sleep(POLL).await;
    }
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

/// A group whose members change, with clients at every node that is or was one: they are to see what a single copy shows.
struct Scene {
    cluster: Cluster,
    /// Nodes that were taken out, and run on: whatever they still answer is judged as well.
    gone: Vec<Member>,
    registers: Registers,
    load: Load,
}

impl Scene {
    async fn start() -> Self {
        let cluster = Cluster::start(&Settings::default()).await;
        let mut registers = Registers::start(&cluster.endpoints());
        let load = Load::start(&cluster.endpoints(), WRITERS);
        registers.acknowledged(PUTS).await;
        Self { cluster, gone: Vec::new(), registers, load }
    }

    fn node(&self, name: &str) -> &Member {
        self.cluster.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn name(&self, at: usize) -> String {
        self.cluster.nodes[at].name.clone()
    }

    async fn id(&self, name: &str) -> u64 {
        let members = cluster_of(&self.cluster.nodes[0]).await.members;
        members.iter().find(|member| member.name == name).unwrap().id
    }

    /// Starts a later node, at which clients read and write from the first moment on, and waits until it votes.
    async fn join(&mut self, name: &str, flags: &[&str]) {
        let mut later = self.cluster.later(name, flags);
        later.start();
        self.registers.join(&later.url(""));
        later.ready().await;
        await_members(&later, "the new one to vote", |members| votes(members, name) == Some(true)).await;
        self.cluster.nodes.push(later);
        self.registers.acknowledged(PUTS).await;
    }

    /// Gives a member a vote, or takes it.
    async fn set_vote(&mut self, name: &str, vote: bool) {
        let (path, role) =
            (format!("/v1/cluster/members/{}", self.id(name).await), if vote { "voter" } else { "learner" });
        // Through itself: an order is passed on by any member.
        order(self.node(name), "PATCH", &path, &format!(r#"{{"role":"{role}"}}"#)).await;
        await_members(&self.cluster.nodes[0], role, |members| votes(members, name) == Some(vote)).await;
        self.registers.acknowledged(PUTS).await;
    }

    /// Moves the leadership.
    async fn lead(&mut self, name: &str) {
        let body = format!(r#"{{"to":{}}}"#, self.id(name).await);
        order(&self.cluster.nodes[0], "POST", "/v1/cluster/leader", &body).await;
        let leader = self.cluster.leader().await;
        assert_eq!(self.name(leader), name);
        self.registers.acknowledged(PUTS).await;
    }

    /// The node is no member any more, and runs on.
    async fn is_gone(&mut self, name: &str) {
        let at = self.cluster.nodes.iter().position(|node| node.name == name).unwrap();
        self.gone.push(self.cluster.nodes.remove(at));
        await_members(&self.cluster.nodes[0], "it to be out", |members| votes(members, name).is_none()).await;
        self.registers.acknowledged(PUTS).await;
    }

    /// Ends the clients and judges all they were told.
    async fn judge(self, killed: bool) {
        let told = self.load.stop().await;
        assert!(killed || told.unknown.is_empty(), "nothing was killed: {:?}", told.unknown);
        self.registers.judge(&self.cluster).await;
        self.cluster.converged().await;
        told.check(&self.cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_change_under_load_leave_a_history_of_a_single_copy() {
    let mut scene = Scene::start().await;
    scene.join("n4", &[]).await;
    scene.set_vote("n4", false).await;
    scene.set_vote("n4", true).await;
    let follower = scene.cluster.follower().await;
    let follower = scene.name(follower);
    scene.set_vote(&follower, false).await;
    scene.set_vote(&follower, true).await;
    scene.lead("n4").await;
    // The leader goes: it hands over first. What it answers from then on must still be no stale read.
    let path = format!("/v1/cluster/members/{}", scene.id("n4").await);
    order(scene.node("n1"), "DELETE", &path, "").await;
    scene.is_gone("n4").await;
    // A member that is well is replaced by another, in one change.
    scene.join("n5", &["--replaces", "n2"]).await;
    scene.is_gone("n2").await;
    scene.lead("n5").await;
    let members = cluster_of(scene.node("n1")).await.members;
    let mut names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["n1", "n3", "n5"]);
    scene.judge(false).await;
}

/// Whatever becomes of a change whose leader is killed: it is made or not made, and one history explains what clients saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_whose_leader_is_killed_leave_a_history_of_a_single_copy() {
    let mut scene = Scene::start().await;
    for vote in [false, true, false] {
        let leader = scene.cluster.leader().await;
        let [target, asked] = [1, 2].map(|step| (leader + step) % 3);
        let path = format!("/v1/cluster/members/{}", scene.id(&scene.name(target)).await);
        let body = format!(r#"{{"role":"{}"}}"#, if vote { "voter" } else { "learner" });
        let request = http().patch(scene.cluster.nodes[asked].url(&path)).body(body);
        let answer = tokio::spawn(request.header("quorate-timeout", "5s").timeout(PATIENCE).send());
        // Two puts later the order has reached the leader, as a rule.
        scene.registers.acknowledged(2).await;
        scene.cluster.nodes[leader].kill();
        scene.cluster.nodes[leader].start();
        let answer = answer.await.unwrap().unwrap();
        println!("vote {vote}: {} {}", answer.status(), answer.text().await.unwrap());
        scene.cluster.ready().await;
        scene.registers.acknowledged(PUTS).await;
    }
    for name in ["n1", "n2", "n3"] {
        scene.set_vote(name, true).await;
    }
    scene.judge(true).await;
}

/// The judge is only worth something if what is recorded can fail before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_in_a_recorded_history_is_found() {
    let (mut cluster, links) = Links::start(&Settings::default()).await;
    let follower = cluster.follower().await;
    let mut registers = Registers::start(&cluster.endpoints());
    registers.acknowledged(PUTS).await;
    links.isolate(follower, cluster.nodes.len());
    registers.acknowledged(PUTS * 4).await;
    // What a node that is cut off says where it is not asked for the newest.
    registers.pass_off_as_linearizable(&cluster.nodes[follower].url(""), "?consistency=stale").await;
    links.heal();
    cluster.ready().await;
    registers.acknowledged(PUTS).await;
    let violation = registers.judgement(&cluster).await.unwrap_err();
    assert_eq!(violation.kind, ViolationKind::StaleRead, "{violation}");
}
