"""Expected improvement by a Gaussian process over settled trials: is there anything left to win?

Jones, Schonlau & Welch, J. Global Optimization 13 (1998). Matérn-5/2 kernel with one length scale a parameter and
noise, both by maximum likelihood; categorical parameters as 0/1 columns; the maximum is sought over random points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from scipy import linalg, optimize, stats

LEAST_TRIALS = 8
"""Settled trials below which nothing is said."""
MOST_TRIALS = 200
"""The best and the latest that are modelled: the cost grows with the cube."""
CANDIDATES = 1024

Matrix = NDArray[np.float64]


def expected_improvement(trials: Sequence[FrozenTrial], sign: int, *, seed: int = 0) -> float | None:
    """The largest expected improvement over the best value (in the objective's unit); ``None``: too little is known.

    ``trials`` are complete, in the order of settling; ``sign`` is 1 where less is better.
    """
    if len(trials) < LEAST_TRIALS:
        return None
    if len(trials) > MOST_TRIALS:
        best = sorted(trials, key=lambda t: sign * (t.values or [math.inf])[0])[: MOST_TRIALS // 2]
        trials = [t for t in trials if t in best or t in trials[-MOST_TRIALS // 2 :]]
    space: dict[str, BaseDistribution] = {n: d for t in trials for n, d in t.distributions.items()}
    x = np.array([_row(trial.params, space) for trial in trials])
    y = np.array([sign * (trial.values or [math.nan])[0] for trial in trials])
    scale = float(y.std())
    if scale == 0.0 or x.shape[1] == 0:
        return 0.0
    process = _Process(x, (y - y.mean()) / scale)
    candidates = _candidates(space, x[int(np.argmin(y))], np.random.default_rng(seed))
    mean, deviation = process.predict(candidates)
    # The best of the model's own means, not of the noisy values: luck with a seed is not there to be improved upon.
    known, _ = process.predict(x)
    gap = float(known.min()) - mean
    z = gap / deviation
    return float(np.max(gap * stats.norm.cdf(z) + deviation * stats.norm.pdf(z))) * scale


class _Process:
    """A Gaussian process with the length scales and the noise of maximum likelihood."""

    def __init__(self, x: Matrix, y: Matrix) -> None:
        self.x = x
        start = np.log(np.full(x.shape[1] + 1, 0.5))
        start[-1] = math.log(0.1)
        bounds = [(math.log(0.05), math.log(20.0))] * x.shape[1] + [(math.log(1e-3), math.log(1.0))]

        def loss(theta: Matrix) -> float:
            lower = self._factor(theta)
            half = linalg.solve_triangular(lower, y, lower=True)
            return float(0.5 * half @ half + np.log(np.diag(lower)).sum())

        found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40})
        self.theta = found.x
        self.lower = self._factor(self.theta)
        self.weights = linalg.cho_solve((self.lower, True), y)

    def _factor(self, theta: Matrix) -> Matrix:
        noise = math.exp(2 * float(theta[-1])) + 1e-8
        covariance = _matern(self.x, self.x, np.exp(theta[:-1])) + noise * np.eye(len(self.x))
        return np.asarray(linalg.cholesky(covariance, lower=True))

    def predict(self, x: Matrix) -> tuple[Matrix, Matrix]:
        """Means and standard deviations (of the noiseless value) at ``x``."""
        across = _matern(x, self.x, np.exp(self.theta[:-1]))
        half = linalg.solve_triangular(self.lower, across.T, lower=True)
        return across @ self.weights, np.sqrt(np.maximum(1.0 - (half**2).sum(axis=0), 1e-12))


def _matern(a: Matrix, b: Matrix, scales: Matrix) -> Matrix:
    distance = np.sqrt(5.0 * (((a[:, None, :] - b[None, :, :]) / scales) ** 2).sum(axis=2))
    return np.asarray((1.0 + distance + distance**2 / 3.0) * np.exp(-distance))


def _row(params: dict[str, Any], space: dict[str, BaseDistribution]) -> list[float]:
    """A point as numbers in [0, 1]; a parameter that it lacks (a condition was false) stands in the middle."""
    row: list[float] = []
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            row += [
                float(name in params and params[name] == c and type(params[name]) is type(c))
                for c in distribution.choices
            ]
        elif isinstance(distribution, (IntDistribution, FloatDistribution)):
            low, high = float(distribution.low), float(distribution.high)
            if name not in params or low == high:
                row.append(0.5)
            elif distribution.log:
                row.append(math.log(params[name] / low) / math.log(high / low))
            else:
                row.append((params[name] - low) / (high - low))
    return row


def _candidates(space: dict[str, BaseDistribution], best: Matrix, generator: np.random.Generator) -> Matrix:
    """Random points, half of them anywhere and half of them near the best one."""
    columns: list[Matrix] = []
    place = 0
    near = np.arange(CANDIDATES) % 2 == 1
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            width = len(distribution.choices)
            drawn = np.eye(width)[generator.integers(width, size=CANDIDATES)]
            keep = near & (generator.random(CANDIDATES) < 0.8)
            drawn[keep] = best[place : place + width]
            columns.append(drawn)
        else:
            width = 1
            value = generator.random(CANDIDATES)
            close = np.clip(best[place] + 0.1 * generator.standard_normal(CANDIDATES), 0.0, 1.0)
            columns.append(np.where(near, close, value)[:, None])
        place += width
    return np.concatenate(columns, axis=1)
