"""The row in which a node is killed, or stands still, at a chosen call to its disk: P3. No script of its own.

The points are those that a program has anyway: each kind of call in each part of the data directory, before and behind it, in each
course that a node takes. So the binary is the one that is shipped, and what lies between two calls to the disk, which only other
processes can see through messages, is left to P1, P2 and the simulation.
"""

import shutil
import signal
import time

from faultlib import Row
from faultlib.damage import START_SECONDS_MAX, becomes_voter, comes_up, out_of_the_way
from faultlib.disks import shimmed_lab, waits_for
from faultlib.lab import PEER_PORT, Violation

ROUND_TRIALS = 12
# How many calls come within seconds, by part of the directory and kind of call; those that never come are left out.
CALLS = {
    "log": {"write": 40, "sync": 40, "create": 2, "name": 2, "length": 2},
    "state": {"write": 30, "sync": 10, "create": 4, "name": 3, "length": 2},
    "snapshots": {"write": 6, "sync": 2, "create": 2, "name": 3, "length": 1},
    "else": {"write": 2, "sync": 3, "create": 2, "name": 2, "length": 1},
}
# Under load; at a start; an empty node that is taken in anew, which gets a snapshot. By what each of them touches.
COURSES = {"load": ("log", "state", "snapshots"), "start": ("log", "state", "else"), "joining": ("log", "state", "snapshots", "else")}
# Some longer than the others may be away.
STILL_SECONDS, LONG_STILL_SECONDS, LONG_STILL_PART = (0.2, 3.0), (6.0, 10.0), 0.1
REACHED_SECONDS_MAX = 4.0


def points(bench):
    """A node is killed, or one of its threads stands still, before or behind the n-th call of a kind in a part of its directory."""
    lab, shims = shimmed_lab(bench)
    lab.start()
    lab.ready()
    seen, tried = set(), 0
    while bench.more():
        with bench.round(lab, rate=300):
            for _ in range(ROUND_TRIALS):
                if bench.more():
                    tried += 1
                    seen |= stop_one(bench, lab, shims)
    bench.note(f"{len(seen)} different points (course, part, call, side, and killed or still); {tried} were set, {bench.result.trials} of them reached")


def stop_one(bench, lab, shims):
    """Tries one point; the point, if it was reached."""
    name, course = bench.random.choice(lab.names()), bench.random.choice(list(COURSES))
    place = bench.random.choice(COURSES[course])
    kind = bench.random.choice(list(CALLS[place]))
    at, behind, dies = bench.random.randint(1, CALLS[place][kind]), bench.random.random() < 0.5, bench.random.random() < 0.6
    still = LONG_STILL_SECONDS if bench.random.random() < LONG_STILL_PART else STILL_SECONDS
    seconds = 0.0 if dies else bench.random.uniform(*still)
    point = (course, place, kind, "behind" if behind else "before", "killed" if dies else "still")
    done = f"{' '.join(point)}, call {at}"
    node, shim, leads = lab.nodes[name], shims[name], lab.leader() == name
    others = [other for other in lab.names() if other != name]
    begin(lab, name, others, course, lambda: shim.stop(place, kind, at, behind, seconds))
    waits_for(lambda: shim.get("stopped") > 0 or not node.running(), REACHED_SECONDS_MAX)
    shim.go_on()
    stopped = time.monotonic()
    if shim.get("stopped") == 0 and node.running():
        back(lab, name, others, course, done)
        return set()
    if shim.get("stopped") == 0:
        raise Violation(f"{name}, {done}: ended before it came there: {node.said(1500)}")
    if dies:
        code = lab.ended(name)
        if code != -signal.SIGKILL:
            raise Violation(f"{name}, {done}: ended with {code} and not by being killed: {node.said(1500)}")
        if leads and course == "load":
            bench.away(lab, lab.serves_again(stopped, others))
        lab.start(name)
    else:
        # The others serve meanwhile, whatever stands still.
        bench.away(lab, lab.serves_again(stopped, others))
        time.sleep(max(0.0, stopped + seconds - time.monotonic()))
    began = time.monotonic()
    back(lab, name, others, course, done)
    bench.back(time.monotonic() - began)
    bench.trial(**{course: 1, place: 1, kind: 1, point[-2]: 1, point[-1]: 1, "leader": int(leads and course == "load")})
    return {point}


def begin(lab, name, others, course, arm):
    """Lets a node take a course, on which the point lies."""
    if course == "load":
        return arm()
    lab.kill(name)
    if course == "joining":
        lab.serves_again(time.monotonic(), others)
        shutil.rmtree(lab.nodes[name].data)
        out_of_the_way(lab, name, others)
        lab.nodes[name].joins = ["--join", ",".join(f"{lab.nodes[other].address}:{PEER_PORT}" for other in others)]
    arm()
    return lab.start(name)


def back(lab, name, others, course, done):
    """The node must serve, whatever it was in the middle of, and have its vote again."""
    if comes_up(lab, name, done, START_SECONDS_MAX) is not True:
        raise Violation(f"{name}, {done}: does not start again: {lab.nodes[name].said(1500)}")
    if course == "joining":
        becomes_voter(lab, name, others)


ROWS = [
    Row("P3", "killed, or a thread that stands still 0.2–10 s, before or behind the n-th call to the disk: by part, call and course", points, (12, 40), (600, 7200), "points reached"),
]
