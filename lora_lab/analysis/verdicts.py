"""Claims put to the test: supported, contradicted or inconclusive, with the test and its power stated.

A claim names the smallest effect that would still be worth claiming (``smallest``; the unit is the metric's). It is

- *supported* where the 95 % interval of the effect lies wholly on the claimed side;
- *contradicted* where the interval lies wholly below the smallest effect worth claiming: the effect is absent,
opposite, or too
  small to matter;
- *inconclusive* where the interval holds both, and then the power says whether the data could have told.

So "no significant difference" never contradicts a claim by itself (Lakens 2017, doi:10.1177/1948550617697177).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lora_lab.analysis.gap import slope
from lora_lab.analysis.grouping import axis_values, check_path, objective_of, plain_value, searched_paths
from lora_lab.analysis.intervals import LEVEL, blocks_table, paired_differences
from lora_lab.analysis.naming import value_name
from lora_lab.analysis.power import inferiority_power, normal_power, paired_power, pairs_needed, sameness_power
from lora_lab.errors import SpecError


class Status(StrEnum):
    """What the data say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Verdict:
    """A claim, what the data say of it, and by which test.

    ``effect`` is positive in the direction of the claim, ``low`` to ``high`` its interval, ``smallest`` the effect the
    claim needs, ``power`` the chance that this test supports the claim if the effect is ``smallest`` (NaN where it has
    no meaning), ``n`` the pairs or runs it rests on, ``needed`` the pairs that would give a power of 80 % if they
    scatter as these do (``None`` of other tests, and where it is more than 10,000).
    """

    claim: str
    status: Status
    test: str
    effect: float
    low: float
    high: float
    p: float
    smallest: float
    power: float
    n: int
    needed: int | None = None

    @property
    def sentence(self) -> str:
        """The verdict with its evidence in one line; a number without luck in it has no interval."""
        if self.n == 0:
            return f"{self.claim}: {self.status} ({self.test})."
        if math.isnan(self.p) and self.low == self.high:
            return f"{self.claim}: {self.status}. It is {self.effect:.3g} ({self.test})."
        power = "" if math.isnan(self.power) else f"; power {self.power:.2f} for {self.smallest:.3g}"
        if self.status is Status.INCONCLUSIVE and self.needed is not None and self.needed > self.n:
            power += f", 0.80 takes {self.needed:,} pairs"
        p = "" if math.isnan(self.p) else f", p = {self.p:.2g}"
        return (
            f"{self.claim}: {self.status}. Effect {self.effect:.3g}, 95 % CI {self.low:.3g} to {self.high:.3g}{p} "
            f"({self.test}, n = {self.n}{power})."
        )


def better(
    good: Sequence[float], bad: Sequence[float], claim: str, *, smallest: float = 0.0, direction: str = "minimize"
) -> Verdict:
    """ "The first are better than the second", paired in the given order (equal seeds, equal other settings).

    Paired t test (``scipy.stats.ttest_rel``); NaN pairs are left out.

    Raises:
        SpecError: fewer than two pairs, or a negative ``smallest``.
    """
    _refuse_negative(claim, smallest)
    a, b = np.asarray(good, dtype=float), np.asarray(bad, dtype=float)
    if a.shape != b.shape:
        raise SpecError(f"{claim}: {len(a)} and {len(b)} runs cannot be paired; give the same blocks for both.")
    both = np.isfinite(a) & np.isfinite(b)
    gain = (b - a if direction == "minimize" else a - b)[both]
    if len(gain) < 2:
        raise SpecError(
            f"{claim}: {len(gain)} pairs of completed runs; a paired test needs two. Repeat with more seeds."
        )
    if np.ptp(gain) == 0:
        mean = float(gain.mean())
        return verdict_of(
            claim, "exact difference of runs that repeat", mean, mean, mean, math.nan, smallest, len(gain), math.nan
        )
    test = stats.ttest_rel(gain, np.zeros_like(gain))
    low, high = test.confidence_interval(1 - LEVEL)
    std = float(gain.std(ddof=1))
    power, needed = paired_power(smallest, std, len(gain)), pairs_needed(partial(paired_power, smallest, std))
    found = (float(gain.mean()), float(low), float(high), float(test.pvalue))
    return verdict_of(claim, "paired t test, two-sided 5 %", *found, smallest, len(gain), power, needed)


def better_at(
    frame: pd.DataFrame,
    good: Mapping[str, Any],
    bad: Mapping[str, Any],
    claim: str,
    *,
    metric: str | None = None,
    smallest: float = 0.0,
) -> Verdict:
    """:func:`better` of two settings of a sweep, paired over the seed and everything else that was searched.

    Raises:
        SpecError: a path that was not searched, or fewer than two pairs.
    """
    metric, direction = objective_of(frame, metric, None)
    table = _cells(frame, list(good), metric)
    wanted = [tuple(_name(point[path]) for path in good) for point in (good, bad)]
    for point in wanted:
        if point not in table.index:
            raise SpecError(f"{claim}: no completed run at {dict(zip(good, point, strict=True))}.")
    rows = dict(zip(table.index, table.to_numpy(dtype=float).tolist(), strict=True))
    return better(rows[wanted[0]], rows[wanted[1]], claim, smallest=smallest, direction=direction)


def best_at(
    frame: pd.DataFrame, path: str, value: Any, claim: str, *, metric: str | None = None, smallest: float = 0.0
) -> Verdict:
    """ "``value`` is the best along ``path``": it must beat every other value, all p-values Holm-corrected.

    Supported where it beats each of them; contradicted where one of them beats it by more than ``smallest``, or is
    shown to be less than ``smallest`` worse; the effect is the margin over the strongest rival.

    Raises:
        SpecError: a path that was not searched, or a value without a completed run.
    """
    _refuse_negative(claim, smallest)
    metric, direction = objective_of(frame, metric, None)
    table = _cells(frame, [path], metric)
    name = (_name(value),)
    if name not in table.index or len(table) < 2:
        known = ", ".join(value_name(v) for v in axis_values(frame, path))
        raise SpecError(f"{claim}: {path}={value_name(value)} cannot be compared. Values with runs: {known}.")
    at = list(table.index).index(name)
    sign = 1.0 if direction == "minimize" else -1.0
    tests = [d for d in paired_differences(sign * table, at) if d is not None]
    strict = [d for d in paired_differences(sign * table, at, LEVEL / (len(table) - 1)) if d is not None]
    if not tests:
        raise SpecError(f"{claim}: no rival shares two seeds with {path}={value_name(value)}. Repeat with more seeds.")
    rival = min(tests, key=lambda d: d.mean)
    low, high = min(d.low for d in tests), min(d.high for d in strict)
    power = normal_power(smallest, (rival.high - rival.low) / 2, LEVEL)
    how = f"paired t tests against {len(tests)} rivals, each at 5 % to support, at 5 % together to contradict"
    return verdict_of(claim, how, rival.mean, low, high, max(d.p for d in tests), smallest, rival.n, power)


def not_better(
    a: Sequence[float], b: Sequence[float], claim: str, *, margin: float, direction: str = "minimize"
) -> Verdict:
    """ "The first are not better than the second", by ``margin`` at least: the second are not inferior.

    ``effect`` is by how much the first *are* better. Supported where its 95 % interval lies below ``margin``,
    contradicted where it lies above zero and reaches ``margin``. The power is that of support if there is no
    difference. NaN pairs are left out.

    Raises:
        SpecError: a margin that is not positive, or fewer than two pairs.
    """
    if not margin > 0:
        raise SpecError(f"{claim}: margin must be positive, got {margin!r}: equality cannot be shown by a test.")
    found = better(a, b, claim, smallest=margin, direction=direction)
    turned = {Status.SUPPORTED: Status.CONTRADICTED, Status.CONTRADICTED: Status.SUPPORTED}
    half, df = found.high - found.effect, found.n - 1
    t = float(stats.t.ppf(1 - LEVEL / 2, df))
    error = half / t
    std = error * math.sqrt(found.n)
    p = float(stats.t.sf((margin - found.effect) / error, df)) if error > 0 else float(found.effect >= margin)
    power, needed = inferiority_power(margin, std, found.n), pairs_needed(partial(inferiority_power, margin, std))
    return Verdict(
        claim,
        turned.get(found.status, Status.INCONCLUSIVE),
        "paired non-inferiority t test, one-sided 2.5 %",
        *(found.effect, found.low, found.high, p, margin, power, found.n, needed),
    )


def same_within(a: Sequence[float], b: Sequence[float], claim: str, *, margin: float) -> Verdict:
    """ "It makes no difference": the paired difference lies within ``±margin`` (two one-sided tests, TOST).

    Supported where the 90 % interval is inside the margin, contradicted where the 95 % interval is outside it. The
    power is that of showing sameness if the true difference is zero (Schuirmann 1987, doi:10.1007/BF01068419).

    Raises:
        SpecError: a margin that is not positive, or fewer than two pairs.
    """
    if not margin > 0:
        raise SpecError(f"{claim}: margin must be positive, got {margin!r}: exact equality cannot be shown by a test.")
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    d = d[np.isfinite(d)]
    if len(d) < 2:
        raise SpecError(f"{claim}: {len(d)} pairs of completed runs; a paired test needs two. Repeat with more seeds.")
    mean, n = float(d.mean()), len(d)
    std = float(d.std(ddof=1))
    error = std / math.sqrt(n)
    wide = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    narrow = float(stats.t.ppf(1 - LEVEL, n - 1)) * error
    status = Status.INCONCLUSIVE
    if abs(mean) + narrow < margin:
        status = Status.SUPPORTED
    elif abs(mean) - wide > margin:
        status = Status.CONTRADICTED
    p = float(stats.t.sf((margin - abs(mean)) / error, n - 1)) if error > 0 else float(abs(mean) >= margin)
    power, needed = sameness_power(margin, std, n), pairs_needed(partial(sameness_power, margin, std))
    test = "two one-sided paired t tests (TOST), 5 % each"
    return Verdict(claim, status, test, mean, mean - wide, mean + wide, p, margin, power, n, needed)


def rises_along(
    frame: pd.DataFrame, path: str, claim: str, *, metric: str, sign: float = 1.0, smallest: float = 0.0
) -> Verdict:
    """ "``metric`` grows along ``path``" (``sign=-1``: falls), by the slope within blocks of equal seed and other
    settings.

    ``smallest`` is per doubling on an axis that spans more than a factor of four, else per unit.

    Raises:
        SpecError: a path that was not searched or is not numeric, or too few runs.
    """
    _refuse_negative(claim, smallest)
    check_path(frame, path)
    found = slope(frame, path, metric)
    if found is None:
        raise SpecError(f"{claim}: no slope along {path}: it is not numeric, or there are too few runs at its values.")
    low, high = sorted((sign * found.low, sign * found.high))
    test = f"least-squares slope {found.per} within blocks, t test, two-sided 5 %"
    return verdict_of(claim, test, sign * found.value, low, high, found.p, smallest, found.df + 2)


def varies_less_than(values: Sequence[float], claim: str, *, cv: float) -> Verdict:
    """ "Seeds hardly matter": the coefficient of variation of the runs is below ``cv``.

    By the chi-square interval of the standard deviation (normal runs; the mean taken as known): supported where all
    of it is below, contradicted where all of it is above. ``effect`` is the CV; power is that of supporting a true CV
    of half the limit.

    Raises:
        SpecError: fewer than two values, or a mean of zero.
    """
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    if len(x) < 2 or x.mean() == 0:
        raise SpecError(
            f"{claim}: {len(x)} runs with mean {x.mean() if len(x) else math.nan:g} have no CV; give two seeds or more."
        )
    df = len(x) - 1
    found = float(x.std(ddof=1) / abs(x.mean()))
    low = found * math.sqrt(df / float(stats.chi2.ppf(1 - LEVEL / 2, df)))
    high = found * math.sqrt(df / float(stats.chi2.ppf(LEVEL / 2, df)))
    status = Status.SUPPORTED if high < cv else Status.CONTRADICTED if low > cv else Status.INCONCLUSIVE
    power = float(stats.chi2.cdf(4 * stats.chi2.ppf(LEVEL / 2, df), df))
    p = float(stats.chi2.cdf(df * (found / cv) ** 2, df))
    return Verdict(
        claim, status, "chi-square interval of the standard deviation", found, low, high, p, cv, power, len(x)
    )


def within_factor(measured: float, claimed: float, claim: str, *, tolerance: float) -> Verdict:
    """ "It is this much": a number without luck in it (bytes, parameters) within ``tolerance`` (a fraction) of the
    claimed.

    Raises:
        SpecError: a claimed value of zero.
    """
    if claimed == 0:
        raise SpecError(f"{claim}: a claim of zero has no relative tolerance.")
    ratio = measured / claimed
    status = Status.SUPPORTED if abs(ratio - 1) <= tolerance else Status.CONTRADICTED
    test = f"measured over claimed, within {100 * tolerance:g} %"
    return Verdict(claim, status, test, ratio, ratio, ratio, math.nan, tolerance, math.nan, 1)


def verdict_of(
    claim: str,
    test: str,
    effect: float,
    low: float,
    high: float,
    p: float,
    smallest: float,
    n: int,
    power: float | None = None,
    needed: int | None = None,
) -> Verdict:
    """The verdict on "the effect is at least ``smallest``", an effect with a 95 % interval from ``low`` to ``high``.

    Without ``power`` it is that of an interval as wide as this one.
    """
    if power is None:
        power = normal_power(smallest, (high - low) / 2, LEVEL)
    status = Status.INCONCLUSIVE
    if low > 0 and high >= smallest:
        status = Status.SUPPORTED
    elif high < smallest or high <= 0:
        status = Status.CONTRADICTED
    return Verdict(claim, status, test, effect, low, high, p, smallest, power, n, needed)


def _cells(frame: pd.DataFrame, paths: Sequence[str], metric: str) -> pd.DataFrame:
    """Values by cell (tuples of value names) and block."""
    for path in paths:
        check_path(frame, path)
    rest = [path for path in (*searched_paths(frame), "seed") if path not in paths]
    table = blocks_table(frame, metric, paths, rest)
    keys = [key if isinstance(key, tuple) and len(paths) > 1 else (key,) for key in table.index]
    table.index = pd.Index([tuple(map(_name, key)) for key in keys], tupleize_cols=False)
    return table


def _name(value: Any) -> str:
    value = plain_value(value)
    return value_name(tuple(value) if isinstance(value, list) else value)


def _refuse_negative(claim: str, smallest: float) -> None:
    if not smallest >= 0:
        raise SpecError(f"{claim}: smallest must be zero or more, got {smallest!r}; turn the claim round instead.")
