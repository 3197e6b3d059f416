"""Samplers and pruners by name: one table each.

A sampler is made anew for every trial, seeded by the sweep's seed and the trial's number. So the points
do not depend on how often the sweep was stopped and started again, nor on which process asks.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from lora_lab.errors import SpecError, nearest
from lora_lab.spec import ROLES, Mask, Strategy, Sweep, thaw
from lora_lab.study.parameters import encode, masks_of, role_parameter

Made = TypeVar("Made")


@dataclass(frozen=True)
class SamplerEntry:
    """How a sampler is made from a seed and options, and which options it takes.

    ``one_sequence`` marks samplers whose points are numbers of one sequence (Sobol): all trials share its seed.
    """

    make: Callable[..., BaseSampler]
    options: tuple[str, ...] = ()
    one_sequence: bool = False


def _qmc(seed: int, **options: Any) -> BaseSampler:
    return QMCSampler(seed=seed, warn_independent_sampling=False, **options)


SAMPLERS: Mapping[str, SamplerEntry] = {
    "random": SamplerEntry(RandomSampler),
    "tpe": SamplerEntry(TPESampler, ("n_startup_trials", "n_ei_candidates", "multivariate", "group", "constant_liar")),
    "qmc": SamplerEntry(_qmc, ("qmc_type", "scramble"), one_sequence=True),
}
"""Samplers that draw points. ``grid`` beside them walks through :meth:`~lora_lab.spec.Space.grid`."""

PRUNERS: Mapping[str, tuple[Callable[..., BasePruner], tuple[str, ...]]] = {
    "none": (NopPruner, ()),
    "median": (MedianPruner, ("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials")),
}


def sampler_of(sweep: Sweep) -> BaseSampler:
    """The sampler of a sweep.

    Raises:
        SpecError: an unknown sampler or option, or an option's value that the sampler refuses.
    """
    known = ("grid", *SAMPLERS)
    name = sweep.sampler.name
    if name not in known:
        raise SpecError(f"sweep.sampler: unknown sampler {name!r}{nearest(name, known)} Known: {', '.join(known)}.")
    if name == "grid":
        _options("sampler", sweep.sampler, ())
        return GridInOrder([encode(sweep.space, point) for point in sweep.space.grid() or ()])
    entry = SAMPLERS[name]
    options = _options("sampler", sweep.sampler, entry.options)

    def make(seed: int) -> BaseSampler:
        return _made("sampler", name, options, lambda: entry.make(seed=seed, **options))

    make(0)
    return SeededByTrial(make, sweep.seed, masks_of(sweep.space), one_sequence=entry.one_sequence)


def pruner_of(sweep: Sweep) -> BasePruner:
    """The pruner of a sweep.

    Raises:
        SpecError: an unknown pruner or option, a value that it refuses, or an objective it cannot judge.
    """
    name = sweep.pruner.name
    if name not in PRUNERS:
        raise SpecError(f"sweep.pruner: unknown pruner {name!r}{nearest(name, PRUNERS)} Known: {', '.join(PRUNERS)}.")
    if name != "none" and sweep.objective.metric not in ("eval_loss", "best_eval_loss"):
        raise SpecError(
            f"sweep.pruner={name} judges by eval_loss while it trains, but sweep.objective.metric is "
            f"{sweep.objective.metric}; set sweep.pruner=none, or sweep.objective.metric=eval_loss."
        )
    make, allowed = PRUNERS[name]
    options = _options("pruner", sweep.pruner, allowed)
    return _made("pruner", name, options, lambda: make(**options))


def _options(kind: str, strategy: Strategy, allowed: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = thaw(strategy.options)
    for option in options:
        if option not in allowed:
            takes = f"It takes: {', '.join(allowed)}." if allowed else "It takes none."
            raise SpecError(f"sweep.{kind}: {strategy.name} has no option {option!r}{nearest(option, allowed)} {takes}")
    return options


def _made(kind: str, name: str, options: Mapping[str, Any], make: Callable[[], Made]) -> Made:
    with warnings.catch_warnings():
        # "experimental" in Optuna's words: its interface may change; the tests here would tell.
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return make()
        except (TypeError, ValueError) as error:
            raise SpecError(f"sweep.{kind}: {name} refuses its options {dict(options)!r}: {error}") from error


def seed_of(*parts: object) -> int:
    """A 32-bit seed that depends on all of ``parts``, the same on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class GridInOrder(BaseSampler):
    """The grid in the order it was written: trial ``n`` is point ``n``.

    Optuna's own ``GridSampler`` shuffles, raises when it is exhausted, and cannot hold a list of masks.
    """

    def __init__(self, points: Sequence[Mapping[str, Any]]) -> None:
        self._points = points

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is sampled jointly."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is sampled jointly."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value that the trial's point has there."""
        return self._points[trial.number][param_name]


class SeededByTrial(BaseSampler):
    """Lets a fresh sampler, seeded by (sweep seed, trial number), draw each trial, within the allowed masks.

    Optuna's samplers know nothing of a list of masks: their six booleans are free. Here the booleans are
    drawn in the order of the roles, and one that no allowed mask continues is switched; a joint draw is moved
    to the nearest allowed mask. With all 64 masks nothing is ever switched.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        seed: int,
        masks: tuple[Mask, ...] | None = None,
        *,
        one_sequence: bool = False,
    ) -> None:
        self._make = make
        self._seed = seed
        self._rows = None if masks is None else [tuple(role in mask for role in ROLES) for mask in masks]
        self._one_sequence = one_sequence
        self._current: tuple[int, BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._current is None or self._current[0] != trial.number:
            seed = seed_of(self._seed, "sequence" if self._one_sequence else trial.number)
            self._current = (trial.number, self._make(seed))
        return self._current[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What the trial's sampler draws jointly."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A joint draw, moved to the nearest allowed mask."""
        values = self._of(trial).sample_relative(study, trial, search_space)
        names = [role_parameter(role) for role in ROLES]
        if self._rows is None or not all(name in values for name in names):
            return values
        drawn = [values[name] for name in names]
        row = min(self._rows, key=lambda row: sum(a != b for a, b in zip(row, drawn, strict=True)))
        return values | dict(zip(names, row, strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One draw, from a generator of its own: a trial asked for in two goes has the same values as in one."""
        inner = self._make(seed_of(self._seed, trial.number, param_name))
        value = inner.sample_independent(study, trial, param_name, param_distribution)
        names = [role_parameter(role) for role in ROLES]
        if self._rows is None or param_name not in names:
            return value
        place = names.index(param_name)
        earlier = tuple(trial.params[name] for name in names[:place])
        possible = {row[place] for row in self._rows if row[:place] == earlier}
        return value if value in possible else not value

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on."""
        self._of(trial).after_trial(study, trial, state, values)
