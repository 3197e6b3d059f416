"""PED-ANOVA by Optuna, of results from wherever they come."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

BEST_SHARE = 0.1
"""The share of configurations that count as the best ones."""
FEW = 12
"""Different numbers up to which an axis is a list of values."""


def ped_anova(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], direction: str = "minimize", best: float = BEST_SHARE
) -> dict[str, float]:
    """How much each path sets the ``best`` share of points apart from all of them; the shares add up to 1.

    PED-ANOVA (Watanabe, Bansal & Hutter 2023, arXiv:2304.10255), as ``optuna.importance`` computes it. Points map
    paths to plain values; a path counts where all points have it and it takes two values or more: more than
    :data:`FEW` numbers are an axis (of logarithms where they span more than a factor of four), all else is a list.
    Empty where fewer than two paths or ten points are left.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {}
    columns: dict[str, list[Any]] = {}
    for path in points[0] if points else ():
        seen: list[Any] = [point.get(path) for point in points]
        if None in seen or len(set(map(repr, seen))) < 2:
            continue
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in seen)
        if numbers and len(set(seen)) > FEW:
            low, high = float(min(seen)), float(max(seen))
            distributions[path] = FloatDistribution(low, high, log=low > 0 and high / low > 4)
            columns[path] = [float(v) for v in seen]
        else:
            names = [repr(v) for v in seen]
            distributions[path] = CategoricalDistribution(tuple(dict.fromkeys(names)))
            columns[path] = names
    if len(distributions) < 2 or len(points) < 10:
        return {}
    study = _silent_study(direction)
    study.add_trials(
        [
            create_trial(params={path: columns[path][i] for path in columns}, distributions=distributions, value=value)
            for i, value in enumerate(values)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best, region_quantile=1.0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(distributions))
    return {path: float(share) for path, share in found.items()}


def _silent_study(direction: str) -> Any:
    """A study in memory, without Optuna's line that says so."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize" if direction == "maximize" else "minimize")
    finally:
        optuna.logging.set_verbosity(before)
