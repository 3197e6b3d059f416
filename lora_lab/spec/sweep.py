"""What a sweep is (:class:`Sweep`) and how it is carried out here (:class:`Execution`).

The first is the experiment and has a key; the second (storage, tracking, launcher, pack size, folder)
may change between one start and the next without changing a single result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.run import RunSpec
from lora_lab.spec.space import Point, Space
from lora_lab.spec.tree import Pairs, from_tree, pairs, to_tree

DIRECTIONS = ("minimize", "maximize")
OBJECTIVES = ("eval_loss", "best_eval_loss", "train_loss", "exact_match")
"""Metrics of a result that a sweep can optimise."""


@dataclass(frozen=True)
class Objective:
    """The metric a trial is judged by: its mean over the trial's runs."""

    metric: str = "eval_loss"
    direction: str = "minimize"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise SpecError(f"sweep.objective.direction: {self.direction!r} is not one of {', '.join(DIRECTIONS)}.")
        if self.metric not in OBJECTIVES:
            raise SpecError(f"sweep.objective.metric: {self.metric!r} is not one of {', '.join(OBJECTIVES)}.")


@dataclass(frozen=True)
class Strategy:
    """A sampler or pruner by name, with its own options."""

    name: str
    options: Pairs = field(default_factory=pairs)


@dataclass(frozen=True)
class Sweep:
    """One search: base run, space, objective, strategies and budget.

    ``trials`` limits the number of points (``None``: the whole grid; samplers without a grid need it).
    ``repeats`` runs each point with the seeds ``base.seed, base.seed + 1, …``. ``seed`` is the sampler's.
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

    def __post_init__(self) -> None:
        if self.repeats <= 0:
            raise SpecError(f"sweep.repeats: must be 1 or more, got {self.repeats}.")
        if self.trials is not None and self.trials <= 0:
            raise SpecError(f"sweep.trials: must be 1 or more, got {self.trials}.")
        if self.objective.metric == "exact_match" and not self.base.evaluation.exact_match:
            raise SpecError(
                "sweep.objective.metric=exact_match needs evaluation.exact_match=true; nothing is generated otherwise."
            )
        if self.objective.metric == "exact_match" and self.base.data.name == "text":
            raise SpecError("sweep.objective.metric=exact_match: data.name=text has no answers; optimise eval_loss.")
        self.space.check(self.base)
        points = self.space.grid()
        if self.sampler.name == "grid" and points is None:
            raise SpecError(
                "sweep.sampler=grid: the space has a range without steps; give it a step, "
                "or choose sampler=tpe and sweep.trials=N."
            )
        if self.sampler.name != "grid" and self.trials is None:
            raise SpecError(
                f"sweep.trials: sampler={self.sampler.name} never ends by itself; give sweep.trials=50, say."
            )
        if self.sampler.name == "grid":
            for point in points or ():
                self.base.at(point)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of a trial's runs."""
        return tuple(self.base.seed + i for i in range(self.repeats))

    @property
    def planned_trials(self) -> int:
        """How many trials the sweep will hold when it is done."""
        points = self.space.grid() if self.sampler.name == "grid" else None
        if points is None:
            return self.trials or 0
        return min(len(points), self.trials or len(points))

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
        )

    @property
    def key(self) -> str:
        """SHA-256 of everything that makes this search this search.

        ``name``, ``trials`` and ``repeats`` are left out: a sweep may be renamed, or made longer and resumed.
        """
        tree = self.to_tree()
        for name in ("name", "trials", "repeats"):
            tree.pop(name)
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
    of which ``device_memory`` bytes may be used (``None``: what is free).
    """

    folder: str
    storage: str | None = None
    tracking: TrackingSpec = TrackingSpec()
    launcher: Strategy = Strategy("local")
    max_lanes: int | None = None
    device: str = "auto"
    device_memory: int | None = None

    def __post_init__(self) -> None:
        if self.max_lanes is not None and self.max_lanes <= 0:
            raise SpecError(f"pack.max_lanes: must be 1 or more, or auto, got {self.max_lanes}.")
