"""The study: which run comes next, and what came out of each, kept so that nothing is lost.

The only room that imports Optuna. :class:`Study` hands out runs and settles them exactly once;
:class:`Run` is what a worker trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.study.counts import Counts
    from lora_lab.study.importance import ped_anova
    from lora_lab.study.run import Run
    from lora_lab.study.study import Study

__all__ = ["Counts", "Run", "Study", "ped_anova"]

__getattr__ = names(__name__, {"Counts": "counts", "Run": "run", "Study": "study", "ped_anova": "importance"})
