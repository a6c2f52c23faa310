"""Networks of their own for the nodes of a cluster on this machine: namespaces joined by a bridge. No script of its own.

Node number i has the address NETWORK.i, this machine NETWORK.254. What a namespace lets in can be filtered by nftables.
Each set holds a lock file for as long as it lives: only a set whose lock is free is taken for one that was left behind.
Needs root, iproute2 and util-linux.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess

from pathlib import Path

from cluster import Failure

HOST = 254
COMMAND_SECONDS_MAX = 30
# One place for all runs, whatever folders they work in: namespaces belong to the machine, too. A boot empties both.
LOCKS = Path("/run/quorate-spaces")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def run(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, **options)


def hold(name):
    """Holds a name among all runs until what is returned is closed, or this process ends; None if another one holds it."""
    LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        lock = open(LOCKS / name, "a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file meanwhile: then this lock is worth nothing.
            if os.fstat(lock.fileno()).st_ino == os.stat(LOCKS / name).st_ino:
                return lock
        except BlockingIOError:
            lock.close()
            return None
        except FileNotFoundError:
            pass
        lock.close()


def let_go(lock):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(lock.name)
    lock.close()


def free_network(networks):
    """The first of some networks that no other run uses, and what holds it (`let_go`)."""
    for network in networks:
        if lock := hold(f"network-{network}"):
            return network, lock
    raise Failure(f"all networks for namespaces are in use by other runs (locks in {LOCKS})")


def take_away(prefix, say):
    """Deletes sets of namespaces of a prefix whose runs are gone. Without a lock file they are somebody else's, and stay."""
    for path in sorted(LOCKS.glob(f"{prefix}*")) if LOCKS.is_dir() else ():
        if not (lock := hold(path.name)):
            continue
        for space in namespaces():
            if space.startswith(f"{path.name}-"):
                say(f"taking away the namespace {space}, which an earlier run has left")
                subprocess.run(["ip", "netns", "delete", space], capture_output=True, timeout=COMMAND_SECONDS_MAX)
        subprocess.run(["ip", "link", "delete", f"{path.name}h"], capture_output=True, timeout=COMMAND_SECONDS_MAX)
        let_go(lock)


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX).stdout
    return [line.split()[0] for line in listed.splitlines() if line]


def in_letters(number):
    """A number in base 36. Names of devices have 15 characters at most, and every process number fits in 5 of these."""
    text = ""
    while number:
        number, digit = divmod(number, len(DIGITS))
        text = DIGITS[digit] + text
    return text or "0"


class Spaces:
    """A namespace for each name, until `close`. `prefix` is at most two letters, which tell whose they are.

    The bridge has a namespace of its own too: what this machine does not forward for others (Docker sees to that) passes there.
    """

    def __init__(self, names, network, prefix):
        self.prefix, self.spaces, self.devices, self.hub = f"{prefix}{in_letters(os.getpid())}", {}, {}, None
        self.addresses = {name: f"{network}.{number}" for number, name in enumerate(names, 1)}
        self.host = f"{network}.{HOST}"
        self.lock = hold(self.prefix)
        if not self.lock:
            raise Failure(f"namespaces {self.prefix}-* are there already: this process has a set of them")
        try:
            # Named before they are made: an interrupt between the two must not leave them.
            self.hub = f"{self.prefix}-hub"
            run("ip", "netns", "add", self.hub)
            run("ip", "-n", self.hub, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self.hub, "link", "set", "bridge", "up")
            run("ip", "link", "add", f"{self.prefix}h", "type", "veth", "peer", "name", "host", "netns", self.hub)
            run("ip", "-n", self.hub, "link", "set", "host", "master", "bridge", "up")
            run("ip", "address", "add", f"{self.host}/24", "dev", f"{self.prefix}h")
            run("ip", "link", "set", f"{self.prefix}h", "up")
            for number, name in enumerate(names, 1):
                self._add(name, number)
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            reason = getattr(error, "stderr", None) or error
            raise Failure(f"no network namespaces here (they need root and iproute2): {str(reason).strip()}")
        except BaseException:
            self.close()
            raise

    def _add(self, name, number):
        space, inside, outside = f"{self.prefix}-{name}", "net", f"node{number}"
        self.spaces[name], self.devices[name] = space, inside
        run("ip", "netns", "add", space)
        run("ip", "-n", self.hub, "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
        run("ip", "-n", self.hub, "link", "set", outside, "master", "bridge", "up")
        for words in (["address", "add", f"{self.addresses[name]}/24", "dev", inside], ["link", "set", inside, "up"],
                      ["link", "set", "lo", "up"]):
            run("ip", "-n", space, *words)

    def inside(self, name):
        """What a command is put behind to run there."""
        # `ip netns exec` would also copy all mounts of this machine, and so hold disks that other runs want to unmount.
        return ["nsenter", f"--net=/run/netns/{self.spaces[name]}"]

    def filter(self, name, rules):
        """What comes in is judged by these rules of nftables, in place of those before."""
        lines = ["flush ruleset", "table inet faults {", "chain input {", "type filter hook input priority 0; policy accept;", *rules, "}", "}"]
        try:
            run(*self.inside(name), "nft", "-f", "-", input="\n".join(lines) + "\n")
        except subprocess.CalledProcessError as error:
            raise Failure(f"nft refused {rules}: {error.stderr.strip()[:300]}")

    def ip(self, name, *words):
        run("ip", "-n", self.spaces[name], *words)

    def tc(self, name, *words):
        """A queueing discipline for what goes out of a namespace."""
        run("tc", "-n", self.spaces[name], "qdisc", words[0], "dev", self.devices[name], "root", *words[1:])

    def close(self):
        if not self.lock or not shutil.which("ip"):
            return
        for space in [*self.spaces.values(), *([self.hub] if self.hub else [])]:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, timeout=COMMAND_SECONDS_MAX)
        # The other end of a pair goes with its namespace, a little later; not to meet the next run it goes now.
        subprocess.run(["ip", "link", "delete", f"{self.prefix}h"], capture_output=True, timeout=COMMAND_SECONDS_MAX)
        self.spaces, self.hub = {}, None
        let_go(self.lock)
        self.lock = None
