"""How far training runs ahead of held-out loss, and along which settings that gap grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lora_lab.analysis.ablation import ablation_table
from lora_lab.analysis.grouping import plain_value, searched_paths
from lora_lab.analysis.intervals import LEVEL, Floats
from lora_lab.analysis.naming import path_name
from lora_lab.analysis.tables import AblationTable

AXES = (
    "method.r",
    "optimizer.weight_decay",
    "method.dropout",
    "budget.epochs",
    "budget.steps",
    "data.train_size",
)
"""Settings that overfitting is looked for along, where a sweep varies them."""
LOG_RATIO = 4
"""An axis of positive numbers that spans more than this is taken on a log scale, per doubling."""


@dataclass(frozen=True)
class Slope:
    """Change of a metric along a numeric axis, per doubling (``log``) or per unit, with its 95 % interval.

    Blocks (the seed and everything else that was searched) each have their own level.
    """

    path: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    df: int
    log: bool

    @property
    def per(self) -> str:
        """``per doubling of r``."""
        return f"per {'doubling' if self.log else 'unit'} of {path_name(self.path)}"


@dataclass(frozen=True)
class Overfitting:
    """The generalisation gap of a sweep: a table and a slope for each axis, and what they say."""

    frame: pd.DataFrame
    tables: tuple[AblationTable, ...]
    slopes: tuple[Slope, ...]
    sentences: tuple[str, ...]


def with_gap(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with ``gap`` (eval_loss - train_loss, nats a token) and ``rise`` (eval_loss - best_eval_loss).

    ``gap`` compares the end of training on seen examples with held-out ones; ``rise`` is what training past the best
    evaluation has cost, 0 where the last evaluation was the best.
    """
    out = frame.assign(gap=frame["eval_loss"] - frame["train_loss"], rise=frame["eval_loss"] - frame["best_eval_loss"])
    out.attrs = dict(frame.attrs)
    return out


def overfitting(frame: pd.DataFrame) -> Overfitting | None:
    """Tables of the gap along each of :data:`AXES` that the sweep varies; ``None`` where no run has a gap."""
    wide = with_gap(frame)
    done = wide[(wide["outcome"] == "COMPLETED") & wide["gap"].notna()]
    if done.empty:
        return None
    axes = [path for path in AXES if path in searched_paths(frame) and done[path].nunique() > 1]
    tables = tuple(ablation_table(wide, path, metric="gap", direction="minimize", spread="ci") for path in axes)
    slopes = [slope(wide, path, "gap") for path in axes]
    gap = done["gap"].mean()
    side = "below" if gap < 0 else "above"
    said = [
        f"At the end of training the held-out loss is {abs(gap):.3g} nats {side} the training loss "
        f"(held-out less training: {done['gap'].min():.3g} to {done['gap'].max():.3g} over runs)."
    ]
    risen = int((done["rise"] > 0).sum())
    if risen:
        said.append(
            f"{risen} of {len(done)} runs were better at an earlier evaluation, by {done['rise'].max():.3g} at most."
        )
    for s in slopes:
        if s is None:
            continue
        if s.p >= LEVEL:
            said.append(f"No trend of the gap along {path_name(s.path)} (p = {s.p:.2g}).")
        else:
            word = "grows" if s.value > 0 else "shrinks"
            interval = sorted((abs(s.low), abs(s.high)))
            said.append(
                f"The gap {word} by {abs(s.value):.2g} {s.per} (95 % CI {interval[0]:.2g} to {interval[1]:.2g}, "
                f"p = {s.p:.2g})."
            )
    return Overfitting(wide, tables, tuple(s for s in slopes if s is not None), tuple(said))


def slope(frame: pd.DataFrame, path: str, metric: str) -> Slope | None:
    """Least-squares slope of ``metric`` along ``path`` within blocks of equal seed and equal other settings.

    ``None`` where the axis is not numeric, or fewer than two degrees of freedom are left.
    """
    done = frame[(frame["outcome"] == "COMPLETED") & frame[metric].notna()]
    x = [plain_value(value) for value in done[path].tolist()]
    if not x or any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in x):
        return None
    rest = [p for p in searched_paths(frame) if p != path]
    blocks = [str(row) for row in done[[*rest, "seed"]].itertuples(index=False)]
    axis = np.array(x, dtype=float)
    log = bool(axis.min() > 0 and axis.max() / axis.min() > LOG_RATIO)
    found = blocked_slope(np.log2(axis) if log else axis, done[metric].to_numpy(dtype=float), blocks)
    return None if found is None else Slope(path, metric, *found, log)


def blocked_slope(x: Floats, y: Floats, blocks: list[str]) -> tuple[float, float, float, float, int] | None:
    """Slope, interval, p and degrees of freedom of ``y`` on ``x`` with one intercept a block (the within estimator)."""
    codes = np.unique(blocks, return_inverse=True)[1]
    counts = np.bincount(codes)
    dx = x - (np.bincount(codes, x) / counts)[codes]
    dy = y - (np.bincount(codes, y) / counts)[codes]
    df = len(y) - len(counts) - 1
    sxx = float(dx @ dx)
    if df < 2 or sxx <= 0:
        return None
    b = float(dx @ dy) / sxx
    error = math.sqrt(float(((dy - b * dx) ** 2).sum()) / df / sxx)
    half = float(stats.t.ppf(1 - LEVEL / 2, df)) * error
    p = 2 * float(stats.t.sf(abs(b) / error, df)) if error > 0 else float(b == 0)
    return b, b - half, b + half, p, df
