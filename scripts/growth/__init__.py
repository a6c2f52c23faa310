"""What the sections of bench-growth share: fresh clusters, loads on them, watching them meanwhile. No script of its own."""

import contextlib
import dataclasses
import statistics
import threading
import time

import report
from cluster import NODES, Failure, Processes, Quorate, say

KINDS = ("put", "get", "stale", "mixed")
CLIENTS = 64
VALUE_BYTES = 256
# Filling, starting and coming to rest may take as long as a slow machine needs, and no longer, in seconds.
FILL_SECONDS_MAX = 900
START_SECONDS_MAX = 300
REST_SECONDS_MAX = 120
# At rest: CPU seconds of all nodes together within a second. Heartbeats and timers alone take less.
REST_CPU = 0.2
# What a record takes besides its value, and how often a node holds a record at most: in the log, in the state, and in two
# snapshots (a third while it is written, but then the older ones are far smaller).
RECORD_BYTES = 100
COPIES = 4
# To reckon how much a load may write: it writes less.
RATE_MAX = 20_000
BYTES_PER_SECOND_MAX = 100e6
# So that no snapshot is made in a section that does not want one.
NO_SNAPSHOTS = ("--snapshot-log-bytes", "1024GiB")


@dataclasses.dataclass
class Section:
    """What a section found: text in Markdown without its heading, plots, the figures, and bounds that were not kept."""

    text: str
    figures: list
    data: dict
    broken: list = dataclasses.field(default_factory=list)


def filled_bytes(keys, value_bytes):
    """What so many keys take in one copy."""
    return keys * (value_bytes + RECORD_BYTES)


def written_bytes(seconds, value_bytes):
    """What a load of puts may write to one copy, in bytes."""
    return min(filled_bytes(RATE_MAX, value_bytes), BYTES_PER_SECOND_MAX) * seconds


def verdict(kept):
    return "yes" if kept else "**no**"


class Bench:
    """The options, and what is done with clusters."""

    def __init__(self, options):
        self.options = options
        self.folder = options.out / "data"
        # Requests of all cells that did not succeed.
        self.errors = 0

    def need_disk(self, bytes_of_one_copy, nodes=len(NODES), factor=None):
        report.need_disk(self.folder, bytes_of_one_copy * COPIES * nodes, factor or self.options.disk_factor)

    @contextlib.contextmanager
    def cluster(self, keys=0, value_bytes=VALUE_BYTES, nodes=NODES, flags=()):
        """A fresh cluster that holds these keys and is at rest; its data goes in the end."""
        quorate = Quorate(self.options.quorate, nodes, flags, START_SECONDS_MAX)
        with Processes(self.folder) as processes:
            quorate.start(processes)
            if keys:
                self.fill(quorate, processes, 0, keys, value_bytes)
            yield quorate, processes

    def fill(self, quorate, processes, first, last, value_bytes):
        started = time.monotonic()
        quorate.fill(first, last, value_bytes, FILL_SECONDS_MAX)
        say(f"    filled up to {last:,} keys of {value_bytes:,} bytes in {time.monotonic() - started:.0f} s")
        self.rest(processes)

    def rest(self, processes):
        """Waits until the nodes have nothing left to do: checkpoints, snapshots."""
        deadline = time.monotonic() + REST_SECONDS_MAX
        before = processes.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(1)
            now = processes.cpu_seconds()
            if now - before < REST_CPU:
                return
            before = now
        say(f"    the nodes are still at work after {REST_SECONDS_MAX} s; measuring nevertheless")

    def cell(self, quorate, kind, keys, value_bytes=VALUE_BYTES, clients=CLIENTS, seconds=None, flags=()):
        """One load on what was filled."""
        flags = [*flags] if kind == "put" else [*flags, "--no-preload"]
        result = quorate.load(kind, clients, seconds or self.options.seconds, keys, value_bytes, flags=flags)
        self.errors += result["errors"]
        say(
            f"    {kind:5} {clients:4} clients, {keys:9,} keys, {value_bytes:9,} bytes: {result['rate']:9,.0f}/s"
            f"  p50 {result['p50_ms']:7.2f} ms  p99 {result['p99_ms']:7.2f} ms  max {result['max_ms']:7.2f} ms"
        )
        return result


def terms(quorate):
    """The term of every node: another one later means that there was an election."""
    return {name: quorate.metrics(name)["raft_term"] for name in quorate.nodes}


class Watcher:
    """Calls a function over and over on a thread of its own, as long as the block lasts."""

    def __init__(self, interval, look):
        self.interval, self.look = interval, look
        self.ended = threading.Event()
        self.failure = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            while not self.ended.is_set():
                self.look()
                self.ended.wait(self.interval)
        except Exception as failure:  # Told by the thread that waits for it.
            self.failure = failure

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.ended.set()
        self.thread.join()
        if self.failure and kind is None:
            raise Failure(f"watching the nodes failed: {self.failure!r}")


def median(results, field):
    return statistics.median(result[field] for result in results)


def line(label, x, y, color, **more):
    """A series of a plot."""
    return {"label": label, "x": list(x), "y": list(y), "color": color} | more


def latency_lines(label, x, results, color):
    """The p50 and the p99 of the same loads."""
    return [
        line(label, x, [result["p50_ms"] for result in results], color),
        line(None, x, [result["p99_ms"] for result in results], color, dashed=True),
    ]


LATENCY_PANEL = {"title": "Latency (line: p50, dashes: p99)", "y_label": "ms", "y_log": True}


def size_name(size):
    """Bytes as people say them."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{report.figure(size / unit) if size % unit else size // unit} {name}"
    return f"{size:.0f} B"


def count_name(count):
    """A count as people say it, to stand at an axis."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count:,}"
