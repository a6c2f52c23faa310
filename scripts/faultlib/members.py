"""The row in which members come and go: M1. No script of its own."""

import json
import shutil
import subprocess
import time

from faultlib import Row
from faultlib.damage import COMMAND_SECONDS_MAX
from faultlib.lab import PEER_PORT, POLL_SECONDS, SMALL_FILES, Violation

POOL, FIRST, LEAST = 5, 3, 3
ROUND_TRIALS = 10
SETTLED_SECONDS_MAX = 60
TRIES_MAX, TRY_PAUSE_SECONDS = 40, 0.5


class Group:
    """Who is a member, and changes of that."""

    def __init__(self, bench, lab):
        self.bench, self.lab = bench, lab

    def members(self):
        """The members by name, as the leader sees them."""
        deadline = time.monotonic() + SETTLED_SECONDS_MAX
        while time.monotonic() < deadline:
            for name in self.lab.running():
                code, body = self.lab.asked(name, "GET", "/v1/cluster")
                if code == 200 and (told := json.loads(body)).get("view") != "local":
                    return {member["name"]: member for member in told["members"]}
            time.sleep(POLL_SECONDS)
        raise Violation(f"no leader tells who is a member within {SETTLED_SECONDS_MAX} s")

    def command(self, *words):
        """A command; refused or unknown is tried again, as an operator would. Whether it was done."""
        for _ in range(TRIES_MAX):
            urls = ",".join(self.lab.urls(self.lab.running()))
            done = subprocess.run([str(self.lab.binary), *words, "--endpoint", urls, "--timeout", "10s"], capture_output=True, text=True,
                                  timeout=COMMAND_SECONDS_MAX, stdin=subprocess.DEVNULL)
            if done.returncode == 0 or "there is no member" in done.stderr:
                return
            if done.returncode not in (1, 3):
                raise Violation(f"quorate {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
            self.bench.count(tried_again=1)
            time.sleep(TRY_PAUSE_SECONDS)
        raise Violation(f"quorate {' '.join(words)} was refused {TRIES_MAX} times, last: {done.stderr.strip()}")

    def join(self, name, replaces=None):
        node = self.lab.nodes[name]
        shutil.rmtree(node.data, ignore_errors=True)
        peers = [one for one in self.members() if one != name]
        node.joins = ["--join", ",".join(f"{self.lab.nodes[peer].address}:{PEER_PORT}" for peer in peers)]
        node.joins += ["--replaces", replaces] if replaces else []
        self.lab.start(name)

    def settled(self, wanted):
        """Waits until exactly these are voters; one that ended is started again, as a supervisor would."""
        deadline = time.monotonic() + SETTLED_SECONDS_MAX
        while time.monotonic() < deadline:
            for name in wanted:
                if not self.lab.nodes[name].running():
                    raise Violation(f"{name}, a member, has ended: {self.lab.nodes[name].said(1200)}")
            found = self.members()
            if set(found) == set(wanted) and all(member["role"] == "voter" for member in found.values()):
                return
            time.sleep(POLL_SECONDS)
        raise Violation(f"not the members {sorted(wanted)} within {SETTLED_SECONDS_MAX} s: {found}")

    def gone(self, name):
        self.lab.kill(name)
        shutil.rmtree(self.lab.nodes[name].data, ignore_errors=True)


def changes(bench):
    """Members are added, removed and replaced at random under load, and nodes are killed in the middle."""
    lab = bench.lab(POOL, flags=SMALL_FILES)
    lab.first = lab.names()[:FIRST]
    lab.start(*lab.first)
    lab.ready(*lab.first)
    group = Group(bench, lab)
    while bench.more():
        with bench.round(lab, rate=200):
            for _ in bench.some(ROUND_TRIALS):
                change(bench, lab, group)
            # The round ends with all of them, so that all can be compared.
            for name in lab.names():
                if name not in (members := group.members()):
                    group.join(name)
                    group.settled({*members, name})


def change(bench, lab, group):
    members = set(group.members())
    away = [name for name in lab.names() if name not in members]
    kinds = (["add", "replace"] if away else []) + (["remove"] if len(members) > LEAST else [])
    kind = bench.random.choice(kinds)
    old = bench.random.choice(sorted(members))
    new = bench.random.choice(away) if away else None
    began = time.monotonic()
    if kind == "add":
        group.join(new)
        wanted = {*members, new}
    elif kind == "replace":
        group.join(new, replaces=old)
        wanted = {*members, new} - {old}
    else:
        wanted = members - {old}
    killed = None
    if bench.random.random() < 0.5:
        # In the middle of it. Not the one that goes: it could not come back.
        killed = bench.random.choice(sorted(wanted & members))
        if kind == "remove":
            started = subprocess.Popen([str(lab.binary), "member", "remove", old, "--endpoint", ",".join(lab.urls(sorted(members))), "--timeout", "10s"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        time.sleep(bench.random.uniform(0, 0.3))
        lab.kill(killed)
        time.sleep(bench.random.uniform(0, 0.5))
        lab.start(killed)
        if kind == "remove":
            started.wait(COMMAND_SECONDS_MAX)
    if kind == "remove":
        group.command("member", "remove", old)
    group.settled(wanted)
    if old in members - wanted:
        group.gone(old)
    lab.ready(*wanted)
    bench.back(time.monotonic() - began)
    bench.trial(**{kind: 1, "killed": int(killed is not None)})


ROWS = [
    Row("M1", "members added, removed and replaced at random, nodes killed in the middle", changes, (4, 20), (200, 3600), "changes"),
]
