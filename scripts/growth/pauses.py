"""Sections of bench-growth that look at latencies while a node does something besides serving. No script of its own.

Loads run in short windows one behind the other, so that each window lies within that work or outside of it, and windows
of equal length are compared.
"""

import contextlib
import json
import statistics
import threading
import time
import urllib.error
import urllib.request

import plot
import report
from cluster import Failure, say
from growth import (
    CLIENTS, NO_SNAPSHOTS, VALUE_BYTES, Section, Watcher, filled_bytes, line, size_name, terms, verdict, written_bytes,
)  # fmt: skip

WINDOW_SECONDS = 1.0
QUIET_WINDOWS = 10
SNAPSHOT_VALUE_BYTES = 1024
BUILD_SECONDS_MAX = 300
PHASE_SECONDS_EXPECTED = 30
# Only asks for the snapshot; it is built however soon the asker goes.
ASK_TIMEOUT = "50ms"
CHECKPOINT_KEYS = 100_000
CHECKPOINT_WINDOW_SECONDS = 0.5
CHECKPOINT_LOOK_SECONDS = 0.1
# What is written beside gets, so that there are checkpoints: requests a second, and bytes of each value.
BESIDE_RATE = 4_000
BESIDE_CLIENTS = 16
BESIDE_VALUE_BYTES = 2048


def pause_bound_ms(quorate):
    """Half the least election timeout: who pauses for longer is near to being deposed."""
    with urllib.request.urlopen(f"{quorate.urls[quorate.nodes[0]]}/v1/status", timeout=10) as answer:
        return json.load(answer)["timers"]["election_min_ms"] / 2


def window(bench, quorate, kind, keys, value_bytes, seconds, started):
    """One window, with when it began and ended."""
    begin = time.monotonic() - started
    result = bench.cell(quorate, kind, keys, value_bytes, seconds=seconds)
    return {"begin": begin, "end": time.monotonic() - started, "kind": kind} | {
        field: result[field] for field in ("rate", "p50_ms", "p99_ms", "max_ms", "errors")
    }


def ask_for_snapshot(url):
    request = urllib.request.Request(f"{url}/v1/snapshot", headers={"Quorate-Timeout": ASK_TIMEOUT})
    try:
        # Built within the time already: closed without reading it.
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as answer:
        if answer.code != 503:
            raise Failure(f"asking for a snapshot was answered {answer.code}: {answer.read(300)}")


def builds(quorate, name):
    metrics = quorate.metrics(name)
    return metrics["snapshot_build_seconds_count"], metrics["snapshot_build_seconds_sum"]


def summary(windows, others, bound):
    """Of the windows with the work and the quiet ones: p99 in the middle and at worst, rate, the longest answer."""
    cells = []
    for some in (others, windows):
        if not some:
            cells += ["–"] * 3
            continue
        p99 = [one["p99_ms"] for one in some]
        cells += [report.figure(statistics.median(one["rate"] for one in some))]
        cells += [report.figure(statistics.median(p99)), report.figure(max(p99))]
    if not windows:
        return [*cells, "–", "–", "–"], None
    longest = max(one["max_ms"] for one in windows)
    ratio = "–"
    if others:
        ratio = f"{statistics.median(one['p99_ms'] for one in windows) / statistics.median(one['p99_ms'] for one in others):.2f}"
    return [*cells, ratio, report.figure(longest), verdict(longest < bound)], longest


def summary_head(work):
    parts = [f"{title}: {figure}" for title in ("quiet", work) for figure in ("/s", "p99 ms", "worst p99")]
    return [*parts, "p99, of the quiet", "longest answer ms"]


def snapshot(bench):
    """Puts and gets while a snapshot is built, against the seconds before."""
    keys = max(1, bench.options.snapshot_mib * 1024 * 1024 // SNAPSHOT_VALUE_BYTES)
    phases = [(who, kind) for who in ("the leader", "all nodes") for kind in ("put", "get")]
    written = written_bytes(PHASE_SECONDS_EXPECTED * len(phases) / 2, SNAPSHOT_VALUE_BYTES)
    bench.need_disk(filled_bytes(keys, SNAPSHOT_VALUE_BYTES) + written)
    rows, broken, found = [], [], []
    with bench.cluster(keys, SNAPSHOT_VALUE_BYTES, flags=NO_SNAPSHOTS) as (quorate, processes):
        bound = pause_bound_ms(quorate)
        for who, kind in phases:
            phase = snapshot_phase(bench, quorate, who, kind, keys)
            found.append(phase)
            cells, longest = summary(phase["during"], phase["quiet"], bound)
            elections = "**yes**" if phase["elections"] else "no"
            took = list(phase["build_seconds"].values())
            built = report.spread(took) if len(took) > 1 else report.figure(took[0])
            rows.append([who, kind, size_name(phase["file_bytes"]), built, *cells, elections])
            if longest is None or longest >= bound or phase["elections"]:
                broken.append(f"{kind} while {who} built a snapshot: longest answer {longest} ms, elections {elections}")
            bench.rest(processes)
    head = ["built by", "work", "file", "built in s", *summary_head("building"), f"< {bound:g}", "elections"]
    about = (
        f"{keys:,} keys of {SNAPSHOT_VALUE_BYTES:,} bytes, {CLIENTS} clients, windows of {WINDOW_SECONDS:g} s: {QUIET_WINDOWS} quiet ones, then "
        f"all from the request for the snapshot until it was built and verified. p99 is the median of the windows'. The longest answer must stay "
        f"below half the least election timeout.\n\n"
    )
    figures = [snapshot_figure(phase) for phase in found if phase["who"] == "all nodes"]
    return Section(about + report.table(head, rows), figures, {"phases": found, "bound_ms": bound}, broken)


def snapshot_phase(bench, quorate, who, kind, keys):
    """Quiet windows, then windows until every node that was asked has built its snapshot."""
    names = list(quorate.nodes) if who == "all nodes" else [quorate.leader()]
    say(f"    {kind}, then a snapshot by {who}")
    started, terms_before = time.monotonic(), terms(quorate)
    before = {name: builds(quorate, name) for name in names}
    quiet = [
        window(bench, quorate, kind, keys, SNAPSHOT_VALUE_BYTES, WINDOW_SECONDS, started) for _ in range(QUIET_WINDOWS)
    ]
    asked, done = time.monotonic() - started, {}
    threads = [threading.Thread(target=ask_for_snapshot, args=(quorate.urls[name],)) for name in names]
    for thread in threads:
        thread.start()

    def look():
        for name in names:
            count, seconds = builds(quorate, name)
            if name not in done and count > before[name][0]:
                done[name] = (time.monotonic() - started, seconds - before[name][1])

    during = []
    with Watcher(CHECKPOINT_LOOK_SECONDS, look):
        while len(done) < len(names):
            if time.monotonic() - started - asked > BUILD_SECONDS_MAX:
                raise Failure(f"no snapshot within {BUILD_SECONDS_MAX} s; logs in {bench.folder}")
            during.append(window(bench, quorate, kind, keys, SNAPSHOT_VALUE_BYTES, WINDOW_SECONDS, started))
    for thread in threads:
        thread.join()
    end = max(at for at, _ in done.values())
    # The last window may have begun just before the end: it counts for where most of it lies.
    after = [during.pop()] if len(during) > 1 and (during[-1]["begin"] + during[-1]["end"]) / 2 > end else []
    return {
        "who": who, "kind": kind, "quiet": quiet, "during": during, "after": after, "span": [asked, end],
        "build_seconds": {name: seconds for name, (_, seconds) in done.items()},
        "file_bytes": newest_snapshot_bytes(bench, names[0]), "elections": terms(quorate) != terms_before,
    }  # fmt: skip


def newest_snapshot_bytes(bench, name):
    files = sorted((bench.folder / name / "snapshots").glob("*.snapshot"), key=lambda path: path.stat().st_mtime)
    return files[-1].stat().st_size if files else 0


def snapshot_figure(phase):
    """The windows of a phase over time."""
    windows = phase["quiet"] + phase["during"] + phase["after"]
    at = [(one["begin"] + one["end"]) / 2 for one in windows]
    axis = {"x_label": "seconds", "spans": [phase["span"]], "span_label": "snapshots are built"}
    rate = axis | {"title": "Rate", "y_label": "requests/s"}
    rate["series"] = [line(phase["kind"], at, [one["rate"] for one in windows], plot.BLUE)]
    latency = axis | {"title": "Latency in each window", "y_label": "ms", "y_log": True}
    colors = (("p50_ms", "p50", plot.BLUE), ("p99_ms", "p99", plot.GREEN), ("max_ms", "longest", plot.RED))
    latency["series"] = [line(name, at, [one[field] for one in windows], color) for field, name, color in colors]
    title = f"{phase['kind'].capitalize()}s while all nodes build a snapshot"
    return {"file": f"growth-snapshot-{phase['kind']}.svg", "title": title, "panels": [rate, latency]}


class Checkpoints:
    """When checkpoints went on, as far as the nodes' counters tell: to the tenth of a second."""

    def __init__(self, quorate, started):
        self.quorate, self.started = quorate, started
        self.spans = []
        self.counters = {name: self.read(name) for name in quorate.nodes}

    def read(self, name):
        metrics = self.quorate.metrics(name)
        return metrics["checkpoint_seconds_count"], metrics["checkpoint_seconds_sum"]

    def look(self):
        for name, (count, seconds) in self.counters.items():
            now = self.read(name)
            if now[0] > count:
                at = time.monotonic() - self.started
                self.spans.append((max(0, at - (now[1] - seconds) - CHECKPOINT_LOOK_SECONDS), at))
            self.counters[name] = now

    def overlaps(self, one):
        return any(begin < one["end"] and one["begin"] < end for begin, end in self.spans)


def checkpoint(bench):
    """Puts and gets while checkpoints drain, against those in between."""
    seconds = bench.options.checkpoint_seconds
    written = written_bytes(seconds, VALUE_BYTES) + BESIDE_RATE * BESIDE_VALUE_BYTES * seconds
    bench.need_disk(filled_bytes(CHECKPOINT_KEYS, VALUE_BYTES) + written)
    rows, broken, found = [], [], []
    with bench.cluster(CHECKPOINT_KEYS, flags=NO_SNAPSHOTS) as (quorate, processes):
        bound, terms_before = pause_bound_ms(quorate), terms(quorate)
        for kind in ("put", "get"):
            started = time.monotonic()
            checkpoints, windows = Checkpoints(quorate, started), []
            beside = writes_beside(quorate, seconds) if kind == "get" else contextlib.nullcontext()
            with beside, Watcher(CHECKPOINT_LOOK_SECONDS, checkpoints.look):
                while time.monotonic() - started < seconds:
                    one = window(bench, quorate, kind, CHECKPOINT_KEYS, VALUE_BYTES, CHECKPOINT_WINDOW_SECONDS, started)
                    windows.append(one)
                # One that is at work still must be seen to have been: it is counted at its end.
                bench.rest(processes)
            during = [one for one in windows if checkpoints.overlaps(one)]
            quiet = [one for one in windows if not checkpoints.overlaps(one)]
            cells, longest = summary(during, quiet, bound)
            took = report.figure(statistics.median(e - b for b, e in checkpoints.spans)) if checkpoints.spans else "–"
            rows.append([kind, len(checkpoints.spans), took, f"{len(quiet)}, {len(during)}", *cells])
            found.append({"kind": kind, "windows": windows, "spans": checkpoints.spans})
            if longest is None or longest >= bound:
                broken.append(f"{kind} while checkpoints drain: longest answer {longest} ms")
        elections = terms(quorate) != terms_before
    if elections:
        broken.append("an election while checkpoints drained")
    head = ["work", "checkpoints", "each s", "windows quiet, draining", *summary_head("draining"), f"< {bound:g}"]
    about = (
        f"{CHECKPOINT_KEYS:,} keys of {VALUE_BYTES} bytes, {CLIENTS} clients, windows of {CHECKPOINT_WINDOW_SECONDS:g} s for {seconds:g} s of each; a window counts as "
        f"draining if a checkpoint of any node overlaps it. Beside the gets {BESIDE_RATE:,} puts/s of {BESIDE_VALUE_BYTES:,} bytes are written throughout. "
        f"Elections: {'**yes**' if elections else 'none'}.\n\n"
    )
    return Section(about + report.table(head, rows), [], {"phases": found, "bound_ms": bound}, broken)


@contextlib.contextmanager
def writes_beside(quorate, seconds):
    """Writes at a fixed rate on a thread, beside what is measured."""
    failures = []

    def write():
        try:
            quorate.load("put", BESIDE_CLIENTS, seconds, CHECKPOINT_KEYS, BESIDE_VALUE_BYTES, flags=["--rate", BESIDE_RATE])
        except Exception as failure:  # Told by the thread that waits for it.
            failures.append(failure)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join()
    if failures:
        raise Failure(f"writing beside the gets failed: {failures[0]}")
