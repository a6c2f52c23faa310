//! Forming over a switchboard. Property: whatever the order of starts and wherever a member crashes, all first members end
//! up in one cluster under fixed ids, and a member that lost its directory never begins a second one.

mod format;

use futures::future::join_all;

use super::*;
use crate::transport::memory::Network;
use crate::transport::{BoxFuture, PeerHandler};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// One first member: its directory outlives it.
struct Seat {
    name: &'static str,
    dir: tempfile::TempDir,
}

impl Seat {
    fn new(name: &'static str) -> Self {
        Self { name, dir: tempfile::tempdir().unwrap() }
    }

    fn start_with(&self, network: &Network, first: &FirstMembers) -> Arc<FormingDesk> {
        let directory = Directory::open(self.dir.path()).unwrap();
        let identity = directory.identity(self.name).unwrap();
        let member = Member { name: self.name.into(), peer_addr: address(self.name), ..Member::default() };
        let desk = Arc::new(FormingDesk::new(member, Some(first.clone()), Arc::new(directory), identity));
        let refuses_identities = false;
        network.serve(&address(self.name), Arc::new(Front { desk: desk.clone(), refuses_identities }));
        desk
    }

    fn start(&self, network: &Network) -> Arc<FormingDesk> {
        self.start_with(network, &first_members())
    }
}

/// Answers for a desk; can lose what would change it.
struct Front {
    desk: Arc<FormingDesk>,
    refuses_identities: bool,
}

impl PeerHandler for Front {
    fn handle(&self, _channel: Channel, request: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        let adopts = matches!(decode(&request), Ok(Request::Adopt(_)));
        let answer = if adopts && self.refuses_identities { None } else { self.desk.handle(&request) };
        Box::pin(std::future::ready(answer))
    }
}

fn address(name: &str) -> String {
    format!("{name}:1")
}

fn first_members() -> FirstMembers {
    NAMES.iter().map(|name| ((*name).to_owned(), address(name))).collect()
}

async fn run(desk: &FormingDesk, network: &Network) -> Result<Formed, FormingError> {
    let transport: Arc<dyn Transport> = Arc::new(network.endpoint(&desk.member.peer_addr));
    tokio::time::timeout(PATIENCE, form(desk, &transport, &first_members())).await.expect("forming hangs")
}

/// Runs a member for a while in which it can't get to its end, and until it got so far, then kills it.
async fn run_and_kill(desk: &FormingDesk, network: &Network, so_far: impl Fn() -> bool) {
    let transport: Arc<dyn Transport> = Arc::new(network.endpoint(&desk.member.peer_addr));
    let first = first_members();
    let a_while = async {
        tokio::time::sleep(RETRY_PAUSE * 10).await;
        while !so_far() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    tokio::select! {
        biased;
        _ = form(desk, &transport, &first) => panic!("it can't get to its end"),
        in_time = tokio::time::timeout(PATIENCE, a_while) => in_time.expect("it does not get so far"),
    }
}

/// Ends all processes; their directories are free then.
async fn end(desks: Vec<Arc<FormingDesk>>, network: &Network) {
    let ends: Vec<_> = desks.iter().map(Arc::downgrade).collect();
    drop(desks);
    for name in NAMES {
        network.stop(&address(name));
    }
    // A call that was under way holds the desk that it came to, until its task has had a turn.
    let free = async {
        while ends.iter().any(|desk| desk.strong_count() > 0) {
            tokio::time::sleep(RETRY_PAUSE / 10).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("somebody holds a desk");
}

fn identities(desks: &[Arc<FormingDesk>]) -> Vec<(ClusterId, NodeId)> {
    desks.iter().map(|desk| desk.identity().map(|mine| (mine.cluster, mine.id)).unwrap()).collect()
}

fn assert_one_cluster(desks: &[Arc<FormingDesk>]) {
    let identities = identities(desks);
    let cluster = identities[0].0;
    let expected: Vec<_> = (1..=desks.len() as u64).map(|id| (cluster, NodeId::new(id))).collect();
    assert_eq!(identities, expected);
}

#[tokio::test]
async fn every_order_of_starts_forms_one_cluster() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let network = Network::new();
        let seats = NAMES.map(Seat::new);
        let mut starts = Vec::new();
        for (turn, at) in order.into_iter().enumerate() {
            let (seat, network) = (&seats[at], &network);
            starts.push(async move {
                tokio::time::sleep(RETRY_PAUSE * 2 * u32::try_from(turn).unwrap()).await;
                let desk = seat.start(network);
                let formed = run(&desk, network).await.unwrap();
                (at, desk, formed.members)
            });
        }
        let mut done = join_all(starts).await;
        done.sort_by_key(|(at, ..)| *at);
        let coordinators: Vec<bool> = done.iter().map(|(.., members)| members.is_some()).collect();
        assert_eq!(coordinators, [true, false, false], "{order:?}");
        assert_eq!(done[0].2.as_ref().unwrap().len(), 3);
        assert_one_cluster(&done.into_iter().map(|(_, desk, _)| desk).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_coordinator_that_dies_half_way_through_goes_on_with_the_same_cluster() {
    let network = Network::new();
    let seats = NAMES.map(Seat::new);
    let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
    network.serve(&address("c"), Arc::new(Front { desk: desks[2].clone(), refuses_identities: true }));
    run_and_kill(&desks[0], &network, || desks[1].identity().is_some()).await;
    assert!(desks[2].identity().is_none() && desks[0].identity().is_none());
    let begun = desks[1].identity().unwrap().cluster;

    // All of them restart, in the state they were in.
    end(desks, &network).await;
    let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
    let formed = join_all(desks.iter().map(|desk| run(desk, &network))).await;
    assert!(formed.iter().all(Result::is_ok));
    assert_one_cluster(&desks);
    assert_eq!(desks[0].identity().unwrap().cluster, begun);
}

#[tokio::test]
async fn a_coordinator_that_dies_before_the_first_membership_goes_on() {
    let network = Network::new();
    let seats = NAMES.map(Seat::new);
    let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
    let formed = join_all(desks.iter().map(|desk| run(desk, &network))).await;
    let members = formed.into_iter().next().unwrap().unwrap().members.unwrap();
    desks[1].mark_log().unwrap();
    end(desks, &network).await;
    // "b" has a log by now, but no vote and no entry.
    std::fs::create_dir(seats[1].dir.path().join("log")).unwrap();
    std::fs::write(seats[1].dir.path().join("log/chunk.wal"), "header").unwrap();
    let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
    let again = tokio::spawn({
        let (desk, network) = (desks[0].clone(), network.clone());
        async move { run(&desk, &network).await }
    });
    // As long as "b" does not know whether it ever voted, nothing goes on.
    tokio::time::sleep(RETRY_PAUSE * 5).await;
    assert!(!again.is_finished());
    desks[1].set_initialized(false);
    assert_eq!(again.await.unwrap().unwrap().members.unwrap(), members);
    assert_one_cluster(&desks);
}

#[tokio::test]
async fn a_member_whose_directory_was_emptied_is_told_so() {
    for wiped in [0, 1] {
        let network = Network::new();
        let mut seats = NAMES.map(Seat::new);
        let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
        join_all(desks.iter().map(|desk| run(desk, &network))).await;
        desks.iter().for_each(|desk| desk.set_initialized(true));
        let cluster = desks[2].identity().unwrap().cluster;

        seats[wiped] = Seat::new(NAMES[wiped]);
        let desk = seats[wiped].start(&network);
        // One of the others is enough to tell.
        network.stop(&address(NAMES[1 - wiped]));
        let Err(error) = run(&desk, &network).await else { panic!("a second cluster was formed") };
        assert!(matches!(&error, FormingError::Wiped { cluster: told, .. } if *told == cluster), "{error}");
        assert_eq!(desk.identity(), None);
    }
}

#[tokio::test]
async fn a_wiped_member_waits_where_nobody_can_tell_it() {
    let network = Network::new();
    let seats = NAMES.map(Seat::new);
    let coordinator = seats[0].start(&network);
    run_and_kill(&coordinator, &network, || true).await;
    let _second = seats[1].start(&network);
    run_and_kill(&coordinator, &network, || true).await;
    assert_eq!(coordinator.identity(), None, "all first members must answer");
}

#[tokio::test]
async fn differing_lists_and_wrong_addresses_are_told_by_name() {
    let network = Network::new();
    let seats = NAMES.map(Seat::new);
    let desk = seats[0].start(&network);
    let mut other = first_members();
    other.insert("d".into(), "d:1".into());
    let _b = seats[1].start_with(&network, &other);
    let _c = seats[2].start(&network);
    let error = run(&desk, &network).await.map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "b was started with another --initial-cluster (a=a:1,b=b:1,c=c:1,d=d:1) than this node (a=a:1,b=b:1,c=c:1); \
         make them the same"
    );

    let network = Network::new();
    let seats = ["a", "b", "x"].map(Seat::new);
    let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
    network.serve(&address("c"), Arc::new(Front { desk: desks[2].clone(), refuses_identities: false }));
    let error = run(&desks[0], &network).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "c:1 answered as x, but --initial-cluster says c; correct the list");
    assert!(desks.iter().all(|desk| desk.identity().is_none()));
}

#[tokio::test]
async fn an_identity_of_another_cluster_is_not_overwritten() {
    let network = Network::new();
    let seats = NAMES.map(Seat::new);
    let desks: Vec<_> = seats.iter().map(|seat| seat.start(&network)).collect();
    let foreign = |cluster, id: u64, name: &str| Identity {
        cluster: ClusterId::new(cluster),
        id: NodeId::new(id),
        name: name.into(),
        has_log: false,
    };
    desks[1].adopt(foreign(71, 2, "b")).unwrap();
    desks[2].adopt(foreign(72, 3, "c")).unwrap();
    run_and_kill(&desks[0], &network, || true).await;
    assert_eq!(desks[0].identity(), None);
    assert_eq!(identities(&desks[1..]), [(ClusterId::new(71), NodeId::new(2)), (ClusterId::new(72), NodeId::new(3))]);
    assert!(desks[1].adopt(foreign(71, 3, "b")).is_err(), "nor an id");
    assert!(desks[1].adopt(foreign(71, 2, "c")).is_err(), "nor a name");
}

#[tokio::test]
async fn a_log_is_there_before_it_is_recorded() {
    let seat = Seat::new("a");
    let directory = Directory::open(seat.dir.path()).unwrap();
    let identity = Identity { cluster: ClusterId::new(7), id: NodeId::new(1), name: "a".into(), has_log: false };
    directory.write_identity(&identity).unwrap();
    drop(crate::raft::LogStore::open(&seat.dir.path().join("log"), crate::raft::LogConfig::default()).unwrap());
    // A crash here ...
    assert_eq!(directory.identity("a").unwrap(), Some(identity.clone()));
    // ... or here, before Raft has written anything: the start goes on from both.
    directory.write_identity(&Identity { has_log: true, ..identity }).unwrap();
    assert!(directory.identity("a").is_ok(), "an empty log is not a lost one");
}
