"""What one training run is: :class:`RunSpec` and its parts.

The config paths of the Hydra tree are exactly the fields below (``method.r``, ``optimizer.lr``, …).
Every part is frozen and validated when it is made, so that nothing downstream meets a bad value.
:attr:`RunSpec.key` identifies the experiment: two specs that cannot differ in their result are equal
in :attr:`RunSpec.canonical` and share a key.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.checks import positive
from lora_lab.spec.data import DataSpec
from lora_lab.spec.method import MethodSpec
from lora_lab.spec.model import ModelSpec
from lora_lab.spec.optimizer import ELEMENTWISE, OptimizerSpec, ScheduleSpec
from lora_lab.spec.tree import from_tree, to_tree, with_paths


@dataclass(frozen=True)
class BudgetSpec:
    """How long a run trains: ``steps`` (optimizer steps) or ``epochs``, one epoch if neither is given.

    With ``steps=0`` a run is scored as its method begins, and not trained.

    ``batch_size`` examples make one optimizer step, in micro-batches of ``micro_batch_size``
    (``None``: the whole batch at once). With ``checkpointing`` a layer keeps only its input for the backward and
    computes the rest again there: less memory, more time, the same result. It serves architectures like Llama and
    methods that train in packs; where it does not, a run's message says so.
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise SpecError(
                f"budget.epochs={self.epochs:g} and budget.steps={self.steps} both say how long to train; "
                "give one and set the other to null."
            )
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise SpecError(f"budget.epochs: must be a positive number, got {self.epochs!r}.")
        if self.steps != 0:
            positive("budget.steps", self.steps)
        positive("budget.batch_size", self.batch_size)
        positive("budget.micro_batch_size", self.micro_batch_size)
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise SpecError(
                f"budget.micro_batch_size={self.micro_batch_size} is larger than "
                f"budget.batch_size={self.batch_size}; make it at most that."
            )

    @property
    def micro(self) -> int:
        """Examples in one forward and backward."""
        return self.micro_batch_size or self.batch_size

    def total_steps(self, examples: int) -> int:
        """Optimizer steps over ``examples`` training examples (the last short batch counts)."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 1.0) * math.ceil(examples / self.batch_size)))


@dataclass(frozen=True)
class EvaluationSpec:
    """When and how a run is scored on the held-out split.

    ``every_steps`` optimizer steps, and always at the end (``None``: at the end only).
    ``exact_match`` also generates answers greedily, ``max_new_tokens`` at most and up to the first of the strings
    ``stop``, for the first ``exact_match_size`` held-out examples (``None``: all).

    ``tasks`` are benchmarks of lm-evaluation-harness by name, scored at the end on the first ``limit`` documents of
    each (``None``: all) with ``num_fewshot`` examples (``None``: as the task says). ``include_path`` is a folder of the
    user's own task YAML, ``task_data`` one of local copies of known tasks' data. ``during`` scores tasks and exact
    match at every evaluation, too.
    """

    every_steps: int | None = None
    batch_size: int = 32
    exact_match: bool = False
    exact_match_size: int | None = None
    max_new_tokens: int = 24
    stop: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    include_path: str | None = None
    task_data: str | None = None
    during: bool = False

    def __post_init__(self) -> None:
        positive("evaluation.limit", self.limit)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise SpecError(f"evaluation.num_fewshot: must be 0 or more, got {self.num_fewshot}.")
        if "" in self.stop:
            raise SpecError("evaluation.stop: an empty string ends every answer before it begins; leave it out.")
        if len(set(self.tasks)) < len(self.tasks) or "" in self.tasks:
            raise SpecError(f"evaluation.tasks: a name stands there twice, or is empty: {', '.join(self.tasks)}.")
        positive("evaluation.every_steps", self.every_steps)
        positive("evaluation.batch_size", self.batch_size)
        positive("evaluation.exact_match_size", self.exact_match_size)
        positive("evaluation.max_new_tokens", self.max_new_tokens)

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop the fields that cannot matter from this part's ``tree``."""
        if not self.exact_match:
            for name in ("exact_match_size", "max_new_tokens", "stop"):
                tree.pop(name)
        if not self.tasks:
            for name in ("limit", "num_fewshot", "include_path", "task_data"):
                tree.pop(name)
        for name in ("stop", "tasks", "during"):
            if not getattr(self, name):
                tree.pop(name, None)


@dataclass(frozen=True)
class RunSpec:
    """One training of one trial with one seed: everything its result depends on."""

    model: ModelSpec
    data: DataSpec = DataSpec()
    method: MethodSpec = MethodSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    budget: BudgetSpec = BudgetSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model.divided:
            self._check_divided()

    def _check_divided(self) -> None:
        shard, method, optimizer = f"model.shard={self.model.shard}", self.method, self.optimizer.name
        if method.name not in ("lora", "full"):
            raise SpecError(
                f"{shard} and method.name={method.name}: on a divided base lora and full can be trained. Choose one of "
                "them, or model.shard=none."
            )
        if method.name == "lora" and (method.dora or method.init not in ("default", "gaussian")):
            raise SpecError(
                f"{shard} and method.init={method.init}, method.dora={str(method.dora).lower()}: these look at whole "
                "weights, of which a process has a part. Use method.init=default or gaussian and method.dora=false."
            )
        if method.name == "full" and optimizer not in ELEMENTWISE:
            raise SpecError(
                f"{shard} and optimizer.name={optimizer} with method.name=full: it looks at whole matrices, of which a "
                f"process has a part. Use one of {', '.join(ELEMENTWISE)}."
            )
        if optimizer.startswith("sophia"):
            raise SpecError(
                f"{shard} and optimizer.name={optimizer}: the base cannot be differentiated twice when it is divided. "
                "Use another optimizer."
            )

    @property
    def product_dtype(self) -> str:
        """The dtype in which the base's products are computed: a copy of the base may train in another one."""
        whole = self.method.name == "full" and self.method.dtype != "auto"
        return self.method.dtype if whole else self.model.dtype

    @property
    def canonical(self) -> dict[str, Any]:
        """The tree of the fields that can matter; equal trees are the same experiment."""
        tree: dict[str, Any] = to_tree(self)
        self.model.canonical(tree["model"])
        self.data.canonical(tree["data"])
        self.method.canonical(tree["method"])
        self.optimizer.canonical(tree["optimizer"])
        self.schedule.canonical(tree["schedule"], self.budget.steps)
        budget = tree["budget"]
        budget["micro_batch_size"] = self.budget.micro
        budget.pop("checkpointing")
        if self.budget.steps is None:
            budget["epochs"] = self.budget.epochs or 1.0
        self.evaluation.canonical(tree["evaluation"])
        return tree

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        text = json.dumps(self.canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def at(self, point: Mapping[str, Any], seed: int | None = None) -> RunSpec:
        """This spec with the values of ``point`` (config path -> value) and, if given, another seed.

        Raises:
            SpecError: the resulting values contradict each other or are out of their domains.
        """
        tree = with_paths(to_tree(self), point)
        if seed is not None:
            tree["seed"] = seed
        return from_tree(RunSpec, tree)
