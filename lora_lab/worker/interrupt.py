"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2: the first asks the pack to save and stop; a second Ctrl-C stops at once.

Only Ctrl-C is impatient. Schedulers repeat themselves (Slurm sends its signal, then SIGTERM, each perhaps twice), and
what is being saved must not suffer from it; when their patience ends they send SIGKILL.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupt:
    """A context manager that turns :data:`SIGNALS` into :attr:`requested` while it is entered.

    Outside the main thread, where Python allows no handlers, it only carries the flag.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def wait(self, seconds: float) -> None:
        """Sleep, until a signal comes at the longest."""
        until = time.monotonic() + seconds
        while not self.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
