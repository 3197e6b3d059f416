"""A plan: what a run, or a pack of equal lanes, will take on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.planner.device import device_kind, device_memory
from lora_lab.planner.lanes import Trace
from lora_lab.planner.remedies import remedies as remedies_for
from lora_lab.planner.shape import Shape
from lora_lab.planner.speed import product_rate
from lora_lab.planner.tracing import trace
from lora_lab.spec import RunSpec, show_size

HEADROOM = 0.1
"""Share of a device's free memory that a pack leaves alone: the allocator's slack, kernels' workspace, evaluation."""


@dataclass(frozen=True)
class Plan:
    """What a pack of ``lanes`` equal runs takes while it trains.

    ``peak_bytes`` is the largest sum of live tensors in a step, weights included, and ``parts`` what it is made
    of (part -> bytes); they add up. ``lane_bytes`` is what each run adds to the base for good: adapter, gradients and
    optimizer state, which need not all be there at the peak. ``by_role`` splits ``trainable_parameters`` (of one lane);
    ``total_parameters`` are the base model's. ``flops_per_step`` counts the matrix products of one optimizer
    step of the whole pack, and ``seconds_per_step`` is what they take at the rate of large matrix products on this
    machine's device, so a step takes longer (``None``: there is no such device here). ``memory`` is what the plan was
    held against, ``lanes_that_fit`` how many such lanes go into it; when ``fits`` is False, ``reasons`` says why, and
    what would make one lane fit.
    """

    trainable_parameters: int
    total_parameters: int
    by_role: dict[str, int]
    lanes: int
    peak_bytes: int
    parts: dict[str, int]
    lane_bytes: int
    flops_per_step: float
    seconds_per_step: float | None
    memory: int
    lanes_that_fit: int
    fits: bool
    reasons: tuple[str, ...]

    def to_tree(self) -> dict[str, Any]:
        """The JSON tree: one key a field."""
        return dict(vars(self)) | {"reasons": list(self.reasons)}


def plan(
    spec: RunSpec,
    *,
    memory: int | None = None,
    lanes: int = 1,
    device: str = "auto",
    length: int | None = None,
    supervised: int | None = None,
    correction: float = 1.0,
    remedies: bool = True,
) -> Plan:
    """Predict what ``lanes`` runs like ``spec`` take together, allocating nothing.

    Args:
        spec: the run; its largest step counts (every sequence ``data.max_length`` tokens long).
        memory: bytes that a device has (``None``: what ``device`` has free now, see :func:`device_memory`).
        lanes: how many such runs share the base model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; it decides how attention is computed. With
            ``memory`` given it need not be in this machine.
        length: tokens of the longest sequence in the data, where known and below ``data.max_length``.
        supervised: supervised tokens of a sequence at most, where known (default: all but the first).
        correction: measured peaks as a multiple of predicted ones (:mod:`lora_lab.planner.correction`).
        remedies: whether to look for what would make it fit, which plans several other runs.

    Raises:
        ModelError: the model's configuration cannot be read, or its fused matrix is asked for in part.
        MethodError: a role or a layer that the model lacks.
        SpecError: an impossible device, or ``lanes`` below 1.
    """
    if lanes < 1:
        raise SpecError(f"lanes: must be 1 or more, got {lanes}.")
    if spec.model.divided and lanes > 1:
        raise SpecError(f"lanes: {lanes} with model.shard={spec.model.shard}, whose runs train alone; use 1.")
    kind = device_kind(device, present=memory is None)
    memory = (device_memory(device) if memory is None else memory) * devices(spec, kind)
    shape = Shape.of(spec, kind, length, supervised)
    traced = trace(shape)
    budget = int(memory * (1 - HEADROOM) / correction)
    parts, peak = traced.parts(lanes), traced.peak(lanes)
    flops = traced.flops * lanes * spec.budget.batch_size / spec.budget.micro
    rate = product_rate(kind, spec.product_dtype)
    reasons: tuple[str, ...] = ()
    if peak > budget:
        reasons = (_cause(parts, lanes, memory, correction), *_ways_out(shape, traced, lanes, budget, remedies))
    return Plan(
        trainable_parameters=traced.trainable_parameters,
        total_parameters=traced.total_parameters,
        by_role=dict(traced.by_role),
        lanes=lanes,
        peak_bytes=peak,
        parts=parts,
        lane_bytes=traced.lane_bytes,
        flops_per_step=flops,
        seconds_per_step=None if rate is None else flops / rate,
        memory=memory,
        lanes_that_fit=min(traced.lanes_in(budget), 1) if spec.model.divided else traced.lanes_in(budget),
        fits=peak <= budget,
        reasons=reasons,
    )


def devices(spec: RunSpec, kind: str) -> int:
    """How many devices of ``kind`` hold the run together; processes of a machine's cores share its memory."""
    return spec.model.shards if spec.model.divided and kind == "cuda" else 1


def refusal(
    spec: RunSpec,
    memory: int,
    *,
    device: str = "auto",
    correction: float = 1.0,
    length: int | None = None,
    supervised: int | None = None,
) -> str | None:
    """Why a run cannot be trained in ``memory`` bytes even alone, and what would help; ``None`` where it can.

    Arguments and errors as for :func:`plan`. Ask before the base model takes its share of the memory.
    """
    found = plan(spec, memory=memory, device=device, correction=correction, length=length, supervised=supervised)
    return None if found.fits else f"{'; '.join(found.reasons)}."


def _cause(parts: dict[str, int], lanes: int, memory: int, correction: float) -> str:
    """Why ``lanes`` lanes do not fit into ``memory``."""
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    what = "one lane needs" if lanes == 1 else f"{lanes} lanes need"
    made_of = ", ".join(f"{name.replace('_', ' ')} {show_size(size)}" for name, size in largest if size)
    more = "" if correction == 1.0 else f", and runs here took {correction:.2f} times what was predicted"
    return (
        f"{what} {show_size(sum(parts.values()))} ({made_of}){more}; there are {show_size(memory)}, "
        f"of which {HEADROOM:.0%} is left alone"
    )


def _ways_out(shape: Shape, traced: Trace, lanes: int, budget: int, wanted: bool) -> list[str]:
    if lanes > 1 and (fit := traced.lanes_in(budget)) > 0:
        return [f"pack.max_lanes={fit} fits"]
    return remedies_for(shape, traced, budget) if wanted else []
