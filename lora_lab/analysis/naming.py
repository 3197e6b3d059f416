"""Names of values, paths, points and outcomes, as every table and line says them. Loads no pandas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.spec import Outcome, show

OUTCOME_WORDS: Mapping[str, str] = {
    Outcome.COMPLETED: "completed",
    Outcome.PRUNED: "pruned",
    Outcome.DIVERGED: "diverged",
    Outcome.OUT_OF_MEMORY: "out of memory",
    Outcome.PREEMPTED: "paused",
    Outcome.FAILED: "failed",
}


def value_name(value: Any) -> str:
    """A searched value as people read it: ``8``, ``0.5``, ``query+value``, ``null``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return show(value)


def path_name(path: str, among: Sequence[str] = ()) -> str:
    """The field's own name (``r`` of ``method.r``) unless another path of ``among`` or a name in use ends alike."""
    leaf = path.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == leaf for other in among) <= 1
    return leaf if alone and leaf not in ("name", "seed", "path") else path


def point_name(point: Mapping[str, Any]) -> str:
    """``r=8 alpha_over_r=1``."""
    paths = list(point)
    return " ".join(f"{path_name(path, paths)}={value_name(value)}" for path, value in point.items())
