"""The tracker: an uploader in a thread of its own, patient with a store that is away."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.spec import Execution, Sweep
from lora_lab.tracking.store import redact, resolve_uri
from lora_lab.tracking.uploader import OutOfTime, Uploader, connect

POLL_SECONDS = 1.0
"""How often the folder is looked at."""
LONGEST_WAIT = 30.0
"""Seconds between two tries when the store is away."""
CLOSING_TRIES = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lag:
    """What MLflow has not got yet: runs (settled, or with unsent metrics), metric lines, and why.

    Nothing of it is lost: it lies in the sweep's folder and is sent when the sweep is started again.
    """

    runs: int = 0
    metrics: int = 0
    error: str | None = None

    def __bool__(self) -> bool:
        """True when something is missing."""
        return self.runs > 0


class Tracker:
    """Follows a sweep's spools and results into MLflow, never in the way of training.

    One parent run a sweep and a child run per (trial, seed). A store that is down is tried again, with growing
    pauses; what it missed is sent when it is back, or by the next start of the sweep.
    """

    def __init__(self, folder: Path, sweep: Sweep, uri: str, experiment: str, *, connect: Any = connect) -> None:
        """Nothing is contacted before :meth:`start`."""
        self.uri = uri
        self._deadline: float | None = None
        self._stop = threading.Event()
        self._error: str | None = None
        self._uploader = Uploader(folder, sweep, uri, experiment, connect=connect, in_time=self._in_time)
        self._thread = threading.Thread(target=self._run, name="lora-lab tracking", daemon=True)

    def start(self) -> None:
        """Begin to follow the folder. Returns at once."""
        self._thread.start()

    def close(self, timeout: float = 60.0) -> Lag:
        """Send what is left, for ``timeout`` seconds at most, and say what is missing then.

        A store that is away is tried once more and not waited for.
        """
        self._deadline = time.monotonic() + timeout
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        unsent = self._uploader.unsent()
        refused = self._uploader.refused
        error = self._error
        if refused:
            name, cause = next(iter(refused.items()))
            error = f"{len(refused)} runs are refused; {name}: {cause}"
        return Lag(len(unsent) + len(refused), sum(unsent.values()), error)

    def _in_time(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline

    def _run(self) -> None:
        wait, failures = POLL_SECONDS, 0
        while True:
            stopping = self._stop.is_set()
            try:
                self._uploader.send()
                if stopping:
                    self._uploader.finish()
                self._error, wait, failures = None, POLL_SECONDS, 0
                if stopping:
                    return
            except OutOfTime:
                self._error = "the time to send the rest was up"
                return
            except Exception as error:  # whatever a store can do: training goes on, and it is tried again
                if self._error is None:
                    log.info("MLflow at %s cannot be reached, it is tried again: %s", redact(self.uri), error)
                self._error = _first_line(error)
                failures += 1
                if stopping and (failures >= CLOSING_TRIES or not self._in_time()):
                    return
                wait = min(2 * wait, LONGEST_WAIT)
            if stopping:
                time.sleep(0.2)
            else:
                self._stop.wait(wait)


class Untracked:
    """A tracker for ``tracking=none``: the spools and results in the sweep's folder are all there is."""

    uri: str | None = None

    def start(self) -> None:
        """Nothing to start."""

    def close(self, timeout: float = 60.0) -> Lag:
        """Nothing is missing anywhere."""
        return Lag()


def open_tracker(sweep: Sweep, execution: Execution) -> Tracker | Untracked:
    """The tracker of a sweep, as its tracking spec says; :meth:`~Tracker.start` it."""
    spec = execution.tracking
    if spec.name == "none":
        return Untracked()
    return Tracker(Path(execution.folder), sweep, resolve_uri(spec), spec.experiment)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return redact(text.splitlines()[0])[:300]
