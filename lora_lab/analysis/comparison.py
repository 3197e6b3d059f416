"""Two sweeps with runs in common: did anything move by more than seeds explain?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lora_lab.analysis.grouping import configurations, objective_of, searched_paths
from lora_lab.analysis.intervals import LEVEL, Floats, Noise, holm, noise_of
from lora_lab.analysis.naming import path_name, point_name, value_name
from lora_lab.analysis.reliability import spread
from lora_lab.analysis.rendering import Grid, digits_for
from lora_lab.errors import SpecError

SAME = 1e-6
"""Relative difference up to which two runs of one key gave the same number."""


@dataclass(frozen=True)
class Moved:
    """One configuration in both sweeps: the means over its ``n`` common runs, and the test of their difference."""

    point: tuple[tuple[str, Any], ...]
    n: int
    a: float
    b: float
    p: float
    holm: float

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """What came of the same keys in two sweeps.

    ``noise`` is the standard deviation over seeds, pooled over both; ``repeat`` that between two runs of one key
    (0 where training repeats to the bit); ``shift`` the mean difference with its interval and p.
    """

    metric: str
    runs: int
    same: int
    moved: tuple[Moved, ...]
    noise: float | None
    repeat: float
    shift: tuple[float, float, float, float]
    only: tuple[int, int]
    lost: tuple[str, ...]
    sentences: tuple[str, ...]

    @property
    def beyond(self) -> tuple[Moved, ...]:
        """The configurations that moved by more than seeds explain, after Holm's correction."""
        return tuple(m for m in self.moved if m.holm < LEVEL)

    def grid(self, top: int = 20) -> Grid:
        """The configurations that moved most."""
        shown = sorted(self.moved, key=lambda m: -abs(m.difference))[:top]
        digits = digits_for(self.noise or math.nan, max((abs(m.a) for m in shown), default=0.0))
        paths = [path for path, _ in shown[0].point] if shown else []
        rows = [
            (
                *([value_name(value) for _, value in m.point] or ["the base settings"]),
                str(m.n),
                f"{m.a:.{digits}f}",
                f"{m.b:.{digits}f}",
                f"{m.difference:+.{digits}f}",
                "–" if math.isnan(m.holm) else f"{m.holm:.2g}",
            )
            for m in shown
        ]
        left = [f"the {top} of {len(self.moved)} configurations that moved most"] if len(self.moved) > top else []
        return Grid(
            title=(f"{self.metric} of the same keys",),
            head=(*([path_name(path, paths) for path in paths] or ["configuration"]), "n", "A", "B", "B - A", "Holm p"),
            rows=tuple(rows),
            labels=max(1, len(paths)),
            notes=tuple(left),
        )

    def to_tree(self) -> dict[str, Any]:
        """For JSON; what is not known is ``None``."""
        return {
            "metric": self.metric,
            "runs": self.runs,
            "same": self.same,
            "only": list(self.only),
            "outcomes_changed": list(self.lost),
            "noise": self.noise,
            "repeat": self.repeat,
            "shift": dict(zip(("mean", "low", "high", "p"), map(_number, self.shift), strict=True)),
            "moved": [
                {"point": dict(m.point), "n": m.n, "a": m.a, "b": m.b, "p": _number(m.p), "holm": _number(m.holm)}
                for m in self.moved
            ],
            "sentences": list(self.sentences),
        }


def compare(a: pd.DataFrame, b: pd.DataFrame, metric: str | None = None) -> Comparison:
    """Compare the runs of ``a`` and ``b`` that have the same key.

    A configuration has moved by more than noise where its mean over the common runs differs by more than two sets of
    seeds would (two-sided t test with the spread over seeds pooled over both sweeps, Holm-corrected over
    configurations). The shift of the whole is a paired t test over configurations.

    Raises:
        SpecError: an unknown metric, or no key in common.
    """
    metric, _ = objective_of(a, metric, None)
    objective_of(b, metric, None)
    first, second = a.drop_duplicates("key").set_index("key"), b.drop_duplicates("key").set_index("key")
    keys = [key for key in first.index if key in second.index]
    if not keys:
        raise SpecError(
            "the two sweeps have no run in common: no key is equal, so something about every run differs "
            "(model, data, budget, seed …). Compare the resolved config.yaml of both."
        )
    one, two = first.loc[keys], second.loc[keys]
    done = (one["outcome"] == "COMPLETED") & (two["outcome"] == "COMPLETED") & one[metric].notna() & two[metric].notna()
    changed = [
        f"{run}: {x} in A, {y} in B"
        for run, x, y in zip(one["run"], one["outcome"], two["outcome"], strict=True)
        if x != y
    ]
    one, two = one[done], two[done]
    x, y = one[metric].to_numpy(dtype=float), two[metric].to_numpy(dtype=float)
    noise = noise_of([c.values for frame in (a, b) for c in configurations(frame.drop_duplicates("key"), metric)])
    moved = _moved(one, x, y, searched_paths(a), noise)
    d = y - x
    same = int(np.isclose(x, y, rtol=SAME, atol=0).sum())
    repeat = math.sqrt(float(np.mean(d**2)) / 2) if len(d) else math.nan
    shift = _shift(np.array([m.difference for m in moved]))
    only = (len(first) - len(keys), len(second) - len(keys))
    std = None if noise is None else noise.std
    found = Comparison(metric, len(d), same, tuple(moved), std, repeat, shift, only, tuple(changed), ())
    return Comparison(**(vars(found) | {"sentences": tuple(_sentences(found))}))


def _moved(one: pd.DataFrame, x: Floats, y: Floats, paths: list[str], noise: Noise | None) -> list[Moved]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, point in enumerate(zip(*[one[path] for path in paths], strict=True) if paths else [()] * len(one)):
        groups.setdefault(point, []).append(i)
    out = []
    for point, rows in groups.items():
        before, after, n = float(np.mean(x[rows])), float(np.mean(y[rows])), len(rows)
        p = math.nan
        if noise is not None and noise.std > 0:
            p = 2 * float(stats.t.sf(abs(after - before) / (noise.std * math.sqrt(2 / n)), noise.df))
        out.append((tuple(zip(paths, point, strict=True)), n, before, after, p))
    return [Moved(*m, p) for m, p in zip(out, holm([m[-1] for m in out]), strict=True)]


def _shift(d: Floats) -> tuple[float, float, float, float]:
    """Mean, interval and p of the differences of the configurations."""
    if len(d) < 2 or np.ptp(d) == 0:
        mean = float(d.mean()) if len(d) else math.nan
        return mean, mean, mean, 1.0 if mean == 0 else math.nan
    test = stats.ttest_1samp(d, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return float(d.mean()), float(low), float(high), float(test.pvalue)


def _sentences(c: Comparison) -> list[str]:
    said = [f"{c.runs} completed runs have the same key in both sweeps; {c.same} of them gave the same {c.metric}."]
    if c.only != (0, 0):
        said.append(f"{c.only[0]} keys are in A only, {c.only[1]} in B only.")
    if c.lost:
        said.append(f"{len(c.lost)} runs ended otherwise: {'; '.join(c.lost[:3])}{' …' if len(c.lost) > 3 else ''}.")
    if not c.runs or c.same == c.runs:
        return said
    most = max(c.moved, key=lambda m: abs(m.difference))
    name = point_name(dict(most.point)) or "the base settings"
    if c.noise is None:
        said.append(
            f"{name} moved most, by {most.difference:+.2g}; whether that is more than seeds explain is not known: "
            "no configuration has two seeds."
        )
        return said
    if c.beyond:
        names = ", ".join(point_name(dict(m.point)) or "the base settings" for m in c.beyond[:3])
        said.append(
            f"{len(c.beyond)} of {len(c.moved)} configurations moved by more than seeds explain: {names}"
            f"{' …' if len(c.beyond) > 3 else ''}."
        )
    else:
        said.append(
            f"Nothing moved by more than seeds explain; {name} moved most, by {most.difference:+.2g} "
            f"(seeds differ by ±{spread(c.noise)})."
        )
    mean, low, high, p = c.shift
    if p < LEVEL:
        said.append(f"All in all B is {mean:+.2g} from A (95 % CI {low:+.2g} to {high:+.2g}, p = {p:.2g}).")
    return said


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
