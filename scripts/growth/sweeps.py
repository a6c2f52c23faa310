"""Sections of bench-growth that measure the same loads on more and more of something. No script of its own."""

import plot
import report
from cluster import FIVE_NODES, NODES, say
from growth import (
    CLIENTS, KINDS, LATENCY_PANEL, VALUE_BYTES, Section, Watcher, count_name, filled_bytes, latency_lines, line, median, size_name,
    verdict, written_bytes,
)  # fmt: skip

COLORS = {"put": plot.BLUE, "get": plot.GREEN, "stale": plot.ORANGE, "mixed": plot.RED}
# Values of all keys together in the sweep of sizes: no size is measured on a larger store than another.
SWEEP_BYTES = 256 << 20
SWEEP_KEYS_MAX = 20_000
# What nodes are told to cache in the section that compares their memory with it, and how much more they may take.
CACHES_MIB = {"--log-cache-bytes": 64, "--state-cache-bytes": 640, "--value-cache-bytes": 512, "--write-buffer-bytes": 256}
MEMORY_SPARE_MIB = 300
# How far a full store may be from an empty one.
LOADED_SHARE_MIN = 0.75
EMPTY_KEYS = 20_000
NODES_CLIENTS = (1, 64, 256)


def figures_of(result):
    return [report.figure(result[field]) for field in ("rate", "p50_ms", "p99_ms")]


def sweep_figure(file, title, x, ticks, x_label, by_kind, panels=(), rate_log=True):
    """A plot of rates and latencies of several kinds of work. `ticks` are the names of the places in `x`."""
    axis = {"x_label": x_label, "x_log": True, "x_ticks": [[place, name] for place, name in zip(x, ticks)]}
    rate = axis | {"title": "Rate", "y_label": "requests/s", "y_log": rate_log}
    rate["series"] = [line(kind, x, [one["rate"] for one in results], COLORS[kind]) for kind, results in by_kind.items()]
    latency = axis | LATENCY_PANEL
    latency["series"] = [
        one for kind, results in by_kind.items() for one in latency_lines(kind, x, results, COLORS[kind])
    ]
    return {"file": file, "title": title, "panels": [rate, latency, *(axis | panel for panel in panels)]}


def values(bench):
    """Gets and puts of values of 16 bytes to 1 MiB."""
    sizes = bench.options.value_sizes
    bench.need_disk(max(written_bytes(bench.options.seconds, size) for size in sizes) + SWEEP_BYTES)
    by_kind, rows = {"get": [], "put": []}, []
    for size in sizes:
        keys = max(1, min(SWEEP_KEYS_MAX, SWEEP_BYTES // size))
        with bench.cluster(keys, size) as (quorate, processes):
            for kind, results in by_kind.items():
                results.append(bench.cell(quorate, kind, keys, size))
        get, put = (by_kind[kind][-1] for kind in ("get", "put"))
        throughput = [report.figure(one["rate"] * size / 1e6) for one in (put, get)]
        row = [size_name(size), f"{keys:,}", *figures_of(put), throughput[0], *figures_of(get), throughput[1]]
        rows.append(row)
    head = ["value", "keys", "puts/s", "p50 ms", "p99 ms", "MB/s", "gets/s", "p50 ms", "p99 ms", "MB/s"]
    throughput = {"title": "Throughput", "y_label": "MB/s", "y_log": True, "series": [
        line(kind, sizes, [one["rate"] * size / 1e6 for one, size in zip(results, sizes)], COLORS[kind])
        for kind, results in by_kind.items()
    ]}  # fmt: skip
    names = [size_name(size).replace(" ", "") for size in sizes]
    figure = sweep_figure("growth-values.svg", "By size of values", sizes, names, "value", by_kind, [throughput])
    about = f"{CLIENTS} clients; a fresh cluster for each size, at most {size_name(SWEEP_BYTES)} of values in it.\n\n"
    return Section(about + report.table(head, rows), [figure], {"sizes": sizes, "by_kind": by_kind})


def keys(bench):
    """Gets and puts on more and more keys."""
    counts = bench.options.keys
    written = written_bytes(bench.options.seconds * len(counts), VALUE_BYTES)
    bench.need_disk(filled_bytes(max(counts), VALUE_BYTES) + written)
    by_kind, rows, memory = {"get": [], "put": []}, [], []
    with bench.cluster() as (quorate, processes):
        filled = 0
        for count in counts:
            bench.fill(quorate, processes, filled, count, VALUE_BYTES)
            filled = count
            for kind, results in by_kind.items():
                results.append(bench.cell(quorate, kind, count))
            memory.append(processes.memory_mib())
            get, put = (by_kind[kind][-1] for kind in ("get", "put"))
            disk = report.figure(processes.disk_bytes() / len(NODES) / (1 << 20))
            rows.append([f"{count:,}", *figures_of(get), *figures_of(put), *map(report.figure, memory[-1]), disk])
    head = ["keys", "gets/s", "p50 ms", "p99 ms", "puts/s", "p50 ms", "p99 ms", "RSS MiB", "at most", "disk MiB a node"]
    resident = {"title": "Resident memory of the largest node", "y_label": "MiB", "series": [
        line("after the loads", counts, [now for now, _ in memory], plot.BLUE),
        line("most so far", counts, [most for _, most in memory], plot.GREY, dashed=True),
    ]}  # fmt: skip
    names = [count_name(count) for count in counts]
    figure = sweep_figure("growth-keys.svg", "By number of keys", counts, names, "keys", by_kind, [resident], rate_log=False)
    about = f"{CLIENTS} clients, {VALUE_BYTES}-byte values; one cluster that is filled further each time. RSS is that of the largest node.\n\n"
    return Section(about + report.table(head, rows), [figure], {"counts": counts, "by_kind": by_kind, "memory": memory})


def clients(bench):
    """Every kind of work by more and more clients."""
    counts = bench.options.clients
    bench.need_disk(written_bytes(bench.options.seconds * 2 * len(counts), VALUE_BYTES))
    by_kind, rows = {kind: [] for kind in KINDS}, []
    with bench.cluster(EMPTY_KEYS) as (quorate, _):
        for count in counts:
            for kind, results in by_kind.items():
                results.append(bench.cell(quorate, kind, EMPTY_KEYS, clients=count))
                rows.append([f"{count:,}", kind, *figures_of(results[-1]), report.figure(results[-1]["max_ms"])])
    figure = sweep_figure("growth-clients.svg", "By clients", counts, [f"{count:,}" for count in counts], "clients", by_kind)
    head = ["clients", "work", "requests/s", "p50 ms", "p99 ms", "longest ms"]
    about = f"{VALUE_BYTES}-byte values, {EMPTY_KEYS:,} keys.\n\n"
    return Section(about + report.table(head, rows), [figure], {"counts": counts, "by_kind": by_kind})


def nodes(bench):
    """Five nodes against three, in turn."""
    options = bench.options
    counts = [count for count in NODES_CLIENTS if count <= max(options.clients)]
    bench.need_disk(written_bytes(options.seconds * 2 * len(counts), VALUE_BYTES), len(FIVE_NODES))
    found = {}
    for number in range(options.rounds):
        systems = (NODES, FIVE_NODES) if number % 2 == 0 else (FIVE_NODES, NODES)
        for names in systems:
            say(f"    round {number + 1}: {len(names)} nodes")
            with bench.cluster(EMPTY_KEYS, nodes=names) as (quorate, _):
                for kind in KINDS:
                    for count in counts:
                        result = bench.cell(quorate, kind, EMPTY_KEYS, clients=count)
                        found.setdefault((kind, count), {}).setdefault(len(names), []).append(result)
    rows = []
    for (kind, count), results in found.items():
        three, five = results[len(NODES)], results[len(FIVE_NODES)]
        row = [kind, count]
        for one in (three, five):
            row += [report.figure(median(one, "rate")), report.spread([result["rate"] for result in one])]
            row += [report.figure(median(one, field)) for field in ("p50_ms", "p99_ms")]
        rows.append([*row, f"{median(five, 'rate') / median(three, 'rate'):.2f}"])
    head = ["work", "clients", "3 nodes: /s", "rounds", "p50 ms", "p99 ms", "5 nodes: /s", "rounds", "p50 ms", "p99 ms", "5 : 3"]
    about = f"Median of {options.rounds} {'rounds' if options.rounds > 1 else 'round'} in turn; {VALUE_BYTES}-byte values, {EMPTY_KEYS:,} keys; all nodes on one machine.\n\n"
    data = [{"kind": kind, "clients": count, "by_nodes": results} for (kind, count), results in found.items()]
    return Section(about + report.table(head, rows), [], {"cells": data})


def loaded(bench):
    """A full store against an empty one, for longer; and the memory of its nodes."""
    options = bench.options
    written = written_bytes(options.loaded_seconds * 1.2, VALUE_BYTES)
    bench.need_disk(filled_bytes(options.loaded_keys, VALUE_BYTES) + written)
    flags = [word for flag, mib in CACHES_MIB.items() for word in (flag, f"{mib}MiB")]
    bound = sum(CACHES_MIB.values()) + MEMORY_SPARE_MIB
    results, memory = {}, []
    for title, count in (("empty", EMPTY_KEYS), ("full", options.loaded_keys)):
        with bench.cluster(count, flags=flags) as (quorate, processes):
            after_fill = {name: processes.memory_mib([name]) for name in quorate.nodes}
            most = dict.fromkeys(quorate.nodes, 0)

            def look():
                for name in quorate.nodes:
                    most[name] = max(most[name], processes.memory_mib([name])[0])

            # What only reads comes first: what writes leaves history behind.
            with Watcher(1, look):
                for kind in ("get", "stale", "mixed", "put"):
                    results[title, kind] = bench.cell(quorate, kind, count, seconds=options.loaded_seconds)
            memory += [(title, name, *after_fill[name], most[name]) for name in quorate.nodes]
    rows, broken = [], []
    for kind in KINDS:
        empty, full = results["empty", kind], results["full", kind]
        share = full["rate"] / empty["rate"]
        rows.append([kind, *figures_of(empty), *figures_of(full), f"{share:.2f}", verdict(share >= LOADED_SHARE_MIN)])
        if share < LOADED_SHARE_MIN:
            broken.append(f"{kind} on the full store at {share:.2f} of the empty one's rate")
    head = ["work", "empty: /s", "p50 ms", "p99 ms", "full: /s", "p50 ms", "p99 ms", "full : empty", f"≥ {LOADED_SHARE_MIN}"]
    memory_rows = []
    for title, name, now, peak, highest in memory:
        kept = highest <= bound
        memory_rows.append([title, name, *map(report.figure, (now, peak, highest)), f"{bound}", verdict(kept)])
        if not kept:
            broken.append(f"{name} of the {title} store took {highest:.0f} MiB of {bound}")
    memory_head = ["store", "node", "filled: RSS MiB", "most while filled", "most under load", "caches + 300", "kept"]
    about = (
        f"{EMPTY_KEYS:,} keys against {options.loaded_keys:,} of {VALUE_BYTES} bytes, each in a fresh cluster; {CLIENTS} clients, "
        f"{options.loaded_seconds:g} s of each kind of work.\n\n"
    )
    text = about + report.table(head, rows) + "\n\n" + report.table(memory_head, memory_rows)
    data = {"loads": [{"store": title, **result} for (title, _), result in results.items()], "memory": memory, "bound": bound}
    return Section(text, [], data, broken)
