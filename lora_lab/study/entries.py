"""What a study's state is made of: trials, their runs, and the workers that hold these."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lora_lab.spec import RunResult


class Cause(StrEnum):
    """Why a run came back to the queue."""

    PREEMPTED = "PREEMPTED"
    LOST = "LOST"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    COMPANY = "COMPANY"
    """Something failed in a pack of several; each of its runs is tried alone."""


@dataclass
class TrialState:
    """One trial. ``losses`` holds, by step, the loss that each seed reported.

    A branch has a ``parent`` run, settings of its own and one ``seed``. A copy in a population has an ``origin``:
    another trial, and the step of it at which it begins.
    """

    number: int
    params: dict[str, Any]
    refused: str | None = None
    pruned_at: int | None = None
    parent: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    origin: tuple[int, int] | None = None
    losses: dict[int, dict[int, float]] = field(default_factory=dict)


@dataclass
class RunState:
    """One run: in the queue, held under a claim, waiting for its parent to be ``saved`` or ``settled``, or settled."""

    id: str
    trial: int
    seed: int
    waits: str | None = None
    holder: str | None = None
    claim: int | None = None
    key: str | None = None
    alone: bool = False
    halvings: int = 0
    attempts: int = 0
    back: Counter[str] = field(default_factory=Counter)
    result: RunResult | None = None
    order: str | None = None
    saved: int | None = None

    @property
    def queued(self) -> bool:
        """It may be handed out."""
        return self.waits is None and self.holder is None and self.result is None


@dataclass
class WorkerState:
    """One worker, alive until it leaves or lapses. ``process`` says which one it is (see :mod:`.lease`)."""

    id: str
    lease: float
    process: dict[str, Any]
    runs: set[str] = field(default_factory=set)
