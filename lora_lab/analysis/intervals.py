"""How far seeds scatter, and what a mean over few of them is worth: pooled noise, intervals, paired differences.

A configuration has two to five seeds, too few to know its own spread. So the spread is pooled over the
configurations of a sweep (they share data, model and budget); where it is not the same everywhere,
:func:`uneven` says so and the reports repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05
"""Level of the tests, and of the confidence intervals as their complement."""

BOOTSTRAP_RUNS = 20
"""Runs of repeated configurations from which residuals are resampled; below, Student's t stands in."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """The standard deviation of one run about its expectation, with the degrees of freedom it was estimated with."""

    std: float
    df: int

    def half_width(self, n: float, level: float = LEVEL) -> float:
        """Half of the ``1 - level`` Student interval of a mean over ``n`` runs; NaN where nothing was repeated."""
        if n <= 0 or self.df <= 0:
            return math.nan
        return float(stats.t.ppf(1 - level / 2, self.df)) * self.std / math.sqrt(n)


def noise_of(groups: Sequence[Sequence[float]]) -> Noise | None:
    """Pooled standard deviation within ``groups`` (one list of values a configuration); ``None`` without repetition."""
    repeated = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in repeated)
    if not df:
        return None
    return Noise(math.sqrt(sum(float(np.var(group)) * len(group) for group in repeated) / df), df)


def uneven(groups: Sequence[Sequence[float]]) -> float | None:
    """p of "all configurations scatter alike" (Brown & Forsythe 1974, doi:10.2307/2285659); ``None`` below 3 seeds."""
    repeated = [np.asarray(group, dtype=float) for group in groups if len(group) > 2]
    if len(repeated) < 2 or all(np.ptp(group) == 0 for group in repeated):
        return None
    return float(stats.levene(*repeated, center="median").pvalue)


def seed_intervals(groups: Sequence[Sequence[float]], level: float = LEVEL, seed: int = 0) -> list[tuple[float, float]]:
    """Bootstrap-t confidence intervals of the mean of each group, residuals pooled over all groups.

    Every bootstrap sweep draws its residuals (blown up by ``sqrt(n / (n - 1))``) from those of all repeated groups and
    is studentised by its own pooled spread (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter
    12.5). The percentile bootstrap of two or three seeds covers 50 to 75 % where it says 95. Below
    :data:`BOOTSTRAP_RUNS` repeated runs, Student's t with the pooled spread. NaN where nothing is repeated.
    """
    means = [float(np.mean(group)) if len(group) else math.nan for group in groups]
    noise = noise_of(groups)
    if noise is None:
        return [(math.nan, math.nan)] * len(groups)
    sizes = np.array([len(group) for group in groups])
    pool = residuals(groups)
    if len(pool) < BOOTSTRAP_RUNS or noise.std == 0:
        return [(m - noise.half_width(n), m + noise.half_width(n)) for m, n in zip(means, sizes, strict=True)]
    quantiles = _studentised(pool, sizes[sizes > 0], noise.df, level, np.random.default_rng(seed))
    out = []
    for mean, n in zip(means, sizes, strict=True):
        low, high = quantiles.get(int(n), (math.nan, math.nan))
        scale = noise.std / math.sqrt(n) if n else math.nan
        out.append((mean - high * scale, mean - low * scale))
    return out


def residuals(groups: Sequence[Sequence[float]]) -> Floats:
    """Deviations of repeated runs from their group's mean, with the variance that runs have (n / (n - 1) undone)."""
    arrays = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    if not arrays:
        return np.empty(0)
    return np.concatenate([(a - a.mean()) * math.sqrt(len(a) / (len(a) - 1)) for a in arrays])


def _studentised(
    pool: Floats, sizes: NDArray[np.int64], df: int, level: float, rng: np.random.Generator
) -> dict[int, tuple[float, float]]:
    """Quantiles of the studentised mean for each group size, over bootstrap sweeps of the same design."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    total = int(sizes.sum())
    draws = int(np.clip(40_000 // len(sizes), 100, 4000))
    found: dict[int, list[Floats]] = {int(n): [] for n in np.unique(sizes)}
    for _ in range(math.ceil(draws * total / 2_000_000)):
        rows = min(draws, max(1, 2_000_000 // total))
        sample = rng.choice(pool, size=(rows, total))
        means = np.add.reduceat(sample, starts, axis=1) / sizes
        spread = np.sqrt(((sample**2).sum(axis=1) - (sizes * means**2).sum(axis=1)) / df)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = means * np.sqrt(sizes) / spread[:, None]
        for n, parts in found.items():
            parts.append(t[:, sizes == n].ravel())
    out = {}
    for n, parts in found.items():
        t = np.concatenate(parts)
        low, high = np.quantile(t[np.isfinite(t)], [level / 2, 1 - level / 2])
        out[n] = (float(low), float(high))
    return out


@dataclass(frozen=True)
class Difference:
    """A cell minus the baseline over the blocks that both have: mean, interval, p, and p after Holm's correction.

    ``p`` is two-sided; ``n`` the blocks; ``pooled`` says whether the spread came from the whole table.
    """

    mean: float
    low: float
    high: float
    p: float
    holm: float
    n: int
    pooled: bool


def paired_differences(table: pd.DataFrame, baseline: int, level: float = LEVEL) -> list[Difference | None]:
    """Each row of ``table`` (cells by blocks, NaN where a run is missing) against row ``baseline``; ``None`` for
    itself.

    A block is what a cell and the baseline share: the seed, and the values of all that the table does not show.
    In a complete table the spread is the residual of the two-way layout
    (cells + blocks), with ``(cells - 1) * (blocks - 1)`` degrees of freedom (Montgomery, Design and Analysis of
    Experiments, chapter 4.1); with missing runs it is each pair's own (``scipy.stats.ttest_rel``). p-values are
    corrected after Holm (1979). ``None`` too where fewer than two blocks are shared.
    """
    values = table.to_numpy(dtype=float)
    noise = blocked_noise(values)
    found: list[Difference | None] = []
    for i, row in enumerate(values):
        both = np.isfinite(row) & np.isfinite(values[baseline])
        if i == baseline or both.sum() < 2:
            found.append(None)
            continue
        d = row[both] - values[baseline][both]
        found.append(_difference(d, noise, level))
    corrected = holm([math.nan if d is None else d.p for d in found])
    return [None if d is None else replace(d, holm=p) for d, p in zip(found, corrected, strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction (1979); NaN stays NaN and does not count.

    ``statsmodels.stats.multitest.multipletests`` gives the same, and collects all garbage of the process at each call.
    """
    p = np.asarray(ps, dtype=float)
    order = np.argsort(np.where(np.isnan(p), np.inf, p), kind="stable")[: int((~np.isnan(p)).sum())]
    out = np.full(len(p), math.nan)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return out.tolist()


def blocked_noise(values: Floats) -> Noise | None:
    """Residual spread of a complete cells-by-blocks table after both means; ``None`` where it is not complete."""
    a, b = values.shape
    if a < 2 or b < 2 or not np.isfinite(values).all():
        return None
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + values.mean()
    df = (a - 1) * (b - 1)
    return Noise(math.sqrt(float((rest**2).sum()) / df), df)


def _difference(d: Floats, noise: Noise | None, level: float) -> Difference:
    mean, n = float(d.mean()), len(d)
    spread = math.sqrt(2) * noise.std if noise is not None else float(d.std(ddof=1))
    df = noise.df if noise is not None else n - 1
    error = spread / math.sqrt(n)
    half = float(stats.t.ppf(1 - level / 2, df)) * error
    if error <= 1e-12 * max(abs(mean), 1e-300):  # values repeat exactly: a difference is certain, or there is none
        p = 1.0 if mean == 0 else 0.0
    else:
        p = 2 * float(stats.t.sf(abs(mean) / error, df))
    return Difference(mean, mean - half, mean + half, p, p, n, noise is not None)


def blocks_table(frame: pd.DataFrame, metric: str, cells: Sequence[str], blocks: Sequence[str]) -> pd.DataFrame:
    """Values of the completed runs as cells by blocks: one row a point of ``cells``, one column a point of ``blocks``.

    Runs that share cell and block are averaged.
    """
    done = frame[(frame["outcome"] == "COMPLETED") & frame[metric].notna()]
    if not cells:
        done, cells = done.assign(__cell=0), ["__cell"]
    whole = done.astype(dict.fromkeys((*cells, *blocks), "object")).fillna(dict.fromkeys((*cells, *blocks), "null"))
    if whole.empty:
        return pd.DataFrame()
    grouped = whole.groupby([*cells, *blocks], sort=False, dropna=False)[metric].mean()
    if not blocks:
        return grouped.to_frame()
    return grouped.unstack(list(range(len(cells), len(cells) + len(blocks))))
