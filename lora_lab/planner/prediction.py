"""A plan: what a run, or a pack of equal lanes, will take on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.planner.device import device_kind, device_memory, show_size
from lora_lab.planner.step import Shape, Trace, trace
from lora_lab.spec import RunSpec

HEADROOM = 0.1
"""Share of a device's free memory that a pack leaves alone: the allocator's slack, kernels' workspace, evaluation."""
SHORTEST = 16
"""Tokens below which a shorter ``data.max_length`` is no longer proposed."""


@dataclass(frozen=True)
class Plan:
    """What a pack of ``lanes`` equal runs takes while it trains.

    ``peak_bytes`` is the largest sum of live tensors in a step, weights included, and ``parts`` what it is made
    of (part -> bytes); they add up. ``by_role`` splits ``trainable_parameters`` (of one lane);
    ``total_parameters`` are the base model's. ``flops_per_step`` counts the matrix products of one optimizer
    step of the whole pack. ``memory`` is what the plan was held against, ``lanes_that_fit`` how many such lanes
    go into it; when ``fits`` is False, ``reasons`` says why, and what would make one lane fit.
    """

    trainable_parameters: int
    total_parameters: int
    by_role: dict[str, int]
    lanes: int
    peak_bytes: int
    parts: dict[str, int]
    flops_per_step: float
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
) -> Plan:
    """Predict what ``lanes`` runs like ``spec`` take together, allocating nothing.

    Args:
        spec: the run; its largest step counts (every sequence ``data.max_length`` tokens long).
        memory: bytes there are (``None``: what ``device`` has free now, see :func:`device_memory`).
        lanes: how many such runs share the base model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; it decides how attention is computed. With
            ``memory`` given it need not be in this machine.
        length: tokens of the longest sequence in the data, where known and below ``data.max_length``.
        supervised: supervised tokens of a sequence at most, where known (default: all but the first).

    Raises:
        ModelError: the model's configuration cannot be read, or its fused matrix is asked for in part.
        MethodError: a role or a layer that the model lacks.
        SpecError: an impossible device, or ``lanes`` below 1.
    """
    if lanes < 1:
        raise SpecError(f"lanes: must be 1 or more, got {lanes}.")
    kind = device_kind(device, present=memory is None)
    memory = device_memory(device) if memory is None else memory
    shape = Shape.of(spec, kind, length, supervised)
    traced = trace(shape)
    budget = int(memory * (1 - HEADROOM))
    parts, peak = traced.parts(lanes), traced.peak(lanes)
    return Plan(
        trainable_parameters=traced.trainable_parameters,
        total_parameters=traced.total_parameters,
        by_role=dict(traced.by_role),
        lanes=lanes,
        peak_bytes=peak,
        parts=parts,
        flops_per_step=float(traced.flops) * lanes * spec.budget.batch_size / spec.budget.micro,
        memory=memory,
        lanes_that_fit=traced.lanes_in(budget),
        fits=peak <= budget,
        reasons=() if peak <= budget else (_cause(parts, lanes, memory), *_remedies(shape, traced, lanes, budget)),
    )


def lanes_that_fit(
    spec: RunSpec,
    memory: int,
    *,
    device: str = "auto",
    length: int | None = None,
    supervised: int | None = None,
) -> int:
    """How many lanes like ``spec`` (the largest of a sweep) fit into ``memory`` bytes; 0 when not even one does.

    Arguments and errors as for :func:`plan`.
    """
    traced = trace(Shape.of(spec, device_kind(device, present=False), length, supervised))
    return traced.lanes_in(int(memory * (1 - HEADROOM)))


def _cause(parts: dict[str, int], lanes: int, memory: int) -> str:
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    what = "one lane needs" if lanes == 1 else f"{lanes} lanes need"
    made_of = ", ".join(f"{name} {show_size(size)}" for name, size in largest if size)
    return (
        f"{what} {show_size(sum(parts.values()))} ({made_of}); there are {show_size(memory)}, "
        f"of which {HEADROOM:.0%} is left alone"
    )


def _remedies(shape: Shape, traced: Trace, lanes: int, budget: int) -> list[str]:
    """What would make it fit: fewer lanes, smaller micro-batches, shorter sequences, or both of these."""
    if lanes > 1 and (fit := traced.lanes_in(budget)) > 0:
        return [f"pack.max_lanes={fit} fits"]
    rows, lengths = _halves(shape.rows), [length for length in _halves(shape.length) if length >= SHORTEST]
    found = []
    for sizes in ([(r, shape.length) for r in rows], [(shape.rows, n) for n in lengths]):
        if size := _largest(shape, traced, sizes, budget):
            found.append(f"{_say(shape, *size)} fits")
    if not found and rows and (size := _largest(shape, traced, [(1, n) for n in lengths], budget)):
        found.append(f"{_say(shape, *size)} fits")
    if not found:
        parts = traced.parts()
        least = parts["weights"] + parts["adapters"] + parts["optimizer"]
        need = show_size(math.ceil(least / (1 - HEADROOM)))
        found.append(f"weights, adapter and optimizer alone need {need}: use a smaller model or a larger device")
    return found


def _say(shape: Shape, rows: int, length: int) -> str:
    said = [f"budget.micro_batch_size={rows}"] if rows != shape.rows else []
    return " ".join(said + ([f"data.max_length={length}"] if length != shape.length else []))


def _largest(shape: Shape, traced: Trace, sizes: list[tuple[int, int]], budget: int) -> tuple[int, int] | None:
    """The first ``(rows, length)`` that fits. Those that cannot, by tokens, are not traced."""
    parts = traced.parts()
    batch = parts["activations"] + parts["logits"] + parts["workspace"]
    rest = traced.peak() - batch
    for rows, length in sizes:
        guess = rest + batch * (rows * length) / (shape.rows * shape.length)
        if guess > 1.05 * budget:
            continue
        smaller = shape.shrunk(rows=rows, length=length, accumulates=shape.accumulates or rows < shape.rows)
        if trace(smaller).lanes_in(budget):
            return rows, length
    return None


def _halves(size: int) -> list[int]:
    out = []
    while size > 1:
        size //= 2
        out.append(size)
    return out
