"""Rows that break the network between nodes: N1 to N3. No script of its own.

N1 and N2 filter in network namespaces what comes in from other nodes, so that clients still reach every node; N3 and the
delays of N2 are made by proxies (links.py).
"""

import os
import shutil
import subprocess
import time

from cluster import Failure
from faultlib import NAMESPACES, Row, Skip
from faultlib.lab import PEER_PORT, SMALL_FILES
from links import Links, caller_by_process
from spaces import Spaces, free_network, let_go

FIVE = 5
PROXY_PORT = 7500
ROUND_TRIALS = 6
# How long a partition lasts, and a bad network.
PARTED_SECONDS, BAD_SECONDS = (1.5, 5.0), 6
SHORT_PARTED_SECONDS, SHORT_BAD_SECONDS = (1.5, 2.5), 3
LOSSES = (1, 10, 30)
RATE_BYTES = 64
SMALL_MTU = 600
DELAYS_MS = (5, 50, 250)


def need_spaces():
    if os.geteuid() != 0:
        raise Skip("needs root, for network namespaces")
    for tool, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if not shutil.which(tool):
            raise Skip(f"needs {tool} (Debian: apt-get install {package})")


def spaced_lab(bench, count):
    """A cluster with a namespace for each node."""
    need_spaces()
    names = [f"n{number}" for number in range(1, count + 1)]
    try:
        # Runs at the same time differ.
        network, lock = free_network([f"10.231.{2 + (os.getpid() + at) % 250}" for at in range(250)])
        bench.stack.callback(let_go, lock)
        spaces = Spaces(names, network, NAMESPACES)
    except Failure as failure:
        raise Skip(str(failure))
    bench.stack.callback(spaces.close)
    lab = bench.lab(count, flags=SMALL_FILES, addresses=list(spaces.addresses.values()))
    for name, node in lab.nodes.items():
        node.prefix = spaces.inside(name)
    lab.start()
    lab.ready()
    return lab, spaces


def from_node(spaces, name):
    return f"ip saddr {spaces.addresses[name]}"


class Cuts:
    """Directed cuts between nodes; `calls_only` leaves the answers to the other one's calls through."""

    def __init__(self, spaces):
        self.spaces, self.rules = spaces, {}

    def cut(self, one, other, calls_only=False):
        port = f" tcp dport {PEER_PORT}" if calls_only else ""
        self.rules.setdefault(other, []).append(f"{from_node(self.spaces, one)}{port} drop")

    def part(self, one_side, other_side):
        for one in one_side:
            for other in other_side:
                self.cut(one, other)
                self.cut(other, one)

    def apply(self):
        for name in self.spaces.spaces:
            self.spaces.filter(name, self.rules.get(name, []))

    def heal(self):
        self.rules = {}
        self.apply()


def leader_alone(bench, cuts, names, leader):
    others = [name for name in names if name != leader]
    cuts.part([leader], others)
    return others


def halves(bench, cuts, names, leader):
    few = bench.random.sample(names, len(names) // 2)
    many = [name for name in names if name not in few]
    cuts.part(few, many)
    return many


def leader_hears_nobody(bench, cuts, names, leader):
    others = [name for name in names if name != leader]
    for other in others:
        cuts.cut(other, leader, calls_only=bench.random.random() < 0.5)
    # Where enough of them still answer its calls it goes on leading, rightly, and then it alone may serve.
    return names


def leader_reaches_nobody(bench, cuts, names, leader):
    others = [name for name in names if name != leader]
    for other in others:
        cuts.cut(leader, other, calls_only=True)
    return others


def ring(bench, cuts, names, leader):
    """Each sees its two neighbours only."""
    order = bench.random.sample(names, len(names))
    for at, one in enumerate(order):
        for distance in range(2, len(order) - 1):
            cuts.cut(one, order[(at + distance) % len(order)])
    return names


def bridge(bench, cuts, names, leader):
    """Two halves that see each other through one node only."""
    order = bench.random.sample(names, len(names))
    middle, half = order[0], len(order) // 2
    cuts.part(order[1:1 + half], order[1 + half:])
    return [middle, *order[1:1 + half]]


def one_way_at_random(bench, cuts, names, leader):
    """Some directed ways are gone; a majority around the leader stays whole."""
    followers = [name for name in names if name != leader]
    spared = {leader, *bench.random.sample(followers, len(names) // 2)}
    for one in names:
        for other in names:
            if one != other and not {one, other} <= spared and bench.random.random() < 0.5:
                cuts.cut(one, other, calls_only=bench.random.random() < 0.5)
    return sorted(spared)


PARTITIONS = (leader_alone, halves, leader_hears_nobody, leader_reaches_nobody, ring, bridge, one_way_at_random)
# With three nodes each sees its neighbours anyway.
PARTITIONS_OF_THREE = tuple(one for one in PARTITIONS if one is not ring)


def partitions(bench):
    """Partitions of three and of five nodes."""
    # The long setting has as many of five as of three.
    for nodes, kinds in ((FIVE, PARTITIONS), (3, PARTITIONS_OF_THREE)):
        partitions_of(bench, nodes, kinds)


def partitions_of(bench, nodes, kinds):
    goal = bench.goal if nodes == 3 else bench.goal // 2
    until = bench.time_left() if nodes == 3 else bench.time_left() / 2
    began = time.monotonic()
    if bench.result.trials >= goal:
        return
    lab, spaces = spaced_lab(bench, nodes)
    try:
        cuts, turn = Cuts(spaces), 0
        cuts.apply()
        while bench.result.trials < goal and time.monotonic() - began < until:
            with bench.round(lab):
                for _ in bench.some(ROUND_TRIALS):
                    if bench.result.trials >= goal:
                        break
                    part(bench, lab, cuts, kinds[turn % len(kinds)], nodes)
                    turn += 1
    finally:
        lab.kill(*lab.names())
        spaces.close()


def part(bench, lab, cuts, kind, nodes):
    leader = lab.leader()
    connected = kind(bench, cuts, lab.names(), leader)
    cuts.apply()
    parted = time.monotonic()
    try:
        # What can write must, in time; where the ways are odd, anyone of those may.
        bench.away(lab, lab.serves_again(parted, connected))
        low, high = SHORT_PARTED_SECONDS if bench.options.short else PARTED_SECONDS
        time.sleep(max(0, parted + bench.random.uniform(low, high) - time.monotonic()))
    finally:
        cuts.heal()
    healed = time.monotonic()
    lab.ready()
    bench.back(time.monotonic() - healed)
    bench.trial(**{kind.__name__: 1, f"of_{nodes}": 1})


def loss(percent):
    def apply(bench, spaces, lab):
        for name in lab.names():
            # Of what other nodes send, not of what clients do.
            spaces.filter(name, [f"{from_node(spaces, other)} numgen random mod 100 < {percent} drop"
                                 for other in lab.names() if other != name])
    apply.__name__ = f"loss_{percent}_percent"
    return apply


def resets(bench, spaces, lab):
    for name in lab.names():
        spaces.filter(name, [f"{from_node(spaces, other)} meta l4proto tcp numgen random mod 1000 < 3 reject with tcp reset"
                             for other in lab.names() if other != name])


def slow_ways(bench, spaces, lab):
    for name in lab.names():
        spaces.filter(name, [f"{from_node(spaces, other)} limit rate over {RATE_BYTES} kbytes/second burst 64 kbytes drop"
                             for other in lab.names() if other != name])


def small_packets(bench, spaces, lab):
    for name in lab.names():
        spaces.ip(name, "link", "set", spaces.devices[name], "mtu", str(SMALL_MTU))


def narrow_ways(bench, spaces, lab):
    """A token bucket in front of the leader's way out: bytes wait, they are not lost."""
    spaces.tc(lab.leader(), "replace", "tbf", "rate", "2mbit", "burst", "16kb", "latency", "400ms")


def heal_network(spaces, lab):
    for name in lab.names():
        spaces.filter(name, [])
        spaces.ip(name, "link", "set", spaces.devices[name], "mtu", "1500")
        try:
            spaces.tc(name, "del")
        except (OSError, subprocess.SubprocessError):
            # There was none.
            pass


BAD_NETWORKS = (*(loss(percent) for percent in LOSSES), resets, slow_ways, small_packets, narrow_ways)


def bad_network(bench):
    """Loss, resets, rate limits, small packets in namespaces; delays through proxies."""
    seconds = SHORT_BAD_SECONDS if bench.options.short else BAD_SECONDS
    bench.note("reordering and duplicates below TCP are no part of it: to nodes, which speak TCP, they look like delays")
    lab, spaces = spaced_lab(bench, 3)
    turn = 0
    while bench.more():
        if turn % (len(BAD_NETWORKS) + 1) == len(BAD_NETWORKS):
            delayed(bench, seconds)
            turn += 1
            continue
        with bench.round(lab, deadline_ms=2000):
            kind = BAD_NETWORKS[turn % len(BAD_NETWORKS)]
            turn += 1
            term = lab.told(lab.leader())["term"]
            kind(bench, spaces, lab)
            try:
                time.sleep(seconds)
                if kind.__name__ == "loss_10_percent":
                    bench.count(elections_at_10_percent=lab.told(lab.leader())["term"] - term)
            finally:
                heal_network(spaces, lab)
            healed = time.monotonic()
            lab.ready()
            bench.back(time.monotonic() - healed)
        bench.trial(**{kind.__name__: 1})


def proxied_lab(bench, delay_seconds=0.0, jitter_seconds=0.0, rtt_ms=None):
    """A cluster whose members reach each other through a proxy in front of each."""
    lab = bench.lab(flags=[*SMALL_FILES, *(["--rtt", f"{rtt_ms}ms"] if rtt_ms else [])])
    delays = {(one, other): delay_seconds for one in lab.names() for other in lab.names()}
    links = Links(delays, jitter_seconds)
    bench.stack.callback(links.close)
    caller_of = caller_by_process(lambda: {node.pid: name for name, node in lab.nodes.items() if node.running()})
    for name, node in lab.nodes.items():
        node.advertised = (node.address, PROXY_PORT)
        links.serve(node.advertised, (node.address, PEER_PORT), name, caller_of)
    lab.start()
    lab.ready()
    return lab, links


def delayed(bench, seconds):
    delay = bench.random.choice(DELAYS_MS)
    lab, links = proxied_lab(bench, delay / 1000, delay / 2000, rtt_ms=max(10, 3 * delay))
    try:
        with bench.round(lab, deadline_ms=5000):
            time.sleep(2 * seconds)
        bench.trial(**{f"delay_{delay}_ms": 1})
    finally:
        lab.kill(*lab.names())


def swizzle(bench):
    """Links are stopped one by one and released in another order, again and again."""
    lab, links = proxied_lab(bench)
    pairs = [(one, other) for one in lab.names() for other in lab.names() if one != other]
    while bench.more():
        with bench.round(lab):
            for _ in bench.some(ROUND_TRIALS):
                for one, other in bench.random.sample(pairs, len(pairs)):
                    links.cut(one, other)
                    time.sleep(bench.random.uniform(0.02, 0.4))
                for one, other in bench.random.sample(pairs, len(pairs)):
                    links.mend(one, other)
                    time.sleep(bench.random.uniform(0.02, 0.4))
                healed = time.monotonic()
                bench.away(lab, lab.serves_again(healed))
                lab.ready()
                bench.back(time.monotonic() - healed)
                bench.trial(links_stopped=len(pairs))


ROWS = [
    Row("N1", "partitions in network namespaces: leader alone, halves, one way, ring, bridge; 3 and 5 nodes", partitions, (7, 30), (140, 3600), "partitions"),
    Row("N2", "loss 1, 10, 30 %, resets, 64 kB/s, MTU 600, 2 Mbit/s, delays 5–250 ms", bad_network, (4, 25), (80, 3600), "bad networks"),
    Row("N3", "swizzle-clog: links stopped one by one, released in another order", swizzle, (3, 15), (60, 1800), "swizzles"),
]
