"""The row in which clocks are wrong: C1. No script of its own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cluster import Failure
from faultlib import Row
from faultlib.disks import shimmed_lab
from faultlib.lab import POLL_SECONDS

JUMP_SECONDS_MAX = 3600
# A round: so many jumps, so far apart; then the clock of one node runs at twice its speed for as long.
JUMPS, BETWEEN_SECONDS = 8, 0.6
# How far the monotonic clocks of nodes lie apart, as of machines that were booted at other times; all ahead, so that it works soon after a boot.
MONOTONIC_SECONDS = (0, 86_400, 10_000_000)
COMMAND_SECONDS_MAX = 10
# Only a child gets the clock; it goes with its parent, a moment later.
NAMESPACE = ("unshare", "-T", "--fork", "--kill-child", "--monotonic")
GONE_SECONDS = 0.3
# By then a node has looked at its wall clock, of which writes and lines of its log are enough.
LOOKS_SECONDS_MAX = 10.0


def wrong_clocks(bench):
    """Wall clocks jump by up to an hour, each node's on its own, one runs twice as fast, and monotonic ones are far apart."""
    lab, shims = shimmed_lab(bench)
    apart = time_namespaces(bench)
    for node, seconds in zip(lab.nodes.values(), MONOTONIC_SECONDS):
        node.prefix = [*NAMESPACE, str(seconds)] if apart else []
    lab.start()
    lab.ready()
    for node in lab.nodes.values() if apart else ():
        has_own_clock(node)
    while bench.more():
        with bench.round(lab):
            term = lab.told(lab.leader())["term"]
            for _ in bench.some(JUMPS):
                jump(bench, lab, shims)
            fast = bench.random.choice(lab.names())
            began, before = time.monotonic(), shims[fast].get("clock_offset_s")
            while (ran := time.monotonic() - began) < JUMPS * BETWEEN_SECONDS / 2:
                shims[fast].set(clock_offset_s=before + int(ran))
                time.sleep(0.1)
            reads_wrong_clock(lab, shims, fast)
            bench.away(lab, lab.serves_again(time.monotonic()))
            bench.count(elections=lab.told(lab.leader())["term"] - term, drifts=1)
            # A node that starts while its clock is wrong.
            name = bench.random.choice(lab.names())
            lab.kill(name)
            time.sleep(GONE_SECONDS)
            lab.start(name)
            bench.back(lab.ready())
            for shim in shims.values():
                shim.set(clock_offset_s=0)


def jump(bench, lab, shims):
    """The wall clock of one node goes elsewhere at once."""
    name = bench.random.choice(lab.names())
    shims[name].set(clock_offset_s=bench.random.randint(1, JUMP_SECONDS_MAX) * bench.random.choice((-1, 1)))
    time.sleep(BETWEEN_SECONDS)
    reads_wrong_clock(lab, shims, name)
    bench.trial(jumps=1)


def reads_wrong_clock(lab, shims, name):
    """Waits until a node has read the wall clock that is wrong; without that nothing was tried."""
    before, deadline = shims[name].get("clock_reads"), time.monotonic() + LOOKS_SECONDS_MAX
    while shims[name].get("clock_reads") == before:
        if time.monotonic() > deadline:
            raise Failure(f"{name} did not read the wrong wall clock within {LOOKS_SECONDS_MAX} s: was the shim loaded? {lab.nodes[name].said(300)}")
        time.sleep(POLL_SECONDS)


def has_own_clock(node):
    """The node below unshare must have a time namespace that is not this script's."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    ours = os.readlink("/proc/self/ns/time")
    if not children or any(os.readlink(f"/proc/{child}/ns/time") == ours for child in children):
        raise Failure(f"{node.name} was to have a monotonic clock of its own, and has not")


def time_namespaces(bench):
    """Whether nodes can be given monotonic clocks of their own."""
    reason = "needs unshare (Debian: util-linux)"
    if os.geteuid() != 0:
        reason = "needs root"
    elif shutil.which("unshare"):
        looks = [sys.executable, "-c", "import time; print(time.monotonic())"]
        done = subprocess.run([*NAMESPACE, "1000000000", *looks], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
        if done.returncode == 0 and float(done.stdout) > 1e9:
            return True
        reason = "no time namespaces"
    bench.skip("monotonic clocks apart", reason)
    return False


ROWS = [
    Row("C1", "wall clocks jump up to ±1 h, one runs twice as fast, monotonic clocks 116 days apart", wrong_clocks, (8, 15), (240, 1800), "jumps"),
]
