"""The tracker: an uploader in a thread of its own, patient with a store that is away."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.spec import Execution, Sweep
from lora_lab.tracking.children import Predict
from lora_lab.tracking.experiment import connect
from lora_lab.tracking.store import first_line, redact, resolve_uri
from lora_lab.tracking.uploader import OutOfTime, Uploader

POLL_SECONDS = 3.0
"""How often the folder is looked at."""
LONGEST_WAIT = 30.0
"""Seconds between two tries when the store is away."""
CLOSING_TRIES = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lag:
    """What MLflow has not got yet: runs (settled, or with unsent metrics), metric lines, and why.

    With an ``error`` and no run it is the sweep's own end: its report, its best adapter's name, its status. Nothing of
    it is lost: it lies in the sweep's folder and is sent when the sweep is started again.
    """

    runs: int = 0
    metrics: int = 0
    error: str | None = None

    def __bool__(self) -> bool:
        """True when something is missing."""
        return self.runs > 0 or self.error is not None

    @property
    def what(self) -> str:
        """``3 runs``, ``1 run`` or ``the end of the sweep``."""
        return f"{self.runs} run{'s' * (self.runs != 1)}" if self.runs else "the end of the sweep"


class Tracker:
    """Follows a sweep's spools and results into MLflow, never in the way of training.

    One parent run a sweep and a child run per (trial, seed). A store that is down is tried again, with growing
    pauses; what it missed is sent when it is back, or by the next start of the sweep.
    """

    def __init__(
        self,
        folder: Path,
        sweep: Sweep,
        uri: str,
        experiment: str,
        *,
        connect: Any = connect,
        predict: Predict | None = None,
        niceness: int = 0,
    ) -> None:
        """Nothing is contacted before :meth:`start`. ``predict`` plans a run's memory, where that is wanted;
        ``niceness`` is that of the thread that follows (on Linux), not of the sending at the end."""
        self.uri = uri
        self._niceness = niceness
        self._deadline: float | None = None
        self._stop = threading.Event()
        self._error: str | None = None
        self._uploader = Uploader(
            folder, sweep, uri, experiment, connect=connect, in_time=self._in_time, predict=predict
        )
        self._thread = threading.Thread(target=self._follow, name="lora-lab tracking", daemon=True)

    def start(self) -> None:
        """Begin to follow the folder. Returns at once."""
        self._thread.start()

    def close(self, timeout: float = 60.0, best: str | None = None) -> Lag:
        """Send what is left, for ``timeout`` seconds at most, and say what is missing then.

        A store that is away is tried once more and not waited for. ``best`` is the run whose adapter is registered.
        """
        end = time.monotonic() + timeout
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            self._error = self._error or "it does not answer"
        else:
            self._deadline = end
            rest = threading.Thread(target=self._rest, args=(best,), name="lora-lab tracking, the rest", daemon=True)
            rest.start()
            rest.join(max(0.0, end - time.monotonic()))
            if rest.is_alive():
                self._error = self._error or "the time to send the rest was up"
        return self.lag(self._error)

    def lag(self, error: str | None = None) -> Lag:
        """What is missing now, and ``error`` as its cause unless runs are refused. Nothing is contacted."""
        unsent = self._uploader.unsent()
        refused = self._uploader.refused
        if refused:
            name, cause = next(iter(refused.items()))
            error = f"{len(refused)} runs are refused; {name}: {cause}"
        return Lag(len(unsent) + len(refused), sum(unsent.values()), error)

    def _in_time(self) -> bool:
        if self._deadline is None:
            return not self._stop.is_set()
        return time.monotonic() < self._deadline

    def _follow(self) -> None:
        if self._niceness and sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        wait = POLL_SECONDS
        while not self._stop.wait(wait if self._error else POLL_SECONDS):
            try:
                self._uploader.send()
            except OutOfTime:
                return
            except Exception as error:  # whatever a store can do: training goes on, and it is tried again
                self._failed(error)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                self._error, wait = None, POLL_SECONDS

    def _rest(self, best: str | None) -> None:
        """Send what is left once training is over, and close the sweep."""
        for _ in range(CLOSING_TRIES):
            try:
                self._uploader.send()
                self._uploader.finish(best)
                self._error = None
                return
            except OutOfTime:
                self._error = "the time to send the rest was up"
                return
            except Exception as error:
                self._failed(error)
                time.sleep(0.2)

    def _failed(self, error: Exception) -> None:
        if self._error is None:
            log.info("MLflow at %s cannot be reached, it is tried again: %s", redact(self.uri), first_line(error))
        self._error = first_line(error)


class Untracked:
    """A tracker for ``tracking=none``: the spools and results in the sweep's folder are all there is."""

    uri: str | None = None

    def start(self) -> None:
        """Nothing to start."""

    def close(self, timeout: float = 60.0, best: str | None = None) -> Lag:
        """Nothing is missing anywhere."""
        return Lag()

    def lag(self, error: str | None = None) -> Lag:
        """Nothing is missing anywhere."""
        return Lag()


def open_tracker(
    sweep: Sweep, execution: Execution, *, predict: Predict | None = None, niceness: int = 0
) -> Tracker | Untracked:
    """The tracker of a sweep, as its tracking spec says; :meth:`~Tracker.start` it."""
    spec = execution.tracking
    if spec.name == "none":
        return Untracked()
    folder = Path(execution.folder)
    return Tracker(folder, sweep, resolve_uri(spec), spec.experiment, predict=predict, niceness=niceness)
