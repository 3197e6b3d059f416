"""What a sweep optimises: one metric, or several of them against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError, nearest
from lora_lab.spec.tree import from_tree

DIRECTIONS = ("minimize", "maximize")
OBJECTIVES = (
    "eval_loss",
    "best_eval_loss",
    "train_loss",
    "exact_match",
    "trainable_parameters",
    "lane_bytes",
    "peak_bytes",
    "seconds",
    "tokens",
    "flops",
)
"""Metrics of a result that a sweep can optimise, beside its ``scores.<task>.<metric>``."""
JUDGED = ("eval_loss", "best_eval_loss")
"""Objectives that are seen while a run trains: what a pruner can judge by."""
VALUES = ("mean", "lower", "upper")


@dataclass(frozen=True)
class Objective:
    """A metric that a trial is judged by, over its runs.

    ``value`` is the ``mean`` over the trial's seeds, or the ``lower`` or ``upper`` end of the 90 % confidence
    interval of that mean (Student's t; with one seed, the mean): with ``minimize``, ``upper`` prefers what is
    surely good to what may be better.
    """

    metric: str = "eval_loss"
    direction: str = "minimize"
    value: str = "mean"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise SpecError(f"sweep.objective.direction: {self.direction!r} is not one of {', '.join(DIRECTIONS)}.")
        if self.metric not in OBJECTIVES and not self.metric.startswith("scores."):
            raise SpecError(
                f"sweep.objective.metric: {self.metric!r} is not one of {', '.join(OBJECTIVES)}"
                f" or scores.TASK.METRIC{nearest(self.metric, OBJECTIVES)}"
            )
        if self.value not in VALUES:
            raise SpecError(f"sweep.objective.value: {self.value!r} is not one of {', '.join(VALUES)}.")

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is: ``sign * value`` is minimised."""
        return 1 if self.direction == "minimize" else -1

    @staticmethod
    def read(said: Any, where: str) -> Objective:
        """An objective as YAML says it: ``eval_loss minimize``, or its fields.

        Raises:
            SpecError: neither of both, or an unknown metric, direction or value.
        """
        if isinstance(said, str):
            words = said.split()
            if not 1 <= len(words) <= 3:
                raise SpecError(f"{where}: write METRIC DIRECTION, e.g. 'eval_loss minimize'; got {said!r}.")
            return Objective(*words)
        if isinstance(said, Mapping):
            return from_tree(Objective, said, where)
        raise SpecError(f"{where}: an objective such as 'eval_loss minimize', not {said!r}.")
