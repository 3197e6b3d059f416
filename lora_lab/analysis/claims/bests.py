"""A value that beats every other along its axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab.analysis.claims.evidence import NOTHING, Evidence
from lora_lab.analysis.grouping import check_path
from lora_lab.analysis.naming import value_name
from lora_lab.analysis.verdicts import Verdict, best_at
from lora_lab.spec.tree import Pairs


@dataclass(frozen=True)
class Best:
    """``value`` is the best along ``path``, among the runs of ``sweep`` at ``where``."""

    sweep: str
    path: str
    value: Any
    where: Pairs = NOTHING
    metric: str = "eval_loss"
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """It must beat each rival in a paired t test."""
        frame = evidence.frame(self.sweep)
        for path, values in self.where:
            check_path(frame, path)
            wanted = {value_name(v) for v in (values if isinstance(values, tuple) else (values,))}
            attrs = frame.attrs
            frame = frame[[value_name(v) in wanted for v in frame[path]]]
            frame.attrs = attrs
        return best_at(frame, self.path, self.value, claim, metric=self.metric, smallest=self.smallest)
