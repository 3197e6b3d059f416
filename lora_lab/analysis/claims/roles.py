"""Whether a role is worth adapting, from the masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_lab.analysis.claims.evidence import Evidence
from lora_lab.analysis.masks import mask_effects
from lora_lab.analysis.verdicts import Verdict, verdict_of
from lora_lab.errors import SpecError


@dataclass(frozen=True)
class Pays:
    """Adapting ``role`` improves ``metric``: its Shapley value over the masks is at least ``smallest``."""

    sweep: str
    role: str
    metric: str = "eval_loss"
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Interval of the Shapley value (:mod:`lora_lab.analysis.masks`)."""
        found = mask_effects(evidence.frame(self.sweep), self.metric)
        effect = next((e for e in found.shapley if e.name == self.role), None) if found else None
        if found is None or effect is None:
            raise SpecError(f"{self.role} does not vary in the masks of {self.sweep}")
        if math.isnan(effect.low):
            raise SpecError(f"nothing was repeated in {self.sweep}, and no interaction stands for the spread")
        said = f"Shapley value over {found.masks} masks and {found.blocks} seeds, t test with {found.df} df"
        return verdict_of(claim, said, effect.value, effect.low, effect.high, effect.p, self.smallest, found.masks)
