"""What a sweep is (:class:`Sweep`) and how it is carried out here (:class:`Execution`).

The first is the experiment and has a key; the second (storage, tracking, launcher, pack size, folder)
may change between one start and the next without changing a single result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lora_lab.errors import SpaceError, SpecError, nearest
from lora_lab.spec.design import DESIGNS, Design, design
from lora_lab.spec.expression import Expression
from lora_lab.spec.figures import check_constraint
from lora_lab.spec.launcher import LauncherSpec
from lora_lab.spec.objective import Objective
from lora_lab.spec.run import RunSpec
from lora_lab.spec.space import Point, Space
from lora_lab.spec.stop import Stop
from lora_lab.spec.tree import Pairs, from_tree, pairs, thaw, to_tree

LISTED = ("grid", *DESIGNS)
"""Samplers whose points are a list that is known before the sweep starts."""
EXTENSIBLE = ("name", "trials", "repeats", "max_repeats", "stop", "planned_trials")
"""What may be other than last time when a sweep is gone on with."""


@dataclass(frozen=True)
class Strategy:
    """A sampler or pruner by name, with its own options."""

    name: str
    options: Pairs = field(default_factory=pairs)


@dataclass(frozen=True)
class Sweep:
    """One search: base run, space, objective, strategies and budget.

    ``trials`` limits the number of points (``None``: the whole grid or design; other samplers need it).
    ``repeats`` runs each point with the seeds ``base.seed, base.seed + 1, …``; with ``max_repeats`` the contenders
    for the best get more seeds, up to that many (:mod:`lora_lab.study.racing`). ``seed`` is the sampler's.

    ``constraints`` are expressions over a run's values and figures (:mod:`lora_lab.spec.figures`) that must hold.
    ``objectives``, where given, are optimised against each other instead of ``objective``. ``enqueue`` are points,
    perhaps partial, that are tried first; ``imports`` are folders of sweeps whose results are taken over.
    ``stop`` ends the sweep before its trials are used up.
    """

    name: str
    base: RunSpec
    space: Space
    objective: Objective = Objective()
    sampler: Strategy = Strategy("grid")
    pruner: Strategy = Strategy("none")
    trials: int | None = None
    repeats: int = 1
    seed: int = 0
    constraints: tuple[Expression, ...] = ()
    objectives: tuple[Objective, ...] = ()
    enqueue: tuple[Pairs, ...] = ()
    imports: tuple[str, ...] = ()
    stop: Stop = Stop()
    max_repeats: int | None = None

    def __post_init__(self) -> None:
        if self.repeats <= 0:
            raise SpecError(f"sweep.repeats: must be 1 or more, got {self.repeats}.")
        if self.max_repeats is not None and self.max_repeats < self.repeats:
            raise SpecError(f"sweep.repeats: max={self.max_repeats} is below min={self.repeats}; swap them.")
        if self.trials is not None and self.trials <= 0:
            raise SpecError(f"sweep.trials: must be 1 or more, got {self.trials}.")
        self._check_objectives()
        self.space.check(self.base)
        for constraint in self.constraints:
            check_constraint(constraint, self.base, self.space)
        taken = [self.space.take(dict(thaw(p)), self.base, f"sweep.enqueue[{n}]") for n, p in enumerate(self.enqueue)]
        object.__setattr__(self, "enqueue", tuple(map(pairs, taken)))
        if self.sampler.name not in LISTED:
            if self.trials is None:
                raise SpecError(
                    f"sweep.trials: sampler={self.sampler.name} never ends by itself; give sweep.trials=50, say."
                )
            return
        for point in self.points or ():
            self.base.at(point)

    def _check_objectives(self) -> None:
        if len(self.objectives) == 1:
            raise SpecError("sweep.objectives: one objective is sweep.objective; several are a list of two or more.")
        names = [objective.metric for objective in self.objectives]
        if len(set(names)) < len(names):
            raise SpecError(f"sweep.objectives: a metric stands there twice: {', '.join(names)}.")
        if any(o.metric == "exact_match" for o in self.targets):
            if not self.base.evaluation.exact_match:
                raise SpecError(
                    "sweep.objective.metric=exact_match needs evaluation.exact_match=true; "
                    "nothing is generated otherwise."
                )
            if self.base.data.name == "text":
                raise SpecError(
                    "sweep.objective.metric=exact_match: data.name=text has no answers; optimise eval_loss."
                )
        for metric in (o.metric for o in self.targets if o.metric.startswith("scores.")):
            task = metric.split(".")[1]
            if task not in (*self.base.evaluation.tasks, "exact_match") and "evaluation.tasks" not in self.space.paths:
                raise SpecError(
                    f"sweep.objective.metric={metric}: {task} is not scored; add it to evaluation.tasks, which has "
                    f"{', '.join(self.base.evaluation.tasks) or 'nothing'}."
                )
        if self.objectives and (self.max_repeats is not None or self.stop.target is not None):
            raise SpecError("sweep.objectives: racing and sweep.stop.target need a single sweep.objective.")

    @property
    def targets(self) -> tuple[Objective, ...]:
        """What is optimised: ``objectives``, or ``objective`` alone."""
        return self.objectives or (self.objective,)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that every trial's runs have (under racing, contenders get further ones)."""
        return tuple(self.base.seed + i for i in range(self.repeats))

    @cached_property
    def design(self) -> Design | None:
        """The factorial design, where the sampler is one.

        Raises:
            SpaceError, SpecError: the space is not one of two-valued factors, or the design has no so many points.
        """
        if self.sampler.name not in DESIGNS:
            return None
        options = dict(self.sampler.options)
        runs = options.pop("runs", None)
        for name in options:
            raise SpecError(
                f"sweep.sampler: {self.sampler.name} has no option {name!r}{nearest(name, ['runs'])} It takes: runs."
            )
        if runs is not None and (isinstance(runs, bool) or not isinstance(runs, int)):
            raise SpecError(f"sweep.sampler.options.runs: a number of points, got {runs!r}.")
        return design(self.sampler.name, self.space, self.base, runs)

    @cached_property
    def points(self) -> tuple[Point, ...] | None:
        """All points of a grid or a design, in order, those of ``enqueue`` first; ``None`` for samplers that draw.

        Raises:
            SpecError, SpaceError: the space has no such list.
        """
        if self.sampler.name not in LISTED:
            return None
        if self.design is not None:
            points = self.design.points
        elif (grid := self.space.grid(self.base)) is not None:
            points = tuple(grid)
        else:
            raise SpecError(
                "sweep.sampler=grid: the space has a range without steps; give it a step, "
                "or choose sampler=tpe and sweep.trials=N."
            )
        for n, point in enumerate(self.enqueue):
            if self.space.open_paths(dict(point), self.base):
                raise SpaceError(
                    f"sweep.enqueue[{n}]: {', '.join(self.space.open_paths(dict(point), self.base))} not given, and "
                    f"sampler={self.sampler.name} draws nothing."
                )
        return (*map(dict, self.enqueue), *points)

    @property
    def planned_trials(self) -> int:
        """How many trials the sweep will hold when it is done (imported ones come on top)."""
        if self.points is None:
            return self.trials or 0
        return min(len(self.points), self.trials or len(self.points))

    def spec_of(self, point: Point, seed: int) -> RunSpec:
        """The run of one point with one seed."""
        return self.base.at(point, seed)

    def to_tree(self) -> dict[str, Any]:
        """The JSON tree kept in ``sweep.json``."""
        return {
            "name": self.name,
            "base": to_tree(self.base),
            "space": self.space.to_tree(),
            "objective": to_tree(self.objective),
            "sampler": to_tree(self.sampler),
            "pruner": to_tree(self.pruner),
            "trials": self.trials,
            "repeats": self.repeats,
            "seed": self.seed,
            "constraints": [constraint.text for constraint in self.constraints],
            "objectives": to_tree(self.objectives),
            "enqueue": to_tree(self.enqueue),
            "imports": list(self.imports),
            "stop": to_tree(self.stop),
            "max_repeats": self.max_repeats,
            "planned_trials": self.planned_trials,
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Sweep:
        """The inverse of :meth:`to_tree`."""
        return Sweep(
            name=tree["name"],
            base=from_tree(RunSpec, tree["base"], "base"),
            space=Space.from_tree(tree["space"]),
            objective=from_tree(Objective, tree["objective"], "sweep.objective"),
            sampler=from_tree(Strategy, tree["sampler"], "sweep.sampler"),
            pruner=from_tree(Strategy, tree["pruner"], "sweep.pruner"),
            trials=tree["trials"],
            repeats=tree["repeats"],
            seed=tree["seed"],
            constraints=tuple(map(Expression, tree.get("constraints", ()))),
            objectives=tuple(Objective.read(o, "sweep.objectives") for o in tree.get("objectives", ())),
            enqueue=tuple(map(pairs, tree.get("enqueue", ()))),
            imports=tuple(tree.get("imports", ())),
            stop=from_tree(Stop, tree.get("stop", {}), "sweep.stop"),
            max_repeats=tree.get("max_repeats"),
        )

    @property
    def key(self) -> str:
        """SHA-256 of everything that makes this search this search.

        What a sweep may be gone on with under other values (:data:`EXTENSIBLE`) is left out, and so is what says
        nothing (no constraints, …).
        """
        tree = self.to_tree()
        for name in EXTENSIBLE:
            tree.pop(name)
        for name in ("constraints", "objectives", "enqueue", "imports"):
            if not tree[name]:
                tree.pop(name)
        if self.objectives:
            tree.pop("objective")
        elif self.objective.value == "mean":
            tree["objective"].pop("value")
        tree["base"] = self.base.canonical
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrackingSpec:
    """Where metrics go: ``name`` is ``mlflow`` or ``none``; the JSONL spool is always written."""

    name: str = "mlflow"
    uri: str | None = None
    experiment: str = "lora-lab"

    def __post_init__(self) -> None:
        if self.name not in ("mlflow", "none"):
            raise SpecError(f"tracking.name: unknown value {self.name!r}. Known: mlflow, none.")


@dataclass(frozen=True)
class Execution:
    """How a sweep is carried out: folder, storage, tracking, launcher and lanes per pack.

    ``storage`` is an Optuna storage URL (``None``: a journal file in ``folder``); ``max_lanes`` limits
    the lanes of a pack (``None``: decided by the planner); ``device`` is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``,
    of which ``device_memory`` bytes may be used (``None``: what is free). ``allow_code`` lets a ``_target_`` import
    from any package.
    """

    folder: str
    storage: str | None = None
    tracking: TrackingSpec = TrackingSpec()
    launcher: LauncherSpec = LauncherSpec()
    max_lanes: int | None = None
    device: str = "auto"
    allow_code: bool = False
    device_memory: int | None = None

    def __post_init__(self) -> None:
        if self.max_lanes is not None and self.max_lanes <= 0:
            raise SpecError(f"pack.max_lanes: must be 1 or more, or auto, got {self.max_lanes}.")
