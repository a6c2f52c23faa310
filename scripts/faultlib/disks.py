"""Rows in which disks fail, fill up and dawdle: D2, D3 and D6. No script of its own."""

import contextlib
import errno
import os
import re
import time

from cluster import Failure, load as bench_load
from faultlib import Row, Skip, power
from faultlib.damage import HALTS, comes_up
from faultlib.lab import POLL_SECONDS, SMALL_FILES, Violation
from faultlib.shim import Shim

ROUND_TRIALS = 12
# Which call fails: as many as come within a second or two, at a start and under load.
POINTS = {"write": 60, "sync": 40, "create": 4, "name": 6, "length": 6, "read": 30}
REACHED_SECONDS_MAX, ENDS_SECONDS_MAX = 3.0, 8.0
# A node must not go on behind these.
FATAL_KINDS = ("write", "sync", "length")
SMALL_DISK_BYTES, BALLAST_STEP = 48 << 20, 1 << 20
FULL_SECONDS_MAX = 20
LAST_SECONDS_MAX = 2.0
# What the log of a full disk is filled with.
LARGE_VALUE_BYTES = 256 << 10
# What mount says of an option that the kernel does not have.
ABORT_UNKNOWN = re.compile(r"bad option|[Uu]nknown|[Ii]nvalid argument|not supported")
SLOW_SYNC_US, SLOW_SECONDS, SLOW_CLIENTS = 30_000, 5, 16
# The slow disk of a follower: put p99 no more than this times what it was, and what a busy machine makes of it.
SLOW_FACTOR_MAX, SLOW_SLACK_MS = 2.0, 25.0


def shimmed_lab(bench, **options):
    """A cluster whose nodes run with the shim."""
    library = bench.tools.shim()
    lab, shims = bench.lab(flags=SMALL_FILES, **options), {}
    for name, node in lab.nodes.items():
        shims[name] = Shim(library, lab.folder / f"{name}.control", node.data)
        bench.stack.callback(shims[name].close)
        node.env = shims[name].env()
    return lab, shims


def failing_calls(bench):
    """EIO or ENOSPC at the n-th call of a kind, once or from then on, under load and at a start."""
    lab, shims = shimmed_lab(bench)
    lab.start()
    lab.ready()
    tried = 0
    while bench.more():
        with bench.round(lab, rate=300):
            for _ in range(ROUND_TRIALS):
                if bench.more():
                    tried += 1
                    fail_one(bench, lab, shims)
    bench.note(f"{tried} points were set, {bench.result.trials} of them reached")


def fail_one(bench, lab, shims):
    name, kind = bench.random.choice(lab.names()), bench.random.choice(list(POINTS))
    forever, at_start = bench.random.random() < 0.5, bench.random.random() < 0.3
    at, number = bench.random.randint(1, POINTS[kind]), bench.random.choice((errno.EIO, errno.EIO, errno.ENOSPC))
    node, shim = lab.nodes[name], shims[name]
    done = f"{errno.errorcode[number]} at {kind} {at}, {'for ever' if forever else 'once'}{', at its start' if at_start else ''}"
    if at_start:
        lab.kill(name)
        shim.fail(kind, at, forever, number)
        lab.start(name)
    else:
        shim.fail(kind, at, forever, number)
    reached = waits_for(lambda: shim.get("failed") > 0 or not node.running(), REACHED_SECONDS_MAX)
    if not reached or shim.get("failed") == 0:
        shim.heal()
        lab.ready(name)
        return
    ended = waits_for(lambda: not node.running(), ENDS_SECONDS_MAX if must_end(node, kind) else 1.0)
    if ended:
        code, said = lab.ended(name), node.said_since_start()
        if code not in HALTS or "panicked" in said:
            raise Violation(f"{name}, {done}: ended with {code}: {said[-1500:]}")
    elif must_end(node, kind):
        raise Violation(f"{name}, {done}: goes on although its log could not be written: {node.said(1500)}")
    shim.heal()
    if ended:
        lab.start(name)
    healed = time.monotonic()
    if comes_up(lab, name, done) is not True:
        raise Violation(f"{name}, {done}: does not start again once the disk works: {node.said(800)}")
    bench.back(time.monotonic() - healed)
    bench.trial(**{kind: 1, "once": int(not forever), "for_ever": int(forever), "at_start": int(at_start),
                   "ended": int(ended), "went_on": int(not ended)})


def must_end(node, kind):
    """Whether the call that failed was one that the log hangs on."""
    lines = [line for line in node.said_since_start().splitlines() if line.startswith("shim: failed: ")]
    return kind in FATAL_KINDS and bool(lines) and "/log/" in lines[-1]


def waits_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS / 5)
    return True


def full_disks(bench):
    """No room: of one node and of all, a quota, and a file system that goes read-only."""
    kinds = [full_small_disk, over_quota, read_only]
    turn = 0
    while bench.more():
        kind = kinds[turn % len(kinds)]
        try:
            kind(bench)
            turn += 1
        except Skip as reason:
            # The others need other things; what is done then counts in part.
            bench.skip(kind.__name__.replace("_", " "), reason)
            kinds.remove(kind)
            if not kinds:
                raise Skip("; ".join(bench.result.skipped))


@contextlib.contextmanager
def on_small_disks(bench):
    """A cluster that serves, each node on a small disk of its own; the disks by node."""
    power.need("ext4")
    lab = bench.lab(flags=SMALL_FILES)
    with contextlib.ExitStack() as stack:
        disks = power.disks_for(stack, lab, "ext4", SMALL_DISK_BYTES)
        lab.start()
        lab.ready()
        yield lab, disks


def full_small_disk(bench):
    """The disk of one node, or of all, fills up; room comes back; everything goes on."""
    with on_small_disks(bench) as (lab, disks):
        everybody = bench.random.random() < 0.5
        names = lab.names() if everybody else [bench.random.choice(lab.names())]
        with bench.round(lab, rate=200):
            others = [name for name in lab.names() if name not in names]
            for name in names:
                ballast(disks[name].folder / "ballast")
            full = time.monotonic()
            # Large values, so that it does not take long; those that are refused are refused.
            while any(lab.nodes[name].running() for name in names) and time.monotonic() - full < FULL_SECONDS_MAX:
                lab.asked(bench.random.choice(lab.names()), "PUT", f"/v1/kv/large/{time.monotonic_ns()}", os.urandom(LARGE_VALUE_BYTES), 2)
                # The last one of three has no quorum, and nothing to write.
                if everybody and len(lab.running()) <= 1:
                    break
            # The last one may be about to end as well.
            waits_for(lambda: not lab.running(), LAST_SECONDS_MAX if everybody else 0)
            ended = [name for name in names if not lab.nodes[name].running()]
            for name in ended:
                if (code := lab.ended(name)) not in HALTS or "panicked" in lab.nodes[name].said_since_start():
                    raise Violation(f"{name}, disk full: ended with {code}: {lab.nodes[name].said(1200)}")
            if len(ended) < len(names) - int(everybody):
                raise Violation(f"{set(names) - set(ended)} go on {FULL_SECONDS_MAX} s with a full disk: how?")
            if others:
                bench.away(lab, lab.serves_again(time.monotonic(), others))
            for name in names:
                (disks[name].folder / "ballast").unlink()
            lab.start(*ended)
            bench.back(lab.ready())
    bench.trial(full_disks=len(names), full_all=int(everybody))


def ballast(path):
    """Takes all the room but a megabyte."""
    with open(path, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(os.urandom(BALLAST_STEP))
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size - BALLAST_STEP))


def over_quota(bench):
    """EDQUOT for every write, creation and change of length of a node, for a while."""
    lab, shims = shimmed_lab(bench)
    with lab:
        lab.start()
        lab.ready()
        with bench.round(lab, rate=200):
            name = bench.random.choice(lab.names())
            shims[name].fail("write", 1, True, errno.EDQUOT)
            ended_for_its_disk(lab, name, "EDQUOT")
            others = [other for other in lab.names() if other != name]
            bench.away(lab, lab.serves_again(time.monotonic(), others))
            shims[name].heal()
            lab.start(name)
            bench.back(lab.ready())
    bench.trial(quotas=1)


def read_only(bench):
    """ext4 aborts its journal and goes read-only under a node, as it does after an error."""
    with on_small_disks(bench) as (lab, disks):
        with bench.round(lab, rate=200):
            name = bench.random.choice(lab.names())
            try:
                disks[name].remount("abort")
            except Failure as failure:
                if not ABORT_UNKNOWN.search(str(failure)):
                    raise
                raise Skip(f"ext4 does not take remount,abort here: {failure}")
            ended_for_its_disk(lab, name, "read-only")
            others = [other for other in lab.names() if other != name]
            bench.away(lab, lab.serves_again(time.monotonic(), others))
            disks[name].power_comes_back()
            lab.start(name)
            bench.back(lab.ready())
    bench.trial(read_only=1)


def ended_for_its_disk(lab, name, done):
    code, said = lab.ended(name), lab.nodes[name].said_since_start()
    if code not in HALTS or "panicked" in said:
        raise Violation(f"{name}, {done}: ended with {code} (None: it goes on): {said[-1500:]}")


def slow_disks(bench):
    """Syncs that take 30 ms more, on a follower and on the leader."""
    lab, shims = shimmed_lab(bench)
    lab.start()
    lab.ready()
    while bench.more():
        with bench.round(lab, rate=100):
            leader = lab.leader()
            quiet = put_p99(bench, lab)
            for who, name in (("follower", bench.random.choice(lab.followers())), ("leader", leader)):
                if not bench.more():
                    break
                with slowed(lab, shims, name, SLOW_SYNC_US) as syncs:
                    slow = put_p99(bench, lab)
                bench.count(slow_syncs=syncs[0])
                if who == "leader" and lab.leader() == leader and slow * 1000 < SLOW_SYNC_US:
                    raise Violation(f"put p99 is {slow:.0f} ms at a leader whose syncs take {SLOW_SYNC_US // 1000} ms more: it does not wait for them")
                bench.note(f"{who} slow: put p99 {slow:.0f} ms, before {quiet:.0f} ms{', it handed over' if lab.leader() != leader else ''}")
                if who == "follower" and slow > SLOW_FACTOR_MAX * quiet + SLOW_SLACK_MS:
                    raise Violation(f"a follower whose syncs take {SLOW_SYNC_US // 1000} ms more makes put p99 {slow:.0f} ms, {quiet:.0f} ms before")
                bench.trial(**{who: 1})


@contextlib.contextmanager
def slowed(lab, shims, name, microseconds):
    """Syncs of a node take longer meanwhile. How many did is in what is given, in the end; none is a failure."""
    shim, syncs = shims[name], [0]
    before, calls = shim.get("slowed"), shim.get("calls/sync")
    shim.set(sync_delay_us=microseconds)
    try:
        yield syncs
    finally:
        shim.set(sync_delay_us=0)
    syncs[0] = shim.get("slowed") - before
    if syncs[0] == 0 or shim.get("calls/sync") == calls:
        raise Failure(f"no sync of {name} was slowed down: was the shim loaded? {lab.nodes[name].said(300)}")


def put_p99(bench, lab):
    # Not to be called slow are writes through the slow node itself.
    seconds = 2 if bench.options.short else SLOW_SECONDS
    command = [bench.binary, "bench", "put", "--clients", SLOW_CLIENTS, "--duration", f"{seconds}s", "--keys", 1000,
               "--value-size", 128, "--output", "json", "--endpoint", lab.nodes[lab.leader()].url]
    return bench_load(command, seconds)["p99_ms"]


ROWS = [
    Row("D2", "EIO or ENOSPC at the n-th write, sync, creation, rename, length or read; once and for ever; under load and at a start", failing_calls, (8, 20), (200, 3600), "points reached"),
    Row("D3", "disk full (one, all), quota, read-only", full_disks, (3, 25), (30, 1800), "full disks"),
    Row("D6", "a disk whose syncs take 30 ms more, of follower and leader", slow_disks, (2, 15), (10, 600), "slow disks"),
]
