"""Rows that stop, kill and starve processes: P1, P2 and P4. No script of its own."""

import contextlib
import math
import os
import shutil
import signal
import socket
import time
from pathlib import Path

from faultlib import Row, Skip
from faultlib.damage import comes_up
from faultlib.lab import CLIENT_PORT, POLL_SECONDS, SMALL_FILES, Violation

ROUND_TRIALS = 20
MAJORITY = 2
# Pauses: most are drawn evenly by their logarithm from the first span, one in ten from the second.
PAUSES, LONG_PAUSES = (0.1, 4.0), (4.0, 30.0)
SHORT_PAUSES = (0.1, 2.0)
# A leader that is stopped for longer must have been replaced meanwhile.
LOOK_BEYOND_SECONDS = 3
STARVED_SHARE, STARVED_SECONDS = 0.05, 6
FILES_MIN, FILES_MAX, CROWD = 64, 256, 400
OOM_SLACK_BYTES, OOM_VALUE_BYTES, OOM_SECONDS_MAX = 24 << 20, 1 << 20, 60
OOM_KEYS = 2000


def kills(bench):
    """kill -9 of any subset, all nodes included, every one to a few seconds."""
    bench.rounds(bench.serving(), ROUND_TRIALS, kill_some)


def kill_some(bench, lab):
    names = bench.random.sample(lab.names(), bench.random.choice((1, 1, 1, 2, 3)))
    leader = lab.leader()
    time.sleep(bench.random.uniform(0.1, 1.0))
    lab.kill(*names)
    killed = time.monotonic()
    left = lab.running()
    if len(left) >= MAJORITY and leader in names:
        bench.away(lab, lab.serves_again(killed, left))
    time.sleep(bench.random.uniform(0, 1.0))
    lab.start(*names)
    bench.back(lab.ready())
    bench.trial(killed_nodes=len(names), all_nodes=int(len(names) == len(lab.names())), leaders=int(leader in names))


def pauses(bench):
    """SIGSTOP and SIGCONT of the leader, a majority or anyone, with reads on all nodes meanwhile."""
    bench.rounds(bench.serving(), ROUND_TRIALS, pause_some)


def pause_some(bench, lab):
    leader = lab.leader()
    others = [name for name in lab.names() if name != leader]
    names, kind = bench.random.choice((
        ([leader], "leader"), ([leader], "leader"), ([leader, bench.random.choice(others)], "majority"),
        (others, "majority"), ([bench.random.choice(others)], "follower"), (lab.names(), "all")))
    seconds = length_of_pause(bench)
    stopped = time.monotonic()
    lab.signal(signal.SIGSTOP, *names)
    try:
        left = [name for name in lab.names() if name not in names]
        if kind == "leader" and seconds > LOOK_BEYOND_SECONDS:
            bench.away(lab, lab.serves_again(stopped, left))
        time.sleep(max(0, stopped + seconds - time.monotonic()))
    finally:
        lab.signal(signal.SIGCONT, *names)
    resumed = time.monotonic()
    lab.ready()
    bench.back(time.monotonic() - resumed)
    bench.trial(**{kind: 1}, seconds_paused=round(seconds))


def length_of_pause(bench):
    low, high = SHORT_PAUSES if bench.options.short else PAUSES
    if not bench.options.short and bench.random.random() < 0.1:
        low, high = LONG_PAUSES
    return math.exp(bench.random.uniform(math.log(low), math.log(high)))


def starvation(bench):
    """A node with a twentieth of a core, one with 64 files, one that is out of memory."""
    kinds = [starved_of_cpu, starved_of_files, starved_of_memory]
    while bench.more():
        for kind in list(kinds):
            try:
                if bench.more():
                    kind(bench)
            except Skip as reason:
                bench.skip(kind.__name__.replace("_", " "), reason)
                kinds.remove(kind)


def starved_of_cpu(bench):
    lab = bench.lab(flags=SMALL_FILES)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab)
        lab.start()
        lab.ready()
        with bench.round(lab, rate=150):
            name = bench.random.choice([lab.leader(), bench.random.choice(lab.followers())])
            leads = name == lab.leader()
            began = time.monotonic()
            with throttled(lab.nodes[name].pid, bench):
                others = [other for other in lab.names() if other != name]
                until = began + STARVED_SECONDS
                while time.monotonic() < until:
                    # It may lead on, slowly, or the others elect one of them; either way they serve.
                    bench.away(lab, lab.serves_again(time.monotonic(), others))
                    time.sleep(0.2)
            ended = time.monotonic()
            lab.ready()
            bench.back(time.monotonic() - ended)
        bench.trial(cpu=1, cpu_of_leader=int(leads))


@contextlib.contextmanager
def throttled(pid, bench):
    """A twentieth of one core for a process: by cgroup, or by stopping it most of the time."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (v1 if (v1 / "cgroup.procs").exists() else v2) / f"quorate-faults-{os.getpid()}"
    quota = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": str(int(STARVED_SHARE * 100_000))}
    if group.parent == v2:
        quota = {"cpu.max": f"{int(STARVED_SHARE * 100_000)} 100000"}
    try:
        group.mkdir()
        for name, value in quota.items():
            (group / name).write_text(value)
        before = cgroup_of(pid, "cpu")
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        bench.note(f"CPU: no cgroup ({error.strerror}), the process was stopped 95 % of the time instead")
        with chopped(pid):
            yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (group.parent / before.lstrip("/") / "cgroup.procs").write_text(str(pid))
        remove_group(group)


@contextlib.contextmanager
def chopped(pid):
    """Runs only 5 ms of each 100."""
    import threading
    over = threading.Event()

    def chop():
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1 * (1 - STARVED_SHARE))
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.1 * STARVED_SHARE)

    thread = threading.Thread(target=chop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def cgroup_of(pid, controller):
    """The group of a process under a controller, as a path below its mount."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or not controllers:
            return path
    return "/"


def remove_group(group):
    """Groups can be removed once their last process is gone, which the kernel may notice a little later."""
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(POLL_SECONDS)


def starved_of_files(bench):
    """A node that may open few files: with the fewest it does not come up, and says so; with some it bears a crowd."""
    if not shutil.which("prlimit"):
        raise Skip("needs prlimit (Debian: apt-get install util-linux)")
    lab = bench.lab(flags=SMALL_FILES)
    with lab:
        lab.start()
        lab.ready()
        with bench.round(lab, rate=150):
            name = bench.random.choice(lab.names())
            others = [other for other in lab.names() if other != name]
            for most in (FILES_MIN, FILES_MAX):
                lab.stop(name)
                lab.nodes[name].prefix = ["prlimit", f"--nofile={most}:{most}"]
                lab.start(name)
                came = comes_up(lab, name, f"with {most} files")
                if came is True:
                    crowded(bench, lab, name, others)
                elif most == FILES_MAX:
                    raise Violation(f"{name} does not come up with {most} files: {came}")
                else:
                    bench.note(f"with {most} files it does not come up, and says why")
                    lab.nodes[name].prefix = []
                    lab.start(name)
                    lab.ready(name)
            lab.nodes[name].prefix = []
            lab.stop(name)
            lab.start(name)
            lab.ready()
        bench.trial(files=1)


def crowded(bench, lab, name, others):
    """More connections than the node may have files; then they go."""
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection((lab.nodes[name].address, CLIENT_PORT), timeout=0.2))
        for _ in range(5):
            bench.away(lab, lab.serves_again(time.monotonic(), others))
            time.sleep(0.2)
    gone = time.monotonic()
    if not lab.nodes[name].running():
        raise Violation(f"{name} ended under {CROWD} connections: {lab.nodes[name].said(800)}")
    lab.ready()
    bench.back(time.monotonic() - gone)


def starved_of_memory(bench):
    groups = Path("/sys/fs/cgroup/memory")
    if not (groups / "memory.limit_in_bytes").exists():
        raise Skip("there is no cgroup (version 1) for memory")
    lab = bench.lab(flags=SMALL_FILES)
    with lab:
        lab.start()
        lab.ready()
        group = groups / f"quorate-faults-{os.getpid()}"
        with bench.round(lab, rate=150):
            name = bench.random.choice(lab.names())
            node = lab.nodes[name]
            group.mkdir()
            try:
                (group / "cgroup.procs").write_text(str(node.pid))
                status = Path(f"/proc/{node.pid}/status").read_text()
                resident = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
                # What it had before counts for its old group.
                (group / "memory.limit_in_bytes").write_text(str(OOM_SLACK_BYTES))
                ended, number = time.monotonic() + OOM_SECONDS_MAX, 0
                while node.running() and time.monotonic() < ended:
                    lab.asked(name, "PUT", f"/v1/kv/large/{number % OOM_KEYS}", os.urandom(OOM_VALUE_BYTES), 5)
                    number += 1
                if node.running():
                    raise Violation(f"{name} took {number} MiB with {OOM_SLACK_BYTES >> 20} MiB of memory beyond {resident >> 20} and was not killed")
                killed = time.monotonic()
                code = lab.ended(name)
                if code != -signal.SIGKILL:
                    raise Violation(f"{name} ended with {code} when it was out of memory: {node.said(800)}")
                others = [other for other in lab.names() if other != name]
                bench.away(lab, lab.serves_again(killed, others))
            finally:
                lab.kill(name)
                remove_group(group)
            lab.start(name)
            bench.back(lab.ready())
        bench.trial(memory=1, values_until_then=number)


ROWS = [
    Row("P1", "kill -9 of any subset, all nodes included", kills, (8, 20), (200, 3600), "kills"),
    Row("P2", "SIGSTOP 0.1–30 s of leader, majority, anyone; reads on all nodes", pauses, (8, 20), (300, 5400), "pauses"),
    Row("P4", "a twentieth of a core; 64 and 256 files; out of memory", starvation, (3, 30), (30, 1800), "starved nodes"),
]
