"""What the sweeps of sections take before they start: runs, steps, tokens, and the time of each on this machine.

Seconds a token come from the sweep's own settled runs. Before the first of them, from the rate of large matrix products
on this machine, and from how much longer than that the other sweeps' runs took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.analysis import read_results
from lora_lab.errors import LoraLabError
from lora_lab.spec import SETTLED, RunSpec, Sweep

SHARE = 0.4
"""Of the matrix-product peak: what the sweeps of ``docs/article.md`` came to on two cores, evaluations included."""
FROZEN, TRAINED = 4.0, 6.0
"""Floating-point operations for a token and a weight: a product forward, one backward, and one more if it trains."""


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
    guesses = {name: _guess(sweep.base) for name, (sweep, _) in sweeps.items()}
    slower = _slower(done, guesses)
    found = []
    for name, (sweep, _) in sweeps.items():
        runs, settled = sweep.planned_trials * sweep.repeats, len(done[name])
        size = _size(sweep)
        if size is None:
            found.append(Cost(name, runs, settled, None, None, None))
            continue
        share = max(0.0, 1 - settled / runs)
        steps, tokens = round(size[0] * share), size[1] * share
        guess = guesses[name]
        rate = _rate(done[name]) or (None if guess is None else guess * slower)
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


def _slower(done: Mapping[str, list[dict[str, Any]]], guesses: Mapping[str, float | None]) -> float:
    """What a token of the settled runs took, as a multiple of what was guessed."""
    runs = [(one, guess) for name, guess in guesses.items() if guess is not None for one in done[name]]
    guessed = sum(one.get("tokens", 0) * guess for one, guess in runs)
    return sum(one.get("seconds", 0.0) for one, _ in runs) / guessed if guessed else 1.0


def _guess(run: RunSpec) -> float | None:
    """Seconds a token, of the base's own products."""
    from lora_lab import models
    from lora_lab.planner.device import device_kind
    from lora_lab.planner.speed import product_rate

    try:
        weights = models.total_parameters(models.load_meta(run.model))
        peak = product_rate(device_kind("auto"), run.product_dtype)
    except LoraLabError:
        return None
    whole = run.method.name == "full"
    return None if peak is None else (TRAINED if whole else FROZEN) * weights / (SHARE * peak)
