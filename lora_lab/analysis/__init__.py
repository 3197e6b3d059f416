"""From settled results to what a person can say about a sweep: frames, tables, consistency.

Numpy, pandas, scipy and rich only; a line here has never seen a tensor, a study or a tracking store.
The public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.analysis.folder import SweepRecord, find_sweep, read_results, read_sweep
    from lora_lab.analysis.frame import load_results, results_frame
    from lora_lab.analysis.grouping import Best, Configuration, best_configuration, configurations
    from lora_lab.analysis.reliability import ICC, Consistency, consistency, icc1
    from lora_lab.analysis.tables import AblationTable, Cell, ablation_table

__all__ = [
    "ICC",
    "AblationTable",
    "Best",
    "Cell",
    "Configuration",
    "Consistency",
    "SweepRecord",
    "ablation_table",
    "best_configuration",
    "configurations",
    "consistency",
    "find_sweep",
    "icc1",
    "load_results",
    "read_results",
    "read_sweep",
    "results_frame",
]

_HOMES = {
    "ICC": "reliability",
    "AblationTable": "tables",
    "Best": "grouping",
    "Cell": "tables",
    "Configuration": "grouping",
    "Consistency": "reliability",
    "SweepRecord": "folder",
    "ablation_table": "tables",
    "best_configuration": "grouping",
    "configurations": "grouping",
    "consistency": "reliability",
    "find_sweep": "folder",
    "icc1": "reliability",
    "load_results": "frame",
    "read_results": "folder",
    "read_sweep": "folder",
    "results_frame": "frame",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lora_lab.analysis.{_HOMES[name]}"), name)
