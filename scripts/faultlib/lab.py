"""A cluster that can be broken: nodes of their own addresses, signals, what each says of itself, and proof that all hold the same.

No script of its own. Each run has loopback addresses of its own (127.A.B.n), so that no port of a node that is down is
taken by somebody else.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import time

from cluster import Failure

CLIENT_PORT, PEER_PORT = 7480, 7481
LOOK_SECONDS_MAX = 1.0
READY_SECONDS_MAX = 60
TOLD_SECONDS_MAX = 20
END_SECONDS_MAX = 15
CONVERGED_SECONDS_MAX = 60
SCAN_SECONDS_MAX = 60
POLL_SECONDS = 0.05
PROBE_TIMEOUT_MS = 400
# Small enough that every kind of file is there, and changes, within seconds: log files of 64 KiB, snapshots behind 256 KiB.
SMALL_FILES = ("--snapshot-log-bytes", "256KiB")
LOG_LEVEL = "quorate=info,warn,openraft=error,quorate::api=error"
# Clusters of one run differ by this.
NUMBERS = itertools.count()
ADDRESSES_PER_CLUSTER = 10
CLUSTERS_MAX = 24


class Violation(Exception):
    """Something that was promised did not hold."""


class Unreadable(Violation):
    """A node did not give what it holds."""


class Node:
    """One node: where it lies and listens, and its process if it runs."""

    def __init__(self, name, folder, address, data=None):
        self.name, self.folder, self.address = name, folder, address
        self.data = data or folder / name
        self.log = folder / f"{name}.log"
        self.advertised = (address, PEER_PORT)
        self.url = f"http://{address}:{CLIENT_PORT}"
        self.prefix, self.flags, self.env = [], [], {}
        self.joins = None
        self.child = None

    @property
    def pid(self):
        return self.child.pid if self.child else None

    def running(self):
        return self.child is not None and self.child.poll() is None

    def said(self, last=4000):
        with contextlib.suppress(FileNotFoundError), open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - last))
            return file.read().decode(errors="replace")
        return ""

    def said_since_start(self):
        return self.said(1 << 20).rsplit("=== start ===", 1)[-1]


class Lab:
    """Nodes n1, n2, … in one folder. Leaving it ends all of them."""

    def __init__(self, binary, folder, nodes=3, flags=(), addresses=None):
        self.binary, self.folder, self.flags = binary, folder, list(flags)
        number = next(NUMBERS) % CLUSTERS_MAX
        pid = os.getpid()
        addresses = addresses or [
            f"127.{64 + (pid >> 8) % 128}.{pid % 256}.{1 + number * ADDRESSES_PER_CLUSTER + at}" for at in range(ADDRESSES_PER_CLUSTER)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        self.addresses = addresses
        self.nodes = {f"n{at + 1}": Node(f"n{at + 1}", folder, addresses[at]) for at in range(nodes)}
        self.first = list(self.nodes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill(*self.nodes)

    def names(self):
        return list(self.nodes)

    def urls(self, names=None):
        return [self.nodes[name].url for name in names or self.nodes]

    # Processes

    def command(self, node):
        command = [*node.prefix, self.binary, "serve", "--name", node.name, "--data-dir", node.data]
        command += ["--client-addr", f"{node.address}:{CLIENT_PORT}", "--peer-addr", f"{node.address}:{PEER_PORT}"]
        if node.advertised != (node.address, PEER_PORT):
            command += ["--advertise-peer-addr", "{}:{}".format(*node.advertised)]
        if node.joins:
            command += node.joins
        else:
            initial = ",".join(f"{name}={{}}:{{}}".format(*self.nodes[name].advertised) for name in self.first)
            command += ["--initial-cluster", initial]
        return [str(word) for word in command + self.flags + node.flags]

    def start(self, *names):
        for name in names or self.names():
            node = self.nodes[name]
            if node.running():
                raise Failure(f"{name} runs already")
            env = {key: value for key, value in os.environ.items() if not key.startswith("QUORATE_")}
            env |= {"RUST_LOG": os.environ.get("FAULTS_LOG", LOG_LEVEL), "RUST_BACKTRACE": "1"} | node.env
            with open(node.log, "ab") as log:
                log.write(b"=== start ===\n")
                log.flush()
                node.child = subprocess.Popen(
                    self.command(node), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=self.folder)

    def signal(self, how, *names):
        for name in names:
            if self.nodes[name].running():
                self.nodes[name].child.send_signal(how)

    def kill(self, *names):
        """SIGKILL to all of them at once, and waits."""
        self.signal(signal.SIGKILL, *names)
        stuck = []
        for name in names:
            if self.nodes[name].child:
                try:
                    self.nodes[name].child.wait(END_SECONDS_MAX)
                    self.nodes[name].child = None
                except subprocess.TimeoutExpired:
                    # The others are still waited for.
                    stuck.append(name)
        if stuck:
            raise Failure(f"{', '.join(stuck)} not gone {END_SECONDS_MAX} s after SIGKILL: waiting for a disk?")

    def stop(self, *names):
        """SIGTERM, and waits; it must end as told."""
        self.signal(signal.SIGTERM, *names)
        for name in names:
            try:
                code = self.nodes[name].child.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                raise Violation(f"{name} did not end within {END_SECONDS_MAX} s of SIGTERM")
            self.nodes[name].child = None
            if code != 0:
                raise Violation(f"{name} ended with {code} when told to stop: {self.nodes[name].said(500)}")

    def ended(self, name, seconds=END_SECONDS_MAX):
        """Waits for a node to end by itself: its exit code, or None if it goes on."""
        node = self.nodes[name]
        try:
            code = node.child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        node.child = None
        return code

    def running(self):
        return [name for name, node in self.nodes.items() if node.running()]

    # What they say

    def request(self, name, method, path, body=None, timeout=LOOK_SECONDS_MAX, headers=None):
        """Status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection(self.nodes[name].address, CLIENT_PORT, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def asked(self, name, method, path, body=None, timeout=LOOK_SECONDS_MAX, headers=None):
        """As `request`; (None, b"") where there was no answer."""
        try:
            return self.request(name, method, path, body, timeout, headers)
        except (OSError, http.client.HTTPException):
            return None, b""

    def status(self, name):
        code, body = self.asked(name, "GET", "/v1/status")
        return json.loads(body) if code == 200 else None

    def told(self, name, seconds=TOLD_SECONDS_MAX):
        """As `status`, of a node that has to answer: asked again for a while."""
        deadline = time.monotonic() + seconds
        while (status := self.status(name)) is None:
            if not self.nodes[name].running():
                raise Unreadable(f"{name} has ended: {self.nodes[name].said(1500)}")
            if time.monotonic() > deadline:
                raise Unreadable(f"{name} does not tell its status for {seconds} s: {self.nodes[name].said(800)}")
            time.sleep(POLL_SECONDS)
        return status

    def is_ready(self, name):
        return self.asked(name, "GET", "/readyz")[0] == 200

    def ready(self, *names, seconds=READY_SECONDS_MAX):
        """Waits until they serve linearizable reads; seconds that took."""
        started = time.monotonic()
        for name in names or self.names():
            while not self.is_ready(name):
                if not self.nodes[name].running():
                    raise Violation(f"{name} has ended: {self.nodes[name].said(1500)}")
                if time.monotonic() - started > seconds:
                    raise Violation(f"{name} does not serve after {seconds} s: {self.status(name)}: {self.nodes[name].said(800)}")
                time.sleep(POLL_SECONDS)
        return time.monotonic() - started

    def leader(self, among=None, seconds=READY_SECONDS_MAX):
        """The node that leads, by its own word."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name in among or self.running():
                status = self.status(name)
                if status and status["role"] == "leader":
                    return name
            time.sleep(POLL_SECONDS)
        raise Violation(f"no leader within {seconds} s")

    def followers(self):
        leader = self.leader()
        return [name for name in self.running() if name != leader]

    def put(self, name, key, value, timeout_ms=PROBE_TIMEOUT_MS):
        """Whether a put was acknowledged."""
        headers = {"Quorate-Timeout": f"{timeout_ms}ms"}
        return self.asked(name, "PUT", f"/v1/kv/{key}", value, timeout_ms / 1000 + 0.3, headers)[0] in (200, 201)

    def serves_again(self, since, names=None, seconds=READY_SECONDS_MAX):
        """Waits until one of some nodes acknowledges a put that came after `since`; seconds from then."""
        while True:
            for name in names or self.running():
                if self.put(name, "probe/service", b"up"):
                    return time.monotonic() - since
            if time.monotonic() - since > seconds:
                raise Violation(f"no put is acknowledged {seconds} s after the fault")
            time.sleep(POLL_SECONDS)

    # That all hold the same

    def scan(self, name, revision):
        """Count and digest of all keys and values that this node itself holds at a revision."""
        digest, count = hashlib.sha256(), 0
        path = f"/v1/kv?consistency=stale&revision={revision}"
        code, body = self.asked(name, "GET", path, timeout=SCAN_SECONDS_MAX, headers={"Accept": "application/x-ndjson", "Quorate-Timeout": "30s"})
        if code != 200:
            raise Unreadable(f"{name} can't be read at revision {revision}: {code} {body[:300]}")
        for line in body.splitlines():
            item = json.loads(line)
            if "mod_revision" in item:
                count += 1
                digest.update(line)
        return count, digest.hexdigest()

    def converged(self, names=None, seconds=CONVERGED_SECONDS_MAX):
        """Waits until nodes are at one index without load; their hashes, and all that each itself holds, must be the same."""
        names, deadline, found = names or self.running(), time.monotonic() + seconds, {}
        while True:
            found = {name: self.status(name) for name in names}
            if all(found.values()):
                at = {(status["applied_index"], status["last_log_index"]) for status in found.values()}
                if len(at) == 1 and len(set(next(iter(at)))) == 1:
                    break
            if time.monotonic() > deadline:
                shown = {name: status and (status["applied_index"], status["last_log_index"], status["not_ready_reason"]) for name, status in found.items()}
                raise Violation(f"not at one index after {seconds} s: {shown}")
            time.sleep(POLL_SECONDS)
        hashes = {name: status["state_hash"] for name, status in found.items()}
        if len(set(hashes.values())) != 1:
            raise Violation(f"state hashes differ at index {found[names[0]]['applied_index']}: {hashes}")
        revision = min(status["revision"] for status in found.values())
        scans = {name: self.scan(name, revision) for name in names}
        if len(set(scans.values())) != 1:
            raise Violation(f"what nodes hold at revision {revision} differs: {scans}")
        return next(iter(scans.values()))[0]

    def election_seconds(self):
        """The greatest election timeout of the nodes that run."""
        for name in self.running():
            if status := self.status(name):
                return status["timers"]["election_max_ms"] / 1000
        return 1.0
