"""What claims are judged by: results frames by sweep, sizes by label, and the sides of a comparison taken from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pandas as pd

from lora_lab.analysis.gap import with_gap
from lora_lab.analysis.grouping import check_metric, check_path, higher_is_better, plain_value, searched_paths
from lora_lab.analysis.intervals import LEVEL, holm
from lora_lab.analysis.naming import point_name, value_name
from lora_lab.analysis.verdicts import Status, Verdict
from lora_lab.errors import SpecError
from lora_lab.spec.tree import Pairs, pairs

NOTHING: Pairs = pairs()


@dataclass(frozen=True)
class Size:
    """Bytes of one configuration: as planned, as measured where they were, and as the article has them.

    ``parameters`` are the trainable ones; ``measured`` is NaN where nothing was measured.
    """

    label: str
    planned: float
    parameters: int = 0
    measured: float = math.nan
    article: float = math.nan


@dataclass(frozen=True)
class Evidence:
    """Results frames by the name of the sweep, and sizes by label."""

    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    sizes: Mapping[str, Size] = field(default_factory=dict)

    def frame(self, sweep: str) -> pd.DataFrame:
        """The frame of a sweep with ``gap`` and ``rise`` (:func:`~lora_lab.analysis.gap.with_gap`).

        Raises:
            SpecError: that sweep has no results yet.
        """
        if sweep not in self.frames:
            raise SpecError(f"sweep {sweep!r} has no results yet")
        return with_gap(self.frames[sweep])

    def size(self, label: str) -> Size:
        """The size of that label.

        Raises:
            SpecError: it was not planned.
        """
        if label not in self.sizes:
            raise SpecError(f"{label!r} was not planned")
        return self.sizes[label]


class Test(Protocol):
    """One kind of test, with what it looks at."""

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Judge ``claim``; raises ``SpecError`` where the evidence is not enough to test at all."""


@dataclass(frozen=True)
class Claim:
    """A sentence that can be true or false here, and the test that decides."""

    says: str
    test: Test


def judge(claims: Sequence[Claim], evidence: Evidence) -> list[Verdict]:
    """A verdict for each claim. What cannot be tested yet is inconclusive, and says why in place of the test.

    The tests of one call share their risk: a claim stays *supported* only if its p-value is below 5 % after Holm's
    correction over all of them.
    """
    found = [_judged(claim, evidence) for claim in claims]
    corrected = holm([verdict.p for verdict in found])
    return [_corrected(verdict, p, len(found)) for verdict, p in zip(found, corrected, strict=True)]


def _corrected(verdict: Verdict, p: float, claims: int) -> Verdict:
    if verdict.status is not Status.SUPPORTED or not p >= LEVEL:
        return verdict
    test = f"{verdict.test}; after Holm's correction over {claims} claims p = {p:.2g}"
    return replace(verdict, status=Status.INCONCLUSIVE, test=test)


def _judged(claim: Claim, evidence: Evidence) -> Verdict:
    try:
        return claim.test(claim.says, evidence)
    except SpecError as error:
        nan = math.nan
        why = str(error).removeprefix(f"{claim.says}: ")
        return Verdict(claim.says, Status.INCONCLUSIVE, f"not testable: {why}", nan, nan, nan, nan, nan, nan, 0)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the runs of ``sweep`` at ``point``, a value for each block.

    A block is the seed and everything else that was searched. Paths in ``tuned`` are chosen for each side by the best
    mean over blocks, as one would choose them in earnest; both sides of a fair comparison tune equally.
    """

    sweep: str
    point: Pairs = NOTHING
    tuned: tuple[str, ...] = ()

    def values(self, evidence: Evidence, metric: str = "eval_loss") -> pd.Series[float]:
        """``metric`` of the completed runs, indexed by block.

        Raises:
            SpecError: an unknown metric or path, or no completed run.
        """
        frame = evidence.frame(self.sweep)
        check_metric(frame, metric)
        wanted = dict(self.point)
        for path in (*wanted, *self.tuned):
            check_path(frame, path)
        here = frame[(frame["outcome"] == "COMPLETED") & frame[metric].notna()]
        for path, value in wanted.items():
            here = here[[_said(v) == _said(value) for v in here[path]]]
        if here.empty:
            raise SpecError(f"{self.sweep} has no completed run at {point_name(wanted) or 'its base settings'}")
        if self.tuned:
            means = here.assign(_at=_labels(here, self.tuned)).groupby("_at")[metric].agg(["mean", "count"])
            whole = means[means["count"] == means["count"].max()]["mean"]
            chosen = whole.idxmax() if higher_is_better(metric) else whole.idxmin()
            here = here[[label == chosen for label in _labels(here, self.tuned)]]
        rest = [path for path in searched_paths(frame) if path not in (*wanted, *self.tuned)]
        return here.assign(_block=_labels(here, [*rest, "seed"])).groupby("_block", sort=False)[metric].mean()


def paired(a: Side, b: Side, evidence: Evidence, metric: str) -> tuple[list[float], list[float]]:
    """The values of both sides at the blocks they share.

    Raises:
        SpecError: they share none.
    """
    found = aligned(a.values(evidence, metric), b.values(evidence, metric))
    if found.empty:
        raise SpecError(f"{a.sweep} and {b.sweep} share no seed and setting to be paired over")
    return found["a"].tolist(), found["b"].tolist()


def aligned(a: pd.Series[float], b: pd.Series[float]) -> pd.DataFrame:
    """Columns ``a`` and ``b``: two series of values by block, at the blocks that they share."""
    return pd.DataFrame({"a": a, "b": b}).reindex([block for block in a.index if block in b.index])


def _labels(frame: pd.DataFrame, paths: Sequence[str]) -> list[str]:
    columns = [[f"{path}={_said(value)}" for value in frame[path]] for path in paths]
    return [" ".join(row) for row in zip(*columns, strict=True)] if columns else [""] * len(frame)


def _said(value: Any) -> str:
    value = plain_value(value)
    return value_name(tuple(value) if isinstance(value, (list, Pairs)) else value)
