"""From settled results to what a person can say about a sweep: frames, tables, statistics, figures, the report.

Numpy, pandas, scipy, statsmodels, scikit-learn, rich and matplotlib only; a line here has never seen a tensor, a study
or a tracking store. The public names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.analysis.ablation import ablation_table
    from lora_lab.analysis.comparison import Comparison, compare
    from lora_lab.analysis.curves import learning_curves
    from lora_lab.analysis.drawing import draw
    from lora_lab.analysis.folder import SweepRecord, find_sweep, read_results, read_sweep, record_of
    from lora_lab.analysis.forest import Importance, configuration_means, importance
    from lora_lab.analysis.frame import load_results, results_frame
    from lora_lab.analysis.gap import Overfitting, overfitting
    from lora_lab.analysis.grouping import Best, Configuration, best_configuration, configurations
    from lora_lab.analysis.masks import MaskEffects, mask_effects
    from lora_lab.analysis.page import html_page
    from lora_lab.analysis.pareto import pareto_front
    from lora_lab.analysis.power import seeds_needed
    from lora_lab.analysis.reliability import ICC, Consistency, consistency, icc1
    from lora_lab.analysis.report import Report, Section, report_of
    from lora_lab.analysis.stability import Ranking, kendall_w, rank_stability, ranking
    from lora_lab.analysis.tables import AblationTable, Cell
    from lora_lab.analysis.verdicts import Status, Verdict

__all__ = [
    "ICC",
    "AblationTable",
    "Best",
    "Cell",
    "Comparison",
    "Configuration",
    "Consistency",
    "Importance",
    "MaskEffects",
    "Overfitting",
    "Ranking",
    "Report",
    "Section",
    "Status",
    "SweepRecord",
    "Verdict",
    "ablation_table",
    "best_configuration",
    "compare",
    "configuration_means",
    "configurations",
    "consistency",
    "draw",
    "find_sweep",
    "html_page",
    "icc1",
    "importance",
    "kendall_w",
    "learning_curves",
    "load_results",
    "mask_effects",
    "overfitting",
    "pareto_front",
    "rank_stability",
    "ranking",
    "read_results",
    "read_sweep",
    "record_of",
    "report_of",
    "results_frame",
    "seeds_needed",
]

__getattr__ = names(
    __name__,
    {
        "ICC": "reliability",
        "AblationTable": "tables",
        "Best": "grouping",
        "Cell": "tables",
        "Comparison": "comparison",
        "Configuration": "grouping",
        "Consistency": "reliability",
        "Importance": "forest",
        "MaskEffects": "masks",
        "Overfitting": "gap",
        "Ranking": "stability",
        "Report": "report",
        "Section": "report",
        "Status": "verdicts",
        "SweepRecord": "folder",
        "Verdict": "verdicts",
        "ablation_table": "ablation",
        "best_configuration": "grouping",
        "compare": "comparison",
        "configuration_means": "forest",
        "configurations": "grouping",
        "consistency": "reliability",
        "draw": "drawing",
        "find_sweep": "folder",
        "html_page": "page",
        "icc1": "reliability",
        "importance": "forest",
        "kendall_w": "stability",
        "learning_curves": "curves",
        "load_results": "frame",
        "mask_effects": "masks",
        "overfitting": "gap",
        "pareto_front": "pareto",
        "rank_stability": "stability",
        "ranking": "stability",
        "read_results": "folder",
        "read_sweep": "folder",
        "record_of": "folder",
        "report_of": "report",
        "results_frame": "frame",
        "seeds_needed": "power",
    },
)
