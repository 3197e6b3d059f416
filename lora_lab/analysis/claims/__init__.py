"""Claims of an article as values: one small kind of test a module, each of them giving a verdict.

A test is a frozen dataclass called with the claim's words and the :class:`Evidence`, so that a claim is data: which
runs or sizes it looks at, and how small an effect would still be worth claiming. What the three statuses mean stands in
:mod:`lora_lab.analysis.verdicts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.lazy import names

if TYPE_CHECKING:
    from lora_lab.analysis.claims.bests import Best
    from lora_lab.analysis.claims.evidence import Claim, Evidence, Side, Size, Test, judge
    from lora_lab.analysis.claims.optima import Apart, OptimumRises
    from lora_lab.analysis.claims.pairs import Better, Gains, GainsMore, NotBetter, Same
    from lora_lab.analysis.claims.roles import Pays
    from lora_lab.analysis.claims.sizes import Fits, Grows, Near, Saves
    from lora_lab.analysis.claims.spreads import Steady
    from lora_lab.analysis.claims.trends import Rises

_PLACES = {
    "bests": ("Best",),
    "evidence": ("Claim", "Evidence", "Side", "Size", "Test", "judge"),
    "optima": ("Apart", "OptimumRises"),
    "pairs": ("Better", "Gains", "GainsMore", "NotBetter", "Same"),
    "roles": ("Pays",),
    "sizes": ("Fits", "Grows", "Near", "Saves"),
    "spreads": ("Steady",),
    "trends": ("Rises",),
}

__all__ = [
    "Apart",
    "Best",
    "Better",
    "Claim",
    "Evidence",
    "Fits",
    "Gains",
    "GainsMore",
    "Grows",
    "Near",
    "NotBetter",
    "OptimumRises",
    "Pays",
    "Rises",
    "Same",
    "Saves",
    "Side",
    "Size",
    "Steady",
    "Test",
    "judge",
]

__getattr__ = names(__name__, {name: module for module, some in _PLACES.items() for name in some})
