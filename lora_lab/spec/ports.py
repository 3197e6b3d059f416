"""The two ports through which the engine is heard and steered.

The engine has never heard of MLflow or Optuna; whoever starts it gives it one of each of these.
Neither may raise for reasons of its own (a server that is down, a full queue): training goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from lora_lab.spec.result import EvalMetrics, RunResult, StepMetrics
from lora_lab.spec.run import RunSpec


class Verdict(Enum):
    """A controller's answer for one lane at an evaluation."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


class Order(Enum):
    """What a controller wants done with a lane at the next step boundary."""

    STOP = "stop"
    """Evaluate it and end it PRUNED: somebody has seen enough."""
    PARK = "park"
    """Save it and end it PREEMPTED: somebody else will go on with it."""
    DROP = "drop"
    """End it PREEMPTED and write nothing: it is somebody else's by now."""
    SAVE = "save"
    """Save it and go on: its checkpoint is wanted now."""


class Recorder(Protocol):
    """Takes what happens to runs, in order, never blocking on anything remote.

    The engine calls all but :meth:`ended`, which the worker calls once the result is settled.
    """

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        """``run`` enters a pack; ``first_step`` is above 0 when it goes on from a checkpoint."""

    def step(self, run: str, metrics: StepMetrics) -> None:
        """One optimizer step of ``run`` is done."""

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        """``run`` was evaluated; ``metrics.step`` 0 is the untrained adapter, i.e. the base model."""

    def ended(self, result: RunResult) -> None:
        """``result.run`` is settled (or, with outcome PREEMPTED, put aside)."""


class Controller(Protocol):
    """Steers lanes at evaluations and packs at step boundaries."""

    def decide(self, run: str, metrics: EvalMetrics) -> Verdict:
        """CONTINUE; STOP: the lane ends PRUNED at this step; PAUSE: it is saved and leaves, perhaps to come back."""

    def orders(self) -> Mapping[str, Order]:
        """What to do at this step boundary with lanes by run; asked for at every one, so it must be cheap."""

    def saved(self, run: str, step: int) -> None:
        """A checkpoint that was ordered (``Order.SAVE``) is written."""

    def pause_requested(self) -> bool:
        """True when every lane should be saved and the pack ended now (Ctrl-C, preemption)."""
