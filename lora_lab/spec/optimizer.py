"""How a run's parameters move: its optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.checks import one_of, positive

_ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "adamw": _ADAM,
    "adamw8bit": _ADAM,
    "paged_adamw8bit": _ADAM,
    "sgd": {"momentum": 0.0, "nesterov": False},
    "adafactor": {"decay_rate": -0.8, "clip_threshold": 1.0, "scale_parameter": True},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "sophiag": {"beta1": 0.965, "beta2": 0.99, "rho": 0.05, "hessian_every": 10},
    "sophiah": {"beta1": 0.965, "beta2": 0.99, "rho": 0.01, "hessian_every": 10},
    "prodigy": _ADAM | {"d0": 1e-6, "d_coef": 1.0, "bias_correction": False, "safeguard_warmup": False},
    "muon": _ADAM | {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "adjust_lr": "match_rms_adamw"},
    "schedulefree_adamw": _ADAM,
}
"""Optimizer names, and for each the fields that it reads beside those that all read, with its own defaults."""
ADJUSTMENTS = ("original", "match_rms_adamw")
"""How Muon's rate follows a matrix's shape ``(m, n)``: by ``sqrt(max(1, m/n))``, or ``0.2 sqrt(max(m, n))``."""

ELEMENTWISE = ("adamw", "sgd", "lion", "schedulefree_adamw")
"""Optimizers that give a number the same update wherever it stands, also in a part of a parameter."""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer, and how its rate differs between parameters.

    All read ``lr``, ``weight_decay``, ``max_grad_norm`` (``None``: no clipping), ``lora_plus_ratio`` (the rate of
    LoRA's B as a multiple of A's, arXiv:2402.12354) and ``layer_decay`` (the rate of each decoder layer as a
    multiple of that of the layer above it). Of the others each reads its own (:data:`OPTIMIZERS`): ``None`` is its
    own default, and fields that it does not read are ignored and absent from the key.
    """

    name: str = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    lora_plus_ratio: float | None = None
    layer_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    rho: float | None = None
    hessian_every: int | None = None
    decay_rate: float | None = None
    clip_threshold: float | None = None
    scale_parameter: bool | None = None
    d0: float | None = None
    d_coef: float | None = None
    bias_correction: bool | None = None
    safeguard_warmup: bool | None = None
    ns_steps: int | None = None
    adjust_lr: str | None = None

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZERS)
        _above("optimizer.lr", self.lr, "a positive number")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SpecError(f"optimizer.weight_decay: must be 0 or more, got {self.weight_decay!r}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise SpecError(f"optimizer.max_grad_norm: must be positive, or null for none, got {self.max_grad_norm!r}.")
        for name in ("lora_plus_ratio", "rho", "clip_threshold", "d0", "d_coef"):
            _above(f"optimizer.{name}", getattr(self, name), "a positive number, or null for the default")
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise SpecError(f"optimizer.layer_decay: must be in (0, 1], or null for none, got {self.layer_decay!r}.")
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise SpecError(f"optimizer.{name}: must be in [0, 1), got {value!r}.")
        if self.name == "schedulefree_adamw" and self.beta1 == 0.0:
            raise SpecError(
                "optimizer.beta1=0: schedulefree_adamw trains between its average and its last point, at beta1 of the "
                "way, so beta1 must be above 0; 0.9 is usual."
            )
        if self.eps is not None and not (math.isfinite(self.eps) and self.eps >= 0):
            raise SpecError(f"optimizer.eps: must be 0 or more, got {self.eps!r}.")
        if self.decay_rate is not None and not -math.inf < self.decay_rate < 0:
            raise SpecError(f"optimizer.decay_rate: must be negative (Adafactor's is -0.8), got {self.decay_rate!r}.")
        positive("optimizer.hessian_every", self.hessian_every)
        positive("optimizer.ns_steps", self.ns_steps)
        if self.adjust_lr is not None:
            one_of("optimizer.adjust_lr", self.adjust_lr, ADJUSTMENTS)

    @property
    def own(self) -> dict[str, Any]:
        """The fields that this optimizer alone reads, each with its value or its default."""
        given = {name: getattr(self, name) for name in OPTIMIZERS[self.name]}
        return {name: OPTIMIZERS[self.name][name] if value is None else value for name, value in given.items()}

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result."""
        for name in {field for fields in OPTIMIZERS.values() for field in fields}:
            tree.pop(name)
        for name in ("lora_plus_ratio", "layer_decay"):
            if tree[name] in (None, 1.0):
                tree.pop(name)
        own = self.own
        if not own.get("momentum") or not own["nesterov"]:
            own.pop("nesterov", None)  # Nesterov's look-ahead is momentum times something
        tree |= own


_ENDING: dict[str, Any] = {"min_lr_ratio": 0.0}

SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "constant": {},
    "linear": _ENDING,
    "cosine": _ENDING,
    "cosine_restarts": _ENDING | {"cycles": 2},
    "inverse_sqrt": {"timescale": None},
    "wsd": _ENDING | {"decay_share": 0.2, "decay_curve": "linear"},
}
"""Schedule names and the fields that each reads beside its warm-up, with their defaults."""
DECAY_CURVES = ("linear", "cosine", "1-sqrt")
"""How the rate falls at the end of a ``wsd`` schedule."""


@dataclass(frozen=True)
class ScheduleSpec:
    """A learning-rate schedule over optimizer steps; all of them warm up linearly first.

    ``warmup_steps`` and ``warmup_ratio`` (a share of the run's steps, rounded up) are two ways to say one length;
    giving both raises. ``min_lr_ratio`` is the last rate as a share of ``optimizer.lr``, ``cycles`` how often
    ``cosine_restarts`` falls, ``timescale`` the steps after which ``inverse_sqrt`` would have fallen to ``1/sqrt(2)``
    (``None``: the warm-up's length, or 10,000 without one), ``decay_share`` the share of all steps in which ``wsd``
    falls at the end, along ``decay_curve``. Fields that a schedule does not read are ignored and absent from the key.
    """

    name: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float | None = None
    min_lr_ratio: float | None = None
    cycles: int | None = None
    timescale: int | None = None
    decay_share: float | None = None
    decay_curve: str | None = None

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, SCHEDULES)
        if self.warmup_steps < 0:
            raise SpecError(f"schedule.warmup_steps: must be 0 or more, got {self.warmup_steps}.")
        for name in ("warmup_ratio", "min_lr_ratio", "decay_share"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise SpecError(f"schedule.{name}: must be in [0, 1], got {value!r}.")
        if self.warmup_steps and self.warmup_ratio is not None:
            raise SpecError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.warmup_ratio={self.warmup_ratio:g} say the "
                "same thing twice; give one, and set the other to 0 or null."
            )
        positive("schedule.cycles", self.cycles)
        positive("schedule.timescale", self.timescale)
        if self.decay_curve is not None:
            one_of("schedule.decay_curve", self.decay_curve, DECAY_CURVES)

    @property
    def own(self) -> dict[str, Any]:
        """The fields that this schedule alone reads, each with its value or its default."""
        given = {name: getattr(self, name) for name in SCHEDULES[self.name]}
        return {name: SCHEDULES[self.name][name] if value is None else value for name, value in given.items()}

    def warmup(self, total: int) -> int:
        """Optimizer steps of the warm-up in a run of ``total``."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(self.warmup_ratio * total)

    def canonical(self, tree: dict[str, Any], total: int | None) -> None:
        """Drop from ``tree`` what cannot matter; ``total`` are the run's steps, where the spec alone says them."""
        for name in {field for fields in SCHEDULES.values() for field in fields}:
            tree.pop(name)
        if total is not None:
            tree["warmup_steps"] = self.warmup(total)
        if total is not None or not self.warmup_ratio:
            tree.pop("warmup_ratio")
        own = self.own
        if not own.get("min_lr_ratio"):
            own.pop("min_lr_ratio", None)
        tree |= own


def _above(path: str, value: float | None, wanted: str) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise SpecError(f"{path}: must be {wanted}, got {value!r}.")
