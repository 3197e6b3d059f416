"""What a run takes before it is started: parameters, peak memory by part, FLOPs, and how many lanes fit.

Nothing is allocated: the real model's forward, backward and optimizer step are traced on tensors without data.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.planner.device import device_memory
    from lora_lab.planner.prediction import Plan, lanes_that_fit, plan

__all__ = ["Plan", "device_memory", "lanes_that_fit", "plan"]

_HOMES = {
    "Plan": "lora_lab.planner.prediction",
    "device_memory": "lora_lab.planner.device",
    "lanes_that_fit": "lora_lab.planner.prediction",
    "plan": "lora_lab.planner.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab.planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
