"""Rows of much load and many keys: L2 and L4. No script of its own."""

import json
import shutil
import signal
import subprocess
import time

from cluster import ROOT, Failure, Quorate, say
from faultlib import Row
from faultlib.damage import becomes_voter, out_of_the_way
from faultlib.lab import PEER_PORT, Violation

OVERLOAD_SECONDS_MAX, END_SECONDS_MAX = 600, 30
KEYS, SHORT_KEYS, VALUE_BYTES = 1_000_000, 50_000, 100
FILL_SECONDS_MAX = 900
REBUILD_SECONDS_MAX, START_SECONDS_MAX = 60, 10
# So little log is kept behind a snapshot that an empty node gets the whole state.
LOG_BYTES, SHORT_LOG_BYTES = "16MiB", "1MiB"


def overload(bench):
    """Five times the clients: scripts/overload judges what is promised then."""
    while bench.more():
        out = bench.folder / "overload"
        words = [ROOT / "scripts" / "overload", "--check", "--quorate", bench.binary, "--out", out, "--seconds", "2" if bench.options.short else "4"]
        words += ["--cases", "put" if bench.options.short else "put,get,mixed"]
        code, said = ran(words, OVERLOAD_SECONDS_MAX)
        if not (out / "results.json").exists():
            raise Failure(f"scripts/overload ended with {code}: {said[-1500:]}")
        rows = json.loads((out / "results.json").read_text())
        for row in rows:
            bench.note(f"{row['case']}: {row['goodput']:.2f} of the peak, p99 {row['overload']['p99_ms']['accepted']:.0f} ms, {row['elections']:.0f} elections")
            # How much is done a second hangs on what else the machine does; what nodes owe to their clients does not.
            if broken := [one for one in row["broken"] if "goodput" not in one]:
                raise Violation(f"{row['case']}: {'; '.join(broken)}")
        bench.trial(cases=len(rows))


def ran(words, seconds):
    """Exit code and errors of another script. It is asked to end, so that it takes its nodes with it, if this one is or time is up."""
    # In a session of its own: a Ctrl-C and what is sent below would be two signals, of which the second breaks off its cleaning up.
    child = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                             start_new_session=True)
    try:
        _, said = child.communicate(timeout=seconds)
        return child.returncode, said
    except BaseException:
        child.terminate()
        try:
            child.communicate(timeout=END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        raise


def many_keys(bench):
    """Starts, rebuilds and a whole snapshot with a million keys of 100 bytes."""
    keys = SHORT_KEYS if bench.options.short else KEYS
    bench.note(f"{keys:,} keys of {VALUE_BYTES} bytes")
    lab = bench.lab(flags=("--snapshot-log-bytes", SHORT_LOG_BYTES if bench.options.short else LOG_BYTES, "--catchup-limit", "1GiB/s"))
    lab.start()
    lab.ready()
    quorate = Quorate(bench.binary, tuple(lab.names()))
    quorate.urls = {name: node.url for name, node in lab.nodes.items()}
    say(f"    filling {keys:,} keys")
    quorate.fill(0, keys, VALUE_BYTES, FILL_SECONDS_MAX)
    while bench.more():
        with bench.round(lab, rate=100):
            for title, names, how, without_state, most in (
                ("start after SIGTERM", ["n1"], signal.SIGTERM, False, START_SECONDS_MAX),
                ("start after SIGKILL", ["n2"], signal.SIGKILL, False, START_SECONDS_MAX),
                ("rebuild", ["n3"], signal.SIGKILL, True, REBUILD_SECONDS_MAX),
                ("start of all after SIGKILL", lab.names(), signal.SIGKILL, False, START_SECONDS_MAX),
            ):
                lab.signal(how, *names)
                for name in names:
                    lab.ended(name, 30)
                    if without_state:
                        shutil.rmtree(lab.nodes[name].data / "state")
                began = time.monotonic()
                lab.start(*names)
                lab.ready(seconds=REBUILD_SECONDS_MAX * 2)
                held(bench, title, time.monotonic() - began, most)
            install(bench, lab)
        bench.trial(starts=4, snapshots_installed=1)


def held(bench, title, seconds, most):
    bench.note(f"{title} {seconds:.1f} s")
    bench.back(seconds)
    if seconds > most:
        raise Violation(f"{title} took {seconds:.1f} s, more than {most} s")


def install(bench, lab):
    """A node whose disk is gone comes back by a whole snapshot."""
    others, node = ["n1", "n2"], lab.nodes["n3"]
    lab.kill("n3")
    shutil.rmtree(node.data)
    out_of_the_way(lab, "n3", others)
    code, body = lab.asked("n1", "GET", "/v1/snapshot", timeout=REBUILD_SECONDS_MAX)
    if code != 200:
        raise Violation(f"no snapshot: {code} {body[:300]}")
    node.joins = ["--join", ",".join(f"{lab.nodes[other].address}:{PEER_PORT}" for other in others)]
    began = time.monotonic()
    lab.start("n3")
    lab.ready("n3", seconds=REBUILD_SECONDS_MAX * 2)
    becomes_voter(lab, "n3", others)
    whole = "installing a snapshot" in node.said_since_start()
    held(bench, f"an empty node until it votes, by {'snapshot' if whole else 'log'},", time.monotonic() - began, REBUILD_SECONDS_MAX)


ROWS = [
    Row("L2", "five times the clients that it takes", overload, (1, 30), (1, 600), "runs"),
    Row("L4", "many keys: start, rebuild, snapshot to an empty node", many_keys, (1, 30), (1, 1800), "rounds"),
]
