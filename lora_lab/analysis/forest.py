"""Which settings matter: a forest fitted to the sweep, its variance taken apart (fANOVA), and its curves.

A space is searched unevenly and a setting acts differently beside another; so a random forest is fitted to the
configurations' means, and the *forest's* variance over the whole space is split into what each setting explains alone
and together with another: functional ANOVA (Hutter, Hoos & Leyton-Brown 2014), here as Sobol' indices of the forest
(``scipy.stats.sobol_indices``), which are the same shares. What the forest says is worth as much as it predicts:
``score`` is its out-of-bag R².
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lora_lab.analysis.grouping import configurations, objective_of, plain_value
from lora_lab.analysis.intervals import Floats
from lora_lab.analysis.naming import path_name, value_name
from lora_lab.spec import FloatRange, IntRange, Space

LEAST = 8
"""Configurations below which no forest is fitted."""
TREES = 64
SAMPLES = 1024
"""Points of the Sobol' sequence; ``SAMPLES * (settings + 2)`` evaluations of the forest."""
GRID = 24
"""Points of a partial-dependence curve along a range."""
PAIRS = 6
"""Settings, the most important ones, whose pairs are looked at."""
POOR_SCORE = 0.3
"""Out-of-bag R² below which importances are said to be worth little."""


@dataclass(frozen=True)
class Setting:
    """A searched path as the forest sees it: one column; ``values`` are what it can be, in their own order."""

    path: str
    values: tuple[Any, ...]
    numeric: bool
    log: bool
    continuous: bool

    def encode(self, values: Sequence[Any]) -> Floats:
        """Numbers (their logarithm on a log axis), or places in the list of values."""
        if self.numeric:
            x = np.array([float(v) for v in values])
            return np.asarray(np.log(x)) if self.log else x
        place = {value_name(v): i for i, v in enumerate(self.values)}
        return np.array([float(place[value_name(v)]) for v in values])

    def at(self, u: Floats) -> Floats:
        """Encoded values at quantiles ``u`` in [0, 1) of the space."""
        points = self.encode(self.values)
        if self.continuous:
            return np.asarray(points[0] + u * (points[-1] - points[0]))
        return np.asarray(points[np.minimum((u * len(points)).astype(int), len(points) - 1)])


@dataclass(frozen=True)
class Curve:
    """Partial dependence: the forest's mean prediction with one setting held at each of ``values`` (Friedman 2001)."""

    path: str
    values: tuple[Any, ...]
    means: tuple[float, ...]
    numeric: bool
    log: bool


@dataclass(frozen=True)
class Interaction:
    """The share of variance that two settings explain together beyond what each explains alone."""

    paths: tuple[str, str]
    share: float


@dataclass(frozen=True)
class Importance:
    """What matters in a sweep. Shares are of the forest's variance over the space.

    ``table`` has a row a path: ``path alone total ped`` (``alone`` the fANOVA main effect, ``total`` with all its
    interactions, ``ped`` PED-ANOVA's share among the best tenth or NaN), most important first.
    """

    metric: str
    configurations: int
    score: float
    table: pd.DataFrame
    interactions: tuple[Interaction, ...]
    curves: tuple[Curve, ...]
    sentences: tuple[str, ...]

    def with_ped(self, shares: Mapping[str, float]) -> Importance:
        """With PED-ANOVA's shares (arXiv:2304.10255) from :func:`lora_lab.study.ped_anova`, which asks Optuna."""
        table = self.table.assign(ped=[shares.get(path, math.nan) for path in self.table["path"]])
        first = max(shares, key=lambda path: shares[path], default=None)
        said = list(self.sentences)
        if first is not None and shares[first] > 0:
            said.append(
                f"Among the best tenth of configurations, {path_name(first, list(shares))} sets them apart most."
            )
        return replace(self, table=table, sentences=tuple(said))


def importance(frame: pd.DataFrame, metric: str | None = None, seed: int = 0) -> Importance | None:
    """Fit the forest to the means of the configurations and take it apart.

    Masks count as six settings, ``method.roles.query`` and so on. ``None`` below :data:`LEAST` configurations, or where
    fewer than two settings vary, or where nothing differs.
    """
    from sklearn.ensemble import RandomForestRegressor

    metric, _ = objective_of(frame, metric, None)
    points, means, weights = configuration_means(frame, metric)
    if len(means) < LEAST or float(np.ptp(means)) == 0:
        return None
    settings = [s for s in _settings(frame, points) if len(s.values) > 1]
    if len(settings) < 2:
        return None
    X = np.column_stack([s.encode([point.get(s.path) for point in points]) for s in settings])
    forest = RandomForestRegressor(
        TREES,
        random_state=seed,
        oob_score=True,
        min_samples_leaf=1 if len(means) < 1000 else 5,
        max_samples=_most(means),
    )
    forest.fit(X, means, sample_weight=weights)

    def predict(u: Floats) -> Floats:
        """(settings, …) quantiles to (…) predictions, as ``sobol_indices`` asks."""
        columns = [s.at(np.ravel(row)) for s, row in zip(settings, u, strict=True)]
        return np.asarray(forest.predict(np.column_stack(columns))).reshape(u.shape[1:])

    uniform = [stats.uniform()] * len(settings)
    rng = np.random.default_rng(seed)
    found = stats.sobol_indices(func=predict, n=SAMPLES, dists=uniform, rng=rng)
    alone = np.clip(np.squeeze(found.first_order), 0, 1)
    total = np.clip(np.squeeze(found.total_order), alone, 1)
    table = pd.DataFrame({"path": [s.path for s in settings], "alone": alone, "total": total, "ped": math.nan})
    table = table.sort_values("total", ascending=False, kind="stable").reset_index(drop=True)
    sample = rng.random((len(settings), SAMPLES))
    curves = {s.path: _curve(s, i, settings, sample, predict) for i, s in enumerate(settings)}
    pairs = _interactions(table["path"].head(PAIRS).tolist(), settings, sample, predict, curves)
    score = float(forest.oob_score_)
    shown = tuple(curves[path][0] for path in table["path"])
    said = _sentences(table, pairs, score, len(means))
    return Importance(metric, len(means), score, table, tuple(pairs), shown, tuple(said))


def configuration_means(frame: pd.DataFrame, metric: str) -> tuple[list[dict[str, Any]], Floats, Floats]:
    """Points (masks as six booleans), means over seeds and numbers of seeds of the configurations that completed."""
    found = [c for c in configurations(frame.drop_duplicates("key"), metric) if c.n]
    points = [flat_point(dict(c.point)) for c in found]
    return points, np.array([c.mean for c in found]), np.array([float(c.n) for c in found])


def flat_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point with its mask as ``method.roles.<role>`` booleans."""
    from lora_lab.spec import ROLES

    out = dict(point)
    mask = out.pop("method.roles", None)
    if mask is not None:
        out |= {f"method.roles.{role}": role in mask for role in ROLES}
    return out


def _most(means: Floats) -> int | None:
    return 2000 if len(means) > 2000 else None


def _settings(frame: pd.DataFrame, points: Sequence[Mapping[str, Any]]) -> list[Setting]:
    sweep = frame.attrs.get("sweep")
    space = dict(Space.from_tree(sweep["space"]).domains) if sweep is not None else {}
    out = []
    for path in dict.fromkeys(path for point in points for path in point):
        seen = {value_name(v): v for v in (plain_value(point.get(path)) for point in points)}
        values = list(seen.values())
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        values = sorted(values) if numeric else values
        domain = space.get(path)
        log = bool(numeric and values[0] > 0 and values[-1] / values[0] > 4)
        if isinstance(domain, (IntRange, FloatRange)):
            log = domain.log
            if len(values) > 1:
                values = [domain.low, *values[1:-1], domain.high]
        continuous = (isinstance(domain, FloatRange) and domain.step is None) or (numeric and len(values) > 2 * GRID)
        out.append(Setting(path, tuple(values), numeric, log, continuous))
    return out


def _curve(setting: Setting, i: int, settings: Sequence[Setting], sample: Floats, predict: Any) -> tuple[Curve, Floats]:
    """The curve along one setting, and the quantiles it was taken at."""
    u = _places(setting)
    held = np.repeat(sample[:, None, : SAMPLES // 4], len(u), axis=1)
    held[i] = u[:, None]
    means = predict(held).mean(axis=1)
    values = list(setting.values)
    if setting.continuous:
        encoded = setting.at(u)
        values = list(np.exp(encoded) if setting.log else encoded)
    return Curve(setting.path, tuple(values), tuple(map(float, means)), setting.numeric, setting.log), u


def _places(setting: Setting) -> Floats:
    n = GRID if setting.continuous else len(setting.values)
    return (np.arange(n) + 0.5) / n


def _interactions(
    paths: Sequence[str], settings: Sequence[Setting], sample: Floats, predict: Any, curves: Mapping[str, Any]
) -> list[Interaction]:
    """Second-order shares: the variance of the two-way partial dependence, less both one-way ones."""
    at = {s.path: i for i, s in enumerate(settings)}
    whole = float(np.var(predict(sample)))
    out: list[Interaction] = []
    if whole == 0:
        return out
    for a, b in itertools.combinations(paths, 2):
        ua, ub = _coarse(curves[a][1]), _coarse(curves[b][1])
        held = np.repeat(sample[:, None, : SAMPLES // 8], len(ua) * len(ub), axis=1)
        held[at[a]] = np.repeat(ua, len(ub))[:, None]
        held[at[b]] = np.tile(ub, len(ua))[:, None]
        surface = predict(held).mean(axis=1).reshape(len(ua), len(ub))
        rest = surface - surface.mean(axis=1, keepdims=True) - surface.mean(axis=0, keepdims=True) + surface.mean()
        out.append(Interaction((a, b), float(np.clip(np.var(rest) / whole, 0, 1))))
    return sorted(out, key=lambda pair: -pair.share)


def _coarse(u: Floats) -> Floats:
    return u if len(u) <= 8 else u[np.linspace(0, len(u) - 1, 8).astype(int)]


def _sentences(table: pd.DataFrame, pairs: Sequence[Interaction], score: float, n: int) -> list[str]:
    paths = table["path"].tolist()
    first = table.iloc[0]
    said = [
        f"{path_name(first['path'], paths)} matters most: {100 * first['alone']:.0f} % of the variance over the space "
        f"alone, {100 * first['total']:.0f} % with its interactions."
    ]
    if pairs and pairs[0].share >= 0.05:
        a, b = (path_name(path, paths) for path in pairs[0].paths)
        said.append(f"{a} and {b} act together: {100 * pairs[0].share:.0f} % more than each alone.")
    worth = "" if score >= POOR_SCORE else " Little: take these shares as a hint only."
    said.append(f"The forest explains {100 * max(score, 0):.0f} % of {n} configurations it was not shown.{worth}")
    return said
