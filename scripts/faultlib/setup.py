"""Before anything is broken: packages, the shim, a folder for this run alone, and a binary that can do it. No script of its own."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import Failure, say
import spaces
from faultlib import NAMESPACES, Skip, shim

PACKAGES = ("iproute2", "nftables", "xfsprogs", "e2fsprogs", "gcc", "libc6-dev", "util-linux", "mount")
INSTALL_SECONDS_MAX = 600
COMMAND_SECONDS_MAX = 60
# What says that a folder is one of these scripts', so that they may remove what lies in it.
MARKER, MARKED = "quorate-faults", "A folder of scripts/faults and scripts/soak: they remove the rows in it, and end what works there.\n"


class Tools:
    """What rows share and is made once."""

    def __init__(self, folder):
        self.folder, self.library = folder, None

    def shim(self):
        if self.library is None:
            try:
                self.library = shim.build(self.folder)
            except Failure as failure:
                raise Skip(str(failure))
        return self.library


def install():
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure("--install needs root and apt-get")
    for words in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
        if done.returncode != 0:
            raise Failure(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def alone(folder, rows):
    """Only one run in a folder, which is ours; what a run that was killed left of these rows there is taken away.

    Whatever is below such a folder may be killed, unmounted and removed, as root. So it must be empty, or have our marker.
    """
    refuse_others(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(MARKED)
    lock = open(folder / "LOCK", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        refuse(f"another run works in {folder}; wait for it, or name another folder with --out")
    for row in rows:
        take_away(folder / row)
    if os.geteuid() == 0 and shutil.which("ip"):
        spaces.take_away(NAMESPACES, say)
    return lock


def refuse(text):
    """A wrong --out is wrong usage."""
    say(f"--out: {text}")
    sys.exit(2)


def refuse_others(folder):
    """Ends the script if a folder is not ours, or another run works above or below it."""
    if folder.exists() and not folder.is_dir():
        refuse(f"{folder} is no directory")
    if folder.is_dir() and not is_ours(folder) and any(folder.iterdir()):
        refuse(f"{folder} is not empty and no earlier run made it (there is no file {MARKER}); name an empty folder, or one that does not exist")
    below = (Path(path) for path, _, files in os.walk(folder) if MARKER in files)
    for other in [*folder.parents, *below]:
        if other != folder and is_ours(other) and is_locked(other / "LOCK"):
            refuse(f"another run works in {other}; wait for it, or name a folder apart from it")


def is_ours(folder):
    marker = folder / MARKER
    return marker.is_file() and not marker.is_symlink() and marker.stat().st_uid == os.geteuid() and marker.read_text() == MARKED


def is_locked(path):
    try:
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def take_away(folder):
    """Ends what works in the folder of a row, and unmounts what is mounted there: the run that left it is gone."""
    take_away_processes(folder)
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        mounted = line.split()[1].replace("\\040", " ")
        if Path(mounted).is_relative_to(folder):
            say(f"taking away {mounted}, which an earlier run has left")
            subprocess.run(["umount", mounted], capture_output=True, timeout=COMMAND_SECONDS_MAX)


def take_away_processes(folder):
    """Ends nodes with directories in this folder, and clients with histories there."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if works_in(words, "serve", "--data-dir", folder) or works_in(words, "workload", "--history", folder):
                say(f"ending process {process.name}, which an earlier run has left")
                os.kill(int(process.name), signal.SIGKILL)
                # Its files must be closed before its disk can be unmounted.
                for _ in range(100):
                    if not process.exists():
                        break
                    time.sleep(0.02)


def works_in(words, command, option, folder):
    return command in words and option in words[:-1] and Path(words[words.index(option) + 1]).is_relative_to(folder)


def one_interrupt():
    """The first signal to end is obeyed, further ones are not: what was mounted and started is being taken away then."""
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

    def end(number, _):
        for one in codes:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(codes[number])

    for one in codes:
        # Under nohup, or in the background of a shell without job control, it was told not to care.
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, end)


def can(binary):
    """Whether the binary has what the histories need."""
    for words in (["workload", "--help"], ["check-history", "--help"]):
        try:
            done = subprocess.run([binary, *words], capture_output=True, timeout=COMMAND_SECONDS_MAX)
        except OSError as error:
            raise Failure(f"{binary} can't be run: {error.strerror}")
        if done.returncode != 0:
            raise Failure(f"{binary} has no command \"{words[0]}\": it is too old for this script")
