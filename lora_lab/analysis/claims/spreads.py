"""How little repeated runs differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_lab.analysis.claims.evidence import Evidence, Side
from lora_lab.analysis.verdicts import Verdict, varies_less_than


@dataclass(frozen=True)
class Steady:
    """Runs that differ in their seed alone have a coefficient of variation below ``cv``."""

    side: Side
    cv: float
    metric: str = "eval_loss"

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Chi-square interval of the standard deviation."""
        values = [v for v in self.side.values(evidence, self.metric).tolist() if math.isfinite(v)]
        return varies_less_than(values, claim, cv=self.cv)
