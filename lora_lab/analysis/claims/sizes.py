"""Claims about bytes and parameters: numbers without luck in them, so the test is arithmetic, not statistics."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from lora_lab.analysis.claims.evidence import Evidence
from lora_lab.analysis.verdicts import Status, Verdict, within_factor
from lora_lab.errors import SpecError


@dataclass(frozen=True)
class Near:
    """The size of ``label`` (less that of ``minus``, or over that of ``over``) is ``claimed``, within ``tolerance``.

    ``of`` is ``planned``, ``measured`` or ``parameters``. Without ``claimed``, the article's own number of that label.
    """

    label: str
    claimed: float | None = None
    tolerance: float = 0.1
    minus: str | None = None
    over: str | None = None
    of: str = "planned"

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Is the ratio within the tolerance?"""
        found = _amount(evidence, self.label, self.of)
        if self.minus is not None:
            found -= _amount(evidence, self.minus, self.of)
        if self.over is not None:
            found /= _amount(evidence, self.over, self.of)
        claimed = evidence.size(self.label).article if self.claimed is None else self.claimed
        return within_factor(found, claimed, claim, tolerance=self.tolerance)


@dataclass(frozen=True)
class Fits:
    """``label`` takes no more than ``limit`` bytes."""

    label: str
    limit: float

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Compare the two."""
        share = _amount(evidence, self.label, "planned") / self.limit
        status = Status.SUPPORTED if share <= 1 else Status.CONTRADICTED
        return _exact(claim, status, f"planned peak over {self.limit / 1e9:g} GB, at most 1", share, 1.0)


@dataclass(frozen=True)
class Saves:
    """``small`` takes less than ``large`` by a share of ``large`` between ``least`` and ``most``."""

    small: str
    large: str
    least: float = 0.0
    most: float = 1.0
    of: str = "planned"

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Compute the share."""
        saved = 1 - _amount(evidence, self.small, self.of) / _amount(evidence, self.large, self.of)
        status = Status.SUPPORTED if self.least <= saved <= self.most else Status.CONTRADICTED
        test = f"share saved, {self.of}, between {self.least:g} and {self.most:g}"
        return _exact(claim, status, test, saved, self.least)


@dataclass(frozen=True)
class Grows:
    """The sizes of ``labels`` rise strictly in that order, by the share ``least`` from the first to the last."""

    labels: tuple[str, ...]
    least: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Compare neighbours, and the ends."""
        found = [_amount(evidence, label, "planned") for label in self.labels]
        growth = found[-1] / found[0] - 1
        rising = all(b > a for a, b in itertools.pairwise(found))
        status = Status.SUPPORTED if rising and growth >= self.least else Status.CONTRADICTED
        test = f"strictly rising over {len(found)} sizes, by {100 * self.least:g} % or more in all"
        return _exact(claim, status, test, growth, self.least)


def _exact(claim: str, status: Status, test: str, effect: float, smallest: float) -> Verdict:
    return Verdict(claim, status, test, effect, effect, effect, math.nan, smallest, math.nan, 1)


def _amount(evidence: Evidence, label: str, of: str) -> float:
    found = float(getattr(evidence.size(label), of))
    if not found > 0:
        raise SpecError(f"{label!r} has no {of} size")
    return found
