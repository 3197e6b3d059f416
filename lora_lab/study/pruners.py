"""Pruners by name: one line each in :data:`PRUNERS`; those that pause are in ``rungs`` and ``population``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    ThresholdPruner,
    WilcoxonPruner,
)

from lora_lab.errors import SpecError, nearest
from lora_lab.spec import Objective, Strategy, Sweep, pairs, thaw
from lora_lab.spec.objective import JUDGED
from lora_lab.study.made import made, options_of
from lora_lab.study.population import POPULATION, Population, population_of
from lora_lab.study.rungs import RUNG_PRUNERS, Rungs
from lora_lab.study.targets import TARGET, pruner_target

_STARTUP = ("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials")


def _patience(wrapped: Mapping[str, Any] | None = None, **options: Any) -> BasePruner:
    """``PatientPruner``, alone or before another pruner: ``wrapped: {name: median, options: {…}}``."""
    inner = None
    if wrapped is not None:
        strategy = Strategy(str(wrapped.get("name")), pairs(wrapped.get("options")))
        if strategy.name not in PRUNERS or strategy.name in ("none", "patience"):
            raise ValueError(f"wrapped: no pruner {strategy.name!r}; known: median, percentile, threshold")
        inner = _by_name(strategy)
    return PatientPruner(inner, **options)


PRUNERS: Mapping[str, tuple[Callable[..., BasePruner], tuple[str, ...]]] = {
    "none": (NopPruner, ()),
    "median": (MedianPruner, _STARTUP),
    "percentile": (PercentilePruner, ("percentile", *_STARTUP)),
    "threshold": (ThresholdPruner, ("lower", "upper", "n_warmup_steps", "interval_steps")),
    "patience": (_patience, ("patience", "min_delta", "wrapped")),
    "wilcoxon": (WilcoxonPruner, ("p_threshold", "n_startup_steps")),
}
"""By name: what makes it, and its options (Optuna's own, but for ``wrapped``)."""


def pruner_of(sweep: Sweep, *, allow_code: bool = False) -> BasePruner | Rungs | Population | None:
    """The pruner of a sweep; ``None`` where every run trains to its end.

    Raises:
        SpecError: an unknown pruner or option, a value that it refuses, or an objective it cannot judge.
    """
    name = sweep.pruner.name
    known = (*PRUNERS, *RUNG_PRUNERS, POPULATION, TARGET)
    if name not in known:
        raise SpecError(f"sweep.pruner: unknown pruner {name!r}{nearest(name, known)} Known: {', '.join(known)}.")
    if name == "none":
        options_of("pruner", sweep.pruner, ())
        return None
    if judged(sweep) is None:
        raise SpecError(
            f"sweep.pruner={name} judges by eval_loss while it trains, but sweep.objective.metric is "
            f"{', '.join(o.metric for o in sweep.targets)}; set sweep.pruner=none, or sweep.objective.metric=eval_loss."
        )
    if name == "wilcoxon" and (sweep.max_repeats or sweep.repeats) < 2:
        raise SpecError("sweep.pruner=wilcoxon compares trials seed by seed; give sweep.repeats=5, say.")
    if name in RUNG_PRUNERS:
        return RUNG_PRUNERS[name](sweep)
    if name == POPULATION:
        return population_of(sweep)
    if name == TARGET:
        return pruner_target(thaw(sweep.pruner.options), allow_code)
    return _by_name(sweep.pruner)


def judged(sweep: Sweep) -> Objective | None:
    """The objective that is seen while a run trains; ``None`` where there is none."""
    return next((objective for objective in sweep.targets if objective.metric in JUDGED), None)


def _by_name(strategy: Strategy) -> BasePruner:
    make, allowed = PRUNERS[strategy.name]
    options = options_of("pruner", strategy, allowed)
    return made("pruner", strategy.name, options, lambda: make(**options))
