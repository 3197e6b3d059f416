"""How far luck decides: the spread over seeds against the spread over configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lora_lab.analysis.grouping import (
    Configuration,
    best_of,
    configurations,
    objective_of,
    plain_value,
    repeats_of,
    searched_paths,
)
from lora_lab.analysis.intervals import LEVEL, seed_intervals, uneven
from lora_lab.analysis.naming import path_name, point_name, value_name
from lora_lab.analysis.rendering import Grid, digits_for

GOOD_RELIABILITY = 0.75
"""From this ICC on reliability is called good (Koo & Li 2016, doi:10.1016/j.jcm.2016.02.012)."""

MOST_GROUPS = 2000
"""Configurations up to which the test of equal spread is made: it has one array a configuration."""

_MEASURES = ("n", "mean", "std", "cv", "minimum", "maximum", "low", "high")
_HEADS = ("mean", "std", "CV", "min", "max", "95 % CI")


@dataclass(frozen=True)
class ICC:
    """ICC(1), the one-way random-effects intraclass correlation of single measurements.

    The share of the variance of single runs that configurations explain: near 1, a seed changes nothing; near 0
    (or below), configurations differ no more than seeds do. ``low`` and ``high`` are its 95 % confidence interval,
    ``f`` and ``p`` the F test of "all configurations are equal". ``within`` and ``between`` are the standard deviations
    over seeds and over configurations (variance components; ``between`` is 0 where its estimate is negative),
    ``k`` seeds a configuration (for unequal numbers the usual ``k0``, with which ``low`` and ``high`` are approximate).

    Shrout & Fleiss (1979), Intraclass correlations: uses in assessing rater reliability,
    doi:10.1037/0033-2909.86.2.420.
    """

    value: float
    low: float
    high: float
    f: float
    p: float
    within: float
    between: float
    k: float
    groups: int
    runs: int


@dataclass(frozen=True)
class Consistency:
    """The consistency of a sweep: one row a configuration, and what it means in sentences."""

    metric: str
    direction: str
    table: pd.DataFrame
    icc: ICC | None
    tied: int | None
    sentences: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """All sentences, as one paragraph."""
        return " ".join(self.sentences)

    def grid(self, top: int = 20) -> Grid:
        """The ``top`` configurations with their mean, std, CV and range over seeds."""
        paths = [name for name in self.table.columns if name not in _MEASURES]
        stds = self.table["std"][self.table["std"] > 0]
        digits = digits_for(float(stds.median()) if len(stds) else math.nan, float(self.table["mean"].abs().max()))
        rows = []
        for record in self.table.head(top).to_dict("records"):
            values = [value_name(plain_value(record[path])) for path in paths] or ["the base settings"]
            numbers = [_fixed(record[name], digits) for name in ("mean", "std", "minimum", "maximum", "low", "high")]
            cv = "–" if math.isnan(record["cv"]) else f"{100 * record['cv']:.2f} %"
            interval = "–" if numbers[4] == "–" else f"{numbers[4]} to {numbers[5]}"
            rows.append((*values, str(record["n"]), numbers[0], numbers[1], cv, numbers[2], numbers[3], interval))
        left = [f"the best {top} of {len(self.table)} configurations"] if len(self.table) > top else []
        return Grid(
            title=(f"{self.metric} over seeds",),
            head=(*([path_name(path, paths) for path in paths] or ["configuration"]), "n", *_HEADS),
            rows=tuple(rows),
            labels=max(1, len(paths)),
            notes=tuple(left),
        )

    def to_tree(self) -> dict[str, Any]:
        """For JSON: the sentences and the numbers behind them."""
        icc = None
        if self.icc is not None:
            icc = {name: _number(getattr(self.icc, name)) for name in self.icc.__dataclass_fields__}
        return {"metric": self.metric, "sentence": self.sentence, "icc": icc, "tied_with_best": self.tied}


def consistency(frame: pd.DataFrame, metric: str | None = None, direction: str | None = None) -> Consistency:
    """Mean, std, CV, minimum and maximum over seeds of every configuration, and seed variance against the rest.

    ``table`` has one column per searched path, then ``n mean std cv minimum maximum low high``, best mean first;
    ``low`` to ``high`` is the bootstrap interval of the mean (:func:`~lora_lab.analysis.intervals.seed_intervals`).
    ``tied`` counts the configurations (the best included) whose mean is within seed noise of the best one's: a
    difference below ``t(0.975, N - a) * s_within * sqrt(1/n_i + 1/n_best)`` (Fisher's least significant difference).

    Raises:
        SpecError: an unknown metric or direction.
    """
    metric, direction = objective_of(frame, metric, direction)
    found = [c for c in configurations(frame.drop_duplicates("key"), metric) if c.n]
    found.sort(key=lambda c: c.mean, reverse=direction == "maximize")
    groups = [c.values for c in found]
    table = pd.DataFrame(
        [
            dict(c.point)
            | {"n": c.n, "mean": c.mean, "std": c.std, "cv": c.cv, "minimum": c.minimum, "maximum": c.maximum}
            | {"low": low, "high": high}
            for c, (low, high) in zip(found, seed_intervals(groups), strict=True)
        ],
        columns=[*searched_paths(frame), *_MEASURES],
    )
    icc = icc1(groups)
    best = best_of(found, direction, repeats_of(frame))
    tied = _tied(found, best, icc)
    said = _sentences(found, best, icc, tied)
    p = uneven(groups) if len(groups) <= MOST_GROUPS else None
    if p is not None and p < LEVEL:
        said.append(
            f"Seeds do not scatter alike everywhere (Brown-Forsythe p = {p:.2g}): pooled intervals are too wide for "
            "calm configurations and too narrow for restless ones."
        )
    return Consistency(metric, direction, table, icc, tied, tuple(said))


def icc1(groups: Sequence[Sequence[float]]) -> ICC | None:
    """ICC(1) of ``groups`` (one list of values a configuration), with its F test and 95 % confidence interval.

    ``None`` where it is not defined: fewer than two groups, or no group with two values.
    """
    groups = [list(group) for group in groups if len(group)]
    a, runs = len(groups), sum(len(group) for group in groups)
    if a < 2 or runs <= a:
        return None
    k = (runs - sum(len(group) ** 2 for group in groups) / runs) / (a - 1)
    within = sum(float(np.var(group)) * len(group) for group in groups) / (runs - a)
    total = float(np.var([v for group in groups for v in group])) * runs
    between = max(total - within * (runs - a), 0.0) / (a - 1)
    if all(max(group) == min(group) for group in groups):
        differ = len({group[0] for group in groups}) > 1
        value, f, p = (1.0, math.inf, 0.0) if differ else (math.nan, math.nan, math.nan)
        return ICC(value, value, value, f, p, 0.0, math.sqrt(between / k) if differ else 0.0, k, a, runs)
    f = between / within
    p = float(stats.f.sf(f, a - 1, runs - a))
    low = f / float(stats.f.ppf(1 - LEVEL / 2, a - 1, runs - a))
    high = f * float(stats.f.ppf(1 - LEVEL / 2, runs - a, a - 1))
    return ICC(
        value=(f - 1) / (f + k - 1),
        low=(low - 1) / (low + k - 1),
        high=(high - 1) / (high + k - 1),
        f=f,
        p=p,
        within=math.sqrt(within),
        between=math.sqrt(max(between - within, 0.0) / k),
        k=k,
        groups=a,
        runs=runs,
    )


def spread(value: float) -> str:
    """A standard deviation with two significant digits: ``0.0031``, ``0.12``, ``14``."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "unknown"
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


def _tied(found: Sequence[Configuration], best: Configuration | None, icc: ICC | None) -> int | None:
    if best is None or icc is None:
        return None
    t = float(stats.t.ppf(1 - LEVEL / 2, icc.runs - icc.groups))
    return sum(c is best or abs(c.mean - best.mean) <= t * icc.within * math.sqrt(1 / c.n + 1 / best.n) for c in found)


def _sentences(
    found: Sequence[Configuration], best: Configuration | None, icc: ICC | None, tied: int | None
) -> list[str]:
    if best is None:
        return ["No run has completed: nothing can be said about consistency."]
    if len(found) == 1:
        if best.n < 2:
            return ["One run: neither seeds nor configurations can be compared."]
        return [f"One configuration: its {best.n} seeds differ by ±{spread(best.std)} (CV {100 * best.cv:.2g} %)."]
    if icc is None:
        between = spread(float(np.std([c.mean for c in found], ddof=1)))
        return [
            f"Configurations differ by ±{between}, but each has one seed: how much of that is luck is not known. "
            "Repeat with sweep.repeats=3 to know."
        ]
    if not math.isfinite(icc.value):
        return ["All runs gave the same value: the configurations make no difference here."]
    if icc.p >= LEVEL:
        verdict = "the ranking may be luck alone"
    elif icc.value >= GOOD_RELIABILITY:
        verdict = "the ranking is not decided by luck"
    else:
        verdict = "the ranking is partly decided by luck"
    said = [
        f"Seeds differ by ±{spread(icc.within)}, configurations by ±{spread(icc.between)} "
        f"(ICC(1) {icc.value:.2f}, 95 % CI {icc.low:.2f} to {icc.high:.2f}): {verdict}."
    ]
    name = point_name(dict(best.point))
    if tied == 1:
        said.append(f"The best one ({name}) is ahead of every other by more than seeds explain.")
    elif tied == len(found):
        said.append(f"No configuration is worse than the best one ({name}) by more than seeds explain.")
    elif tied is not None:
        others = f"{tied - 1} of the {len(found) - 1} others {'is' if tied == 2 else 'are'}"
        said.append(f"{others} within seed noise of the best one ({name}).")
    return said


def _fixed(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
