"""What a run takes before it is started: parameters, peak memory by part, FLOPs, and how many lanes fit.

Nothing is allocated: the real model's forward, backward and optimizer step are traced on tensors without data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.planner.device import device_memory
    from lora_lab.planner.prediction import Plan, plan, refusal

__all__ = ["Plan", "device_memory", "plan", "refusal"]

__getattr__ = names(
    __name__,
    {
        "Plan": "prediction",
        "device_memory": "device",
        "plan": "prediction",
        "refusal": "prediction",
    },
)
