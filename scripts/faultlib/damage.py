"""Rows that damage files of stopped nodes: D4 (a minority), D5 (all nodes) and D7 (a wiped disk). No script of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

from cluster import Failure
from faultlib import Row
from faultlib.lab import END_SECONDS_MAX, PEER_PORT, POLL_SECONDS, SMALL_FILES, Unreadable, Violation

BLOCK_BYTES = 4096
ROUND_TRIALS = 15
FILLER_KEYS, FILLER_VALUE_BYTES = 400, 300
START_SECONDS_MAX = 25
# All nodes damaged: by then they serve, or have said why not.
SETTLE_SECONDS_MAX = 12
# What a node says before it ends because of what it found: the exit code of damaged data, and that of a directory it may not use.
HALTS = (4, 2)
TEMPLATES, TRIALS_PER_TEMPLATE = 2, 40
LEADER_SHARE = 0.15
COMMAND_SECONDS_MAX = 60
JOIN_SECONDS_MAX = 60
SECOND_STEP_SECONDS = 0.5


def files_of(data, kind):
    """The files of a kind with anything in them, in order."""
    found = {
        "identity": lambda: [data / "identity"],
        "log": lambda: sorted((data / "log").glob("*.wal")),
        "mark": lambda: [data / "log" / "end"],
        "snapshot": lambda: sorted((data / "snapshots").glob("*.snapshot")),
        "state": lambda: sorted(path for path in (data / "state").rglob("*") if path.is_file()),
    }[kind]()
    return [path for path in found if path.is_file() and path.stat().st_size > 0]


# What can be made anew from the rest.
REBUILT_KINDS = ("state", "snapshot", "mark")
FILE_KINDS = ("identity", "log", "log", "mark", "snapshot", "state")


@contextlib.contextmanager
def rotting(path):
    """The file, to be changed as a disk changes it: without a new time of modification."""
    before = path.stat()
    with open(path, "r+b") as file:
        yield file
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path, random, _earlier, _others):
    at, bit = random.randrange(path.stat().st_size), random.randrange(8)
    with rotting(path) as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))
    return f"bit {bit} of byte {at} flipped"


def zero(path, random, _earlier, _others):
    size = path.stat().st_size
    at = random.randrange(0, size, BLOCK_BYTES)
    with rotting(path) as file:
        file.seek(at)
        file.write(bytes(min(BLOCK_BYTES, size - at)))
    return f"zeros from byte {at}"


def truncate(path, random, _earlier, _others):
    size = path.stat().st_size
    to = random.randrange(size)
    os.truncate(path, to)
    return f"cut from {size} to {to} bytes"


def stale(path, random, earlier, _others):
    if earlier is None or not earlier.is_file() or earlier.read_bytes() == path.read_bytes():
        return None
    # By a tool that keeps times, or by one that does not.
    keeps = random.random() < 0.5
    (shutil.copy2 if keeps else shutil.copyfile)(earlier, path)
    return f"an earlier copy of it put back{', with its time' if keeps else ''}"


def swap(path, random, _earlier, others):
    others = [other for other in others if other != path]
    if not others:
        return None
    other = random.choice(others)
    between = path.with_suffix(".swapped")
    path.rename(between)
    other.rename(path)
    between.rename(other)
    return f"swapped with {other.name}"


def remove(path, random, _earlier, _others):
    path.unlink()
    return "removed"


DAMAGES = (flip, zero, truncate, stale, swap, remove)


def damage(data, earlier, random, damages=DAMAGES):
    """Damages one file of a stopped node in one way; what was done, for people and for counting."""
    while True:
        kind = random.choice(FILE_KINDS)
        paths = files_of(data, kind)
        if not paths:
            continue
        path, how = random.choice(paths), random.choice(damages)
        before = earlier / path.relative_to(data) if earlier else None
        if said := how(path, random, before, paths):
            return f"{path.relative_to(data)}: {said}", kind, how.__name__


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def put_back(node, kept):
    if node.data.exists():
        shutil.rmtree(node.data)
    # In a soak the data lies on a disk of its own.
    shutil.move(kept, node.data)


def fill(lab):
    """Keys that stay as they are, so that there is something in the state to be damaged."""
    for start in range(0, FILLER_KEYS, 100):
        puts = [{"put": {"key": f"filler/{key:06}", "value": os.urandom(FILLER_VALUE_BYTES // 2).hex()}} for key in range(start, start + 100)]
        code, body = lab.asked(lab.leader(), "POST", "/v1/txn", json.dumps({"success": puts}), 10, {"Content-Type": "application/json"})
        if code != 200:
            raise Failure(f"filling was answered {code}: {body[:300]}")


def comes_up(lab, name, done, seconds=START_SECONDS_MAX):
    """Whether a node that was started serves (True), or has ended for a reason that it told."""
    node, deadline = lab.nodes[name], time.monotonic() + seconds
    while time.monotonic() < deadline:
        if lab.is_ready(name):
            return True
        if not node.running():
            return halted(lab, name, done)
        time.sleep(POLL_SECONDS)
    raise Violation(f"{name}, {done}: neither serves nor ends after {seconds} s: {lab.status(name)}: {node.said(800)}")


def halted(lab, name, done):
    """Why a node has ended, in its own words; it must have ended on purpose, with one reason."""
    node = lab.nodes[name]
    code, said = lab.ended(name), node.said_since_start()
    # A thread that is closing its files may log something behind it.
    reasons = [line for line in said.splitlines() if line.startswith("quorate: ")]
    if code not in HALTS or len(reasons) != 1 or "panicked" in said.lower():
        raise Violation(f"{name}, {done}: ended with {code}: {said[-1500:]}")
    return reasons[0]


def same_as(lab, name, other, done):
    """What a node itself holds must be what another holds at its revision."""
    revision = lab.told(name)["revision"]
    deadline = time.monotonic() + 10
    while (status := lab.status(other)) is None or status["revision"] < revision:
        if time.monotonic() > deadline:
            raise Violation(f"{other} does not reach revision {revision} of {name}")
        time.sleep(POLL_SECONDS)
    mine, theirs = lab.scan(name, revision), lab.scan(other, revision)
    if mine != theirs:
        raise Violation(f"{name}, {done}: holds {mine} at revision {revision}, {other} {theirs}")


def one_node(bench):
    """One file of one stopped node, while the others serve; then the node starts."""
    lab = bench.serving()
    fill(lab)
    earlier = {}
    bench.rounds(lab, ROUND_TRIALS, lambda bench, lab: damage_one(bench, lab, earlier), rate=200)


def damage_one(bench, lab, earlier):
    leader = lab.leader()
    name = leader if bench.random.random() < LEADER_SHARE else bench.random.choice([one for one in lab.names() if one != leader])
    node, others = lab.nodes[name], [other for other in lab.names() if other != name]
    killed = bench.random.random() < 0.5
    stopped = time.monotonic()
    (lab.kill if killed else lab.stop)(name)
    if name == leader and killed:
        bench.away(lab, lab.serves_again(stopped, others))
    kept = lab.folder / f"{name}.kept"
    copy(node.data, kept)
    done, kind, how = damage(node.data, earlier.get(name), bench.random)
    # For "an earlier copy": some damages ago.
    if name not in earlier or bench.random.random() < 0.2:
        copy(kept, lab.folder / f"{name}.earlier")
        earlier[name] = lab.folder / f"{name}.earlier"
    started = time.monotonic()
    lab.start(name)
    came = comes_up(lab, name, done)
    at_start = came is not True
    if not at_start:
        came = reads_all(bench, lab, name, others[0], done)
    if came is not True and kind in REBUILT_KINDS:
        # Damage that shows only in use ends the node; its next start, which a supervisor sees to, rebuilds.
        bench.count(started_twice=1)
        lab.start(name)
        if (again := comes_up(lab, name, done)) is not True:
            raise Violation(f"{name}, {done}: ended with \"{came}\", and does not start again: {again}")
        if (again := reads_all(bench, lab, name, others[0], done)) is not True:
            raise Violation(f"{name}, {done}: ended with \"{came}\", and again: {again}")
        came = True
    if came is True:
        bench.back(time.monotonic() - started)
        shutil.rmtree(kept)
        bench.count(served_on=1)
    else:
        refused_again(bench, lab, name, others[0], done, came, at_start)
        # As it was when it was stopped: it has not voted since.
        put_back(node, kept)
        lab.start(name)
        lab.ready(name)
        bench.count(halted_with_reason=1, **{f"halted_{kind}": 1})
    bench.trial(**{kind: 1, how: 1})


def refused_again(bench, lab, name, other, done, why, at_start):
    """A second start must end as the first did: the first may not have made anything that this one takes for sound."""
    # What was met in use is told in other words than at a start, where it may be met now.
    lab.start(name)
    if (again := comes_up(lab, name, done)) is True:
        again = reads_all(bench, lab, name, other, done)
    if again is True or (at_start and again != why):
        raise Violation(f"{name}, {done}: ended with \"{why}\", but when it was started again: {'it serves' if again is True else again}")
    bench.count(refused_twice=1)


def reads_all(bench, lab, name, other, done):
    """Reads all that a node holds, and compares it. True, or the reason for which the node ended meanwhile."""
    try:
        same_as(lab, name, other, done)
    except Unreadable as error:
        if not waits_for_end(lab, name):
            raise Violation(f"{name}, {done}: {error}, and it goes on: {lab.nodes[name].said(1500)}")
        return halted(lab, name, done)
    # What these reads don't meet, old versions above all, a snapshot does: better now than when the node is to be there. And with
    # its snapshots gone as well, the next damaged state could not be rebuilt.
    code, _ = lab.asked(name, "GET", "/v1/snapshot", timeout=START_SECONDS_MAX)
    return halted(lab, name, done) if code != 200 and waits_for_end(lab, name) else True


def waits_for_end(lab, name):
    deadline = time.monotonic() + END_SECONDS_MAX
    while lab.nodes[name].running() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return not lab.nodes[name].running()


def all_nodes(bench):
    """A file of every node, each another one; they serve all that was acknowledged, or halt and say why."""
    while bench.more():
        lab = bench.lab(flags=SMALL_FILES)
        with lab:
            lab.start()
            lab.ready()
            fill(lab)
            with bench.round(lab, rate=400):
                time.sleep(3)
            stop_all(bench, lab)
            kept = {name: lab.folder / f"{name}.kept" for name in lab.names()}
            for name, node in lab.nodes.items():
                copy(node.data, kept[name])
            # Once undamaged, for what is to be found.
            lab.start()
            lab.ready()
            lab.converged()
            revision = lab.told("n1")["revision"]
            expected = revision, lab.scan("n1", revision)
            lab.kill(*lab.names())
            for _ in bench.some(TRIALS_PER_TEMPLATE):
                for name, node in lab.nodes.items():
                    copy(kept[name], node.data)
                damage_all(bench, lab, expected)
        shutil.rmtree(lab.folder, ignore_errors=True)


def stop_all(bench, lab):
    if bench.random.random() < 0.5:
        lab.kill(*lab.names())
    else:
        lab.signal(signal.SIGTERM, *lab.names())
        for name in lab.names():
            lab.ended(name)


def damage_all(bench, lab, expected):
    # An older copy on all nodes is an older cluster: nothing could notice that.
    damages = [one for one in DAMAGES if one is not stale]
    done = {name: damage(node.data, None, bench.random, damages)[0] for name, node in lab.nodes.items()}
    text = "; ".join(f"{name} {what}" for name, what in done.items())
    lab.start()
    halts, deadline = {}, time.monotonic() + SETTLE_SECONDS_MAX
    while time.monotonic() < deadline:
        for name in lab.names():
            if name not in halts and not lab.nodes[name].running():
                halts[name] = halted(lab, name, text)
        up = [name for name in lab.names() if name not in halts]
        if len(up) < 2 or all(lab.is_ready(name) for name in up):
            break
        time.sleep(POLL_SECONDS)
    up = lab.running()
    ready = [name for name in up if lab.is_ready(name)]
    revision, scan = expected
    for name in ready:
        try:
            if (status := lab.told(name))["revision"] < revision:
                raise Violation(f"{text}: {name} serves at revision {status['revision']}, {revision} was acknowledged")
            found = lab.scan(name, revision)
        except Unreadable as error:
            # Damage that shows only in use ends the node.
            if not waits_for_end(lab, name):
                raise Violation(f"{text}: {error}, and it goes on: {lab.nodes[name].said(1500)}")
            halts[name] = halted(lab, name, text)
            continue
        if found != scan:
            raise Violation(f"{text}: {name} holds {found} at revision {revision}, it was {scan}")
    if not ready and len(up) >= 2:
        reasons = {name: (lab.status(name) or {}).get("not_ready_reason") for name in up}
        raise Violation(f"{text}: {up} neither serve nor end after {SETTLE_SECONDS_MAX} s: {reasons}")
    ready = [name for name in ready if name not in halts]
    if len(ready) >= 2:
        try:
            lab.converged(ready)
            bench.result.hashes += 1
        except Violation:
            # Of one that has ended meanwhile nothing can be compared; that it ended for a reason is looked at below.
            if all(lab.nodes[name].running() for name in ready):
                raise
    # Those too that ended behind the last look.
    for name in lab.names():
        if name not in halts and not lab.nodes[name].running():
            halts[name] = halted(lab, name, text)
    lab.kill(*lab.names())
    bench.trial(served=int(bool(ready)), halted=int(not ready), nodes_halted=len(halts), nodes_damaged=len(done))


def wiped(bench):
    """A node comes back with an empty disk under its old name: refused, until it was removed and joins."""
    lab = bench.serving()
    fill(lab)
    bench.rounds(lab, ROUND_TRIALS // 2, wipe_one, rate=200)


def wipe_one(bench, lab):
    name = bench.random.choice(lab.names())
    node, others = lab.nodes[name], [other for other in lab.names() if other != name]
    everybody = bench.random.random() < 0.3
    lab.kill(*(lab.names() if everybody else [name]))
    shutil.rmtree(node.data)
    if everybody:
        # With one of the others, which it would be a majority with if it voted.
        lab.start(name, others[0])
        time.sleep(2.5)
        for one in lab.running():
            if lab.put(one, "probe/double-vote", b"x"):
                raise Violation(f"{name}, wiped, and {others[0]} took a write without the third node")
        lab.start(others[1])
        lab.ready(*others)
    else:
        lab.start(name)
    code, said = lab.ended(name, START_SECONDS_MAX), node.said_since_start()
    if code != 2 or "its directory is empty: its votes and log are lost" not in said:
        raise Violation(f"{name}, wiped, was not refused: {code}: {said[-800:]}")
    lab.serves_again(time.monotonic(), others)
    shutil.rmtree(node.data, ignore_errors=True)
    out_of_the_way(lab, name, others)
    node.joins = ["--join", ",".join(f"{lab.nodes[other].address}:{PEER_PORT}" for other in others)]
    lab.start(name)
    bench.back(lab.ready(name))
    becomes_voter(lab, name, others)
    bench.trial(all_were_down=int(everybody))


def command(lab, names, *words):
    """A command of the binary at some nodes; it must succeed."""
    whole = [str(lab.binary), *words, "--endpoint", ",".join(lab.urls(names)), "--timeout", "20s"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Violation(f"quorate {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def out_of_the_way(lab, name, others):
    """Removes a member whose directory is gone. It is out once it has heard so, or was given time to."""
    command(lab, others, "member", "remove", name)
    wait_for_member(lab, others, f"{name} is still a member", lambda members: name not in members)


def becomes_voter(lab, name, others):
    wait_for_member(lab, others, f"{name} does not vote", lambda members: members.get(name) == "voter")
    # It is told as a voter from the first step of the change on; until the second, the others are needed as before.
    time.sleep(SECOND_STEP_SECONDS)


def wait_for_member(lab, others, what, holds):
    deadline, members = time.monotonic() + JOIN_SECONDS_MAX, {}
    while time.monotonic() < deadline:
        code, body = lab.asked(others[0], "GET", "/v1/cluster")
        if code == 200:
            members = {member["name"]: member["role"] for member in json.loads(body)["members"]}
            if holds(members):
                return
        time.sleep(POLL_SECONDS)
    raise Violation(f"{what} after {JOIN_SECONDS_MAX} s: {members}")


ROWS = [
    Row("D4", "one file of one stopped node: bit flip, 4 KiB of zeros, cut, earlier copy, swapped, removed", one_node, (12, 25), (1000, 5400), "damages"),
    Row("D5", "the same on all nodes, another file on each", all_nodes, (6, 25), (200, 3600), "clusters damaged"),
    Row("D7", "a wiped disk under the same name", wiped, (2, 20), (50, 1800), "wiped disks"),
]
