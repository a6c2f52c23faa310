"""Clients at work, and the judgement on all that they were told: `quorate workload` and `quorate check-history`. No script of its own."""

import itertools
import json
import shutil
import signal
import subprocess
import time

from cluster import Failure
from faultlib.lab import POLL_SECONDS, Violation

# The last reads of each key may take so long, and the end of all that besides.
FINAL_SECONDS_MAX = 60
BEGIN_SECONDS_MAX = 10
STOP_SECONDS_MAX = FINAL_SECONDS_MAX + 30
JUDGE_SECONDS_MAX = 300
VIOLATIONS_SHOWN = 3
# It ends by itself even if nobody is left to end it.
LOAD_SECONDS_MAX = 24 * 3600
NUMBERS = itertools.count(1)


class Violated(Violation):
    """A history that no single copy could have answered: `verdict` is what `check-history` said of it."""

    def __init__(self, text, verdict):
        super().__init__(text)
        self.verdict = verdict


class Load:
    """A running `quorate workload` with its history. A history that was found right is removed, others stay."""

    def __init__(self, binary, folder, urls, seed, clients=8, rate=300, keys=50, mix="default", deadline_ms=1000,
                 seconds=LOAD_SECONDS_MAX):
        self.binary = binary
        self.history = folder / f"history-{next(NUMBERS)}.jsonl"
        self.command = [
            binary, "workload", "--endpoint", ",".join(urls), "--history", self.history, "--clients", clients,
            "--duration", f"{seconds}s", "--keys", keys, "--mix", mix, "--rate", rate, "--seed", seed % (1 << 32),
            "--deadline", f"{deadline_ms}ms", "--final-timeout", f"{FINAL_SECONDS_MAX}s", "--output", "json",
        ]
        self.child = None

    def __enter__(self):
        self.history.unlink(missing_ok=True)
        # It must not outlive a script that was killed.
        with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self.child = subprocess.Popen([str(word) for word in with_us + self.command], stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # From then on it ends in order when it is told to.
        deadline = time.monotonic() + BEGIN_SECONDS_MAX
        while self.running() and not (self.history.exists() and self.history.stat().st_size) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.child.stdout.close()
        self.child.stderr.close()

    def running(self):
        return self.child.poll() is None

    def stop(self):
        """Lets the clients end, with the last reads; what they counted. All faults must be healed."""
        if not self.running() and self.child.returncode != 0:
            raise Failure(f"quorate workload ended with {self.child.returncode}: {self.child.stderr.read()[-1500:]}")
        if self.running():
            self.child.send_signal(signal.SIGTERM)
        return self.finish(STOP_SECONDS_MAX)

    def finish(self, seconds):
        """Waits for its end; what the clients counted."""
        try:
            out, err = self.child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"quorate workload did not end within {seconds} s")
        if self.child.returncode == 3:
            raise Violation(f"after the faults were healed, not every key could be read: {err[-1000:]} {out[-500:]}")
        if self.child.returncode != 0:
            raise Failure(f"quorate workload ended with {self.child.returncode}: {err[-1500:]}")
        return json.loads(out.strip().splitlines()[-1])

    def judge(self):
        """What was judged, in numbers; anything but "right" is a violation."""
        told = check(self.binary, self.history)
        if told["verdict"] != "right":
            found = "; ".join(one["message"] for one in told["violations"][:VIOLATIONS_SHOWN])
            raise Violated(f"{self.history.name}: {told['verdict']}: {found}", told["verdict"])
        self.history.unlink()
        return told["summary"]


def check(binary, history):
    """What `quorate check-history` says of a file."""
    done = subprocess.run([binary, "check-history", history, "--output", "json"], capture_output=True, text=True,
                          timeout=JUDGE_SECONDS_MAX, stdin=subprocess.DEVNULL)
    if done.returncode not in (0, 4):
        raise Failure(f"check-history {history} ended with {done.returncode}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
