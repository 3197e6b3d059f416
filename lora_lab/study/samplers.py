"""Samplers by name: one line each in :data:`SAMPLERS`, and how they are wrapped.

A sampler is made anew for every trial, seeded by the sweep's seed and the trial's number. So the points
do not depend on how often the sweep was stopped and started again, nor on which process asks.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from lora_lab.errors import SpecError, nearest
from lora_lab.spec import DESIGNS, ROLES, FloatRange, IntRange, Mask, Point, Sweep, thaw
from lora_lab.study.made import made, options_of
from lora_lab.study.normal import quicken
from lora_lab.study.parameters import encode, masks_of, role_parameter
from lora_lab.study.targets import TARGET, sampler_target
from lora_lab.study.view import View


@dataclass(frozen=True)
class SamplerEntry:
    """How a sampler is made from a seed and options, and which options it takes.

    ``one_sequence`` marks samplers whose points are numbers of one sequence (Sobol): all trials share its seed.
    ``package`` is an optional package that it needs, ``ranges`` how many int or float domains, and ``several``
    whether it can optimise several objectives.
    """

    make: Callable[..., BaseSampler]
    options: tuple[str, ...] = ()
    one_sequence: bool = False
    package: str | None = None
    ranges: int = 0
    several: bool = True


def _tpe(seed: int, **options: Any) -> BaseSampler:
    quicken()
    return TPESampler(seed=seed, **options)


def _qmc(seed: int, **options: Any) -> BaseSampler:
    return QMCSampler(seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False, **options)


def _gp(seed: int, **options: Any) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False, **options)


def _cmaes(seed: int, **options: Any) -> BaseSampler:
    return CmaEsSampler(seed=seed, warn_independent_sampling=False, **options)


_SWITCHES = (
    *("multivariate", "group", "constant_liar", "scramble", "deterministic_objective"),
    *("use_separable_cma", "with_margin", "lr_adapt"),
)
_GENETIC = ("population_size", "mutation_prob", "crossover_prob", "swapping_prob")

SAMPLERS: Mapping[str, SamplerEntry] = {
    "random": SamplerEntry(RandomSampler),
    "tpe": SamplerEntry(_tpe, ("n_startup_trials", "n_ei_candidates", "multivariate", "group", "constant_liar")),
    "qmc": SamplerEntry(_qmc, ("qmc_type", "scramble"), one_sequence=True),
    "gp": SamplerEntry(_gp, ("n_startup_trials", "deterministic_objective"), package="torch"),
    "cmaes": SamplerEntry(
        _cmaes,
        ("n_startup_trials", "sigma0", "popsize", "use_separable_cma", "with_margin", "lr_adapt"),
        package="cmaes",
        ranges=2,
        several=False,
    ),
    "nsga2": SamplerEntry(NSGAIISampler, _GENETIC),
    "nsga3": SamplerEntry(NSGAIIISampler, (*_GENETIC, "dividing_parameter")),
}
"""Samplers that draw points. ``grid`` and the designs beside them walk through :attr:`~lora_lab.spec.Sweep.points`."""


def sampler_of(sweep: Sweep, *, allow_code: bool = False, head: Sequence[Point] = ()) -> BaseSampler:
    """The sampler of a sweep. Trial ``n`` is point ``n`` of ``head`` (perhaps partial) while there is one.

    Raises:
        SpecError: an unknown sampler or option, an option's value that the sampler refuses, a package that is not
            installed, a space or several objectives that it cannot sample.
    """
    known = ("grid", *DESIGNS, *SAMPLERS, TARGET)
    name = sweep.sampler.name
    if name not in known:
        raise SpecError(f"sweep.sampler: unknown sampler {name!r}{nearest(name, known)} Known: {', '.join(known)}.")
    fixed = [encode(sweep.space, point) for point in head]
    if sweep.points is not None:
        if name == "grid":
            options_of("sampler", sweep.sampler, ())
        return ListedPoints(fixed + [encode(sweep.space, point) for point in sweep.points])
    fixed += [encode(sweep.space, dict(point)) for point in sweep.enqueue]
    make, one_sequence = _maker(sweep, allow_code)
    make(0)
    return SeededByTrial(make, sweep.seed, masks_of(sweep.space), one_sequence=one_sequence, head=fixed)


def _maker(sweep: Sweep, allow_code: bool) -> tuple[Callable[[int], BaseSampler], bool]:
    name = sweep.sampler.name
    if name == TARGET:
        options = thaw(sweep.sampler.options)
        return lambda seed: sampler_target(options, allow_code, seed), False
    entry = SAMPLERS[name]
    if entry.package is not None and importlib.util.find_spec(entry.package) is None:
        raise SpecError(
            f"sweep.sampler={name} needs the package {entry.package}, which is not installed: "
            f"pip install {entry.package}; or choose sampler=tpe."
        )
    ranges = [path for path, domain in sweep.space.domains if isinstance(domain, (IntRange, FloatRange))]
    if len(ranges) < entry.ranges:
        raise SpecError(
            f"sweep.sampler={name} moves in ranges of numbers, and needs {entry.ranges} int or float domains; the "
            f"space has {len(ranges)}. Choose sampler=tpe for choices and masks."
        )
    if len(sweep.targets) > 1 and not entry.several:
        raise SpecError(f"sweep.sampler={name} optimises one objective; for several choose nsga2, nsga3, tpe or gp.")
    options = options_of("sampler", sweep.sampler, entry.options)
    for option, value in options.items():  # Optuna looks at some of them only when it draws
        kind = str if option == "qmc_type" else bool if option in _SWITCHES else (int, float)
        if value is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
            wanted = "a name" if kind is str else "true or false" if kind is bool else "a number"
            raise SpecError(f"sweep.sampler.options.{option}: {name} wants {wanted}, got {value!r}.")
    return lambda seed: made("sampler", name, options, lambda: entry.make(seed=seed, **options)), entry.one_sequence


def seed_of(*parts: object) -> int:
    """A 32-bit seed that depends on all of ``parts``, the same on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class ListedPoints(BaseSampler):
    """A grid or a design in the order it was written: trial ``n`` is point ``n``.

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

    The first trials are the points of ``head``; what such a point leaves open is drawn.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        seed: int,
        masks: tuple[Mask, ...] | None = None,
        *,
        one_sequence: bool = False,
        head: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._make = make
        self._seed = seed
        self._rows = None if masks is None else [tuple(role in mask for role in ROLES) for mask in masks]
        self._one_sequence = one_sequence
        self._head = head
        self._current: tuple[int, BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._current is None or self._current[0] != trial.number:
            seed = seed_of(self._seed, "sequence" if self._one_sequence else trial.number)
            self._current = (trial.number, self._make(seed))
        return self._current[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What the trial's sampler draws jointly; nothing where the point is given."""
        if trial.number < len(self._head):
            return {}
        return self._of(trial).infer_relative_search_space(View(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A joint draw, moved to the nearest allowed mask."""
        if trial.number < len(self._head):
            return {}
        values = self._of(trial).sample_relative(View(study), trial, search_space)
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
        if trial.number < len(self._head) and param_name in self._head[trial.number]:
            return self._head[trial.number][param_name]
        inner = self._make(seed_of(self._seed, trial.number, param_name))
        value = inner.sample_independent(View(study), trial, param_name, param_distribution)
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
