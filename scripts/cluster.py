"""Clusters of real processes on loopback, for the scripts here that measure. No script of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODES = ("n1", "n2", "n3")
START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 10
# What a load may take beyond what it measures: connecting, warming up, the last answers.
LOAD_GRACE_SECONDS = 60


class Failure(Exception):
    """Something that ends the run, with what to do about it."""


def say(text):
    print(text, file=sys.stderr, flush=True)


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

    def start(self, name, command):
        """Starts a process, in the place of one of the same name that was stopped. Its log grows in NAME.log."""
        with open(self.folder / f"{name}.log", "ab") as log:
            child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.children = [other for other in self.children if other[0] != name] + [(name, child)]
        return child

    def wait_ready(self, url, accept):
        """Polls until the answer is accepted. Fails early if a process has ended."""
        deadline = time.monotonic() + START_SECONDS_MAX
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
        raise Failure(f"{url} was not ready within {START_SECONDS_MAX} s; logs in {self.folder}")

    def cpu_seconds(self):
        """CPU time of all processes so far."""
        total = 0
        for _, child in self.children:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
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
    """Three Quorate nodes, and their load generator."""

    def __init__(self, binary):
        self.binary = binary

    def version(self):
        text = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout
        return text.strip()

    def start(self, processes):
        ports = free_ports(2 * len(NODES))
        initial = ",".join(f"{name}=127.0.0.1:{ports[2 * i + 1]}" for i, name in enumerate(NODES))
        self.urls = dict(zip(NODES, (f"http://127.0.0.1:{port}" for port in ports[::2])))
        self.commands = {}
        for i, name in enumerate(NODES):
            command = [self.binary, "serve", "--name", name, "--data-dir", processes.folder / name]
            command += ["--client-addr", f"127.0.0.1:{ports[2 * i]}", "--peer-addr", f"127.0.0.1:{ports[2 * i + 1]}"]
            self.commands[name] = command + ["--initial-cluster", initial]
            self.start_node(processes, name)
        for name in NODES:
            self.wait_ready(processes, name)

    def start_node(self, processes, name):
        return processes.start(name, self.commands[name])

    def wait_ready(self, processes, name):
        processes.wait_ready(f"{self.urls[name]}/readyz", lambda body: True)

    def load(self, kind, clients, seconds, keys, value_bytes, urls=None, grace=LOAD_GRACE_SECONDS):
        command = [self.binary, "bench", kind, "--clients", clients, "--duration", f"{seconds}s"]
        command += ["--keys", keys, "--value-size", value_bytes, "--output", "json"]
        return load(command + ["--endpoint", ",".join(urls or self.urls.values())], seconds, grace)
