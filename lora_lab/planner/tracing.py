"""A shape's trace, by as little tracing as tells it: of a deep model two short versions, of many ranks two or three."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from lora_lab.models import total_parameters
from lora_lab.planner.depth import depths
from lora_lab.planner.lanes import SHARED, Trace
from lora_lab.planner.ranks import step_at, tells_ranks
from lora_lab.planner.shape import Shape
from lora_lab.planner.step import Step, shortened, step_of
from lora_lab.planner.timeline import extended

KNOWN: dict[Shape, dict[int, Step]] = {}
"""The traced steps at some ranks, by the shape at rank 1."""


@lru_cache(maxsize=4096)
def trace(shape: Shape) -> Trace:
    """Trace one step of ``shape``, without memory to speak of.

    Where a model's layers repeat, two short versions of it are traced instead of all of it
    (:mod:`lora_lab.planner.timeline`): half a second for a 7B model. Where steps at other ranks were traced that tell
    it (:mod:`lora_lab.planner.ranks`), nothing is.

    Raises:
        ModelError, MethodError: the model's configuration cannot be read, or lacks a role that is asked for.
    """
    step = _step(replace(shape, keeps_best=False))  # which is no part of a step
    total = sum(step.by_role.values())
    return Trace(
        trainable_parameters=total,
        total_parameters=total_parameters(shortened(shape.model, shape.device)),
        by_role=tuple(step.by_role.items()),
        crests=step.timeline.crests(SHARED if step.keeps_logits else (*SHARED, "logits")),
        flops=float(step.timeline.flops),
        own_bytes=step.own_bytes,
        best_bytes=step.own_bytes if shape.keeps_best else 0,
        rows=shape.rows * shape.length,
        targets=shape.rows * shape.supervised,
        alone=step.alone,
        keeps_logits=step.keeps_logits,
        device=shape.device,
    )


def _step(shape: Shape) -> Step:
    if not tells_ranks(shape):
        return step_of_short(shape) or step_of(shape)
    rank, known = shape.method.r, KNOWN.setdefault(shape.at_rank(1), {})
    step = step_at(shape, known)
    if step is None:
        step = known[rank] = step_of_short(shape) or step_of(shape)
    return step


def step_of_short(shape: Shape) -> Step | None:
    """The step of the whole model as two short versions of it tell it; ``None`` where they do not."""
    method = shape.method
    if method.layers or not method.one_rank or method.reads("top_layers"):
        return None  # layers that are alike carry different adapters
    cuts = depths(shortened(shape.model, shape.device))
    if cuts is None:
        return None
    short, long = step_of(shape, cuts.short), step_of(shape, cuts.long)
    timeline = extended(short.timeline, long.timeline, cuts.short, cuts.period, cuts.times)
    if timeline is None:
        return None
    counts = {role: n + cuts.times * (long.by_role[role] - n) for role, n in short.by_role.items()}
    own_bytes = short.own_bytes + cuts.times * (long.own_bytes - short.own_bytes)
    return Step(timeline, counts, own_bytes, short.alone, short.keeps_logits)
