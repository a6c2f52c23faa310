"""The shim that is preloaded into nodes, and the numbers that steer it while they run. No script of its own."""

import errno
import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from cluster import Failure

SOURCE = Path(__file__).with_name("shim.c")
KINDS = ("write", "sync", "create", "name", "length", "read")
PLACES = ("log", "state", "snapshots", "else")
# As in shim.c: numbers of 8 bytes.
FIELDS = ([f"calls/{kind}" for kind in KINDS] + [f"fail_at/{kind}" for kind in KINDS]
          + ["fail_errno", "fail_forever", "failed", "syncs_off", "sync_delay_us", "write_delay_us", "clock_offset_s", "slowed", "clock_reads",
             "stop_at", "stop_kind", "stop_place", "stop_behind", "stop_us", "stop_calls", "stopped"])
COMPILE_SECONDS_MAX = 60


def build(folder):
    """Compiles the shim; its path."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        raise Failure("no C compiler for the shim (Debian: apt-get install gcc libc6-dev)")
    built = folder / "shim.so"
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", built, SOURCE, "-ldl"], capture_output=True,
                          text=True, timeout=COMPILE_SECONDS_MAX)
    if done.returncode != 0:
        raise Failure(f"the shim can't be compiled: {done.stderr.strip()[-500:]}")
    return built


class Shim:
    """The shim of one node; what is set acts at once, and stays over restarts of the node."""

    def __init__(self, library, control, data):
        self.library, self.control, self.data = library, control, data
        control.write_bytes(bytes(max(mmap.PAGESIZE, 8 * len(FIELDS))))
        with open(control, "r+b") as file:
            self.numbers = mmap.mmap(file.fileno(), 0)

    def env(self):
        return {"LD_PRELOAD": str(self.library), "FAULTS_DATA": str(self.data), "FAULTS_CONTROL": str(self.control)}

    def get(self, field):
        return struct.unpack_from("<q", self.numbers, 8 * FIELDS.index(field))[0]

    def set(self, **values):
        for field, value in values.items():
            struct.pack_into("<q", self.numbers, 8 * FIELDS.index(field), value)

    def fail(self, kind, at, forever, number=errno.EIO):
        """The `at`-th call of a kind from now on fails, or all from it on."""
        self.heal()
        self.set(fail_errno=number, fail_forever=int(forever))
        struct.pack_into("<q", self.numbers, 8 * FIELDS.index(f"calls/{kind}"), 0)
        struct.pack_into("<q", self.numbers, 8 * FIELDS.index(f"fail_at/{kind}"), at)

    def stop(self, place, kind, at, behind, seconds=0.0):
        """At the `at`-th call of a kind in a place from now on the process is killed, or one thread of it stands still for so long."""
        self.set(stop_at=0)
        self.set(stop_kind=KINDS.index(kind), stop_place=PLACES.index(place), stop_behind=int(behind), stop_us=round(seconds * 1e6),
                 stop_calls=0, stopped=0)
        self.set(stop_at=at)

    def go_on(self):
        """No stop any more."""
        self.set(stop_at=0)

    def heal(self):
        """No failures any more, and none counted."""
        for kind in KINDS:
            struct.pack_into("<q", self.numbers, 8 * FIELDS.index(f"fail_at/{kind}"), 0)
        self.set(failed=0, fail_forever=0)

    def close(self):
        self.numbers.close()
        self.control.unlink(missing_ok=True)
