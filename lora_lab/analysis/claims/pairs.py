"""Comparisons of two settings, paired over seeds and everything else that was searched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lora_lab.analysis.claims.evidence import Evidence, Side, higher_is_better, paired
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
        common = [block for block in gain if block in other]
        if not common:
            raise SpecError("the two differences share no seed and setting")
        found = better(
            [gain[block] for block in common],
            [other[block] for block in common],
            claim,
            smallest=self.smallest,
            direction="maximize",
        )
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
        trained, untrained = self.side.values(evidence, self.metric), self.side.values(evidence, self.base)
        common = [block for block in trained.index if block in untrained.index]
        before = float(untrained[common].mean())
        if self.sign < 0 and higher_is_better(self.metric) and before <= 2 * self.smallest:
            raise SpecError(f"{self.base} is {before:.3g}, too little to lose {self.smallest:g} of it")
        good, bad = trained[common].tolist(), untrained[common].tolist()
        if self.sign < 0:
            good, bad = bad, good
        found = better(good, bad, claim, smallest=self.smallest, direction=_direction(self.metric))
        return replace(found, test=f"{found.test}, each run against the base model")


def _gains(before: Side, after: Side, evidence: Evidence, metric: str) -> dict[str, float]:
    old, new = before.values(evidence, metric), after.values(evidence, metric)
    sign = 1.0 if higher_is_better(metric) else -1.0
    common = [block for block in old.index if block in new.index]
    change = sign * (np.asarray(new[common], dtype=float) - np.asarray(old[common], dtype=float))
    return dict(zip(common, change.tolist(), strict=True))


def _direction(metric: str) -> str:
    return "maximize" if higher_is_better(metric) else "minimize"
