//! Members come and go in whole nodes: every change through any node, every guard provoked, and nothing lost meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate::node::{Change, ChangeOptions, Changed, Join, MemberError, MemberPatch, MemberRef, NewMember};
use quorate::types::NodeId;

use super::*;

const PLAIN: ChangeOptions = ChangeOptions { dry_run: false, force: false };
const DRY: ChangeOptions = ChangeOptions { dry_run: true, force: false };

/// A cluster on loopback that nodes join and leave.
struct Group {
    dir: tempfile::TempDir,
    first: BTreeMap<String, String>,
    nodes: BTreeMap<String, TestNode>,
}

impl Group {
    async fn form(names: &[&str]) -> Self {
        logs();
        let dir = tempfile::tempdir().unwrap();
        let (sockets, first) = listeners(names).await;
        let configs = names.iter().map(|name| config(dir.path(), name, &first)).collect();
        let started = start_all(configs, sockets).await;
        let nodes = names.iter().map(|name| (*name).to_owned()).zip(started).collect();
        let group = Self { dir, first, nodes };
        group.ready().await;
        group
    }

    async fn ready(&self) {
        for (name, node) in &self.nodes {
            until(name, || async { node.node.ready(Node::deadline_in(PATIENCE)).await.is_ok() }).await;
        }
    }

    fn node(&self, name: &str) -> &Node {
        &self.nodes[name].node
    }

    fn any(&self) -> &Node {
        &self.nodes.values().next().unwrap().node
    }

    fn leader(&self) -> String {
        let leads = |(_, node): &(&String, &TestNode)| node.node.status().role == Role::Leader;
        self.nodes.iter().find(leads).map(|(name, _)| name.clone()).expect("somebody leads")
    }

    fn joining(&self, name: &str, address: &str, votes: bool) -> NodeConfig {
        let first = BTreeMap::from([(name.to_owned(), address.to_owned())]);
        let addresses = self.first.values().cloned().collect();
        NodeConfig {
            origin: Origin::Join(Join { addresses, votes, replaces: None }),
            ..config(self.dir.path(), name, &first)
        }
    }

    /// Starts a node that joins.
    async fn join(&mut self, name: &str, votes: bool) -> Result<(), StartError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let node = start(self.joining(name, &address, votes), listener).await?;
        self.first.insert(name.to_owned(), address);
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    async fn stop(&mut self, name: &str) {
        self.nodes.remove(name).expect("it runs").stop().await;
    }

    async fn restart(&mut self, name: &str) {
        let listener = rebind(&self.first[name]).await;
        let config = NodeConfig { origin: Origin::Directory, ..config(self.dir.path(), name, &self.first) };
        let node = start(config, listener).await.map_err(|error| error.to_string()).unwrap();
        self.nodes.insert(name.to_owned(), node);
    }

    /// Names of voters and of learners, as one node has them.
    async fn roles(&self, at: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let members = self.node(at).cluster().await.unwrap().members;
        let (voters, learners): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.voter);
        let names = |some: Vec<quorate::node::MemberStatus>| some.into_iter().map(|one| one.member.name).collect();
        (names(voters), names(learners))
    }

    /// Waits until a node sees these voters and learners, and nothing is wished for any more.
    async fn await_roles(&self, at: &str, voters: &[&str], learners: &[&str]) {
        let names = |some: &[&str]| some.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let expected = (names(voters), names(learners));
        until(&format!("{expected:?}"), || async { self.roles(at).await == expected }).await;
    }

    async fn id(&self, name: &str) -> NodeId {
        let members = self.any().cluster().await.unwrap().members;
        members.into_iter().find(|member| member.member.name == name).map(|member| member.id).expect("a member")
    }

    async fn change(&self, at: &str, change: Change, options: ChangeOptions) -> Result<Changed, MemberError> {
        let deadline = Node::deadline_in(PATIENCE);
        loop {
            match self.node(at).change_members(&change, options, deadline).await {
                // What the leader does by itself is a change, too, and may not have come to its end.
                Err(MemberError::Busy) if quorate::clock::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => return result,
            }
        }
    }

    async fn finish(self) {
        for (_, node) in self.nodes {
            node.stop().await;
        }
    }
}

/// Waits for something to become true.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("in vain waited for {what}"));
}

fn votes(votes: bool) -> MemberPatch {
    MemberPatch { votes: Some(votes), ..MemberPatch::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_votes_by_itself_is_demoted_promoted_and_removed() {
    let mut group = Group::form(&["n1", "n2", "n3"]).await;
    put(group.any(), "before", "it").await.unwrap();
    group.join("n4", true).await.unwrap();
    group.await_roles("n1", &["n1", "n2", "n3", "n4"], &[]).await;
    group.ready().await;
    assert_eq!(get(group.node("n4"), "before", Consistency::Linearizable).await.as_deref(), Some("it"));
    let id = group.id("n4").await;
    assert!(id.get() > 3, "{id}");

    // Each order through another node.
    let demoted = group.change("n2", Change::Update(id, votes(false)), PLAIN).await.unwrap();
    assert_eq!((demoted.before.voters, demoted.after.voters, demoted.done), (4, 3, true));
    group.await_roles("n4", &["n1", "n2", "n3"], &["n4"]).await;
    put(group.node("n4"), "as a learner", "it").await.unwrap();
    let promoted = group.change("n4", Change::Update(id, votes(true)), PLAIN).await.unwrap();
    assert_eq!((promoted.before.voters, promoted.after.voters), (3, 4));
    group.await_roles("n4", &["n1", "n2", "n3", "n4"], &[]).await;
    assert_eq!(promoted.warnings, ["4 voters survive no more failures than 3 would: an odd number is better"]);

    group.change("n3", Change::Remove(id), PLAIN).await.unwrap();
    group.await_roles("n1", &["n1", "n2", "n3"], &[]).await;
    let gone = group.node("n4").clone();
    until("n4 to know", || async { gone.status().role == Role::Removed }).await;
    let why = gone.ready(Node::deadline_in(PATIENCE)).await.unwrap_err();
    assert!(why.contains("it was removed from cluster"), "{why}");
    assert!(matches!(put(&gone, "k", "v").await, Err(WriteError::NotReady(_))));

    // Its directory is of no use any more; an empty one gets another id.
    group.stop("n4").await;
    std::fs::remove_dir_all(group.dir.path().join("n4")).unwrap();
    group.join("n4", false).await.unwrap();
    group.await_roles("n1", &["n1", "n2", "n3"], &["n4"]).await;
    assert!(group.id("n4").await > id);
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_the_figures_and_changes_nothing() {
    let group = Group::form(&["n1", "n2", "n3"]).await;
    let before = group.any().status().last_log_index;
    let told = group.change("n2", Change::Remove(NodeId::new(3)), DRY).await.unwrap();
    assert_eq!((told.before.voters, told.before.needed, told.after.voters, told.after.needed), (3, 2, 2, 2));
    assert_eq!(told.warnings.len(), 2, "{:?}", told.warnings);
    let new = NewMember { name: "n9".into(), peer_addr: "127.0.0.1:1".into(), votes: true, ..NewMember::default() };
    let refused = group.change("n1", Change::Add(new), DRY).await.unwrap_err();
    assert!(
        matches!(&refused, MemberError::Unreachable(why) if why.contains("the leader can't reach n9 at 127.0.0.1:1"))
    );
    assert_eq!(group.roles("n1").await.0.len(), 3);
    assert_eq!(group.any().status().last_log_index, before, "not an entry was written");
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_first() {
    let group = Group::form(&["n1", "n2", "n3"]).await;
    let leader = group.leader();
    let id = group.id(&leader).await;
    let (stop, writer) = (Arc::new(AtomicBool::new(false)), group.nodes.keys().find(|name| **name != leader).unwrap());
    let writing = tokio::spawn({
        let (stop, node) = (stop.clone(), group.node(writer).clone());
        async move {
            let mut written = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                put(&node, "k", &written.to_string()).await.unwrap();
                written += 1;
            }
            written
        }
    });
    group.change(&leader, Change::Remove(id), PLAIN).await.unwrap();
    until("the leader to know", || async { group.node(&leader).status().role == Role::Removed }).await;
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.expect("no write fails");
    assert!(written > 0);
    assert_eq!(get(group.node(writer), "k", Consistency::Linearizable).await, Some((written - 1).to_string()));
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_would_lose_the_quorum_is_refused_and_one_that_does_not_is_made() {
    let mut group = Group::form(&["n1", "n2", "n3"]).await;
    let leader = group.leader();
    let others: Vec<String> = group.nodes.keys().filter(|name| **name != leader).cloned().collect();
    let (down, up) = (group.id(&others[0]).await, group.id(&others[1]).await);
    group.stop(&others[0]).await;
    let refusal = || async {
        match group.change(&leader, Change::Remove(up), DRY).await {
            Err(MemberError::WouldLoseQuorum(why)) => Some(why),
            _ => None,
        }
    };
    // Not before the leader has missed the other one.
    until("a refusal", || async { refusal().await.is_some() }).await;
    let why = refusal().await.unwrap();
    assert!(why.contains("2 voters would be left, of which 2 must agree, but only 1 of them can be reached"), "{why}");
    let refused = group.change(&others[1], Change::Update(up, votes(false)), PLAIN).await.unwrap_err();
    assert!(matches!(refused, MemberError::WouldLoseQuorum(_)), "{refused}");
    group.change(&others[1], Change::Remove(down), PLAIN).await.unwrap();
    group.await_roles(&leader, &[&leader, &others[1]], &[]).await;
    put(group.node(&leader), "k", "v").await.unwrap();
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_when_it_was_removed_learns_it_when_it_comes_back() {
    let mut group = Group::form(&["n1", "n2", "n3"]).await;
    let id = group.id("n3").await;
    group.stop("n3").await;
    group.change("n1", Change::Remove(id), PLAIN).await.unwrap();
    group.await_roles("n1", &["n1", "n2"], &[]).await;
    let term = group.any().status().term;
    group.restart("n3").await;
    let back = group.node("n3").clone();
    until("n3 to know", || async { back.status().role == Role::Removed }).await;
    put(group.node("n1"), "k", "v").await.unwrap();
    assert_eq!(group.any().status().term, term, "it did not disturb anybody");
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_takes_the_place_of_another_in_one_change() {
    let mut group = Group::form(&["n1", "n2", "n3"]).await;
    let old = group.id("n3").await;
    group.stop("n3").await;
    // It waits to be added by hand: nobody is where it asks.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let origin = Origin::Join(Join { addresses: vec!["127.0.0.1:1".into()], votes: true, replaces: None });
    let config = NodeConfig { origin, ..group.joining("n5", &address, true) };
    let starting = tokio::spawn(start(config, listener));
    let new = NewMember {
        name: "n5".into(),
        peer_addr: address,
        votes: true,
        replaces: Some(MemberRef::Id(old)),
        ..NewMember::default()
    };
    let add = Change::Add(new);
    until("n5 to answer", || async { group.change("n1", add.clone(), DRY).await.is_ok() }).await;
    let added = group.change("n2", add.clone(), PLAIN).await.unwrap();
    assert_eq!((added.before.voters, added.after.voters), (3, 3));
    group.await_roles("n1", &["n1", "n2", "n5"], &[]).await;
    // The same order again comes to the same.
    assert_eq!(group.change("n1", add, PLAIN).await.unwrap().id, added.id);
    starting.abort();
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_may_not_come_are_told_why() {
    let mut group = Group::form(&["n1", "n2", "n3"]).await;
    let other = Group::form(&["m1"]).await;
    let add = |name: &str, address: &str| {
        let new = NewMember { name: name.into(), peer_addr: address.into(), votes: true, ..NewMember::default() };
        Change::Add(new)
    };
    let conflict = |result: Result<Changed, MemberError>| match result {
        Err(MemberError::Conflict(why)) => why,
        other => panic!("{other:?}"),
    };
    let foreign = conflict(group.change("n1", add("m1", &other.first["m1"]), PLAIN).await);
    assert!(foreign.contains("belongs to cluster"), "{foreign}");
    let wrong = conflict(group.change("n1", add("m2", &other.first["m1"]), PLAIN).await);
    assert!(wrong.contains("is m1, not m2"), "{wrong}");

    // A member that lost its directory is not let in under its name and address again.
    group.stop("n3").await;
    std::fs::remove_dir_all(group.dir.path().join("n3")).unwrap();
    let config = group.joining("n3", &group.first["n3"], true);
    let listener = rebind(&group.first["n3"]).await;
    let Err(refused) = start(config, listener).await else { panic!("it was let in") };
    assert!(refused.to_string().contains("its votes and log are lost"), "{refused}");
    group.finish().await;
    other.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_goes_to_a_voter_that_is_preferred_and_stays() {
    let group = Group::form(&["n1", "n2", "n3"]).await;
    let leader = group.leader();
    let wanted = group.nodes.keys().find(|name| **name != leader).unwrap();
    let id = group.id(wanted).await;
    let patch = MemberPatch { priority: Some(7), zone: Some("dc1".into()), ..MemberPatch::default() };
    group.change(wanted, Change::Update(id, patch), PLAIN).await.unwrap();
    until("the preferred leader", || async { group.node(wanted).status().role == Role::Leader }).await;
    assert_eq!(group.node(wanted).status().member.zone, "dc1");
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_moves_to_another_address_where_it_answers() {
    let mut group = Group::form(&["n1", "n2", "n3"]).await;
    let leader = group.leader();
    let name = group.nodes.keys().find(|name| **name != leader).unwrap().clone();
    let id = group.id(&name).await;
    let moved_to = |address: &str| {
        Change::Update(id, MemberPatch { peer_addr: Some(address.to_owned()), ..MemberPatch::default() })
    };
    let refused = group.change(&leader, moved_to("127.0.0.1:1"), PLAIN).await.unwrap_err();
    assert!(matches!(&refused, MemberError::Conflict(why) if why.contains("does not answer at 127.0.0.1:1")));
    group.stop(&name).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    group.first.insert(name.clone(), address.clone());
    let config = NodeConfig { origin: Origin::Directory, ..config(group.dir.path(), &name, &group.first) };
    let node = start(config, listener).await.map_err(|error| error.to_string()).unwrap();
    group.nodes.insert(name.clone(), node);
    let renamed = MemberPatch { peer_addr: Some(address), name: Some("m9".into()), ..MemberPatch::default() };
    group.change(&leader, Change::Update(id, renamed), PLAIN).await.unwrap();
    group.ready().await;
    put(group.node(&name), "k", "v").await.unwrap();
    until("its identity to follow", || async {
        let identity = std::fs::read(group.dir.path().join(&name).join("identity")).unwrap();
        identity.windows(2).any(|bytes| bytes == b"m9")
    })
    .await;
    group.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_member_is_taken_out_where_that_is_wanted() {
    logs();
    let dir = tempfile::tempdir().unwrap();
    let names = ["n1", "n2", "n3", "n4"];
    let (sockets, first) = listeners(&names).await;
    let policy = MemberPolicy { remove_silent_after: Some(Duration::from_secs(3)), voters_min: 3 };
    let configs =
        names.iter().map(|name| NodeConfig { policy: policy.clone(), ..config(dir.path(), name, &first) }).collect();
    let started = start_all(configs, sockets).await;
    let nodes = names.iter().map(|name| (*name).to_owned()).zip(started).collect();
    let mut group = Group { dir, first, nodes };
    group.ready().await;
    let leader = group.leader();
    let others: Vec<String> = group.nodes.keys().filter(|name| **name != leader).cloned().collect();
    group.stop(&others[0]).await;
    let left: Vec<&str> = names.into_iter().filter(|name| *name != others[0]).collect();
    group.await_roles(&leader, &left, &[]).await;
    group.finish().await;
}
