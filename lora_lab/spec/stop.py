"""When a sweep ends before its trials are used up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_lab.errors import SpecError
from lora_lab.spec.checks import positive


@dataclass(frozen=True)
class Stop:
    """Rules that end a sweep; the first one that holds does. What runs then runs to its end.

    trials: so many trials are settled.
    seconds: runs have been training for so long (time in which the sweep lay still does not count).
    tokens: so many tokens were trained on.
    target: a trial's value is as good as this.
    no_improvement: so many trials in a row were settled without a better best value.
    expected_improvement: the expected improvement over the best value is below this at every point of the space,
        by a Gaussian process over the settled trials (see :mod:`lora_lab.study.improvement`).
    """

    trials: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    target: float | None = None
    no_improvement: int | None = None
    expected_improvement: float | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "tokens", "no_improvement"):
            positive(f"sweep.stop.{name}", getattr(self, name))
        for name in ("seconds", "expected_improvement"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SpecError(f"sweep.stop.{name}: must be a positive number, got {value!r}.")
        if self.target is not None and not math.isfinite(self.target):
            raise SpecError(f"sweep.stop.target: must be a number, got {self.target!r}.")
