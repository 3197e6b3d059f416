"""When steps were done, and what a method found."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from machine import synchronise


@dataclass
class Stopwatch:
    """Time between the end of a run's step ``first`` and the end of its last, summed over runs.

    What comes before (building the adapter, warming up) and after (evaluation, saving) is not in it.
    """

    first: int
    device: torch.device
    seconds: float = 0.0
    _done: int = 0
    _since: float = 0.0
    _last: float = 0.0

    def begin(self) -> None:
        """A run, or a pack of runs of one length, begins."""
        self.end()

    def step(self) -> None:
        """A step is done."""
        synchronise(self.device)
        self._last = time.perf_counter()
        self._done += 1
        if self._done == self.first:
            self._since = self._last

    def end(self) -> None:
        """It is over: its time counts."""
        if self._done > self.first:
            self.seconds += self._last - self._since
        self._done = 0


@dataclass
class Found:
    """Seconds of the counted steps, their model FLOPs, and each run's mean training loss over all its steps."""

    seconds: float = 0.0
    flops: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
