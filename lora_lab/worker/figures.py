"""What constraints may ask of a run before it trains, answered by the planner."""

from __future__ import annotations

import functools

from lora_lab.planner import Plan, device_memory, plan
from lora_lab.spec import Figures, RunSpec
from lora_lab.worker.capacity import WITHOUT_LIMIT


def figures_on(device: str, memory: int | None = None) -> Figures:
    """The figures of :data:`lora_lab.spec.FIGURES`, for runs on ``device`` (``auto``, ``cpu``, ``cuda``, …) that has
    ``memory`` bytes (``None``: those that are free)."""

    @functools.cache
    def planned(spec: RunSpec) -> Plan:
        return plan(spec, memory=WITHOUT_LIMIT, device="cpu" if device == "auto" else device)

    @functools.cache
    def fitting(spec: RunSpec) -> int:
        return plan(spec, memory=memory or device_memory(device), device=device).lanes_that_fit

    def figures(spec: RunSpec, name: str) -> float:
        run = spec.at({}, seed=0)
        if name == "lanes_that_fit":
            return fitting(run)
        found = planned(run)
        return {
            "parameters": found.trainable_parameters,
            "total_parameters": found.total_parameters,
            "peak_memory": found.peak_bytes,
            "flops_per_step": found.flops_per_step,
        }[name]

    return figures
