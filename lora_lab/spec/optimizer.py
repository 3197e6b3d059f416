"""How a run's parameters move: its optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.checks import one_of

OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("beta1", "beta2", "eps"),
    "sgd": ("momentum",),
}
"""Optimizer names and the fields that only they read (all read ``lr``, ``weight_decay``, ``max_grad_norm``)."""
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer. Fields an optimizer does not read are ignored by it and absent from the key."""

    name: str = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SpecError(f"optimizer.lr: must be a positive number, got {self.lr!r}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SpecError(f"optimizer.weight_decay: must be 0 or more, got {self.weight_decay!r}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise SpecError(f"optimizer.max_grad_norm: must be positive, or null for none, got {self.max_grad_norm!r}.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SpecError(f"optimizer.{name}: must be in [0, 1), got {getattr(self, name)!r}.")

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result."""
        for name in {field for fields in OPTIMIZERS.values() for field in fields} - set(OPTIMIZERS[self.name]):
            tree.pop(name)


@dataclass(frozen=True)
class ScheduleSpec:
    """A learning-rate schedule over optimizer steps; all of them warm up linearly first."""

    name: str = "linear"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, SCHEDULES)
        if self.warmup_steps < 0:
            raise SpecError(f"schedule.warmup_steps: must be 0 or more, got {self.warmup_steps}.")
