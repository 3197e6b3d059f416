"""What a settled trial is worth, and what its sampler is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optuna.trial import TrialState
from scipy import stats

from lora_lab.spec import Objective, Outcome, RunResult

WORST = 100.0
"""Told for a diverged trial before any finite value was seen: nats above the loss of any vocabulary (ln V < 20)."""
CONFIDENCE = 0.9
"""Of the interval whose ends are the objectives' values ``lower`` and ``upper`` (two-sided)."""


def value_of(results: Sequence[RunResult], objective: Objective) -> float | None:
    """The objective over the completed runs of a trial (its mean, or an end of the mean's confidence interval).

    ``None`` where that says nothing of the trial: where no run completed, or where one was pruned or diverged: a
    configuration that diverges with one seed of three is not as good as its two lucky runs.
    """
    if any(result.outcome in (Outcome.DIVERGED, Outcome.PRUNED) for result in results):
        return None
    values = [value for result in results if (value := _completed(result, objective)) is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    if objective.value == "mean" or len(values) == 1:
        return mean
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = spread * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return mean - half if objective.value == "lower" else mean + half


def verdict(
    results: Sequence[RunResult], objectives: Sequence[Objective], seen: Iterable[RunResult]
) -> tuple[TrialState, list[float] | None]:
    """State and values to tell of a trial whose runs are all settled; ``seen`` are all results of the sweep.

    A diverged trial is bad, not failed: it is told the worst finite values seen, so that samplers learn from it.
    """
    outcomes = {result.outcome for result in results}
    if Outcome.DIVERGED in outcomes:
        seen = list(seen)
        return TrialState.COMPLETE, [worst(seen, objective) for objective in objectives]
    if Outcome.PRUNED in outcomes:
        return TrialState.PRUNED, None
    values = [value_of(results, objective) for objective in objectives]
    known = [value for value in values if value is not None]
    return (TrialState.COMPLETE, known) if len(known) == len(values) else (TrialState.FAIL, None)


def worst(seen: Iterable[RunResult], objective: Objective) -> float:
    """The worst finite objective among ``seen``, their base models' scores included."""
    metric = objective.metric
    values = [v for result in seen for v in (_completed(result, objective), result.measured(metric, base=True))]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return WORST * objective.sign
    return max(finite) if objective.sign > 0 else min(finite)


def front(values: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """The Pareto front: the places of ``values`` (one row a trial) that no other row is as good as in everything
    and better than in something. With one objective, the places of the best value."""
    signed = [tuple(o.sign * v for o, v in zip(objectives, row, strict=True)) for row in values]
    best: list[tuple[float, ...]] = []
    for row in sorted(set(signed)):  # what beats a row comes before it
        if not any(all(a <= b for a, b in zip(other, row, strict=True)) for other in best):
            best.append(row)
    return [place for place, row in enumerate(signed) if row in best]


def since_best(values: Sequence[float], objective: Objective) -> int:
    """How many values, in the order of settling, came after the last one that was better than all before it."""
    best, place = math.inf, 0
    for n, value in enumerate(values):
        if objective.sign * value < best:
            best, place = objective.sign * value, n
    return len(values) - 1 - place if values else 0


def _completed(result: RunResult, objective: Objective) -> float | None:
    value = result.measured(objective.metric)
    return value if result.outcome is Outcome.COMPLETED and value is not None and math.isfinite(value) else None
