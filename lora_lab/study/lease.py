"""Who is alive: a worker counts up, and others watch the counter with their own clocks.

No two clocks are ever compared, so skew between machines does no harm. A worker whose counter stood still for its
lease, on the watcher's clock and while the watcher could read it, has lapsed. A process of the watcher's own machine
that is gone has lapsed at once.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.study.entries import WorkerState
from lora_lab.study.log import Log, Unreachable

BEATS_A_LEASE = 6
"""How often a worker counts up within its lease."""

log = logging.getLogger(__name__)


def clock() -> float:
    """Seconds that also pass while the machine sleeps or the process is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def new_name() -> str:
    """A worker's name, never used before: host, process and a few random digits."""
    host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())[:60] or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def this_process(pid: int | None = None) -> dict[str, Any]:
    """What identifies this process, or the one of this machine with ``pid``, among those of all machines."""
    pid = os.getpid() if pid is None else pid
    return {"host": socket.gethostname(), "pid": pid, "born": _born(pid), **_machine()}


def is_gone(process: dict[str, Any]) -> bool:
    """True where ``process`` was one of this machine (and container), and is no more."""
    here = _machine()
    if not here["boot"] or any(process.get(name) != value for name, value in here.items()):
        return False
    return bool(_born(process["pid"]) != process["born"])


@functools.cache
def _machine() -> dict[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "space": str(Path("/proc/self/ns/pid").readlink())}
    except OSError:
        return {"boot": "", "space": ""}


def _born(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; ``None`` where there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Lease:
    """Counts up for a worker in a thread of its own until :meth:`end`, whatever the training thread does."""

    def __init__(self, log: Log, worker: str, seconds: float) -> None:
        """Counts once before it returns.

        Raises:
            Unreachable: the log is away.
        """
        self.worker, self.seconds = worker, seconds
        self._log = log
        self._renewed = clock()
        log.beat(worker)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, name=f"lease of {worker}", daemon=True)
        self._thread.start()

    @property
    def doubtful(self) -> bool:
        """The last renewal is so old that others may have taken the runs: look before you write."""
        return clock() - self._renewed > self.seconds * (1 - 1 / BEATS_A_LEASE)

    def renewed(self) -> None:
        """The runs were looked for, and are still this worker's."""
        self._renewed = clock()

    def end(self) -> None:
        """Stop counting."""
        self._ended.set()
        self._thread.join()

    def _count(self) -> None:
        away = False
        while not self._ended.wait(self.seconds / BEATS_A_LEASE):
            began = clock()
            try:
                self._log.beat(self.worker)
            except (Unreachable, LoraLabError) as error:
                if not away:
                    log.warning("%s cannot renew its lease, it tries again: %s", self.worker, error)
                away = True
            else:
                away = False
                if not self.doubtful:
                    self._renewed = began


class Watch:
    """Remembers when each worker's counter last rose, on this process's clock."""

    def __init__(self, now: Callable[[], float] = clock) -> None:
        self._now = now
        self._seen: dict[str, tuple[int, float]] = {}
        self._last = now()

    def lapsed(self, workers: dict[str, WorkerState], beats: dict[str, int]) -> dict[str, str]:
        """Workers that gave no sign of life for their lease, and why one says so. Call it every few seconds.

        A long pause between two calls (the log was away, this process was stopped) is nobody's silence.
        """
        now = self._now()
        shortest = min((worker.lease for worker in workers.values()), default=0.0)
        pause = now - self._last
        if pause > shortest / 2:
            self._seen = {name: (count, since + pause) for name, (count, since) in self._seen.items()}
        self._last = now
        found: dict[str, str] = {}
        for name, worker in workers.items():
            count, since = self._seen.get(name, (-1, now))
            if beats.get(name, 0) != count:
                count, since = beats.get(name, 0), now
            self._seen[name] = (count, since)
            if is_gone(worker.process):
                found[name] = "its process is gone"
            elif now - since > worker.lease:
                found[name] = f"no sign of life for {now - since:.0f} s"
        return found
