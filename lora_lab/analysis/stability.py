"""Whether another seed would have named the same winner: Kendall's W, rank stability, seeds that a difference needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lora_lab.analysis.grouping import configurations, objective_of, searched_paths
from lora_lab.analysis.intervals import Floats, Noise, blocks_table, noise_of, residuals
from lora_lab.analysis.power import MOST_SEEDS, seeds_needed, smallest_difference
from lora_lab.analysis.reliability import icc1

DRAWS = 4000
SEEDS = (1, 2, 3, 5, 8, 12, 20)
"""Numbers of seeds for which rank stability is said."""
CANDIDATES = 300
"""Configurations, those with the best means, among which a winner is looked for."""


@dataclass(frozen=True)
class Concordance:
    """Kendall's W of ``seeds`` that rank ``configurations``: 1 when all seeds order them alike, about 0 by chance."""

    w: float
    chi2: float
    p: float
    configurations: int
    seeds: int


@dataclass(frozen=True)
class Stability:
    """With ``seeds`` seeds each: the chance that the best mean is the best configuration, and the mean loss if not."""

    seeds: int
    right: float
    regret: float


def kendall_w(table: pd.DataFrame | Sequence[Sequence[float]]) -> Concordance | None:
    """Kendall's W of a configurations-by-seeds table, ties corrected, with Friedman's test.

    Rows with a missing seed are left out. ``None`` below two seeds or three configurations (Friedman's test needs
    three). W = chi2 / (seeds * (configurations - 1)): Kendall & Babington Smith (1939), doi:10.1214/aoms/1177732186;
    Siegel & Castellan (1988), chapter 9.
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2:
        return None
    values = values[np.isfinite(values).all(axis=1)]
    a, k = values.shape
    if a < 3 or k < 2 or (values == values[:1]).all():
        return None
    chi2, p = stats.friedmanchisquare(*values)
    return Concordance(float(chi2) / (k * (a - 1)), float(chi2), float(p), a, k)


def concordance(frame: pd.DataFrame, metric: str | None = None) -> Concordance | None:
    """:func:`kendall_w` of the seeds of a sweep over its configurations."""
    metric, _ = objective_of(frame, metric, None)
    table = blocks_table(frame, metric, searched_paths(frame), ["seed"])
    return kendall_w(table) if not table.empty else None


def rank_stability(
    groups: Sequence[Sequence[float]], direction: str = "minimize", seeds: Sequence[int] = SEEDS, seed: int = 0
) -> tuple[Stability, ...]:
    """For each number of seeds, how often the best mean belongs to the best configuration, by bootstrap.

    The true means are not known, and the observed ones are too far apart by luck; so each draw first takes true means
    from their posterior under the random-effects model (observed means shrunk towards the grand mean by
    ICC(1), as much as the number of their seeds asks for; Efron & Morris 1975, doi:10.2307/2285814), then gives every
    configuration fresh seeds whose residuals are resampled from the sweep's own, and looks who wins. ``regret`` is the
    mean true loss given up. Empty where nothing was repeated, or nothing differs.
    """
    kept = [list(group) for group in groups if len(group)]
    icc, noise = icc1(kept), noise_of(kept)
    if icc is None or noise is None or noise.std == 0 or not math.isfinite(icc.value):
        return ()
    sign = 1.0 if direction == "minimize" else -1.0
    means, sizes = np.array([np.mean(group) for group in kept]), np.array([len(group) for group in kept])
    rng = np.random.default_rng(seed)
    centre, trust = _posterior(means, sizes, icc.between, noise)
    near = np.argsort(sign * centre)[:CANDIDATES]
    draws = int(np.clip(20_000_000 // (len(near) * max(seeds)), 200, DRAWS))
    width = np.sqrt(trust[near] * noise.std**2 / sizes[near])
    truth = sign * (centre[near] + rng.normal(size=(draws, len(near))) * width)
    pool = residuals(kept)
    best, rows = truth.min(axis=1), np.arange(draws)
    found = []
    for n in seeds:
        error = np.mean([rng.choice(pool, size=truth.shape) for _ in range(n)], axis=0)
        chosen = truth[rows, (truth + error).argmin(axis=1)]
        found.append(Stability(n, float((chosen == best).mean()), float((chosen - best).mean())))
    return tuple(found)


def _posterior(means: Floats, sizes: Floats, between: float, noise: Noise) -> tuple[Floats, Floats]:
    """Shrunken means, and how far each observed mean is trusted (1: not shrunk)."""
    weights = 1 / (between**2 + noise.std**2 / sizes)
    grand = float((weights * means).sum() / weights.sum())
    trust = between**2 * weights
    return grand + trust * (means - grand), trust


@dataclass(frozen=True)
class Ranking:
    """Everything about the order of a sweep's configurations. ``gap`` is the second-best mean minus the best."""

    concordance: Concordance | None
    stability: tuple[Stability, ...]
    noise: Noise | None
    gap: float | None
    needed: int | None
    detectable: float | None
    sentences: tuple[str, ...]


def ranking(frame: pd.DataFrame, metric: str | None = None, direction: str | None = None) -> Ranking:
    """Kendall's W, rank stability and the seeds that the sweep's own differences need."""
    metric, direction = objective_of(frame, metric, direction)
    groups = [c.values for c in configurations(frame.drop_duplicates("key"), metric) if c.n]
    noise = noise_of(groups)
    agreement = concordance(frame, metric)
    most = max(map(len, groups), default=0)
    stability = rank_stability(groups, direction, sorted({*SEEDS, max(most, 1)}))
    means = sorted((float(np.mean(group)) for group in groups), reverse=direction == "maximize")
    gap = abs(means[1] - means[0]) if len(means) > 1 else None
    needed = seeds_needed(gap, noise, len(groups)) if gap is not None and noise is not None else None
    detectable = smallest_difference(most, noise, len(groups)) if noise is not None else None
    said = _sentences(agreement, stability, noise, gap, needed, detectable, most)
    return Ranking(agreement, stability, noise, gap, needed, detectable, tuple(said))


def _sentences(
    agreement: Concordance | None,
    stability: Sequence[Stability],
    noise: Noise | None,
    gap: float | None,
    needed: int | None,
    detectable: float | None,
    most: int,
) -> list[str]:
    from lora_lab.analysis.reliability import spread

    said = []
    if agreement is not None:
        said.append(
            f"{agreement.seeds} seeds order {agreement.configurations} configurations with Kendall's W "
            f"{agreement.w:.2f} (p = {agreement.p:.2g}; 1 is the same order every time)."
        )
    now = next((s for s in stability if s.seeds == most), None)
    if now is not None:
        plural = "seed" if most == 1 else "seeds"
        said.append(
            f"With {most} {plural} the winner is right with probability {now.right:.2f}; "
            f"a wrong one costs {spread(now.regret)} on average."
        )
        enough = next((s.seeds for s in stability if s.right >= 0.9), None)
        if enough is not None and enough > most:
            said.append(f"{enough} seeds would bring that to 0.9.")
    if noise is not None and gap is not None and noise.std > 0:
        many = f"{needed} seeds" if needed is not None else f"more than {MOST_SEEDS} seeds"
        said.append(
            f"The best two are {spread(gap)} apart: seeing that with 80 % power takes {many} each"
            + (f"; {most} seeds show differences from {spread(detectable)} on." if detectable is not None else ".")
        )
    return said
