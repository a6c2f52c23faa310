"""Sections of bench-growth about what a cluster has lived through: restarts with all it holds, and writing for long. No script of its own."""

import shutil
import statistics
import time

import plot
import report
from cluster import NODES, RESTARTS, say
from growth import (
    CLIENTS, NO_SNAPSHOTS, VALUE_BYTES, Section, filled_bytes, line, size_name, terms, verdict, written_bytes,
)  # fmt: skip

HISTORY_KEYS = 20_000
MINUTE_SECONDS = 60
# A long run ends before the disk is as full as this.
FREE_BYTES_MIN = 8 << 30
# How far the rate of the last minute may be below the first's.
SAG_SHARE_MIN = 0.75
MIB = 1 << 20


def sizes(quorate, name):
    """Log, state and snapshots of a node, in bytes."""
    metrics = quorate.metrics(name)
    return [metrics[f"store_{part}_bytes"] for part in ("log", "engine", "snapshot")]


def restart(bench):
    """Time from start to ready by size of the state, with snapshots and with the log alone."""
    counts = bench.options.restart_keys
    bench.need_disk(filled_bytes(max(counts), VALUE_BYTES))
    rows, found = [], []
    for title, flags in (("as by default", ()), ("never", NO_SNAPSHOTS)):
        for count in counts:
            say(f"    {count:,} keys, snapshots {title}")
            with bench.cluster(count, flags=flags) as (quorate, processes):
                on_disk = sizes(quorate, NODES[0])
                starts, led = {}, {}
                for name, nodes, how, without_state in RESTARTS:
                    led[name] = quorate.leader() in nodes and len(nodes) == 1
                    starts[name] = quorate.restart(processes, nodes, how, without_state)
                    say("        {}: ready after {:.2f} s, {:.0f} MiB, at most {:.0f} MiB".format(name, *starts[name]))
                    bench.rest(processes)
            found.append({"keys": count, "snapshots": title, "bytes": on_disk, "starts": starts, "led": led})
            row = [f"{count:,}", title, *(report.figure(size / MIB) for size in on_disk)]
            row += [report.figure(seconds) + ("*" if led[name] else "") for name, (seconds, _, _) in starts.items()]
            rows.append([*row, report.figure(max(most for _, _, most in starts.values()))])
    head = ["keys", "snapshots", "log MiB", "state MiB", "snapshots MiB", *(f"{name}: s" for name, *_ in RESTARTS), "peak MiB"]
    about = (
        f"{VALUE_BYTES}-byte values. Seconds from the start until `/readyz` answers 200, on nodes at rest; sizes are one node's. With "
        "snapshots *never* the log holds everything, and the state that was deleted is rebuilt from it alone. `*`: the node led, so that its "
        "time has an election in it, as that of all nodes has.\n\n"
    )
    panels = []
    for title in ("as by default", "never"):
        of_title = [one for one in found if one["snapshots"] == title]
        colors = zip(RESTARTS, (plot.BLUE, plot.GREEN, plot.RED, plot.ORANGE))
        series = [
            line(name, [one["keys"] / 1e6 for one in of_title], [one["starts"][name][0] for one in of_title], color)
            for (name, *_), color in colors
        ]
        panels.append({"title": f"Snapshots {title}", "x_label": "million keys", "y_label": "seconds to ready", "series": series})
    figure = {"file": "growth-restart.svg", "title": "From start to ready", "panels": panels}
    return Section(about + report.table(head, rows), [figure], {"cells": found})


def history(bench):
    """Puts for long: whether the rate sags as history grows, and what it takes."""
    options = bench.options
    # No more than that, because the run looks at the disk itself and ends early.
    bench.need_disk(written_bytes(options.history_seconds, VALUE_BYTES), factor=1)
    windows, stopped = [], ""
    with bench.cluster(HISTORY_KEYS) as (quorate, processes):
        started, terms_before = time.monotonic(), terms(quorate)
        while time.monotonic() - started < options.history_seconds:
            if shutil.disk_usage(bench.folder).free < FREE_BYTES_MIN:
                stopped = f" **Stopped early**: less than {size_name(FREE_BYTES_MIN)} of the disk was free."
                break
            at = time.monotonic() - started
            result = bench.cell(quorate, "put", HISTORY_KEYS, seconds=options.history_window)
            one = {"at": at} | {field: result[field] for field in ("ops", "rate", "p50_ms", "p99_ms", "max_ms", "errors")}
            one |= dict(zip(("log", "state", "snapshots"), sizes(quorate, NODES[0])))
            rss, most = processes.memory_mib()
            windows.append(one | {"rss_mib": rss, "peak_mib": most, "disk": processes.disk_bytes()})
        elections = terms(quorate) != terms_before
    return history_section(bench, windows, elections, stopped)


def history_section(bench, windows, elections, stopped):
    window = bench.options.history_window
    each = max(1, round(MINUTE_SECONDS / window))
    # A run that is shorter than two minutes has halves.
    each = min(each, max(1, len(windows) // 2))
    first, last = windows[:each], windows[-each:]
    share = statistics.mean(one["rate"] for one in last) / statistics.mean(one["rate"] for one in first)
    rates = [one["rate"] for one in windows]
    slope = "–"
    if len(windows) > 1:
        fit = statistics.linear_regression([one["at"] / MINUTE_SECONDS for one in windows], rates)
        slope = f"{fit.slope / statistics.mean(rates) * 100:+.2f} % a minute"
    rows = []
    for title, some in (("first", first), ("last", last), ("all", windows)):
        row = [title, f"{some[0]['at']:.0f}–{some[-1]['at'] + window:.0f}"]
        row += [report.figure(statistics.mean(one["rate"] for one in some)), report.spread([one["rate"] for one in some])]
        row += [report.figure(statistics.median(one[field] for one in some)) for field in ("p50_ms", "p99_ms")]
        row += [report.figure(max(one["max_ms"] for one in some)), report.figure(some[-1]["rss_mib"])]
        row += [report.figure(some[-1][part] / MIB) for part in ("log", "state", "snapshots")]
        rows.append([*row, report.figure(some[-1]["disk"] / (1 << 30))])
    head = ["part", "seconds", "puts/s", "windows", "p50 ms", "p99 ms", "longest ms", "RSS MiB", "log MiB", "state MiB"]
    head += ["snapshots MiB", "disk of all GiB"]
    writes = sum(one["ops"] for one in windows)
    kept = share >= SAG_SHARE_MIN and not elections
    about = (
        f"{writes:,} puts of {VALUE_BYTES} bytes to {HISTORY_KEYS:,} keys by {CLIENTS} clients, in windows of {window:g} s one behind the other; nothing is compacted.{stopped} "
        f"The last part's rate is **{share:.2f}** of the first's (to be at least {SAG_SHARE_MIN}, without an election: {verdict(kept)}); the slope of "
        f"all windows is {slope}. Elections: {'**yes**' if elections else 'none'}. Memory is the largest node's, log, state and snapshots are one node's.\n\n"
    )
    broken = [] if kept else [f"the rate of puts fell to {share:.2f}, elections: {elections}"]
    data = {"windows": windows, "share": share, "slope": slope, "elections": elections}
    return Section(about + report.table(head, rows), [history_figure(windows, window)], data, broken)


def history_figure(windows, window):
    at = [(one["at"] + window / 2) / MINUTE_SECONDS for one in windows]

    def panel(title, y_label, *series, **more):
        lines = [line(name, at, [one[field] / unit for one in windows], color) for name, field, unit, color in series]
        return {"title": title, "x_label": "minutes", "y_label": y_label, "series": lines} | more

    return {"file": "growth-history.svg", "title": "A long run of puts", "columns": 2, "panels": [
        panel("Rate", "puts/s", ("rate", "rate", 1, plot.BLUE)),
        panel(
            "Latency in each window", "ms", ("p50", "p50_ms", 1, plot.BLUE), ("p99", "p99_ms", 1, plot.GREEN),
            ("longest", "max_ms", 1, plot.RED), y_log=True,
        ),
        panel("Resident memory of the largest node", "MiB", ("RSS", "rss_mib", 1, plot.BLUE), ("most so far", "peak_mib", 1, plot.GREY)),
        panel(
            "Disk of one node", "GiB", ("log", "log", 1 << 30, plot.BLUE), ("state", "state", 1 << 30, plot.GREEN),
            ("snapshots", "snapshots", 1 << 30, plot.ORANGE),
        ),
    ]}  # fmt: skip
