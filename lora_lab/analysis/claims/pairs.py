"""Comparisons of two settings, paired over seeds and everything else that was searched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from lora_lab.analysis.claims.evidence import Evidence, Side, aligned, paired
from lora_lab.analysis.grouping import higher_is_better
from lora_lab.analysis.verdicts import Verdict, better, not_better, same_within
from lora_lab.errors import SpecError


@dataclass(frozen=True)
class Better:
    """``good`` has a better ``metric`` than ``bad``, by ``smallest`` to be worth claiming."""

    good: Side
    bad: Side
    metric: str = "eval_loss"
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Paired t test."""
        good, bad = paired(self.good, self.bad, evidence, self.metric)
        return better(good, bad, claim, smallest=self.smallest, direction=_direction(self.metric))


@dataclass(frozen=True)
class NotBetter:
    """``a`` is not better than ``b`` by as much as ``margin``."""

    a: Side
    b: Side
    margin: float
    metric: str = "eval_loss"

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Paired non-inferiority test of ``b``."""
        a, b = paired(self.a, self.b, evidence, self.metric)
        return not_better(a, b, claim, margin=self.margin, direction=_direction(self.metric))


@dataclass(frozen=True)
class Same:
    """``a`` and ``b`` have the same ``metric`` within ``margin``."""

    a: Side
    b: Side
    margin: float
    metric: str = "eval_loss"

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Two one-sided paired t tests."""
        return same_within(*paired(self.a, self.b, evidence, self.metric), claim, margin=self.margin)


@dataclass(frozen=True)
class GainsMore:
    """Going from ``before`` to ``after`` improves ``metric`` more than going from ``other_before`` to ``other_after``.

    An interaction: the difference of two paired differences, block by block.
    """

    after: Side
    before: Side
    other_after: Side
    other_before: Side
    metric: str = "eval_loss"
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Paired t test of the differences."""
        gain = _gains(self.before, self.after, evidence, self.metric)
        other = _gains(self.other_before, self.other_after, evidence, self.metric)
        both = aligned(gain, other)
        if both.empty:
            raise SpecError("the two differences share no seed and setting")
        gains = both["a"].tolist(), both["b"].tolist()
        found = better(*gains, claim, smallest=self.smallest, direction="maximize")
        return replace(found, test=f"{found.test}, of differences (interaction)")


@dataclass(frozen=True)
class Gains:
    """Training improves (``sign=1``) or worsens (``sign=-1``) ``metric`` against the untrained ``base``'s own."""

    side: Side
    metric: str = "eval_loss"
    base: str = "base_eval_loss"
    sign: float = 1.0
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Paired t test of trained against untrained, a pair a run. A share that is near zero cannot get worse."""
        both = aligned(self.side.values(evidence, self.metric), self.side.values(evidence, self.base))
        before = float(both["b"].mean())
        if self.sign < 0 and higher_is_better(self.metric) and before <= 2 * self.smallest:
            raise SpecError(f"{self.base} is {before:.3g}, too little to lose {self.smallest:g} of it")
        good, bad = ("a", "b") if self.sign > 0 else ("b", "a")
        found = better(
            both[good].tolist(), both[bad].tolist(), claim, smallest=self.smallest, direction=_direction(self.metric)
        )
        return replace(found, test=f"{found.test}, each run against the base model")


def _gains(before: Side, after: Side, evidence: Evidence, metric: str) -> pd.Series[float]:
    both = aligned(before.values(evidence, metric), after.values(evidence, metric))
    return (1.0 if higher_is_better(metric) else -1.0) * (both["b"] - both["a"])


def _direction(metric: str) -> str:
    return "maximize" if higher_is_better(metric) else "minimize"
