"""Which parameters a run trains, and where they are attached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.checks import one_of, positive
from lora_lab.spec.roles import Mask, mask_of

METHODS = ("lora",)
INITS = ("default", "gaussian")


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
        one_of("method.name", self.name, METHODS)
        one_of("method.init", self.init, INITS)
        positive("method.r", self.r)
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

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result."""
        for name in ("alpha", "alpha_over_r", "rslora"):
            tree.pop(name)
        tree["scaling"] = self.scaling
        if not self.mask:
            tree.clear()
            tree.update({"name": self.name, "roles": []})
