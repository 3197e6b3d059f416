"""Where along a numeric setting the optimum lies, seed by seed, and what moves it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lora_lab.analysis.claims.evidence import Evidence
from lora_lab.analysis.gap import blocked_slope
from lora_lab.analysis.grouping import check_metric, check_path, higher_is_better
from lora_lab.analysis.intervals import Floats
from lora_lab.analysis.verdicts import Verdict, better, verdict_of
from lora_lab.errors import SpecError


@dataclass(frozen=True)
class Apart:
    """The best value along ``path`` is higher in sweep ``high`` than in ``low``, by ``factor`` to be worth claiming."""

    high: str
    low: str
    path: str
    factor: float
    metric: str = "eval_loss"

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Paired t test of the optima's logarithms (base 10), a pair a seed."""
        frames = [evidence.frame(sweep) for sweep in (self.high, self.low)]
        for frame in frames:
            check_path(frame, self.path)
        high, low = (optima(frame, self.path, self.metric) for frame in frames)
        seeds = [seed for seed in high if seed in low]
        if len(seeds) < 2:
            raise SpecError(f"{self.high} and {self.low} share {len(seeds)} seeds with an optimum; two are needed")
        ten = 1 / math.log2(10)
        found = better(
            [high[seed] * ten for seed in seeds],
            [low[seed] * ten for seed in seeds],
            claim,
            smallest=math.log10(self.factor),
            direction="maximize",
        )
        return replace(found, test=f"{found.test}, of log10 of the best {self.path} a seed (parabola through the best)")


@dataclass(frozen=True)
class OptimumRises:
    """The best value along ``path`` grows along ``along``, by ``smallest`` doublings per doubling."""

    sweep: str
    path: str
    along: str
    metric: str = "eval_loss"
    smallest: float = 0.0

    def __call__(self, claim: str, evidence: Evidence) -> Verdict:
        """Slope of the optimum's logarithm on that of ``along`` within seeds."""
        frame = evidence.frame(self.sweep)
        for searched in (self.path, self.along):
            check_path(frame, searched)
        x, y, blocks = [], [], []
        for value, part in frame.groupby(self.along):
            for seed, best in optima(part, self.path, self.metric).items():
                x.append(math.log2(float(str(value))))
                y.append(best)
                blocks.append(str(seed))
        found = blocked_slope(np.array(x), np.array(y), blocks) if x else None
        if found is None:
            raise SpecError(f"too few seeds and values of {self.along} to see where the best {self.path} goes")
        slope, low, high, p, df = found
        said = f"least-squares slope of log2(best {self.path}) on log2({self.along}) within seeds, t test"
        return verdict_of(claim, said, slope, low, high, p, self.smallest, df + len(set(blocks)) + 1)


def optima(frame: pd.DataFrame, path: str, metric: str) -> dict[int, float]:
    """log2 of the best value along ``path`` for each seed that has completed runs at three values or more.

    Between grid points the optimum is the vertex of the parabola through the best one and its neighbours; at the end
    of the grid it is that end (the true one may lie beyond).
    """
    check_metric(frame, metric)
    done = frame[(frame["outcome"] == "COMPLETED") & frame[metric].notna()]
    sign = -1.0 if higher_is_better(metric) else 1.0
    out = {}
    for seed, part in done.groupby("seed"):
        means = part.groupby(path)[metric].mean().sort_index()
        if len(means) >= 3:
            x = np.log2(np.asarray(means.index, dtype=float))
            out[int(str(seed))] = _vertex(x, sign * means.to_numpy(dtype=float))
    return out


def _vertex(x: Floats, y: Floats) -> float:
    i = int(np.argmin(y))
    if i in (0, len(x) - 1):
        return float(x[i])
    a, b, _ = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    return float(np.clip(-b / (2 * a), x[i - 1], x[i + 1])) if a > 0 else float(x[i])
