//! Partitions of every shape, under clients whose whole history is judged: no stale read, no lost write, and writes resume
//! within three election timeouts.

use std::time::Duration;

use tokio::time::Instant;

use crate::crashes::{RESUME_SLACK, RESUME_WITHIN};
use crate::links::Links;
use crate::load::Load;
use crate::process::{Cluster, Settings};
use crate::registers::Registers;

/// Writers with keys of their own, beside the clients of the registers: all they were told is held against each node.
const WRITERS: usize = 4;

/// Puts that are acknowledged before and after each fault.
const PUTS: u64 = 100;

/// A cluster behind relays, with clients at work.
struct Scene {
    cluster: Cluster,
    links: Links,
    registers: Registers,
    load: Load,
}

impl Scene {
    async fn start(nodes: usize) -> Self {
        let (cluster, links) = Links::start_far(&Settings::default(), nodes, Duration::ZERO).await;
        let mut registers = Registers::start(&cluster.endpoints());
        let load = Load::start(&cluster.endpoints(), WRITERS);
        registers.acknowledged(PUTS).await;
        Self { cluster, links, registers, load }
    }

    /// The leader, and the others by their numbers.
    async fn leader(&self) -> (usize, Vec<usize>) {
        let leader = self.cluster.leader().await;
        (leader, (0..self.cluster.nodes.len()).filter(|at| *at != leader).collect())
    }

    /// Waits for puts to resume after a fault, in time.
    async fn resumes(&mut self, what: &str, fault_at: Instant) {
        let resumed = self.registers.resumed_after(fault_at).await;
        println!("{what}: puts resumed within {resumed:?}");
        assert!(
            resumed <= RESUME_WITHIN + RESUME_SLACK,
            "{what}: puts resumed after {resumed:?}, not {RESUME_WITHIN:?}"
        );
        self.registers.acknowledged(PUTS).await;
    }

    /// Mends everything and waits until all nodes serve.
    async fn heal(&mut self) {
        self.links.heal();
        self.cluster.ready().await;
        self.registers.acknowledged(PUTS).await;
    }

    /// Ends the clients and judges all they were told.
    async fn judge(self) {
        let told = self.load.stop().await;
        self.registers.judge(&self.cluster).await;
        self.cluster.converged().await;
        told.check(&self.cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_leaders_leave_a_history_of_a_single_copy() {
    let mut scene = Scene::start(3).await;
    for _ in 0..2 {
        let (leader, _) = scene.leader().await;
        let killed_at = Instant::now();
        scene.cluster.nodes[leader].kill();
        scene.resumes("a killed leader", killed_at).await;
        scene.cluster.nodes[leader].start();
        scene.links.know(&scene.cluster);
        scene.heal().await;
    }
    scene.judge().await;
}

/// The leader's heartbeats and entries still arrive, but it hears nothing; and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_way_links_leave_a_history_of_a_single_copy() {
    let mut scene = Scene::start(3).await;
    for (what, deaf) in [("a leader that hears nobody", true), ("a leader that nobody hears", false)] {
        let (leader, others) = scene.leader().await;
        let links = others.iter().map(|other| if deaf { (*other, leader) } else { (leader, *other) });
        scene.links.cut(&links.collect::<Vec<_>>());
        scene.resumes(what, Instant::now()).await;
        scene.heal().await;
    }
    scene.judge().await;
}

/// Two halves that see each other only through one node: whoever leads keeps a quorum, and those that hear of it only
/// through another must not disturb it. Then the leader is lost as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_between_two_halves_leaves_a_history_of_a_single_copy() {
    let mut scene = Scene::start(5).await;
    let (leader, others) = scene.leader().await;
    // The leader in one half, a follower as the bridge.
    let (half, bridge, other_half) = ([leader, others[0]], others[1], [others[2], others[3]]);
    scene.links.part(&half, &other_half);
    scene.resumes("a bridge", Instant::now()).await;
    let lost_at = Instant::now();
    scene.cluster.nodes[leader].kill();
    // Only what the bridge is part of is a majority now.
    scene.resumes("a bridge without the leader", lost_at).await;
    let (next, _) = scene.leader().await;
    assert!(next == bridge || other_half.contains(&next), "elected by whom?");
    scene.cluster.nodes[leader].start();
    scene.links.know(&scene.cluster);
    scene.heal().await;
    scene.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_in_the_minority_leaves_a_history_of_a_single_copy() {
    let mut scene = Scene::start(5).await;
    for _ in 0..2 {
        let (leader, others) = scene.leader().await;
        scene.links.part(&[leader, others[0]], &others[1..]);
        scene.resumes("a leader in the minority", Instant::now()).await;
        scene.heal().await;
    }
    scene.judge().await;
}
