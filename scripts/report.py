"""What measurements are written down as: the machine they were made on, tables, and sections of a document. No script of its own."""

import datetime
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from cluster import ROOT, Failure

DOCS = ROOT / "docs" / "performance.md"
# The raw disk: how much one append writes, for how long it is measured, and with how many writers at once (nodes).
APPEND_BYTES = 4096
APPEND_SECONDS = 2
APPEND_WRITERS = (1, 3)


def filesystem_of(folder):
    """The type of the file system a folder lies in."""
    folder = str(Path(folder).resolve())
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(mount[1]), mount[2]) for mount in mounts if Path(folder).is_relative_to(mount[1])]
    return max(holding)[1] if holding else "unknown file system"


def append_p50_ms(folder, writers, seconds=APPEND_SECONDS):
    """The median time of an append of 4 KiB with its fdatasync, with so many writers, each on a file of its own."""
    times = []

    def write(path):
        mine = []
        with open(path, "wb", buffering=0) as file:
            deadline = time.perf_counter() + seconds
            while (started := time.perf_counter()) < deadline:
                file.write(bytes(APPEND_BYTES))
                os.fdatasync(file.fileno())
                mine.append(time.perf_counter() - started)
        times.extend(mine)

    paths = [folder / f"append-{writer}" for writer in range(writers)]
    threads = [threading.Thread(target=write, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path in paths:
        path.unlink(missing_ok=True)
    if not times:
        raise Failure(f"nothing could be appended in {folder}")
    return statistics.median(times) * 1000


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    return models[0] if models else platform.machine()


def machine(folder):
    """What a figure depends on, measured and read now. `folder` is where the data will lie."""
    folder.mkdir(parents=True, exist_ok=True)
    # What others have left to write would be measured with the appends.
    os.sync()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory_gib": round(memory / (1 << 30), 1),
        "filesystem": filesystem_of(folder),
        "append_p50_ms": {str(writers): round(append_p50_ms(folder, writers), 3) for writers in APPEND_WRITERS},
        "load_average": round(os.getloadavg()[0], 2),
    }


def machine_lines(machine, versions):
    """The machine as a list in Markdown."""
    appends = ", ".join(
        f"{ms:.2f} ms with {writers} {'writer' if writers == '1' else 'writers'}"
        for writers, ms in machine["append_p50_ms"].items()
    )
    return [
        f"- {machine['date']}: {', '.join(versions)}",
        f"- {machine['cores']} cores ({machine['cpu']}), shared by nodes and clients; {machine['memory_gib']} GiB of memory; "
        f"{machine['kernel']}; load average {machine['load_average']} before",
        f"- {machine['filesystem']}; append of {APPEND_BYTES >> 10} KiB and fdatasync, p50: {appends}",
    ]


def commit():
    """The commit of this tree, marked if its sources were changed since; None outside of git."""
    def git(*words):
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    if not (head := git("rev-parse", "--short=10", "HEAD")):
        return None
    return head + ("-changed" if git("status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock") else "")


def command_line():
    """The command that was given, without the paths of one machine."""
    def plain(text):
        if not text.startswith("/"):
            return text
        path = Path(text)
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

    words = ["scripts/" + Path(sys.argv[0]).name]
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=")
        words.append(flag + equals + plain(value) if equals else plain(word))
    return shlex.join(words)


def table(head, rows):
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def figure(value):
    """A number with three digits that count, and commas."""
    if value is None:
        return "–"
    for digits, least in ((0, 100), (1, 10), (2, 0)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"


def spread(values):
    """Least and greatest."""
    return f"{figure(min(values))}–{figure(max(values))}"


def write_section(document, name, text):
    """Puts a text between its markers: in the place it had, or at the end. Everything else stays as it is."""
    begin, end = f"<!-- {name}: begin (generated; changes are lost) -->", f"<!-- {name}: end -->"
    whole = document.read_text() if document.exists() else "# Performance\n"
    if (begin in whole) != (end in whole) or whole.count(begin) > 1:
        raise Failure(f"{document}: the markers of {name} don't pair; mend them by hand")
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    if begin in whole:
        before, rest = whole.split(begin, 1)
        whole = before + section + rest.split(end, 1)[1]
    else:
        whole = f"{whole.rstrip()}\n\n{section}\n"
    document.parent.mkdir(parents=True, exist_ok=True)
    # A reader, or a run that is stopped here, never sees half a document.
    partial = document.with_suffix(".partial")
    partial.write_text(whole)
    partial.replace(document)


def need_disk(folder, expected_bytes, factor):
    """Refuses to begin without so many times the room that is expected to be taken."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < expected_bytes * factor:
        raise Failure(
            f"about {expected_bytes / 1e9:.1f} GB will be written below {folder} and {factor:g} times that must be free, "
            f"but {free / 1e9:.1f} GB are; make room, measure less, or set --disk-factor"
        )
