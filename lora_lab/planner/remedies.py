"""What would make a run fit that does not: each proposal is a setting, and was planned before it is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lora_lab.errors import LoraLabError
from lora_lab.planner.lanes import Trace
from lora_lab.planner.shape import Shape
from lora_lab.planner.tracing import trace
from lora_lab.spec import show_size

SHORTEST = 16
"""Tokens below which a shorter ``data.max_length`` is no longer proposed."""


def remedies(shape: Shape, traced: Trace, budget: int) -> list[str]:
    """Settings with which one lane of ``shape`` stays within ``budget`` bytes: each alone, or together.

    The list ends with why there is none, where there is none.
    """
    kinds = (_quantised, _recomputing, _smaller, _shorter)
    alone = [first for kind in kinds if (first := _first_that_fits(kind(shape), budget)) is not None]
    if alone:
        return [f"{_said(shape, one)} fits" for one in alone]
    best = shape
    for kind in kinds:
        options = [one for one in kind(best) if _planned(one) is not None]
        if (one := _first_that_fits(options, budget)) is not None:
            return [f"{_said(shape, one)} fits"]
        best = options[-1] if options else best
    least = min(traced.peak(), trace(best).peak())
    return [f"even {_said(shape, best)} needs {show_size(least)}: use a smaller model or a larger device"]


def _quantised(shape: Shape) -> list[Shape]:
    model = shape.model
    if model.quantization == "none" and model.dtype != "float64" and shape.method.name != "full":
        return [replace(shape, model=replace(model, quantization="nf4"))]
    return []


def _recomputing(shape: Shape) -> list[Shape]:
    return [] if shape.recompute else [replace(shape, recompute=True)]


def _smaller(shape: Shape) -> list[Shape]:
    return [shape.shrunk(rows=rows, accumulates=True) for rows in _halves(shape.rows)]


def _shorter(shape: Shape) -> list[Shape]:
    return [shape.shrunk(length=length) for length in _halves(shape.length) if length >= SHORTEST]


def _halves(size: int) -> list[int]:
    return [size >> n for n in range(1, size.bit_length())]


def _first_that_fits(options: Iterable[Shape], budget: int) -> Shape | None:
    """The first of ``options``, which need less and less, that fits."""
    for one in options:
        found = _planned(one)
        if found is not None and found.peak() <= budget:
            return one
    return None


def _planned(shape: Shape) -> Trace | None:
    """The trace of a proposal; ``None`` where the method cannot do it."""
    try:
        return trace(shape)
    except LoraLabError:
        return None


def _said(shape: Shape, new: Shape) -> str:
    """The settings that lead from ``shape`` to ``new``."""
    settings = {
        f"model.quantization={new.model.quantization}": new.model != shape.model,
        "budget.checkpointing=true": new.recompute != shape.recompute,
        f"budget.micro_batch_size={new.rows}": new.rows != shape.rows,
        f"data.max_length={new.length}": new.length != shape.length,
    }
    return " ".join(setting for setting, changed in settings.items() if changed)
