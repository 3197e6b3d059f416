"""What the sweeps of sections take before they start: runs, steps, tokens, and the time of each on this machine.

Seconds a token come from runs that are settled in the same folder, of the same sweep where there are some. Before the
first of them, from the rate of large matrix products on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.analysis import read_results
from lora_lab.errors import LoraLabError
from lora_lab.spec import SETTLED, RunSpec, Sweep

SHARE = 0.3
"""Of the matrix-product peak that a pack reaches on a CPU (``benchmarks/packed_step.py``: 0.29 to 0.48)."""
FLOPS_A_WEIGHT = 4.0
"""Floating-point operations for a token and a frozen weight: a product forward and one backward."""


@dataclass(frozen=True)
class Cost:
    """One sweep: its runs, those settled, and the steps, tokens and seconds of the rest (``None``: not known here)."""

    name: str
    runs: int
    settled: int
    steps: int | None
    tokens: float | None
    seconds: float | None


def costs_of(sweeps: Mapping[str, tuple[Sweep, Path]]) -> list[Cost]:
    """The cost of each sweep (by name, with its folder)."""
    done = {name: _settled(folder) for name, (_, folder) in sweeps.items()}
    every = [one for results in done.values() for one in results]
    found = []
    for name, (sweep, _) in sweeps.items():
        runs, settled = sweep.planned_trials * sweep.repeats, len(done[name])
        size = _size(sweep)
        if size is None:
            found.append(Cost(name, runs, settled, None, None, None))
            continue
        share = max(0.0, 1 - settled / runs)
        steps, tokens = round(size[0] * share), size[1] * share
        rate = _rate(done[name]) or _rate(every) or _guess(sweep.base)
        found.append(Cost(name, runs, settled, steps, tokens, None if rate is None else tokens * rate))
    return found


def _settled(folder: Path) -> list[dict[str, Any]]:
    outcomes = {str(outcome) for outcome in SETTLED}
    return [one for one in read_results(folder) if one["outcome"] in outcomes]


def _size(sweep: Sweep) -> tuple[int, float] | None:
    """Steps and tokens of all runs, those of the last evaluation at a third (a forward of three such passes)."""
    from lora_lab import data, models

    try:
        steps, tokens = 0, 0.0
        tokenizer = models.load_tokenizer(sweep.base.model)
        for point in sweep.points or ():
            spec = sweep.base.at(point)
            held = data.load(spec.data, tokenizer, cache=models.cache_folder())
            its = spec.budget.total_steps(len(held.train))
            steps += its * sweep.repeats
            trained = its * spec.budget.batch_size * float(held.train.lengths.mean())
            tokens += (trained + float(held.evaluation.lengths.sum()) / 3) * sweep.repeats
    except LoraLabError:
        return None
    return steps, tokens


def _rate(results: list[dict[str, Any]]) -> float | None:
    """Seconds a token."""
    tokens = sum(one.get("tokens", 0) for one in results)
    return sum(one.get("seconds", 0.0) for one in results) / tokens if tokens else None


def _guess(run: RunSpec) -> float | None:
    from lora_lab import models

    try:
        weights = models.total_parameters(models.load_meta(run.model))
    except LoraLabError:
        return None
    return FLOPS_A_WEIGHT * weights / (SHARE * _peak(run.model.dtype))


def _peak(dtype: str, size: int = 1024, least: float = 0.2) -> float:
    """FLOP/s of matrix products here, by a fifth of a second of them."""
    import torch

    a = torch.randn(size, size).to(getattr(torch, dtype))
    a @ a
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < least:
        a @ a
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - began)
