"""A metric that grows, or falls, along a numeric setting."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.analysis.claims.evidence import Evidence
from lora_lab.analysis.verdicts import Verdict, rises_along


@dataclass(frozen=True)
class Rises:
    """``metric`` grows along ``path`` (``sign=-1``: falls), by ``smallest`` per doubling or per unit."""

    sweep: str
    path: str
    metric: str
    sign: float = 1.0
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Slope within blocks of equal seed and equal other settings."""
        frame = evidence.frame(self.sweep)
        return rises_along(frame, self.path, claim, metric=self.metric, sign=self.sign, smallest=self.smallest)
