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
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import SpecError, nearest
from lora_lab.spec.roles import Mask, mask_of
from lora_lab.spec.tree import Pairs, from_tree, pairs, to_tree, with_paths

DTYPES = ("float32", "bfloat16", "float64")
QUANTIZATIONS = ("none",)
MODEL_SOURCES = ("wheel", "random", "pretrained")
DATA_NAMES = ("taskmix", "alpaca", "chat", "text", "hf")
TEMPLATES = ("chat", "chatml", "alpaca", "plain")
METHODS = ("lora",)
INITS = ("default", "gaussian")
OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("beta1", "beta2", "eps"),
    "sgd": ("momentum",),
}
"""Optimizer names and the fields that only they read (all read ``lr``, ``weight_decay``, ``max_grad_norm``)."""
SCHEDULES = ("constant", "linear", "cosine")


def _one_of(path: str, value: str, known: Any) -> None:
    if value not in known:
        raise SpecError(f"{path}: unknown value {value!r}{nearest(value, known)} Known: {', '.join(known)}.")


def _positive(path: str, value: int | None) -> None:
    if value is not None and value <= 0:
        raise SpecError(f"{path}: must be 1 or more, got {value}.")


@dataclass(frozen=True)
class ModelSpec:
    """A base language model.

    ``source`` says where it comes from: ``wheel`` (a GGUF file inside an installed Python package,
    ``path`` is ``package/file.gguf``), ``random`` (randomly initialised from ``config`` by ``init_seed``),
    or ``pretrained`` (``path`` is a hub id or a local folder). ``roles`` names modules by hand for an
    architecture that is not in the roles table: role -> list of module-name suffixes. ``pad_token`` names
    the pad token of a tokenizer that has none of its own.
    """

    name: str
    source: str = "pretrained"
    path: str | None = None
    revision: str | None = None
    dtype: str = "bfloat16"
    quantization: str = "none"
    config: Pairs = field(default_factory=pairs)
    init_seed: int = 0
    roles: Pairs = field(default_factory=pairs)
    pad_token: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        _one_of("model.source", self.source, MODEL_SOURCES)
        _one_of("model.dtype", self.dtype, DTYPES)
        _one_of("model.quantization", self.quantization, QUANTIZATIONS)
        if self.source in ("wheel", "pretrained") and not self.path:
            raise SpecError(
                f"model.path: source={self.source} needs one. Give a hub id or a folder, e.g. model.path=./my-model."
            )
        if self.source == "random" and not self.config:
            raise SpecError("model.config: source=random needs the architecture, e.g. model_type: llama.")
        mask_of([role for role, _ in self.roles])


@dataclass(frozen=True)
class DataSpec:
    """A data set, its prompt template and its split.

    ``max_length`` is in tokens; ``train_size``/``eval_size`` in examples (``None``: all there are).
    ``seed`` fixes the data itself (generation, split) and is not the run's seed, which orders it.
    ``diversity`` (taskmix) is the number of task families mixed; ``tasks`` names them instead.
    ``columns`` maps the names wanted here to those in the file, e.g. ``output: response``.
    """

    name: str = "taskmix"
    path: str | None = None
    eval_path: str | None = None
    columns: Pairs = field(default_factory=pairs)
    template: str = "plain"
    mask_prompt: bool = True
    max_length: int = 128
    train_size: int | None = None
    eval_size: int | None = None
    seed: int = 0
    tasks: tuple[str, ...] = ()
    diversity: int | None = None

    def __post_init__(self) -> None:
        _one_of("data.name", self.name, DATA_NAMES)
        _one_of("data.template", self.template, TEMPLATES)
        _positive("data.max_length", self.max_length)
        _positive("data.train_size", self.train_size)
        _positive("data.eval_size", self.eval_size)
        _positive("data.diversity", self.diversity)
        if self.name != "taskmix" and not self.path:
            raise SpecError(f"data.path: data.name={self.name} needs one, e.g. data.path=train.jsonl.")
        if self.tasks and self.diversity is not None:
            raise SpecError("data.tasks and data.diversity both choose the task families; give one of them.")


@dataclass(frozen=True)
class MethodSpec:
    """A parameter-efficient fine-tuning method and where it is attached.

    ``alpha`` and ``alpha_over_r`` are two ways to say one number; giving both raises, giving neither
    means ``alpha = 2 r``. The adapter's output is scaled by ``alpha / r``, or by ``alpha / sqrt(r)``
    with ``rslora`` (arXiv:2312.03732). ``layers`` limits it to those decoder layers (empty: all).
    """

    name: str = "lora"
    r: int = 8
    alpha: float | None = None
    alpha_over_r: float | None = None
    roles: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] = ()
    dropout: float = 0.0
    rslora: bool = False
    init: str = "default"

    def __post_init__(self) -> None:
        _one_of("method.name", self.name, METHODS)
        _one_of("method.init", self.init, INITS)
        _positive("method.r", self.r)
        object.__setattr__(self, "roles", mask_of(self.roles))
        if self.alpha is not None and self.alpha_over_r is not None:
            raise SpecError(
                f"method.alpha={self.alpha:g} and method.alpha_over_r={self.alpha_over_r:g} say the same thing twice; "
                "give one and set the other to null."
            )
        for name in ("alpha", "alpha_over_r"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SpecError(f"method.{name}: must be a positive number, got {value!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise SpecError(f"method.dropout: must be in [0, 1), got {self.dropout!r}.")
        if any(layer < 0 for layer in self.layers):
            raise SpecError(f"method.layers: layers count from 0, got {list(self.layers)}.")

    @property
    def mask(self) -> Mask:
        """The roles that carry adapters, in canonical order."""
        return self.roles

    @property
    def effective_alpha(self) -> float:
        """``alpha``, however it was said."""
        if self.alpha is not None:
            return self.alpha
        return (2.0 if self.alpha_over_r is None else self.alpha_over_r) * self.r

    @property
    def scaling(self) -> float:
        """What ``B A x`` is multiplied by."""
        return self.effective_alpha / (math.sqrt(self.r) if self.rslora else self.r)


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer. Fields an optimizer does not read are ignored by it and absent from the key."""

    name: str = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SpecError(f"optimizer.lr: must be a positive number, got {self.lr!r}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SpecError(f"optimizer.weight_decay: must be 0 or more, got {self.weight_decay!r}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise SpecError(f"optimizer.max_grad_norm: must be positive, or null for none, got {self.max_grad_norm!r}.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SpecError(f"optimizer.{name}: must be in [0, 1), got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class ScheduleSpec:
    """A learning-rate schedule over optimizer steps; all of them warm up linearly first."""

    name: str = "linear"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _one_of("schedule.name", self.name, SCHEDULES)
        if self.warmup_steps < 0:
            raise SpecError(f"schedule.warmup_steps: must be 0 or more, got {self.warmup_steps}.")


@dataclass(frozen=True)
class BudgetSpec:
    """How long a run trains: ``steps`` (optimizer steps) or ``epochs``, one epoch if neither is given.

    ``batch_size`` examples make one optimizer step, in micro-batches of ``micro_batch_size``
    (``None``: the whole batch at once).
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise SpecError(
                f"budget.epochs={self.epochs:g} and budget.steps={self.steps} both say how long to train; "
                "give one and set the other to null."
            )
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise SpecError(f"budget.epochs: must be a positive number, got {self.epochs!r}.")
        _positive("budget.steps", self.steps)
        _positive("budget.batch_size", self.batch_size)
        _positive("budget.micro_batch_size", self.micro_batch_size)
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
    ``exact_match`` also generates answers greedily, ``max_new_tokens`` at most, for the first
    ``exact_match_size`` held-out examples (``None``: all).
    """

    every_steps: int | None = None
    batch_size: int = 32
    exact_match: bool = False
    exact_match_size: int | None = None
    max_new_tokens: int = 24

    def __post_init__(self) -> None:
        _positive("evaluation.every_steps", self.every_steps)
        _positive("evaluation.batch_size", self.batch_size)
        _positive("evaluation.exact_match_size", self.exact_match_size)
        _positive("evaluation.max_new_tokens", self.max_new_tokens)


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

    @property
    def canonical(self) -> dict[str, Any]:
        """The tree of the fields that can matter; equal trees are the same experiment."""
        tree: dict[str, Any] = to_tree(self)
        model, method, data = tree["model"], tree["method"], tree["data"]
        model.pop("name")
        if self.model.source != "random":
            model.pop("config")
            model.pop("init_seed")
        if self.model.source != "pretrained":
            model.pop("revision")
            model.pop("trust_remote_code")
        if data["name"] != "taskmix":
            data.pop("tasks")
            data.pop("diversity")
        for name in ("alpha", "alpha_over_r", "rslora"):
            method.pop(name)
        method["scaling"] = self.method.scaling
        if not self.method.mask:
            tree["method"] = {"name": method["name"], "roles": []}
        optimizer = tree["optimizer"]
        mine = OPTIMIZERS[self.optimizer.name]
        for name in {f for fields in OPTIMIZERS.values() for f in fields} - set(mine):
            optimizer.pop(name)
        budget = tree["budget"]
        budget["micro_batch_size"] = self.budget.micro
        if self.budget.steps is None:
            budget["epochs"] = self.budget.epochs or 1.0
        if not self.evaluation.exact_match:
            tree["evaluation"].pop("exact_match_size")
            tree["evaluation"].pop("max_new_tokens")
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
