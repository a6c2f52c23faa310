"""Rows that cut the power: D1, and its control K2 with syncs that are only said to be done. No script of its own.

A disk is a file behind a loop device. FS_IOC_SHUTDOWN without flushing the journal takes everything that no sync brought to
the device, data and names; the device's own cache survives, which makes it kinder than a real power cut.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

from cluster import Failure
from faultlib import Row, Skip
from faultlib.damage import halted
from faultlib.judge import Violated
from faultlib.lab import POLL_SECONDS, SMALL_FILES, Violation
from faultlib.shim import Shim

# FS_IOC_SHUTDOWN of ext4, xfs and f2fs, and its flag "don't flush the journal".
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
# The least that mkfs.xfs takes is 300 MiB. The files are sparse.
DISK_BYTES = 384 << 20
COMMAND_SECONDS_MAX = 60
UNMOUNT_TRIES, UNMOUNT_PAUSE = 100, 0.05
STOP_TRIES, STOP_PAUSE = 1000, 0.001
ROUND_CUTS = 10
FILESYSTEMS = ("ext4", "xfs")
# Cuts of all nodes until the control must have failed.
CONTROL_CUTS_MAX = 12
CONTROL_READY_SECONDS_MAX = 20
# What a node says before it ends because of bytes of its log that are not there.
LOG_LOST = re.compile(r"the log is damaged at byte [0-9]+ of|has lost its log")


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, words))} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout.strip()


class Disk:
    """A file system of its own, mounted at a folder; it goes with its file. `close` may be called before and after `make`."""

    def __init__(self, image, folder, kind, size=DISK_BYTES):
        self.image, self.folder, self.kind, self.size = image, folder, kind, size

    def make(self):
        """Skips where the machine has no such file system or no loop devices; anything else that goes wrong is a failure."""
        with open(self.image, "wb") as file:
            file.truncate(self.size)
        self.folder.mkdir(parents=True, exist_ok=True)
        run(f"mkfs.{self.kind}", "-q", *(["-f"] if self.kind == "xfs" else ["-F"]), self.image)
        try:
            self.mount()
        except Failure as failure:
            # Looked at behind the mount, which loads what there is.
            if self.kind not in Path("/proc/filesystems").read_text().split():
                raise Skip(f"the kernel has no {self.kind}")
            if reason := no_loop_devices():
                raise Skip(reason)
            raise failure

    def mount(self):
        run("mount", "-o", "loop,noatime", self.image, self.folder)

    def remount(self, how):
        run("mount", "-o", f"remount,{how}", self.folder)

    def open(self):
        return os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)

    def unmount(self):
        for attempt in range(UNMOUNT_TRIES):
            done = subprocess.run(["umount", self.folder], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
            if done.returncode == 0:
                return
            time.sleep(UNMOUNT_PAUSE)
        raise Failure(f"{self.folder} can't be unmounted: {done.stderr.strip()}")

    def power_comes_back(self):
        self.unmount()
        # As long as anything holds the old file system, mounting would give that one again, without power.
        for _ in range(UNMOUNT_TRIES):
            if not run("losetup", "--associated", self.image):
                break
            time.sleep(UNMOUNT_PAUSE)
        else:
            raise Failure(f"{self.image.name} is still mounted elsewhere: in a mount namespace that something else on this machine made meanwhile?")
        self.mount()

    def close(self):
        with contextlib.suppress(Failure):
            if os.path.ismount(self.folder):
                self.unmount()
        self.image.unlink(missing_ok=True)


def cut(lab, names, disks):
    """Takes the power from some nodes at once: they do nothing more, their disks keep what they have, and they are gone.

    Stopped first, because at the moment of the ioctl both file systems now and then tell a process that a sync was done which
    was not: 28 of 600 times on xfs and 21 of 400 on ext4 with a plain writer, none of 400 where it was stopped. A machine
    without power tells nobody anything.
    """
    lab.signal(signal.SIGSTOP, *names)
    opened = []
    try:
        for name in names:
            wait_stopped(lab.nodes[name].pid)
            opened.append(disks[name].open())
        for fd in opened:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        for fd in opened:
            os.close(fd)
        lab.kill(*names)


def wait_stopped(pid):
    """Waits until no thread of a process runs: all are stopped, or in a call to the disk behind which they will be."""
    for _ in range(STOP_TRIES):
        states = set()
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                states.add((task / "stat").read_text().rsplit(")", 1)[1].split()[0])
        if states <= {"T", "D", "Z"}:
            return
        time.sleep(STOP_PAUSE)
    raise Failure(f"process {pid} does not stop")


def need(kind):
    if os.geteuid() != 0:
        raise Skip("needs root, to mount")
    for tool, package in ((f"mkfs.{kind}", "xfsprogs" if kind == "xfs" else "e2fsprogs"), ("losetup", "mount"), ("mount", "mount")):
        if not shutil.which(tool):
            raise Skip(f"needs {tool} (Debian: apt-get install {package})")
    if not os.path.exists("/dev/loop-control"):
        raise Skip("needs loop devices, and there is no /dev/loop-control")


def no_loop_devices():
    """Why this machine gives no loop device at all, or nothing if it does."""
    done = subprocess.run(["losetup", "--find"], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
    if done.returncode != 0:
        return f"no loop devices: {done.stderr.strip()[-200:]}"
    try:
        os.close(os.open(done.stdout.strip(), os.O_RDWR))
    except OSError as error:
        return f"no loop devices: {done.stdout.strip()}: {error.strerror}"
    return None


def disks_for(stack, lab, kind, size=DISK_BYTES):
    """A disk for each node, until a stack is closed."""
    disks = {}
    for name, node in lab.nodes.items():
        disks[name] = Disk(lab.folder / f"{name}.disk", lab.folder / f"{name}-disk", kind, size)
        # Before it is made: an interrupt in the middle must not leave it mounted.
        stack.callback(disks[name].close)
        # Above what closes the disk: the process must be gone first.
        stack.callback(lab.kill, name)
        disks[name].make()
        node.data = disks[name].folder / "data"
    return disks


def cuts(bench):
    """Power cuts of one node and of all while clients write, on ext4 and xfs in turn."""
    labs = []
    for kind in FILESYSTEMS:
        try:
            need(kind)
            lab = bench.lab(flags=SMALL_FILES)
            labs.append((kind, lab, disks_for(bench.stack, lab, kind)))
        except Skip as reason:
            bench.skip(kind, reason)
    if not labs:
        raise Skip("; ".join(bench.result.skipped))
    for _, lab, _ in labs:
        lab.start()
        lab.ready()
    while bench.more():
        for kind, lab, disks in labs:
            if not bench.more():
                break
            with bench.round(lab):
                for _ in bench.some(ROUND_CUTS if not bench.options.short else 3):
                    cut_some(bench, kind, lab, disks)


def cut_some(bench, kind, lab, disks):
    everybody = bench.random.random() < 0.5
    names = lab.names() if everybody else [bench.random.choice(lab.names())]
    leader = lab.leader()
    time.sleep(bench.random.uniform(0.05, 0.8))
    at = time.monotonic()
    cut(lab, names, disks)
    if not everybody and leader in names:
        bench.away(lab, lab.serves_again(at, lab.running()))
    for name in names:
        disks[name].power_comes_back()
    lab.start(*names)
    bench.back(lab.ready())
    bench.trial(**{kind: 1, "all_nodes": int(everybody), "one_node": int(not everybody)})


def control(bench):
    """The same with syncs that are only said to be done: what was acknowledged must be found missing."""
    need("ext4")
    while bench.more():
        one_control(bench)


def one_control(bench):
    library = bench.tools.shim()
    lab = bench.lab(flags=SMALL_FILES)
    disks = disks_for(bench.stack, lab, "ext4")
    shims = {}
    for name, node in lab.nodes.items():
        shims[name] = Shim(library, lab.folder / f"{name}.control", node.data)
        bench.stack.callback(shims[name].close)
        node.env = shims[name].env()
    lab.start()
    lab.ready()
    # All that came before is on the disks, so that it is writes that get lost and not whole nodes.
    os.sync()
    for shim in shims.values():
        shim.set(syncs_off=1)
    found = how = None
    for _ in range(CONTROL_CUTS_MAX):
        # What else goes wrong is no proof that a lost write is noticed: it fails the control.
        try:
            with bench.round(lab):
                time.sleep(1.5)
                cut(lab, lab.names(), disks)
                for disk in disks.values():
                    disk.power_comes_back()
                bench.count(cuts_of_all_nodes=1)
                lab.start()
                refuses_for_its_log(lab)
        except Refused as refused:
            # A round that ends in peace waits until all nodes serve.
            found, how = str(refused), "by_refusal"
            break
        except Violated as violation:
            if violation.verdict != "violated":
                raise
            found, how = str(violation), "by_history"
            break
    if found is None:
        raise Violation(f"{CONTROL_CUTS_MAX} power cuts without a single sync, and nothing was found missing: the row D1 proves nothing")
    lab.kill(*lab.names())
    if not bench.result.notes:
        bench.note(f"found, as it must be; the first: {found[:160]}")
    bench.trial(found=1, **{how: 1})


class Refused(Exception):
    """A node does not start because bytes of its log are lost, and says so."""


def refuses_for_its_log(lab):
    """Waits until all nodes serve, or one of them is refused."""
    deadline = time.monotonic() + CONTROL_READY_SECONDS_MAX
    while not all(lab.is_ready(name) for name in lab.names()):
        for name in lab.names():
            if lab.nodes[name].running():
                continue
            line = halted(lab, name, "without a sync before the power cut")
            if not LOG_LOST.search(line):
                raise Violation(f"{name} ended for another reason than its log: {line}")
            raise Refused(f"{name}: {line}")
        if time.monotonic() > deadline:
            raise Violation(f"nodes neither serve nor end {CONTROL_READY_SECONDS_MAX} s after the power cut: {lab.status(lab.names()[0])}")
        time.sleep(POLL_SECONDS)


ROWS = [
    Row("D1", "power cut of one node or all: FS_IOC_SHUTDOWN on loop-mounted ext4 and xfs", cuts, (8, 25), (500, 7200), "power cuts"),
    Row("K2", "control: D1 with syncs that are not done; must be found", control, (1, 30), (3, 300), "controls found"),
]
