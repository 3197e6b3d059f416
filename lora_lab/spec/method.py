"""Which parameters a run trains, and where they are attached."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import SpecError, nearest
from lora_lab.spec.checks import one_of, positive
from lora_lab.spec.combining import SPARSE, WAYS
from lora_lab.spec.roles import Mask, mask_of
from lora_lab.spec.tree import Pairs, pairs

_ALPHA = ("alpha", "alpha_over_r")
_BEGINNING = ("adapters", "weights", "combine", "density")
_INIT = ("init", "calibration_sequences", *_BEGINNING)
_LAYERWISE = ("dora", "dtype", "rank_shape", "r_last", "rank_groups", "rank_budget", "rank_pattern")
_ALLOCATION = ("initial_share", "final_share", "allocate_every", "orthogonality")
METHODS: Mapping[str, tuple[str, ...]] = {
    "lora": ("r", *_ALPHA, "rslora", "roles", "layers", "dropout", *_INIT, *_LAYERWISE),
    "adalora": ("r", "init_r", *_ALPHA, "roles", "layers", "dropout", "dtype", *_ALLOCATION),
    "vera": ("r", "roles", "layers", "dropout", "dtype", "d_initial", "projection_seed"),
    "ia3": ("roles", "layers", "dtype"),
    "bottleneck": ("r", "layers", "dropout", "dtype", "placement", "activation", "adapter_scale"),
    "bitfit": ("roles", "layers", "dtype", "norms", "add_biases"),
    "last_layers": ("roles", "top_layers", "dtype"),
    "prompt_tuning": ("virtual_tokens", "prompt_init", "prompt_text"),
    "p_tuning": ("virtual_tokens", "encoder", "encoder_size"),
    "prefix_tuning": ("virtual_tokens", "encoder_size"),
    "p_tuning_v2": ("virtual_tokens",),
    "llama_adapter": ("virtual_tokens", "top_layers"),
    "full": ("dtype",),
}
"""Method names and the fields that each reads; the others are ignored by it and absent from the key."""
INITS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq", "adapters")
"""Initialisations of LoRA's factors; ``pissa_niter_N`` (a fast SVD of N iterations) is one, too."""
RANK_SHAPES = ("constant", "linear", "decay", "groups")
DTYPES = ("auto", "float32", "bfloat16")
PROMPT_INITS = ("vocab", "random", "text")
ENCODERS = ("mlp", "lstm")
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


@dataclass(frozen=True)
class MethodSpec:
    """A parameter-efficient fine-tuning method and where it is attached; ``docs/methods.md`` has the fields by method.

    ``alpha`` and ``alpha_over_r`` are two ways to say one number; giving both raises, giving neither
    means ``alpha = 2 r``. The adapter's output is scaled by ``alpha / r``, or by ``alpha / sqrt(r)``
    with ``rslora`` (arXiv:2312.03732). ``layers`` limits it to those decoder layers (empty: all).

    LoRA's rank may differ by layer: ``rank_shape`` goes from ``r`` in the first layer to ``r_last`` in the last,
    in equal steps (``linear``) or equal ratios (``decay``), or takes ``rank_groups``, one rank for each of as many
    equal groups of layers (``groups``). ``rank_budget`` then scales all ranks so that they sum to it, and
    ``rank_pattern`` sets single modules by the end of their names, before everything else. ``alpha`` holds for every
    rank, as in PEFT; ``alpha_over_r`` is the same ratio at every rank.

    With ``init=adapters`` LoRA begins as the adapters in the folders ``adapters``, each times its number in ``weights``
    (1 where it has none), brought together as ``combine`` says (with TIES, DARE … the share ``density`` of the
    entries). Their names are free, but part of the run: the adapters are taken in the order of their names, and what
    DARE drops of each is drawn in that order, so that other names are another experiment. It is their exact sum where a
    module's rank is as high as all of theirs together, else the best approximation of its rank; ``budget.steps=0``
    scores it as it is.
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
    dora: bool = False
    dtype: str = "auto"
    rank_shape: str = "constant"
    r_last: int | None = None
    rank_groups: tuple[int, ...] = ()
    rank_budget: int | None = None
    rank_pattern: Pairs = field(default_factory=pairs)
    calibration_sequences: int = 32
    init_r: int | None = None
    initial_share: float = 0.1
    final_share: float = 0.3
    allocate_every: int = 1
    orthogonality: float = 0.5
    d_initial: float = 0.1
    projection_seed: int = 0
    placement: str = "pfeiffer"
    activation: str = "relu"
    adapter_scale: float | None = None
    norms: bool = True
    add_biases: bool = False
    top_layers: int | None = None
    virtual_tokens: int = 20
    prompt_init: str = "vocab"
    prompt_text: str | None = None
    encoder: str = "mlp"
    encoder_size: int | None = None
    adapters: Pairs = field(default_factory=pairs)
    weights: Pairs = field(default_factory=pairs)
    combine: str = "sum"
    density: float = 0.5

    def __post_init__(self) -> None:
        one_of("method.name", self.name, METHODS)
        if not re.fullmatch(r"pissa_niter_[1-9]\d*", self.init):
            one_of("method.init", self.init, INITS)
        one_of("method.dtype", self.dtype, DTYPES)
        one_of("method.rank_shape", self.rank_shape, RANK_SHAPES)
        one_of("method.placement", self.placement, PLACEMENTS)
        one_of("method.activation", self.activation, ACTIVATIONS)
        one_of("method.prompt_init", self.prompt_init, PROMPT_INITS)
        one_of("method.encoder", self.encoder, ENCODERS)
        one_of("method.combine", self.combine, WAYS)
        for name in ("r", "r_last", "rank_budget", "init_r", "calibration_sequences", "allocate_every"):
            positive(f"method.{name}", getattr(self, name))
        for name in ("virtual_tokens", "top_layers", "encoder_size"):
            positive(f"method.{name}", getattr(self, name))
        object.__setattr__(self, "roles", mask_of(self.roles))
        if self.alpha is not None and self.alpha_over_r is not None:
            raise SpecError(
                f"method.alpha={self.alpha:g} and method.alpha_over_r={self.alpha_over_r:g} say the same thing twice; "
                "give one and set the other to null."
            )
        for name in ("alpha", "alpha_over_r", "d_initial", "adapter_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SpecError(f"method.{name}: must be a positive number, got {value!r}.")
        for name in ("dropout", "initial_share", "final_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SpecError(f"method.{name}: must be in [0, 1), got {getattr(self, name)!r}.")
        if not (math.isfinite(self.orthogonality) and self.orthogonality >= 0):
            raise SpecError(f"method.orthogonality: must be 0 or more, got {self.orthogonality!r}.")
        if any(layer < 0 for layer in self.layers):
            raise SpecError(f"method.layers: layers count from 0, got {list(self.layers)}.")
        {"lora": self._check_lora, "adalora": self._check_adalora, "prompt_tuning": self._check_prompt}.get(
            self.name, lambda: None
        )()

    def _check_lora(self) -> None:
        for name, rank in (*self.rank_pattern, *(("method.rank_groups", rank) for rank in self.rank_groups)):
            if not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0:
                raise SpecError(f"method.rank_pattern: {name}: a rank must be 1 or more, got {rank!r}.")
        self._check_beginning()
        needs_last = self.rank_shape in ("linear", "decay")
        if needs_last != (self.r_last is not None):
            raise SpecError(
                f"method.rank_shape={self.rank_shape} and method.r_last={self.r_last}: linear and decay go from "
                "method.r in the first layer to method.r_last in the last, others have none. Give both, or neither."
            )
        if (self.rank_shape == "groups") != bool(self.rank_groups):
            raise SpecError(
                f"method.rank_shape={self.rank_shape} and method.rank_groups={list(self.rank_groups)}: groups needs "
                "one rank a group of layers, as in method.rank_groups=[16,8,4]; the other shapes have none."
            )
        if self.init == "orthogonal" and any(rank % 2 for rank in self._said_ranks):
            raise SpecError(
                f"method.init=orthogonal splits a rank in two halves, and {self._said_ranks} are not all even. "
                "Choose even ranks."
            )
        if self.init == "orthogonal" and (self.rank_shape in ("linear", "decay") or self.rank_budget is not None):
            raise SpecError(
                "method.init=orthogonal needs even ranks, which method.rank_shape=linear|decay and method.rank_budget "
                "do not keep. Use method.rank_groups or method.rank_pattern, or another init."
            )

    def _check_beginning(self) -> None:
        if (self.init == "adapters") != bool(self.adapters):
            raise SpecError(
                f"method.init={self.init} and method.adapters={dict(self.adapters)}: adapters to begin with go with "
                "method.init=adapters, and only with it; as in method.adapters={one: runs/demo/runs/t0000-s0/adapter}."
            )
        if self.adapters and self.dora:
            raise SpecError(
                "method.init=adapters begins with low-rank updates, which DoRA's magnitudes would change. "
                "Set method.dora=false."
            )
        known = [name for name, _ in self.adapters]
        for name, folder in self.adapters:
            if not isinstance(folder, str) or not folder:
                raise SpecError(f"method.adapters.{name}: must be the folder of an adapter, got {folder!r}.")
        for name, weight in self.weights:
            if name not in known:
                raise SpecError(f"method.weights: no adapter {name!r} in method.adapters{nearest(name, known)}")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise SpecError(f"method.weights.{name}: must be a number, got {weight!r}.")
        if not 0 < self.density <= 1:
            raise SpecError(f"method.density: must be above 0 and at most 1, got {self.density!r}.")

    def weight_of(self, name: str) -> float:
        """What the adapter ``name`` counts in the beginning."""
        return float(dict(self.weights).get(name, 1.0))

    def _check_adalora(self) -> None:
        if self.initial_share + self.final_share >= 1.0:
            raise SpecError(
                f"method.initial_share={self.initial_share:g} and method.final_share={self.final_share:g} leave no "
                "step in which ranks are taken away; lower one of them."
            )
        if self.first_r <= self.r:
            raise SpecError(
                f"method.init_r={self.init_r} is not above method.r={self.r}: AdaLoRA begins with more ranks "
                "than it keeps. Raise method.init_r, or lower method.r."
            )

    def _check_prompt(self) -> None:
        if (self.prompt_init == "text") != bool(self.prompt_text):
            raise SpecError(
                f"method.prompt_init={self.prompt_init} and method.prompt_text={self.prompt_text!r}: a text to begin "
                "with goes with method.prompt_init=text, and only with it."
            )

    @property
    def mask(self) -> Mask:
        """The roles that carry adapters, in canonical order; none for a method that has no use for roles."""
        return self.roles if self.reads("roles") else ()

    @property
    def attaches_nothing(self) -> bool:
        """The mask is empty: this is the base model itself."""
        return self.reads("roles") and not self.roles

    def reads(self, name: str) -> bool:
        """Whether this method looks at the field ``name``."""
        return name in METHODS[self.name]

    @property
    def first_r(self) -> int:
        """AdaLoRA's rank before any is taken away: ``init_r``, or half more than ``r``."""
        return self.init_r or (3 * self.r + 1) // 2

    @property
    def effective_alpha(self) -> float:
        """``alpha``, however it was said."""
        return self.alpha_at(self.r)

    @property
    def scaling(self) -> float:
        """What ``B A x`` is multiplied by, at rank ``r``."""
        return self.scaling_at(self.r)

    def alpha_at(self, rank: int) -> float:
        """``alpha`` of a module of rank ``rank``."""
        if self.alpha is not None:
            return self.alpha
        return (2.0 if self.alpha_over_r is None else self.alpha_over_r) * rank

    def scaling_at(self, rank: int) -> float:
        """What ``B A x`` is multiplied by, at rank ``rank``."""
        return self.alpha_at(rank) / (math.sqrt(rank) if self.rslora else rank)

    @property
    def one_rank(self) -> bool:
        """Every module has rank ``r``."""
        return self.rank_shape == "constant" and self.rank_budget is None and not self.rank_pattern

    @property
    def _said_ranks(self) -> list[int]:
        return [self.r, *self.rank_groups, *(rank for _, rank in self.rank_pattern)]

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result."""
        if self.attaches_nothing:
            tree.clear()
            tree.update({"name": "lora", "roles": []})
            return
        for name in set(tree) - {"name", *METHODS[self.name]}:
            tree.pop(name)
        if self.name == "lora":
            self._canonical_lora(tree)
        elif self.reads("alpha"):
            for name in _ALPHA:
                tree.pop(name)
            tree["alpha"] = self.effective_alpha
        if self.name == "adalora":
            tree["init_r"] = self.first_r
        if self.name == "last_layers":
            tree["top_layers"] = self.top_layers or 1

    def _canonical_lora(self, tree: dict[str, Any]) -> None:
        """What older runs did not have is in the tree only where it is not as it was."""
        for name in _ALPHA:
            tree.pop(name)
        rslora = tree.pop("rslora")
        tree["scaling"] = self.scaling
        if self.init != "eva":
            tree.pop("calibration_sequences")
        if self.init != "adapters":
            for name in _BEGINNING:
                tree.pop(name)
        else:
            tree["weights"] = {name: self.weight_of(name) for name, _ in self.adapters}
            if self.combine not in SPARSE:
                tree.pop("density")
        for name in _LAYERWISE:
            if getattr(self, name) in (False, "auto", "constant", None, (), Pairs()):
                tree.pop(name)
        if not self.one_rank:
            tree.pop("scaling")
            tree["rslora"] = rslora
            tree["alpha" if self.alpha else "alpha_over_r"] = self.alpha or self.alpha_at(1)
