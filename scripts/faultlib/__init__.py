"""What the rows of scripts/faults share: counting, time bounds, judged rounds of load, and what a row came to. No script of its own."""

import contextlib
import dataclasses
import random
import shutil
import signal
import statistics
import time
import traceback
from collections import Counter

from cluster import Failure, say
from faultlib.judge import Load
from faultlib.lab import SMALL_FILES, Lab, Violation

# Without a leader no longer than this many election timeouts; `--busy` is what a machine that does other work takes on top.
ELECTION_TIMEOUTS_MAX = 3
NOTES_MAX = 10
# What names of namespaces begin with; the process follows.
NAMESPACES = "qf"


class Skip(Exception):
    """This machine can't do it, and why."""


@dataclasses.dataclass
class Row:
    """One row of the matrix. `body(bench)` breaks things until `bench.more()` says that it is enough."""

    id: str
    fault: str
    body: callable
    # Trials to reach and seconds to take at most, in the short and the long setting.
    short: tuple
    long: tuple
    unit: str = "faults"


@dataclasses.dataclass
class Result:
    """What a row came to. `verdict` is passed, partly (fewer trials than asked for, or parts skipped; none failed), failed or skipped."""

    id: str
    fault: str
    unit: str = ""
    goal: int = 0
    verdict: str = "skipped"
    trials: int = 0
    counts: Counter = dataclasses.field(default_factory=Counter)
    histories: int = 0
    operations: int = 0
    unknown: int = 0
    hashes: int = 0
    away_seconds: list = dataclasses.field(default_factory=list)
    away_late: int = 0
    ready_seconds: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    notes: list = dataclasses.field(default_factory=list)
    # Parts that could not be done here, and why: none of them counts as passed.
    skipped: list = dataclasses.field(default_factory=list)
    problem: str = ""
    # Of what no row expects to go wrong.
    traceback: str = ""

    def to_json(self):
        # asdict would make a Counter of pairs.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data):
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**({name: value for name, value in data.items() if name in names} | {"counts": Counter(data["counts"])}))

    def add(self, other):
        """Takes in another run of the same row; the worse verdict stays."""
        for name in ("trials", "histories", "operations", "unknown", "hashes", "away_late", "seconds", "goal"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts.update(other.counts)
        self.away_seconds += other.away_seconds
        self.ready_seconds += other.ready_seconds
        self.notes += [note for note in other.notes if note not in self.notes]
        self.skipped += [part for part in other.skipped if part not in self.skipped]
        if rank(other.verdict) > rank(self.verdict):
            self.verdict, self.problem, self.traceback = other.verdict, other.problem, other.traceback


def rank(verdict):
    return ("skipped", "passed", "partly", "failed").index(verdict)


class Bench:
    """What the body of a row works with. Everything it starts ends with it."""

    def __init__(self, row, options, tools, folder):
        self.row, self.options, self.tools, self.folder = row, options, tools, folder
        trials, seconds = row.short if options.short else row.long
        self.goal = options.count or trials
        self.seconds_max = options.row_seconds or seconds
        self.random = random.Random(f"{options.seed}-{row.id}")
        self.result = Result(row.id, row.fault, row.unit, self.goal)
        self.stack = contextlib.ExitStack()
        self.started = time.monotonic()
        self.labs = 0

    @property
    def binary(self):
        return self.options.quorate

    def time_left(self):
        return self.seconds_max - (time.monotonic() - self.started)

    def more(self):
        """Whether there are to be more trials."""
        return self.result.trials < self.goal and self.time_left() > 0

    def some(self, most):
        """At most so many trials, as long as there are to be more."""
        for _ in range(most):
            if not self.more():
                return
            yield self.result.trials

    def trial(self, **counts):
        """One more trial is done, with what else is counted."""
        self.result.trials += 1
        self.count(**counts)
        if self.result.trials % 25 == 0:
            say(f"    {self.row.id}: {self.result.trials} of {self.goal} {self.row.unit}")

    def count(self, **counts):
        self.result.counts.update(counts)

    def note(self, text):
        """Something to tell beside the counts; no path of this machine in it."""
        text = text.replace(str(self.folder), "DATA")
        if text not in self.result.notes and len(self.result.notes) < NOTES_MAX:
            self.result.notes.append(text)

    def skip(self, part, reason):
        """A part of the row can't be done here: it is told, however many notes there are, and the row passes in part at most."""
        text = f"{part}: {reason}".replace(str(self.folder), "DATA")
        if text not in self.result.skipped:
            self.result.skipped.append(text)

    def away(self, lab, seconds):
        """The service was away for so long, with a connected majority all the time."""
        timeout = lab.election_seconds()
        self.result.away_seconds.append(round(seconds, 3))
        if seconds > ELECTION_TIMEOUTS_MAX * timeout:
            self.result.away_late += 1
        if seconds > ELECTION_TIMEOUTS_MAX * timeout + self.options.busy:
            raise Violation(f"nothing could be written for {seconds:.1f} s, {seconds / timeout:.1f} election timeouts, with a majority up")

    def back(self, seconds):
        """Nodes were ready so long after they were started."""
        self.result.ready_seconds.append(round(seconds, 3))

    def lab(self, nodes=3, **options):
        """A cluster that is not started."""
        self.labs += 1
        return self.stack.enter_context(Lab(self.binary, self.folder / f"lab{self.labs}", nodes, **options))

    def serving(self, **options):
        """A cluster with small files that serves."""
        lab = self.lab(flags=SMALL_FILES, **options)
        lab.start()
        lab.ready()
        return lab

    def rounds(self, lab, trials, one, **load):
        """Judged rounds of so many trials each, as long as there are to be more; `one(bench, lab)` is a trial."""
        while self.more():
            with self.round(lab, **load):
                for _ in self.some(trials):
                    one(self, lab)

    @contextlib.contextmanager
    def load(self, lab, names=None, **options):
        """Clients at work on some nodes; what they saw is judged when it ends, unless something failed before."""
        load = Load(self.binary, lab.folder, lab.urls(names), self.random.randrange(1 << 32), **options)
        with load:
            yield load
            told = load.stop()
        verdict = load.judge()
        self.result.histories += 1
        self.result.operations += verdict["operations"]
        self.result.unknown += told["unknown"]

    @contextlib.contextmanager
    def round(self, lab, names=None, **options):
        """Load on a cluster that is whole when it ends; then all nodes must hold the same."""
        with self.load(lab, names, **options) as load:
            yield load
            lab.ready()
        lab.converged()
        self.result.hashes += 1


def run_row(row, options, tools, folder):
    """Runs a row in a folder that is made anew, to its end; what it came to. Whatever goes wrong ends this row alone."""
    bench = Bench(row, options, tools, folder)
    result = bench.result
    try:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            row.body(bench)
        finally:
            with undisturbed():
                bench.stack.close()
        result.verdict = "passed" if result.trials >= bench.goal and not result.skipped else "partly"
        if result.trials == 0:
            result.verdict, result.problem = "failed", "no trial was finished in time"
    except Skip as reason:
        result.verdict, result.problem = "skipped", str(reason)
    except (Violation, Failure, OSError) as problem:
        result.verdict, result.problem = "failed", f"{type(problem).__name__}: {problem}"
    except Exception as problem:
        # Of a wait that took too long, or of a mistake here: a night goes on without this row.
        result.verdict, result.problem, result.traceback = "failed", f"{type(problem).__name__}: {problem}", traceback.format_exc()
        say(result.traceback)
    result.seconds = round(time.monotonic() - bench.started, 1)
    return result


@contextlib.contextmanager
def undisturbed():
    """Not interrupted by a second Ctrl-C: what was mounted and started is taken away first."""
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def middle(values):
    return statistics.median(values) if values else None
