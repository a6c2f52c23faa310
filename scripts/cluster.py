"""Clusters of real processes on loopback, for the scripts here that measure. No script of its own."""

import argparse
import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODES = ("n1", "n2", "n3")
FIVE_NODES = ("n1", "n2", "n3", "n4", "n5")
START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 10
# What a load may take beyond what it measures: connecting, warming up, the last answers.
LOAD_GRACE_SECONDS = 60
SCRAPE_SECONDS_MAX = 10
# Filling: writers, and keys and bytes of values in one request.
FILL_WRITERS = 6
FILL_KEYS = 100
FILL_BYTES = 512 << 10
FILL_PAUSE_SECONDS = 0.1
FILL_REQUEST_SECONDS_MAX = 60
# What restarts are measured with: which nodes, how they are stopped, and whether the first of them loses its state store.
RESTARTS = (
    ("one node, SIGTERM", NODES[:1], signal.SIGTERM, False),
    ("one node, SIGKILL", NODES[1:2], signal.SIGKILL, False),
    ("one node, SIGKILL, state/ deleted", NODES[2:], signal.SIGKILL, True),
    ("all nodes, SIGKILL", NODES, signal.SIGKILL, False),
)


class Failure(Exception):
    """Something that ends the run, with what to do about it."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def main(name, body):
    """Runs a script: a failure is one line and exit code 1, and SIGTERM stops what was started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        body()
    except (Failure, subprocess.SubprocessError) as error:
        say(f"{name}: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def numbers(text):
    """Numbers with commas between, for an argument parser."""
    return [int(part) for part in text.split(",")]


def names_of(allowed):
    """Names with commas between, all among those allowed, for an argument parser."""
    def names(text):
        chosen = text.split(",")
        if unknown := set(chosen) - set(allowed):
            # argparse shows the text of this kind of error alone.
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(allowed)}")
        return chosen
    return names


def run(command, **options):
    say("$ " + " ".join(str(part) for part in command))
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **options)


def build_quorate(binary):
    """The binary that is named, or a release build of the tree."""
    if binary:
        return Path(binary)
    run(["cargo", "build", "--release", "--locked", "--bin", "quorate"])
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "quorate"


def free_ports(count):
    """Ports that nobody listens on now. All are held until all are found, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Processes:
    """Started processes with their logs; all are stopped on leaving, whatever happened."""

    def __init__(self, folder):
        self.folder = folder
        self.children = []

    def __enter__(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def start(self, name, command, env=None):
        """Starts a process, in the place of one of the same name that was stopped. Its log grows in NAME.log."""
        with open(self.folder / f"{name}.log", "ab") as log:
            child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        self.children = [other for other in self.children if other[0] != name] + [(name, child)]
        return child

    def wait_ready(self, url, accept, seconds_max=START_SECONDS_MAX):
        """Polls until the answer is accepted. Fails early if a process has ended."""
        deadline = time.monotonic() + seconds_max
        while time.monotonic() < deadline:
            for name, child in self.children:
                if child.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise Failure(f"{name} ended with {child.returncode}:\n{log}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                with urllib.request.urlopen(url, timeout=1) as answer:
                    if accept(answer.read()):
                        return
            time.sleep(0.1)
        raise Failure(f"{url} was not ready within {seconds_max} s; logs in {self.folder}")

    def cpu_seconds(self):
        """CPU time of all processes so far."""
        total = 0
        for _, child in self.children:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def memory_mib(self, names=None):
        """Resident memory of the largest of the processes in MiB: now, and the most that any has had."""
        found = []
        for name, child in self.children:
            if names is None or name in names:
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                fields = dict(line.split(":", 1) for line in lines)
                found.append([int(fields[field].split()[0]) / 1024 for field in ("VmRSS", "VmHWM")])
        return tuple(max(values) for values in zip(*found))

    def disk_bytes(self):
        """What all files below the folder take."""
        total = 0
        for folder, _, files in os.walk(self.folder):
            for file in files:
                # Files come and go while nodes run.
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, file)).st_blocks * 512
        return total

    def stop(self, name, how):
        """Sends a signal and waits for the end."""
        child = dict(self.children)[name]
        child.send_signal(how)
        try:
            child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Failure(f"{name} did not end within {STOP_SECONDS_MAX} s of signal {how}; logs in {self.folder}")
        self.children = [other for other in self.children if other[0] != name]

    def __exit__(self, *_):
        for _, child in self.children:
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for _, child in self.children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        # The data goes, the logs stay.
        for folder in self.folder.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)


def load(command, seconds, grace=LOAD_GRACE_SECONDS):
    """Runs a load generator and takes the JSON object on the last line of its output."""
    command = [str(part) for part in command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + grace, stdin=subprocess.DEVNULL
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise Failure(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    try:
        result = json.loads(lines[-1])
    except ValueError:
        # Pretty-printed.
        result = json.loads(done.stdout)
    return normalized(result, command, done.stderr)


def normalized(result, command, stderr):
    """The figures under the names used here: etcd-load's own, or those of Quorate's longer report."""
    if "rate_per_second" in result:
        latency = result["latency_us"] or {}
        result |= {"ops": result["operations"], "rate": result["rate_per_second"], "report": result["errors"]}
        result |= {f"{name}_ms": latency.get(name, 0) / 1000 for name in ("p50", "p99", "max")}
        result["errors"] = sum(result["report"].values())
        result = {name: value for name, value in result.items() if not isinstance(value, list)}
    for field in ("ops", "errors", "rate", "p50_ms", "p99_ms", "max_ms"):
        if field not in result:
            raise Failure(f"{' '.join(command)} did not tell \"{field}\": {result}")
    if result["errors"]:
        say(f"    {result['errors']} errors: {result.get('report') or stderr.strip()[-300:]}")
    return result


class Quorate:
    """Quorate nodes, three unless more are named, and their load generator. `flags` are further ones of `serve`."""

    def __init__(self, binary, nodes=NODES, flags=(), start_seconds_max=START_SECONDS_MAX):
        self.binary = binary
        self.start_seconds_max = start_seconds_max
        self.nodes = nodes
        self.flags = list(flags)

    def version(self):
        text = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout
        return text.strip()

    def start(self, processes):
        ports = free_ports(2 * len(self.nodes))
        initial = ",".join(f"{name}=127.0.0.1:{ports[2 * i + 1]}" for i, name in enumerate(self.nodes))
        self.urls = dict(zip(self.nodes, (f"http://127.0.0.1:{port}" for port in ports[::2])))
        self.commands = {}
        for i, name in enumerate(self.nodes):
            command = [self.binary, "serve", "--name", name, "--data-dir", processes.folder / name]
            command += ["--client-addr", f"127.0.0.1:{ports[2 * i]}", "--peer-addr", f"127.0.0.1:{ports[2 * i + 1]}"]
            self.commands[name] = command + ["--initial-cluster", initial] + self.flags
            self.start_node(processes, name)
        for name in self.nodes:
            self.wait_ready(processes, name)

    def start_node(self, processes, name):
        return processes.start(name, self.commands[name])

    def wait_ready(self, processes, name):
        processes.wait_ready(f"{self.urls[name]}/readyz", lambda body: True, self.start_seconds_max)

    def wait_ready_for_metrics(self, processes, name):
        """Waits until a node that was started tells its figures, whether it can serve or not."""
        processes.wait_ready(f"{self.urls[name]}/metrics", lambda body: b"quorate_catchup_active" in body, self.start_seconds_max)

    def restart(self, processes, names, how, without_state=False):
        """Stops nodes, starts them again, and waits until all are ready: seconds, and memory of the largest."""
        for name in names:
            processes.stop(name, how)
            if without_state:
                shutil.rmtree(processes.folder / name / "state")
        started = time.monotonic()
        for name in names:
            self.start_node(processes, name)
        for name in names:
            self.wait_ready(processes, name)
        seconds = time.monotonic() - started
        return seconds, *processes.memory_mib(names)

    def load(self, kind, clients, seconds, keys, value_bytes, urls=None, grace=LOAD_GRACE_SECONDS, flags=()):
        """`seconds` may have a fraction, of milliseconds."""
        command = [self.binary, "bench", kind, "--clients", clients, "--duration", f"{round(seconds * 1000)}ms"]
        command += ["--keys", keys, "--value-size", value_bytes, "--output", "json", *flags]
        return load(command + ["--endpoint", ",".join(urls or self.urls.values())], seconds, grace)

    def metrics(self, name):
        """The series of a node without labels, by their names without `quorate_`."""
        with urllib.request.urlopen(f"{self.urls[name]}/metrics", timeout=SCRAPE_SECONDS_MAX) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.split() for line in lines if line.startswith("quorate_") and "{" not in line)
        return {pair[0].removeprefix("quorate_"): float(pair[1]) for pair in pairs}

    def leader(self):
        """The name of the node that leads."""
        for name in self.nodes:
            if self.metrics(name).get("raft_is_leader") == 1:
                return name
        raise Failure("no node says that it leads")

    def fill(self, first, last, value_bytes, seconds_max):
        """Writes the keys from `first` to before `last` that the load generator reads, several in a transaction.

        Its own way of writing them gives up after two minutes and always begins with the first.
        """
        deadline = time.monotonic() + seconds_max
        per_request = max(1, min(FILL_KEYS, FILL_BYTES // value_bytes))
        starts, abandoned = range(first, last, per_request), threading.Event()

        def write(writer):
            urls = list(self.urls.values())
            connection = http.client.HTTPConnection(urls[writer % len(urls)].removeprefix("http://"), timeout=60)
            with contextlib.closing(connection):
                for start in starts[writer::FILL_WRITERS]:
                    if abandoned.is_set():
                        return
                    keys = range(start, min(start + per_request, last))
                    # Random, because whatever repeats would be compressed away by the state store and by snapshots.
                    text = base64.b64encode(os.urandom(len(keys) * value_bytes)).decode()
                    values = (text[i * value_bytes : (i + 1) * value_bytes] for i in range(len(keys)))
                    puts = (f'{{"put":{{"key":"bench/{key:09}","value":"{value}"}}}}' for key, value in zip(keys, values))
                    send_until_done(connection, f'{{"success":[{",".join(puts)}]}}', deadline, abandoned)

        with concurrent.futures.ThreadPoolExecutor(FILL_WRITERS) as pool:
            try:
                # Taking the results raises what a writer raised.
                list(pool.map(write, range(FILL_WRITERS)))
            except BaseException:
                # The others are waited for.
                abandoned.set()
                raise


def send_until_done(connection, body, deadline, abandoned):
    """Sends a transaction that may be carried out twice, again after every refusal for a while, until it is abandoned."""
    deadline = min(deadline, time.monotonic() + FILL_REQUEST_SECONDS_MAX)
    while not abandoned.is_set():
        problem, pause = "the time was up", FILL_PAUSE_SECONDS
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/txn", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            problem = answer.read()
            if answer.status == 200:
                return
            if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                pause = float(answer.getheader("Retry-After") or pause)
            elif answer.status < 500:
                raise Failure(f"filling was refused with {answer.status}: {problem[:300]}")
        if time.monotonic() > deadline:
            raise Failure(f"the keys could not be written in time: {problem[:300]}")
        connection.close()
        time.sleep(pause)
