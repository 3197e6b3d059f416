"""Learning-rate schedules: a factor of the peak rate at each optimizer step.

All warm up linearly from 1/warmup to 1 over ``warmup_steps``, then follow their curve to the last step.
The curves are those of ``transformers.get_scheduler``, but for the first warm-up step, which there has
rate 0 and is wasted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lora_lab.spec import ScheduleSpec

CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""Name -> factor at ``progress`` in [0, 1) of the way from the end of the warm-up to the last step."""


def factor(spec: ScheduleSpec, step: int, total: int) -> float:
    """The factor for optimizer step ``step`` (0-based) of ``total``."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    length = max(1, total - spec.warmup_steps)
    return CURVES[spec.name](min(1.0, (step - spec.warmup_steps) / length))
