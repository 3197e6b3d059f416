"""What a settled trial is worth, and what its sampler is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optuna.trial import TrialState

from lora_lab.spec import Objective, Outcome, RunResult

WORST = 100.0
"""Told for a diverged trial before any finite value was seen: nats above the loss of any vocabulary (ln V < 20)."""


def mean_objective(results: Sequence[RunResult], objective: Objective) -> float | None:
    """The mean objective over the completed runs of a trial; ``None`` where that says nothing of the trial.

    That is where no run completed, or where one was pruned or diverged: a configuration that diverges with one
    seed of three is not as good as its two lucky runs.
    """
    if any(result.outcome in (Outcome.DIVERGED, Outcome.PRUNED) for result in results):
        return None
    values = [value for result in results if (value := _completed(result, objective)) is not None]
    return sum(values) / len(values) if values else None


def verdict(
    results: Sequence[RunResult], objective: Objective, seen: Iterable[RunResult]
) -> tuple[TrialState, float | None]:
    """State and value to tell of a trial whose runs are all settled; ``seen`` are all results of the sweep.

    A diverged trial is bad, not failed: it is told the worst finite value seen, so that samplers learn from it.
    """
    outcomes = {result.outcome for result in results}
    value = mean_objective(results, objective)
    if Outcome.DIVERGED in outcomes:
        return TrialState.COMPLETE, worst(seen, objective)
    if Outcome.PRUNED in outcomes:
        return TrialState.PRUNED, None
    return (TrialState.FAIL, None) if value is None else (TrialState.COMPLETE, value)


def worst(seen: Iterable[RunResult], objective: Objective) -> float:
    """The worst finite objective among ``seen``, their base models' scores included."""
    base = "base_exact_match" if objective.metric == "exact_match" else "base_eval_loss"
    values = [value for result in seen for value in (_completed(result, objective), getattr(result, base))]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    lower_is_better = objective.direction == "minimize"
    if not finite:
        return WORST if lower_is_better else -WORST
    return max(finite) if lower_is_better else min(finite)


def _completed(result: RunResult, objective: Objective) -> float | None:
    value: float | None = getattr(result, objective.metric)
    return value if result.outcome is Outcome.COMPLETED and value is not None and math.isfinite(value) else None
