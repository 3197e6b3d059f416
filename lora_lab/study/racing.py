"""Which trials get further seeds (``repeats: {min: 1, max: 5}``): those that may still be the best.

Rounds begin when every trial has its first seeds. In a round each contender gets one seed more; when those are
settled, the next begins, until each contender has the most seeds or one contender is left. A trial is a contender
if, by the t-test of its mean against the best trial's with the spread pooled over all trials that have two
seeds or more, it is not worse at the level :data:`LEVEL` (one-sided). While no trial has two seeds, the better half is,
and two of them at least.
A trial with a run that was pruned, diverged or failed is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy import stats

from lora_lab.spec import Objective, Outcome, RunResult, Sweep

LEVEL = 0.05


def further_seeds(sweep: Sweep, results: Mapping[int, Sequence[RunResult]]) -> dict[int, int]:
    """The next seed of each contender of the coming round, by trial; empty when the race is over.

    ``results`` are those of each settled trial, all its seeds so far.
    """
    if sweep.max_repeats is None:
        return {}
    values = {n: _values(found, sweep.objective) for n, found in results.items()}
    racing = contenders({n: v for n, v in values.items() if v}, sweep.objective)
    if len(racing) < 2:
        return {}
    return {n: sweep.base.seed + len(results[n]) for n in sorted(racing) if len(results[n]) < sweep.max_repeats}


def contenders(values: Mapping[int, Sequence[float]], objective: Objective) -> list[int]:
    """The trials that may be the best, by their values over seeds, the best first."""
    if not values:
        return []
    mean = {n: objective.sign * sum(v) / len(v) for n, v in values.items()}
    order = sorted(mean, key=lambda n: (mean[n], n))
    freedom = sum(len(v) - 1 for v in values.values())
    if freedom == 0:
        return order[: max(2, math.ceil(len(order) / 2))]
    squares = sum(sum((objective.sign * x - mean[n]) ** 2 for x in v) for n, v in values.items())
    spread = math.sqrt(squares / freedom)
    limit = float(stats.t.ppf(1 - LEVEL, freedom))
    best = order[0]

    def near(n: int) -> bool:
        return mean[n] - mean[best] <= limit * spread * math.sqrt(1 / len(values[n]) + 1 / len(values[best]))

    return [n for n in order if n == best or near(n)]


def _values(results: Sequence[RunResult], objective: Objective) -> list[float]:
    """The objective of each run; empty where one is missing, so that the trial does not race."""
    found = [r.measured(objective.metric) for r in results if r.outcome is Outcome.COMPLETED]
    usable = [float(v) for v in found if v is not None and math.isfinite(v)]
    return usable if len(usable) == len(results) else []
