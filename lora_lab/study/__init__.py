"""The study: which run comes next, and what came out of each, kept so that nothing is lost.

The only room that imports Optuna. :class:`Study` hands out runs and settles them exactly once;
:class:`Run` is what a worker trains.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.study.study import Counts, Run, Study

__all__ = ["Counts", "Run", "Study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lora_lab.study' has no attribute {name!r}")
    return getattr(importlib.import_module("lora_lab.study.study"), name)
