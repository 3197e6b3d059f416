"""One process's hold on a study's log: what it has read, and how it writes to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lora_lab.spec import Sweep
from lora_lab.study.lease import clock, new_name
from lora_lab.study.log import Event, Log, Unreachable
from lora_lab.study.shadow import Shadow
from lora_lab.study.state import State
from lora_lab.study.storage import gone

T = TypeVar("T")

PATIENCE = 15 * 60.0
"""Seconds that a worker waits for a log that is away; its lanes wait with it."""
RETRY_SECONDS = 0.5

log = logging.getLogger(__name__)


class Session:
    """A log and the state it adds up to. Methods may be called from several threads."""

    def __init__(self, log: Log, *, samples: bool, name: str | None = None, allow_code: bool = False) -> None:
        """``samples``: also keep Optuna's view of the trials (:attr:`shadow`), to ask and to prune. ``allow_code``:
        its sampler and pruner may be from any package."""
        self.log = log
        self.name = name or new_name()
        self.lock = threading.RLock()
        self._samples = samples
        self._allow_code = allow_code
        self._transactions = 0
        self._events: list[Event] = []
        self._tx = ""
        self._forget()

    def _forget(self) -> None:
        self.state = State()
        self._shadow: Shadow | None = None

    @property
    def shadow(self) -> Shadow:
        """Optuna's view; there is one once the log has its sweep."""
        assert self._shadow is not None
        return self._shadow

    def sync(self) -> None:
        """Read what others have written.

        Raises:
            Unreachable, StorageError
        """
        with self.lock:
            for event in self.log.read(self.state.count):
                self._apply(event)

    def patiently(self, call: Callable[[], T], *, patience: float = PATIENCE) -> T:
        """``call()``, again and again while the log is away.

        Raises:
            StorageError: it is away for longer than ``patience`` seconds.
        """
        until = clock() + patience
        while True:
            try:
                return call()
            except Unreachable as error:
                _wait_for_it(error, until)

    def do(self, op: str, **fields: Any) -> None:
        """Let something happen, within :meth:`transact`."""
        event = {"op": op, **fields, "tx": self._tx}
        self._apply(event)
        self._events.append(event)

    def transact(self, decide: Callable[[], T], *, patience: float = PATIENCE) -> T:
        """Run ``decide`` while nobody else writes; what it lets happen (:meth:`do`) is durable when this returns.

        When the log goes away in between, what happened is found out when it is back: ``decide`` counts once.

        Raises:
            StorageError: the log is away for longer than ``patience`` seconds.
            SweepFolderError: no space left, or no permission; nothing happened.
        """
        value: T | None = None
        ran = False
        with self.lock:
            self._transactions += 1
            self._tx = f"{self.name}:{self._transactions}"
            until = clock() + patience
            while True:
                self._events = []
                try:
                    with self.log.exclusive(self.sync) as append:
                        self.sync()
                        if ran and self.state.last.get(self.name) == self._tx:
                            return value  # type: ignore[return-value]  # it ran
                        value, ran = decide(), True
                        if self._events:
                            append(self._events)
                    return value
                except Unreachable as error:
                    self._forget()
                    _wait_for_it(error, until)
                except BaseException:
                    if self._events:
                        self._forget()
                    raise

    def _apply(self, event: Event) -> None:
        self.state.take(event)
        if self._samples:
            if self._shadow is None and event["op"] == "sweep":
                tree = {name: value for name, value in event["tree"].items() if name != "key"}
                self._shadow = Shadow(Sweep.from_tree(tree), self.state, allow_code=self._allow_code)
            if self._shadow is not None:
                self._shadow.follow(event)


def _wait_for_it(error: Unreachable, until: float) -> None:
    if clock() > until:
        raise gone(error.url, error.cause) from error
    log.info("the study's storage is away, it is tried again: %s", error)
    time.sleep(RETRY_SECONDS)
