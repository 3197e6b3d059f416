"""Steps that differ in LoRA's rank alone: two or three traced ones tell those of all other ranks, to the byte.

A tensor of such a step has among its dimensions the rank once, or the width that :mod:`lora_lab.packing.stacks` pads
products to (their inner size is the rank, or twice it where a module has two of them), or neither. So each moment holds
``a + b rank + c width`` bytes, and where ``(1, rank, width)`` is a combination of those of traced ranks, the moment's
bytes are the same combination of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lora_lab.methods.inits import MUTATING
from lora_lab.packing.stacks import padded
from lora_lab.planner.shape import Shape
from lora_lab.planner.step import Step

_Place = tuple[int, int, int]
"""1, a rank, and the width that its products are padded to."""

LARGEST = 10**6
"""Denominator of a share: a product of two ranks at most."""


def tells_ranks(shape: Shape) -> bool:
    """Whether steps like ``shape``'s tell those of other ranks.

    Not where something is ``rank x rank`` large: the products of Muon and of DoRA's norms.
    """
    method = shape.method
    alike = method.name == "lora" and bool(method.roles) and method.one_rank
    return alike and not method.dora and shape.optimizer.name != "muon"


def step_at(shape: Shape, known: Mapping[int, Step]) -> Step | None:
    """``shape``'s step as the ``known`` ones, by their ranks, tell it; ``None`` where they do not."""
    steps = list(known.values())
    if not steps or any(_operations(step) != _operations(steps[0]) for step in steps):
        return None
    products = 2 if shape.method.init.startswith(MUTATING) else 1
    shares = _shares(_place(shape.method.r, products), [_place(rank, products) for rank in known])
    if shares is None:
        return None
    first = steps[0].timeline
    held = _combined(shares, [step.timeline.bytes for step in steps])
    counts = _combined(shares, [np.array([step.own_bytes, *step.by_role.values()]) for step in steps])
    if held is None or counts is None:
        return None
    flops = sum((share * step.timeline.flops for share, step in zip(shares, steps, strict=True)), Fraction())
    own_bytes, *roles = map(int, counts)
    return replace(
        steps[0],
        timeline=replace(first, bytes=held, flops=flops),
        by_role=dict(zip(steps[0].by_role, roles, strict=True)),
        own_bytes=own_bytes,
    )


def _shares(wanted: _Place, known: Sequence[_Place]) -> list[Fraction] | None:
    """How much of each ``known`` place makes ``wanted``; ``None`` where they do not."""
    places = np.array(known, dtype=np.float64).T
    near = np.linalg.lstsq(places, np.array(wanted, dtype=np.float64), rcond=None)[0]
    shares = [Fraction(share).limit_denominator(LARGEST) for share in near.tolist()]
    made = tuple(sum(share * place[i] for share, place in zip(shares, known, strict=True)) for i in range(3))
    return shares if made == wanted else None


def _place(rank: int, products: int) -> _Place:
    return 1, rank, padded(products * rank)


def _operations(step: Step) -> list[str]:
    """What a step does; memory that a narrower rank needs zeroed and a full one does not is the same memory."""
    return [name.replace("aten.zeros", "aten.empty") for name in step.timeline.names]


def _combined(shares: Sequence[Fraction], numbers: Sequence[np.ndarray]) -> np.ndarray | None:
    """The sum of ``numbers``, each times its share; ``None`` where that is not made of whole numbers."""
    common = math.lcm(*(share.denominator for share in shares))
    total = np.zeros_like(numbers[0], dtype=object)
    for share, one in zip(shares, numbers, strict=True):
        total = total + int(share * common) * one.astype(object)
    return None if np.any(total % common) else (total // common).astype(np.int64)
