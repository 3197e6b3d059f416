"""From settled results to what a person can say about a sweep: frames, tables, consistency.

Numpy, pandas, scipy and rich only; a line here has never seen a tensor, a study or a tracking store.
The public names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.analysis.ablation import ablation_table
    from lora_lab.analysis.folder import SweepRecord, find_sweep, read_results, read_sweep
    from lora_lab.analysis.frame import load_results, results_frame
    from lora_lab.analysis.grouping import Best, Configuration, best_configuration, configurations
    from lora_lab.analysis.reliability import ICC, Consistency, consistency, icc1
    from lora_lab.analysis.tables import AblationTable, Cell

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

__getattr__ = names(
    __name__,
    {
        "ICC": "reliability",
        "AblationTable": "tables",
        "Best": "grouping",
        "Cell": "tables",
        "Configuration": "grouping",
        "Consistency": "reliability",
        "SweepRecord": "folder",
        "ablation_table": "ablation",
        "best_configuration": "grouping",
        "configurations": "grouping",
        "consistency": "reliability",
        "find_sweep": "folder",
        "icc1": "reliability",
        "load_results": "frame",
        "read_results": "folder",
        "read_sweep": "folder",
        "results_frame": "frame",
    },
)
