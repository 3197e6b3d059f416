"""What comes out of a run: step metrics, evaluations, and one settled :class:`RunResult`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from lora_lab.spec.tree import Pairs, from_tree, pairs, to_tree


class Outcome(StrEnum):
    """How a run ended. Never merged with one another: each has its own remedy."""

    COMPLETED = "COMPLETED"
    PRUNED = "PRUNED"
    DIVERGED = "DIVERGED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    FAILED = "FAILED"


FIRST_BRANCH = 100_000
"""Branches (``extend``, ``clone``) are trials numbered from here, beside those of the sweep itself."""
SETTLED = frozenset(Outcome) - {Outcome.PREEMPTED}
"""Outcomes after which a run is not trained again (a preempted run goes on later)."""


BASE_METRICS: Mapping[str, str] = {
    "eval_loss": "base_eval_loss",
    "best_eval_loss": "base_eval_loss",
    "exact_match": "base_exact_match",
}
"""The untrained base model's own value for a metric; for ``scores.<name>`` it is ``base_scores.<name>``."""


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step of one lane.

    ``loss`` is the mean cross-entropy in nats over the step's supervised tokens; ``grad_norm`` is before
    clipping; ``tokens`` are non-padding tokens of the step; ``seconds`` is wall time of the pack's step.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float


@dataclass(frozen=True)
class EvalMetrics:
    """One evaluation of one lane: mean loss in nats over ``tokens`` supervised held-out tokens.

    ``scores`` are what else was asked for, by the names of :attr:`RunResult.scores`.
    """

    step: int
    loss: float
    tokens: int
    accuracy: float
    seconds: float
    scores: Pairs = field(default_factory=pairs)


@dataclass(frozen=True)
class RunResult:
    """The settled result of one run, as kept in ``result.json``.

    Losses are in nats per supervised token, sizes in bytes, times in seconds of wall time (``seconds`` is
    the lane's share: each pack step is shared equally by its lanes). ``peak_bytes`` is the measured peak of
    the process while the run was in it (CUDA: allocated; CPU: resident); ``lane_bytes`` what the run alone
    added: adapter, gradients and optimizer state. ``predicted_bytes`` is what the planner said of the run's packs, and
    ``training_bytes`` the part of ``peak_bytes`` that training took on ``device``, the base model included (0: not
    known). ``adapter`` is relative to the sweep's folder. A run that branched
    off another began at step ``parent_step`` of run ``parent``; ``stage`` (``t0000-s0@12``) says of which run, up to
    which step, its own beginning was taken over because it is the same. ``attempts`` counts how often it was begun.

    ``perplexity`` is that of the held-out tokens, ``exp(eval_loss)``; ``gap`` is ``eval_loss - train_loss`` and
    ``rise`` ``eval_loss - best_eval_loss``, both of which grow when a run overfits. ``scores`` has
    ``exact_match.<task>``, and for each benchmark ``<task>.<metric>``, ``<task>.<metric>_stderr``, ``<task>.n``
    (documents) and ``<task>.ties`` (answers that two choices shared); ``base_scores`` the same of the base model.
    """

    run: str
    trial: int
    seed: int
    key: str
    outcome: Outcome
    point: Pairs = field(default_factory=pairs)
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    best_step: int | None = None
    base_eval_loss: float | None = None
    train_loss: float | None = None
    eval_accuracy: float | None = None
    exact_match: float | None = None
    base_exact_match: float | None = None
    perplexity: float | None = None
    gap: float | None = None
    rise: float | None = None
    scores: Pairs = field(default_factory=pairs)
    base_scores: Pairs = field(default_factory=pairs)
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    trainable_parameters: int = 0
    total_parameters: int = 0
    lane_bytes: int = 0
    peak_bytes: int = 0
    predicted_bytes: int = 0
    training_bytes: int = 0
    device: str | None = None
    adapter: str | None = None
    message: str | None = None
    parent: str | None = None
    parent_step: int | None = None
    stage: str | None = None
    attempts: int = 1
    started: float | None = None
    ended: float | None = None

    def measured(self, metric: str, *, base: bool = False) -> float | None:
        """The value of a metric, ``scores.<name>`` included; with ``base`` the base model's, where it has one."""
        if metric.startswith("scores."):
            scores: Pairs = self.base_scores if base else self.scores
            found = dict(scores).get(metric.removeprefix("scores."))
        else:
            found = getattr(self, BASE_METRICS.get(metric, metric) if base else metric)
        return None if found is None else float(found)

    def to_tree(self) -> dict[str, Any]:
        """The JSON tree of ``result.json``."""
        tree: dict[str, Any] = to_tree(self)
        tree["outcome"] = str(self.outcome)
        return tree

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> RunResult:
        """The inverse of :meth:`to_tree`; raises ``SpecError`` for a file of another shape."""
        return from_tree(RunResult, dict(tree) | {"outcome": Outcome(tree["outcome"])})

    @staticmethod
    def unchecked(tree: Mapping[str, Any]) -> RunResult:
        """:meth:`from_tree` without its checks, which took most of the time it takes to read a study's log."""
        frozen = {name: pairs(tree[name]) for name in MAPPINGS if name in tree}
        return RunResult(**{**tree, **frozen, "outcome": Outcome(tree["outcome"])})


MAPPINGS = tuple(one.name for one in fields(RunResult) if one.default_factory is pairs)
"""Fields of a result that are mappings."""


def run_id(trial: int, seed: int) -> str:
    """The name of a run: its folder, its row in tables and its MLflow run name."""
    return f"t{trial:04d}-s{seed}"
