"""The section of bench-growth in which a node catches up by snapshot under full write load. No script of its own."""

import http.client
import signal
import time
import urllib.error
import urllib.request

import plot
import report
from cluster import Failure, say
from growth import (
    CLIENTS, NO_SNAPSHOTS, Section, Watcher, filled_bytes, line, size_name, terms, verdict, written_bytes,
)  # fmt: skip
from growth.pauses import pause_bound_ms, summary, summary_head

MIB = 1024 * 1024
VALUE_BYTES = 1024
# Random text shrinks to three quarters: so many bytes of it make one of the file.
TEXT_PER_BYTE = 4 / 3
# While the node falls behind: snapshots often, so that the log is removed behind them.
SOME_SNAPSHOTS = ("--snapshot-log-bytes", "4MiB")
FIRST_KEYS = 1_000
# What is written so that the log outgrows what is kept of it: it takes no room in a snapshot.
BALLAST_BYTES = 2 * MIB
BALLAST_PUTS_MAX = 500
WINDOW_SECONDS = 1.0
QUIET_WINDOWS = 10
LOOK_SECONDS = 0.2
CATCHUP_SECONDS_MAX = 900
SNAPSHOT_SECONDS_MAX = 600
RATIO_MAX = 2.0


def put_ballast(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("PUT", "/v1/kv/ballast", b"=" * BALLAST_BYTES, {"Quorate-Timeout": "30s"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    # Too much at once is refused; the next goes through.
    if answer.status not in (200, 201, 429):
        raise Failure(f"a write was answered {answer.status}")


def fall_behind(quorate, processes):
    """Stops a follower and writes until the leader's log begins behind it; returns its name."""
    leader = quorate.leader()
    name = next(name for name in quorate.nodes if name != leader)
    had = quorate.metrics(name)["raft_last_log_index"]
    processes.stop(name, signal.SIGTERM)
    for _ in range(BALLAST_PUTS_MAX):
        if quorate.metrics(leader).get("raft_purged_index", 0) > had:
            return name
        put_ballast(quorate.urls[leader])
    raise Failure("the log was not removed behind the node that is away")


def without_snapshots(quorate, processes, away):
    """Restarts the others so that no snapshot is made by itself, and gives the one that is away the same flags."""
    for name, command in quorate.commands.items():
        at = command.index(SOME_SNAPSHOTS[0])
        quorate.commands[name] = command[:at] + [*NO_SNAPSHOTS] + command[at + 2 :]
    others = [name for name in quorate.nodes if name != away]
    quorate.restart(processes, others, signal.SIGTERM)
    return others


def new_snapshot(quorate, name):
    """Has a node make a snapshot; its size."""
    request = urllib.request.Request(f"{quorate.urls[name]}/v1/snapshot", headers={"Quorate-Timeout": "60s"})
    deadline = time.monotonic() + SNAPSHOT_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                # Closed without reading it.
                return int(answer.headers["Content-Length"])
        except urllib.error.HTTPError as answer:
            if answer.code != 503:
                raise Failure(f"asking for a snapshot was answered {answer.code}: {answer.read(300)}")
    raise Failure(f"no snapshot within {SNAPSHOT_SECONDS_MAX} s")


class Transfer:
    """Looks at leader and follower until the follower has what the leader had when the snapshot was installed."""

    def __init__(self, quorate, leader, away, started):
        self.quorate, self.leader, self.away, self.started = quorate, leader, away, started
        self.before = quorate.metrics(leader)
        self.begun_at = self.installed_at = self.done_at = self.wanted = None

    def look(self):
        now, leader = time.monotonic() - self.started, self.quorate.metrics(self.leader)
        if self.begun_at is None and leader["catchup_begun_total"] > self.before["catchup_begun_total"]:
            self.begun_at = now
        if self.installed_at is None and leader["catchup_finished_total"] > self.before["catchup_finished_total"]:
            self.installed_at, self.wanted = now, leader["raft_committed_index"]
        if self.installed_at is not None and self.done_at is None:
            if self.quorate.metrics(self.away)["raft_applied_index"] >= self.wanted:
                self.done_at = now

    def figures(self):
        after = self.quorate.metrics(self.leader)
        names = ("sent_bytes_total", "sent_again_bytes_total", "limited_seconds_total")
        return {name: after[f"catchup_{name}"] - self.before[f"catchup_{name}"] for name in names}


def window(bench, quorate, keys, urls, started):
    """One window of puts at these nodes, with when it began and ended."""
    begin = time.monotonic() - started
    result = quorate.load("put", CLIENTS, WINDOW_SECONDS, keys, VALUE_BYTES, urls=urls)
    bench.errors += result["errors"]
    fields = {field: result[field] for field in ("rate", "p50_ms", "p99_ms", "max_ms", "errors")}
    return {"begin": begin, "end": time.monotonic() - started} | fields


def catchup(bench):
    """Puts while a follower that was away for too long is sent a snapshot, against the seconds before."""
    file_bytes = bench.options.catchup_mib * MIB
    keys = max(1, round(file_bytes * TEXT_PER_BYTE / VALUE_BYTES))
    ballast = BALLAST_BYTES * BALLAST_PUTS_MAX / 10
    bench.need_disk(filled_bytes(keys, VALUE_BYTES) + written_bytes(60, VALUE_BYTES) + ballast)
    with bench.cluster(min(keys, FIRST_KEYS), VALUE_BYTES, flags=SOME_SNAPSHOTS) as (quorate, processes):
        away = fall_behind(quorate, processes)
        others = without_snapshots(quorate, processes, away)
        urls = [quorate.urls[name] for name in others]
        all_urls, quorate.urls = quorate.urls, {name: quorate.urls[name] for name in others}
        bench.fill(quorate, processes, 0, keys, VALUE_BYTES)
        leader = next(name for name in others if quorate.metrics(name).get("raft_is_leader") == 1)
        size = new_snapshot(quorate, leader)
        quorate.urls = all_urls
        bench.rest(processes)
        bound, started = pause_bound_ms(quorate), time.monotonic()
        terms_before = {name: quorate.metrics(name)["raft_term"] for name in others}
        say(f"    {away} comes back and is sent {size_name(size)}")
        before = [window(bench, quorate, keys, urls, started) for _ in range(QUIET_WINDOWS)]
        transfer, during = Transfer(quorate, leader, away, started), []
        came_back = time.monotonic() - started
        quorate.start_node(processes, away)
        quorate.wait_ready_for_metrics(processes, away)
        with Watcher(LOOK_SECONDS, transfer.look):
            while transfer.done_at is None:
                if time.monotonic() - started - came_back > CATCHUP_SECONDS_MAX:
                    raise Failure(f"{away} has not caught up within {CATCHUP_SECONDS_MAX} s; logs in {bench.folder}")
                during.append(window(bench, quorate, keys, urls, started))
        after = [window(bench, quorate, keys, urls, started) for _ in range(QUIET_WINDOWS)]
        figures = transfer.figures()
        elections = any(terms(quorate)[name] != term for name, term in terms_before.items())
    return section(bench, {
        "before": before, "during": during, "after": after, "came_back": came_back, "begun": transfer.begun_at,
        "installed": transfer.installed_at, "done": transfer.done_at, "file_bytes": size, "elections": elections,
        "bound_ms": bound, "keys": keys,
    } | figures)  # fmt: skip


def section(bench, found):
    """What was found, as text, a plot, and the bounds that were not kept."""
    cells, longest = summary(found["during"], found["before"], found["bound_ms"])
    with_three, _ = summary(found["during"], found["after"], found["bound_ms"])
    ratio = float(cells[6])
    sending = found["installed"] - (found["begun"] or found["came_back"])
    head = ["file", "sent", "again", "sent and installed in s", "waited for the limit s", "caught up after s"]
    row = [size_name(found["file_bytes"]), size_name(found["sent_bytes_total"]), size_name(found["sent_again_bytes_total"])]
    row += [report.figure(sending), report.figure(found["limited_seconds_total"]), report.figure(found["done"] - found["came_back"])]
    head += [*summary_head("catching up"), f"< {found['bound_ms']:g}", f"p99 <= {RATIO_MAX:g} times", "of three nodes' p99", "elections"]
    row += [*cells, verdict(ratio <= RATIO_MAX), with_three[6], "**yes**" if found["elections"] else "no"]
    broken = []
    if ratio > RATIO_MAX:
        broken.append(f"p99 while a node caught up was {ratio} times that before")
    if longest is None or longest >= found["bound_ms"]:
        broken.append(f"puts while a node caught up: longest answer {longest} ms")
    if found["elections"]:
        broken.append("an election while a node caught up")
    about = (
        f"{found['keys']:,} keys of {VALUE_BYTES:,} bytes, random text; {CLIENTS} clients that put at the two other nodes throughout, windows of {WINDOW_SECONDS:g} s: "
        f"{len(found['before'])} quiet ones with one follower stopped, then all from its start until it has what the leader had when the snapshot was "
        f"installed. `--catchup-limit` is the default. p99 is the median of the windows'; \"of three nodes' p99\" compares with {len(found['after'])} windows "
        f"behind that, when the third node takes its part of the machine too.\n\n"
    )
    windows = found["before"] + found["during"] + found["after"]
    at = [(one["begin"] + one["end"]) / 2 for one in windows]
    axis = {"x_label": "seconds", "spans": [[found["came_back"], found["done"]]], "span_label": "a node catches up"}
    rate = axis | {"title": "Rate", "y_label": "puts/s"}
    rate["series"] = [line("put", at, [one["rate"] for one in windows], plot.BLUE)]
    latency = axis | {"title": "Latency in each window", "y_label": "ms", "y_log": True}
    colors = (("p50_ms", "p50", plot.BLUE), ("p99_ms", "p99", plot.GREEN), ("max_ms", "longest", plot.RED))
    latency["series"] = [line(name, at, [one[field] for one in windows], color) for field, name, color in colors]
    figure = {"file": "growth-catchup.svg", "title": "Puts while a node catches up by snapshot", "panels": [rate, latency]}
    return Section(about + report.table(head, [row]), [figure], found, broken)
